"""Regions, affine maps and heat maps: the official functions' values, and a literal loop at random points."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from hap.errors import HapError
from hap.pose.codecs import UDP, Classic
from hap.pose.geometry import apply_affine, box_to_region

DATA = Path(__file__).parent / "data"
SMALL, LARGE = (256, 192), (384, 288)
BOX_A = np.array([389.64, 217.57], np.float32), np.array([1.620375, 2.1605], np.float32)
POINTS = np.array([[367.0, 81.0], [396.0, 341.0]])


@pytest.mark.parametrize(
    ("box", "center", "scale"),
    [
        ([280.79, 44.73, 217.7, 345.68], (389.64, 217.57), (1.620375, 2.1605)),
        ([277.1183, 45.6997, 225.0913, 333.5603], (389.66394, 212.4798), (1.5635638, 2.0847516)),
        ([279, 55, 212, 543], (385, 326.5), (2.5453126, 3.39375)),
        ([497, 179, 400, 415], (697, 386.5), (2.5, 3.3333333)),
        ([100, 50, 120, 200], (160, 150), (0.9375, 1.25)),
        ([10, 20, 300, 100], (160, 70), (1.875, 2.5)),
    ],
)
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_regions_of_boxes(box, center, scale, size):
    got = box_to_region(np.array([box] * 2), size)
    np.testing.assert_allclose(got[0], [center] * 2, atol=1e-4)
    np.testing.assert_allclose(got[1], [scale] * 2, atol=1e-6)


@pytest.mark.parametrize(
    ("codec", "size", "region", "angle", "rows"),
    [
        (UDP, SMALL, "A", 0, [[0.58936971, 0, -134.14203], [0, 0.59014118, -0.89701706]]),
        (UDP, SMALL, "A", 30, [[0.51040918, -0.29468486, -39.26124], [0.29507059, 0.51107723, -98.66638]]),
        (UDP, LARGE, "A", 0, [[0.88559741, 0, -201.56419], [0, 0.88636887, -1.3472844]]),
        (UDP, LARGE, "A", 30, [[0.76694989, -0.4427987, -58.99464], [0.44318444, 0.76761794, -148.19304]]),
        (Classic, SMALL, "A", 0, [[0.59245543, 0, -134.84434], [0, 0.59245543, -0.90053177]]),
        (Classic, SMALL, "A", 30, [[0.51308146, 0.29622766, -168.36732], [-0.29622766, 0.51308151, 131.791]]),
        (
            Classic,
            LARGE,
            "A",
            30,
            [[0.76962218, 0.44434149, -252.55098], [-0.44434149, 0.76962227, 197.6865]],
        ),
        (UDP, SMALL, "B", 0, [[1.01866663, 0, -67.486664], [0, 1.02, -25.5]]),
        (UDP, SMALL, "B", -45, [[0.7203061, 0.7203061, -127.794891], [-0.72124892, 0.72124892, 134.712494]]),
        (
            Classic,
            SMALL,
            "B",
            -45,
            [[0.72407735, -0.72407735, 88.759226], [0.72407735, 0.72407735, -96.46398]],
        ),
        (UDP, SMALL, "C", 0, [[0.50933331, 0, 14.006667], [0, 0.51, 91.8]]),
        (UDP, SMALL, "MPII", 0, [[0.16191627, 0, -60.749195], [0, 0.21617094, 38.918056]]),
    ],
)
def test_affine_matrices(codec, size, region, angle, rows):
    center, scale = {
        "A": BOX_A,
        "B": box_to_region(np.array([100, 50, 120, 200]), size),
        "C": box_to_region(np.array([10, 20, 300, 100]), size),
        "MPII": (np.array([965, 409.77731]), np.array([5.8981104, 5.8981104])),
    }[region]
    matrix = codec(size).matrix(center, scale, angle)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix, rows, atol=1e-3 if codec is Classic else 1e-4)


@pytest.mark.parametrize(
    ("codec", "angle", "expected"),
    [
        (UDP, 0, [(82.15666, 46.90442), (99.24838, 200.34113)]),
        (UDP, 30, [(124.1895, 51.0218), (62.3733, 192.4589)]),
        (Classic, 0, [(82.5868, 47.08836), (99.76801, 201.12677)]),
        (Classic, 30, [(43.92801, 64.63505), (135.82657, 189.44564)]),
    ],
)
def test_mapped_points(codec, angle, expected):
    np.testing.assert_allclose(apply_affine(codec(SMALL).matrix(*BOX_A, angle), POINTS), expected, atol=1e-3)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_corners_of_a_region_are_those_of_the_input(size):
    center, half = BOX_A[0], 100 * BOX_A[1]
    corners = np.stack([center - half, center + half])
    last = {UDP: (size[1] - 1, size[0] - 1), Classic: (size[1], size[0])}
    for codec, end in last.items():
        np.testing.assert_allclose(
            apply_affine(codec(size).matrix(*BOX_A), corners), [(0, 0), end], atol=2e-3
        )


def encoded(codec, x, y, visible=1):
    target, weight = codec.encode(torch.tensor([[[x, y, visible]]]))
    return target[0, 0].numpy(), weight.item()


def window(target):
    rows, columns = np.nonzero(target)
    return (columns.min(), columns.max()), (rows.min(), rows.max())


@pytest.mark.parametrize(
    ("x", "y", "where", "values", "total"),
    [
        (
            *(82.15666, 46.904415, ((14, 26), (6, 18))),
            {(20, 12): 0.9732980, (21, 12): 0.9067172, (20, 13): 0.7748951, (19, 12): 0.8136661}
            | {(22, 15): 0.1568175, (26, 12): 0.0149623},
            25.07282,
        ),
        (
            *(0.0, 0.0, ((0, 6), (0, 6))),
            {(0, 0): 1, (1, 0): 0.8824969, (2, 3): 0.1969117, (6, 0): 0.0111090},
            9.024384,
        ),
        (191.0, 255.0, ((41, 47), (57, 63)), {(47, 63): 1, (46, 63): 0.8824969}, 9.024384),
        (-30.0, 40.0, ((0, 0), (4, 16)), {(0, 10): 0.00109847, (0, 11): 0.00094130}, 0.0055107),
    ],
)
def test_udp_targets(x, y, where, values, total):
    target, weight = encoded(UDP(SMALL), x, y)
    assert weight == 1
    assert window(target) == where
    for (column, row), value in values.items():
        assert target[row, column] == pytest.approx(value, abs=1e-6)
    assert target.sum() == pytest.approx(total, rel=1e-4)


def test_classic_targets():
    codec = Classic(SMALL)
    target, weight = encoded(codec, 82.5868, 47.088358)
    assert weight == 1
    assert window(target) == ((15, 27), (6, 18))
    assert target[12, 21] == 1
    assert target[12, 20] == pytest.approx(0.8824969, abs=1e-6)
    assert target.sum() == pytest.approx(25.08129, rel=1e-5)
    target, weight = encoded(codec, 191.9, 255.9)
    assert (weight, window(target)) == (1, ((42, 47), (58, 63)))
    assert target[63, 47] == pytest.approx(0.7788008, abs=1e-6)
    assert target.sum() == pytest.approx(4.016261, rel=1e-5)
    target, weight = encoded(codec, -30.0, 40.0)
    assert (weight, target.max()) == (1, 0)
    target, weight = encoded(codec, 217.0, 100.0)
    assert (weight, target.max()) == (0, 0)


@pytest.mark.parametrize(("mu", "weight"), [(-8.6, 0), (-8.4, 1), (53.49, 1), (53.6, 0)])
@pytest.mark.parametrize("codec", [UDP, Classic])
def test_border_of_the_weight(codec, mu, weight):
    stride = 191 / 47 if codec is UDP else 4
    assert encoded(codec(SMALL), mu * stride, 100.0)[1] == weight


def literal_target(joints, size, udp):
    """The official loops."""
    h, w = size[0] // 4, size[1] // 4
    stride = ((size[1] - 1) / (w - 1), (size[0] - 1) / (h - 1)) if udp else (4, 4)
    target, weight = np.zeros((len(joints), h, w)), joints[:, 2].astype(float)
    for k, (x, y, visible) in enumerate(joints):
        mu = x / stride[0], y / stride[1]
        m = int(mu[0] + 0.5), int(mu[1] + 0.5)
        if m[0] - 6 >= w or m[1] - 6 >= h or m[0] + 7 < 0 or m[1] + 7 < 0:
            weight[k] = 0
        elif visible > 0.5:
            at = mu if udp else m
            for row in range(max(0, m[1] - 6), min(h, m[1] + 7)):
                for column in range(max(0, m[0] - 6), min(w, m[0] + 7)):
                    target[k, row, column] = math.exp(-((column - at[0]) ** 2 + (row - at[1]) ** 2) / 8)
    return target, weight


@pytest.mark.parametrize("size", [SMALL, (128, 96)])
@pytest.mark.parametrize("codec", [UDP, Classic])
def test_targets_at_random_points_inside_and_out(codec, size):
    rng = np.random.default_rng(0)
    joints = rng.uniform([-60, -60, 0], [size[1] + 60, size[0] + 60, 0], (2, 40, 3)).astype(np.float32)
    joints[..., 2] = rng.random((2, 40)) < 0.8
    target, weight = codec(size).encode(torch.from_numpy(joints))
    for i in range(2):
        expected = literal_target(joints[i], size, codec is UDP)
        np.testing.assert_allclose(target[i].numpy(), expected[0], atol=1e-5)
        np.testing.assert_array_equal(weight[i].numpy(), expected[1])


@pytest.mark.parametrize(
    ("file", "codecs"),
    [("pose2d_targets_single.npz", (UDP,)), ("pose2d_targets_multi.npz", (UDP, Classic, UDP))],
)
def test_targets_agree_with_the_official_code(file, codecs):
    """`joints`, `source`, `target`, `target_weight` of the golden files pose2d_net_tiny and pose2d_multi_tiny."""
    golden = np.load(DATA / file)
    h, w = golden["target"].shape[2:]
    for i, source in enumerate(golden["source"]):
        target, weight = codecs[source]((4 * h, 4 * w)).encode(
            torch.from_numpy(golden["joints"][i : i + 1]).float()
        )
        np.testing.assert_allclose(target[0].numpy(), golden["target"][i], atol=1e-6)
        np.testing.assert_array_equal(weight[0].numpy(), golden["target_weight"][i, :, 0])


def gaussian(mx, my, a, size=(64, 48)):
    y, x = np.mgrid[: size[0], : size[1]]
    return torch.tensor(a * np.exp(-((x - mx) ** 2 + (y - my) ** 2) / 8), dtype=torch.float32)[None, None]


def in_picture(codec, heatmaps):
    center, scale = (torch.from_numpy(x)[None] for x in BOX_A)
    points = codec.decode(heatmaps)
    return points[0, 0].tolist(), codec.to_image(points[..., :2], center, scale)[0, 0].tolist()


@pytest.mark.parametrize(
    ("peak", "dark", "udp", "score", "classic"),
    [
        ((20.3, 31.7, 0.9), (20.300035, 31.699965), (367.5756, 218.9415), 0.879976, (364.3216, 215.8821)),
        ((5, 5, 0.5), (4.993371, 4.993371), (262.0329, 35.7682), 0.5, (261.3603, 35.2778)),
        ((0, 0, 1), (-0.5, -0.5), (224.1549, -1.9094), 1, (227.6025, 1.5200)),
        ((47, 63, 0.8), (47.5, 63.5), (555.1251, 437.0494), 0.8, (544.9260, 426.8685)),
        ((1.2, 62.6, 0.3), (0.033596, 63.500004), (227.8342, 437.0494), 0.292593, (234.3541, 426.8685)),
        ((23.5, 31.5, 1), (23.5, 31.5), (389.6400, 217.5700), 0.939413, (384.5763, 212.5063)),
        ((46.4, 10, 1), (46.990036, 10), (551.6089, 70.1073), 0.980199, (539.8623, 69.0356)),
    ],
)
def test_decoded_peaks(peak, dark, udp, score, classic):
    heatmaps = gaussian(*peak)
    near_border = not (5 < peak[0] < 42 and 5 < peak[1] < 58)
    found, image = in_picture(UDP(SMALL), heatmaps)
    tolerance = 2e-3 if near_border else 2e-4
    assert found[:2] == pytest.approx(dark, abs=tolerance)
    assert found[2] == pytest.approx(score, abs=1e-6)
    assert image == pytest.approx(udp, abs=10 * tolerance)
    found, image = in_picture(Classic(SMALL), heatmaps)
    assert found[2] == pytest.approx(score, abs=1e-6)
    assert image == pytest.approx(classic, abs=1e-3)


def test_decoded_impulses():
    heatmaps = torch.zeros(1, 1, 64, 48)
    heatmaps[0, 0, 30, 20], heatmaps[0, 0, 30, 21], heatmaps[0, 0, 31, 20] = 1, 0.6, 0.2
    found, image = in_picture(UDP(SMALL), heatmaps)
    assert found == pytest.approx((20.327894, 30.10399, 1), abs=2e-4)
    assert image == pytest.approx((367.7677, 207.9952), abs=2e-3)
    assert in_picture(Classic(SMALL), heatmaps)[1] == pytest.approx((364.3216, 205.7548), abs=1e-3)


def test_of_equal_maxima_the_first_and_of_nothing_no_place():
    heatmaps = torch.zeros(1, 1, 64, 48)
    found, image = in_picture(UDP(SMALL), heatmaps)
    assert found == [-1, -1, 0]
    assert image == pytest.approx((220.7073, -5.3387), abs=1e-3)
    assert in_picture(Classic(SMALL), heatmaps)[1] == pytest.approx((220.8510, -5.2316), abs=1e-3)
    heatmaps[0, 0, 10, [5, 7]] = 1
    assert in_picture(Classic(SMALL), heatmaps)[0][0] == pytest.approx(5, abs=0.25)


def literal_dark(heatmap):
    """The blur by OpenCV on the whole map, then the formulas at the maximum."""
    y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
    blurred = cv2.GaussianBlur(heatmap, (11, 11), 0)
    log = np.pad(np.log(np.clip(blurred, 0.001, 50)), 1, mode="edge").astype(float)
    at = lambda i, j: log[y + 1 + j, x + 1 + i]  # noqa: E731
    gradient = np.array([(at(1, 0) - at(-1, 0)) / 2, (at(0, 1) - at(0, -1)) / 2])
    dxy = (at(1, 1) - at(1, 0) - at(0, 1) + 2 * at(0, 0) - at(-1, 0) - at(0, -1) + at(-1, -1)) / 2
    dxx, dyy = at(1, 0) - 2 * at(0, 0) + at(-1, 0), at(0, 1) - 2 * at(0, 0) + at(0, -1)
    hessian = np.array([[dxx, dxy], [dxy, dyy]]) + 1.1920929e-7 * np.eye(2)
    return np.array([x, y]) - np.linalg.inv(hessian) @ gradient


def test_dark_at_random_maps():
    rng = np.random.default_rng(1)
    peaks = rng.uniform([0, 0, 0.1], [47, 63, 1], (60, 3))
    heatmaps = np.stack([gaussian(*peak).numpy()[0, 0] for peak in peaks])
    heatmaps += rng.uniform(0, 0.02, heatmaps.shape).astype(np.float32)
    found = UDP(SMALL).decode(torch.from_numpy(heatmaps)[None])[0].numpy()
    expected = np.stack([literal_dark(one) for one in heatmaps])
    np.testing.assert_allclose(found[:, :2], expected, atol=2e-3)
    np.testing.assert_allclose(found[:, 2], heatmaps.max((1, 2)))
    half = UDP(SMALL).decode(torch.from_numpy(heatmaps)[None].half())
    assert half.dtype == torch.float32


def test_there_and_back():
    """UDP finds the joint; the classic way its pixel of the heat map, which is up to half a diagonal off."""
    rng = np.random.default_rng(2)
    xy = rng.uniform([300, 60], [480, 380], (1, 17, 2))
    for size in (SMALL, LARGE):
        pixel = 200 * BOX_A[1][0] / (size[1] / 4)
        for codec, most in ((UDP(size), 2e-3), (Classic(size), math.sqrt(0.5) * pixel + 0.01)):
            joints = apply_affine(codec.matrix(*BOX_A), xy)
            joints = torch.from_numpy(np.concatenate([joints, np.ones((1, 17, 1))], 2)).float()
            center, scale = (torch.from_numpy(x)[None] for x in BOX_A)
            points = codec.decode(codec.encode(joints)[0])[..., :2]
            error = np.linalg.norm(codec.to_image(points, center, scale).numpy() - xy, axis=2)
            assert error.max() < most
            inputs = codec.to_input(points).numpy()
            np.testing.assert_allclose(inputs, joints[..., :2].numpy(), atol=most)


def test_heat_maps_of_a_mirror_image_are_turned_back():
    heatmaps, index = torch.arange(24).reshape(1, 3, 2, 4), np.array([0, 2, 1])
    back = UDP((24, 24)).flip_back(heatmaps, index)[0].tolist()
    assert back[0] == [[3, 2, 1, 0], [7, 6, 5, 4]]
    assert back[1] == [[19, 18, 17, 16], [23, 22, 21, 20]]
    assert back[2] == [[11, 10, 9, 8], [15, 14, 13, 12]]
    assert Classic((24, 24)).flip_back(heatmaps, index)[0, 0].tolist() == [[3, 3, 2, 1], [7, 7, 6, 5]]


@pytest.mark.parametrize("size", [(130, 96), (96, 20)])
def test_sizes_that_heat_maps_have(size):
    with pytest.raises(HapError, match="multiples of 4"):
        UDP(size)
