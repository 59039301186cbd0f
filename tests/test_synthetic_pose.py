"""Drawn people for 2D pose: what is written is true of the picture, and the readers of the official layouts read it."""

import json

import cv2
import numpy as np
import pytest
import torch

from hap.data.mat_file import read_mat
from hap.data.pose_sets import read_aic, read_coco, read_mpii, read_multi
from hap.errors import HapError
from hap.metrics.pose import PoseMetric
from hap.synthetic.datasets import synthesize
from hap.synthetic.pictures import HEAD_TOP, PELVIS, draw_picture

SIZE = (128, 96)


@pytest.fixture(scope="module")
def pictures():
    return [draw_picture(3, number) for number in range(16)]


def test_pictures_show_several_people_before_each_other(pictures):
    shapes = {image.shape for image, _, _ in pictures}
    assert shapes == {(240, 320, 3), (320, 240, 3)}
    counts = [sum(len(person.points) > 0 for person in people) for _, people, _ in pictures]
    assert min(counts) == 1
    assert max(counts) >= 3
    flags = np.concatenate([p.visibility for _, people, _ in pictures for p in people])
    assert set(flags) == {0, 1, 2}


def test_visible_joints_lie_on_their_person(pictures):
    on, total = 0, 0
    for _, people, _ in pictures:
        for person in people:
            mask = cv2.dilate(person.mask.astype(np.uint8), np.ones((5, 5), np.uint8))
            for (x, y), flag in zip(np.round(person.points).astype(int), person.visibility, strict=True):
                if flag == 2:
                    on, total = on + int(mask[y, x]), total + 1
                if flag == 0:
                    assert not (1 <= x < mask.shape[1] - 1 and 1 <= y < mask.shape[0] - 1)
    assert on / total > 0.97


def test_somebody_nearer_hides_joints():
    """A joint where another person is seen is hidden."""
    found = 0
    for number in range(40):
        _, people, _ = draw_picture(4, number)
        people = [p for p in people if len(p.points)]
        for person in people:
            for other in people:
                inside = [
                    flag
                    for (x, y), flag in zip(
                        np.round(person.points).astype(int), person.visibility, strict=True
                    )
                    if flag
                    and other is not person
                    and cv2.erode(other.mask.astype(np.uint8), np.ones((5, 5)))[y, x]
                ]
                assert 2 not in inside
                found += len(inside)
    assert found > 10


def test_heads_are_above_hips_and_left_is_left(pictures):
    """Of people who stand in front view, the left shoulder is on the right of the picture."""
    upright = [p for _, people, _ in pictures for p in people if len(p.points)]
    above = [p.points[HEAD_TOP, 1] < p.points[PELVIS, 1] for p in upright]
    assert np.mean(above) > 0.9
    for person in upright:
        nose_seen, ears = person.visibility[0] == 2, (person.visibility[3:5] == 2).all()
        if nose_seen and ears and person.visibility[5] == person.visibility[6] == 2:
            assert person.points[3, 0] > person.points[4, 0]


def test_the_same_seed_is_the_same_picture():
    (first, people, _), (again, _, _) = draw_picture(1, 2), draw_picture(1, 2)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, draw_picture(2, 2)[0])
    assert people


def test_coco_is_read_and_the_truth_scores_one(drawn):
    root = drawn("coco", 16)
    content = json.loads((root / "annotations/person_keypoints_train2017.json").read_text())
    for person in content["annotations"]:
        flags = person["keypoints"][2::3]
        assert person["num_keypoints"] == sum(flag > 0 for flag in flags)
        _, _, width, height = person["bbox"]
        assert 0 < person["area"] <= width * height
    splits = read_coco(root, SIZE)
    assert len(splits["val"].files) == 4
    assert len(splits["val"]) > len(splits["val"].truth.image) / 2
    val = read_coco(root, SIZE, boxes="truth")["val"]
    assert score(val)["AP"] == 1
    ids = [person["id"] for person in content["annotations"]]
    assert len(set(ids)) == len(ids)


def score(records) -> dict[str, float]:
    metric = PoseMetric()
    metric.records = records
    keypoints = torch.from_numpy(records.joints.copy())
    metric.update(keypoints, torch.arange(len(records)))
    return metric.compute()


def test_crowds_are_regions_without_joints():
    root_images = [draw_picture(0, number) for number in range(40)]
    crowds = [p for _, people, _ in root_images for p in people if not len(p.points)]
    assert crowds
    assert all(crowd.mask.sum() >= 60 for crowd in crowds)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools
def test_run_lengths_and_polygons_are_coco_s(tmp_path):
    from pycocotools import mask as coco_mask

    from hap.synthetic.pose2d import _polygons, _runs

    _, people, _ = draw_picture(3, 1)
    for person in people:
        runs = _runs(person.mask)
        decoded = coco_mask.decode(coco_mask.frPyObjects(runs, *runs["size"]))
        np.testing.assert_array_equal(decoded > 0, person.mask)
        height, width = person.mask.shape
        polygons = coco_mask.merge(coco_mask.frPyObjects(_polygons(person.mask), height, width))
        overlap = coco_mask.decode(polygons) > 0
        assert (overlap & person.mask).sum() > 0.7 * person.mask.sum()


def test_mpii_is_read_and_counts_from_one(drawn):
    root = drawn("mpii", 12)
    splits = read_mpii(root)
    people = json.loads((root / "annotations/mpii_val.json").read_text())
    assert len(splits["val"]) == len(people)
    truth = splits["val"].truth
    for person, joints, labelled in zip(people, truth.joints, truth.labelled, strict=True):
        assert (np.array(person["joints_vis"]) == labelled).all()
        np.testing.assert_allclose(np.array(person["joints"])[labelled], joints[labelled])
    found = read_mat(root / "annotations/mpii_gt_val.mat")
    assert found["headboxes_src"].shape == (2, 2, len(people))
    both = truth.labelled[:, 8] & truth.labelled[:, 9]
    length = np.linalg.norm(truth.joints[:, 9] - truth.joints[:, 8], axis=1)[both]
    np.testing.assert_allclose(length, 0.8 * truth.head_size[both] / 0.6, atol=0.4)


def test_aic_is_the_same_in_both_forms(drawn):
    root = drawn("aic", 12)
    splits = read_aic(root, SIZE, jitter=0)
    assert score(splits["val"])["AP"] == 1
    (root_annotations := root / "annotations").rename(root / "away")
    try:
        raw = read_aic(root, SIZE, jitter=0)
    finally:
        (root / "away").rename(root_annotations)
    for split in ("train", "val"):
        for name in ("box", "center", "scale", "joints"):
            np.testing.assert_array_equal(getattr(raw[split], name), getattr(splits[split], name))


def test_three_sets_are_of_other_people(drawn):
    splits = read_multi(drawn("pose_multi", 12), SIZE)
    assert {record.annotations()["source"] for record in splits["train"]} == {0, 1, 2}
    sums = {record.pixels().sum() for record in splits["train"]}
    assert len(sums) >= 9


def test_too_few_pictures(tmp_path):
    with pytest.raises(HapError, match="at least 4 pictures"):
        synthesize("coco", tmp_path / "out", num_images=3)
