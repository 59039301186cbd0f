"""COCO's keypoint scores, and AI Challenger's own, of poses in images.

Legend: P poses, M people, K joints; an image is known by its place in the truth. Scores are fractions.
"""

import logging
from collections.abc import Iterator

import numpy as np
from faster_coco_eval.core.coco import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster

from hap.errors import HapError
from hap.pose.oks import joint_similarity
from hap.pose.truth import CocoTruth

log = logging.getLogger(__name__)

NAMES = ("AP", "AP50", "AP75", "AP_medium", "AP_large", "AR", "AR50", "AR75", "AR_medium", "AR_large")
MAX_POSES = 20  # of one image that count, by score


def counted(truth: CocoTruth) -> np.ndarray:
    """The people who are to be found, bool (M,): labelled ones outside of crowds. Poses of the others are neither
    right nor wrong."""
    return ~truth.crowd & (truth.joints[..., 2] > 0).any(-1)


def coco_scores(
    truth: CocoTruth, image: np.ndarray, keypoints: np.ndarray, score: np.ndarray
) -> dict[str, float]:
    """The ten numbers of COCO's keypoint evaluation, and `people`, how many there are to be found.

    AP is the mean over OKS thresholds .50:.05:.95 of the precision at 101 recalls, AR the mean of the recall at the end
    of the list, with the 20 poses of the best scores in each image; medium people have an area of 32^2 to 96^2 pixels,
    large ones more. What is undefined, because nobody is of that size, is left out (COCO's own programs print -1).

    Args:
        image: int (P,).
        keypoints: (P, K, 2 or more), x, y in pixels from 0.
        score: (P,); of equal ones in an image the first comes first.

    Raises:
        HapError: there are no sigmas, or nobody is to be found.
    """
    if truth.skeleton.sigmas is None:
        count = len(truth.skeleton.joints)
        raise HapError(
            f"joints of {truth.skeleton.name}: without sigmas there is no OKS and no AP, and those of other joints "
            f"would make a wrong one: set data.reader.sigmas=[...], {count} numbers, one for each joint"
        )
    people = int(counted(truth).sum())
    if not people:
        raise HapError(
            f"none of {len(truth.image):,} people has a labelled joint outside of crowds: there is nothing to score"
        )
    numbers = _image_numbers(truth)
    images = [{"id": number} for number in sorted(numbers.tolist())]
    sides = {"images": images, "categories": [{"id": 1}]}
    true = COCO({**sides, "annotations": list(_people(truth, numbers))})
    said = COCO({**sides, "annotations": list(_poses(numbers[image], keypoints, score))})
    evaluation = COCOeval_faster(
        *(true, said, "keypoints"), print_function=log.debug, kpt_oks_sigmas=np.array(truth.skeleton.sigmas)
    )
    evaluation.params.maxDets = [MAX_POSES]
    evaluation.run()
    values = zip(NAMES, map(float, evaluation.stats), strict=True)
    return {name: value for name, value in values if value >= 0} | {"people": float(people)}


def _image_numbers(truth: CocoTruth) -> np.ndarray:
    """Each image's number from 1, in the order in which COCO's programs go through them: poses of equal scores in
    different images count in it."""
    ids = truth.image_ids
    order = (
        range(len(ids))
        if any(isinstance(i, str) for i in ids)
        else sorted(range(len(ids)), key=ids.__getitem__)
    )
    numbers = np.empty(len(ids), dtype=np.int64)
    numbers[list(order)] = np.arange(1, len(ids) + 1)
    return numbers


def _people(truth: CocoTruth, numbers: np.ndarray) -> Iterator[dict[str, object]]:
    columns = {
        "image_id": numbers[truth.image],
        "bbox": truth.box,
        "area": truth.area,
        "iscrowd": truth.crowd.astype(np.int64),
        "num_keypoints": (truth.joints[..., 2] > 0).sum(-1),
        "keypoints": truth.joints.reshape(len(truth.joints), -1),
    }
    return _rows(columns)


def _poses(number: np.ndarray, keypoints: np.ndarray, score: np.ndarray) -> Iterator[dict[str, object]]:
    """A pose's own area is that of the rectangle around its joints."""
    points = keypoints[..., :2].astype(np.float64)
    first, last = points.min(1), points.max(1)
    flat = len(points), 3 * points.shape[1]
    columns = {
        "image_id": number,
        "bbox": np.concatenate([first, last - first], axis=1),
        "area": (last - first).prod(1),
        "iscrowd": np.zeros(len(points), np.int64),
        "score": score.astype(np.float64),
        "keypoints": np.concatenate([points, np.ones_like(points[..., :1])], axis=2).reshape(flat),
    }
    return _rows(columns)


def _rows(columns: dict[str, np.ndarray]) -> Iterator[dict[str, object]]:
    """Numbered from 1: the evaluation takes 0 for none."""
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    for number, row in enumerate(values, 1):
        yield {"id": number, "category_id": 1, **dict(zip(columns, row, strict=True))}


def aic_score(truth: CocoTruth, image: np.ndarray, keypoints: np.ndarray) -> float:
    """AI Challenger's own score, from 0 to 1: the mean over OKS thresholds .50:.05:.95 of the people for whom some pose
    is nearer than that, divided by the sum over the images of people or poses, whichever are more.

    Here the area is that of the whole box, plus one, and only visible joints count, not hidden ones. Arguments as of
    `coco_scores`.
    """
    assert truth.skeleton.sigmas is not None
    visible = truth.joints[..., 2] == 2
    box_area = truth.box[:, 2] * truth.box[:, 3] + 1
    best = np.zeros(len(truth.image))
    images = len(truth.image_ids)
    poses_of, people_of = by_image(image, images), by_image(truth.image, images)
    for poses, people in zip(poses_of, people_of, strict=True):
        if len(poses) and len(people):
            of_joints = joint_similarity(
                *(keypoints[poses], truth.joints[people], box_area[people], truth.skeleton.sigmas)
            )
            near = (of_joints * visible[people]).sum(-1) / np.maximum(visible[people].sum(-1), 1)
            best[people] = near.max(0)
    most = sum(max(len(poses), len(people)) for poses, people in zip(poses_of, people_of, strict=True))
    thresholds = np.linspace(0.5, 0.95, 10)
    return float((best[:, None] > thresholds).sum(0).mean() / most)


def by_image(image: np.ndarray, images: int) -> list[np.ndarray]:
    """The rows of each image, in their order."""
    order = np.argsort(image, kind="stable")
    return np.split(order, np.searchsorted(image[order], np.arange(1, images)))
