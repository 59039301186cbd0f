"""What a configuration becomes: a trainer with callbacks, a task with the numbers that data or a checkpoint know."""

import logging
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from hap.checkpointing import CheckpointFiles
from hap.data.base import DataModule
from hap.description import check_same, checked
from hap.errors import HapError
from hap.ranks import Ranks
from hap.tasks.base import Task

log = logging.getLogger(__name__)

Stage = Literal["train", "eval", "predict"]


def kind_of_task(cfg: DictConfig) -> type[Task]:
    kind = get_object(cfg.task._target_)
    if not (isinstance(kind, type) and issubclass(kind, Task)):
        raise HapError(f"task: {cfg.task._target_} is not a task")
    return kind


def unknown_numbers(cfg: DictConfig) -> dict[str, tuple[str, str]]:
    """Those of `Task.counts` that the configuration leaves null."""
    counts = kind_of_task(cfg).counts
    return {argument: what for argument, what in counts.items() if cfg.task.model.get(argument, 0) is None}


def count_classes(cfg: DictConfig, datamodule: DataModule) -> dict[str, list[str]]:
    """Set the numbers of the model that are null to those of the training data, or where there are none to those that
    are evaluated. The names of the classes."""
    datamodule.setup()
    split = "train" if "train" in datamodule.splits else datamodule.test_split
    labels = kind_of_task(cfg).labels_of(datamodule.records(split))
    cfg.task.model.update({key: len(labels[name]) for key, (name, _) in unknown_numbers(cfg).items()})
    return labels


def classes_of(stage: Stage, cfg: DictConfig, path: Path, checkpoint: dict[str, Any]) -> dict[str, list[str]]:
    """Set the numbers of the model that are null to those of a checkpoint. The names of its classes.

    Raises HapError where the configuration is of another model."""
    weights = checkpoint["state_dict"]
    for argument, (_, parameter) in unknown_numbers(cfg).items():
        # One that is not there is of another model, which is said below or when the weights are loaded.
        found = (value for name, value in weights.items() if name.endswith(f".{parameter}"))
        cfg.task.model[argument] = len(next(found, [0]))
    if "hap" not in checkpoint:
        return {}
    description = checked(checkpoint["hap"], path)
    check_same(cfg, description, path)
    rank_zero_only(log.info)(
        "%s: experiment %s of hap %s", path, description["experiment"], description["version"]
    )
    if stage == "eval":
        source = "drawn people" if cfg.synthetic else f"{cfg.data.root} (another: data.root=FOLDER)"
        rank_zero_only(log.info)("evaluated on %s", source)
    return description["labels"]


def build(node: DictConfig, where: str, **kwargs: Any) -> Any:
    """Instantiate a configuration node; a constructor that refuses its arguments is the user's to mend."""
    try:
        return instantiate(node, _convert_="all", **kwargs)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, HapError):
            raise cause from error
        raise HapError(f"{where}: {cause}") from error


def weights_options(cfg: DictConfig) -> dict[str, Any]:
    """The root keys `weights_NAME`, which are the arguments NAME of `load_weights`."""
    options = {str(key): cfg[key] for key in cfg if str(key).startswith("weights_")}
    return {
        key.removeprefix("weights_"): list(value) if OmegaConf.is_list(value) else value
        for key, value in options.items()
    }


def build_trainer(cfg: DictConfig, run_dir: Path) -> L.Trainer:
    if cfg.trainer.accelerator == "gpu" and not (
        torch.cuda.is_available() or torch.backends.mps.is_available()
    ):
        raise HapError(
            "no GPU is to be seen here: trainer=auto takes what there is, trainer=cpu or ddp_cpu the CPU"
        )
    callbacks = [
        Ranks(),
        *(build(node, f"callbacks.{name}") for name, node in (cfg.callbacks or {}).items() if node),
    ]
    # Products in float32 are exact, as losses and features are made of them; convolutions where all is float32.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = cfg.trainer.precision != "32-true"
    loggers = [build(n, f"logger.{k}", save_dir=str(run_dir)) for k, n in (cfg.logger or {}).items() if n]
    if not cfg.trainer.enable_progress_bar:
        callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)]
    # Without one of ours Lightning would show its own, which fills log files.
    shown = any(isinstance(c, ProgressBar) for c in callbacks)
    trainer = build(
        cfg.trainer,
        "trainer",
        callbacks=callbacks,
        logger=loggers or False,
        default_root_dir=str(run_dir),
        enable_progress_bar=shown,
    )
    trainer.strategy.checkpoint_io = CheckpointFiles()
    return trainer


def load_whole(task: Task, path: Path, checkpoint: dict[str, Any]) -> None:
    try:
        task.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise HapError(f"{path} does not fit this experiment and model:\n{error}") from error
    task.check_checkpoint(path, checkpoint)
