"""Drawn people for 3D pose: by the formulas of the data sets, what is written gives the meshes that were drawn."""

import json
import shutil
from collections import defaultdict
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from test_synthetic_smpl import skinned

from hap.body.arrays import GENDERS
from hap.body.joints import H36M, MUCO, OPENPOSE, SMPL30
from hap.body.model import GenderedBody
from hap.body.rotations import to_matrix
from hap.data.pose3d_3dpw import read_3dpw
from hap.data.pose3d_sets import read_pose3d_multi
from hap.data.safe_pickle import load
from hap.errors import HapError
from hap.synthetic import pictures, pose3d_video
from hap.synthetic.body import axis_angle, rotation_matrices
from hap.synthetic.datasets import synthesize
from hap.synthetic.pictures import LEAST, draw_figures, draw_picture
from hap.synthetic.pose3d_video import OPENPOSE_POINTS, SUBJECTS, openpose
from hap.synthetic.smpl import Posed, drawn_bodies, gendered

BODIES = drawn_bodies()
CLOSE = 1e-4  # metres


@dataclass(frozen=True)
class Truth:
    """A drawn figure: vertices in the frame of the camera, x, y of its points in the picture."""

    vertices: np.ndarray
    seen: pictures.Seen


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(dataset, num_images) -> folder, and the figures that were drawn, in order."""
    found: list[list[Truth]] = []

    def recorded(view, region, size, people, *rest):
        image, seen = draw_figures(view, region, size, people, *rest)
        drawn = [
            Truth(figure.body @ view.rotation.T + view.translation, mine)
            for figure, mine in zip(people, seen, strict=False)  # a crowd comes last
        ]
        found.append(drawn)
        return image, seen

    monkeypatch.setattr(pictures, "draw_figures", recorded)
    monkeypatch.setattr(pose3d_video, "draw_figures", recorded)

    def write(dataset, num_images, **options):
        return synthesize(dataset, tmp_path / dataset, num_images=num_images, **options), found

    return write


def read(path):
    return json.loads(path.read_text())


def size(folder, image: dict) -> tuple[int, ...]:
    return cv2.imread(folder / image["file_name"]).shape[1::-1]


def mesh(parameters: dict, gender: int = 0) -> np.ndarray:
    """Of json parameters, by the literal formulas."""
    pose, betas = np.reshape(parameters["pose"], (24, 3)), np.array(parameters["shape"])
    return skinned(BODIES.of(gender), pose, betas) + parameters["trans"]


def in_camera(pose, betas, trans, rotation, shift, gender: int = 0) -> dict:
    """World parameters in the frame of the camera: the root turns about its own joint (2.10, 5b)."""
    root = BODIES.root(np.array([gender]), np.array(betas)[None])[0]
    pose = np.reshape(pose, (24, 3)).copy()
    pose[0] = axis_angle(rotation @ rotation_matrices(pose[0]))
    return {"pose": pose, "shape": betas, "trans": rotation @ trans + shift - root + rotation @ root}


def project(points, focal, principal):
    return points[:, :2] / points[:, 2:] * focal + principal


def test_a_body_in_another_frame_is_the_same_body():
    rng = np.random.default_rng(0)
    body = Posed(rng.normal(0, 0.7, (24, 3)), rng.normal(0, 1, 10), rng.normal(0, 1, 3), True)
    rotation, shift = rotation_matrices(rng.normal(0, 2, 3)), rng.normal(0, 3, 3)
    for vertices, moved in zip(body.mesh(), body.moved(rotation, shift).mesh(), strict=True):
        np.testing.assert_allclose(moved, vertices @ rotation.T + shift, atol=1e-5)
    back = body.moved(rotation, shift).moved(rotation.T, -rotation.T @ shift)
    np.testing.assert_allclose(back.trans, body.trans, atol=1e-6)
    own = gendered(body.betas, np.array(body.gender))
    np.testing.assert_allclose(
        skinned(BODIES.female, body.pose, own), skinned(BODIES.neutral, body.pose, body.betas), atol=1e-6
    )


def test_human36m(write):
    root, drawn = write("h36m", 5 * 4 * 5 - 3)
    people = {}
    world = defaultdict(list)
    for subject in SUBJECTS:
        data, cameras, joints, fits = (
            read(root / f"annotations/Human36M_subject{subject}_{kind}.json")
            for kind in ("data", "camera", "joint_3d", "smpl_param")
        )
        assert sorted(cameras) == ["1", "2", "3", "4"]
        images = {image["id"]: image for image in data["images"]}
        for person in data["annotations"]:
            image = images[person["image_id"]]
            assert size(root / "images", image) == (image["width"], image["height"])
            moment = [str(image[k]) for k in ("action_idx", "subaction_idx", "frame_idx")]
            camera = {key: np.array(value) for key, value in cameras[str(image["cam_idx"])].items()}
            (truth,) = drawn[person["id"] - 1]
            mine = np.array(joints[moment[0]][moment[1]][moment[2]]) @ camera["R"].T + camera["t"]
            np.testing.assert_allclose(mine, 1000 * (BODIES.h36m @ truth.vertices), atol=0.1)
            points = project(mine, camera["f"], camera["c"])
            knees = [H36M.index("L_Knee"), H36M.index("R_Knee")]
            np.testing.assert_allclose(points[knees], truth.seen.points[[13, 14]], atol=1)
            low, high = points.min(0), points.max(0)
            side = (high - low - 1) * 1.2
            corner = low + (high - low - 1) / 2 - side / 2
            np.testing.assert_allclose(person["bbox"], [*corner, *side], atol=0.01)
            assert len(person["keypoints_vis"]) == 17
            people[person["id"]] = fit = fits.get(moment[0], {}).get(moment[1], {}).get(moment[2])
            if fit:
                there = mesh(fit) @ camera["R"].T + camera["t"] / 1000
                np.testing.assert_allclose(there, truth.vertices, atol=CLOSE)
                here = in_camera(fit["pose"], fit["shape"], fit["trans"], camera["R"], camera["t"] / 1000)
                np.testing.assert_allclose(mesh(here), truth.vertices, atol=CLOSE)
                world[subject, *moment].append(fit)
                assert abs(np.array(fit["trans"])[2]) < 1.5  # z is up, and feet are on the ground
    assert sorted(people) == list(range(1, 98))
    assert 0 < sum(fit is None for fit in people.values()) < 25
    assert {image["frame_idx"] % 5 for image in images.values()} == {0, 2}
    fits = [fit["shape"] for (subject, *_), fits in world.items() for fit in fits if subject == 1]
    assert len(np.unique(fits, axis=0)) == 1  # the same actor


def test_muco(write):
    root, drawn = write("muco", 12)
    content, fits = read(root / "data/MuCo-3DHP.json"), read(root / "data/smpl_param.json")
    images = {image["id"]: image for image in content["images"]}
    truths = [truth for people in drawn for truth in people if truth.seen.mask.sum() >= LEAST]
    assert len(truths) == len(content["annotations"]) > 15
    assert {image["file_name"].split("/")[0] for image in images.values()} == {
        "augmented_set",
        "unaugmented_set",
    }
    for person, truth in zip(content["annotations"], truths, strict=True):
        image = images[person["image_id"]]
        assert size(root / "data", image) == (image["width"], image["height"])
        joints = np.array(person["keypoints_cam"])
        points = project(joints, image["f"], image["c"])
        np.testing.assert_allclose(points, person["keypoints_img"], atol=1e-3)
        named = dict(zip(MUCO, joints / 1000, strict=True))
        for name, joint in zip(H36M, BODIES.h36m @ truth.vertices, strict=True):
            if name in MUCO:
                np.testing.assert_allclose(named[name], joint, atol=CLOSE)
        for name in ("Spine", "Head", "R_Hand", "L_Hand", "R_Toe", "L_Toe"):
            joint = BODIES.joints30[SMPL30.index(name)] @ truth.vertices
            np.testing.assert_allclose(named[name], joint, atol=CLOSE)
        np.testing.assert_allclose(
            named["Thorax"], (named["L_Shoulder"] + named["R_Shoulder"]) / 2, atol=CLOSE
        )
        if fit := fits.get(str(person["id"])):
            np.testing.assert_allclose(mesh(fit), truth.vertices, atol=CLOSE)
    assert 0 < len(truths) - len(fits) <= len(truths) / 10


@pytest.mark.parametrize(
    ("dataset", "folder", "annotations", "fits", "first"),
    [
        (
            "coco3d",
            "images/train2017",
            "annotations/person_keypoints_train2017",
            "annotations/MSCOCO_train",
            1,
        ),
        ("mpii3d", "data", "data/annotations/train", "data/annotations/MPII_train", 0),
    ],
)
def test_coco_and_mpii(write, dataset, folder, annotations, fits, first):
    root, drawn = write(dataset, 16)
    content = read(root / f"{annotations}.json")
    fits = read(root / f"{fits}_SMPL_NeuralAnnot.json")
    images = {image["id"]: image for image in content["images"]}
    assert min(images) == first
    assert [person["id"] for person in content["annotations"]] == list(
        range(first, first + len(content["annotations"]))
    )
    by_image = defaultdict(list)
    for person in content["annotations"]:
        if not person["iscrowd"]:
            by_image[person["image_id"]].append(person)
    count = 0
    for number, people in enumerate(drawn, first):
        seen = [truth for truth in people if truth.seen.mask.sum() >= LEAST]
        image = images[number]
        assert size(root / folder, image) == (image["width"], image["height"])
        for person, truth in zip(by_image[number], seen, strict=True):
            assert (str(person["id"]) in fits) == (person["id"] % 10 != 9)
            keypoints = np.reshape(person["keypoints"], (-1, 3))
            x, y, w, h = person["bbox"]
            inside = keypoints[keypoints[:, 2] > 0]
            assert len(inside) == person["num_keypoints"]
            assert ((inside[:, :2] > [x - w, y - h]) & (inside[:, :2] < [x + 2 * w, y + 2 * h])).all()
            if fit := fits.get(str(person["id"])):
                vertices = mesh(fit["smpl_param"])
                np.testing.assert_allclose(vertices, truth.vertices, atol=CLOSE)
                lens = fit["cam_param"]["focal"], fit["cam_param"]["princpt"]
                names = ("Nose", "L_Ear") if dataset == "coco3d" else ("Head_top",)
                for name in names:
                    place = {"Nose": 0, "L_Ear": 3, "Head_top": 9}[name]
                    if keypoints[place, 2]:
                        (point,) = project(BODIES.joints30[[SMPL30.index(name)]] @ vertices, *lens)
                        np.testing.assert_allclose(point, keypoints[place, :2], atol=0.1)
                        count += 1
    assert count > 10


def test_people_of_ones_own(write):
    root, drawn = write("bodies3d", 16)
    truths = iter([truth for people in drawn for truth in people if truth.seen.mask.sum() >= LEAST])
    genders = set()
    for split in ("train", "val"):
        with np.load(root / f"annotations/{split}.npz", allow_pickle=False) as content:
            found = dict(content)
        assert len({len(column) for column in found.values()}) == 1
        for i, file in enumerate(found["image"]):
            assert (root / "images" / str(file)).is_file()
            truth, gender = next(truths), GENDERS.index(found["gender"][i])
            fit = {"pose": found["pose"][i], "shape": found["betas"][i], "trans": found["trans"][i]}
            np.testing.assert_allclose(mesh(fit, gender), truth.vertices, atol=CLOSE)
            nose = BODIES.joints30[[SMPL30.index("Nose")]] @ truth.vertices
            if found["keypoints"][i, 0, 2]:
                there = project(nose, found["focal"][i], found["center"][i])
                np.testing.assert_allclose(there[0], found["keypoints"][i, 0, :2], atol=0.1)
            np.testing.assert_array_equal(found["box"][i], truth.seen.box)
            genders.add(gender)
    assert genders == {0, 1, 2}
    assert next(truths, None) is None


def test_3dpw(write):
    root, drawn = write("pw3d", 4 * 10 + 3)
    truths = iter(drawn)
    seen = {}  # of the test
    counts = {}
    for split in ("train", "validation", "test"):
        files = sorted((root / f"sequenceFiles/{split}").iterdir(), key=lambda p: p.stem[-2:])
        counts[split] = 0
        for file in files:
            content = load(file)
            name, actors = content["sequence"], len(content["genders"])
            assert file.stem == name
            frames = sorted((root / "imageFiles" / name).iterdir())
            counts[split] += len(frames)
            assert [f.name for f in frames] == [f"image_{n:05d}.jpg" for n in range(len(frames))]
            assert all(
                len(content[key]) == actors for key in ("betas", "poses", "trans", "poses2d", "campose_valid")
            )
            lens = np.diag(content["cam_intrinsics"])[:2], content["cam_intrinsics"][:2, 2]
            for n in range(len(frames)):
                people = next(truths)
                assert len(people) == actors
                rotation, shift = content["cam_poses"][n, :3, :3], content["cam_poses"][n, :3, 3]
                for p, truth in enumerate(people):
                    assert content["poses2d"][p].shape == (len(frames), 3, 18)
                    assert content["betas"][p].shape in ((10,), (300,))
                    if not content["campose_valid"][p][n]:
                        continue
                    gender = {"m": 1, "f": 2}[content["genders"][p]]
                    fit = {
                        "pose": content["poses"][p][n],
                        "shape": content["betas"][p][:10],
                        "trans": content["trans"][p][n],
                    }
                    np.testing.assert_allclose(
                        mesh(fit, gender) @ rotation.T + shift, truth.vertices, atol=CLOSE
                    )
                    here = in_camera(fit["pose"], fit["shape"], fit["trans"], rotation, shift, gender)
                    np.testing.assert_allclose(mesh(here, gender), truth.vertices, atol=CLOSE)
                    joints = content["jointPositions"][p][n].reshape(24, 3) @ rotation.T + shift
                    points = project(joints, *lens)
                    np.testing.assert_allclose(points[[4, 5]], truth.seen.points[[13, 14]], atol=1e-2)
                    if split == "test":
                        seen[name, n, p] = truth, content, points, frames[n]
    assert counts == {"train": 10, "validation": 10, "test": 23}
    assert next(truths, None) is None
    _check_parsed(read(root / "3DPW_latest_test.json"), seen)


def _check_parsed(parsed, seen):
    """The json has those of whom the camera is known and a joint is in the picture. Bodies are those of the pickles but
    for the translation, which is by the neutral body's rest joint."""
    images = {image["id"]: image for image in parsed["images"]}
    found = set()
    for person in parsed["annotations"]:
        image = images[person["image_id"]]
        key = image["sequence"], image["frame_idx"], person["person_id"]
        truth, content, points, file = seen[key]
        found.add(key)
        assert cv2.imread(file).shape[:2] == (image["height"], image["width"])
        gender = GENDERS.index(person["smpl_param"]["gender"])
        vertices = mesh(person["smpl_param"], gender)
        off = (vertices - truth.vertices)[0]
        assert np.linalg.norm(off) < 0.1
        np.testing.assert_allclose(vertices - off, truth.vertices, atol=CLOSE)
        np.testing.assert_allclose(person["joint_img"], points, atol=1e-3)
        np.testing.assert_allclose(
            np.array(person["fitted_joint_cam"]) - person["joint_cam"], np.tile(off, (24, 1)), atol=CLOSE
        )
        n, p = key[1:]
        np.testing.assert_array_equal(np.transpose(person["openpose_result"]), content["poses2d"][p][n])
        inside = ((points >= 0) & (points < [image["width"], image["height"]])).all(1)
        low, high = points[inside].min(0), points[inside].max(0)
        np.testing.assert_allclose(
            person["bbox"], [*(low - 0.1 * (high - low)), *(1.2 * (high - low))], atol=1e-3
        )
    outside = set(seen) - found
    assert all(not (seen[key][0].seen.visibility[13:17] > 0).any() for key in outside)


def test_estimated_joints_are_near_and_some_are_wrong():
    rng = np.random.default_rng(2)
    people = [p for n in range(12) for p in draw_picture(8, n, crowds=False)[1]]
    found = np.stack([openpose(person, rng) for person in people for _ in range(20)])
    truth = np.repeat([p.points[list(OPENPOSE_POINTS)] for p in people], 20, axis=0)
    flags = np.repeat([p.visibility[list(OPENPOSE_POINTS)] for p in people], 20, axis=0)
    heights = np.repeat([p.height for p in people], 20)
    assert [OPENPOSE[i] for i in (0, 1, 2, 14)] == ["Nose", "Neck", "R_Shoulder", "R_Eye"]
    away = np.linalg.norm(found[..., :2] - truth, axis=-1) / heights[:, None]
    there, visible = found[..., 2] > 0, flags == 2
    assert np.median(away[there & visible]) < 0.012
    assert 0.01 < (away[there & visible] > 0.06).mean() < 0.1
    assert (found[flags == 0] == 0).all()
    assert 0.3 < there[flags == 1].mean() < 0.8
    assert found[visible & there, 2].mean() > 0.8 > 0.4 > found[(flags == 1) & there, 2].mean()
    counts = there.sum(1)
    assert not ((counts > 0) & (counts < 6)).any()
    assert (counts == 0).any()


@pytest.mark.parametrize(("dataset", "least"), [("h36m", 5), ("pw3d", 4), ("bodies3d", 4)])
def test_too_few_pictures_are_refused(tmp_path, dataset, least):
    draw = partial(synthesize, dataset, tmp_path / dataset)
    with pytest.raises(HapError, match=f"num_images is {least - 1}: at least"):
        draw(num_images=least - 1)
    assert not (tmp_path / dataset).exists()
    draw(num_images=least)


@pytest.mark.parametrize("dataset", ["pw3d", "h36m"])
def test_the_same_seed_is_the_same_folder(tmp_path, dataset):
    folders = [synthesize(dataset, tmp_path / str(i), num_images=9, seed=i // 2) for i in range(3)]
    first, again, other = (
        {p.relative_to(f): p.read_bytes() for p in sorted(f.rglob("*.*")) if p.is_file()} for f in folders
    )
    assert first == again
    assert first != other


def distances(records, drawn) -> np.ndarray:
    """The people whom a reader found with a body are drawn ones, each another, in the frame of the camera; how far the
    joints of their faces, which all sets draw alike, are from those read, in pixels."""
    fitted = records.fitted
    rotations = to_matrix(torch.from_numpy(records.pose[fitted]).unflatten(1, (24, 3)))
    others = (torch.from_numpy(column[fitted]) for column in (records.betas, records.trans, records.gender))
    found = GenderedBody(BODIES)(rotations, *others).numpy()
    truths = np.stack([truth.vertices for people in drawn for truth in people])
    away = np.stack([np.abs(truths - mesh).max((1, 2)) for mesh in found])
    assert away.min(1).max() < CLOSE
    assert len(set(away.argmin(1))) == len(found) == fitted.sum() > 5
    face = np.einsum("jv,nvc->njc", BODIES.joints30[24:], found)
    camera, joints = records.camera[fitted, None], records.joints[fitted, 24:]
    points = face[..., :2] / face[..., 2:] * camera[..., :2] + camera[..., 2:]
    return np.linalg.norm(points - joints[..., :2], axis=-1)[joints[..., 2] > 0]


def test_readers_find_the_people_who_were_drawn(write):
    root, drawn = write("pose3d_multi", 80)
    splits = read_pose3d_multi(root, BODIES)
    parts = splits["train"].parts
    assert list(parts) == ["h36m", "muco", "coco", "mpii"]
    for name, records in parts.items():
        assert np.max(distances(records, drawn)) < 0.1, name
        assert (~records.fitted).sum() < len(records) / 3, name
        assert (len(records.near_joints) > 0) == (name != "h36m")
    assert splits["val"] is splits["test"]
    assert np.median(distances(splits["test"], drawn)) < 3
    shutil.rmtree(root / "PW3D/sequenceFiles")
    both = splits["test"], read_3dpw(root / "PW3D", BODIES)["test"]
    orders = [sorted(range(len(r)), key=lambda i, r=r: (r[i].file, r.sequence[i])) for r in both]
    for column in ("pose", "betas", "gender", "joints", "box", "camera"):
        released, parsed = (getattr(r, column)[order] for r, order in zip(both, orders, strict=True))
        np.testing.assert_allclose(parsed, released, atol=1e-3)
