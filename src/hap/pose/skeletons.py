"""Joint sets: names, mirrored pairs, tolerances and the lines to draw, each with its source."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from hap.errors import HapError, printable

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_A-Za-z]+")


@dataclass(frozen=True)
class Skeleton:
    """A set of K joints.

    Args:
        joints: their names, in the order of the columns of keypoints and of the channels of a network.
        flip_pairs: indices of joints that a mirror swaps.
        upper_body: joints of the upper half, for the half-body augmentation; empty for none.
        sigmas: per joint, of the object keypoint similarity (the variance is (2 sigma)^2 times the area of the
            person); None where nobody measured them: then there is no AP.
        links: pairs of joints to draw a line between.
        name: how messages call it.
        told: whether anybody said, or the names say, what a mirror image does.

    Raises:
        HapError: names that are not different, pairs that are no pairs, sigmas of another number.
    """

    joints: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...] = ()
    upper_body: tuple[int, ...] = ()
    sigmas: tuple[float, ...] | None = None
    links: tuple[tuple[int, int], ...] = ()
    name: str = "own"
    told: bool = True

    def __post_init__(self) -> None:
        count = len(self.joints)
        if len(set(map(canonical, self.joints))) < count or not count:
            raise HapError(f"joints of {self.name}: {_listed(self.joints)}: names that are all different")
        swapped = [joint for pair in self.flip_pairs for joint in pair]
        if len(set(swapped)) < len(swapped) or any(len(pair) != 2 for pair in self.flip_pairs):
            raise HapError(
                f"flip_pairs of {self.name}: {[list(pair) for pair in self.flip_pairs]}: two joints each, and no "
                "joint twice"
            )
        for what in ("upper_body", "flip_pairs", "links"):
            if wrong := [i for i in np.ravel(getattr(self, what)).tolist() if not 0 <= i < count]:
                raise HapError(f"{what} of {self.name}: there is no joint {wrong[0]:g} of {count}, from 0")
        if self.sigmas is not None and (
            len(self.sigmas) != count or not all(s > 0 and np.isfinite(s) for s in self.sigmas)
        ):
            raise HapError(
                f"sigmas of {self.name}: {len(self.sigmas)} values for {count} joints; one above 0 for each"
            )

    @cached_property
    def flip_index(self) -> np.ndarray:
        """The joint that each becomes in a mirror, (K,)."""
        index = np.arange(len(self.joints))
        for a, b in self.flip_pairs:
            index[[a, b]] = b, a
        return index

    @cached_property
    def unpaired(self) -> tuple[str, ...]:
        """Joints whose names hint at a side and that no pair mirrors: then nothing may be flipped."""
        paired = {joint for pair in self.flip_pairs for joint in pair}
        return tuple(
            name for i, name in enumerate(self.joints) if i not in paired and side_of(name) is not None
        )

    def check_flip(self) -> None:
        """Raises HapError where a mirror image would put left joints on the right."""
        off = "or switch mirroring off: task.flip_test=false data.transforms.train.flip_prob=0"
        if self.unpaired:
            raise HapError(
                f"joints of {self.name}: {_listed(self.unpaired)} have a side in their names and no partner: declare "
                f"data.reader.flip_pairs=[[NAME,NAME],...], {off}"
            )
        if not self.told:
            raise HapError(
                f"joints of {self.name}: {_listed(self.joints[:4])}{', ...' if len(self.joints) > 4 else ''}: their "
                "names do not say which ones a mirror image exchanges: declare "
                f"data.reader.flip_pairs=[[NAME,NAME],...] ([]: none), {off}"
            )

    def mapped(self, names: Sequence[str], where: str) -> np.ndarray:
        """For each joint its place among these names, (K,): spelling of letters, spaces and signs is free.

        Raises:
            HapError: other joints, with those that are missing and those that are new.
        """
        place = {canonical(name): i for i, name in enumerate(names)}
        own = [canonical(name) for name in self.joints]
        missing = [name for name in self.joints if canonical(name) not in place]
        new = [name for name in names if canonical(name) not in own]
        if missing or new or len(place) < len(names):
            raise HapError(
                f"{where}: its joints are not those of {self.name}: "
                f"missing {_listed(missing) or 'none'}; new {_listed(new) or 'none'}"
            )
        return np.array([place[name] for name in own])

    def arranged(self, index: Sequence[int]) -> "Skeleton":
        """The same joints in another order: joint k is the former joint index[k]."""
        place = np.argsort(index).tolist()

        def pairs(values: Any) -> tuple[Any, ...]:
            return tuple((place[a], place[b]) for a, b in values)

        return replace(
            self,
            joints=tuple(self.joints[i] for i in index),
            flip_pairs=pairs(self.flip_pairs),
            upper_body=tuple(place[i] for i in self.upper_body),
            sigmas=None if self.sigmas is None else tuple(self.sigmas[i] for i in index),
            links=pairs(self.links),
        )

    def labels(self) -> dict[str, list[str]]:
        """What a checkpoint keeps of it."""
        return {
            "joints": list(self.joints),
            "mirrored": [self.joints[i] for i in self.flip_index],
            "links": [f"{a}-{b}" for a, b in self.links],
        }


def canonical(name: str) -> str:
    """One spelling of a joint's name: lower case, words joined by _, a side first and written out."""
    words = [word.lower() for word in _WORDS.findall(str(name))] or [str(name)]
    for ends in (0, -1):
        if (side := {"l": "left", "r": "right"}.get(words[ends], words[ends])) in ("left", "right"):
            del words[ends]
            words.insert(0, side)
            break
    return "_".join(words)


def side_of(name: str) -> str | None:
    """`left` or `right` where the name says so."""
    first = canonical(name).split("_")[0]
    return first if first in ("left", "right") else None


def pairs_by_name(joints: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Joints of the same name but for the side: left_x and right_x, l_x and r_x, x_left and x_right."""
    place = {canonical(name): i for i, name in enumerate(joints)}
    return tuple(
        (i, place[partner])
        for name, i in place.items()
        if name.startswith("left_") and (partner := f"right_{name.removeprefix('left_')}") in place
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(printable(str(name)) for name in names)


def of_names(
    joints: Sequence[str],
    flip_pairs: Sequence[Sequence[str | int]] | None = None,
    sigmas: Sequence[float] | None = None,
    links: Sequence[Sequence[str | int]] = (),
    upper_body: Sequence[str | int] = (),
    name: str = "own",
) -> Skeleton:
    """A joint set of one's own; joints in pairs, links and the upper half by name or by index from 0.

    Args:
        flip_pairs: None finds the pairs by name; an empty list says that there are none.

    Raises:
        HapError: a name that is none of the joints, or what `Skeleton` refuses.
    """
    place = {canonical(joint): i for i, joint in enumerate(joints)}

    def index(joint: Any) -> int:
        if isinstance(joint, int):
            return joint
        if canonical(joint) not in place:
            raise HapError(f"skeleton of {name}: there is no joint {printable(str(joint))}")
        return place[canonical(joint)]

    def pairs(values: Any) -> tuple[Any, ...]:
        return tuple(tuple(map(index, pair)) for pair in values)

    if sigmas is not None and any(not isinstance(sigma, int | float) for sigma in sigmas):
        raise HapError(f"sigmas of {name}: one list of {len(joints)} numbers")
    found = pairs_by_name(joints) if flip_pairs is None else pairs(flip_pairs)
    return Skeleton(
        tuple(map(str, joints)),
        found,
        tuple(map(index, upper_body)),
        None if sigmas is None else tuple(map(float, sigmas)),
        pairs(links),
        name,
        told=bool(found) or flip_pairs is not None or len(joints) == 1,
    )


def of_labels(labels: Mapping[str, Sequence[str]]) -> Skeleton:
    """The joint set that a checkpoint keeps (`Skeleton.labels`); one of the published where it is that."""
    joints = tuple(labels["joints"])
    for known in PUBLISHED.values():
        if known.joints == joints:
            return known
    pairs = [
        (a, b) for a, b in zip(joints, labels["mirrored"], strict=True) if joints.index(a) < joints.index(b)
    ]
    return of_names(joints, pairs, links=[tuple(map(int, link.split("-"))) for link in labels["links"]])


def get_skeleton(skeleton: str | Mapping[str, Any]) -> Skeleton:
    """By name (coco, mpii, aic), or of the arguments of `of_names`."""
    if isinstance(skeleton, str):
        if skeleton not in PUBLISHED:
            raise HapError(
                f"skeleton={printable(skeleton)}: one of {', '.join(PUBLISHED)}, or {{joints: [...]}}"
            )
        return PUBLISHED[skeleton]
    try:
        return of_names(**skeleton)
    except TypeError as error:
        raise HapError(f"skeleton: {error}") from None


# Pairs, halves and sigmas of the three sets: configurations of the official code (ViTPose on mmpose); COCO's sigmas
# are those of its evaluation, AIC's those of mmpose from AI Challenger's. MPII's have no use: PCKh has none; its upper
# half is empty, as its recipe has no half-body augmentation.
COCO = of_names(
    (
        *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
        *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
        *("left_knee", "right_knee", "left_ankle", "right_ankle"),
    ),
    sigmas=(
        *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
        *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
    ),
    links=(
        *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8)),
        *((7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
    ),
    upper_body=range(11),
    name="coco",
)
MPII = of_names(
    (
        *("right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle"),
        *("pelvis", "thorax", "upper_neck", "head_top"),
        *("right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist"),
    ),
    links=(
        *((0, 1), (1, 2), (2, 6), (6, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9)),
        *((8, 12), (12, 11), (11, 10), (8, 13), (13, 14), (14, 15)),
    ),
    name="mpii",
)
AIC = of_names(
    (
        *("right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist"),
        *("right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
        *("head_top", "neck"),
    ),
    sigmas=(
        *(0.01388152, 0.01515228, 0.01057665, 0.01417709, 0.01497891, 0.01402144, 0.03909642),
        *(0.03686941, 0.01981803, 0.03843971, 0.03412318, 0.02415081, 0.01291456, 0.01236173),
    ),
    links=(
        *((2, 1), (1, 0), (0, 13), (13, 3), (3, 4), (4, 5), (8, 7), (7, 6), (6, 9), (9, 10), (10, 11)),
        *((12, 13), (0, 6), (3, 9)),
    ),
    upper_body=(0, 1, 2, 3, 4, 5, 12, 13),
    name="aic",
)
PUBLISHED = {skeleton.name: skeleton for skeleton in (COCO, MPII, AIC)}
