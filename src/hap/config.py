"""Where the configuration is, which root keys it has, and the check that finds every mistake in it at once."""

import difflib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra.core.config_store import ConfigStore
from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hap.errors import HapError
from hap.run_folder import make_folder

_PACKAGE = Path(__file__).parent
# A wheel carries conf/ inside the package; a checkout and an editable install have it at the top.
CONF_DIR = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parents[1] / "conf"

# A configuration can call what it names, so it may name only these.
ALLOWED_TARGETS = ("hap.", "torch.", "torchmetrics.", "lightning.", "timm.", "albumentations.")


@dataclass
class ViTConfig:
    """Size of the backbone; conf/model/*.yaml."""

    patch_size: int = MISSING
    embed_dim: int = MISSING
    depth: int = MISSING
    num_heads: int = MISSING


@dataclass
class MaskingConfig:
    """Share of the patches that is removed, and how they are chosen; conf/masking/*.yaml."""

    ratio: float = MISSING
    strategy: Any = MISSING


@dataclass
class Root:
    """The root keys, the same for every experiment and program. Whatever is not here is a group of its own
    with `_target_`s: there, the constructors are the schema."""

    name: str = MISSING  # of the experiment; names the run folder and the W&B project's runs
    run_dir: str = MISSING
    seed: int = 0
    img_size: list[int] = field(default_factory=lambda: [256, 128])  # height, width
    epochs: int = MISSING
    total_batch_size: int = MISSING  # images per optimiser step, over all devices
    micro_batch_size: int | None = (
        None  # images per device and pass; null: total / devices, in pre-training what fits
    )
    synthetic: bool = False  # drawn people in place of the data set
    weights: str | None = (
        None  # initialise the model: a file, or timm:NAME, hf:OWNER/REPO, https://..., drawn
    )
    weights_source: str = "auto"  # hap, mae, timm, lightning
    weights_entry: str | None = None  # the file's entry to take, such as teacher
    weights_prefix: str = ""  # what the encoder's names in it begin with, such as "backbone."
    weights_grid: Any = None  # rows x columns of the file's positions, such as 24x8
    weights_sha256: str | None = None  # refuse a file with another checksum
    weights_partial: bool = False  # take what fits of an encoder of another kind
    zero_shot: bool = (
        False  # eval, predict: score an encoder from `weights` that was not trained for the task
    )
    ckpt_path: str | None = None  # train: resume from it; eval, predict: load it whole
    resume: str | None = None  # "auto": go on from the newest intact checkpoint of run_dir
    compile: bool = False
    dry_run: bool = False  # train: say what would run and what it costs, and stop
    input: str | None = None  # predict: a folder of images
    query: str | None = None  # predict, for retrieval: a folder of images to look for ...
    gallery: str | None = None  # ... and one to look in
    data: Any = MISSING
    task: Any = MISSING
    model: ViTConfig = field(default_factory=ViTConfig)
    masking: MaskingConfig | None = None
    trainer: Any = MISSING
    logger: Any = None
    callbacks: Any = None


def register() -> None:
    """Make the root schema and the resolvers known to Hydra and OmegaConf. Can be called again."""
    ConfigStore.instance().store(name="schema", node=Root)
    OmegaConf.register_new_resolver("precision", default_precision, replace=True)
    OmegaConf.register_new_resolver("run_folder", make_folder, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("wandb_offline", wandb_offline, replace=True)


def default_precision() -> str:
    """bf16 autocast where the GPU computes it, fp16 with a scaler on older GPUs, float32 on a CPU."""
    if not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def wandb_offline() -> bool:
    """Online only where the user has logged in: a run must not stop to ask for an account."""
    import netrc
    import os

    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"] != "online"
    if os.environ.get("WANDB_API_KEY"):
        return False
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is None
    except (OSError, netrc.NetrcParseError):
        return True


def _nodes(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All dict nodes and leaf values with their dotted paths, depth first."""
    yield path, node
    if isinstance(node, DictConfig) and not node._is_missing() and not node._is_none():
        for key in node:
            yield from _nodes(node._get_node(key), f"{path}.{key!s}" if path else str(key))
    elif isinstance(node, ListConfig) and not node._is_missing() and not node._is_none():
        for i in range(len(node)):
            yield from _nodes(node._get_node(i), f"{path}[{i}]")


def _bind_error(node: DictConfig) -> str | None:
    """Why the arguments of a node do not fit its target, or None."""
    target = node["_target_"]
    if not target.startswith(ALLOWED_TARGETS):
        return f"target {target!r} is not allowed; targets start with {', '.join(ALLOWED_TARGETS)}"
    try:
        function = get_object(target)
    except Exception as error:
        return f"target {target!r} cannot be imported: {error}"
    home = f"{getattr(function, '__module__', None) or target}."
    if not home.startswith(ALLOWED_TARGETS):  # what one of these packages imports itself, such as torch.os
        return f"target {target!r} is not allowed: it is of {home[:-1]}"
    arguments = {
        k: None for k in node if k not in ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")
    }
    parameters = signature_of(function)
    if parameters is None:
        return None
    unknown = [k for k in arguments if k not in parameters]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return "; ".join(
            f"{target} has no argument {key!r}{did_you_mean(key, parameters)}" for key in unknown
        )
    return None


def signature_of(function: Any) -> dict[str, inspect.Parameter] | None:
    """Parameters by name, those of base classes included where a constructor passes **kwargs on."""
    parameters: dict[str, inspect.Parameter] = {}
    for part in function.__mro__ if inspect.isclass(function) else [function]:
        if part is object or (inspect.isclass(part) and "__init__" not in vars(part)):
            continue
        try:
            own = inspect.signature(part).parameters
        except (ValueError, TypeError):
            return None  # a builtin
        parameters = {k: p for k, p in own.items() if k not in parameters} | parameters
        passed_on = any(p.kind is p.VAR_KEYWORD for p in own.values())
        if passed_on and not part.__module__.startswith("hap."):
            return parameters  # to wherever
        if not passed_on:
            return {k: p for k, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    return parameters


def did_you_mean(word: Any, options: Any) -> str:
    close = difflib.get_close_matches(str(word), [str(o) for o in options], n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; it has: {', '.join(sorted(map(str, options)))}"


def check_config(cfg: DictConfig) -> None:
    """Report every missing value, unresolvable interpolation, unknown target and unknown argument.

    Hydra guards the command line only: a misspelt key inside an experiment file is merged in silently.

    Raises:
        HapError: with one line for each mistake.
    """
    errors = []
    for path, node in _nodes(cfg):
        if path == "" or node is None or node._is_none():
            continue
        try:
            if node._is_missing():
                errors.append(f"{path}: has no value (???)")
            elif node._is_interpolation():
                node._dereference_node()
            elif isinstance(node, DictConfig) and "_target_" in node and (error := _bind_error(node)):
                errors.append(f"{path}: {error}")
        except OmegaConfBaseException as error:
            errors.append(f"{path}: {str(error).splitlines()[0]}")
    if errors:
        raise HapError("the configuration has mistakes:\n" + "\n".join(f"  {e}" for e in errors))


def require(cfg: DictConfig, **examples: str) -> None:
    """Raise HapError that names the keys without a value, each with an example of what to type."""
    missing = [example for key, example in examples.items() if OmegaConf.select(cfg, key) is None]
    if missing:
        raise HapError(f"missing: {', '.join(missing)}")
