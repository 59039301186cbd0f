"""Crops of people: the official draws in their order, one affine map, joints that follow."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from hap.data.base import Dataset
from hap.data.decoding import decode_image
from hap.data.pose_transforms import PoseEval, PoseTrain
from hap.pose.codecs import UDP, Classic
from hap.pose.geometry import apply_affine
from hap.pose.skeletons import COCO, MPII, of_names

SIZE = (64, 48)
SAMPLES = os.environ.get("HAP_SAMPLES")


def person(skeleton=COCO, seed=0, hidden=3):
    rng = np.random.default_rng(seed)
    joints = rng.uniform([40, 30, 1], [120, 150, 1], (len(skeleton.joints), 3)).astype(np.float32)
    joints[rng.permutation(len(joints))[:hidden]] = 0
    return {
        "center": np.array([80, 90], np.float32),
        "scale": np.array([0.6, 0.8], np.float32),
        "joints": joints,
        "skeleton": skeleton,
        "source": 0,
    }


def picture(seed=0):
    """Smooth, so that rounding in the warp stays small."""
    noise = np.random.default_rng(seed).integers(0, 256, (180, 160, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 4)


class Draws:
    """A generator whose next values are given, in order; it notes what was asked."""

    def __init__(self, *values):
        self.values, self.asked = list(values), []

    def random(self):
        self.asked.append("uniform")
        return self.values.pop(0)

    def standard_normal(self):
        self.asked.append("normal")
        return self.values.pop(0)


def literal_crop(image, annotations, codec, flip, half, factor, angle):
    """Flip the picture and the joints, then warp: the official steps one by one."""
    joints, center, scale = (
        annotations["joints"].copy(),
        annotations["center"].copy(),
        annotations["scale"].copy(),
    )
    skeleton, width = annotations["skeleton"], image.shape[1]
    if flip:
        image = image[:, ::-1].copy()
        swapped = joints.copy()
        for a, b in skeleton.flip_pairs:
            swapped[a], swapped[b] = joints[b], joints[a]
        for joint in swapped:
            joint[0] = width - 1 - joint[0]
            joint[:2] *= joint[2]
        joints = swapped
        center[0] = width - center[0] - 1
    if half is not None:
        chosen = [j[:2] for i, j in enumerate(joints) if j[2] > 0 and (i in skeleton.upper_body) == half]
        center = np.mean(chosen, axis=0)
        w, h = np.max(chosen, axis=0) - np.min(chosen, axis=0)
        w, h = (w, w / 0.75) if w > 0.75 * h else (0.75 * h, h)
        scale = np.array([w, h]) * 1.5 / 200
    scale = scale * min(max(1 + 0.5 * factor, 0.5), 1.5)
    matrix = codec.matrix(center, scale, min(max(40 * angle, -80), 80))
    for joint in joints:
        if joint[2] > 0 or isinstance(codec, UDP):
            joint[:2] = matrix[:, :2] @ joint[:2] + matrix[:, 2]
    return cv2.warpAffine(image, matrix, (48, 64), flags=cv2.INTER_LINEAR), joints


@pytest.mark.parametrize("codec", [UDP(SIZE), Classic(SIZE)])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("half", "draws"),
    [(None, (0.5,)), (True, (0.2, 0.4)), (False, (0.2, 0.6))],
)
@pytest.mark.parametrize(("factor", "angle"), [(0.3, -0.7), (-1.4, 2.5), (1.2, 0.0)])
def test_the_steps_one_by_one(codec, flip, half, draws, factor, angle):
    annotations, image = person(), picture()
    rng = Draws(0.1 if flip else 0.9, *draws, factor, angle, 0.3)
    sample = PoseTrain([codec])(image, annotations, rng)
    halves = ["uniform"] if half is None else ["uniform", "normal"]
    assert rng.asked == ["uniform", *halves, "normal", "normal", "uniform"]
    pixels, joints = literal_crop(image, annotations, codec, flip, half, factor, angle)
    np.testing.assert_allclose(sample["joints"], joints, atol=2e-3)
    difference = np.abs(sample["image"].numpy().transpose(1, 2, 0).astype(int) - pixels)
    assert difference.max() <= 3
    assert difference.mean() < 0.3


def test_halves_need_more_than_eight_joints_and_an_upper_half():
    few, mpii = person(hidden=9), person(MPII)
    for annotations in (few, mpii):
        rng = Draws(0.9, 0.0, 0.0, 0.9)
        PoseTrain([UDP(SIZE)])(picture(), annotations, rng)
        assert rng.asked == ["uniform", "normal", "normal", "uniform"]


def test_half_a_body_of_the_sample_person():
    """Person 442619 of COCO: the official regions of both halves."""
    xyv = [
        *(367, 81, 2, 374, 73, 2, 360, 75, 2, 386, 78, 2, 356, 81, 2, 399, 108, 2, 358, 129, 2, 433, 142, 2),
        *(
            341,
            159,
            2,
            449,
            165,
            2,
            309,
            178,
            2,
            424,
            203,
            2,
            393,
            214,
            2,
            429,
            294,
            2,
            367,
            273,
            2,
            466,
            362,
            2,
        ),
        *(396, 341, 2),
    ]
    joints = np.array(xyv, np.float32).reshape(17, 3)
    joints[:, 2] = 1
    transform = PoseTrain([UDP((256, 192))])
    upper = transform._half_body(joints, COCO, (256, 192), Draws(0.2, 0.4))
    lower = transform._half_body(joints, COCO, (256, 192), Draws(0.2, 0.6))
    np.testing.assert_allclose(upper[0], (375.63635, 115.36364), atol=1e-4)
    np.testing.assert_allclose(upper[1], (1.05, 1.4), atol=1e-5)
    np.testing.assert_allclose(lower[0], (412.5, 281.16666), atol=1e-4)
    np.testing.assert_allclose(lower[1], (0.894375, 1.1925), atol=1e-5)


def test_a_mirror_image_swaps_the_sides():
    """In a picture 100 pixels wide a left hand at 20 is a right one at 79."""
    skeleton = of_names(["nose", "left_hand", "right_hand"])
    joints = np.array([[50, 5, 1], [20, 10, 1], [0, 0, 0]], np.float32)
    region = {"center": np.array([49.5, 49.5], np.float32), "scale": np.array([0.5, 0.5], np.float32)}
    annotations = {"joints": joints, "skeleton": skeleton, "source": 0, **region}
    codec = UDP((100, 100))
    image = np.zeros((100, 100, 3), np.uint8)
    sample = PoseTrain([codec])(image, annotations, Draws(0.1, 0.0, 0.0, 0.9))
    expected = apply_affine(codec.matrix(**region), np.array([[79.0, 10.0]]))[0]
    assert sample["joints"][2].tolist() == pytest.approx([*expected, 1], abs=1e-4)
    assert sample["joints"][1, 2] == 0
    assert joints.tolist() == [[50, 5, 1], [20, 10, 1], [0, 0, 0]]


def test_joints_are_filled_up_for_several_sets():
    sample = PoseTrain([UDP(SIZE)], num_joints=17)(picture(), person(MPII), np.random.default_rng(0))
    assert sample["joints"].shape == (17, 3)
    assert not sample["joints"][16].any()


class Record:
    name = "a"

    def pixels(self):
        return picture()

    def annotations(self):
        return person()


def test_a_crop_is_a_function_of_seed_epoch_and_index():
    dataset = Dataset([Record()] * 3, PoseTrain([UDP(SIZE)]), seed=7)
    first, again, later = dataset[0, 1], dataset[0, 1], dataset[1, 1]
    assert first["joints"].tolist() == again["joints"].tolist()
    assert first["joints"].tolist() != later["joints"].tolist()


def test_regions_of_an_evaluation():
    """A region as it is, a box with its margin, and without both the whole picture."""
    codec, image = UDP(SIZE), picture()
    transform, rng = PoseEval([codec]), np.random.default_rng(0)
    given = transform(image, person(), rng)
    assert given["center"].tolist() == [80, 90]
    boxed = transform(image, {"box": (20, 30, 60, 80)}, rng)
    assert boxed["center"].tolist() == [50, 70]
    assert boxed["scale"].tolist() == pytest.approx([1.25 * 60 / 200, 1.25 * 80 / 200])
    whole = transform(image, {}, rng)
    assert whole["center"].tolist() == [80, 90]
    assert whole["scale"].tolist() == pytest.approx([1.25 * 160 / 200, 1.25 * 160 / 0.75 / 200])


@pytest.mark.skipif(SAMPLES is None, reason="HAP_SAMPLES is not set")
def test_pixels_of_a_photograph():
    image = decode_image((Path(SAMPLES) / "coco/val2017/000000000785.jpg").read_bytes())
    assert image.shape == (425, 640, 3)
    region = {
        "center": np.array([389.64, 217.57], np.float32),
        "scale": np.array([1.620375, 2.1605], np.float32),
    }
    crop = (
        PoseEval([UDP((256, 192))])(image, region, np.random.default_rng(0))["image"]
        .numpy()
        .transpose(1, 2, 0)
    )
    assert crop.mean((0, 1)) == pytest.approx((178.3043, 171.0685, 175.5311), abs=0.05)
    for (row, column), value in {
        (0, 0): (237,) * 3,
        (128, 96): (59, 7, 14),
        (60, 80): (198, 189, 178),
    }.items():
        assert np.abs(crop[row, column].astype(int) - value).max() <= 5
