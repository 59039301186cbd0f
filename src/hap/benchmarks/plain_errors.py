"""Mistakes of a 2D pose estimator the straightforward way: the rules written out, the points of every kind of error
first. What `hap.data.pose_errors` does is measured against it, and has the same distribution."""

import numpy as np

from hap.data.pose_errors import GOOD, INVERSION, JITTER, MISS, SWAP

SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
PAIRS = ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16))
NUMBER = 500  # of points


def chances(joint: int, labelled: int, overlap: int) -> list[float]:
    """Of each kind, in their order: the tables, one joint at a time."""
    group = 0 if joint in (0, 13, 14, 15, 16) else 2 if joint in (11, 12) else 1
    jitter = ((0.15, 0.20, 0.25) if labelled <= 10 else (0.10, 0.15, 0.20))[group]
    group = 0 if joint <= 4 else 1 if joint in (5, 6, 15, 16) else 2
    if labelled <= 5:
        miss = (0.15, 0.20, 0.25)[group]
    elif labelled <= 10:
        miss = (0.10, 0.13, 0.15)[group]
    else:
        miss = (0.02, 0.05, 0.10)[group]
    group = 0 if joint <= 4 else 1 if joint <= 10 else 2
    inversion = (0.01, 0.03, 0.06)[group]
    if (labelled <= 10 and overlap > 0) or (labelled <= 15 and overlap >= 3):
        swap = (0.02, 0.15, 0.10)[group]
    else:
        swap = (0.01, 0.06, 0.03)[group]
    return [jitter, miss, inversion, swap, 1 - jitter - miss - inversion - swap]


def points(
    j: int,
    moved: np.ndarray,
    joints: np.ndarray,
    near: np.ndarray,
    area: float,
    rng: np.random.Generator,
    number: int = NUMBER,
) -> dict[int, np.ndarray]:
    """The points (P, 2) that are left of each kind, for joint j of a person (17, 3) whose first j joints are moved."""
    d10, d50, d85 = (np.sqrt(-2 * area * (2 * SIGMAS[j]) ** 2 * np.log(k)) for k in (0.1, 0.5, 0.85))
    partner = next((b if a == j else a for a, b in PAIRS if j in (a, b)), None)
    places = [moved[j, :2]] + [p[j, :2] for p in near if p[j, 2] > 0]
    inverse, paired = len(places), partner is not None and joints[partner, 2] > 0
    if paired:
        places.append(moved[partner, :2])
    if partner is not None:
        places += [p[partner, :2] for p in near if p[partner, 2] > 0]

    def free(source, low, high, count, rivals, limit=None):
        radius, angle = rng.uniform(low, high, count), rng.uniform(0, 2 * np.pi, count)
        points = places[source] + radius[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
        keep = np.ones(count, bool)
        for rival in set(rivals) & set(range(len(places))) - {source}:
            apart = np.sqrt(((points - places[rival]) ** 2).sum(1))
            keep &= apart > (radius if limit is None else limit)
        return points[keep]

    none, everyone = np.zeros((0, 2)), range(len(places))
    missed = [free(m, d50, d10, 4 * number, everyone, d50) for m in everyone]
    missed[1:] = [p[rng.integers(len(p), size=len(p) // 4)] if len(p) else p for p in missed[1:]]
    swapped = [free(s, 0, d50, number, (0, inverse)) for s in everyone if s not in (0, inverse)]
    return {
        JITTER: free(0, d85, d50, number, everyone),
        MISS: np.concatenate(missed),
        INVERSION: free(inverse, 0, d50, number, everyone) if paired else none,
        SWAP: np.concatenate([none, *swapped]),
        GOOD: free(0, 0, d85, number // 4, everyone),
    }


def perturb(
    joints: np.ndarray, near: np.ndarray, area: float, rng: np.random.Generator, number: int = NUMBER
) -> np.ndarray:
    """As `pose_errors.perturb`, in the official order: the points of every kind, then a kind, then a point."""
    moved, labelled = joints.copy(), int((joints[:, 2] > 0).sum())
    for j in range(17):
        left = points(j, moved, joints, near, area, rng, number)
        p = np.array([c * (len(left[k]) > 0) for k, c in enumerate(chances(j, labelled, len(near)))])
        moved[j] = 0
        if p.sum() > 0:
            drawn = left[rng.choice(5, p=p / p.sum())]
            moved[j] = *drawn[rng.integers(len(drawn))], 1
    return moved
