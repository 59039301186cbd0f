"""What 3D pose is trained on: crops, joints and bodies under scale, turn and mirror, against the rules written out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_synthetic_smpl import skinned
from torch.utils.data import default_collate

from hap.body.crops import crop_box
from hap.body.joints import FLIP30, H36M, MUCO_CHECKED, SMPL30, places
from hap.body.model import BodyModel, GenderedBody
from hap.body.rotations import about_z, to_axis_angle, to_matrix
from hap.data import pose3d_transforms
from hap.data.pose3d import Kind
from hap.data.pose3d_fits import read_coco3d, read_mpii3d
from hap.data.pose3d_own import read_bodies3d
from hap.data.pose3d_sets import read_h36m, read_muco
from hap.data.pose3d_transforms import Pose3dEval, Pose3dTrain
from hap.losses import BodyPrediction, BodyTargets, CrowdNetLoss, Hmr2Loss
from hap.models.crowdnet import CrowdNet
from hap.models.pose3d import BodyOutput
from hap.optim import StepRecipe
from hap.synthetic.body import rotation_matrices
from hap.synthetic.smpl import drawn_bodies
from hap.tasks.pose3d import Pose3d
from hap.tasks.pose3d_targets import body_targets

BODIES = drawn_bodies()
BODY = GenderedBody(BODIES)
KINDS = {
    "h36m": Kind("h36m", has_3d=True, checked=tuple(places(H36M).tolist())),
    "muco": Kind("muco", has_3d=True, checked=tuple(places(MUCO_CHECKED).tolist())),
    "coco": Kind("coco"),
    "mpii": Kind("mpii", absolute_fit=True),
    "own": Kind("own", exact=True),
}
PAIRS = (
    (1, 2),
    (4, 5),
    (7, 8),
    (10, 11),
    (13, 14),
    (16, 17),
    (18, 19),
    (20, 21),
    (22, 23),
    (25, 26),
    (27, 28),
)
WIDTH, HEIGHT = 320, 240


class Draws:
    """A generator of given numbers, in the order in which they are drawn; colours stay as they are."""

    def __init__(self, scale: float = 0.0, turn: float | None = None, flip: bool = False):
        """scale and turn in units of the augmentation: standard normal numbers."""
        self.normal = [scale, 0.0 if turn is None else turn]
        self.uniforms = [0.99 if turn is None else 0.0, 0.0 if flip else 0.99]

    def standard_normal(self) -> float:
        return self.normal.pop(0)

    def random(self) -> float:
        return self.uniforms.pop(0)

    def uniform(self, low: float, high: float, size: int) -> np.ndarray:
        return np.ones(size)


DRAWS = [(0.0, None, False), (0.0, None, True), (1.0, 1.0, False), (-0.6, -1.7, True), (0.3, 5.0, True)]


def swap(values: np.ndarray) -> np.ndarray:
    """Left and right joints exchanged, of 30 or of the first 24."""
    values = values.copy()
    for a, b in PAIRS:
        if b < len(values):
            values[[a, b]] = values[[b, a]]
    return values


def person(kind: str, seed: int = 0, **changed) -> dict:
    """Annotations as of a record: a body in front of a camera, and joints of the data set that are near its own."""
    rng = np.random.default_rng(seed)
    pose = rng.normal(0, 0.3, (24, 3))
    pose[0] = np.array([np.pi, 0, 0]) + rng.normal(0, 0.3, 3)
    betas, trans = rng.normal(0, 1, 10), np.array([0.2, 0.1, 3]) + rng.normal(0, 0.1, 3)
    camera = np.array([260, 255, 150, 130]) + rng.normal(0, 3, 4)
    vertices = skinned(BODIES.neutral, pose, betas)
    points = BODIES.joints30 @ vertices + trans
    xy = points[:, :2] / points[:, 2:] * camera[:2] + camera[2:] + rng.normal(0, 1, (30, 2))
    there = rng.random((30, 1)) < 0.8
    there[0] = True
    points = points - points[0]
    if checked := list(KINDS[kind].checked):  # as that data set has them
        joints = np.asarray(BODIES.h36m) @ vertices
        points[checked], there[checked] = (joints - joints[0])[places(np.array(SMPL30)[checked], H36M)], True
    points = points + rng.normal(0, 0.005, (30, 3))
    low, high = xy.min(0), xy.max(0)
    return {
        "kind": KINDS[kind],
        "box": np.float32([*low, *(high - low)]),
        "joints": np.float32(np.concatenate([xy * there, there], axis=1)),
        "joints3d": np.float32(np.concatenate([points * there, there], axis=1) * KINDS[kind].has_3d),
        "camera": np.float32(camera),
        "pose": np.float32(pose.ravel()),
        "betas": np.float32(betas),
        "trans": np.float32(trans),
        "fitted": True,
        "gender": 0,
        "near": np.zeros((0, 17, 3), np.float32),
    } | changed


def sample(annotations: dict, draw: tuple = DRAWS[0], image: np.ndarray | None = None, **options) -> dict:
    transform = Pose3dTrain((256, 256), **{"joint_errors": False} | options)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8) if image is None else image
    return transform(image, annotations, Draws(*draw))


def targets_of(samples: list[dict], **options) -> BodyTargets:
    return body_targets(default_collate(samples), BODY, **options)


def affine(box: np.ndarray, scale: float, turn: float, flip: bool, width: int) -> np.ndarray:
    """(3, 3), pixels of the picture or of its mirror image -> 64ths of the crop."""
    x, y, side, _ = box
    center = np.array([x + side / 2, y + side / 2])
    if flip:
        center[0] = width - 1 - center[0]
    r = np.radians(turn)
    turned = np.array([[np.cos(-r), -np.sin(-r)], [np.sin(-r), np.cos(-r)]])
    linear = 256 / (side * scale) * turned
    to_crop = np.eye(3)
    to_crop[:2, :2], to_crop[:2, 2] = linear, 128 - linear @ center
    return np.diag([0.25, 0.25, 1]) @ to_crop


def literal(
    p: dict, draw: tuple, mpii_fit: str = "fixed", large_betas: str = "fixed"
) -> dict[str, np.ndarray]:
    """The targets, term by term."""
    scale = 1 + 0.25 * np.clip(draw[0], -1, 1)
    turn = 0.0 if draw[1] is None else 30 * np.clip(draw[1], -2, 2)
    flip, kind = draw[2], p["kind"]
    box = crop_box(p["box"], np.array([WIDTH, HEIGHT])).astype(float)
    to_units = affine(box, scale, turn, flip, WIDTH)
    rz = rotation_matrices(np.array([0, 0, -np.radians(turn)]))
    official = kind.absolute_fit and mpii_fit == "official"

    joints, joints3d = p["joints"].astype(float), p["joints3d"].astype(float)
    pose, betas = p["pose"].astype(float).reshape(24, 3), p["betas"].astype(float)
    if flip:
        joints[:, 0] = WIDTH - 1 - joints[:, 0]
        joints3d[:, 0] = -joints3d[:, 0]
        pose[:, 1:] = -pose[:, 1:]
        joints, joints3d, pose = swap(joints), swap(joints3d), swap(pose)
    xy = (np.c_[joints[:, :2], np.ones(30)] @ to_units.T)[:, :2]
    own = np.c_[xy, (joints3d[:, 2] + 1) / 2 * 64]
    valid = joints[:, 2] > 0
    trunc = valid & (xy >= 0).all(1) & (xy < 64).all(1)
    if kind.has_3d:
        trunc = trunc & (own[:, 2] >= 0) & (own[:, 2] < 64)

    vertices = skinned(BODIES.of(p["gender"]), pose, betas) + p["trans"]
    fx, fy, cx, cy = p["camera"]
    if flip:
        vertices[:, 0] -= 2 * (BODIES.joints30[0] @ vertices)[0]
    points = BODIES.joints30 @ vertices
    uv = points[:, :2] / points[:, 2:] * [fx, fy] + [WIDTH - 1 - cx if flip else cx, cy]
    uv = (np.c_[uv, np.ones(30)] @ to_units.T)[:, :2]
    fit_img = np.c_[uv, (points[:, 2] - points[0, 2] + 1) / 2 * 64]
    fit_trunc = (fit_img >= 0).all(1) & (fit_img < 64).all(1)
    if official and flip:  # in the camera of the picture itself
        points[:, 0] += 2 * (((WIDTH - 1) / 2 - cx) / fx * points[0, 2])
    fit_cam = points if official else (points - points[0]) @ rz.T
    if not official:
        root_turned = torch.from_numpy(rz @ rotation_matrices(pose[0]))
        pose[0] = to_axis_angle(root_turned)
    known = np.ones((24, 3))
    known[[7, 8, 10, 11, 20, 21, 22, 23]] = 0
    large = (np.abs(betas) > 3).any()
    fitted = p["fitted"] and not (kind.absolute_fit and mpii_fit == "off")
    return {
        "joint_img": own,
        "joint_cam": joints3d[:, :3] @ rz.T,
        "valid": valid,
        "trunc": trunc,
        "fit_img": fit_img,
        "fit_cam": fit_cam,
        "fit_trunc": fit_trunc,
        "pose": pose.ravel(),
        "pose_valid": known.ravel(),
        "betas": 0 * betas if large and large_betas == "official" else betas,
        "betas_valid": not large or large_betas == "official",
        "fitted": fitted,
        "has_3d": kind.has_3d,
    }


def check(found: BodyTargets, wanted: list[dict]) -> None:
    for name, value in found._asdict().items():
        value, expected = value.double().numpy(), np.stack([np.float64(w[name]) for w in wanted])
        if name in ("joint_img", "joint_cam"):  # of others nothing is said
            there = np.stack([w["valid"] for w in wanted])[..., None]
            value, expected = value * there, expected * there
            if name == "joint_img":
                depth = np.stack([np.r_[1, 1, w["has_3d"]] for w in wanted])[:, None]
                value, expected = value * depth, expected * depth
        np.testing.assert_allclose(value, expected, atol=2e-3 if "img" in name else 2e-5, err_msg=name)


# The targets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", DRAWS)
def test_targets_are_those_of_the_rules(draw):
    """Four data sets in a batch, two people each, one of them outside of the crop in part."""
    people = [person(kind, seed) for kind in ("h36m", "muco", "coco", "mpii") for seed in (1, 2)]
    people[1]["box"] = people[1]["box"] * np.float32([1, 1, 0.4, 0.4])
    people[2]["joints3d"][9, 2] = 1.2  # farther than the cube reaches
    wanted = [literal(p, draw) for p in people]
    assert not all(w["fit_trunc"].all() for w in wanted)
    assert not wanted[2]["trunc"][FLIP30[9]]
    check(targets_of([sample(p, draw) for p in people]), wanted)


@pytest.mark.parametrize("draw", [d for d in DRAWS if d[2]])
def test_a_mirrored_body_in_the_camera_of_the_picture(draw):
    """Where the principal point is the middle of the picture, all is as the official code has it: the body is moved
    until the pixel of its root is mirrored."""
    p = person("h36m", 2)
    p["camera"][2] = (WIDTH - 1) / 2
    vertices = skinned(BODIES.neutral, swap(p["pose"].reshape(24, 3) * [1, -1, -1]), p["betas"]) + p["trans"]
    root, (fx, fy, cx, cy) = BODIES.joints30[0] @ vertices, p["camera"]
    vertices[:, 0] += 2 * ((WIDTH - 1) / 2 - cx) / fx * root[2] - 2 * root[0]
    points = BODIES.joints30 @ vertices
    uv = points[:, :2] / points[:, 2:] * [fx, fy] + [cx, cy]
    straight = BODIES.joints30 @ (skinned(BODIES.neutral, p["pose"].reshape(24, 3), p["betas"]) + p["trans"])
    assert uv[0, 0] == pytest.approx(WIDTH - 1 - (straight[0, 0] / straight[0, 2] * fx + cx), abs=1e-3)
    s = sample(p, draw)
    found = targets_of([s]).fit_img[0, :, :2]
    np.testing.assert_allclose(found, np.c_[uv, np.ones(30)] @ s["to_units"].T, atol=2e-3)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("setting", ["official", "fixed", "off"])
def test_fits_of_mpii(setting, draw):
    """The official code neither subtracts the root from the joints nor turns them with the crop; others are not
    touched."""
    people = [person(kind, 3) for kind in ("mpii", "coco")]
    found = targets_of([sample(p, draw) for p in people], mpii_fit=setting)
    check(found, [literal(p, draw, mpii_fit=setting) for p in people])
    depth = found.fit_cam[:, 0].abs().sum(1)
    assert depth[1] < 1e-5
    assert (depth[0] > 2) == (setting == "official")
    assert found.fitted.tolist() == [setting != "off", 1]


@pytest.mark.parametrize("setting", ["official", "fixed"])
def test_fits_of_people_who_cannot_be(setting):
    """A coefficient beyond 3: the mean shape is the target, or none; the joints stay those of the fit."""
    people = [person("coco", 4), person("coco", 4)]
    people[1]["betas"][6] = -3.01
    found = targets_of([sample(p) for p in people], large_betas=setting)
    check(found, [literal(p, DRAWS[0], large_betas=setting) for p in people])
    assert found.betas_valid.tolist() == [1, setting == "official"]
    assert found.betas[1].any() == (setting == "fixed")
    assert not torch.allclose(found.fit_cam[0], found.fit_cam[1])


def test_depths_of_the_cube():
    p = person("h36m", 0)
    p["joints3d"][:4, 2], p["joints3d"][:, 3], p["joints"][:, 2] = (-1, -0.5, 0, 0.25), 1, 1
    p["joints"][:4, :2] = p["box"][:2] + p["box"][2:] / 2
    found = targets_of([sample(p)])
    assert found.joint_img[0, :4, 2].tolist() == [0, 16, 32, 40]
    p["joints3d"][:4, 2] = -1.0001, 1, 0.9999, -1
    assert sample(p)["trunc"][:4].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(("kind", "checked"), [("h36m", H36M), ("muco", MUCO_CHECKED)])
@pytest.mark.parametrize("draw", [DRAWS[0], DRAWS[3]])
@pytest.mark.parametrize(("off", "fitted"), [(0.0249, 1), (0.0251, 0)])
def test_fits_that_are_far_from_the_joints(kind, checked, draw, off, fitted):
    """25 mm in the mean over the joints that are compared, both sets around their means."""
    p = person(kind, 5)
    joints = np.asarray(BODIES.h36m) @ (skinned(BODIES.neutral, p["pose"].reshape(24, 3), p["betas"]))
    rng = np.random.default_rng(0)
    sign = np.where(np.arange(len(checked)) % 2, 1, -1) * (np.arange(len(checked)) < len(checked) // 2 * 2)
    moved = rng.normal(0, 10, (30, 3))  # all that is not compared
    direction = rng.normal(0, 1, 3)
    moved[places(checked)] = joints[places(checked, H36M)] + np.outer(sign, direction) + (1, 2, 3)
    scale = off / np.linalg.norm(np.outer(sign, direction), axis=1).mean()
    moved[places(checked)] += (scale - 1) * np.outer(sign, direction)
    p["joints3d"][:, :3] = moved
    assert targets_of([sample(p, draw)]).fitted.tolist() == [fitted]


def test_people_whose_bodies_are_known():
    """The joints are the body's own, all of them, in 3D, by the body of their gender; nothing of a fit is unknown."""
    people = [person("own", seed, gender=seed) for seed in range(3)]
    for p in people:
        p["joints"][:], p["joints3d"][:] = 0, 0
    found = targets_of([sample(p, DRAWS[3]) for p in people])
    wanted = [literal(p, DRAWS[3]) for p in people]
    for name in ("fit_img", "fit_cam", "fit_trunc", "pose"):
        np.testing.assert_allclose(getattr(found, name), np.stack([w[name] for w in wanted]), atol=2e-3)
    assert torch.equal(found.joint_img, found.fit_img)
    assert torch.equal(found.joint_cam, found.fit_cam)
    assert torch.equal(found.trunc, found.fit_trunc)
    for name in ("valid", "pose_valid", "fitted", "has_3d"):
        assert getattr(found, name).min() == 1, name


@pytest.mark.parametrize("loss", [CrowdNetLoss(), Hmr2Loss()])
def test_people_without_a_fit_cost_what_their_joints_do(loss):
    """Their numbers are zeros, so a body would lie in the camera: nothing of it reaches the loss."""
    zeros = {
        "pose": np.zeros(72, np.float32),
        "betas": np.zeros(10, np.float32),
        "trans": np.zeros(3, np.float32),
    }
    unknown = zeros | {"fitted": False, "camera": np.full(4, np.nan, np.float32)}
    people = [person(kind, 6, **unknown) for kind in ("h36m", "coco", "mpii")]
    found = targets_of([sample(p, DRAWS[1]) for p in people])
    assert not found.fitted.any()
    numbers = [
        torch.randn(3, *shape, requires_grad=True) for shape in ((24, 3), (10,), (30, 3), (30, 2), (15, 3))
    ]
    said = BodyPrediction(to_matrix(numbers[0]), *numbers[1:])
    losses = loss(said, found)
    assert all(value.isfinite() for value in losses.values())
    losses["loss"].backward()
    assert all(n.grad is None or n.grad.isfinite().all() for n in numbers)
    assert not numbers[0].grad.any()
    assert not numbers[1].grad.any()
    assert numbers[3].grad.any()


@pytest.mark.parametrize(("norm", "white"), [("none", (1, 1, 1)), ("imagenet", (2.2489083, 2.4285714, 2.64))])
def test_levels_of_the_pixels(norm, white):
    """That the network is given: from 0 to 1 as in the official code, or as in pre-training."""
    seen = []
    model = torch.nn.Identity()
    model.forward = lambda images, joints, mask: seen.append(images)
    task = Pose3d(
        model, StepRecipe(epochs=1, lr=1.0), None, loss=CrowdNetLoss(), bodies=BODIES, input_norm=norm
    )
    task(
        {"image": torch.full((1, 3, 2, 2), 255, dtype=torch.uint8), "input_joints": None, "input_mask": None}
    )
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor(white, dtype=torch.float32))


@pytest.mark.parametrize("seed", [0, 1])
def test_losses_are_float32_under_autocast(seed):
    """Meshes, joints, projections and targets: 24 m away half precision would move joints by centimetres."""
    torch.manual_seed(seed)
    model = CrowdNet(
        img_size=(256, 256), patch_size=16, embed_dim=16, depth=1, num_heads=2, feature_dim=8, graph_dim=4
    )
    task = Pose3d(model, StepRecipe(epochs=1, lr=1.0), None, loss=CrowdNetLoss(), bodies=BODIES)
    batch = default_collate([sample(person(kind, seed), DRAWS[3]) for kind in KINDS])
    outputs = BodyOutput(
        to_matrix(torch.randn(5, 24, 3)),
        torch.randn(5, 10),
        torch.randn(5, 3) + 24 * torch.eye(3)[2],
        torch.rand(5, 15, 3),
    )
    plain = task.losses(outputs, batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(
            torch.stack(list(task.losses(outputs, batch).values())), torch.stack(list(plain.values()))
        )
    assert not task.eval().losses(outputs, batch)


# The transform ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draw", "pixel"),
    [
        ((0, None, False), (102.59248, 51.26416)),
        ((1, 1, False), (79.70282, 84.99886)),
        ((0, None, True), (153.40752, 51.26416)),
        ((-1, -1, True), (208.49530, 56.33143)),
    ],
)
def test_a_joint_and_its_pixel(draw, pixel):
    """Worked out by hand; and the picture goes the same way: a dot is where its joint is."""
    p = person("coco", 0, box=np.float32([100, 50, 200, 400]))
    p["joints"][0] = 150, 100, 1
    image = np.zeros((1080, 1920, 3), np.uint8)
    image[97:104, 147:154] = 255
    found = sample(p, draw, image)
    np.testing.assert_allclose(found["joints"][0] * 4, pixel, atol=1e-3)
    np.testing.assert_allclose(found["input_joints"][0] * 4, pixel, atol=1e-3)
    dot = np.argwhere(found["image"][0].numpy() > 127).mean(0)[::-1]
    np.testing.assert_allclose(dot, pixel, atol=0.3)
    assert found["turn"] == pytest.approx(np.radians(30 * (draw[1] or 0)))


def test_colours_and_draws_of_a_generator():
    """Within their bounds and as often as they should be; the same from the same seed."""
    p, image = person("coco", 0), np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    transform = Pose3dTrain((64, 64), joint_errors=False)
    rng, found = np.random.default_rng(0), []
    for _ in range(400):
        found.append(transform(image, p, rng))
    turns = np.degrees([s["turn"] for s in found])
    assert np.abs(turns).max() <= 60
    assert (turns == 0).mean() == pytest.approx(0.4, abs=0.08)
    assert np.mean([s["flip"] for s in found]) == pytest.approx(0.5, abs=0.08)
    side = crop_box(p["box"], np.array([WIDTH, HEIGHT]))[2]
    scales = np.array([64 / np.linalg.norm(s["to_units"][:, 0]) for s in found]) / side
    assert scales.min() == pytest.approx(0.75)
    assert scales.max() == pytest.approx(1.25)
    assert 0.25 < np.mean((scales > 0.7501) & (scales < 1.2499)) < 0.75
    middle = np.array([s["image"][:, 32, 32].numpy() for s in found]) / 200
    assert middle.min() >= 0.795
    assert middle.max() <= 1.205
    assert np.std(middle[:, 0] - middle[:, 2]) > 0.1
    again = [Pose3dTrain((64, 64))(image, p, np.random.default_rng(7)) for _ in range(2)]
    for name, value in again[0].items():
        np.testing.assert_array_equal(value, again[1][name])


NEAR = np.zeros((1, 17, 3), np.float32)
NEAR[0, :3] = [(90, 60, 1), (200, 80, 1), (0, 0, 0)]  # nose, eyes; the right one is not labelled


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("setting", ["fixed", "official"])
def test_joints_of_neighbours(monkeypatch, setting, flip):
    """In the official code they are not mirrored, and joints in the corner are labelled; else they go with the
    picture, left as right."""
    seen = []
    true = pose3d_transforms.perturb
    monkeypatch.setattr(pose3d_transforms, "perturb", lambda *args: seen.append(args) or true(*args))

    class Rng(Draws):
        def __getattr__(self, name: str):
            return getattr(np.random.default_rng(0), name)

        def random(self, *size: int):
            return np.random.default_rng(0).random(*size) if size else super().random()

    p = person("coco", 7, near=NEAR)
    draw = (0.5, 0.5, flip)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    Pose3dTrain((256, 256), near_joints=setting)(image, p, Rng(*draw))
    (_, near, area, _) = seen[0]
    scale, turn = 1.125, 15.0
    box = crop_box(p["box"], np.array([WIDTH, HEIGHT])).astype(float)
    to_crop = np.diag([4, 4, 1]) @ affine(box, scale, turn, flip, WIDTH)
    expected = NEAR[0].astype(float)
    if setting == "official":
        expected[:, 2] = 1
    elif flip:
        expected[:2, 0] = WIDTH - 1 - expected[:2, 0]
        expected[[1, 2]] = expected[[2, 1]]
    labelled = expected[:, 2] > 0
    xy = (np.c_[expected[:, :2], np.ones(17)] @ to_crop.T)[:, :2]
    np.testing.assert_array_equal(near[0, :, 2] > 0, labelled)
    np.testing.assert_allclose(near[0, labelled, :2], xy[labelled], atol=1e-3)
    assert area == pytest.approx(np.prod(p["box"][2:]) * (256 / (box[2] * scale)) ** 2, rel=1e-5)


def test_only_joints_of_coco_are_disturbed_and_masks_are_of_the_true_ones():
    p = person("h36m", 8)
    p["joints"][:, 2] = 1
    p["joints"][4, :2] = 5000, 5000  # out of the crop, and labelled
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    found = Pose3dTrain((256, 256))(image, p, np.random.default_rng(0))
    moved = (found["input_joints"] != found["joints"]).any(1)
    names = {SMPL30[i] for i in np.flatnonzero(moved)}
    assert {"Nose", "L_Wrist", "R_Ankle"} < names
    assert names.isdisjoint({"Pelvis", "Torso", "Neck", "Head_top", "Spine", "L_Hand"})
    np.testing.assert_array_equal(found["input_mask"], found["trunc"])
    assert found["valid"][4] == 1
    assert found["trunc"][4] == 0


def test_an_evaluation_sees_the_joints_or_the_box():
    """Worked out by hand: joints with a margin, the box of a person, the whole picture."""
    image = np.zeros((1080, 1920, 3), np.uint8)
    joints = np.zeros((30, 3), np.float32)
    joints[:3] = (100, 200, 1), (300, 600, 1), (250, 100, 0)
    given = {"joints": joints, "box": np.float32([10, 10, 5, 5]), "kind": Kind("3dpw", from_joints=True)}
    rng = np.random.default_rng(0)
    found = Pose3dEval((256, 256))(image, given, rng)
    x, y, side = -99.875, 100.125, 598.75
    np.testing.assert_allclose(
        [*found["center"], found["side"]], [x + side / 2, y + side / 2, side], rtol=1e-6
    )
    np.testing.assert_allclose(
        found["input_joints"][0], (np.array([100, 200]) - [x, y]) * 64 / side, atol=1e-4
    )
    assert found["input_mask"].sum() == 2
    for without in (given | {"joints": 0 * joints}, given | {"kind": Kind("own")}):
        boxed = Pose3dEval((256, 256))(image, without, rng)
        np.testing.assert_allclose(boxed["side"], 1.25 * 4)
    whole = Pose3dEval((256, 256))(image, {}, rng)
    assert whole["side"] == pytest.approx(1.25 * 1919)
    assert not whole["input_mask"].any()


# Mirror and turn --------------------------------------------------------------------------------------------


def mirrored_vertices() -> np.ndarray:
    """The vertex on the other side of each of the drawn body's."""
    points = BODIES.neutral.v_template * 1000
    other = points * [-1, 1, 1]
    apart = np.linalg.norm(other[:, None] - points[None], axis=2)
    assert apart.min(1).max() < 0.1
    return apart.argmin(1)


def test_the_mirror_image_of_parameters_is_that_of_the_mesh():
    """100 people: mirrored twice they are as before; once, their mesh is the mirror image with the sides exchanged."""
    rng = np.random.default_rng(0)
    pose = torch.tensor(rng.normal(0, 0.6, (100, 24, 3)), dtype=torch.float32)
    betas = torch.tensor(rng.normal(0, 1, (100, 10)), dtype=torch.float32)
    flip, other = FLIP30[:24], mirrored_vertices()
    mirrored = pose[:, flip] * torch.tensor([1, -1, -1])
    assert torch.equal(mirrored[:, flip] * torch.tensor([1, -1, -1]), pose)
    model = BodyModel(BODIES.neutral)
    mesh, mirror = (model(to_matrix(p), betas).vertices for p in (pose, mirrored))
    torch.testing.assert_close(mirror[:, other], mesh * torch.tensor([-1, 1, 1]), rtol=0, atol=2e-4)
    angle = torch.tensor(rng.uniform(-1, 1, 100), dtype=torch.float32)
    there = about_z(-angle) @ to_matrix(pose[:, 0])
    back = to_matrix(to_axis_angle(about_z(angle) @ to_matrix(to_axis_angle(there))))
    torch.testing.assert_close(back, to_matrix(pose[:, 0]), rtol=0, atol=1e-5)


READERS = {
    "coco3d": read_coco3d,
    "mpii3d": read_mpii3d,
    "muco": read_muco,
    "h36m": lambda root: read_h36m(root, BODIES),
    "bodies3d": lambda root: read_bodies3d(root, BODIES)["train"],
}


# Joints that all sets and the body have alike.
SAME = places(
    [f"{side}_{name}" for side in "LR" for name in ("Hip", "Knee", "Ankle", "Shoulder", "Elbow", "Wrist")]
)


@pytest.mark.parametrize("name", READERS)
def test_bodies_of_drawn_people_lie_on_their_joints(drawn, name):
    """In every draw of the transform: in the crop, in depth, and turned in space; the data set's joints are drawn from
    the same bodies, by its own regressor in 3D."""
    people = READERS[name](Path(drawn(name, 10)))
    transform, rng = Pose3dTrain((64, 64), joint_errors=False), np.random.default_rng(0)
    rows = np.flatnonzero(people.fitted)[:8]
    samples = [
        transform(people[row].pixels(), people[row].annotations(), rng)
        for row in rows
        for _ in range(100 // len(rows))
    ]
    assert {s["flip"] for s in samples} == {0, 1}
    found = targets_of(samples)
    assert found.fitted.all()
    own = torch.stack([torch.as_tensor(s["joints"]) for s in samples])
    there = torch.stack([torch.as_tensor(s["valid"]) for s in samples]) > 0
    there &= torch.isin(torch.arange(30), torch.from_numpy(SAME))
    if people.kind.exact:  # its joints are the body's, which are in the picture
        assert found.fit_trunc.mean() > 0.5
        return
    assert there.any(1).all()
    apart = (found.fit_img[..., :2] - own).norm(dim=2)[there]
    assert apart.max() < 0.1
    if (
        people.kind.has_3d
    ):  # but for a few centimetres between two definitions of a pelvis, by which all are moved
        moved = found.fit_cam - found.joint_cam
        count = there.sum(1)[:, None, None]
        mean = (moved * there[..., None]).sum(1, keepdim=True) / count
        assert mean.norm(dim=2).max() < 0.06
        assert ((moved - mean) * there[..., None]).abs().max() < 1e-3
