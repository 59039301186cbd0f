"""What a checkpoint says of itself, so that `hap eval` and `hap predict` need nothing but the file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from hap import __version__
from hap.checkpointing import read_checkpoint
from hap.config import folder_name
from hap.errors import HapError

FORMAT = 1
# What makes the model and what it is measured by. Devices, loggers and callbacks are those of the machine.
KEPT = (
    "name",
    "seed",
    "img_size",
    "epochs",
    "total_batch_size",
    "synthetic",
    "model",
    "masking",
    "task",
    "data",
)
EXPERIMENT = "of_the_checkpoint"


def describe_run(cfg: DictConfig, labels: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Plain data for `checkpoint["hap"]`: `format`, `version`, `experiment`, `config` (not resolved), and `labels`,
    the names of the classes in the order of the model's outputs."""
    config: Any = OmegaConf.to_container(cfg, resolve=False)
    return {
        "format": FORMAT,
        "version": __version__,
        "experiment": cfg.name,
        "config": {key: config[key] for key in KEPT if key in config},
        "labels": {name: list(values) for name, values in labels.items()},
    }


def read_description(path: Path) -> dict[str, Any]:
    """Raises HapError where the file is no checkpoint, or does not say what it is."""
    if not path.is_file():
        raise HapError(f"checkpoint not found: {path} (ckpt_path=FILE)")
    try:
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=True
        )  # the weights stay on the disk
    except Exception:
        content = read_checkpoint(path)  # says what is wrong with it
    return checked(content.get("hap") if isinstance(content, dict) else None, path)


def checked(description: Any, path: Path) -> dict[str, Any]:
    """The description as it was read from a file, if it is one."""
    if description is None:
        raise HapError(
            f"{path} does not say what it is, as files of earlier releases do not: add experiment=NAME"
        )
    if not isinstance(description, dict) or not isinstance(description.get("format"), int):
        raise HapError(f"{path} has a description that hap did not write: add experiment=NAME")
    if description["format"] > FORMAT:
        raise HapError(f"{path} was written by hap {description.get('version')}, which is newer: update hap")
    config = description.get("config")
    if not isinstance(config, dict) or not {"name", "task", "data"} <= config.keys() <= set(KEPT):
        raise HapError(f"{path} has a description that hap did not write: add experiment=NAME")
    folder_name(config["name"])
    return description


def add_experiment(arguments: list[str]) -> list[str]:
    """Where the command line of eval or predict names a checkpoint and no experiment, that of the file.

    Groups that are given (`data=market1501`) take the place of the file's.
    """
    overrides = [a for a in arguments if "=" in a and not a.startswith("-")]
    chosen = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(overrides)}
    path = chosen.get("ckpt_path")
    if not isinstance(path, str) or chosen.get("experiment", EXPERIMENT) != EXPERIMENT:
        return arguments
    config = dict(read_description(Path(path).expanduser())["config"])
    for group in ("data", "task", "model"):
        if group in chosen:
            del config[group]
    if {"data", "data.root"} & chosen.keys():
        config.pop("synthetic", None)  # the people who are named, not the drawn ones of the training
    ConfigStore.instance().store(group="experiment", name=EXPERIMENT, node=config, package="_global_")
    return arguments if "experiment" in chosen else [*arguments, f"experiment={EXPERIMENT}"]


def check_same(cfg: DictConfig, description: dict[str, Any], path: Path) -> None:
    """Raise HapError with both values where the configuration makes another model than the checkpoint is of."""
    rest = {
        key: cfg[key]
        for key in cfg
        if key not in description["config"] and not OmegaConf.is_missing(cfg, key)
    }
    then = OmegaConf.merge(OmegaConf.create(rest), OmegaConf.create(description["config"]))
    before, now = _sizes(then), _sizes(cfg)
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
    repeated = {"img_size", *cfg.model}
    return values | {f"task.model.{key}": value for key, value in model.items() if key not in repeated}
