"""Scores of poses against worked values, the official evaluation, literal loops and another library."""

import contextlib
import io
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pycocotools.coco import COCO as OfficialCOCO
from pycocotools.cocoeval import COCOeval as OfficialEval

from hap.data.mat_file import read_mat
from hap.errors import HapError
from hap.metrics.coco import NAMES, aic_score, coco_scores
from hap.metrics.pose import PoseMetric, Poses, mpii_errors, pckh, pose_score
from hap.pose.oks import oks, oks_between, oks_nms
from hap.pose.skeletons import AIC, COCO, MPII, of_names
from hap.pose.truth import CocoTruth, MpiiTruth

SAMPLES = Path(os.environ.get("HAP_SAMPLES", "/nowhere"))
samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="HAP_SAMPLES is not set")


def truth_of(skeleton, people, crowd=(), area=None, images=None) -> CocoTruth:
    """People as (image, box, joints (K, 3))."""
    image, box, joints = (np.array(column) for column in zip(*people, strict=True))
    box = box.astype(np.float64)
    area = box[:, 2] * box[:, 3] * 0.53 if area is None else np.array(area, dtype=np.float64)
    ids = tuple(range(1, 2 + max(image))) if images is None else images
    return CocoTruth(
        skeleton,
        *(ids, tuple(f"{i}.jpg" for i in ids), image.astype(np.int64), box, area),
        np.isin(np.arange(len(image)), crowd),
        *(joints.astype(np.float64), tuple(range(1, len(image) + 1))),
    )


def coco_json(path, skeleton, area_factor=None) -> CocoTruth:
    """As the official evaluation reads it."""
    content = json.loads((SAMPLES / path).read_text())
    ids = [image["id"] for image in content["images"]]
    people = content["annotations"]
    box = np.array([person["bbox"] for person in people], dtype=np.float64)
    area = box[:, 2] * box[:, 3] * area_factor if area_factor else np.array([p["area"] for p in people])
    return CocoTruth(
        skeleton,
        tuple(ids),
        tuple(image["file_name"] for image in content["images"]),
        np.array([ids.index(person["image_id"]) for person in people]),
        *(box, area, np.zeros(len(people), bool)),
        np.array([person["keypoints"] for person in people], dtype=np.float64).reshape(len(people), -1, 3),
        tuple(person["id"] for person in people),
    )


def coco_sample() -> CocoTruth:
    return coco_json("coco/annotations/person_keypoints_val2017.json", COCO)


def aic_sample() -> CocoTruth:
    return coco_json("aic/annotations/aic_val.json", AIC, 0.53)


def shifted(truth: CocoTruth, pixels: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    kept = np.flatnonzero((truth.joints[..., 2] > 0).any(1))
    keypoints = truth.joints[kept].copy()
    keypoints[..., 2] = 1
    keypoints[..., 0] += pixels
    return truth.image[kept], keypoints, 1 - 0.01 * np.arange(len(kept))


def ten(result: dict[str, float]) -> list[float]:
    return [result.get(name, -1) for name in NAMES]


def perfect(truth: CocoTruth) -> PoseMetric:
    """A metric that has seen each person's own pose, with a box that is theirs."""
    people = len(truth.image)
    given = {
        "truth": truth,
        "image": truth.image,
        "score": np.ones(people, np.float32),
        "scale": (truth.box[:, 2:] * 1.25 / 200).astype(np.float32),
    }
    metric = PoseMetric(nms_threshold=1)  # two people may be the same but for joints that nobody labelled
    metric.records = Records(**given)
    center = (truth.box[:, :2] + truth.box[:, 2:] / 2)[:, None]
    keypoints = np.where(truth.joints[..., 2:] > 0, truth.joints[..., :2], center)
    keypoints = np.concatenate([keypoints, np.ones_like(keypoints[..., :1])], axis=2)
    metric.update(torch.from_numpy(keypoints), torch.arange(people))
    return metric


class Records(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.score)


def random_people(seed=0, people=60, images=12, joints=17, skeleton=COCO) -> CocoTruth:
    """Crowds, people without joints, of all sizes; several people in an image."""
    rng = np.random.default_rng(seed)
    box = np.concatenate([rng.uniform(0, 200, (people, 2)), rng.uniform(10, 300, (people, 2))], axis=1)
    xy = box[:, None, :2] + rng.uniform(0, 1, (people, joints, 2)) * box[:, None, 2:]
    visible = rng.integers(0, 3, (people, joints, 1)) * (rng.random((people, 1, 1)) > 0.15)
    rows = zip(
        rng.integers(0, images, people), box, np.concatenate([xy * (visible > 0), visible], 2), strict=True
    )
    return truth_of(skeleton, list(rows), crowd=np.flatnonzero(rng.random(people) < 0.1))


def random_poses(truth: CocoTruth, seed=1, repeats=3) -> Poses:
    """Some near, some far, some nowhere; scores with many equal ones."""
    rng = np.random.default_rng(seed)
    rows = np.tile(np.arange(len(truth.image)), repeats)
    size = np.sqrt(truth.area[rows])[:, None, None] * rng.choice([0.01, 0.05, 0.2, 2], (len(rows), 1, 1))
    keypoints = truth.joints[rows].copy()
    keypoints[..., :2] += rng.normal(size=keypoints[..., :2].shape) * size
    keypoints[..., 2] = rng.random(keypoints.shape[:2])
    score = rng.integers(1, 20, len(rows)) / 20
    return Poses(truth.image[rows], keypoints.astype(np.float32), score, np.arange(len(rows)))


# --- OKS ----------------------------------------------------------------------------------------------------

POSE = np.stack([100 + 5 * np.arange(17), 50 + 8 * np.arange(17), np.ones(17)], axis=1)


def moved(x: float, y: float = 0) -> np.ndarray:
    return (POSE + np.array([x, y, 0])).astype(np.float32)


def test_worked_values_of_oks():
    other = moved(3, -4)
    area = np.array([12_000.0])
    assert oks_between(moved(0), other[None], 10_000.0, area, COCO.sigmas)[0] == pytest.approx(
        0.88124126, abs=1e-7
    )
    true, labelled = POSE[None].copy(), POSE[None].copy()
    labelled[:, 5:, 2] = 0
    for joints, count, size, sigmas, value in (
        (true, 17, 10_000, COCO.sigmas, 0.87115495),
        (labelled, 17, 10_000, COCO.sigmas, 0.67851666),
        (true, 14, 10_000, AIC.sigmas, 0.40585173),
        (true, 14, 0.53 * 100 * 200, AIC.sigmas, 0.42172603),
    ):
        near = oks(other[None, :count], joints[:, :count], np.array([size]), sigmas)
        assert near[0, 0] == pytest.approx(value, abs=1e-8)


def test_one_joint_ten_pixels_off():
    near = oks(np.array([[[10.0, 0]]]), np.array([[[0.0, 0, 2]]]), np.array([10_000.0]), (0.05,))
    assert near[0, 0] == pytest.approx(0.606531, abs=1e-6)


def test_worked_values_of_nms():
    poses = np.stack([moved(x) for x in (0, 1, 12, 40)])
    area = np.array([40_000, 40_000, 40_000, 36_000], dtype=np.float32)
    score = np.array([0.9, 0.8, 0.95, 0.3])
    near = [oks_between(p, poses, a, area, COCO.sigmas) for p, a in zip(poses, area, strict=True)]
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    values = [0.9984897, 0.8260717, 0.3183368, 0.8488981, 0.3309508, 0.4895843]
    assert [near[i][j] for i, j in pairs] == pytest.approx(values, abs=1e-7)
    for threshold, kept in ((0.9, [2, 0, 3]), (0.7, [2, 3]), (0.5, [2, 3]), (1, [2, 0, 1, 3])):
        assert oks_nms(poses, score, area, COCO.sigmas, threshold).tolist() == kept
    near = [oks_between(p, poses[:, :14], 40_000, area, AIC.sigmas) for p in poses[:, :14]]
    assert (near[0][1], near[0][2]) == pytest.approx((0.9883295, 0.3127413), abs=1e-7)
    assert oks_nms(poses[:, :14], score, area, AIC.sigmas, 0.9).tolist() == [2, 0, 3]


def test_nms_of_equal_scores_of_one_pose_and_of_none():
    poses = np.stack([moved(x) for x in (0, 0, 300, 300)])
    area = np.full(4, 10_000.0)
    assert oks_nms(poses, np.ones(4), area, COCO.sigmas, 0.9).tolist() == [3, 1]
    assert oks_nms(poses[:1], np.ones(1), area[:1], COCO.sigmas, 0.9).tolist() == [0]
    assert oks_nms(poses[:0], np.ones(0), area[:0], COCO.sigmas, 0.9).tolist() == []


def test_nms_against_a_literal_loop():
    rng = np.random.default_rng(0)
    poses = (rng.uniform(0, 200, (1, 17, 2)) + rng.normal(0, 6, (40, 17, 2))).astype(np.float32)
    area, score = rng.uniform(2e3, 2e4, 40), rng.permutation(40) / 40
    kept = []
    for i in sorted(range(40), key=lambda i: -score[i]):
        for j in kept:
            total = 0.0
            for k in range(17):
                squared = float(((poses[i, k] - poses[j, k]) ** 2).sum())
                total += math.exp(-squared / (2 * (2 * COCO.sigmas[k]) ** 2 * (area[i] + area[j]) / 2))
            if total / 17 > 0.7:
                break
        else:
            kept.append(i)
    assert 1 < len(kept) < 40
    assert oks_nms(poses, score, area, COCO.sigmas, 0.7).tolist() == kept


def test_pose_score():
    keypoints = np.zeros((3, 4, 3), np.float32)
    keypoints[..., 2] = [[0.9, 0.5, 0.2, 0.1], [0.2, 0.2, 0.2, 0.2], [0.3, 0.3, 0.3, 0.3]]
    score = pose_score(keypoints, np.array([0.5, 1, 1], np.float32))
    assert score == pytest.approx([0.35, 0, 0.3], abs=1e-7)


# --- COCO and AIC -------------------------------------------------------------------------------------------


@samples
@pytest.mark.parametrize(
    ("pixels", "values"),
    [
        (0, [1] * 10),
        (2, [0.953218, 1, 1, 0.89538, 0.992739, 0.966667, 1, 1, 0.92, 1]),
        (5, [0.678983, 1, 0.655116, 0.469472, 0.826803, 0.741667, 1, 0.75, 0.54, 0.885714]),
        (10, [0.283348, 0.655116, 0.173267, 0.064521, 0.442923, 0.358333, 0.75, 0.25, 0.1, 0.542857]),
    ],
)
def test_coco_sample(pixels, values):
    result = coco_scores(truth := coco_sample(), *shifted(truth, pixels))
    assert ten(result) == pytest.approx(values, abs=1e-6)
    assert result["people"] == 12


@samples
@pytest.mark.parametrize(
    ("pixels", "values", "challenge"),
    [
        (0, [1, 1, 1, -1, 1, 1, 1, 1, -1, 1], 1),
        (2, [0.983278, 1, 1, -1, 0.983278, 0.988889, 1, 1, -1, 0.988889], 0.988889),
        (5, [0.610443, 1, 0.832783, -1, 0.610443, 0.677778, 1, 0.888889, -1, 0.677778], 0.811111),
        (10, [0.048625, 0.19802, 0, -1, 0.048625, 0.144444, 0.444444, 0, -1, 0.144444], 0.377778),
    ],
)
def test_aic_sample(pixels, values, challenge):
    image, keypoints, score = shifted(truth := aic_sample(), pixels)
    result = coco_scores(truth, image, keypoints, score)
    assert ten(result) == pytest.approx(values, abs=1e-6)
    assert "AP_medium" not in result  # nobody is of that size
    assert "AR_medium" not in result
    assert aic_score(truth, image, keypoints) == pytest.approx(challenge, abs=1e-6)


def stretched(truth: CocoTruth):
    """Detections of the sample with the joints of the person whose box is nearest, and their regions at 3:4."""
    path = SAMPLES / "coco/person_detection_results/COCO_val2017_detections_AP_H_56_person.json"
    found = json.loads(path.read_text())
    image = np.array([truth.image_ids.index(detection["image_id"]) for detection in found])
    box = np.array([detection["bbox"] for detection in found])
    keypoints = np.zeros((len(found), 17, 3), np.float32)
    for row, (x, y, w, h) in enumerate(box):
        people = [m for m in np.flatnonzero(truth.image == image[row]) if (truth.joints[m, :, 2] > 0).any()]
        overlap = []
        for gx, gy, gw, gh in truth.box[people]:
            across = max(0, min(x + w, gx + gw) - max(x, gx)) * max(0, min(y + h, gy + gh) - max(y, gy))
            overlap.append(across / (w * h + gw * gh - across))
        person = people[int(np.argmax(overlap))]
        gx, gy, gw, gh = truth.box[person]
        for k, (jx, jy, v) in enumerate(truth.joints[person]):
            to = (
                (x + (jx - gx) / gw * w, y + (jy - gy) / gh * h, 0.9)
                if v > 0
                else (x + w / 2, y + h / 2, 0.1)
            )
            keypoints[row, k] = to
    width = np.maximum(box[:, 2], 0.75 * box[:, 3])
    scale = (1.25 * np.stack([width, width / 0.75], axis=1) / 200).astype(np.float32)
    score = np.array([detection["score"] for detection in found], dtype=np.float32)
    return Records(truth=truth, image=image, score=score, scale=scale), keypoints


@samples
def test_coco_chain_on_detections():
    records, keypoints = stretched(coco_sample())
    values = {}
    for threshold in (0.9, 1, 0.5):
        metric = PoseMetric(threshold)
        metric.records = records
        metric.update(torch.from_numpy(keypoints), torch.arange(118))
        values[threshold] = metric.compute()
        poses, _ = metric.scored()
        ids = np.array(records.truth.image_ids)[poses.image]
        if threshold == 0.9:
            assert [int((ids == i).sum()) for i in (785, 197388, 40083, 196141)] == [18, 22, 18, 21]
    expected = [0.697215, 0.820968, 0.700534, 0.667327, 0.776486, 0.8, 0.916667, 0.833333, 0.68, 0.885714]
    assert ten(values[0.9]) == pytest.approx(expected, abs=1e-6)
    assert (values[1]["AP"], values[1]["AR"]) == pytest.approx((0.693382, 0.816667), abs=1e-6)
    assert values[0.5]["AP"] == pytest.approx(0.64771, abs=1e-6)
    assert [values[threshold]["poses"] for threshold in (0.9, 1, 0.5)] == [79, 118, 54]


@samples
def test_an_image_without_a_box_costs_recall():
    records, keypoints = stretched(coco_sample())
    rows = np.flatnonzero(np.array(records.truth.image_ids)[records.image] != 785)
    metric = PoseMetric()
    metric.records = Records(
        truth=records.truth, **{name: getattr(records, name)[rows] for name in ("image", "score", "scale")}
    )
    metric.update(torch.from_numpy(keypoints[rows]), torch.arange(96))
    result = metric.compute()
    poses, _ = metric.scored()
    assert len(poses.image) == 79 - 18
    assert result["AR"] < 0.8 - 0.05  # one person of twelve, who was found
    assert ten(result) == pytest.approx(official(records.truth, poses), abs=1e-12)


def official(truth: CocoTruth, poses: Poses) -> list[float]:
    people = [
        {
            "id": m + 1,
            "image_id": truth.image_ids[truth.image[m]],
            "category_id": 1,
            "bbox": truth.box[m].tolist(),
            "area": truth.area[m],
            "iscrowd": int(truth.crowd[m]),
            "num_keypoints": int((truth.joints[m, :, 2] > 0).sum()),
            "keypoints": truth.joints[m].ravel().tolist(),
        }
        for m in range(len(truth.image))
    ]
    results = [
        {
            "image_id": truth.image_ids[poses.image[p]],
            "category_id": 1,
            "keypoints": poses.keypoints[p].ravel().tolist(),
            "score": float(poses.score[p]),
        }
        for p in range(len(poses.image))
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        true = OfficialCOCO()
        true.dataset = {
            "images": [{"id": i} for i in truth.image_ids],
            "annotations": people,
            "categories": [{"id": 1}],
        }
        true.createIndex()
        evaluation = OfficialEval(true, true.loadRes(results), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(truth.skeleton.sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_the_official_evaluation_gives_the_same(seed):
    """Crowds, people without joints, more than 20 poses in an image, equal scores within and between images, and ids
    that are not in order."""
    rng = np.random.default_rng(seed)
    truth = random_people(seed, images=5)
    truth = replace(truth, image_ids=tuple(rng.permutation([7, 3, 900, 42, 1]).tolist()))
    poses = random_poses(truth, seed)
    assert np.bincount(poses.image).max() > 20
    result = coco_scores(truth, poses.image, poses.keypoints, poses.score)
    assert ten(result) == pytest.approx(official(truth, poses), abs=1e-12)


def test_area_of_other_sigmas_and_joints_as_the_official_evaluation():
    skeleton = of_names([f"p{i}" for i in range(5)], sigmas=[0.05, 0.1, 0.02, 0.3, 0.07])
    truth = random_people(9, joints=5, skeleton=skeleton)
    poses = random_poses(truth, 9)
    result = coco_scores(truth, poses.image, poses.keypoints, poses.score)
    assert ten(result) == pytest.approx(official(truth, poses), abs=1e-12)


def person(image=0, x=0.0, labelled=17, size=1.0):
    joints = POSE.copy() * [size, size, 2] + [x, 0, 0]
    joints[labelled:] = 0
    return image, (100 * size + x, 50 * size, 85 * size, 136 * size), joints


def test_people_without_joints_and_crowds_are_neither_right_nor_wrong():
    truth = truth_of(COCO, [person(), person(x=400, labelled=0), person(x=800)])
    keypoints = np.stack([moved(0), moved(400), moved(800)])
    result = coco_scores(truth, np.zeros(3, int), keypoints, np.array([0.8, 0.9, 0.7]))
    assert result["AP"] == result["AR"] == pytest.approx(1)
    assert result["people"] == 2
    truth = truth_of(COCO, [person(), person(x=400, labelled=0)], crowd=[1])
    keypoints = np.stack([moved(0), *(moved(400 + x) for x in range(5))])
    metric = PoseMetric()
    metric.records = Records(truth=truth)
    metric.give(Poses(np.zeros(6, int), keypoints, np.linspace(0.5, 1, 6), np.full(6, -1)))
    result = metric.compute()
    assert result["AP"] == pytest.approx(1)
    assert result["people"] == result["PCK_box@0.05"] == 1


def test_twenty_poses_of_an_image_count():
    truth = truth_of(COCO, [person(x=400.0 * i) for i in range(25)])
    keypoints = np.stack([moved(400 * i) for i in range(25)])
    result = coco_scores(truth, np.zeros(25, int), keypoints, np.linspace(1, 0.5, 25))
    assert result["AR"] == pytest.approx(20 / 25)
    assert result["AP"] == pytest.approx(81 / 101)  # recalls 0 to .80


@pytest.mark.parametrize("size", [0.3, 1, 5])
def test_a_size_that_nobody_has_is_left_out(size):
    truth = truth_of(COCO, [person(size=size)])
    keypoints = truth.joints.astype(np.float32)
    result = coco_scores(truth, truth.image, keypoints, np.ones(1))
    area = float(truth.area[0])
    assert ("AP_medium" in result) == ("AR_medium" in result) == (32**2 <= area <= 96**2)
    assert ("AP_large" in result) == ("AR_large" in result) == (area > 96**2)
    assert all(result[name] == pytest.approx(1) for name in NAMES if name in result)


def test_nobody_found():
    truth = truth_of(COCO, [person(), person(image=1)])
    none = Poses(np.zeros(0, int), np.zeros((0, 17, 3), np.float32), np.zeros(0), np.zeros(0, int))
    metric = PoseMetric()
    metric.records = Records(truth=truth)
    metric.give(none)
    result = metric.compute()
    assert result["AP"] == result["AR"] == result["PCK_box@0.2"] == result["poses"] == 0
    assert result["people"] == 2
    assert metric.ranked_people(3, best=True) == []
    assert [row["left_right"] for row in metric.per_joint()] == [0] * 17


def test_poses_in_images_without_people_and_people_without_a_pose():
    truth = truth_of(COCO, [person(), person(image=1)], images=(1, 2, 3))
    keypoints = np.stack([moved(0), moved(0)])
    result = coco_scores(truth, np.array([0, 2]), keypoints, np.array([0.5, 0.9]))
    assert result["AR"] == pytest.approx(0.5)
    assert result["AP"] == pytest.approx(51 / 101 * 0.5)  # one wrong pose with a better score


def test_nobody_to_find():
    for people in ([person(labelled=0)], [person(), person(x=400, labelled=0)]):
        truth = truth_of(COCO, people, crowd=[0])
        with pytest.raises(
            HapError, match=f"none of {len(people)} people has a labelled joint outside of crowds"
        ):
            coco_scores(truth, truth.image, truth.joints, np.ones(len(people)))
        own = replace(truth, skeleton=of_names([f"p{i}" for i in range(17)]))
        with pytest.raises(HapError, match="nobody has a labelled joint outside of crowds"):
            perfect(own).compute()
    nobody = replace(mpii_truth(), labelled=np.arange(16)[None] == 6)  # the pelvis is not counted
    with pytest.raises(HapError, match="nobody has a labelled joint"):
        mpii_metric(nobody, nobody.joints).compute()


# --- PCK, pairs, tables -------------------------------------------------------------------------------------


def test_perfect_poses():
    truth = random_people(3, images=1000)  # alone in their images: one joint alone may be another person's
    metric = perfect(truth)
    result = metric.compute()
    people = (~truth.crowd & (truth.joints[..., 2] > 0).any(1)).sum()
    assert result["people"] == people
    assert result["AP"] == result["PCK_box@0.2"] == result["PCK_box@0.05"] == pytest.approx(1)
    assert all(type(value) is float for value in result.values())
    for row, joint in zip(metric.per_joint(), COCO.joints, strict=True):
        assert row["joint"] == joint
        assert (row["OKS"], row["AP"], row["PCK_box@0.05"]) == pytest.approx((1, 1, 1))
        assert math.isnan(row["left_right"])  # there are no errors
    assert len(metric.ranked_people(1000, best=True)) == people


def test_without_sigmas_there_is_pck_alone():
    joints = tuple(f"p{i}" for i in range(17))
    truth = replace(random_people(3), skeleton=of_names(joints, name="grid"))
    metric = perfect(truth)
    result = metric.compute()
    assert set(result) == {"PCK_box@0.2", "PCK_box@0.05", "people", "poses"}
    assert result["PCK_box@0.05"] == 1
    assert result["poses"] == len(truth.image)
    assert set(metric.per_joint()[0]) == {"joint", "labelled", "PCK_box@0.2", "PCK_box@0.05", "left_right"}
    assert metric.ranked_people(1, best=False)[0][2] == 1
    assert metric.protocol()["sigmas"] == "none, so no AP"
    with pytest.raises(HapError, match=r"joints of grid: .*set data.reader.sigmas=\[...\], 17 numbers"):
        coco_scores(truth, truth.image, truth.joints, np.ones(len(truth.image)))


def test_pck_is_measured_by_the_longer_side_of_the_true_box():
    truth = truth_of(COCO, [person(), person(x=900.0), person(image=1, labelled=5)], images=(1, 2))
    keypoints = np.stack([moved(0), moved(900)])
    keypoints[0, :4, 0] += [0.19 * 136, 0.21 * 136, 0.049 * 136, 0.051 * 136]
    metric = PoseMetric()
    metric.records = Records(truth=truth)
    metric.give(Poses(np.zeros(2, int), keypoints, np.ones(2), np.full(2, -1)))
    result = metric.compute()
    labelled = 17 + 17 + 5  # the third has no pose: all wrong
    assert result["PCK_box@0.2"] == pytest.approx((labelled - 5 - 1) / labelled)
    assert result["PCK_box@0.05"] == pytest.approx((labelled - 5 - 3) / labelled)
    table = metric.per_joint()
    assert [row["labelled"] for row in table] == [3] * 5 + [2] * 12
    assert [row["PCK_box@0.2"] for row in table[:4]] == pytest.approx([2 / 3, 1 / 3, 2 / 3, 2 / 3])
    apart = (0.19 * 136) ** 2
    area = 0.53 * 85 * 136
    alone = math.exp(-apart / (2 * (2 * 0.026) ** 2 * area))
    assert table[0]["OKS"] == pytest.approx((1 + alone) / 3, rel=1e-5)
    assert table[8]["OKS"] == pytest.approx(1)


def test_left_taken_for_right():
    truth = truth_of(COCO, [person(x=500.0 * i) for i in range(4)])
    keypoints = truth.joints.astype(np.float32)
    keypoints[:2] = keypoints[:2, COCO.flip_index]  # two of the four are mirrored
    keypoints[2, 9] += 1000  # an error that is no confusion
    metric = PoseMetric()
    metric.records = Records(truth=truth)
    metric.give(Poses(truth.image, keypoints, np.ones(4), np.full(4, -1)))
    metric.compute()
    # The joints of a pair are 9.4 pixels from each other, more than 0.05 of the box: 6.8.
    table = {row["joint"]: row["left_right"] for row in metric.per_joint()}
    assert math.isnan(table.pop("nose"))
    assert table.pop("left_wrist") == pytest.approx(2 / 3)
    assert set(table.values()) == {1}


def test_each_person_has_one_pose_and_repeats_take_nobody():
    truth = truth_of(COCO, [person(), person(x=30.0), person(x=2000.0)])
    keypoints = np.stack([moved(1), moved(0), moved(31), moved(1300)])
    metric = PoseMetric()
    metric.records = Records(truth=truth)
    metric.give(Poses(np.zeros(4, int), keypoints, np.array([0.9, 0.8, 0.7, 0.1]), np.arange(4)))
    metric.compute()
    _, errors = metric.scored()
    assert errors.pose.tolist() == [
        0,
        2,
        1,
    ]  # the best score first; who is left gets the nearest that is left
    best = metric.ranked_people(2, best=True)
    assert [(pose, row) for pose, row, _ in best] == [(0, 0), (2, 1)]
    assert best[0][2] == pytest.approx(
        oks(keypoints[:1], truth.joints[:1], truth.area[:1], COCO.sigmas)[0, 0]
    )
    (worst,) = metric.ranked_people(1, best=False)
    assert worst[:2] == (1, 2)
    assert worst[2] == pytest.approx(0, abs=1e-6)


def test_ap_of_one_joint_against_the_official_evaluation():
    truth = random_people(5)
    poses = random_poses(truth, 5)
    metric = PoseMetric()
    metric.records = Records(truth=truth)
    metric.give(poses)
    metric.compute()
    table = metric.per_joint()
    for k in (0, 9, 16):
        skeleton = of_names(["it"], sigmas=[COCO.sigmas[k]])
        alone = replace(truth, skeleton=skeleton, joints=truth.joints[:, [k]])
        expected = official(alone, replace(poses, keypoints=poses.keypoints[:, [k]]))
        assert table[k]["AP"] == pytest.approx(expected[0], abs=1e-12)


# --- MPII ---------------------------------------------------------------------------------------------------


def mpii_sample() -> tuple[MpiiTruth, np.ndarray]:
    """The truth, and the joints of the json file, which are those of the predictions, from 0."""
    mat = read_mat(SAMPLES / "mpii/annotations/mpii_gt_val.mat")
    corners = mat["headboxes_src"]
    truth = MpiiTruth(
        MPII,
        mat["pos_gt_src"].transpose(2, 0, 1).astype(np.float64),
        mat["jnt_missing"].T == 0,
        0.6 * np.linalg.norm((corners[1] - corners[0]).astype(np.float64), axis=0),
    )
    people = json.loads((SAMPLES / "mpii/annotations/mpii_val.json").read_text())
    return truth, np.array([p["joints"] for p in people], dtype=np.float64) - 1


def mpii_metric(truth: MpiiTruth, joints: np.ndarray) -> PoseMetric:
    metric = PoseMetric()
    metric.records = Records(truth=truth, score=np.ones(len(joints)))
    keypoints = np.concatenate([joints, np.ones_like(joints[..., :1])], axis=2)
    metric.update(torch.from_numpy(keypoints), torch.arange(len(joints)))
    return metric


PCKH = ["PCKh_" + name for name in ("head", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")]


@samples
@pytest.mark.parametrize(
    ("pixels", "values"),
    [
        (0, [100] * 9),
        (5, [100] * 8 + [78.787879]),
        (25, [80, 80, 80, 80, 80, 80, 66.666667, 78.787879, 0]),
        (40, [60, 60, 60, 60, 60, 60, 66.666667, 60.606061, 0]),
        (50, [20, 20, 20, 20, 20, 20, 33.333333, 21.212121, 0]),
        (8 * np.arange(16), [0, 0, 0, 0, 90, 90, 83.333333, 34.848485, 9.090909]),
    ],
)
def test_mpii_sample(pixels, values):
    truth, joints = mpii_sample()
    assert truth.head_size == pytest.approx([117.96221, 44.04589, 78.48082, 81.22191, 84.36990], abs=1e-4)
    joints[..., 0] += pixels
    result = mpii_metric(truth, joints).compute()
    assert [100 * result[name] for name in (*PCKH, "PCKh", "PCKh@0.1")] == pytest.approx(values, abs=1e-5)
    assert result["people"] == 5
    assert "AP" not in result


def mpii_truth(people: int = 1) -> MpiiTruth:
    """Heads of 100 pixels, all joints labelled."""
    joints = np.random.default_rng(0).integers(100, 900, (people, 16, 2)).astype(np.float64)
    return MpiiTruth(MPII, joints, np.ones((people, 16), bool), np.full(people, 100.0))


def test_pixels_of_mpii_count_from_one_and_the_threshold_counts():
    truth = mpii_truth()
    for pixels, right in ((0, 1), (10, 1), (10.5, 0)):
        joints = truth.joints - 1
        joints[..., 0] += pixels
        assert mpii_metric(truth, joints).compute()["PCKh@0.1"] == right
    joints = truth.joints - 1
    joints[:, 6:8] += 500  # pelvis and thorax are not counted, the upper neck is
    assert mpii_metric(truth, joints).compute()["PCKh"] == 1
    joints[:, 8] += 500
    result = mpii_metric(truth, joints).compute()
    assert result["PCKh"] == pytest.approx(13 / 14)
    assert all(result[name] == 1 for name in PCKH)


def test_pckh_of_groups_weighs_sides_and_the_mean_weighs_joints():
    truth = mpii_truth(4)
    truth.labelled[1:, 0] = False  # three right ankles are not labelled
    joints = truth.joints - 1
    joints[0, 0] += 900  # the one that is, is wrong
    result = mpii_metric(truth, joints).compute()
    assert result["PCKh_ankle"] == pytest.approx((0 + 1) / 2)
    assert result["PCKh"] == pytest.approx((4 * 14 - 3 - 1) / (4 * 14 - 3))
    truth.labelled[:, 9] = False
    assert "PCKh_head" not in mpii_metric(truth, joints).compute()


def test_people_of_mpii_who_were_not_run_are_wrong():
    truth = mpii_truth(4)
    metric = mpii_metric(truth, truth.joints - 1)
    metric.reset()
    keypoints = np.concatenate([truth.joints - 1, np.ones((4, 16, 1))], axis=2)
    metric.update(torch.from_numpy(keypoints[[3, 0]]), torch.tensor([3, 0]))
    result = metric.compute()
    assert (result["PCKh"], result["people"], result["missing"]) == (0.5, 4, 2)
    assert metric.scored()[1].pose.tolist() == [0, -1, -1, 1]


def test_table_of_mpii():
    truth = mpii_truth(2)
    joints = truth.joints - 1
    joints[0] = joints[0, MPII.flip_index]
    metric = mpii_metric(truth, joints)
    metric.compute()
    table = {row["joint"]: row for row in metric.per_joint()}
    assert table["left_knee"]["PCKh"] == table["left_knee"]["PCKh@0.1"] == 0.5
    assert table["left_knee"]["left_right"] == 1
    assert table["pelvis"]["PCKh"] == 1
    assert metric.ranked_people(1, best=True) == [(1, 1, 1.0)]
    assert metric.ranked_people(1, best=False) == [(0, 0, pytest.approx(4 / 16))]


# --- the metric ---------------------------------------------------------------------------------------------


def collected(truth: CocoTruth, poses: Poses, rows) -> PoseMetric:
    """Of records whose boxes lie around the poses."""
    scale = np.ptp(poses.keypoints[..., :2], axis=1) * 1.25 / 200
    metric = PoseMetric()
    metric.records = Records(
        truth=truth, image=poses.image, score=poses.score.astype(np.float32), scale=scale
    )
    for part in rows:
        metric.update(torch.from_numpy(poses.keypoints[part]), torch.as_tensor(part))
    return metric


@pytest.mark.parametrize("size", [1, 7, 64, 300])
def test_order_batches_and_repeats_do_not_matter(size):
    truth = random_people()
    poses = random_poses(truth)
    expected = collected(truth, poses, [np.arange(180)])
    order = torch.from_numpy(np.random.default_rng(0).permutation(180))
    metric = collected(truth, poses, [part.numpy() for part in (*order.split(size), order[:9])])
    assert metric.compute() == expected.compute()
    assert "missing" not in metric.compute()
    for ours, theirs in zip(metric.scored()[1], expected.scored()[1], strict=True):
        assert np.array_equal(ours, theirs)
    metric.reset()
    with pytest.raises(RuntimeError):
        metric.scored()


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1 + rank)
    try:
        truth = random_people()
        metric = collected(
            truth, random_poses(truth), [np.arange(rank, 182, 2) % 180]
        )  # padded with the first
        torch.save(
            (metric.compute(), metric.per_joint(), metric.ranked_people(5, True)), f"{folder}/{rank}.pt"
        )
    finally:
        dist.destroy_process_group()


@pytest.mark.slow  # as of the features of re-identification
def test_two_processes_equal_one(tmp_path):
    """Also in what is asked for after `compute`."""
    torch.multiprocessing.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    truth = random_people()
    metric = collected(truth, random_poses(truth), [np.arange(180)])
    expected = (metric.compute(), metric.per_joint(), metric.ranked_people(5, True))
    for rank in (0, 1):
        assert repr(torch.load(tmp_path / f"{rank}.pt")) == repr(expected)


def test_what_was_not_run_is_counted():
    truth = random_people()
    metric = collected(truth, random_poses(truth), [np.arange(100)])
    assert metric.compute()["missing"] == 80


def test_poses_of_a_file_are_scored_as_they_are():
    """Without new scores, without dropping what is almost the same."""
    truth = truth_of(COCO, [person(), person(image=1)])
    keypoints = np.stack([moved(0), moved(0), moved(0)])
    keypoints[..., 2] = 0
    metric = PoseMetric()
    metric.records = Records(truth=truth)
    metric.give(Poses(np.array([0, 0, 1]), keypoints, np.array([0.9, 0.8, 0.7]), np.full(3, -1)))
    result = metric.compute()
    assert result["poses"] == 3
    assert result["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101)  # precision 1 to recall 0.5, then 2 of 3
    assert "in the file" in metric.protocol()["oks_nms"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_pose_that_is_no_number_is_named(value):
    truth = random_people()
    poses = random_poses(truth)
    poses.keypoints[[7, 9], 3, 1] = value
    with pytest.raises(HapError, match="2 poses are no finite numbers, the first is that of crop 7"):
        collected(truth, poses, [np.arange(180)]).compute()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_evaluated():
    with pytest.raises(HapError, match="no crops to evaluate"):
        collected(random_people(), random_poses(random_people()), []).compute()


def test_thresholds_are_fractions():
    for options in ({"nms_threshold": 90}, {"joint_threshold": -1}, {"nms_threshold": math.nan}):
        with pytest.raises(HapError, match=r"_threshold=.*: from 0 to 1"):
            PoseMetric(**options)


def test_pckh_of_functions_alone():
    truth = mpii_truth(3)
    keypoints = np.concatenate([truth.joints - 1, np.ones((3, 16, 1))], axis=2).astype(np.float32)
    poses = Poses(np.array([2, 0, 1]), keypoints[[2, 0, 1]], np.ones(3), np.arange(3))
    assert pckh(mpii_errors(truth, poses))["PCKh"] == 1
