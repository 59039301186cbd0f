"""A trained model in Python: `hap.load` and what it says of images, as arrays."""

import math
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from torch.utils.data import default_collate

from hap.body.joints import COCO
from hap.body.rotations import to_matrix
from hap.building import build, classes_of, load_whole
from hap.checkpointing import read_checkpoint
from hap.cli import quote_paths
from hap.config import CONF_DIR, check_config, register
from hap.data.decoding import decode_image
from hap.data.files import read_file
from hap.data.keypoint_files import to_body
from hap.data.pose3d import Kind
from hap.data.sources import nothing_known
from hap.description import add_experiment
from hap.errors import BadSample, HapError
from hap.tasks.attribute import Attribute
from hap.tasks.base import Task
from hap.tasks.pose2d import Pose2d
from hap.tasks.pose3d import Pose3d
from hap.tasks.pose3d_outputs import in_picture
from hap.tasks.text_reid import TextReid

AROUND_JOINTS = Kind("key points", from_joints=True)
_composing = threading.Lock()  # Hydra's state is that of the process


class Features(NamedTuple):
    """Of N images, by a model of pre-training or re-identification.

    feature: float32 (N, D), the class token of pre-training; of re-identification the test feature, where the cosine
        ranks of length 1, so that dot products are cosines.
    """

    feature: np.ndarray


class Attributes(NamedTuple):
    """Of N images.

    probability: float32 (N, A); names: of its columns.
    """

    probability: np.ndarray
    names: tuple[str, ...]


class Joints(NamedTuple):
    """Of P people.

    keypoints: float32 (P, K, 3): x, y in pixels of the image, and a score; image: int64 (P,), whose they are; names:
        of the joints.
    """

    keypoints: np.ndarray
    image: np.ndarray
    names: tuple[str, ...]


class Bodies(NamedTuple):
    """Of P people, metres in the frame of the camera (x right, y down, z forward).

    pose: float32 (P, 72), axis-angle vectors; betas: (P, 10); trans: (P, 3); vertices: (P, V, 3); image: int64 (P,),
        whose they are; faces: int64 (F, 3) of the meshes.
    """

    pose: np.ndarray
    betas: np.ndarray
    trans: np.ndarray
    vertices: np.ndarray
    image: np.ndarray
    faces: np.ndarray


Prediction = Features | Attributes | Joints | Bodies


def load(ckpt_path: str | Path, *overrides: str) -> "Model":
    """The model of a checkpoint of hap, ready to use: with its weights, its names and its preprocessing.

    Args:
        overrides: as on the command line, such as "task.threshold=0.4".

    Raises:
        HapError: the file is missing, damaged, or no checkpoint of hap.

    Example:
        >>> model = hap.load("attributes.ckpt").to("cuda")
        >>> found = model.predict(["a.jpg", "b.jpg"])
        >>> found.probability  # (2, A), found.names
    """
    path = Path(ckpt_path).expanduser().absolute()
    with _composing:
        register()
        program = GlobalHydra.instance().hydra  # of which this may be a part
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
                cfg = compose("predict", add_experiment(quote_paths([f"ckpt_path={path}", *overrides])))
        finally:
            GlobalHydra.instance().hydra = program
    check_config(cfg)
    checkpoint = read_checkpoint(path)
    labels = classes_of("predict", cfg, path, checkpoint)
    task: Task = build(cfg.task, "task")
    task.labels = labels
    load_whole(task, path, checkpoint)
    return Model(task.eval(), build(cfg.data.transforms.val, "data.transforms.val"), tuple(cfg.img_size))


class Model:
    """A trained model, made by `hap.load`.

    Attributes:
        task: the LightningModule.
        transform: makes its input of an image.
        size: height and width of that input.
    """

    def __init__(self, task: Task, transform: Any, size: tuple[int, ...]):
        self.task, self.transform, self.size = task, transform, size

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """What the model can name: `attributes`, `joints`, or the `people` of its training."""
        return {kind: tuple(names) for kind, names in self.task.labels.items()}

    def to(self, device: str | torch.device) -> "Model":
        """Move it to a device, such as "cuda"."""
        self.task.to(device)
        return self

    @torch.no_grad()
    def predict(
        self,
        images: Any,
        boxes: Any = None,
        keypoints: Any = None,
        focal: float | None = None,
        batch_size: int = 64,
    ) -> Prediction:
        """What the model says of images: `Features`, `Attributes`, `Joints` or `Bodies`, by its task.

        Args:
            images: one or a sequence of them: a path, an array (H, W, 3) uint8 RGB of any size, or Pillow's.
            boxes: where people are, for 2D and 3D pose: (P, 4), x, y, width, height in pixels; of a sequence of
                images one such array each. None: an image is one person.
            keypoints: for networks of 3D pose that are given 2D joints: (P, 17, 3), COCO's: x, y, score, as a model of
                2D pose finds them; of a sequence one array each. Without boxes the crop is around them.
            focal: of 3D pose: focal length in pixels. None: that of `hap.load(..., "focal=F")`, if any; else how far
                away people are is not metric.
            batch_size: crops that are computed at once.

        Raises:
            HapError: an image cannot be read, or an argument is not for this task.
        """
        one = isinstance(images, str | os.PathLike | Image.Image) or getattr(images, "ndim", 0) == 3
        listed = [images] if one else list(images)
        wants_boxes, wants_joints = isinstance(self.task, Pose2d | Pose3d), isinstance(self.task, Pose3d)
        for name, value, wanted in (
            ("boxes", boxes, wants_boxes),
            ("keypoints", keypoints, wants_joints),
            ("focal", focal, wants_joints),
        ):
            if value is not None and not wanted:
                raise HapError(f"{name}: not for a model of the task {type(self.task).__name__}")
        of_image = [
            _places(*places)
            for places in zip(
                _each(boxes, len(listed), one, "boxes"),
                _each(keypoints, len(listed), one, "keypoints"),
                strict=True,
            )
        ]
        if isinstance(self.task, Pose3d) and self.task.model.needs_joints and keypoints is None:
            raise HapError("this network is given 2D joints: keypoints=, as a model of 2D pose finds them")
        image = np.repeat(np.arange(len(listed)), [len(places) for places in of_image])
        rows = self._rows(listed, of_image, batch_size)
        return self._named(rows, image, focal)

    def embed_texts(self, texts: str | Sequence[str]) -> np.ndarray:
        """Of a model of text-to-image re-identification: float32 (K, D) of K sentences, of length 1, so that products
        with `Features` are cosines.

        Raises:
            HapError: the model is of another task, or knows no word of a sentence.

        Example:
            >>> text, image = model.embed_texts("a woman in a red coat"), model.predict(paths).feature
            >>> best = (text @ image.T).argmax(1)
        """
        if not isinstance(self.task, TextReid):
            raise HapError(f"embed_texts: not for a model of the task {type(self.task).__name__}")
        listed = [texts] if isinstance(texts, str) else list(texts)
        self.task.check_texts(listed)
        return _array(self.task.embed_texts(listed))

    def _rows(
        self, images: Sequence[Any], of_image: Sequence[list[dict[str, Any]]], batch_size: int
    ) -> dict[str, torch.Tensor]:
        """Rows of `Task.predictions`, one for each place in each image, also of none."""
        if batch_size < 1:
            raise HapError(f"batch_size={batch_size}: 1 or more")
        if not any(of_image):  # one row of nobody has the shapes
            empty = self._rows([np.zeros((16, 16, 3), np.uint8)], [[{}]], 1)
            return {name: values[:0] for name, values in empty.items()}
        parts, samples = [], []
        for number, (image, places) in enumerate(zip(images, of_image, strict=True)):
            pixels = _pixels(image, f"image {number}") if places else None
            for place in places:
                known = nothing_known("input") | place
                samples.append(self.transform(pixels, known, np.random.default_rng()))
                if len(samples) == batch_size:
                    parts.append(self._computed(samples))
                    samples = []
        parts += [self._computed(samples)] if samples else []
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _computed(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = {name: value.to(self.task.device) for name, value in default_collate(samples).items()}
        return self.task.predictions(self.task(batch), batch)

    def _named(self, rows: dict[str, torch.Tensor], image: np.ndarray, focal: float | None) -> Prediction:
        if isinstance(self.task, Attribute):
            return Attributes(_array(rows["probability"]), self.names["attributes"])
        if isinstance(self.task, Pose2d):
            return Joints(_array(rows["keypoints"]), image, tuple(self.task.skeleton.joints))
        if isinstance(self.task, Pose3d):
            return self._bodies(self.task, rows, image, focal)
        return Features(_array(rows["feature"]))

    def _bodies(
        self, task: Pose3d, rows: dict[str, torch.Tensor], image: np.ndarray, focal: float | None
    ) -> Bodies:
        focal = task.focal if focal is None else focal
        if focal is not None and not 0 < focal < math.inf:
            raise HapError(f"focal={focal}: pixels, above 0")
        _, trans = in_picture(rows, focal)
        rotations = to_matrix(rows["pose"].unflatten(1, (-1, 3)))
        vertices = task.body.neutral(rotations, rows["betas"], trans).vertices
        pose, betas, moved, mesh = map(_array, (rows["pose"], rows["betas"], trans, vertices))
        return Bodies(pose, betas, moved, mesh, image, task.faces)


def _array(values: torch.Tensor) -> np.ndarray:
    return values.float().cpu().numpy()


def _each(values: Any, count: int, one: bool, name: str) -> list[Any]:
    """One entry for each image."""
    if values is None:
        return [None] * count
    listed = [values] if one else list(values)
    if len(listed) != count:
        raise HapError(f"{name} of {len(listed)} images, {count} images: one array for each, None for none")
    return listed


def _places(boxes: Any, keypoints: Any) -> list[dict[str, Any]]:
    """What a transform is told of each person in an image; without boxes and key points the image is one."""
    places: list[dict[str, Any]] = [{}]
    if boxes is not None:
        boxes = np.asarray(boxes, np.float32)
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not (boxes[:, 2:] > 0).all():
            raise HapError("boxes are an array (P, 4): x, y, width, height, of an area")
        places = [{"box": box} for box in boxes]
    if keypoints is not None:
        joints = np.asarray(keypoints, np.float32)
        if joints.shape[1:] != (len(COCO), 3) or (boxes is not None and len(joints) != len(places)):
            raise HapError(
                "keypoints are an array (P, 17, 3): x, y, score of COCO's joints, P that of the boxes"
            )
        places = [{"kind": AROUND_JOINTS} for _ in joints] if boxes is None else places
        places = [place | {"joints": own} for place, own in zip(places, to_body(joints, COCO), strict=True)]
    return places


def _pixels(image: Any, where: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB; of a file upright, as a viewer shows it."""
    if isinstance(image, str | os.PathLike):
        try:
            return decode_image(read_file(Path(image).expanduser()), upright=True)
        except (BadSample, OSError) as error:
            raise HapError(f"{image}: {error}") from None
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if getattr(image, "dtype", None) != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        kind = f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}".strip()
        raise HapError(
            f"{where} is {kind}: an image is a path, Pillow's, or an array (H, W, 3) of uint8, RGB"
        )
    return image
