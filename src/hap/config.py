"""Where the configuration is, which root keys it has, and the check that finds every mistake in it at once."""

import contextlib
import dataclasses
import difflib
import inspect
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import torch
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf, ValueNode
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from hap.errors import HapError
from hap.metrics.direction import lower_is_better
from hap.run_folder import make_folder
from hap.schema import ExportRoot, PackRoot, Root, SynthesizeRoot
from hap.text.sources import bert_sizes, bert_weights, choose_source

_PACKAGE = Path(__file__).parent
# A wheel carries conf/ inside the package; a checkout and an editable install have it at the top.
CONF_DIR = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parents[1] / "conf"

# A configuration can call what it names, so it may name only what a run is made of: anything of these parts of hap ...
PACKAGES = ("hap.", "torch.", "torchmetrics.", "lightning.", "timm.", "albumentations.")
_PARTS = (
    *(
        "benchmarks",
        "body",
        "callbacks",
        "data",
        "loggers",
        "losses",
        "metrics",
        "models",
        "optim",
        "pose",
        "probe",
        "progress",
    ),
    *("reports", "safety", "synthetic", "tasks", "text"),
)
OURS = tuple(f"hap.{part}." for part in _PARTS)
# ... and classes of other packages: functions there load files, fetch them or start processes.
ALLOWED_CLASSES = (
    "torch.nn.",
    "torch.optim.",
    "torchmetrics.",
    "timm.layers.",
    "timm.loss.",
    "timm.models.",
    "albumentations.",
    "lightning.pytorch.callbacks.",
    "lightning.pytorch.loggers.",
    "lightning.pytorch.plugins.",
    "lightning.pytorch.profilers.",
    "lightning.pytorch.strategies.",
    "lightning.pytorch.trainer.",
    "lightning.fabric.plugins.",
)
ALLOWED_FUNCTIONS = ("timm.create_model", "timm.models.create_model")
# Constructors that pass what they do not know on to another one.
PASSED_ON = {
    "lightning.pytorch.strategies.ddp.DDPStrategy": "torch.nn.parallel.DistributedDataParallel",
    "lightning.pytorch.loggers.wandb.WandbLogger": "wandb.init",
    "lightning.pytorch.loggers.tensorboard.TensorBoardLogger": "torch.utils.tensorboard.SummaryWriter",
}


def register() -> None:
    """Make the root schemas and the resolvers known to Hydra and OmegaConf. Can be called again."""
    store = ConfigStore.instance()
    schemas = {"pack_schema": PackRoot, "synthesize_schema": SynthesizeRoot, "export_schema": ExportRoot}
    for name, node in {"schema": Root, **schemas}.items():
        store.store(name=name, node=node)
    OmegaConf.register_new_resolver("precision", default_precision, replace=True)
    OmegaConf.register_new_resolver("not", operator.not_, replace=True)
    OmegaConf.register_new_resolver("direction", direction, replace=True)
    OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
    OmegaConf.register_new_resolver("run_folder", make_folder, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("text_source", choose_source, replace=True)
    OmegaConf.register_new_resolver("text_sizes", text_sizes, replace=True)
    OmegaConf.register_new_resolver("text_weights", bert_weights, replace=True)


def text_sizes(source: str) -> DictConfig | None:
    """Of the BERT of a source."""
    sizes = bert_sizes(source)
    return None if sizes is None else OmegaConf.create(sizes)


def folder_name(name: str) -> str:
    """The name of a run as that of its folder and log. Raises HapError where it would lead elsewhere."""
    if re.search(r"[/\\\x00-\x1f]", str(name)) or name in ("", ".", ".."):
        raise HapError(
            f"name={name!r} names a folder and a file: no separators; run_dir=FOLDER says where to"
        )
    return name


def default_precision() -> str:
    """bf16 autocast where the GPU computes it, fp16 with a scaler on older GPUs, float32 on a CPU."""
    if not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def direction(objective: str) -> str:
    """What a search does with a result of this name."""
    return "minimize" if lower_is_better(objective) else "maximize"


def _nodes(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """All dict nodes and leaf values with their dotted paths, depth first. What an interpolation leads to follows
    at the end, unless it is a part of the configuration itself."""
    seen: dict[int, Any] = {}  # by identity, kept alive
    referring: list[tuple[str, Any]] = []

    def walk(path: str, node: Any) -> Iterator[tuple[str, Any]]:
        if id(node) in seen:
            return
        seen[id(node)] = node
        yield path, node
        if not isinstance(node, DictConfig | ListConfig) or node._is_missing() or node._is_none():
            return
        if node._is_interpolation():
            referring.append((path, node))
            return
        keys: Any = node if isinstance(node, DictConfig) else range(len(node))
        for key in keys:
            name = f"[{key}]" if isinstance(node, ListConfig) else f".{key!s}" if path else str(key)
            child: Any = node._get_node(key)
            if child._is_interpolation():
                referring.append((f"{path}{name}", child))
            yield from walk(f"{path}{name}", child)

    yield from walk("", cfg)
    for path, node in referring:
        with contextlib.suppress(OmegaConfBaseException):  # reported where it stands
            result = node._dereference_node()
            if isinstance(
                result, ValueNode
            ):  # a resolver may give a plain dict, which is built like any other
                value = result._value()
                result = OmegaConf.create(value) if isinstance(value, dict | list) else result
            yield from walk(path, result)


def _target_error(target: Any) -> str | None:
    """Why a configuration may not call this, or None."""
    if not isinstance(target, str):
        return f"target {target!r} is not the name of a class"
    if not target.startswith(PACKAGES):  # before anything is imported
        return f"target {target!r} is not allowed; targets start with {', '.join(PACKAGES)}"
    try:
        function = get_object(target)
    except Exception as error:
        return f"target {target!r} cannot be imported: {error}"
    if target in ALLOWED_FUNCTIONS:
        return None
    # Where it comes from, not where it is found: torch.os is os.
    home = f"{getattr(function, '__module__', None)}.{getattr(function, '__qualname__', '')}"
    if home.startswith(OURS) or (inspect.isclass(function) and home.startswith(ALLOWED_CLASSES)):
        return None
    return (
        f"target {target!r} is not allowed: of other packages only models, layers, losses, optimisers, metrics, "
        "transforms and the parts of a Trainer are"
    )


def _key_errors(path: str, node: DictConfig) -> Iterator[str]:
    """Keys of a node that nothing reads."""
    schema = node._metadata.object_type
    if dataclasses.is_dataclass(schema):
        known = [f.name for f in dataclasses.fields(schema)]
        known += ["env"] if schema is HydraConf else []  # it puts that there itself
        if known == ["_target_"]:
            return  # stands for any of several classes, and knows the arguments of none
        where = f"{path}." if path else ""
        yield from (
            f"there is no key {where}{key!s}{did_you_mean(key, known)}" for key in node if key not in known
        )
        yield from (
            f"{where}{key!s}: has no _target_"
            for key in known
            if key in node and _builds_nothing(node._get_node(key))
        )
        return
    if "_target_" in node:
        if error := _target_error(node["_target_"]):
            yield f"{path}: {error}"
        else:
            yield from (f"{path}: {error}" for error in _argument_errors(node))
        return
    # A dict of parts (callbacks, loggers, transforms): each is something to build, or switched off.
    parts = {key: node._get_node(key) for key in node}
    right = [key for key, part in parts.items() if isinstance(part, DictConfig) and "_target_" in part]
    for key, part in parts.items() if right else ():
        if part is None or part._is_none():
            names = {*right, *(k for file in (CONF_DIR / path).glob("*.yaml") for k in OmegaConf.load(file))}
            if key not in names and (meant := did_you_mean(key, names, listed=False)):
                yield f"{path}.{key!s}: there is nothing to switch off{meant}"
        elif key not in right and not part._is_interpolation():
            yield f"{path}.{key!s}: has no _target_{did_you_mean(key, right)}"


def _builds_nothing(node: Any) -> bool:
    """Whether a root key that is built has keys, but neither a target nor parts with one."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing() or node._is_interpolation():
        return False
    if node._metadata.ref_type is not Any or dataclasses.is_dataclass(node._metadata.object_type):
        return False
    values = [node._get_node(key) for key in node]
    built = "_target_" in node or any(isinstance(v, DictConfig) and "_target_" in v for v in values if v)
    return not built and not all(value is None or value._is_none() for value in values)


def _argument_errors(node: DictConfig) -> Iterator[str]:
    """Arguments that the target of a node does not have."""
    target = node["_target_"]
    parameters = signature_of(get_object(target))
    if parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for key in node:
        if key not in parameters and key not in (
            "_target_",
            "_partial_",
            "_args_",
            "_recursive_",
            "_convert_",
        ):
            yield f"{target} has no argument {key!r}{did_you_mean(key, parameters)}"
        elif key in parameters and target.startswith("hap."):
            value: Any = node._get_node(key)
            if not _fits(value, parameters[key].annotation):
                what = (
                    "has keys, but no"
                    if isinstance(value, DictConfig)
                    else f"is {value._value()!r}, not built by a"
                )
                yield f"{key!s} {what} _target_"


def _fits(node: Any, annotation: Any) -> bool:
    """Whether a value may stand where it does: a plain one not where something built is asked for, a dict without a
    target only where a mapping is."""
    if node is None or node._is_none() or node._is_missing() or node._is_interpolation():
        return True
    if isinstance(node, DictConfig) and "_target_" in node:
        return True
    kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    origins = [get_origin(kind) or kind for kind in kinds if kind is not type(None)]
    mapping = [inspect.isclass(origin) and issubclass(origin, Mapping) for origin in origins]
    if isinstance(node, DictConfig):
        return any(mapping) or any(origin in (Any, inspect.Parameter.empty) for origin in origins)
    built = [
        origin is Callable
        or (
            inspect.isclass(origin)
            and (issubclass(origin, nn.Module) or origin.__module__.startswith("hap."))
        )
        for origin in origins
    ]
    return not all(map(operator.or_, mapping, built))


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
        if other := PASSED_ON.get(f"{part.__module__}.{part.__qualname__}"):
            parameters = parameters | dict(inspect.signature(get_object(other)).parameters)
            return {k: p for k, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
        if passed_on and not part.__module__.startswith("hap."):
            return parameters  # to wherever
        if not passed_on:
            return {k: p for k, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    return parameters


def did_you_mean(word: Any, options: Any, listed: bool = True) -> str:
    """The nearest option, or if `listed` all of them."""
    close = difflib.get_close_matches(str(word), [str(o) for o in options], n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; it has: {', '.join(sorted(map(str, options)))}" if listed else ""


def check_hydra(cfg: DictConfig) -> None:
    """Raise HapError for keys of the node `hydra` that Hydra does not have."""
    typed = (
        (path, node)
        for path, node in _nodes(cfg)
        if isinstance(node, DictConfig) and dataclasses.is_dataclass(node._metadata.object_type)
    )
    if errors := [f"hydra: {error}" for path, node in typed for error in _key_errors(path, node)]:
        raise HapError("\n".join(errors))


def check_config(cfg: DictConfig) -> None:
    """Report every key that nothing reads, missing value, unresolvable interpolation, unknown or forbidden target.

    Hydra guards the command line only, and there not what begins with `+`: a misspelt key inside an experiment file
    is merged in silently.

    Raises:
        HapError: with one line for each mistake.
    """
    errors = []
    unused = [] if "masking" not in cfg or _is_used(cfg, "masking") else ["masking.ratio", "masking.strategy"]
    for path, node in _nodes(cfg):
        if node is None or node._is_none():
            continue
        try:
            if node._is_missing() and path in unused:
                continue
            if node._is_missing():
                errors.append(f"{path}: has no value (???)")
            elif node._is_interpolation():
                node._dereference_node()
            elif isinstance(node, DictConfig):
                errors += _key_errors(path, node)
        except OmegaConfBaseException as error:
            cause = error.__context__  # a resolver's own error is told once, whoever asked
            said = str(cause) if isinstance(cause, HapError) else f"{path}: {str(error).splitlines()[0]}"
            errors += [said] if said not in errors else []
    if given := [
        key for key in unused if not OmegaConf.is_missing(cfg.masking, key.removeprefix("masking."))
    ]:
        errors.append(f"{', '.join(given)}: nothing is masked in this experiment; leave it out")
    if cfg.get("text_encoder", "auto") != "auto" and not _is_used(cfg, "text_encoder"):
        errors.append("text_encoder: nothing reads it here; a checkpoint knows its own")
    if errors:
        raise HapError("the configuration has mistakes:\n" + "\n".join(f"  {e}" for e in errors))


def _is_used(cfg: DictConfig, group: str) -> bool:
    return any(
        re.search(rf"\$\{{{group}[.}}]", node._value())
        for _, node in _nodes(cfg)
        if node is not None and node._is_interpolation() and isinstance(node._value(), str)
    )


def require(cfg: DictConfig, **examples: str) -> None:
    """Raise HapError that names the keys without a value, each with an example of what to type."""
    missing = [example for key, example in examples.items() if OmegaConf.select(cfg, key) is None]
    if missing:
        raise HapError(f"missing: {', '.join(missing)}")
