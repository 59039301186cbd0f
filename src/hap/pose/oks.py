"""Object keypoint similarity: how near two poses are, from 0 to 1, measured by the size of the person.

    OKS = mean over joints k of exp(-d_k^2 / (2 (2 sigma_k)^2 area))

with distances d in pixels, an area in pixels and a tolerance sigma of each joint (COCO's keypoint evaluation). Against
the truth the joints are the labelled ones and the area the person's; between two predictions, of which neither is the
truth, all joints count and the area is the mean of the two crops'.

Legend: P poses, M people, K joints; keypoints are x, y in pixels of the image, and may have further columns.
"""

from collections.abc import Sequence

import numpy as np

EPS = np.spacing(1.0)  # added to areas, as COCO does


def similarity(squared: np.ndarray, area: np.ndarray, sigmas: Sequence[float]) -> np.ndarray:
    """Of joints at squared distances (..., K) in pixels, for areas that broadcast against them: float64, 0 to 1."""
    return np.exp(-squared / (2 * (2 * np.asarray(sigmas)) ** 2 * (area + EPS)))


def joint_similarity(
    keypoints: np.ndarray, joints: np.ndarray, area: np.ndarray, sigmas: Sequence[float]
) -> np.ndarray:
    """Of each joint of each pose and person, float64 (P, M, K); only those of labelled joints mean something.

    Args:
        keypoints: (P, K, 2 or more).
        joints: of the truth (M, K, 2 or more).
        area: of the people (M,).
        sigmas: (K,).
    """
    apart = keypoints[:, None, :, :2].astype(np.float64) - joints[None, :, :, :2]
    return similarity((apart**2).sum(-1), area[:, None], sigmas)


def oks(keypoints: np.ndarray, joints: np.ndarray, area: np.ndarray, sigmas: Sequence[float]) -> np.ndarray:
    """Of each pose to each person, float64 (P, M): the mean over the labelled joints, 0 of a person without any.

    Args:
        keypoints: (P, K, 2 or more).
        joints: (M, K, 3): x, y, and above 0 where labelled.
        area: (M,).
        sigmas: (K,).
    """
    labelled = joints[..., 2] > 0
    near = joint_similarity(keypoints, joints, area, sigmas)
    return (near * labelled).sum(-1) / np.maximum(labelled.sum(-1), 1)


def oks_between(
    pose: np.ndarray, others: np.ndarray, area: float, areas: np.ndarray, sigmas: Sequence[float]
) -> np.ndarray:
    """Of one predicted pose (K, 2 or more) to others (P, K, 2 or more), float32 (P,). Areas are those of the crops."""
    squared = ((others[..., :2] - pose[..., :2]) ** 2).sum(-1)
    return similarity(squared, ((areas + area) / 2)[:, None], sigmas).mean(-1).astype(np.float32)


def oks_nms(
    keypoints: np.ndarray, score: np.ndarray, area: np.ndarray, sigmas: Sequence[float], threshold: float
) -> np.ndarray:
    """Which of the poses of one image to keep, the best score first: those that are not nearer than the threshold to
    one with a better score that is kept. Of equal scores the later one comes first, as in the official code.

    Args:
        keypoints: (P, K, 2 or more).
        score: (P,).
        area: of the crops (P,).
        sigmas: (K,).
        threshold: OKS from 0 to 1; an OKS of exactly this much is kept.
    """
    order = np.argsort(score, kind="stable")[::-1]
    kept = []
    while len(order):
        first, order = order[0], order[1:]
        kept.append(first)
        near = oks_between(keypoints[first], keypoints[order], area[first], area[order], sigmas)
        order = order[near <= np.float32(threshold)]
    return np.array(kept, dtype=np.int64)
