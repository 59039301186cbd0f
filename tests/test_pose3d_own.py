"""People whose bodies are known: joints are those of the meshes, and what is wrong in a file is named."""

import io
import logging
import pickle
import zipfile
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from hap.body.arrays import GENDERS
from hap.body.joints import COCO, SMPL30, places
from hap.body.model import BodyModel
from hap.body.rotations import to_axis_angle, to_matrix
from hap.data.pose3d_own import read_bedlam, read_bodies3d
from hap.errors import HapError
from hap.synthetic.datasets import synthesize
from hap.synthetic.smpl import drawn_bodies

BODIES = drawn_bodies()
FOCAL, CENTER = (1200.0, 1180.0), (640.0, 360.0)
SIZE = (1280, 720)
PEOPLE = 6  # two in an image


def upright(seed=0, count=PEOPLE):
    """Parameters of people in front of the camera, their feet down."""
    rng = np.random.default_rng(seed)
    pose = rng.normal(0, 0.2, (count, 24, 3))
    pose[:, 0] = (np.pi, 0, 0)
    pose[:, 0] += rng.normal(0, 0.1, (count, 3))
    trans = np.column_stack(
        [rng.uniform(-1, 1, count), rng.uniform(-0.3, 0.3, count), rng.uniform(5, 8, count)]
    )
    return {"pose": pose.reshape(count, 72), "betas": rng.normal(0, 1, (count, 10)), "trans": trans}


def joints_of(fit, gender=0):
    """Where the body model puts the joints (N, 24, 3), and where the camera sees them (N, 24, 2)."""
    rotations = to_matrix(torch.from_numpy(fit["pose"]).unflatten(1, (24, 3)))
    betas, trans = torch.from_numpy(fit["betas"]), torch.from_numpy(fit["trans"])
    points = BodyModel(BODIES.of(gender))(rotations, betas, trans).joints.double().numpy()
    return points, points[..., :2] / points[..., 2:] * FOCAL + CENTER


def own(**changes):
    """Arrays of a file; None takes one away."""
    names = [f"{i // 2}.png" for i in range(PEOPLE)]
    arrays = {"image": np.array(names), **upright(), "focal": np.array(FOCAL), "center": np.array(CENTER)}
    return {name: value for name, value in (arrays | changes).items() if value is not None}


@pytest.fixture
def write(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"images/{i}.png"), np.zeros((8, 8, 3), np.uint8))

    def write(arrays, split="val"):
        np.savez(tmp_path / "annotations/train.npz", **own())
        np.savez(tmp_path / f"annotations/{split}.npz", **arrays)
        return tmp_path

    return write


def box_around(xy):
    low, high = xy.min(1), xy.max(1)
    return np.concatenate([(low + high) / 2 - 0.6 * (high - low), 1.2 * (high - low)], axis=1)


def test_a_file_becomes_columns(write):
    arrays = own(focal=np.tile(FOCAL, (PEOPLE, 1)))
    splits = read_bodies3d(write(arrays), BODIES)
    assert list(splits) == ["train", "val"]
    people = splits["val"]
    assert people.files == ["0.png", "1.png", "2.png"]
    assert people.image.tolist() == [0, 0, 1, 1, 2, 2]
    assert people.kind.exact
    assert people.kind.name == "bodies3d"
    assert not people.kind.from_joints
    assert people.fitted.all()
    assert not people.gender.any()
    assert not people.sizes.any()
    assert "6 people in 3 images, neutral bodies" in people.protocol
    for name in ("pose", "betas", "trans"):
        np.testing.assert_allclose(getattr(people, name), arrays[name], rtol=1e-6)
        assert getattr(people, name).dtype == np.float32
    np.testing.assert_allclose(people.camera, [(*FOCAL, *CENTER)] * PEOPLE)
    xy = joints_of(arrays)[1]
    np.testing.assert_allclose(people.joints[:, :24, :2], xy, atol=2e-3)
    assert (people.joints[:, :24, 2] == 1).all()
    assert not people.joints[:, 24:].any()
    np.testing.assert_allclose(people.box, box_around(xy), atol=5e-3)
    assert people[3].name == "1.png, person 3"
    assert people[0].pixels().shape == (8, 8, 3)


def test_people_come_by_image_and_know_who_is_near(write):
    fit = upright()
    fit["trans"][3] = fit["trans"][0] + (0.1, 0, 0.5)  # of one image, one before the other
    fit["trans"][1] = fit["trans"][4] - (3, 0, 0)
    names = np.array(["2.png", "./1.png", "0.png", "2.png", "1.png", "images/../0.png"])
    people = read_bodies3d(write(own(image=names, **fit)), BODIES)["val"]
    assert people.ids == [2, 5, 1, 4, 0, 3]
    assert [people.files[i] for i in people.image] == ["0.png"] * 2 + ["1.png"] * 2 + ["2.png"] * 2
    np.testing.assert_allclose(people.trans, fit["trans"][people.ids], rtol=1e-6)
    near = [people[i].annotations()["near"] for i in range(PEOPLE)]
    assert len(near[2]) == len(near[3]) == 0
    assert len(near[4]) == len(near[5]) == 1
    body = places(COCO)
    np.testing.assert_array_equal(near[4][0], people.joints[5, body])
    assert near[4][0, :5, 2].sum() == 0  # a body has no face


def test_key_points_are_the_input_and_a_box_is_a_box(write):
    arrays = own()
    xy = joints_of(arrays)[1]
    shared = places(COCO)
    keypoints = np.full((PEOPLE, 17, 3), 500.0)
    keypoints[:, 5:, :2] = xy[:, shared[5:]] + 2
    keypoints[..., 2] = 0.9
    keypoints[0, COCO.index("L_Hip"), 2] = 0
    boxes = np.tile([10.0, 20, 300, 400], (PEOPLE, 1))
    people = read_bodies3d(write(own(keypoints=keypoints, box=boxes)), BODIES)["val"]
    np.testing.assert_allclose(people.joints[:, shared, :2], keypoints[..., :2], rtol=1e-6)
    assert (people.joints[1:, shared, 2] == 1).all()
    assert people.joints[0, SMPL30.index("L_Hip"), 2] == people.joints[0, 0, 2] == 0
    hips = [COCO.index("L_Hip"), COCO.index("R_Hip")]
    np.testing.assert_allclose(people.joints[:, 0, :2], keypoints[:, hips, :2].mean(1), rtol=1e-6)
    assert (people.joints[1:, 0, 2] == 1).all()
    assert not people.joints[:, SMPL30.index("Spine")].any()
    np.testing.assert_array_equal(people.box, boxes)


def test_bodies_are_those_of_their_gender(write):
    names = np.array(["m", "F", "neutral", "Male", "female", "f"])
    arrays = own(gender=names)
    people = read_bodies3d(write(arrays), BODIES)["val"]
    assert [GENDERS[g] for g in people.gender] == ["male", "female", "neutral", "male", "female", "female"]
    for row, gender in enumerate(people.gender):
        np.testing.assert_allclose(people.joints[row, :24, :2], joints_of(arrays, gender)[1][row], atol=2e-3)
    assert "neutral and male and female bodies" in people.protocol
    with pytest.raises(HapError, match="drawn has no female body"):
        read_bodies3d(write(arrays), replace(BODIES, female=None))


def test_who_is_not_seen_is_left_out(write, caplog):
    fit = upright(count=40)
    fit["trans"][3, 2] = -5
    boxes = box_around(joints_of(fit)[1])
    boxes[7, 2:] = -10
    boxes[8, 3] = 0
    arrays = own(image=np.full(40, "0.png"), box=boxes, **fit)
    with caplog.at_level(logging.INFO):
        people = read_bodies3d(write(arrays), BODIES)["val"]
    assert people.ids == [i for i in range(40) if i not in (3, 7, 8)]
    assert "left out 3 of 40 people" in caplog.text


def swapped(name, row, value):
    array = own()[name].copy()
    array[row] = value
    return {name: array}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pose": None, "focal": None}, "no array pose, focal"),
        ({"keypoint": np.zeros((6, 17, 3))}, "arrays that nothing reads: keypoint; known are image, pose"),
        ({"pose": np.zeros((6, 165))}, r"pose is \(6, 165\), not \(6, 72\): these are SMPL-X's"),
        ({"pose": np.zeros((6, 156))}, "of SMPL with hands"),
        ({"pose": np.zeros((6, 24, 3))}, r"pose is \(6, 24, 3\), not \(6, 72\)"),
        ({"betas": np.zeros((6, 5))}, r"betas is \(6, 5\), not \(6, 10\)"),
        ({"betas": np.zeros((6, 11))}, "the last is of age"),
        ({"betas": np.zeros((6, 300))}, "take the first ten"),
        ({"betas": np.zeros((5, 10))}, r"betas is \(5, 10\), not \(6, 10\)"),
        ({"trans": np.array([["0"] * 3] * 6)}, "trans is of <U1, not of numbers"),
        ({"trans": np.float64(3)}, r"trans is \(\), not \(6, 3\)"),
        (swapped("pose", 4, np.nan), "pose of 1 of 6 is not finite\n  row 4"),
        (swapped("trans", slice(2), np.inf), "trans of 2 of 6 is not finite\n  row 0\n  row 1"),
        ({"focal": np.float64(1000)}, r"focal is \(\), not \(6, 2\)"),
        ({"gender": np.array([*"mfmfm", "x"])}, "gender is m, f or neutral, not 'x'"),
        ({"gender": np.array([1, 0, 0, 1, 1, 0])}, r"gender is \(6,\) of int64, not \(N,\) of text"),
        ({"gender": np.array(["m"])}, "gender of 1 of 6 people"),
        ({"image": np.arange(6)}, "image is .* not .* of text"),
        ({"image": np.array([], str)}, "image is .* not .* of text"),
        ({"image": np.array(["../0.png"] * 6)}, "leads out of the folder of images\n  ../0.png"),
        ({"image": np.array(["7.png"] * 3 + ["0.png"] * 3)}, "lacks 1 of the 2 images that .*val.npz names\n  7.png"),
        ({"image": np.array(["0.png"] * 6, object)}, "image cannot be read: Object arrays"),
        ({"trans": upright()["trans"] * 1000}, r"6 of 6 people are .* m away.* metres \(a factor of 1000"),
        ({"trans": upright()["trans"] / 1000}, "trans in metres"),
        ({"trans": (0, 0.3, 0) + upright()["trans"] * (0, 0, 0.02)}, "where a metre has .* trans has to be in metres"),
        ({"trans": upright()["trans"] * (1, 1, -1)}, "6 of 6 people are behind the camera"),
        ({"focal": np.array((35.0, 35.0)) / 1000}, "focal in pixels"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(write, changes, message):
    root = write(own(**changes))
    with pytest.raises(HapError, match=f"(?s)val.npz.*{message}|{message}"):
        read_bodies3d(root, BODIES)


def test_bodies_of_another_frame_are_noticed(write):
    """As many files have them: y up, the root not turned; and key points of another crop."""
    arrays = own()
    keypoints = np.ones((PEOPLE, 17, 3))
    keypoints[:, 5:, :2] = joints_of(arrays)[1][:, places(COCO)[5:]]
    keypoints[:, :5, 2] = 0
    assert len(read_bodies3d(write(own(keypoints=keypoints)), BODIES)["val"]) == PEOPLE
    standing = arrays["pose"].copy()
    standing[:, :3] = 0
    for changes in ({"pose": standing}, {"center": np.array((112.0, 112.0))}):
        with pytest.raises(HapError, match=r"not where their key points are, by \d+%"):
            read_bodies3d(write(own(keypoints=keypoints, **changes)), BODIES)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 damaged", "npy", "pickle"])
def test_what_is_no_archive(write, content):
    root = write(own())
    file = root / "annotations/val.npz"
    if content == "npy":
        np.save(root / "array.npy", np.zeros(3))
        content = (root / "array.npy").read_bytes()
    elif content == "pickle":
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "|O", "fortran_order": False, "shape": (PEOPLE,)}
        )
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr("gender.npy", stream.getvalue() + pickle.dumps(print))
        content = file.read_bytes()
    file.write_bytes(content)
    with pytest.raises(HapError, match=r"val.npz is no .npz of plain arrays, (it|gender) cannot be read"):
        read_bodies3d(root, BODIES)


def test_truncated(write):
    root = write(own())
    file = root / "annotations/val.npz"
    file.write_bytes(file.read_bytes()[:-400])
    with pytest.raises(HapError, match=r"no \.npz of plain arrays"):
        read_bodies3d(root, BODIES)


def test_splits(write):
    root = write(own(), "test")
    with pytest.raises(
        HapError, match=r"annotations has no val.npz: people of one's own, with arrays image, pose"
    ):
        read_bodies3d(root, BODIES)
    np.savez(root / "annotations/val.npz", **own())
    assert list(read_bodies3d(root, BODIES)) == ["train", "val", "test"]


def test_drawn_people(tmp_path):
    """As `synthesize` writes them, of all genders: key points of the pictures, and without them those of the bodies."""
    root = tmp_path / "drawn"
    synthesize("bodies3d", root, num_images=8)
    found = read_bodies3d(root, BODIES)["train"]
    assert all(person.pixels().ndim == 3 for person in found)
    assert set(found.gender) == {0, 1, 2}
    file = root / "annotations/train.npz"
    with np.load(file) as content:
        np.savez(file, **{name: content[name] for name in content if name not in ("keypoints", "box")})
    bodies = read_bodies3d(root, BODIES)["train"]
    both = (found.joints[..., 2] > 0) & (bodies.joints[..., 2] > 0)
    both[:, 0] = False  # a pelvis is not the middle of the hips
    assert both.sum() > 5 * len(found)
    np.testing.assert_allclose(found.joints[both], bodies.joints[both], atol=1)


def bedlam(count=4, **changes):
    """Labels of a scene: parts of the translation are in trans_cam and in cam_ext, `gender` is not the body's."""
    fit = upright(3, count)
    outer = np.tile(np.eye(4), (count, 1, 1))
    outer[:, :3, 3] = (0.5, -0.2, 2)
    inner = np.zeros((count, 3, 3))
    inner[:] = ((FOCAL[0], 0, CENTER[0]), (0, FOCAL[1], CENTER[1]), (0, 0, 1))
    keypoints = np.concatenate([joints_of(fit)[1], np.full((count, 21, 2), 9e9)], axis=1)
    arrays = {
        "imgname": np.array([f"seq_000000/seq_000000_{i // 2:04d}.png" for i in range(count)]),
        "pose_cam": fit["pose"],
        "shape": np.column_stack([fit["betas"], np.ones(count)]),
        "trans_cam": fit["trans"] - outer[:, :3, 3],
        "cam_int": inner,
        "cam_ext": outer,
        "gtkps": np.concatenate([keypoints, np.ones((count, 45, 1))], axis=2),
        "gender": np.array(["male"] * count),
        "motion_info": np.array([{"a": 1}] * count, object),
    } | changes
    return {name: value for name, value in arrays.items() if value is not None}


@pytest.fixture
def scene(tmp_path):
    root = tmp_path / "BEDLAM"
    (root / "training_images").mkdir(parents=True)
    (root / "training_labels/all").mkdir(parents=True)

    def write(name="20221010_suburb", size=SIZE, **changes):
        arrays = bedlam(**changes)
        np.savez(root / f"training_labels/all/{name}.npz", **arrays)
        for file in np.unique(arrays["imgname"]) if size else ():
            path = root / "training_images" / name / "png" / str(file)
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.zeros((size[1], size[0], 3), np.uint8))
        return root

    return write


def test_bedlam(scene):
    scene("b", count=2)
    people = read_bedlam(scene("a"), BODIES)
    fit = upright(3, 4)
    assert people.kind.exact
    assert len(people) == 6
    assert people.files[0] == "a/png/seq_000000/seq_000000_0000.png"
    assert people.ids == [0, 1, 2, 3, 0, 1]
    assert (people.sizes == SIZE).all()
    assert not people.gender.any()
    for name in ("pose", "betas", "trans"):
        np.testing.assert_allclose(getattr(people, name)[:4], fit[name], atol=1e-5)
    np.testing.assert_allclose(people.joints[:4, :24, :2], joints_of(fit)[1], atol=2e-3)
    np.testing.assert_allclose(people.box[:4], box_around(joints_of(fit)[1]), atol=5e-3)
    assert people[0].pixels().shape == (720, 1280, 3)


def test_bedlam_of_the_world(scene):
    """Without pose_cam the root is turned into the camera, as it is where the labels are made."""
    arrays = bedlam()
    turn = to_matrix(torch.tensor((0.3, -0.2, 0.1), dtype=torch.float64))
    world = arrays["pose_cam"].copy()
    world[:, :3] = to_axis_angle(turn.T @ to_matrix(torch.from_numpy(world[:, :3]))).numpy()
    outer = arrays["cam_ext"].copy()
    outer[:, :3, :3] = turn.numpy()
    people = read_bedlam(scene(pose_cam=None, pose_world=world, cam_ext=outer), BODIES)
    rotations = (
        to_matrix(torch.from_numpy(p).unflatten(1, (24, 3))) for p in (people.pose, arrays["pose_cam"])
    )
    np.testing.assert_allclose(*rotations, atol=1e-5)


def test_scenes_of_bedlam_that_cannot_be_used_are_left_out(scene, caplog):
    inner = bedlam()["cam_int"][:, [1, 0, 2]][:, :, [1, 0, 2]]  # upright, by the labels
    scene("closeup", cam_int=inner)
    scene("absent", size=None)
    people = read_bedlam(scene("whole"), BODIES)
    assert {file.split("/")[0] for file in people.files} == {"whole"}
    assert (
        "2 of 3 scenes left out\n  absent: no images\n  closeup: its images lie on their side" in caplog.text
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pose_cam": np.zeros((4, 165))}, r"pose_cam is \(4, 165\).*labels of SMPL's body"),
        ({"pose_cam": None}, "no array pose_cam, and no pose_world"),
        ({"shape": np.zeros((4, 16))}, r"shape is \(4, 16\), not \(4, 10\)"),
        ({"trans_cam": None, "cam_ext": None}, "no array trans_cam, cam_ext"),
        ({"cam_ext": np.tile(np.eye(4), (4, 1, 1))}, "not where their key points are"),
        ({"trans_cam": bedlam()["trans_cam"] * 1000}, "factor of 1000"),
        ({"size": (640, 360)}, "images of 1280 x 720 pixels by its cameras, the first has 640 x 360"),
        ({"size": None}, "no scene of .* has upright images"),
    ],
)
def test_what_is_wrong_with_bedlam_is_named(scene, changes, message):
    root = scene(**changes)
    with pytest.raises(HapError, match=message):
        read_bedlam(root, BODIES)


def test_labels_of_bedlam_are_looked_for(scene):
    root = scene()
    assert len(read_bedlam(root.parent, BODIES)) == 4  # the folder may be further down
    for pattern, message in (
        ("labels/*.npz", "has no labels/"),
        ("/abs/*.npz", "annotations=/abs"),
        ("", "annotations="),
    ):
        with pytest.raises(HapError, match=message):
            read_bedlam(root, BODIES, annotations=pattern)
    (root / "training_images/20221010_suburb/png/seq_000000/seq_000000_0001.png").unlink()
    with pytest.raises(HapError, match="lacks 1 of the 2 images"):
        read_bedlam(root, BODIES)
