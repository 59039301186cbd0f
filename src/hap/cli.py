"""The programs' entry points: `python -m hap.<program>` and `hap <program>`, and what they say of bad input."""

import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import cast

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hap.config import CONF_DIR, check_hydra, did_you_mean, register, signature_of
from hap.errors import HapError
from hap.multirun import is_multirun, job_of_sweep, objective_of, sweep_told

BAD_INPUT = (HapError, HydraException, OmegaConfBaseException)
MULTIRUN = ("-m", "--multirun")


class _Stopped(SystemExit):
    """Ctrl-C or SIGTERM, in place of Python's own answers: a traceback, and an end without cleaning up."""


def _stop(number: int, _: FrameType | None) -> None:
    raise _Stopped(128 + number)


def run_with_hydra(
    config_name: str,
    body: Callable[[DictConfig, Path], object],
    stopped: str = "stopped",
    complete: Callable[[list[str]], list[str]] = list,
) -> None:
    """Compose `conf/<config_name>.yaml` with the command line and call `body(cfg, output folder)`.

    Args:
        stopped: what the program says when Ctrl-C or SIGTERM has ended it, with status 130 or 143.
        complete: what is done with the arguments before they are composed.
    """

    def whole(cfg: DictConfig) -> object:
        check_hydra(cast(DictConfig, HydraConfig.get()))
        return body(cfg, Path(HydraConfig.get().runtime.output_dir).absolute())

    def job(cfg: DictConfig) -> object:
        if is_multirun():
            with job_of_sweep(config_name, command, told):
                return objective_of(cfg, whole(cfg))
        # inside the job too: Hydra adds lines of its own to an exception that leaves it
        with readable_errors(config_name):
            return whole(cfg)

    def told(error: Exception) -> str | None:
        return describe(error, config_name) if isinstance(error, BAD_INPUT) else None

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
        signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    logging.raiseExceptions = False  # a log file on a full disk: a traceback for each line of it
    register()
    sys.argv[1:] = [_without(argument) for argument in quote_paths(sys.argv[1:])]
    for message in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    try:
        with readable_errors(config_name):
            sys.argv[1:] = complete(sys.argv[1:])
            command = [a for a in sys.argv if "=" not in a or a.startswith("--")]
            command = [a for a in command if a not in MULTIRUN and not a.startswith("~")]
            with sweep_told():
                hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=config_name)(job)()
    except _Stopped:
        print(f"hap: {stopped}", file=sys.stderr)
        raise


def _without(argument: str) -> str:
    """`logger=null` in the spelling of Hydra, which has no null for a group: `~logger`."""
    group, _, value = argument.partition("=")
    return f"~{group}" if group and value == "null" and (CONF_DIR / group).is_dir() else argument


_PATHS = (
    "boxes",
    "ckpt_path",
    "dir",
    "dirpath",
    "gallery",
    "input",
    "out",
    "predictions",
    "query",
    "root",
    "run_dir",
    "shards",
    "text",
    "text_encoder",
    "weights",
)


def quote_paths(arguments: list[str]) -> list[str]:
    """Arguments whose value is a path, quoted for Hydra, with `~` as the home folder: names with `=`, spaces,
    brackets or digits alone are names. A comma under `-m` still separates the values of a sweep, and `weights=[a,b]` is
    a list of paths."""
    sweep = any(argument in MULTIRUN or argument.startswith("sweep=") for argument in arguments)

    def path(text: str) -> str:
        if text in ("null", "???") or re.fullmatch(r"""(['"]).*\1""", text, re.S):
            return text
        # A quote, and backslashes before it or at the end, are escaped by a backslash.
        value = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + m[2].replace("'", "\\'"), os.path.expanduser(text))
        return f"'{value}'"

    def quoted(argument: str) -> str:
        match = re.fullmatch(rf"(\+{{0,2}}(?:[\w@]+\.)*(?:{'|'.join(_PATHS)})=)(.+)", argument, re.S)
        if match is None or (sweep and "," in match[2]):
            return argument
        key, value = match.groups()
        if key == "text=":  # no key of ours is meant in a sentence
            value = value.replace("${", r"\${")
        if key == "weights=" and (several := re.fullmatch(r"\[(.*)\]", value, re.S)):
            parts = re.findall(
                r"""\s*((?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")(?=\s*(?:,|$))|[^,]+)""", several[1]
            )
            return f"{key}[{','.join(path(part.strip()) for part in parts)}]"
        return f"{key}{path(value)}"

    return [quoted(argument) for argument in arguments]


@contextmanager
def readable_errors(config_name: str) -> Iterator[None]:
    """Bad input ends the program with one message and status 2; HYDRA_FULL_ERROR=1 shows the traceback."""
    # Hydra prints and exits by itself unless this is set; child processes inherit both variables.
    if os.environ.get("HYDRA_FULL_ERROR") != "1":
        os.environ |= {"HYDRA_FULL_ERROR": "1", "HAP_SHORT_ERRORS": "1"}
    try:
        yield
    except BAD_INPUT as error:
        if "HAP_SHORT_ERRORS" not in os.environ:
            raise
        print(f"hap: {describe(error, config_name)}", file=sys.stderr)
        sys.exit(2)


def describe(error: Exception, config_name: str = "train") -> str:
    """One message: what is wrong, and what to type instead, of the keys of `conf/<config_name>.yaml`."""
    ours: BaseException | None = error
    while ours is not None and not isinstance(ours, HapError):
        ours = ours.__context__  # of a resolver, OmegaConf raises its own error instead
    if ours is not None:
        return str(ours)
    parts = [str(error).strip()]
    cause = error.__cause__
    if cause is not None and str(cause).splitlines()[0] not in parts[0]:
        parts.append(str(cause).strip())
    message = "\n".join(
        line for part in parts for line in part.splitlines() if not _NOISE.match(line)
    ).strip()
    if isinstance(error, OverrideParseException):
        key, _, value = error.override.partition("=")
        return f"cannot read {error.override}; quote the value: \"{key}='{value}'\""
    if "You must specify 'experiment'" in message and config_name in ("eval", "predict"):
        return f"{message}\nor ckpt_path=FILE: a checkpoint of hap knows its own; weights=FILE does not"
    if match := re.search(r"Could not find '([\w/]+)/([^']+)'", message):
        group, name = match.groups()
        if extra := _EXTRAS.get(f"{group}/{name}"):
            return f'{group}={name} needs a package that is not installed: pip install "hap[{extra}]"'
        options = sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))
        message = f"there is no {group}={name}{did_you_mean(name, options)}\navailable: {', '.join(options)}"
    elif match := re.search(
        r"Could not override '([\w.@/]+)'|Key '(\w+)' is not in struct|Key '(\w+)' not in", message
    ):
        message += advice(next(filter(None, match.groups())), config_name)
    return message


# Parts of Hydra that packages of their own bring.
_EXTRAS = {
    "hydra/sweeper/optuna": "optuna",
    "hydra/launcher/submitit_slurm": "slurm",
    "hydra/launcher/submitit_local": "slurm",
}


def advice(key: str, config_name: str) -> str:
    """What to type for a key that is not there."""
    cfg = _default_config(config_name)
    parent, _, name = key.rpartition(".")
    with suppress(OmegaConfBaseException):
        node = OmegaConf.select(cfg, parent) if parent else None
        if isinstance(node, DictConfig) and "_target_" in node:
            parameters = signature_of(get_object(node["_target_"]))
            if parameters is None or name in parameters:
                return f"; this argument has its default there: +{key}=VALUE sets it"
    keys = keys_of(OmegaConf.to_container(cfg, resolve=False))
    return did_you_mean(key, keys, listed=False) or (did_you_mean(key, cfg) if not parent else "")


# Lightning's advice on what is meant as it is: its own use of torch, in-process loading, short epochs, frozen parts.
_KNOWN_WARNINGS = (
    *(".*LeafSpec.*", ".*does not have many workers.*", "The number of training batches.*"),
    r"Found \d+ module\(s\) in eval mode.*",
)

_NOISE = re.compile(
    r"\s*(full_key:|object_type=|reference_type=|Config search path|Set the environment|\t*provider=|"
    r"To append to your |See https://hydra|$)"
)


def _default_config(config_name: str) -> DictConfig:
    """As it is without the overrides of single keys."""
    GlobalHydra.instance().clear()
    groups = [o for o in sys.argv[1:] if re.match(r"(experiment|task|data|trainer|callbacks|logger)=", o)]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        try:
            return compose(config_name, groups)
        except HydraException:  # the mistake is in one of them, or none was given
            needed = ["experiment=pretrain_hap"] if config_name in ("train", "eval", "predict") else []
            return compose(config_name, needed)


def keys_of(node: object, path: str = "") -> list[str]:
    """All dotted keys of nested dicts."""
    if not isinstance(node, dict):
        return []
    keys = []
    for key, value in node.items():
        name = f"{path}.{key}" if path else str(key)
        keys += [name, *keys_of(value, name)]
    return keys
