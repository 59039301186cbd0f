"""From annotations or detections to the people to crop."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hap.data.files import first_lines, read_json
from hap.data.pose import PoseRecords
from hap.data.pose_files import Annotation, clean_boxes
from hap.errors import HapError, printable
from hap.pose.geometry import box_to_region
from hap.pose.truth import CocoTruth

log = logging.getLogger(__name__)

Size = Sequence[int]
JITTER = 0.4  # of the side of a box, whose center moves by up to half of that


def of_people(
    annotation: Annotation,
    root: Path,
    size: Size,
    jitter: float = 0.0,
    seed: int = 0,
    truth: CocoTruth | None = None,
    drop_empty: bool = False,
) -> PoseRecords:
    """The annotated people who are no crowd, have a labelled joint and a box of which something lies in the image.

    Args:
        drop_empty: also those whose area is 0, as of COCO.
    """
    box, inside = clean_boxes(annotation)
    reasons = {
        "a crowd": annotation.crowd,
        "without a labelled joint": annotation.labelled == 0,
        "without a box in the image": ~inside,
        **({"of area 0": annotation.area <= 0} if drop_empty else {}),
    }
    keep = ~np.any(list(reasons.values()), axis=0)
    dropped = "; ".join(f"{mask.sum():,} {reason}" for reason, mask in reasons.items() if mask.any())
    log.info(
        "%s: %s people%s", annotation.file, f"{keep.sum():,}", f", left out {dropped}" if dropped else ""
    )
    if not keep.any():
        raise HapError(f"{annotation.file}: nobody to crop: {dropped}")
    rows = np.flatnonzero(keep)
    box = box[rows].astype(np.float32)
    center, scale = box_to_region(box, size)
    rng = np.random.default_rng(seed)
    moved = rng.random(len(rows)) < jitter
    shift = JITTER * (rng.random((len(rows), 2)) - 0.5) * box[:, 2:]
    joints = annotation.joints[rows].astype(np.float32)
    joints[..., 2] = joints[..., 2].clip(max=1)  # hidden ones are trained like visible ones
    return PoseRecords(
        root=root,
        files=annotation.files,
        sizes=annotation.sizes,
        image=annotation.image[rows],
        ids=[annotation.person_ids[row] for row in rows.tolist()],
        box=box,
        center=(center + moved[:, None] * shift).astype(np.float32),
        scale=scale,
        score=np.ones(len(rows), np.float32),
        joints=joints,
        skeleton=annotation.skeleton,
        truth=truth,
        protocol=f"{annotation.file.name}, {len(annotation.files):,} images, annotated boxes of {len(rows):,} people",
    )


def of_detections(
    path: Path, annotation: Annotation, truth: CocoTruth, root: Path, size: Size
) -> PoseRecords:
    """The boxes that a detector found in the images of an annotation; they are cropped as they are.

    Raises:
        HapError: boxes of images that the annotation does not know: the two are of different sets.
    """
    if not path.is_file():
        raise HapError(
            f"no file of detections: {path}; data.reader.boxes=truth evaluates on the annotated boxes (another, "
            "higher score), data.reader.detections=FILE names another file"
        )
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise HapError(f"{path} is no list of detections with image_id, category_id, bbox and score")
    found = [item for item in content if item.get("category_id", 1) == truth.category_id]
    place = {image_id: i for i, image_id in enumerate(truth.image_ids)}
    foreign = [item.get("image_id") for item in found if item.get("image_id") not in place]
    if foreign or not found:
        named = [f"image_id {image_id!r}" for image_id in dict.fromkeys(map(str, foreign))]
        raise HapError(
            f"{path}: {len(foreign):,} of {len(found):,} boxes are of images that {annotation.file} does not list: "
            f"a file for another set?{first_lines(named)}"
        )
    values = [[*(item.get("bbox") or [None] * 4), item.get("score")] for item in found]
    try:
        table = np.array(values, np.float64)
        wrong = ~np.isfinite(table).all(1)
    except (TypeError, ValueError):
        wrong = np.array([len(v) != 5 or not all(isinstance(x, int | float) for x in v) for v in values])
    if wrong.any():
        named = [printable(str(found[i]))[:120] for i in np.flatnonzero(wrong)]
        raise HapError(
            f"{path}: {wrong.sum():,} detections have no bbox of four numbers and a score{first_lines(named)}"
        )
    some = (table[:, 2:4] > 0).all(1)
    if not some.all():
        log.warning("%s: %s boxes of no area are left out", path, f"{(~some).sum():,}")
    image = np.array([place[item["image_id"]] for item in found])
    without = len(truth.files) - len(np.unique(image[some]))
    if without:
        log.warning("%s: %s of %s images have no box", path, f"{without:,}", f"{len(truth.files):,}")
    box, score = table[some, :4].astype(np.float32), table[some, 4].astype(np.float32)
    log.info(
        "%s: %s boxes, %.1f an image, lowest score %.3g",
        *(path, f"{len(box):,}", len(box) / len(truth.files), score.min()),
    )
    center, scale = box_to_region(box, size)
    return PoseRecords(
        root=root,
        files=annotation.files,
        sizes=annotation.sizes,
        image=image[some],
        ids=np.flatnonzero(some).tolist(),
        box=box,
        center=center,
        scale=scale,
        score=score,
        joints=np.zeros((len(box), len(truth.skeleton.joints), 3), np.float32),
        skeleton=annotation.skeleton,
        truth=truth,
        protocol=f"{annotation.file.name}, {len(annotation.files):,} images, {len(box):,} detected boxes of "
        f"{path.name}, lowest score {score.min():.3g}, {without:,} images without a box",
    )
