"""2D joints of people in pictures, as `hap predict` writes them (`poses.json`) and annotations in COCO's format have
them: input of the networks that want both."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hap.body.joints import SMPL30, to_smpl30, with_middle
from hap.data.boxes import Box, Boxes, Detection, Source, find_boxes
from hap.data.files import first_lines, read_json
from hap.errors import HapError

FOUND = 0.05  # score from which a joint was found, as of 3DPW's


def read_keypoints(path: Path, sources: Sequence[Source]) -> Boxes:
    """People with their joints, whole pictures.

    Args:
        path: a dictionary with `images` (`id`, `file_name`, of videos `frame`), `annotations` (`image_id`, `bbox`,
            `keypoints`, `keypoint_scores` if known) and `categories` that name the joints.

    Raises:
        HapError: the file is of another format, of other joints, or of other pictures.
    """
    if not path.is_file():
        raise HapError(f"keypoints: file not found: {path}")
    content = read_json(path)
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        raise HapError(
            f"{path} is no file of people with joints: it needs images, annotations and categories, as poses.json of "
            "hap predict with a model of 2D pose has them"
        )
    names = next((c["keypoints"] for c in content["categories"] if c.get("keypoints")), None)
    if not names:
        raise HapError(f"{path}: its categories do not name the joints")
    ours = [body_joint(str(name)) for name in names]
    if sum(name in SMPL30 for name in ours) < 4:
        raise HapError(f"{path} has the joints {', '.join(map(str, names))[:200]}, none of the body's")
    images = {image.get("id"): _image(image) for image in content["images"]}
    found: list[Detection] = []
    rows: list[np.ndarray] = []
    wrong = []
    for number, person in enumerate(content["annotations"]):
        row = _joints(person, len(names))
        box = person.get("bbox")
        if row is None or not isinstance(box, list) or len(box) != 4 or person.get("image_id") not in images:
            wrong.append(f"annotation {number}: image_id {person.get('image_id')!r}")
        else:
            x, y, w, h = map(float, box)
            found.append(
                Detection(images[person["image_id"]], Box(len(rows), x, y, w, h, person.get("score")))
            )
            rows.append(row)
    if wrong:
        raise HapError(
            f"{path}: {len(wrong):,} people have no bbox, no {len(names)} joints, or no image{first_lines(wrong)}"
        )
    return find_boxes(path, found, sources, True, _to_body(np.array(rows).reshape(-1, len(names), 3), ours))


def body_joint(name: str) -> str:
    """A joint of 2D pose as the body model calls it: left_knee -> L_Knee."""
    known = {"upper_neck": "Neck", "head": "Head", "head_top": "Head_top", "top_head": "Head_top"}
    for side in ("left", "right"):
        if name.startswith(f"{side}_"):
            return f"{side[0].upper()}_{name.removeprefix(f'{side}_').capitalize()}"
    return known.get(name, name.capitalize())


def _image(image: Any) -> str | int:
    return image["frame"] if image.get("frame") is not None else str(image.get("file_name"))


def _joints(person: Any, count: int) -> np.ndarray | None:
    """(K, 3): x, y, score; None where they are not so many numbers."""
    numbers, scores = person.get("keypoints"), person.get("keypoint_scores")
    try:
        row = np.array(numbers, np.float64).reshape(count, 3)
        row[:, 2] = row[:, 2] > 0 if scores is None else np.array(scores, np.float64)
    except (TypeError, ValueError):
        return None
    return row if math.isfinite(row.sum()) else None


def _to_body(joints: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """x, y, 1 or 0 (N, 30, 3), the pelvis between the hips where nobody says."""
    if "Pelvis" not in names and {"L_Hip", "R_Hip"} <= set(names):
        joints = with_middle(joints, names.index("L_Hip"), names.index("R_Hip"))
        names = [*names, "Pelvis"]
    result = to_smpl30(joints, names)
    result[..., 2] = result[..., 2] > FOUND
    return result.astype(np.float32)
