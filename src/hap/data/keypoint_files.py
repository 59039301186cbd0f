"""2D joints of people in pictures, as `hap predict` writes them (`poses.json`) and annotations in COCO's format have
them: input of the networks that want both."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hap.body.joints import SMPL30, to_smpl30, with_middle
from hap.data.boxes import Boxes, Detection, Source, find_boxes, parse_box
from hap.data.files import first_lines, read_json
from hap.errors import HapError, printable
from hap.pose.skeletons import canonical

log = logging.getLogger(__name__)

FOUND = 0.05  # score from which a joint was found, as of 3DPW's
FAR = 1e6  # pixels; nobody's joints are there
FEWEST = 4  # joints of the body that a file names, else it is of something else
# The body's joints by the names of other sets; `upper_neck` is MPII's.
BODY = {canonical(name): name for name in SMPL30} | {"upper_neck": "Neck", "top_head": "Head_top"}


def read_keypoints(path: Path, sources: Sequence[Source]) -> Boxes:
    """People with their joints, whole pictures. Crowds and people of whom no joint was found are left out.

    Args:
        path: a dictionary with `images` (`id`, `file_name`, of videos `frame`), `annotations` (`image_id`, `bbox`,
            `keypoints`, `keypoint_scores` if known; else their third numbers are scores, or flags), and `categories`,
            of which one names the joints.

    Raises:
        HapError: the file is of another format, of other joints, or of other pictures.
    """
    if not path.is_file():
        raise HapError(f"keypoints: file not found: {path}")
    content = read_json(path)
    if not isinstance(content, dict) or not all(
        isinstance(content.get(part), list) and all(isinstance(item, dict) for item in content[part])
        for part in ("images", "annotations", "categories")
    ):
        raise HapError(
            f"{path} is no file of people with joints: it needs images, annotations and categories, as poses.json of "
            "hap predict with a model of 2D pose has them"
        )
    names, category = _joint_names(path, content["categories"])
    images = {i["id"]: _name(i) for i in content["images"] if isinstance(i.get("id"), int | str)}
    found: list[Detection] = []
    rows = np.zeros((len(content["annotations"]), len(names), 3))
    wrong, crowds = [], 0
    for number, person in enumerate(content["annotations"]):
        if person.get("category_id", category) != category:
            continue
        if person.get("iscrowd"):
            crowds += 1
            continue
        joints, bbox = _joints(person, len(names)), person.get("bbox")
        box = parse_box(number, bbox, person.get("score")) if isinstance(bbox, list) else None
        image = images.get(key) if isinstance(key := person.get("image_id"), int | str) else None
        if joints is None or box is None or image is None:
            wrong.append(f"annotation {number}: image_id {printable(repr(key)[:50])}")
        else:
            found.append(Detection(image, box))
            rows[number] = joints
    if wrong:
        raise HapError(
            f"{path}: {len(wrong):,} people have no bbox, no {len(names)} joints, or no image{first_lines(wrong)}"
        )
    body = to_body(rows, [BODY.get(canonical(name), name) for name in names])
    seen = [detection for detection in found if body[detection.box.number, :, 2].any()]
    if crowds or len(seen) < len(found):
        log.warning(
            "%s: left out %s people without a joint and %s crowds", path, len(found) - len(seen), crowds
        )
    if not seen:
        raise HapError(f"{path} has nobody with a joint")
    return find_boxes(path, seen, sources, True, body)


def _joint_names(path: Path, categories: Sequence[dict[str, Any]]) -> tuple[list[str], Any]:
    """Of the first category that has any, and its id."""
    category = next((c for c in categories if isinstance(c.get("keypoints"), list) and c["keypoints"]), None)
    if category is None:
        raise HapError(f"{path}: its categories do not name the joints")
    names = [str(name) for name in category["keypoints"]]
    if sum(canonical(name) in BODY for name in names) < FEWEST:
        raise HapError(
            f"{path} has the joints {printable(', '.join(names)[:200])}: fewer than {FEWEST} are the body's, such as "
            "left_knee"
        )
    return names, category.get("id")


def _name(image: dict[str, Any]) -> str | None:
    """As of `hap.data.sources`: `walk.mp4#120` is a frame."""
    name, frame = image.get("file_name"), image.get("frame")
    if not isinstance(name, str):
        return None
    return name if frame is None else f"{name}#{frame}"


def _joints(person: dict[str, Any], count: int) -> np.ndarray | None:
    """(K, 3): x, y, score; None where they are not so many numbers, or none of a picture."""
    try:
        row = np.array(person.get("keypoints"), np.float64).reshape(count, 3)
        if "keypoint_scores" in person:
            row[:, 2] = np.array(person["keypoint_scores"], np.float64).reshape(count)
    except (TypeError, ValueError):
        return None
    return row if (np.abs(row) < FAR).all() else None


def to_body(joints: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Joints (N, K, 3) of these names: x, y, score -> the body's: x, y, 1 or 0, float32 (N, 30, 3), the pelvis between
    the hips where there is none."""
    if "Pelvis" not in names and {"L_Hip", "R_Hip"} <= set(names):
        joints = with_middle(joints, names.index("L_Hip"), names.index("R_Hip"))
        names = [*names, "Pelvis"]
    result = to_smpl30(joints, names)
    result[..., 2] = result[..., 2] > FOUND
    return result.astype(np.float32)
