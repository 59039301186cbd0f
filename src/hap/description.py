"""What a checkpoint says of itself, so that `hap eval` and `hap predict` need nothing but the file.

What it says is a configuration from outside: it goes through `check_config` like any other, calls no resolver, and
has no other root keys than `KEPT`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hap import __version__
from hap.checkpointing import read_checkpoint
from hap.config import folder_name
from hap.errors import HapError
from hap.models.checkpoint import LoadReport

FORMAT = 1
GROUPS = ("data", "task", "model", "masking", "body")
# What makes the model and what it is measured by. Devices, loggers and callbacks are those of the machine.
KEPT = ("name", "seed", "img_size", "epochs", "total_batch_size", "synthetic", *GROUPS)
EXPERIMENT = "of_the_checkpoint"
# Arguments with which the same weights are the same network: of training, how much of an image it is shown, and the
# file that a part of it began with.
FREE = ("drop_path", "dropout", "frozen", "grad_checkpointing", "mask_ratio", "weights")
# An interpolation that calls a resolver. Only where data are by default is asked of the machine at hand.
_RESOLVER = re.compile(r"\$\{(?!oc\.env:HAP_DATA,)[^}]*:")


def describe_run(cfg: DictConfig, labels: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Plain data for `checkpoint["hap"]`: `format`, `version`, `experiment`, `config`, and `labels`, the names of the
    classes in the order of the model's outputs. In `config` references to other keys stay, so that an override of
    one reaches what follows it."""
    config = {key: _plain(cfg._get_node(key)) for key in KEPT}
    if "num_workers" in config["data"]:
        config["data"]["num_workers"] = None  # of this machine
    return {
        "format": FORMAT,
        "version": __version__,
        "experiment": cfg.name,
        "config": config,
        "labels": {name: list(values) for name, values in labels.items()},
    }


def describe_weights(weights: str, report: LoadReport) -> dict[str, Any]:
    """What a checkpoint says of the file that its training began with: `name`, without the folders of this machine,
    `licence` and `sha256`."""
    named = re.match("(timm|hf|https?):", weights)
    return {
        "name": weights if named else Path(weights).name,
        "licence": report.licence,
        "sha256": report.sha256,
    }


def _plain(node: Any) -> Any:
    """Dicts, lists, strings and numbers; what calls a resolver is resolved."""
    if node._is_interpolation():
        if not _RESOLVER.search(node._value()):
            return node._value()
        node = node._dereference_node()
    if isinstance(node, DictConfig) and not (node._is_none() or node._is_missing()):
        return {str(key): _plain(node._get_node(key)) for key in node}
    if isinstance(node, ListConfig) and not (node._is_none() or node._is_missing()):
        return [_plain(node._get_node(index)) for index in range(len(node))]
    value = node._value()
    return value if value is None or isinstance(value, str | int | float) else str(value)


def read_description(path: Path) -> dict[str, Any]:
    """Raises HapError where the file is no checkpoint, or does not say what it is."""
    if not path.is_file():
        raise HapError(f"checkpoint not found: {path} (ckpt_path=FILE)")
    try:
        # The weights stay on the disk until the run loads them.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:
        content = None
    if not isinstance(content, dict) or "state_dict" not in content:
        content = read_checkpoint(path)  # says what is wrong with it
    return checked(content.get("hap"), path)


def checked(description: Any, path: Path) -> dict[str, Any]:
    """The description as it was read from a file, if it is one."""
    if description is None:
        raise HapError(
            f"{path} does not say what it is, as files of earlier releases do not: add experiment=NAME"
        )
    foreign = HapError(f"{path} has a description that hap did not write: add experiment=NAME")
    if not isinstance(description, dict) or not isinstance(description.get("format"), int):
        raise foreign
    if description["format"] > FORMAT:
        raise HapError(f"{path} was written by hap {description.get('version')}, which is newer: update hap")
    config, labels = description.get("config"), description.get("labels")
    if not isinstance(config, dict) or not isinstance(labels, dict):
        raise foreign
    if unknown := sorted(str(key) for key in config if key not in KEPT):
        raise HapError(f"{path}: there is no key {', '.join(unknown)} (written by another version of hap?)")
    if not all(
        isinstance(config.get(group), dict) and "_target_" in config[group] for group in ("task", "data")
    ):
        raise foreign
    if calls := sorted({match[0] for text in _texts(config) if (match := _RESOLVER.search(text))}):
        raise HapError(
            f"{path}: its configuration calls {', '.join(calls)}...}}, as none in a checkpoint may"
        )
    folder_name(str(config.get("name", "")))
    return description


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, dict | list | tuple):
        for value in (*node.keys(), *node.values()) if isinstance(node, dict) else node:
            yield from _texts(value)
    elif isinstance(node, str):
        yield node


def add_experiment(arguments: list[str]) -> list[str]:
    """Where the command line of eval or predict names a checkpoint and no experiment, that of the file.

    Groups that are given (`data=market1501`) take the place of the file's. Processes that are started with the
    result come to the same.

    Raises:
        HapError: the file is not there, is no checkpoint, or does not say what it is.
    """
    overrides = OverridesParser.create().parse_overrides(
        [a for a in arguments if "=" in a and not a.startswith("-")]
    )
    chosen = {override.key_or_group: override.value() for override in overrides}
    if chosen.get("experiment", EXPERIMENT) != EXPERIMENT or chosen.get("ckpt_path") is None:
        return arguments
    if any(override.key_or_group == "ckpt_path" and override.is_sweep_override() for override in overrides):
        raise HapError("several checkpoints in one sweep: add experiment=NAME")
    path = Path(str(chosen["ckpt_path"])).expanduser()
    config = {key: value for key, value in read_description(path)["config"].items() if key not in chosen}
    if {"data", "data.root"} & chosen.keys():
        config.pop("synthetic", None)  # the people who are named, not the drawn ones of the training
    node = {"defaults": [{"/masking": None}, "_self_"], **config}  # so that masking=NAME is an override
    try:
        ConfigStore.instance().store(group="experiment", name=EXPERIMENT, node=node, package="_global_")
    except (OmegaConfBaseException, RecursionError) as error:
        raise HapError(f"{path} has a configuration that cannot be read: {error}") from error
    return arguments if "experiment" in chosen else [*arguments, f"experiment={EXPERIMENT}"]


def check_same(cfg: DictConfig, description: dict[str, Any], path: Path) -> None:
    """Raise HapError with both values where the configuration makes another model than the checkpoint is of."""
    config: Any = OmegaConf.to_container(cfg, resolve=False)
    try:
        before, now = _sizes(OmegaConf.create({**config, **description["config"]})), _sizes(cfg)
    except OmegaConfBaseException as error:
        raise HapError(f"{path} has a configuration that cannot be read: {error}") from error
    different = [
        f"  {key}: {now.get(key)} here, {before.get(key)} in the checkpoint"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if different:
        raise HapError(
            f"{path} is of another model:\n" + "\n".join(different) + "\nleave these, or experiment=, out"
        )


def _sizes(cfg: Any) -> dict[str, Any]:
    """Everything that the model is made of, by key."""
    values = {
        "task._target_": cfg.task._target_,
        "img_size": list(cfg.img_size),
        **{f"model.{key}": value for key, value in cfg.model.items()},
    }
    model: Any = OmegaConf.to_container(cfg.task.model, resolve=True)
    repeated = {"img_size", *cfg.model, *FREE}
    model = {key: value for key, value in model.items() if key not in repeated}
    for key, part in model.items():
        if isinstance(part, dict):
            model[key] = {name: value for name, value in part.items() if name not in FREE}
    return values | {f"task.model.{key}": value for key, value in model.items()}
