"""Mistakes of a 2D pose estimator, drawn onto true joints: a network that reads 2D poses learns to mistrust them.

After the statistics of PoseFix (Moon et al., CVPR 2019, section 3) as the official code draws them: a joint is a little
off (jitter), far off (miss), at its left or right partner (inversion), at another person (swap), or good. How far is
told by the object keypoint similarity there.
"""

import cmath
import math

import numpy as np

from hap.pose.skeletons import COCO

KINDS = JITTER, MISS, INVERSION, SWAP, GOOD = range(5)
SIMILARITIES = (0.1, 0.5, 0.85, 1.0)
# Of each kind: the ring that its points are in, as places in `SIMILARITIES`, and how many are drawn around a source.
RINGS = {JITTER: (2, 1, 500), MISS: (1, 0, 500), INVERSION: (3, 1, 500), SWAP: (3, 1, 500), GOOD: (3, 2, 125)}

# Columns of the tables below, for each of the 17 joints.
_OF_JITTER = np.array([0] + [1] * 10 + [2] * 2 + [0] * 4)  # nose, knees, ankles; face, arms; hips
_OF_MISS = np.array([0] * 5 + [1] * 2 + [2] * 8 + [1] * 2)  # face; shoulders, ankles; others
_OF_BODY = np.array([0] * 5 + [1] * 6 + [2] * 6)  # face; arms; legs


def chances(labelled: int, overlap: int) -> np.ndarray:
    """How probable each kind of error is for each joint, float64 (17, 5), in the order of `KINDS`.

    Args:
        labelled: joints of the person that are labelled.
        overlap: people who overlap with this one.
    """
    jitter = (0.15, 0.20, 0.25) if labelled <= 10 else (0.10, 0.15, 0.20)
    miss = (0.10, 0.13, 0.15) if labelled <= 10 else (0.02, 0.05, 0.10)
    miss = (0.15, 0.20, 0.25) if labelled <= 5 else miss
    crowded = (labelled <= 10 and overlap > 0) or (labelled <= 15 and overlap >= 3)
    swap = (0.02, 0.15, 0.10) if crowded else (0.01, 0.06, 0.03)
    inversion = (0.01, 0.03, 0.06)
    columns = ((jitter, _OF_JITTER), (miss, _OF_MISS), (inversion, _OF_BODY), (swap, _OF_BODY))
    errors = np.stack([np.array(values)[group] for values, group in columns], axis=1)
    return np.concatenate([errors, 1 - errors.sum(1, keepdims=True)], axis=1)


def distances(area: float) -> np.ndarray:
    """Pixels (17, 4) at which the similarity of each joint has fallen to each of `SIMILARITIES`.

    Args:
        area: of the person, pixels squared.
    """
    tolerance = 2 * np.array(COCO.sigmas)[:, None]
    return tolerance * np.sqrt(-2 * area * np.log(SIMILARITIES))


def perturb(joints: np.ndarray, near: np.ndarray, area: float, rng: np.random.Generator) -> np.ndarray:
    """The joints as an estimator might find them.

    Joints are met in their order: a right one sees where its left partner has gone to. One that is not labelled is
    moved like the others, around the place that it is given; it is the caller who knows that it is not there.

    Args:
        joints: (17, 3), COCO's: x, y in pixels, and above 0 where labelled.
        near: (P, 17, 3), the same of the people who overlap with this one.
        area: of the person's tight box, pixels squared.

    Returns:
        (17, 3) of the type of `joints`: x, y, 1; or 0, 0, 0 where no kind of error is possible.
    """
    labelled = joints[:, 2] > 0
    reach = distances(area).tolist()
    # The official code draws points of all kinds, then one kind by the chances of those that have points. Whether a
    # kind has any does not hang on the others, and in a race of exponential times the first of any few kinds is each
    # by its chance among them: so the order of the kinds comes first, and points are drawn of few.
    race = rng.standard_exponential((len(joints), len(KINDS))) / chances(int(labelled.sum()), len(near))
    places = (joints[:, 0] + 1j * joints[:, 1]).tolist()
    others = [(p[p[:, 2] > 0, :2] @ (1, 1j)).tolist() for p in near.swapaxes(0, 1)]
    result = np.zeros_like(joints)
    for joint, kinds in enumerate(race.argsort(axis=1).tolist()):
        partner = int(COCO.flip_index[joint])
        candidates, inverse = [places[joint], *others[joint]], 1 + len(others[joint])
        if paired := partner != joint and bool(labelled[partner]):
            candidates.append(places[partner])
        if partner != joint:
            candidates += others[partner]
        places[joint] = 0j
        for kind in kinds:
            if kind == INVERSION and not paired:
                continue
            if (point := _point(kind, candidates, inverse, reach[joint], rng)) is not None:
                places[joint], result[joint] = point, (point.real, point.imag, 1)
                break
    return result


def _point(
    kind: int, candidates: list[complex], inverse: int, reach: list[float], rng: np.random.Generator
) -> complex | None:
    """One of the points that make an error of this kind, x + iy; None where there is none.

    The official code draws points around each source (four times as many in a miss, of which it keeps a quarter
    around others than the joint itself) and takes any of those that are free. Here each point has a source of its
    own, and the first that is free is taken: the same but for a thousandth.

    Args:
        candidates: the joint, the same joint of others, its partner if that is labelled, the partner of others.
        inverse: place of the partner. Where it is not labelled another's may be there, which the official code then
            takes for it in a swap.
        reach: of the joint, see `distances`.
    """
    everyone = range(len(candidates))
    sources, rivals = [inverse if kind == INVERSION else 0], list(everyone)
    if kind == MISS:
        sources = [0, 0, 0, *everyone]
    elif kind == SWAP:
        sources = [i for i in everyone if i not in (0, inverse)]
        rivals = [i for i in everyone if i in (0, inverse)]
    first, last, number = RINGS[kind]
    low, high = reach[first], reach[last]
    for _ in range(number * len(sources)):
        which, far, turn = rng.random(3).tolist()
        source, radius = sources[int(which * len(sources))], low + far * (high - low)
        point = candidates[source] + cmath.rect(radius, 2 * math.pi * turn)
        limit = low if kind == MISS else radius
        if all(abs(point - candidates[i]) > limit for i in rivals if i != source):
            return point
    return None
