"""People in whole pictures, found by a detector of torchvision's: `boxes=detector`.

Another detector is used by its file of boxes (`boxes=FILE`), or in Python as any function of an image.
"""

import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock
from torchvision.models import detection

from hap.data.files import read_text
from hap.errors import BadSample, HapError, printable
from hap.models.weight_file import read_weight_file
from hap.progress import progress

log = logging.getLogger(__name__)

DETECTORS = {
    "resnet50": ("fasterrcnn_resnet50_fpn_v2", detection.FasterRCNN_ResNet50_FPN_V2_Weights.DEFAULT),
    "mobilenet": (
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        detection.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.DEFAULT,
    ),
}
PERSON = 1  # torchvision's label


class Detector(Protocol):
    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 RGB -> boxes of people (N, 4), x1, y1, x2, y2 in pixels, and scores (N,)."""


class TorchvisionDetector:
    """
    Args:
        name: resnet50, or mobilenet, which is made for CPUs and finds fewer.
        weights: a file of torchvision's for it; None takes the one in torch's cache.
        device: where it runs.

    Raises:
        HapError: there is no such detector, or no file of its weights; nothing is downloaded.
    """

    def __init__(self, name: str, weights: Path | None = None, device: str | torch.device = "cpu"):
        if name not in DETECTORS:
            raise HapError(f"detector={printable(name)}: {' or '.join(DETECTORS)}")
        kind, official = DETECTORS[name]
        path = weights or cached(name)
        if not path.is_file():
            raise HapError(
                f"no weights of the detector {kind}: {path}. Get {official.url} "
                f"({official.meta['_file_size']:.0f} MB) and put it there, or say detector_weights=FILE; "
                "boxes=FILE takes the boxes of another detector, boxes=none each picture as one person"
            )
        self.model = getattr(detection, kind)(weights=None, weights_backbone=None)
        state: dict[str, Any] = {
            key: value.read() if hasattr(value, "read") else value
            for key, value in read_weight_file(path).entries.items()
        }
        try:
            self.model.load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise HapError(f"{path} is not of the detector {kind}: {str(error).splitlines()[0]}") from None
        self.device = torch.device(device)
        self.model.eval().to(self.device)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        levels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(self.device)
        found = self.model([levels / 255])[0]
        people = found["labels"] == PERSON
        return found["boxes"][people].cpu().numpy(), found["scores"][people].cpu().numpy()


def cached(name: str) -> Path:
    """Where torchvision keeps the weights of a detector."""
    url = DETECTORS[name][1].url
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]


def detect(make: Callable[[], Detector], pictures: Sequence[Any], path: Path, least: float) -> Path:
    """Find the people in pictures (`hap.data.sources`) and write them to `path`, a file that `read_boxes` reads.

    Pictures are read one by one, and what is found is written as it comes, beside the path: after an interruption the
    next call goes on. Of several processes one looks, the others wait for its file. Pictures that cannot be read have
    no boxes; they are named.

    Args:
        make: makes the detector, when it is needed.
        least: score from which a box is somebody.

    Raises:
        HapError: nobody is found.
    """
    notes = path.with_suffix(".partial")
    with FileLock(path.with_suffix(".lock")):
        if path.is_file():
            return path
        lines = [json.loads(line) for line in _whole_lines(notes)]
        if [line["image"] for line in lines] != [p.name for p, _ in zip(pictures, lines, strict=False)]:
            lines = []  # of other pictures
        look: Detector = make()
        notes.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        with (
            notes.open("a", encoding="utf-8") as file,
            progress("looking for people", len(pictures)) as advance,
        ):
            advance(len(lines))
            for number in range(len(lines), len(pictures)):
                lines.append({"image": pictures[number].name, **_people(look, pictures[number])})
                file.write(json.dumps(lines[-1]) + "\n")
                file.flush()
                advance(1)
        found = [
            {"image_id": line["image"], "category_id": 1, "bbox": box, "score": score}
            for line in lines
            for box, score in zip(line["boxes"], line["scores"], strict=True)
            if score >= least
        ]
        if not found:
            raise HapError(
                f"the detector finds nobody in {len(pictures):,} pictures with a score of {least:g} or more: "
                "detector_score=0.1, or boxes=none if each is one person"
            )
        partial = path.with_suffix(".writing")
        partial.write_text(json.dumps(found))
        os.replace(partial, path)
        notes.unlink()
    return path


def _whole_lines(path: Path) -> list[str]:
    """The last line may be cut off."""
    return read_text(path).split("\n")[:-1] if path.is_file() else []


def _people(look: Detector, picture: Any) -> dict[str, list[Any]]:
    """`boxes` as x, y, w, h and their `scores`."""
    try:
        boxes, scores = look(picture.pixels())
    except (BadSample, OSError) as error:
        log.warning("nobody is looked for in %s: %s", printable(picture.name), error)
        return {"boxes": [], "scores": []}
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    sizes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    return {"boxes": sizes.round(2).tolist(), "scores": np.asarray(scores).astype(float).round(5).tolist()}
