"""A trained model in Python: `hap.load_model` and what it says of images, as arrays."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch.utils.data import default_collate

from hap.checkpointing import read_checkpoint
from hap.cli import quote_paths
from hap.config import CONF_DIR, check_config, register
from hap.description import add_experiment
from hap.errors import HapError
from hap.runner import build, classes_of, load_whole
from hap.tasks.attribute import Attribute
from hap.tasks.base import Task
from hap.tasks.pose2d import Pose2d


def load_model(ckpt_path: str | Path, *overrides: str) -> Task:
    """The task of a checkpoint of hap, ready to evaluate: with its weights, its `labels`, and the `transform` that
    makes its input of an image.

    Args:
        overrides: as on the command line, such as "task.threshold=0.4".

    Raises:
        HapError: the file is missing, damaged, or no checkpoint of hap.
    """
    path = Path(ckpt_path).expanduser().absolute()
    register()
    if GlobalHydra.instance().is_initialized():
        raise HapError("load_model composes a configuration: not within a program of Hydra")
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("predict", add_experiment(quote_paths([f"ckpt_path={path}", *overrides])))
    check_config(cfg)
    checkpoint = read_checkpoint(path)
    labels = classes_of("predict", cfg, path, checkpoint)
    task: Task = build(cfg.task, "task")
    task.labels, task.transform = labels, build(cfg.data.transforms.val, "data.transforms.val")
    load_whole(task, path, checkpoint)
    return task.eval()


@torch.no_grad()
def predict_attributes(model: Task, images: Sequence[np.ndarray]) -> np.ndarray:
    """Probabilities, float32 (N, A); `model.labels["attributes"]` are the names of the columns.

    Args:
        model: of `load_model`; it can be moved to a GPU before.
        images: people, (H, W, 3) uint8 RGB each, of any size.
    """
    if not isinstance(model, Attribute):
        raise HapError(f"the model is of the task {type(model).__name__}, not of attributes")
    batch = torch.stack([_input(model, image) for image in images]).to(model.device)
    return model({"image": batch}).sigmoid().cpu().numpy()


@torch.no_grad()
def predict_pose(model: Task, image: np.ndarray, boxes: Any = None) -> np.ndarray:
    """Joints of the people in an image, float32 (P, K, 3): x, y in its pixels, and a score;
    `model.labels["joints"]` are their names.

    Args:
        model: of `load_model`; it can be moved to a GPU before.
        image: (H, W, 3) uint8 RGB, of any size.
        boxes: (P, 4), x, y, width, height in pixels. None: the image is one person.
    """
    if not isinstance(model, Pose2d):
        raise HapError(f"the model is of the task {type(model).__name__}, not of 2D pose")
    places: list[dict[str, Any]] = [{}]
    if boxes is not None:
        boxes = np.asarray(boxes, np.float32)
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not (boxes[:, 2:] > 0).all():
            raise HapError("boxes are an array (P, 4): x, y, width, height, of an area")
        places = [{"box": box} for box in boxes]
    if not places:
        return np.empty((0, len(model.skeleton.joints), 3), np.float32)
    samples = [_sample(model, image, place) for place in places]
    batch = {key: value.to(model.device) for key, value in default_collate(samples).items()}
    return model.predictions(model(batch), batch)["keypoints"].cpu().numpy()


def _input(model: Task, image: Any) -> torch.Tensor:
    return _sample(model, image, {})["image"]


def _sample(model: Task, image: Any, annotations: dict[str, Any]) -> dict[str, Any]:
    if getattr(image, "dtype", None) != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise HapError("an image is an array (H, W, 3) of uint8, RGB")
    return model.transform(image, annotations, np.random.default_rng())
