"""3DPW: both forms of its annotations give the bodies of the world in the camera; what is wrong in them is named."""

import io
import json
import os
import pickle
import struct
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from hap.body.arrays import PARENTS, Bodies, BodyArrays
from hap.body.joints import OPENPOSE, SMPL30
from hap.body.model import BodyModel
from hap.body.rotations import to_axis_angle, to_matrix
from hap.data import pose3d_3dpw
from hap.data.pose3d_3dpw import read_3dpw
from hap.errors import BadSample, HapError

FRAMES, WIDTH, HEIGHT = 4, 64, 48
FOCAL = (60.0, 58.0, 31.0, 25.0)
INVALID = [(2, 1)]  # frame, actor


class Python2(pickle._Pickler):
    """Writes what Python 2 wrote: strings and bytes alike, and NumPy's names of that time."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_text(self, text):
        data = text if isinstance(text, bytes) else text.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)

    def save_global(self, obj, name=None):
        module = obj.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{obj.__name__}\n".encode())

    dispatch[str] = dispatch[bytes] = save_text
    dispatch[type] = dispatch[type(len)] = dispatch[type(read_3dpw)] = save_global


def python2(content) -> bytes:
    file = io.BytesIO()
    Python2(file, 2).dump(content)
    return file.getvalue()


def body(seed: int) -> BodyArrays:
    """24 joints in a mesh of 30 vertices, the first 24 of which are the joints."""
    rng = np.random.default_rng(seed)
    template = np.random.default_rng(9).normal(size=(30, 3)) * 0.4
    shapedirs = rng.normal(size=(30, 3, 10)) * 0.02
    weights = rng.uniform(size=(30, 24))
    return BodyArrays(
        v_template=template + rng.normal(size=(30, 3)) * 0.05,
        shapedirs=shapedirs,
        posedirs=rng.normal(size=(30, 3, 207)) * 0.002,
        J_regressor=np.eye(24, 30),
        weights=weights / weights.sum(1, keepdims=True),
        faces=np.array([[0, 1, 2]]),
        face_vertices=(0, 1, 2, 3, 4),
        parents=PARENTS,
    )


BODIES = Bodies("small", body(0), extra=np.full((9, 30), 1 / 30), male=body(1), female=body(2))


def posed(gender: int, pose, betas, trans):
    """Vertices (N, V, 3) and joints (N, 24, 3)."""
    pose, betas, trans = (torch.as_tensor(np.asarray(x), dtype=torch.float32) for x in (pose, betas, trans))
    mesh = BodyModel(BODIES.of(gender))(to_matrix(pose.unflatten(1, (24, 3))), betas, trans)
    return mesh.vertices.numpy(), mesh.joints.numpy().astype(float)


def sequence(seed: int = 0, genders=("m", "f"), betas: int = 10) -> dict:
    """A file of the release: actors of random poses some 4 m in front of a camera that turns."""
    rng = np.random.default_rng(seed)
    cameras = np.tile(np.eye(4), (FRAMES, 1, 1))
    turns = to_matrix(torch.from_numpy(rng.normal(size=(FRAMES, 3)) * 0.3 + [np.pi, 0, 0])).numpy()
    cameras[:, :3, :3], cameras[:, :3, 3] = turns, rng.normal(size=(FRAMES, 3)) * 0.1 + [0, 0, 4]
    content = {
        "sequence": "downtown_arguing_00",
        "genders": list(genders),
        "betas": [rng.normal(size=betas) for _ in genders],
        "poses": [rng.normal(size=(FRAMES, 72)) * 0.4 for _ in genders],
        "trans": [rng.normal(size=(FRAMES, 3)) * 0.2 for _ in genders],
        "cam_poses": cameras,
        "cam_intrinsics": np.array([[FOCAL[0], 0, FOCAL[2]], [0, FOCAL[1], FOCAL[3]], [0, 0, 1]]),
        "campose_valid": [np.ones(FRAMES, int) for _ in genders],
        "poses2d": [rng.uniform(0.1, 1, size=(FRAMES, 3, 18)) * [[WIDTH], [HEIGHT], [1]] for _ in genders],
        "img_frame_ids": np.arange(FRAMES) * 2,
        "texture_maps": [],
    }
    for frame, actor in INVALID:
        if actor < len(genders):
            content["campose_valid"][actor][frame] = 0
    content["jointPositions"] = []
    for p, gender in enumerate(genders):
        shape = np.tile(content["betas"][p][:10], (FRAMES, 1))
        _, joints = posed(1 + gender.startswith("f"), content["poses"][p], shape, content["trans"][p])
        content["jointPositions"].append(joints.reshape(FRAMES, 72))
    return content


def save(root: Path, content, name="downtown_arguing_00", split="test", images=FRAMES) -> Path:
    file = root / f"sequenceFiles/{split}/{name}.pkl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else python2(content))
    folder = root / "imageFiles" / name
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(images):
        cv2.imwrite(str(folder / f"image_{i:05d}.jpg"), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    return root


def rows(content):
    """Frame, actor of those who are read, in their order."""
    valid = np.stack(content["campose_valid"], axis=1)
    return [(n, p) for n in range(FRAMES) for p in range(valid.shape[1]) if valid[n, p]]


def test_meshes_are_those_of_the_world_seen_by_the_camera(tmp_path):
    content = sequence(genders=("M", "female"), betas=300)
    records = read_3dpw(save(tmp_path, content), BODIES)["test"]
    assert len(records) == 7
    assert records.gender.tolist() == [1, 2, 1, 2, 1, 1, 2]
    for record, (n, p) in zip(records, rows(content), strict=True):
        found, joints = posed(
            records.gender[record.row],
            *(getattr(records, key)[record.row, None] for key in ("pose", "betas", "trans")),
        )
        world, _ = posed(
            p + 1, content["poses"][p][n, None], content["betas"][p][None, :10], content["trans"][p][n, None]
        )
        rotation, move = content["cam_poses"][n, :3, :3], content["cam_poses"][n, :3, 3]
        np.testing.assert_allclose(found[0], world[0] @ rotation.T + move, atol=1e-5)
        true = content["jointPositions"][p][n].reshape(24, 3) @ rotation.T + move
        np.testing.assert_allclose(joints[0], true, atol=1e-5)


def test_what_a_record_says(tmp_path):
    content = sequence()
    content["poses2d"][0][1] = 0  # fewer than 6 joints were found
    content["poses2d"][1][0, 2, OPENPOSE.index("L_Hip")] = 0.06  # there, but not the pelvis with it
    content["poses2d"][1][0, 2, OPENPOSE.index("R_Hip")] = 0.8
    content["poses2d"][1][0, 2, 0] = 0.05  # not above
    splits = read_3dpw(save(tmp_path, content), BODIES)
    records = splits["test"]
    assert splits["val"] is records
    first = records[1]
    assert first.name == "downtown_arguing_00/image_00000.jpg, person 1"
    assert records.sequence[1] == "downtown_arguing_00, actor 1"
    assert first.pixels().shape == (HEIGHT, WIDTH, 3)
    assert records.sizes.tolist() == [[WIDTH, HEIGHT]] * FRAMES
    annotations = first.annotations()
    assert annotations["camera"].tolist() == list(FOCAL)
    assert annotations["near"].shape == (0, 17, 3)
    assert annotations["kind"].from_joints
    assert annotations["fitted"]
    points = content["poses2d"][1][0].T
    there = dict(zip(OPENPOSE, points, strict=True))
    for name, joint in zip(SMPL30, annotations["joints"], strict=True):
        if name == "Pelvis":
            middle = (there["L_Hip"] + there["R_Hip"])[:2] / 2
            np.testing.assert_allclose(joint, [*middle, 0], rtol=1e-6)  # 0.06 times 0.8 is too little
        elif name in there:
            np.testing.assert_allclose(joint, [*there[name][:2], name != "Nose"], rtol=1e-6)
        else:
            assert not joint.any()
    assert records.joints[2, :, 2].sum() == 0
    assert "3DPW test: 7 person-frames of 1 sequences, gendered bodies" in records.protocol
    assert "1 people without any" in records.protocol


def test_boxes_are_around_true_joints_in_the_picture(tmp_path):
    content = sequence(genders=["f"])
    rotation, move = content["cam_poses"][:, :3, :3], content["cam_poses"][:, :3, 3]
    wanted = []
    for n in range(FRAMES):
        points = []
        for joint in content["jointPositions"][0][n].reshape(24, 3):
            x, y, z = rotation[n] @ joint + move[n]
            u, v = FOCAL[0] * x / z + FOCAL[2], FOCAL[1] * y / z + FOCAL[3]
            if 0 <= u < WIDTH and 0 <= v < HEIGHT:
                points.append((u, v))
        low, high = np.min(points, axis=0), np.max(points, axis=0)
        middle, size = (low + high) / 2, 1.2 * (high - low)
        wanted.append([*(middle - size / 2), *size])
    records = read_3dpw(save(tmp_path, content), BODIES)["test"]
    np.testing.assert_allclose(records.box, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("move", [(500, 0, 4), (0, 0, -4)], ids=["beside the picture", "behind the camera"])
def test_who_is_in_no_picture_is_left_out(tmp_path, caplog, move):
    caplog.set_level("INFO")
    content = sequence()
    content["cam_poses"][0, :3, 3] = move
    records = read_3dpw(save(tmp_path, content), BODIES)["test"]
    assert len(records) == 5
    assert "left out 1 person-frames without a camera, 2 outside of the picture" in caplog.text


def test_the_count_is_told_not_demanded(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    save(tmp_path, sequence())
    read_3dpw(tmp_path, BODIES)
    assert "3DPW test: 7 person-frames of 1 sequences; 35,515 are published" in caplog.text
    monkeypatch.setitem(pose3d_3dpw.PUBLISHED, "test", 7)
    caplog.clear()
    read_3dpw(tmp_path, BODIES)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_neutral_truth_is_asked_for_by_name(tmp_path):
    content = sequence()
    records = read_3dpw(save(tmp_path, content), BODIES, gt_body="neutral")["test"]
    assert not records.gender.any()
    assert "neutral bodies" in records.protocol
    found, _ = posed(0, records.pose, records.betas, records.trans)
    n, p = rows(content)[1]
    world, _ = posed(0, content["poses"][p][n, None], content["betas"][p][None], content["trans"][p][n, None])
    rotation, move = content["cam_poses"][n, :3, :3], content["cam_poses"][n, :3, 3]
    np.testing.assert_allclose(found[1], world[0] @ rotation.T + move, atol=1e-5)


def test_sequences_and_actors_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("flat_guitar_01", "downtown_bar_00")):
        save(Path("PW3D/data"), sequence(i, genders=["m"]), name)
    save(Path("PW3D/data"), sequence(3), "courtyard_golf_00", split="validation")
    Path("PW3D/data/sequenceFiles/test/._flat_guitar_01.pkl").write_bytes(b"of a Mac")
    records = read_3dpw(Path("PW3D"), BODIES)["test"]  # further up
    assert records.files == tuple(
        f"{name}/image_{n:05d}.jpg" for name in ("downtown_bar_00", "flat_guitar_01") for n in range(FRAMES)
    )
    assert records.sequence == ("downtown_bar_00, actor 0",) * 4 + ("flat_guitar_01, actor 0",) * 4
    assert len(read_3dpw(Path("PW3D"), BODIES, split="validation")["test"]) == 7
    with pytest.raises(HapError, match=r"neither sequenceFiles/train nor 3DPW_latest_train\.json"):
        read_3dpw(Path("PW3D"), BODIES, split="train")


def test_a_picture_of_another_size_is_a_bad_sample(tmp_path):
    save(tmp_path, sequence())
    cv2.imwrite(
        str(tmp_path / "imageFiles/downtown_arguing_00/image_00001.jpg"), np.zeros((WIDTH, HEIGHT, 3))
    )
    records = read_3dpw(tmp_path, BODIES)["test"]
    with pytest.raises(BadSample, match="48 x 64 pixels, its annotation says 64 x 48"):
        records[2].pixels()


def broken(key, value):
    def change(content):
        content[key] = value(content[key]) if callable(value) else value

    return change


def at(key, actor, place, value):
    def change(content):
        content[key][actor][place] = value

    return change


NAMED = r"downtown_arguing_00\.pkl"
WRONG = {
    "gender": (broken("genders", ["m", "x"]), NAMED + ", actor 1: gender 'x', not m, f, male or female"),
    "gender as a number": (broken("genders", [0, 1]), NAMED + ", actor 0: gender 0, not m"),
    "neutral": (broken("genders", ["neutral", "f"]), "actor 0: gender 'neutral'"),
    "11 betas": (broken("betas", lambda b: [b[0], np.zeros(11)]), r"actor 1: 11 betas \(the last of them of age\)"),
    "9 betas": (broken("betas", lambda b: [b[0][:9], b[1]]), "actor 0: 9 betas, not 10 or 300"),
    "betas that are no numbers": (broken("betas", ["abc", "def"]), "actor 0: betas: abc is no array of numbers"),
    "infinite betas": (at("betas", 1, 2, np.inf), "actor 1: 10 betas, not 10 or 300 finite numbers"),
    "a short actor": (
        broken("poses", lambda v: [v[0], v[1][:3]]),
        NAMED + r", actor 1: poses is \(3, 72\), not \(4, 72\)",
    ),
    "poses of SMPL-X": (broken("poses", lambda v: [np.zeros((4, 165))] * 2), r"poses is \(4, 165\), not \(4, 72\)"),
    "points in the wrong order": (
        broken("poses2d", lambda v: [x.transpose(0, 2, 1) for x in v]),
        r"poses2d is \(4, 18, 3\), not \(4, 3, 18\)",
    ),
    "one actor less": (broken("trans", lambda v: v[:1]), "trans is no list of one entry for each actor"),
    "no list": (broken("campose_valid", np.ones(4)), "campose_valid is no list of one entry"),
    "nobody": (broken("genders", []), "genders is no list of one entry"),
    "cameras": (broken("cam_poses", np.zeros((4, 3, 4))), r"cam_poses is \(4, 3, 4\), not \(N, 4, 4\)"),
    "no camera": (broken("cam_poses", 3.0), r"cam_poses is \(\), not \(N, 4, 4\)"),
    "a camera of zeros": (broken("cam_poses", np.zeros((4, 4, 4))), "frame 0, actor 0: cam_poses has no rotation"),
    "a mirror": (broken("cam_poses", lambda c: c * [[1], [1], [-1], [1]]), "cam_poses has no rotation"),
    "intrinsics": (broken("cam_intrinsics", np.zeros((3, 3))), "no focal lengths above 0"),
    "nan": (at("poses", 1, (3, 5), np.nan), "frame 3, actor 1: numbers that are not finite"),
    "nan in the camera": (broken("cam_poses", lambda c: c * np.nan), "frame 0, actor 0: numbers that are not finite"),
    "millimetres": (broken("trans", lambda v: [1000 * x for x in v]), "m away from their own joints.*factor of"),
    "nobody in a picture": (broken("campose_valid", lambda v: [0 * x for x in v]), "there is nobody in a picture"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_wrong_sequences_are_named(tmp_path, change, message):
    content = sequence()
    change(content)
    with pytest.raises(HapError, match=message):
        read_3dpw(save(tmp_path, content), BODIES)


def test_what_is_not_finite_does_not_matter_where_nobody_is(tmp_path):
    content = sequence()
    for frame, actor in INVALID:
        content["poses"][actor][frame] = np.nan
    assert len(read_3dpw(save(tmp_path, content), BODIES)["test"]) == 7


class Code:
    def __reduce__(self):
        return os.system, ("false",)


FILES = {
    "code": (pickle.dumps(Code(), 2), r"contains code \(.*system\)"),
    "truncated": (python2(sequence())[:-200], "damaged pickle|damaged array|content differ"),
    "empty": (b"", "damaged pickle"),
    "of another kind": (python2([1, 2]), "it holds no dictionary"),
    "of two keys": (
        python2({"poses": [], "genders": []}),
        "has no trans, jointPositions, poses2d, campose_valid, betas, cam_poses, cam_intrinsics",
    ),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
def test_files_that_are_no_sequences(tmp_path, content, message):
    save(tmp_path, sequence(), "a_00")
    save(tmp_path, content, "b_00")
    save(tmp_path, content, "c_00")
    with pytest.raises(HapError, match=f"2 of 3 sequences cannot be read\n.*b_00.*({message})"):
        read_3dpw(tmp_path, BODIES)


def test_missing_pictures(tmp_path):
    save(tmp_path, sequence(), images=2)
    with pytest.raises(HapError, match=r"lacks 2 of the 4 images(.|\n)*arguing_00/image_00002.jpg"):
        read_3dpw(tmp_path, BODIES)
    first = tmp_path / "imageFiles/downtown_arguing_00/image_00000.jpg"
    first.write_bytes(first.read_bytes()[:-20])
    with pytest.raises(HapError, match=r"no size of the pictures of downtown_arguing_00.*truncated"):
        read_3dpw(tmp_path, BODIES)
    first.unlink()
    with pytest.raises(HapError, match=r"no size of the pictures of downtown_arguing_00.*No such file"):
        read_3dpw(tmp_path, BODIES)


def test_wrong_words(tmp_path):
    with pytest.raises(HapError, match=r"split=val: train, validation or test"):
        read_3dpw(tmp_path, BODIES, split="val")
    with pytest.raises(HapError, match=r"gt_body=male: gendered or neutral"):
        read_3dpw(tmp_path, BODIES, gt_body="male")
    with pytest.raises(HapError, match=r"no sequenceFiles or 3DPW_latest_test.json in"):
        read_3dpw(tmp_path, BODIES)
    save(tmp_path, sequence())
    alone = replace(BODIES, female=None)
    with pytest.raises(HapError, match=r"^small has no female body"):
        read_3dpw(tmp_path, alone)
    assert len(read_3dpw(tmp_path, alone, gt_body="neutral")["test"]) == 7


def converted(content, name="downtown_arguing_00") -> dict:
    """The same people as 3DCrowdNet's authors converted them, translations by the neutral body."""
    images, people = [], []
    for n in range(FRAMES):
        camera = content["cam_poses"][n]
        images.append(
            {
                "id": 100 + n,
                "sequence": name,
                "file_name": f"image_{n:05d}.jpg",
                "frame_idx": n,
                "width": WIDTH,
                "height": HEIGHT,
                "cam_param": {
                    "focal": FOCAL[:2],
                    "princpt": FOCAL[2:],
                    "R": camera[:3, :3].tolist(),
                    "t": camera[:3, 3].tolist(),
                },
            }
        )
    for n, p in rows(content):
        rotation, move = content["cam_poses"][n, :3, :3], content["cam_poses"][n, :3, 3]
        pose, betas = content["poses"][p][n].copy(), content["betas"][p][:10]
        root = BODIES.root(np.array([0]), betas[None])[0]
        turned = rotation @ to_matrix(torch.from_numpy(pose[:3])).numpy()
        pose[:3] = to_axis_angle(torch.from_numpy(turned)).numpy()
        trans = rotation @ content["trans"][p][n] + move - root + rotation @ root
        joints = content["jointPositions"][p][n].reshape(24, 3) @ rotation.T + move
        people.append(
            {
                "id": len(people),
                "image_id": 100 + n,
                "person_id": p,
                "joint_cam": joints.tolist(),
                "openpose_result": content["poses2d"][p][n].T.tolist(),
                "bbox": [1.0, 2.0, 30.0, 40.0],
                "smpl_param": {
                    "pose": pose.tolist(),
                    "shape": betas.tolist(),
                    "trans": trans.tolist(),
                    "gender": "male" if content["genders"][p] == "m" else "female",
                },
            }
        )
    return {"images": images, "annotations": people}


def as_json(root: Path, content: dict) -> Path:
    (root / "sequenceFiles").exists() and (root / "sequenceFiles").rename(root / "elsewhere")
    (root / "3DPW_latest_test.json").write_text(json.dumps(content))
    return root


def test_both_forms_give_the_same_people(tmp_path):
    content = sequence()
    released = read_3dpw(save(tmp_path, content), BODIES)["test"]
    found = read_3dpw(as_json(tmp_path, converted(content)), BODIES)["test"]
    for name in ("joints", "camera", "betas"):
        np.testing.assert_array_equal(getattr(found, name), getattr(released, name))
    for name in ("pose", "trans"):
        np.testing.assert_allclose(getattr(found, name), getattr(released, name), atol=2e-6)
    for name in ("sizes", "image", "gender", "near", "fitted"):
        np.testing.assert_array_equal(getattr(found, name), getattr(released, name))
    assert found.box[0].tolist() == [1, 2, 30, 40]
    assert (found.root, found.files, found.ids) == (released.root, released.files, released.ids)
    assert (found.sequence, found.protocol) == (released.sequence, released.protocol)
    (tmp_path / "elsewhere").rename(tmp_path / "sequenceFiles")
    assert read_3dpw(tmp_path, BODIES)["test"].box[0].tolist() != [1, 2, 30, 40]  # the release is preferred


def entry(place, *keys, value=None, drop=False):
    def change(content):
        kind, number = place
        item = content[kind][number]
        for key in keys[:-1]:
            item = item[key]
        if drop:
            del item[keys[-1]]
        else:
            item[keys[-1]] = value(item[keys[-1]]) if callable(value) else value

    return change


def in_millimetres(content):
    for person in content["annotations"]:
        person["joint_cam"] = (1000 * np.array(person["joint_cam"])).tolist()


PERSON, IMAGE = ("annotations", 1), ("images", 0)
WRONG_JSON = {
    "gender": (
        entry(PERSON, "smpl_param", "gender", value="unknown"),
        r"3DPW_latest_test.json, annotation 1: gender 'unknown', not m",
    ),
    "betas": (
        entry(PERSON, "smpl_param", "shape", value=[0] * 11),
        r"smpl_param.shape of 1 people.*\n.*annotation 1 is \(11,\), not \(10,\)",
    ),
    "pose": (
        entry(PERSON, "smpl_param", "pose", value="abc"),
        "smpl_param.pose of 1 people.*\n.*annotation 1: abc is no array",
    ),
    "nan": (
        entry(PERSON, "smpl_param", "trans", value=[0, float("nan"), 0]),
        "smpl_param.trans of 1 people.*\n.*annotation 1: not finite",
    ),
    "no joints": (entry(PERSON, "openpose_result", drop=True), "1 of 7 entries have no openpose_result"),
    "no parameters": (entry(PERSON, "smpl_param", value=[1]), "entries have no smpl_param.gender"),
    "no image": (entry(PERSON, "image_id", value=[5]), "1 of 7 are of images that it does not list\n.*annotation 1"),
    "no camera": (entry(IMAGE, "cam_param", "focal", drop=True), "entries have no cam_param.focal"),
    "a path out of the folder": (entry(IMAGE, "file_name", value="../../x.jpg"), "lacks 1 of the 4 images"),
    "nobody": (lambda c: c.update(annotations=[]), "no lists of images and annotations"),
    "millimetres": (in_millimetres, "m away from their own joints"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG_JSON.values(), ids=WRONG_JSON)
def test_wrong_json_is_named(tmp_path, change, message):
    content = sequence()
    save(tmp_path, content)
    file = converted(content)
    change(file)
    with pytest.raises(HapError, match=message):
        read_3dpw(as_json(tmp_path, file), BODIES)
