"""What a run writes down of itself: configuration, environment, results, and how it ended."""

import json
import logging
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hap.config import CONF_DIR
from hap.errors import HapError
from hap.run_folder import cannot_write, is_held, write_json

if TYPE_CHECKING:
    from hap.models.checkpoint import LoadReport

log = logging.getLogger(__name__)

STATUS, RESULTS = "status.json", "results.json"


@contextmanager
def recorded(
    run_dir: Path, program: str, overrides: Sequence[str], changed: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Keep `status.json` while a run is held: `state` is "running", and at the end of the block "finished", "stopped"
    (a signal) or "failed", then with the `error` as it is told. A process that is killed leaves it at "running".
    `changed` is what `changed_keys` gives."""
    start = {
        "program": program,
        "overrides": list(overrides),
        "changed": dict(changed or {}),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "pid": os.getpid(),
        "host": socket.gethostname(),
    }
    write_json(run_dir / STATUS, start | {"state": "running"})
    state, error = "finished", None
    try:
        yield
    except BaseException as raised:
        stopped = isinstance(raised, SystemExit | KeyboardInterrupt)
        state, error = ("stopped", None) if stopped else ("failed", f"{raised}" or type(raised).__name__)
        raise
    finally:
        end = {"state": state, "ended": time.strftime("%Y-%m-%d %H:%M:%S")}
        with suppress(HapError):  # a full disk is what has been raised already
            write_json(run_dir / STATUS, start | end | ({"error": error} if error else {}))


def read_status(run_dir: Path) -> dict[str, Any]:
    """`status.json` of a run folder, with "killed" for the state of a run that says "running" and whose process is
    gone; {} where there is none that can be read."""
    try:
        status = json.loads((run_dir / STATUS).read_text(encoding="utf-8"))
        running = status["state"] == "running"
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    here = (status.get("pid"), status.get("host")) == (os.getpid(), socket.gethostname())
    if running and not here and not is_held(run_dir):
        status["state"] = "killed"
    return status


UNSET = "(not set)"  # on the side of a change that lacks the key


def changed_keys(cfg: DictConfig) -> dict[str, list[Any]]:
    """{key: [by default, here]} of a program that Hydra has started: where its configuration differs from the
    experiment's own, references as they are written. {} where Hydra did not start it, or the experiment alone makes
    no configuration."""
    if not HydraConfig.initialized():
        return {}
    hydra = HydraConfig.get()
    experiment = [o for o in hydra.overrides.task if o.lstrip("+").startswith("experiment=")]
    try:
        default = compose(hydra.job.config_name, experiment)
    except (HydraException, OmegaConfBaseException):
        return {}
    before, here = (_leaves(OmegaConf.to_container(node, resolve=False)) for node in (default, cfg))
    pairs = {key: [before.get(key, UNSET), here.get(key, UNSET)] for key in (before | here)}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _leaves(node: Any, key: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested dicts."""
    if not isinstance(node, dict) or not node:
        return {key: node}
    parts = (_leaves(part, f"{key}.{name}" if key else str(name)) for name, part in node.items())
    return {name: value for part in parts for name, value in part.items()}


def write_start(cfg: DictConfig, run_dir: Path, weights: "LoadReport | None") -> None:
    """Write down what runs, once everything is there that it needs."""
    config = run_dir / "config.yaml"
    if config.exists():
        config = run_dir / f"config_resumed_{time.strftime('%Y-%m-%d_%H-%M-%S')}.yaml"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, config, resolve=True)
    except OSError as error:
        raise cannot_write(run_dir, error) from error
    write_json(run_dir / "environment.json", environment())
    if weights is not None:
        write_json(run_dir / "weights.json", weights.record())


def write_results(results: dict[str, float], protocol: dict[str, Any], run_dir: Path, show: bool) -> None:
    if show:  # first: a full disk does not lose them
        lines = [f"{name:>24}  {value:.4g}" for name, value in results.items()]
        log.info("\n".join(lines + [f"{name:>24}  {value}" for name, value in protocol.items()]))
    write_json(run_dir / RESULTS, results | ({"protocol": protocol} if protocol else {}))
    log.info("results in %s", run_dir)


def read_results(run_dir: Path) -> dict[str, float]:
    """Those that a run has left, without their protocol; none if it has left none that can be read."""
    try:
        results = json.loads((run_dir / RESULTS).read_text(encoding="utf-8")).items()
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
    return {name: value for name, value in results if isinstance(value, int | float)}


def results_before(run_dir: Path, steps: int) -> dict[str, float]:
    """Of a training that was resumed when all its steps were taken: what it measured then, if it has written that."""
    from lightning.pytorch.utilities import rank_zero_only  # takes seconds, which `hap report` does not need

    results = read_results(run_dir)
    if results.get("steps") == steps:
        rank_zero_only(log.info)("all %d steps are taken already; results in %s", steps, run_dir)
        return results
    rank_zero_only(log.warning)(
        "all %d steps are taken already, but what they came to was not written down: "
        "hap eval ckpt_path=%s/checkpoints/last.ckpt",
        *(steps, run_dir),
    )
    return {"steps": steps}


def environment() -> dict[str, Any]:
    """Versions, hardware, git revision and command line, for the record."""
    packages = ["hap", "torch", "lightning", "timm", "albumentations", "numpy", "opencv-python-headless"]
    return {
        "command": sys.argv,
        "git": git_revision(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "host": f"{platform.system()} {platform.machine()}",
    }


def git_revision() -> str | None:
    """The checkout's commit, with `-dirty` when src/ or conf/ differ from it; None outside a checkout."""
    if CONF_DIR.parent == Path(__file__).parent:
        return None  # of a wheel: the repository around it, if any, is another project's
    git = ["git", "-C", str(CONF_DIR.parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "src", "conf"], check=False)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("-dirty" if changed.returncode else "")
