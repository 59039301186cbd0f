"""Files of predicted poses as the data sets' owners take them, and those that `hap eval predictions=FILE` reads.

COCO and AI Challenger: a list in JSON, a pose each: `image_id`, `category_id`, `keypoints` (x, y, score of each joint,
in pixels from 0), `score`. MPII: MATLAB's `preds`, (people, 16, 2), in pixels from 1.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from scipy.io import savemat

from hap.data.files import first_lines, read_json
from hap.data.mat_file import read_mat
from hap.data.pose import PoseRecords
from hap.errors import HapError, printable
from hap.metrics.coco import by_image, counted
from hap.metrics.pose import PAIRING_SIGMA, Poses, mpii_errors, pckh
from hap.pose.oks import oks
from hap.pose.truth import CocoTruth, MpiiTruth

log = logging.getLogger(__name__)

FAR = 0.1  # by how much of a picture a joint may lie outside of it


def write_results(folder: Path, records: PoseRecords, poses: Poses) -> Path:
    """`result_keypoints.json`, or for MPII `pred.mat`, with the official names, ids and order; people who were not run
    are not numbers in the latter."""
    if isinstance(records.truth, MpiiTruth):
        preds = np.full(records.truth.joints.shape, np.nan, np.float32)
        preds[poses.image] = poses.keypoints[..., :2] + np.float32(1)
        savemat(path := folder / "pred.mat", {"preds": preds})
        return path
    path = folder / "result_keypoints.json"
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        for number, result in enumerate(coco_results(records, poses)):
            file.write(",\n" * (number > 0) + json.dumps(result))
        file.write("]\n")
    return path


def coco_results(records: PoseRecords, poses: Poses) -> Iterator[dict[str, Any]]:
    """Each pose with the ids of the annotation file, and `center` and `scale` of its region as in the official one."""
    truth = records.truth
    assert isinstance(truth, CocoTruth)
    for image, keypoints, score, index in zip(
        poses.image, poses.keypoints, poses.score, poses.index, strict=True
    ):
        yield {
            "image_id": truth.image_ids[image],
            "category_id": truth.category_id,
            "keypoints": keypoints.ravel().tolist(),
            "score": float(score),
            "center": records.center[index].tolist(),
            "scale": records.scale[index].tolist(),
        }


def read_results(path: Path, records: PoseRecords) -> tuple[Poses, dict[str, Any]]:
    """Somebody's poses for these records, and what the file holds, for the protocol of the scores.

    Of JSON also a file with `images`, `annotations` and `categories` is read; then images are those of its file names,
    and joints those of its names. Keypoints may be nested, [[x, y, score], ...], and without scores.

    Raises:
        HapError: the file is not there, is of another format, of other images or joints, or has x and y exchanged; says
            how many poses are wrong, and which are the first.
    """
    if not path.is_file():
        raise HapError(f"predictions: file not found: {path}")
    if isinstance(records.truth, MpiiTruth):
        return _read_mat(path, records.truth)
    assert isinstance(records.truth, CocoTruth)
    return _read_json(path, records, records.truth)


# --- COCO, AI Challenger, own sets --------------------------------------------------------------------------


def _read_json(path: Path, records: PoseRecords, truth: CocoTruth) -> tuple[Poses, dict[str, Any]]:
    if path.suffix.lower() == ".mat":
        raise HapError(f"{path}: these data are scored by a list of poses in JSON, as COCO's results are")
    rows, names, joints = _content(path)
    rows = _of_people(path, rows, truth)
    image = _places(
        path, [names.get(name, name) for name in (_spelled(row.get("image_id")) for row in rows)], truth
    )
    keypoints, score = _numbers(path, rows, len(truth.skeleton.joints))
    if joints is not None:
        keypoints = keypoints[:, truth.skeleton.mapped(joints, str(path))]
    poses = Poses(image, keypoints.astype(np.float32), score, np.full(len(rows), -1))
    _check_frame(path, poses, records, truth)
    people = np.unique(truth.image[counted(truth)])
    if without := len(np.setdiff1d(people, image)):
        log.warning("%s: %s of %s images with people have no pose", path, f"{without:,}", f"{len(people):,}")
    most = np.bincount(image, minlength=1).max()
    found = f"{len(rows):,} in {len(np.unique(image)):,} of {len(truth.image_ids):,} images, at most {most} in one"
    log.info("%s: poses: %s", path, found)
    return poses, {"poses": found, "images with people and without a pose": without}


def _content(path: Path) -> tuple[list[dict[str, Any]], dict[str, str], list[str] | None]:
    """Poses; names of the images by id and of the joints, where the file has them."""
    content = read_json(path, "surrogateescape")
    names: dict[str, str] = {}
    joints = None
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        for image in _dicts(content.get("images")):
            if isinstance(image.get("file_name"), str) and isinstance(image.get("id"), str | int):
                names[_spelled(image["id"])] = image["file_name"]
        named = [
            category["keypoints"]
            for category in _dicts(content.get("categories"))
            if category.get("keypoints")
        ]
        joints = named[0] if len(named) == 1 and isinstance(named[0], list) else None
        content = content["annotations"]
    if not isinstance(content, list) or len(_dicts(content)) < len(content):
        raise HapError(
            f"{path} is no list of poses, each with image_id, category_id, keypoints and score, as COCO's results are"
        )
    return content, names, joints


def _dicts(values: Any) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _of_people(path: Path, rows: list[dict[str, Any]], truth: CocoTruth) -> list[dict[str, Any]]:
    """Without other categories. Where the file has a single one it is people, under whatever number."""
    counts = Counter(repr(row.get("category_id", truth.category_id)) for row in rows)
    people = repr(truth.category_id)
    if len(counts) > 1 and people not in counts:
        raise HapError(
            f"{path} has poses of categories {', '.join(sorted(counts))}, people are {people} in the annotations: "
            "leave theirs in it, with this number"
        )
    if others := counts.total() - counts[people]:
        what = "are taken for people" if len(counts) == 1 else "are left out"
        log.warning("%s: %s poses of another category than %s, people, %s", path, f"{others:,}", people, what)
    if len(counts) < 2:
        return rows
    return [row for row in rows if repr(row.get("category_id", truth.category_id)) == people]


def _places(path: Path, images: Sequence[str], truth: CocoTruth) -> np.ndarray:
    """The place of each image in the truth, by its id as number or text, the name of its file or the end of that."""
    stems = [PurePosixPath(name).stem for name in truth.files]
    bases = [PurePosixPath(name).name for name in truth.files]
    place: dict[str, int] = {}
    for spelling in (map(str, truth.image_ids), truth.files, _once(bases), _once(stems)):
        for number, name in enumerate(spelling):
            if name is not None:
                place.setdefault(name, number)
    found = [place.get(name, place.get(PurePosixPath(name).name)) for name in images]
    foreign = Counter(name for name, number in zip(images, found, strict=True) if number is None)
    if foreign:
        raise HapError(
            f"{path}: {foreign.total():,} of {len(images):,} poses belong to no image of the annotations; their images"
            + first_lines([f"{printable(name)}: {count:,} poses" for name, count in foreign.most_common()])
        )
    return np.array(found, dtype=np.int64)


def _once(names: Sequence[str]) -> list[str | None]:
    """Names that one image alone has."""
    counts = Counter(names)
    return [name if counts[name] == 1 else None for name in names]


def _spelled(image: Any) -> str:
    if isinstance(image, float) and image.is_integer():
        return str(int(image))
    return str(image).replace("\\", "/")


def _numbers(path: Path, rows: list[dict[str, Any]], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints float64 (P, K, 3), with 1 for scores that are not there, and scores (P,)."""
    keypoints, scores = np.ones((len(rows), count, 3)), np.ones(len(rows))
    wrong = []
    for number, row in enumerate(rows):
        points, score = _array(row.get("keypoints")), _array(row.get("score"))
        if points is None or points.shape not in ((3 * count,), (2 * count,), (count, 3), (count, 2)):
            given = "no list of numbers" if points is None else f"{points.size} numbers"
            wrong.append(f"pose {number}: keypoints: {given}")
        elif score is None or score.shape:
            wrong.append(f"pose {number}: score: {printable(repr(row.get('score'))[:50])}")
        else:
            points = points.reshape(count, -1)
            keypoints[number, :, : points.shape[1]], scores[number] = points, score
    if wrong:
        raise HapError(
            f"{path}: {len(wrong):,} of {len(rows):,} poses do not have {count} joints in keypoints, "
            f"{3 * count} numbers (x, y, score), and a score{first_lines(wrong)}"
        )
    return keypoints, scores


def _array(value: Any) -> np.ndarray | None:
    """None where it is not numbers in a regular shape."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return array if np.isfinite(array).all() else None


def _check_frame(path: Path, poses: Poses, records: PoseRecords, truth: CocoTruth) -> None:
    """Whether the coordinates are x, y in pixels of the picture. Raises HapError with what they look like."""
    points = poses.keypoints[..., :2]
    if not len(points):
        return
    if np.abs(points).max() <= 1:
        raise HapError(f"{path}: keypoints look like shares of the picture: multiply by its width and height")
    swapped = points[..., ::-1]
    size = records.sizes[poses.image]
    known = (size > 0).all(1)
    outside, outside_swapped = (_outside(p[known], size[known]) for p in (points, swapped))
    near, near_swapped = (_nearness(p, poses.image, truth) for p in (points, swapped))
    if (outside > 0.05 and outside_swapped < outside / 10) or near_swapped > max(0.2, 3 * near):
        raise HapError(
            f"{path}: keypoints look like y, x: exchanged they fit the pictures, as they are "
            f"{outside:.0%} of the poses leave theirs by far; write x, y"
        )


def _outside(points: np.ndarray, size: np.ndarray) -> float:
    """Share of the poses with a joint far outside of the picture."""
    if not len(points):
        return 0.0
    margin, size = FAR * size[:, None], size[:, None]
    return float(((points < -margin) | (points > size + margin)).any((1, 2)).mean())


def _nearness(points: np.ndarray, image: np.ndarray, truth: CocoTruth) -> float:
    """Mean over the people in these pictures of the OKS of the best pose."""
    sigmas = truth.skeleton.sigmas or (PAIRING_SIGMA,) * len(truth.skeleton.joints)
    people = np.flatnonzero(counted(truth))
    images = len(truth.image_ids)
    best = [
        oks(points[rows], truth.joints[others], truth.area[others], sigmas).max(0)
        for rows, places in zip(by_image(image, images), by_image(truth.image[people], images), strict=True)
        if len(rows) and len(others := people[places])
    ]
    return float(np.concatenate(best).mean()) if best else 0.0


# --- MPII ---------------------------------------------------------------------------------------------------


def _read_mat(path: Path, truth: MpiiTruth) -> tuple[Poses, dict[str, Any]]:
    if path.suffix.lower() != ".mat":
        raise HapError(f"{path}: MPII is scored by pred.mat, with the variable preds (people, 16, 2)")
    content = read_mat(path)
    people, count = truth.labelled.shape
    preds = content.get("preds")
    if not isinstance(preds, np.ndarray):
        raise HapError(
            f"{path} has no array preds; it has {', '.join(map(printable, content)) or 'no variables'}"
        )
    if preds.shape[1:] != (count, 2):
        raise HapError(
            f"{path}: preds has the shape {preds.shape}: (people, {count}, 2), x and y of each joint in pixels from 1"
        )
    if len(preds) != people:
        raise HapError(
            f"{path} has poses of {len(preds):,} people, the validation set has {people:,}: one for each, in the order "
            "of its file (the test set's truth is not public)"
        )
    preds = preds.astype(np.float64)
    finite = np.isfinite(preds).all((1, 2))
    if (wrong := ~finite & ~np.isnan(preds).all((1, 2))).any():
        raise HapError(
            f"{path}: {int(wrong.sum()):,} poses are no finite numbers, the first is that of person "
            f"{int(np.flatnonzero(wrong)[0])} (counted from 0)"
        )
    rows = np.flatnonzero(finite)
    if missing := people - len(rows):
        log.warning(
            "%s: %s of %s people have no pose; their joints are wrong", path, f"{missing:,}", f"{people:,}"
        )

    def poses(points: np.ndarray) -> Poses:
        keypoints = np.concatenate([points - 1, np.ones_like(points[..., :1])], axis=2).astype(np.float32)
        return Poses(rows, keypoints, np.ones(len(rows)), np.full(len(rows), -1))

    given = poses(preds[rows])
    right, swapped = (pckh(mpii_errors(truth, p))["PCKh"] for p in (given, poses(preds[rows][..., ::-1])))
    if swapped > max(0.2, 3 * right):
        raise HapError(
            f"{path}: preds looks like y, x: PCKh is {right:.1%}, exchanged {swapped:.1%}; write x, y"
        )
    return given, {"poses": f"of {len(rows):,} of {people:,} people"}
