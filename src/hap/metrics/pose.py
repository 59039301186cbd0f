"""How near predicted poses are to the true ones: OKS, AP and PCK of COCO-style sets, PCKh of MPII.

Legend: N crops, P poses, M people, Q of them that count, K joints. Keypoints are x, y in pixels of the image from 0,
and a score. All scores are fractions, also PCKh, which papers print in percent.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from hap.errors import HapError
from hap.metrics.coco import MAX_POSES, aic_score, by_image, coco_scores, counted
from hap.metrics.losses import sort_once
from hap.pose.oks import oks, oks_nms, similarity
from hap.pose.skeletons import AIC, PUBLISHED, of_names
from hap.pose.truth import CocoTruth, MpiiTruth, Truth

PAIRING_OKS = 0.5  # from which on a pose with a better score takes a person, as in COCO's evaluation
PAIRING_SIGMA = 0.07  # tells poses and people apart where there are no sigmas; in no score
GROUPS = {
    "head": (9,),
    "shoulder": (12, 13),
    "elbow": (11, 14),
    "wrist": (10, 15),
    "hip": (2, 3),
    "knee": (1, 4),
    "ankle": (0, 5),
}  # joints of MPII, as tables of results show them
UNCOUNTED = (6, 7)  # pelvis and thorax are not part of the mean; the upper neck is, though in no group


@dataclass(frozen=True, eq=False)
class Poses:
    """Predicted poses.

    Attributes:
        image: int64 (P,), the place of the image in a `CocoTruth`, of the person in an `MpiiTruth`.
        keypoints: float32 (P, K, 3).
        score: float64 (P,).
        index: int64 (P,), the record that each is of; -1 where it is from a file.
    """

    image: np.ndarray
    keypoints: np.ndarray
    score: np.ndarray
    index: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "Poses":
        return Poses(self.image[rows], self.keypoints[rows], self.score[rows], self.index[rows])


class Errors(NamedTuple):
    """Of the people that count.

    person: rows of the truth, int64 (Q,).
    pose: rows of the poses, -1 of people without one, int64 (Q,).
    labelled: bool (Q, K).
    error: float64 (Q, K), distance in sizes of the person (`Yardstick`); infinite without a pose.
    mirrored: float64 (Q, K), the same to the truth of the other side's joint; infinite where there is none.
    similarity: float64 (Q, K), OKS of each joint, 0 without a pose; None without sigmas.
    """

    person: np.ndarray
    pose: np.ndarray
    labelled: np.ndarray
    error: np.ndarray
    mirrored: np.ndarray
    similarity: np.ndarray | None

    def right(self, threshold: float) -> np.ndarray:
        """Labelled joints within a threshold, bool (Q, K)."""
        return self.labelled & (self.error <= threshold)


class Yardstick(NamedTuple):
    """Within how many sizes of the person a joint is right, wide and narrow, and what these scores are called."""

    wide: float
    narrow: float
    names: tuple[str, str]


# PCK has no one definition: by the longer side of the person's true box (Yang and Ramanan, 2013), as its name says.
BOX = Yardstick(0.2, 0.05, ("PCK_box@0.2", "PCK_box@0.05"))
# By the head (Andriluka et al., 2014), 0.6 times the diagonal of its box.
HEAD = Yardstick(0.5, 0.1, ("PCKh", "PCKh@0.1"))


def pose_score(keypoints: np.ndarray, box_score: np.ndarray, joint_threshold: float = 0.2) -> np.ndarray:
    """The score of the box times the mean score of the joints above the threshold, 0 if none is: float64 (P,)."""
    scores = keypoints[..., 2]
    good = scores > np.float32(joint_threshold)
    return box_score * np.where(good, scores, 0).sum(-1, dtype=np.float64) / np.maximum(good.sum(-1), 1)


def pair_people(truth: CocoTruth, poses: Poses) -> np.ndarray:
    """The pose of each person, int64 (M,), -1 of those without one or who do not count.

    First as COCO's evaluation does at OKS 0.5: in the order of their scores, each pose takes the most similar person
    that is free. Then people who are left get the most similar of the poses that are left, however poor: a joint of
    theirs may be right.
    """
    sigmas = truth.skeleton.sigmas or (PAIRING_SIGMA,) * len(truth.skeleton.joints)
    images, order = len(truth.image_ids), np.argsort(-poses.score, kind="stable")
    people = np.flatnonzero(counted(truth))
    pose_of = np.full(len(truth.image), -1)
    for rows, others in zip(
        by_image(poses.image[order], images), by_image(truth.image[people], images), strict=True
    ):
        rows, others = order[rows], people[others]
        if len(rows) and len(others):
            near = oks(poses.keypoints[rows], truth.joints[others], truth.area[others], sigmas)
            for row, person in _pairs(near):
                pose_of[others[person]] = rows[row]
    return pose_of


def _pairs(near: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pose and person; `near`, the OKS (P, M) with the best score first, is used up."""
    for row in range(len(near)):
        if near[row].max() >= PAIRING_OKS:
            person = int(near[row].argmax())
            yield row, person
            near[row], near[:, person] = -1, -1
    while near.max() >= 0:
        row, person = divmod(int(near.argmax()), near.shape[1])
        yield row, person
        near[row], near[:, person] = -1, -1


def coco_errors(truth: CocoTruth, poses: Poses) -> Errors:
    """Of labelled people outside of crowds, measured by the longer side of their boxes."""
    person = np.flatnonzero(counted(truth))
    pose = pair_people(truth, poses)[person]
    joints, labelled = truth.joints[person, :, :2], truth.joints[person, :, 2] > 0
    said = np.zeros_like(joints)
    said[pose >= 0] = poses.keypoints[pose[pose >= 0], :, :2]
    apart, mirrored = _distances(truth, pose, said, joints, labelled)
    size = truth.box[person, 2:].max(1, keepdims=True).clip(min=1)
    sigmas = truth.skeleton.sigmas
    near = None if sigmas is None else similarity(apart**2, truth.area[person, None], sigmas)
    return Errors(person, pose, labelled, apart / size, mirrored / size, near)


def mpii_errors(truth: MpiiTruth, poses: Poses) -> Errors:
    """Of all people, measured by their heads. MPII counts pixels from 1."""
    pose = np.full(len(truth.joints), -1)
    pose[poses.image] = np.arange(len(poses.image))
    said = np.zeros(truth.joints.shape, np.float32)
    said[poses.image] = poses.keypoints[..., :2] + np.float32(1)
    apart, mirrored = _distances(truth, pose, said, truth.joints, truth.labelled)
    size = truth.head_size[:, None]
    return Errors(np.arange(len(pose)), pose, truth.labelled, apart / size, mirrored / size, None)


def _distances(
    truth: Truth, pose: np.ndarray, said: np.ndarray, joints: np.ndarray, labelled: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """In pixels, to the joint and to that of the other side; infinite where there is none, or no pose."""
    mirror = truth.skeleton.flip_index
    known = labelled & (pose >= 0)[:, None]
    sided = known & labelled[:, mirror] & (mirror != np.arange(len(mirror)))
    own, other = (np.linalg.norm(said - target, axis=-1) for target in (joints, joints[:, mirror]))
    return np.where(known, own, np.inf), np.where(sided, other, np.inf)


def _check(labelled: np.ndarray) -> None:
    if not labelled.any():
        raise HapError("nobody has a labelled joint outside of crowds: there is nothing to score")


def pck(errors: Errors) -> dict[str, float]:
    """Share of the labelled joints within 0.2 and 0.05 of the longer side of the person's box, over all joints of all
    people; joints of people without a pose are wrong. Raises HapError where nobody is labelled."""
    _check(errors.labelled)
    wide, narrow = (errors.right(threshold).sum() / errors.labelled.sum() for threshold in BOX[:2])
    return dict(zip(BOX.names, (float(wide), float(narrow)), strict=True))


def pckh(errors: Errors) -> dict[str, float]:
    """`PCKh`, the share of the labelled joints, pelvis and thorax left out, within half a head of the truth;
    `PCKh@0.1`, within a tenth; and means of the two sides by group of joints, at half a head. Raises HapError where
    nobody is labelled."""
    mean = np.setdiff1d(np.arange(errors.labelled.shape[1]), UNCOUNTED)
    _check(errors.labelled[:, mean])
    labels = errors.labelled.sum(0)
    result = {
        name: float(errors.right(threshold)[:, mean].sum() / labels[mean].sum())
        for name, threshold in zip(HEAD.names, HEAD[:2], strict=True)
    }
    right = errors.right(HEAD.wide).sum(0)
    return result | {
        f"PCKh_{group}": float((right[list(joints)] / labels[list(joints)]).mean())
        for group, joints in GROUPS.items()
        if labels[list(joints)].all()  # else it is undefined
    }


class PoseMetric(Metric):
    """The scores of a split, each crop counted once: the same on any number of processes and for any evaluation batch.

    People of a `CocoTruth` get AP and PCK: a pose's score is that of its box times that of its joints; of poses that
    are almost the same one is kept. Those of an `MpiiTruth` get PCKh.

    Args:
        nms_threshold: of two poses of an image with a greater OKS, that with the lower score is dropped; 1 keeps all.
        joint_threshold: above it the score of a joint counts in that of its pose.
        kwargs: of `torchmetrics.Metric`.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    # The crops: image, score, scale and truth of hap.data.pose.PoseRecords, set by the task. Images have the same
    # places in both.
    records: Any
    keypoints: list[Tensor]
    index: list[Tensor]

    def __init__(self, nms_threshold: float = 0.9, joint_threshold: float = 0.2, **kwargs: Any):
        super().__init__(**kwargs)
        for name, value in (("nms_threshold", nms_threshold), ("joint_threshold", joint_threshold)):
            if not 0 <= value <= 1:
                raise HapError(f"{name}={value}: from 0 to 1")
        self.nms_threshold, self.joint_threshold = nms_threshold, joint_threshold
        self.records = None
        for name in ("keypoints", "index"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.given: Poses | None = None
        self._scored: tuple[Poses, Errors] | None = None

    def update(self, keypoints: Tensor, index: Tensor) -> None:
        """Add N crops.

        Args:
            keypoints: (N, K, 3), x, y in pixels of the image from 0, and a score; kept in float32.
            index: integers (N,), position in the records.
        """
        self.keypoints.append(keypoints.detach().float())
        self.index.append(index.to(keypoints.device))

    def give(self, poses: Poses) -> None:
        """Score these poses of somebody's as they are, in place of what `update` collects."""
        self.given = poses
        self.update(torch.from_numpy(poses.keypoints), torch.arange(len(poses.image)))

    def protocol(self) -> dict[str, Any]:
        """What has to be known of the scores to compare them."""
        truth = self.records.truth
        if isinstance(truth, MpiiTruth):
            return {
                "PCKh": "in sizes of the head, 0.6 times the diagonal of its box; without pelvis and thorax"
            }
        sigmas = truth.skeleton.sigmas
        scoring = {
            "score": f"of the box times the mean of the joints above {self.joint_threshold:g}",
            "oks_nms": self.nms_threshold if sigmas is not None else "none: there are no sigmas",
        }
        given = {"score": "of the file", "oks_nms": "none: the poses are scored as they are in the file"}
        return {
            "sigmas": truth.skeleton.name
            if truth.skeleton.name in PUBLISHED
            else list(sigmas or ()) or "none, so no AP",
            **(scoring if self.given is None else given),
            "poses_per_image": f"at most {MAX_POSES} in AP and AR",
            "PCK_box": "in sizes of the person, the longer side of the true box; people without a pose are wrong",
        }

    def compute(self) -> dict[str, float]:
        """Of a `CocoTruth`: the numbers of `coco_scores` where there are sigmas, of `pck`, and `poses`, how many were
        scored; `AIC_score` for the joints of AI Challenger. Of an `MpiiTruth`: those of `pckh`, and `people`.
        `missing` counts the crops that were not run, if there are any: whose people count as not found.

        Raises:
            HapError: there are no poses, or one is not finite; nobody is labelled.
        """
        truth = self.records.truth
        poses = self._collected() if self.given is None else self.given
        if isinstance(truth, MpiiTruth):
            errors = mpii_errors(truth, poses)
            result = pckh(errors) | {"people": float(len(errors.person))}
        else:
            errors = coco_errors(truth, poses)
            columns = poses.image, poses.keypoints, poses.score
            result = coco_scores(truth, *columns) if truth.skeleton.sigmas is not None else {}
            result |= pck(errors) | {"people": float(len(errors.person)), "poses": float(len(poses.image))}
            if truth.skeleton.joints == AIC.joints:
                result["AIC_score"] = aic_score(truth, *columns[:2])
        if self.given is None and (missing := len(self.records) - len(self._run)):
            result["missing"] = float(missing)
        self._scored = poses, errors
        return result

    def _collected(self) -> Poses:
        if len(self.index) == 0:
            raise HapError("no crops to evaluate: none were run through the model")
        order, kept = sort_once(dim_zero_cat(self.index))
        index = dim_zero_cat(self.index)[order[kept]].cpu().numpy()
        keypoints = dim_zero_cat(self.keypoints)[order[kept]].cpu().numpy()
        self._run = index
        if (wrong := ~np.isfinite(keypoints).all((1, 2))).any():
            raise HapError(
                f"{int(wrong.sum())} poses are no finite numbers, the first is that of crop {index[wrong][0]} "
                "(counted from 0)"
            )
        records, truth = self.records, self.records.truth
        if isinstance(truth, MpiiTruth):
            return Poses(index, keypoints, np.ones(len(index)), index)
        score = pose_score(keypoints, records.score[index], self.joint_threshold)
        poses = Poses(records.image[index], keypoints, score, index)
        if truth.skeleton.sigmas is None:  # without OKS, so without repeats told by it
            return poses
        area = (200 * records.scale[index]).prod(1)
        kept_rows = [
            rows[oks_nms(keypoints[rows], score[rows], area[rows], truth.skeleton.sigmas, self.nms_threshold)]
            for rows in by_image(poses.image, len(truth.image_ids))
        ]
        return poses[np.concatenate(kept_rows)]

    def scored(self) -> tuple[Poses, Errors]:
        """What the last `compute` scored, of all processes, image by image, the best score first."""
        if self._scored is None:
            raise RuntimeError("call compute() first")
        return self._scored

    def per_joint(self) -> list[dict[str, str | int | float]]:
        """A row for each joint, of the last `compute`: `joint`; `labelled`, people in whom it is; its two PCK; with
        sigmas `OKS`, the mean of the joint alone, and `AP` of the joint alone; `left_right`, the share of its errors at
        the narrow threshold that lie within that of the other side's joint. What is undefined is NaN."""
        poses, errors = self.scored()
        truth = self.records.truth
        stick = HEAD if isinstance(truth, MpiiTruth) else BOX
        rows = []
        for k, joint in enumerate(truth.skeleton.joints):
            labelled = errors.labelled[:, k]
            wrong = labelled & ~errors.right(stick.narrow)[:, k]
            row: dict[str, str | int | float] = {"joint": joint, "labelled": int(labelled.sum())}
            for name, threshold in zip(stick.names, stick[:2], strict=True):
                row[name] = _mean(errors.right(threshold)[labelled, k])
            if errors.similarity is not None:
                row["OKS"] = _mean(errors.similarity[labelled, k])
                row["AP"] = joint_ap(truth, poses, k)
            row["left_right"] = _mean(errors.mirrored[wrong, k] <= stick.narrow)
            rows.append(row)
        return rows

    def ranked_people(self, n: int, best: bool) -> list[tuple[int, int, float]]:
        """The people who were found best or worst, of the last `compute`, each with a pose: the row of the pose (see
        `scored`), that of the truth, and the OKS; without OKS the share of joints within the wide threshold, of equals
        the one with the smaller mean error first. People without a pose are not among them."""
        _, errors = self.scored()
        found = np.flatnonzero(errors.pose >= 0)
        labelled = errors.labelled[found]
        stick = HEAD if isinstance(self.records.truth, MpiiTruth) else BOX
        near = errors.right(stick.wide)[found] if errors.similarity is None else errors.similarity[found]
        labels = np.maximum(labelled.sum(1), 1)
        value = np.where(labelled, near, 0).sum(1) / labels
        error = np.where(labelled, errors.error[found], 0).sum(1) / labels
        order = np.lexsort((error, -value))[:: 1 if best else -1]
        order = order[labelled[order].any(1)][:n]
        columns = errors.pose[found[order]], errors.person[found[order]], value[order]
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def reset(self) -> None:
        super().reset()
        self.given, self._scored = None, None


def joint_ap(truth: CocoTruth, poses: Poses, joint: int) -> float:
    """COCO's AP as if people had this joint alone; NaN if nobody has it labelled."""
    skeleton = truth.skeleton
    assert skeleton.sigmas is not None
    alone = replace(
        truth,
        skeleton=of_names([skeleton.joints[joint]], (), [skeleton.sigmas[joint]]),
        joints=truth.joints[:, [joint]],
    )
    if not counted(alone).any():
        return math.nan
    return coco_scores(alone, poses.image, poses.keypoints[:, [joint]], poses.score)["AP"]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan
