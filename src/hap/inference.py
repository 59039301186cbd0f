"""A trained model in Python: `hap.load_model` and what it says of images, as arrays."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch.utils.data import default_collate

from hap.body.joints import COCO
from hap.body.rotations import to_matrix
from hap.checkpointing import read_checkpoint
from hap.cli import quote_paths
from hap.config import CONF_DIR, check_config, register
from hap.data.keypoint_files import to_body
from hap.data.pose3d import Kind
from hap.description import add_experiment
from hap.errors import HapError
from hap.runner import build, classes_of, load_whole
from hap.tasks.attribute import Attribute
from hap.tasks.base import Task
from hap.tasks.pose2d import Pose2d
from hap.tasks.pose3d import Pose3d
from hap.tasks.pose3d_outputs import in_picture

AROUND_JOINTS = Kind("key points", from_joints=True)


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
    return _predicted(model, image, _places(boxes))["keypoints"].cpu().numpy()


@torch.no_grad()
def predict_bodies(
    model: Task, image: np.ndarray, boxes: Any = None, focal: float | None = None, keypoints: Any = None
) -> dict[str, np.ndarray]:
    """Bodies of the people in an image, float32: `pose` (P, 72), axis-angle vectors, `betas` (P, 10), `trans` (P, 3)
    and `vertices` (P, V, 3), metres in the frame of the camera (x right, y down, z forward); `model.faces` (F, 3) are
    those of the meshes.

    Args:
        model: of `load_model`; it can be moved to a GPU before.
        image: (H, W, 3) uint8 RGB, of any size.
        boxes: (P, 4), x, y, width, height in pixels. None: around the key points; without these the image is one
            person.
        focal: focal length in pixels. None: that of `load_model(..., "focal=F")`, if any; else how far away people
            are is not metric.
        keypoints: (P, 17, 3), COCO's joints as `predict_pose` gives them: x, y, score. Networks that are not given 2D
            joints need none.
    """
    if not isinstance(model, Pose3d):
        raise HapError(f"the model is of the task {type(model).__name__}, not of 3D pose")
    focal = model.focal if focal is None else focal
    if focal is not None and not 0 < focal < math.inf:
        raise HapError(f"focal={focal}: pixels, above 0")
    places = _places(boxes)
    if keypoints is not None:
        joints = np.asarray(keypoints, np.float32)
        if joints.shape[1:] != (len(COCO), 3) or (boxes is not None and len(joints) != len(places)):
            raise HapError(
                "keypoints are an array (P, 17, 3): x, y, score of COCO's joints, P that of the boxes"
            )
        places = [{"kind": AROUND_JOINTS} for _ in joints] if boxes is None else places
        places = [place | {"joints": own} for place, own in zip(places, to_body(joints, COCO), strict=True)]
    elif model.model.needs_joints:
        raise HapError("this network is given 2D joints: keypoints=, as hap.predict_pose gives them")
    rows = _predicted(model, image, places)
    _, trans = in_picture(rows, focal)
    rotations = to_matrix(rows["pose"].unflatten(1, (-1, 3)))
    vertices = model.body.neutral(rotations, rows["betas"], trans).vertices
    found = {"pose": rows["pose"], "betas": rows["betas"], "trans": trans, "vertices": vertices}
    return {name: values.cpu().numpy() for name, values in found.items()}


def _places(boxes: Any) -> list[dict[str, Any]]:
    """What a transform is told of each box; None is the whole image."""
    if boxes is None:
        return [{}]
    boxes = np.asarray(boxes, np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not (boxes[:, 2:] > 0).all():
        raise HapError("boxes are an array (P, 4): x, y, width, height, of an area")
    return [{"box": box} for box in boxes]


def _predicted(model: Task, image: Any, places: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows of `Task.predictions`, one for each place, also of none."""
    samples = [_sample(model, image, place) for place in places or [{}]]
    batch = {key: value.to(model.device) for key, value in default_collate(samples).items()}
    rows = model.predictions(model(batch), batch)
    return {name: values[: len(places)] for name, values in rows.items()}


def _input(model: Task, image: Any) -> torch.Tensor:
    return _sample(model, image, {})["image"]


def _sample(model: Task, image: Any, annotations: dict[str, Any]) -> dict[str, Any]:
    if getattr(image, "dtype", None) != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise HapError("an image is an array (H, W, 3) of uint8, RGB")
    return model.transform(image, annotations, np.random.default_rng())
