"""What is exported: the encoder, or the model of a task, of a checkpoint; or an encoder from any weights."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hap.building import build, weights_options
from hap.config import check_config
from hap.description import describe_weights, read_description
from hap.errors import HapError
from hap.models.checkpoint import LoadReport, load_weights
from hap.models.pose import PaddedViT
from hap.models.vit import ViT
from hap.models.weight_file import read_weight_file
from hap.schema import Root
from hap.tasks.attribute import Attribute
from hap.tasks.base import Task
from hap.tasks.pose3d import Pose3d
from hap.tasks.pretrain import Pretrain
from hap.tasks.text_reid import TextReid

log = logging.getLogger(__name__)

Size = tuple[int, int]

GRAPHS = ("onnx", "torch_export")  # formats that hold what is computed, not weights alone
_NORM = "that of the weights which training began with: it took the patches before it"
_OF_ENCODER = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")


@dataclass(frozen=True)
class Source:
    """
    Attributes:
        model: float32, in evaluation mode: the encoder alone, or as its task made it.
        size: height and width of its images.
        facts: where it is from, name -> text, for its card and metadata.
        licence: of the weights that it is, or that its training began with; None if nothing says.
        task: whose it is; None of an encoder from other weights.
        whole: whether it is the model of the task, not the encoder alone.
        options: of the task, plain data.
        labels: names of the classes, as of `Task.labels`.
        thresholds: probabilities above which each attribute is a yes.
    """

    model: ViT
    size: Size
    facts: Mapping[str, str]
    licence: str | None
    task: type[Task] | None = None
    whole: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    thresholds: Sequence[float] = ()

    @property
    def pools_patches(self) -> bool:
        """Whether the mean of the patches is what its training made a feature of, not the class token."""
        return self.task is not None and issubclass(self.task, Attribute)


def read_source(cfg: DictConfig) -> Source:
    """
    Args:
        cfg: of `ExportRoot`.

    Raises:
        HapError: the file is missing, damaged, or not what the keys say.
    """
    if (cfg.ckpt_path is None) == (cfg.weights is None):
        raise HapError("give ckpt_path=FILE, a checkpoint of hap, or weights=FILE, an encoder of any source")
    size = None if cfg.size is None else _parse_size(cfg.size)
    if cfg.ckpt_path is not None:
        return _from_checkpoint(Path(cfg.ckpt_path).expanduser(), size, cfg)
    size = size or (256, 128)
    model = ViT(img_size=size, **cfg.model)
    report = load_weights(model, cfg.weights, **weights_options(cfg))
    log.info("%s", report)
    _check_complete(report)
    name = describe_weights(cfg.weights, report)["name"]
    return Source(model.eval(), size, {"weights": name, "SHA-256": report.sha256}, report.licence)


def _parse_size(text: str) -> Size:
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise HapError(f"size={text}: height x width in pixels, such as size=256x128")
    return int(match[1]), int(match[2])


def _check_complete(report: LoadReport) -> None:
    if report.missing:
        raise HapError(
            f"weights of {report.origin} lack {report.missing[0]} and {len(report.missing) - 1} more"
        )


def _from_checkpoint(path: Path, size: Size | None, cfg: DictConfig) -> Source:
    description = read_description(path)
    task, options = _task_of(description, path)
    whole = cfg.format in GRAPHS and not cfg.encoder and not issubclass(task, Pretrain)
    arguments = options["model"] | {"grad_checkpointing": False}
    if size is not None:
        if whole and issubclass(task, Pose3d):
            raise HapError("size=: a model of 3D pose is for the size it was trained at; leave size= out")
        arguments["img_size"] = size
    labels = description["labels"]
    if not (whole or (cfg.format == "hap" and issubclass(task, Pretrain))):  # whose decoder goes along
        if issubclass(get_object(arguments["_target_"]), PaddedViT):
            raise HapError(
                f"the encoder of {path} begins outside the image and has no class token, as those of all models of "
                "pose: no other program knows it. format=onnx and format=torch_export take the whole model"
            )
        kept = {key: value for key, value in arguments.items() if key in _OF_ENCODER}
        arguments = {"_target_": f"{ViT.__module__}.{ViT.__name__}", **kept}
    model: ViT = build(OmegaConf.create(arguments), "task.model")
    # Of attributes the average is what is evaluated.
    averaged = issubclass(task, Attribute) and options.get("ema_decay") is not None
    report = load_weights(model, path, entry="state_dict", prefix="ema.module." if averaged else "model.")
    _check_complete(report)
    content, weights = read_weight_file(path).entries, description.get("weights")
    weights = weights if isinstance(weights, dict) else {}
    facts = {
        "checkpoint": path.name,
        "SHA-256": report.sha256,
        "experiment": description["experiment"],
        "steps": content.get("global_step"),
        "average of the weights": "yes" if averaged else None,
        "run": description.get("run"),
        "revision": description.get("revision"),
        "trained with": f"hap {description['version']}",
        "training began with": weights.get("name"),
        "SHA-256 of that": weights.get("sha256"),
        "final norm": _NORM if issubclass(task, TextReid) and not whole else None,
    }
    licence = weights.get("licence")
    return Source(
        model.eval(),
        tuple(arguments["img_size"]),  # type: ignore[arg-type]
        {key: str(value) for key, value in facts.items() if value is not None},
        None if licence is None else str(licence),
        *(task, whole, options, labels),
        _thresholds(options, content) if whole and issubclass(task, Attribute) else (),
    )


def _thresholds(options: Mapping[str, Any], content: Mapping[str, Any]) -> list[float]:
    tuned = content["state_dict"]["thresholds"].read()
    if options["threshold"] != "val":
        return [options["threshold"]] * len(tuned)
    if tuned.isnan().any():
        raise HapError(
            "the thresholds of this model were never tuned: train it on, or with task.threshold=0.5"
        )
    return tuned.tolist()


def _task_of(description: dict[str, Any], path: Path) -> tuple[type[Task], dict[str, Any]]:
    """Class and arguments of a checkpoint's task; what they call is checked before anything is imported."""
    try:
        cfg = OmegaConf.merge(OmegaConf.structured(Root), description["config"])
        options: Any = OmegaConf.to_container(cfg.task, resolve=True)
        model = OmegaConf.create(options["model"])
    except (OmegaConfBaseException, KeyError) as error:
        raise HapError(f"{path} has a configuration that cannot be read: {error}") from error
    check_config(OmegaConf.create({"task": {"_target_": options["_target_"]}, "model": model}))
    task = get_object(options["_target_"])
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise HapError(f"{path} is of {options['_target_']}, which is no task of hap")
    return task, options
