"""Ground truth in one form, whatever wrote its file, so that a perfect prediction scores 1."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hap.pose.skeletons import Skeleton


@dataclass(frozen=True, eq=False)
class CocoTruth:
    """People M in images I, to be scored by object keypoint similarity.

    Attributes:
        skeleton: K joints; without sigmas there is no AP.
        image_ids: as the annotation file writes them (I), numbers or text; below an image is known by its place here.
        files: names of the images (I).
        image: int64 (M,), each person's.
        box: float64 (M, 4), x, y, w, h in pixels.
        area: float64 (M,), pixels, above 0: the file's (COCO's is that of the segment), or 0.53 w h.
        crowd: bool (M,): a region of many people, in which predictions are neither right nor wrong.
        joints: float64 (M, K, 3): x, y in pixels from 0, and 0 not labelled, 1 hidden, 2 visible.
        person_ids: the annotations', as the file writes them (M).
        category_id: of people in the file; results are written with it.
    """

    skeleton: Skeleton
    image_ids: tuple[int | str, ...]
    files: tuple[str, ...]
    image: np.ndarray
    box: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    joints: np.ndarray
    person_ids: tuple[int | str, ...]
    category_id: int = 1


@dataclass(frozen=True, eq=False)
class MpiiTruth:
    """One person for each record, in the order of the records, to be scored by PCKh.

    Attributes:
        joints: float64 (N, 16, 2), x and y in pixels **from 1**, as MPII counts.
        labelled: bool (N, 16).
        head_size: float64 (N,), 0.6 times the diagonal of the head box, in pixels.
    """

    skeleton: Skeleton
    joints: np.ndarray
    labelled: np.ndarray
    head_size: np.ndarray


Truth = CocoTruth | MpiiTruth


def arranged(truth: Truth, index: Sequence[int]) -> Truth:
    """The same people with their joints in another order: joint k is the former joint index[k]."""
    columns: dict[str, Any] = {"joints": truth.joints[:, index]}
    if isinstance(truth, MpiiTruth):
        columns["labelled"] = truth.labelled[:, index]
    return replace(truth, skeleton=truth.skeleton.arranged(index), **columns)
