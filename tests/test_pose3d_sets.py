"""Readers of Human3.6M, MuCo, COCO and MPII with bodies: by literal formulas, and what is wrong in them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hap.body import joints as sets
from hap.body.model import BodyModel
from hap.body.rotations import to_matrix
from hap.data.people import PeopleInARow
from hap.data.pose3d_files import has_crop, neighbours, overlap, to_coco
from hap.data.pose3d_fits import read_coco3d, read_mpii3d
from hap.data.pose3d_sets import read_h36m, read_muco, read_pose3d_multi
from hap.errors import HapError
from hap.synthetic.datasets import synthesize
from hap.synthetic.smpl import drawn_bodies

BODIES = drawn_bodies()
BODY = BodyModel(BODIES.neutral)


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def change(path: Path, new) -> None:
    """Call `new` with what is in a file, or put it there instead."""
    content = json.loads(path.read_text())
    if callable(new):
        new(content)
    write(path, content if callable(new) else new)


def refused(path: Path, new, message: str, read) -> None:
    """A file with a change in it is, with this message."""
    before = path.read_text()
    change(path, new)
    with pytest.raises(HapError, match=message):
        read()
    path.write_text(before)


def touch(folder: Path, names) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def mesh(pose, betas, trans) -> np.ndarray:
    rotations = to_matrix(torch.tensor(np.asarray(pose), dtype=torch.float32).reshape(-1, 24, 3))
    betas, trans = (torch.tensor(np.asarray(x), dtype=torch.float32) for x in (betas, trans))
    return BODY(rotations, betas, trans).vertices.double().numpy()


def turn(rng) -> np.ndarray:
    q, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    return q * np.linalg.det(q)


def body_of(rng, trans) -> dict:
    pose = rng.normal(0, 0.3, 72)
    pose[:3] = rng.normal(0, 1, 3)
    return {"pose": pose.tolist(), "shape": rng.normal(0, 1, 10).tolist(), "trans": list(trans)}


# --- Human3.6M


@pytest.fixture
def h36m(tmp_path):
    """Five subjects, two cameras, frames 0, 3, 5 and 12 345 of one action; the last has no fit. And the truth, by
    name of the image: R, t, f, c, joints in the world, fit."""
    rng = np.random.default_rng(0)
    truth = {}
    for subject in (1, 5, 6, 7, 8):
        images, annotations, cameras, world, fit = [], [], {}, {}, {}
        for camera in (1, 4):
            rotation = turn(rng)
            cameras[str(camera)] = {
                "R": rotation.tolist(),
                "t": (rotation @ rng.normal(0, 200, 3) + [50, -100, 5000]).tolist(),
                "f": [1145.5, 1143.8],
                "c": [512.5, 515.4],
            }
        for frame in (0, 3, 5, 12345):
            person = body_of(rng, rng.choice([-0.6, 0.6], 3))
            vertices = mesh(person["pose"], [person["shape"]], [person["trans"]])[0]
            world[str(frame)] = (1000 * BODIES.h36m @ vertices).tolist()
            if frame != 12345:
                fit[str(frame)] = person
            for number, camera in cameras.items():
                name = f"s_{subject:02d}/ca_{number}/{frame:06d}.jpg"
                points = np.array(world[str(frame)]) @ np.array(camera["R"]).T + camera["t"]
                xy = points[:, :2] / points[:, 2:] * camera["f"] + camera["c"]
                low, side = xy.min(0), np.ptp(xy, axis=0)
                images.append(
                    {
                        "id": len(images), "file_name": name, "width": 1000, "height": 1002, "subject": subject,
                        "action_idx": 2, "subaction_idx": 1, "cam_idx": int(number), "frame_idx": frame,
                    }
                )  # fmt: skip
                box = [*(low - 0.1 * side), *(1.2 * side)]
                annotations.append({"id": 100 + len(images), "image_id": len(images) - 1, "bbox": box})
                truth[name] = (camera, np.array(world[str(frame)]), fit.get(str(frame)), xy, box)
        for kind, content in (
            ("data", {"images": images, "annotations": annotations[::-1]}),
            ("camera", cameras),
            ("joint_3d", {"2": {"1": world}}),
            ("smpl_param", {"2": {"1": fit}}),
        ):
            write(tmp_path / f"Human36M/annotations/Human36M_subject{subject}_{kind}.json", content)
    touch(tmp_path / "Human36M/images", truth)
    return tmp_path, truth


def test_h36m_is_in_metres_of_the_camera(h36m):
    root, truth = h36m
    people = read_h36m(root, BODIES)
    assert len(people) == 5 * 2 * 3  # every fifth frame
    assert [people[i].file for i in range(len(people))] == sorted(
        (name for name in truth if "000003" not in name),
        key=lambda name: (name[:4], name[-10:], name),  # images as in the file
    )
    for record in people:
        camera, world, fit, xy, box = truth[record.file]
        rotation, t = np.array(camera["R"]), np.array(camera["t"]) / 1000
        told = record.annotations()
        points = world / 1000 @ rotation.T + t
        index = sets.places(sets.H36M)
        np.testing.assert_allclose(told["joints3d"][index, :3], points - points[0], atol=1e-6)
        np.testing.assert_allclose(told["joints"][index, :2], xy, rtol=1e-5)
        assert (told["joints3d"][index, 3] == 1).all()
        assert (told["joints"][index, 2] == 1).all()
        others = np.delete(np.arange(30), index)
        assert not told["joints3d"][others].any()
        assert not told["joints"][others].any()
        np.testing.assert_allclose(told["box"], box, rtol=1e-6)
        np.testing.assert_allclose(told["camera"], camera["f"] + camera["c"], rtol=1e-6)
        assert told["near"].shape == (0, 17, 3)
        assert told["gender"] == 0
        assert told["fitted"] == (fit is not None)
        if fit is None:
            assert not any(told[name].any() for name in ("pose", "betas", "trans"))
            continue
        vertices = mesh(fit["pose"], [fit["shape"]], [fit["trans"]])[0] @ rotation.T + t
        np.testing.assert_allclose(
            mesh(told["pose"], [told["betas"]], [told["trans"]])[0], vertices, atol=1e-5
        )
        np.testing.assert_allclose(told["pose"][3:], fit["pose"][3:], rtol=1e-6)
    assert people.kind.checked == (0, 2, 5, 8, 1, 4, 7, 3, 12, 24, 29, 16, 18, 20, 17, 19, 21)
    assert people.kind.has_3d
    assert not people.kind.exact
    assert people.sizes.tolist() == [[1000, 1002]] * 30
    assert next(iter(people.names)) == "s_01/ca_1/000000.jpg, person 101"


def each(root: Path, kind: str):
    return sorted((root / "Human36M/annotations").glob(f"*_{kind}.json"))


def scale(path: Path, factor: float, *keys: str) -> None:
    """Multiply a number or list, or those of all in a dictionary (`*`)."""

    def inner(tree, names):
        if not names:
            return (np.array(tree) * factor).tolist()
        for name in tree if names[0] == "*" else names[:1]:
            tree[name] = inner(tree[name], names[1:])
        return tree

    change(path, lambda content: inner(content, keys))


@pytest.mark.parametrize(
    ("kind", "factor", "keys", "message"),
    [
        ("camera", 1e-3, ("*", "t"), "t has to be in millimetres, times 1000 it fits"),
        ("camera", 1e3, ("*", "t"), "t has to be in millimetres, times 0.001 it fits"),
        ("joint_3d", 1e-3, ("*", "*", "*"), r"joints in 3D of 30 of 30|are not in their boxes"),
        ("smpl_param", 1e3, ("*", "*", "*", "trans"), "factor of about 1000; they have to be in metres"),
    ],
)
def test_h36m_of_other_units_is_named(h36m, kind, factor, keys, message):
    root, _ = h36m
    for path in each(root, kind):
        scale(path, factor, *keys)
    with pytest.raises(HapError, match=message) as error:
        read_h36m(root, BODIES)
    assert "s_01/ca_" in str(error.value)


def test_joints_and_cameras_both_in_metres_are_named(h36m):
    root, _ = h36m
    for kind, keys in (("camera", ("*", "t")), ("joint_3d", ("*", "*", "*"))):
        for path in each(root, kind):
            scale(path, 1e-3, *keys)
    with pytest.raises(HapError, match=r"factor of about 0\.001; they have to be in millimetres"):
        read_h36m(root, BODIES)


def test_one_fit_of_many_in_another_unit_is_told(h36m, caplog):
    root, _ = h36m
    scale(each(root, "smpl_param")[0], 1e3, "2", "1", "5", "trans")
    assert len(read_h36m(root, BODIES)) == 30
    assert "fits of 2 of 20 people are of nobody's size" in caplog.text
    assert "s_01/ca_1/000005.jpg" in caplog.text


def test_h36m_says_what_is_wrong(h36m, caplog):
    root, _ = h36m
    joint, camera, data, fit = (each(root, kind)[1] for kind in ("joint_3d", "camera", "data", "smpl_param"))
    read_h36m(root, BODIES)
    assert "Human3.6M differs from the published set: 30 people (published: 312,188)" in caplog.text

    def wrong(path, new, message):
        refused(path, new, message, lambda: read_h36m(root, BODIES))

    wrong(
        joint,
        lambda c: c["2"]["1"].pop("5"),
        "subject5_joint_3d.json: 17 joints of 2 of 6 .*\n  s_05/ca_1/000005",
    )
    wrong(joint, lambda c: c["2"]["1"]["5"].pop(), "17 joints of 2 of 6 is not 51 finite numbers")
    wrong(joint, [], "17 joints of 6 of 6")
    wrong(camera, lambda c: c.pop("4"), "R of 1 of 2 is not 9 finite numbers\n  camera 4")
    wrong(camera, lambda c: c["1"].update(t=None), "subject5_camera.json: t of 1 of 2 .*\n  camera 1")
    wrong(data, lambda c: c["images"][0].pop("frame_idx"), "frame_idx of 1 of 8 is not 1 finite number\n")
    wrong(data, lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "bbox of 1 of 6 .*\n  annotation 108")
    wrong(fit, lambda c: c["2"]["1"]["0"].update(shape=[0] * 11), "shape of 2 of 4 is not 10 finite")
    wrong(fit, lambda c: c["2"]["1"]["0"].update(pose=[float("nan")] * 72), "pose of 2 of 4 is not 72")
    wrong(fit, lambda c: c["2"]["1"]["0"].pop("trans"), "trans of 2 of 4")
    for path in each(root, "smpl_param"):
        write(path, {})
    with pytest.raises(HapError, match="fit of none of the 30 people"):
        read_h36m(root, BODIES)
    fit.unlink()
    with pytest.raises(HapError, match=r"lacks 1 of 20 files\n  Human36M_subject5_smpl_param\.json"):
        read_h36m(root, BODIES)
    with pytest.raises(HapError, match=r"no annotations/Human36M_subject1_data\.json in"):
        read_h36m(root / "Human36M/images", BODIES)


def test_h36m_lacks_an_image(h36m):
    root, truth = h36m
    (root / "Human36M/images" / next(iter(truth))).unlink()
    with pytest.raises(HapError, match="lacks 1 of the 30 images"):
        read_h36m(root, BODIES)


# --- MuCo


def muco_person(number, image, depth, box, rng):
    points = rng.normal((0, 0, depth), 400, (21, 3))
    points[14] = [10, 20, depth]
    return {
        "id": number, "image_id": image, "bbox": list(box), "keypoints_cam": points.tolist(),
        "keypoints_img": rng.uniform(0, 100, (21, 2)).tolist(),
    }  # fmt: skip


@pytest.fixture
def muco(tmp_path):
    rng = np.random.default_rng(1)
    names = ["b/1.jpg", "a/2.jpg", "a/3.jpg", "a/4.jpg", "a/5.jpg"]
    images = [
        {"id": i + 7, "file_name": name, "width": 200, "height": 100, "f": [150, 151], "c": [100, 50]}
        for i, name in enumerate(names)
    ]
    box = (0, 0, 10, 10)
    people = [
        muco_person(30, 8, 3000, box, rng),  # image 8: two at one depth, the first is taken
        muco_person(29, 8, 3000, (50, 50, 40, 40), rng),
        muco_person(10, 7, 4000, box, rng),  # image 7: the nearest is 12
        muco_person(11, 7, 5000, (1, 1, 10, 10), rng),  # near
        muco_person(12, 7, 3000, (0, 0, 20, 20), rng),
        muco_person(13, 7, 3500, (20, 20, 5, 5), rng),  # touches alone
        muco_person(14, 9, 3000, (10, 10, 0, 5), rng),  # image 9: the nearest has no box
        muco_person(15, 9, 3100, box, rng),
        muco_person(16, 11, 3100, box, rng),  # image 10 has nobody
    ]
    fits = {str(n): body_of(rng, [0.1, 0.2, 4.0]) for n in (30, 12, 13)}
    write(tmp_path / "MuCo/data/MuCo-3DHP.json", {"images": images, "annotations": people})
    write(tmp_path / "MuCo/data/smpl_param.json", fits)
    touch(tmp_path / "MuCo/data", names)
    return tmp_path, {person["id"]: person for person in people}, fits


def test_muco_takes_the_nearest_and_their_neighbours(muco):
    root, truth, fits = muco
    people = read_muco(root)
    assert people.ids == [12, 30, 16]  # in the order of the images
    assert [people[i].file for i in range(3)] == ["b/1.jpg", "a/2.jpg", "a/5.jpg"]
    assert people.fitted.tolist() == [True, True, False]
    index = np.array([29, -1, 17, 19, 21, 16, 18, 20, 2, 5, 8, 1, 4, 7, 0, 6, 15, 23, 22, 11, 10])
    assert (sets.places(sets.MUCO) == index).all()
    for record, number in zip(people, people.ids, strict=True):
        told, points = record.annotations(), np.array(truth[number]["keypoints_cam"])
        for k, joint in enumerate(index):
            if joint >= 0:
                expected = (points[k] - points[14]) / 1000
                np.testing.assert_allclose(told["joints3d"][joint], [*expected, 1], rtol=1e-4, atol=1e-6)
                expected = truth[number]["keypoints_img"][k]
                np.testing.assert_allclose(told["joints"][joint], [*expected, 1], rtol=1e-6)
        assert told["joints"][:, 2].sum() == told["joints3d"][:, 3].sum() == 20
        assert told["camera"].tolist() == [150, 151, 100, 50]
        if str(number) in fits:
            for name, key in (("pose", "pose"), ("betas", "shape"), ("trans", "trans")):
                np.testing.assert_allclose(told[name], fits[str(number)][key], rtol=1e-6)
    assert np.diff(people.near).tolist() == [2, 0, 0]
    for near, number in zip(people[0].annotations()["near"], (10, 11), strict=True):
        xy = truth[number]["keypoints_img"]
        assert not near[:5].any()  # no face
        names = [sets.MUCO.index(name) for name in sets.COCO[5:]]
        np.testing.assert_allclose(near[5:, :2], np.array(xy)[names], rtol=1e-6)
        assert (near[5:, 2] == 1).all()
    assert people.kind.checked == (0, 2, 5, 8, 1, 4, 7, 29, 16, 18, 20, 17, 19, 21)


def test_muco_of_other_units_is_named(muco):
    root, _, _ = muco
    file, fit = root / "MuCo/data/MuCo-3DHP.json", root / "MuCo/data/smpl_param.json"
    scale(fit, 1000, "*", "trans")
    with pytest.raises(
        HapError, match=r"smpl_param.json: .* 2 of 2 .* factor of about 1000.*\n  b/1.jpg, person 12: "
    ):
        read_muco(root)
    scale(fit, 0.001, "*", "trans")
    content = json.loads(file.read_text())
    for person in content["annotations"]:
        person["keypoints_cam"] = (np.array(person["keypoints_cam"]) / 1000).tolist()
    write(file, content)
    with pytest.raises(HapError, match=r"3 of 3 .* factor of about 0.001; they have to be in millimetres"):
        read_muco(root)


def test_muco_without_its_files(muco):
    root, _, _ = muco
    (root / "MuCo/data/a/5.jpg").unlink()
    with pytest.raises(HapError, match=r"lacks 1 of the 3 images .*\n  a/5.jpg"):
        read_muco(root)
    (root / "MuCo/data/smpl_param.json").unlink()
    with pytest.raises(HapError, match=r"cannot read .*smpl_param\.json"):
        read_muco(root)


# --- COCO and MPII


def flat(rng, count, flags=2):
    joints = rng.uniform(1, 90, (count, 3))
    joints[:, 2] = flags
    return joints


def annotual(rng, trans=(0.1, 0.2, 3.0)):
    return {"smpl_param": body_of(rng, trans), "cam_param": {"focal": [300, 310], "princpt": [90, 51]}}


@pytest.fixture
def coco(tmp_path):
    rng = np.random.default_rng(2)
    names = ["2.jpg", "1.jpg", "empty.jpg"]
    images = [
        {"id": n, "file_name": name, "width": 200, "height": 100}
        for n, name in zip((2, 1, 3), names, strict=True)
    ]
    joints = {n: flat(rng, 17) for n in range(10, 17)}
    joints[11][:, 2] = np.arange(17) % 3  # all flags
    joints[11][0] = 0
    joints[12][11, 2] = 0  # left hip
    joints[14][:] = 0  # nobody labelled
    boxes = {n: [20 + n, 10, 50, 60] for n in joints}
    boxes[13] = [500, 10, 20, 50]
    image = {10: 1, 11: 2, 12: 1, 13: 1, 14: 1, 15: 1, 16: 1}
    people = [
        {
            "id": n, "image_id": image[n], "bbox": boxes[n], "keypoints": joints[n].ravel().tolist(),
            "iscrowd": int(n == 15), "num_keypoints": int((joints[n][:, 2] > 0).sum()), "category_id": 1,
        }
        for n in joints
    ]  # fmt: skip
    people[-1]["bbox"] = [150, 10, 40, 60]  # 16 is apart
    fits = {"10": annotual(rng), "11": annotual(rng), "99": annotual(rng)}
    folder = tmp_path / "MSCOCO"
    write(folder / "annotations/person_keypoints_train2017.json", {"images": images, "annotations": people})
    write(folder / "annotations/MSCOCO_train_SMPL_NeuralAnnot.json", fits)
    touch(folder / "images/train2017", names[:2])
    return tmp_path, joints, fits


def test_coco_people_have_a_pelvis_fits_and_neighbours(coco):
    root, joints, fits = coco
    people = read_coco3d(root)
    assert people.ids == [11, 10, 12, 16]  # images in the order of the file; 13 to 15 are left out
    assert people.files == ["2.jpg", "1.jpg"]
    index = [24, 25, 26, 27, 28, 16, 17, 18, 19, 20, 21, 1, 2, 4, 5, 7, 8]
    assert sets.places((*sets.COCO, "Pelvis")).tolist() == [*index, 0]
    for row, number in enumerate(people.ids):
        got, given = people.joints[row], joints[number]
        there = given[:, 2] > 0
        assert (got[index, 2] == there).all()
        np.testing.assert_allclose(got[index, :2], given[:, :2] * there[:, None], rtol=1e-6)
        assert got[0, 2] == (there[11] and there[12])
        if got[0, 2]:
            np.testing.assert_allclose(got[0, :2], given[[11, 12], :2].mean(0), rtol=1e-6)
        assert not got[[3, 6, 9, 10, 11, 12, 13, 14, 15, 22, 23, 29]].any()
    assert not people.joints3d.any()
    assert not people.kind.has_3d
    assert people.fitted.tolist() == [True, True, False, False]
    assert people.camera[0].tolist() == [300, 310, 90, 51]
    assert people.camera[2].tolist() == pytest.approx([50000**0.5] * 2 + [100, 50])
    np.testing.assert_allclose(people.trans[1], fits["10"]["smpl_param"]["trans"], rtol=1e-6)
    assert np.diff(people.near).tolist() == [0, 1, 1, 0]
    there = joints[12][:, 2:] > 0
    near = np.concatenate([joints[12][:, :2] * there, there], axis=1)
    np.testing.assert_allclose(people[1].annotations()["near"], near[None], rtol=1e-6)
    assert "4 people, 2 with fits" in people.protocol


def test_coco_is_found_beside_its_annotations(coco):
    """As for 2D pose: `train2017` without `images`."""
    root, *_ = coco
    (root / "MSCOCO/images/train2017").rename(root / "MSCOCO/train2017")
    assert read_coco3d(root / "MSCOCO").root == root / "MSCOCO/train2017"


def test_coco_says_what_is_wrong(coco, caplog):
    root, *_ = coco
    file = root / "MSCOCO/annotations/person_keypoints_train2017.json"
    fit = root / "MSCOCO/annotations/MSCOCO_train_SMPL_NeuralAnnot.json"
    read_coco3d(root)
    assert "COCO train2017 differs from the published set: 4 people (published: 149,813)" in caplog.text

    def wrong(path, new, message):
        refused(path, new, message, lambda: read_coco3d(root))

    wrong(file, [1], "has no list of images")
    wrong(file, lambda c: c.update(annotations=[3]), "has no list of annotations")
    wrong(file, lambda c: c["images"][0].update(id=1), "1 ids of images are there twice\n  1")
    wrong(file, lambda c: c["images"][0].update(id=[1]), "1 of 3 images have no id")
    wrong(file, lambda c: c["images"][1].pop("file_name"), "1 images have no file_name\n  image 1")
    wrong(file, lambda c: c["images"][1].pop("width"), "width of 1 of 2 is not 1 finite number\n  image 1")
    wrong(file, lambda c: c["annotations"][0].update(id=11), "1 ids of annotations are there twice\n  11")
    wrong(
        file,
        lambda c: c["annotations"][0].update(image_id=77),
        "1 of 7 annotations .*\n  annotation 10: image_id 77",
    )
    wrong(file, lambda c: c["annotations"][0].pop("bbox"), "bbox of 1 of 5 .*\n  annotation 10")
    wrong(
        file, lambda c: c["annotations"][0]["keypoints"].pop(), "keypoints of 1 of 7 is not 51 finite numbers"
    )
    wrong(file, lambda c: c["images"][1].update(file_name="../../../x"), "lacks 1 of the 2 images")
    wrong(fit, {}, "fit of none of the 4 people")
    wrong(fit, lambda c: c["10"].pop("cam_param"), "cam_param focal of 1 of 2 is not 2 .*\n  annotation 10")
    wrong(fit, lambda c: c["10"].pop("smpl_param"), "pose of 1 of 2 is not 72")
    wrong(fit, lambda c: c.update({"10": 3}), "pose of 1 of 2 is not 72")
    wrong(fit, lambda c: c["10"]["smpl_param"].update(shape=[0.0] * 300), "shape of 1 of 2 is not 10")
    scale(fit, 1000, "*", "smpl_param", "trans")
    with pytest.raises(HapError, match=r"fits of 2 of 2 .* factor of about 1000"):
        read_coco3d(root)
    fit.write_text("[")
    with pytest.raises(HapError, match="is no JSON"):
        read_coco3d(root)


@pytest.fixture
def mpii(tmp_path):
    rng = np.random.default_rng(3)
    joints = [flat(rng, 16, 1) for _ in range(3)]
    joints[1][:, 2] = 0  # nobody is left out for that
    joints[2][6] = 0
    images = [{"id": 0, "file_name": "images/a.jpg", "width": 200, "height": 100}]
    boxes = [[10, 10, 50, 50], [12, 10, 50, 50], [10, 10, 0, 50]]
    people = [
        {"id": n, "image_id": 0, "bbox": box, "keypoints": joint.ravel().tolist()}
        for n, (box, joint) in enumerate(zip(boxes, joints, strict=True))
    ]
    # Names are as in the published file, whose spelling is its own.
    names = {"categories": [{"id": 1, "keypoints": ["r_ankle", "throax"]}]}
    folder = tmp_path / "MPII/data"
    write(folder / "annotations/train.json", {"images": images, "annotations": people} | names)
    write(folder / "annotations/MPII_train_SMPL_NeuralAnnot.json", {"0": annotual(rng)})
    touch(folder, ["images/a.jpg"])
    return tmp_path, joints


def test_mpii_people_have_fits_from_annotation_0(mpii):
    root, joints = mpii
    found = read_mpii3d(root)
    assert found.ids == [0, 1]
    assert found.fitted.tolist() == [True, False]
    index = np.array([8, 5, 2, 1, 4, 7, 0, -1, 12, 29, 21, 19, 17, 16, 18, 20])
    assert (sets.places(sets.MPII) == index).all()
    np.testing.assert_allclose(found.joints[0][index[index >= 0]], joints[0][index >= 0], rtol=1e-6)
    assert found.joints[0, :, 2].sum() == 15
    assert not found.joints[1].any()
    assert found.kind.absolute_fit
    assert not found.kind.has_3d
    near = found[1].annotations()["near"]
    assert near.shape == (1, 17, 3)
    assert not near[0, :5].any()
    np.testing.assert_allclose(near[0, 5], joints[0][sets.MPII.index("L_Shoulder")], rtol=1e-6)
    assert found[0].path == root / "MPII/data/images/a.jpg"


@pytest.fixture
def pw3d(tmp_path):
    person = body_of(np.random.default_rng(5), [0.1, 0.2, 4])
    root = BODIES.root(np.array([1]), np.array([person["shape"]])) + person["trans"]
    image = {
        "id": 1, "sequence": "walk", "file_name": "image_00000.jpg", "width": 192, "height": 108,
        "cam_param": {"focal": [200, 200], "princpt": [96, 54], "R": np.eye(3).tolist(), "t": [0, 0, 0]},
    }  # fmt: skip
    people = {
        "id": 5, "image_id": 1, "person_id": 0, "bbox": [10, 10, 50, 80], "smpl_param": person | {"gender": "male"},
        "joint_cam": root.repeat(24, axis=0).tolist(), "openpose_result": [[50, 50, 1]] * 18,
    }  # fmt: skip
    write(tmp_path / "PW3D/data/3DPW_latest_test.json", {"images": [image], "annotations": [people]})
    touch(tmp_path / "PW3D/data/imageFiles/walk", ["image_00000.jpg"])


@pytest.mark.usefixtures("h36m", "muco", "coco", "mpii", "pw3d")
def test_all_together(tmp_path):
    splits = read_pose3d_multi(tmp_path, BODIES)
    assert splits["val"] is splits["test"]
    assert len(splits["test"]) == 1
    assert splits["test"].gender.tolist() == [1]
    train = splits["train"]
    assert isinstance(train, PeopleInARow)
    assert {name: len(part) for name, part in train.parts.items()} == {
        "h36m": 30,
        "muco": 3,
        "coco": 4,
        "mpii": 2,
    }
    assert train[33].name == "2.jpg, person 11"
    assert train[-1].annotations()["kind"].name == "mpii"
    some = read_pose3d_multi(tmp_path, BODIES, ["mpii", "muco"], gt_body="neutral")
    assert list(some["train"].parts) == ["mpii", "muco"]
    assert some["test"].gender.tolist() == [0]
    assert set(read_pose3d_multi(tmp_path, BODIES, [])) == {"val", "test"}
    with pytest.raises(HapError, match=r"data\.reader\.sets: lsp: there are h36m, muco, coco, mpii"):
        read_pose3d_multi(tmp_path, BODIES, ["coco", "lsp"])
    (tmp_path / "MuCo/data/MuCo-3DHP.json").unlink()
    with pytest.raises(HapError, match=r"no MuCo-3DHP.json in"):
        read_pose3d_multi(tmp_path, BODIES)


def test_drawn_people_are_read_with_the_joints_of_their_bodies(tmp_path):
    """In the official layouts, written by the formulas of the data sets."""
    synthesize("pose3d_multi", tmp_path / "all", num_images=40)
    splits = read_pose3d_multi(tmp_path / "all", BODIES)
    assert len(splits["test"]) > 1
    for name, people in splits["train"].parts.items():
        rows = np.flatnonzero(people.fitted)
        assert 1 < len(rows) <= len(people)
        vertices = mesh(people.pose[rows], people.betas[rows], people.trans[rows])
        points, camera = BODIES.joints30 @ vertices, people.camera[rows, None]
        xy = points[..., :2] / points[..., 2:] * camera[..., :2] + camera[..., 2:]
        apart = np.linalg.norm(xy - people.joints[rows, :, :2], axis=2)
        assert np.median(apart[people.joints[rows, :, 2] > 0]) < 0.1, name
        if people.kind.has_3d:
            joints, checked = BODIES.h36m @ vertices, list(people.kind.checked)
            expected = sets.to_smpl30(joints - joints[:, :1], sets.H36M)[:, checked]
            np.testing.assert_allclose(people.joints3d[rows][:, checked, :3], expected, atol=1e-4)


# --- what they share


def test_boxes_that_cannot_be_cropped():
    """Acceptance values of the crop's rule."""
    large = [1920, 1080]
    boxes = [
        ((100, 50, 200, 400), large, True), ((-30, 20, 100, 50), (640, 480), True),
        ((600, 400, 100, 200), (640, 480), True), ((10, 10, 1, 50), (640, 480), True),
        ((10, 10, 0, 50), (640, 480), False), ((700, 10, 20, 50), (640, 480), False),
        ((10, 10, -5, -5), (640, 480), True),  # as in the official code, which looks at w h alone
        ((10, 480, 5, 5), (640, 480), False), ((639, 479, 5, 5), (640, 480), True),
    ]  # fmt: skip
    box, sizes, expected = (np.array(column) for column in zip(*boxes, strict=True))
    assert has_crop(box, sizes).tolist() == expected.tolist()


def test_overlap_and_neighbours_by_the_definition():
    a, b = np.array([[0.0, 0, 10, 10]]), np.array([[5.0, 5, 10, 10]])
    assert overlap(a, b)[0] == pytest.approx(25 / (175 + 1e-5))
    assert overlap(a, a + 100)[0] == 0
    rng = np.random.default_rng(4)
    box = np.concatenate([rng.uniform(0, 50, (60, 2)), rng.uniform(5, 50, (60, 2))], axis=1)
    image = np.sort(rng.integers(0, 12, 60))
    for who in (np.arange(60), np.array([3, 40, 59]), np.array([], int)):
        starts, others = neighbours(box, image, who)
        assert len(starts) == len(who) + 1
        for k, i in enumerate(who):
            expected = [
                j for j in range(60)
                if j != i and image[j] == image[i] and overlap(box[[i]], box[[j]])[0] >= 0.1
            ]  # fmt: skip
            assert others[starts[k] : starts[k + 1]].tolist() == expected


def test_joints_of_coco_by_name():
    values = np.arange(16.0)[None, :, None]
    assert to_coco(values, sets.MPII)[0, :, 0].tolist() == [0] * 5 + [
        13,
        12,
        14,
        11,
        15,
        10,
        3,
        2,
        4,
        1,
        5,
        0,
    ]
