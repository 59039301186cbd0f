"""What `hap predict` leaves of bodies: parameters, meshes, pictures, from boxes and from 2D joints; and the same in
Python."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import TINY, config
from test_pose3d_task import NETWORKS, train
from test_pose_predict import picture
from test_sources import write_video

import hap
from hap.body.joints import SMPL30
from hap.body.model import BodyModel
from hap.body.rotations import to_matrix
from hap.building import build
from hap.data.boxes import read_boxes
from hap.data.keypoint_files import read_keypoints
from hap.data.sources import read_inputs
from hap.data.video import Video
from hap.description import add_experiment
from hap.errors import HapError
from hap.people import find_people
from hap.pose.skeletons import COCO, MPII
from hap.runner import run
from hap.synthetic.smpl import drawn_bodies, write_bodies
from hap.tasks.pose2d_outputs import write_poses

QUIET = ("trainer=cpu", "callbacks.progress=null", "trainer.enable_progress_bar=false", "data.num_workers=0")
BODY = drawn_bodies().neutral
# Places of COCO's joints among the body's 30, and the pelvis, as the specification lists them.
COCO_IN_BODY = [24, 25, 26, 27, 28, 16, 17, 18, 19, 20, 21, 1, 2, 4, 5, 7, 8]


@pytest.fixture(scope="module")
def checkpoints(drawn, tmp_path_factory):
    """checkpoints(network): a file."""
    files = {}

    def of(network: str) -> Path:
        if network not in files:
            folder = tmp_path_factory.mktemp(network) / "run"
            train(drawn("pose3d_multi", 20), folder, *NETWORKS[network], "epochs=1")
            files[network] = folder / "checkpoints/last.ckpt"
        return files[network]

    return of


@pytest.fixture
def predict(checkpoints, tmp_path):
    """predict(input, ..., network=, name=): the run folder."""

    def start(source, *overrides: str, network: str = "hmr2", name: str = "run") -> Path:
        options = add_experiment([f"ckpt_path={checkpoints(network)}", *overrides])
        run("predict", config("predict", *options, *QUIET, f"input={source}"), tmp_path / name)
        return tmp_path / name

    return start


def bodies(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "bodies.npz", allow_pickle=False) as file:
        return dict(file)


def meshes(found: dict[str, np.ndarray]) -> np.ndarray:
    """(N, V, 3) of the parameters in a file."""
    pose, betas, trans = (torch.from_numpy(found[name]) for name in ("pose", "betas", "trans"))
    return BodyModel(BODY)(to_matrix(pose.unflatten(1, (24, 3))), betas, trans).vertices.numpy()


def seen(points: np.ndarray, focal: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Where a camera sees points (V, 3), pixels (V, 2)."""
    return points[:, :2] / points[:, 2:] * focal + center


def read_obj(path: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """Vertices, faces from 0, comments."""
    lines = [line.split() for line in path.read_text().splitlines()]
    vertices = np.array([list(map(float, line[1:])) for line in lines if line[0] == "v"])
    faces = np.array([list(map(int, line[1:])) for line in lines if line[0] == "f"])
    assert {line[0] for line in lines} == {"#", "v", "f"}
    return vertices, faces - 1, " ".join(" ".join(line) for line in lines if line[0] == "#")


def save_boxes(path: Path, *rows: tuple) -> str:
    path.write_text("image,x,y,w,h\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return f"boxes={path}"


def test_each_picture_is_one_person(predict, tmp_path):
    shown = [picture(tmp_path / f"in/{i}.jpg", 120 + 30 * i, 140, seed=i) for i in range(2)]
    found = bodies(folder := predict(tmp_path / "in"))
    assert [Path(name).name for name in found["image"]] == ["0.jpg", "1.jpg"]
    shapes = {"pose": (2, 72), "betas": (2, 10), "trans": (2, 3), "focal": (2, 2), "center": (2, 2)}
    assert {name: found[name].shape for name in shapes} == shapes
    assert {found[name].dtype for name in shapes} == {np.dtype(np.float32)}
    assert set(found) == {"image", *shapes, "metric_depth"}
    assert not found["metric_depth"]
    np.testing.assert_allclose(found["center"], [[59.5, 69.5], [74.5, 69.5]])
    np.testing.assert_allclose(found["focal"], 5000 / 256 * np.array([[140, 140], [150, 150]]), rtol=1e-6)
    for i, mesh in enumerate(meshes(found)):
        # What is drawn is where the camera of the file sees the mesh of the file.
        drawn = cv2.cvtColor(cv2.imread(str(folder / f"pictures/{i:06d}.png")), cv2.COLOR_BGR2RGB)
        assert drawn.shape == shown[i].shape
        changed = np.argwhere(np.abs(drawn.astype(int) - shown[i]).max(2) > 25)[:, ::-1]
        pixels = seen(mesh, found["focal"][i], found["center"][i])
        size = np.array(shown[i].shape[1::-1])
        low, high = pixels.min(0).clip(0, size - 1), pixels.max(0).clip(0, size - 1)
        np.testing.assert_allclose(changed.min(0), low, atol=3)
        np.testing.assert_allclose(changed.max(0), high, atol=3)
        vertices, faces, said = read_obj(folder / f"meshes/{i:06d}_0.obj")
        np.testing.assert_allclose(vertices, mesh, atol=2e-6 * np.abs(mesh).max())
        np.testing.assert_array_equal(faces, BODY.faces)
        assert f"{i}.jpg" in said
        assert "x right, y down, z away from the camera" in said
        assert cv2.imread(str(folder / f"turntable/{i:06d}_0.png")).shape == (256, 4 * 160, 3)


def test_two_people_in_one_picture_are_two_meshes(predict, tmp_path):
    """Each as it is alone; y upwards where it is asked for, in the meshes alone."""
    picture(tmp_path / "in/a.jpg", 300, 200)
    picture(tmp_path / "in/b.jpg", 90, 150, seed=1)
    rows = [("a.jpg", 10, 20, 60, 120), ("b.jpg", 20, 10, 50, 120), ("a.jpg", 150, 5, 100, 180)]
    boxes = save_boxes(tmp_path / "boxes.csv", *rows)
    found = bodies(folder := predict(tmp_path / "in", boxes))
    assert found["box"].tolist() == ["0", "1", "2"]
    assert [Path(name).name for name in found["image"]] == ["a.jpg", "b.jpg", "a.jpg"]
    names = ["000000_0", "000000_1", "000001_0"]
    for kind in ("meshes", "turntable"):
        assert sorted(path.stem for path in (folder / kind).iterdir()) == names
    assert len(list((folder / "pictures").iterdir())) == 2
    all_meshes = meshes(found)
    for name, i in zip(names, (0, 2, 1), strict=True):
        np.testing.assert_allclose(read_obj(folder / f"meshes/{name}.obj")[0], all_meshes[i], atol=1e-3)
    alone = bodies(predict(tmp_path / "in/a.jpg", save_boxes(tmp_path / "one.csv", rows[2]), name="one"))
    for name in ("pose", "betas", "trans", "focal", "center"):
        np.testing.assert_allclose(alone[name][0], found[name][2], rtol=1e-4, atol=1e-4)

    turned = predict(tmp_path / "in", boxes, "axes=y_up", name="up")
    vertices, _, said = read_obj(turned / "meshes/000000_1.obj")
    np.testing.assert_allclose(vertices, all_meshes[2] * [1, -1, -1], atol=1e-3)
    assert "y up" in said
    np.testing.assert_array_equal(bodies(turned)["pose"], found["pose"])
    with pytest.raises(HapError, match="axes=z_up: camera or y_up"):
        predict(tmp_path / "in", boxes, "axes=z_up", name="z")


def test_a_focal_length_gives_distances_and_leaves_the_picture(checkpoints, predict, tmp_path):
    """By the formulas: the crop's camera sees the body's origin at the same pixel, as large, for every focal length."""
    image = picture(tmp_path / "in/a.jpg", 300, 200)
    box = (150, 25, 100, 160)
    boxes = save_boxes(tmp_path / "boxes.csv", ("a.jpg", *box))
    unknown, known = (
        bodies(predict(tmp_path / "in", boxes, *focal, name=name))
        for name, focal in (("unknown", ()), ("known", ("focal=1500",)))
    )
    assert not unknown["metric_depth"]
    assert known["metric_depth"]
    np.testing.assert_allclose(known["focal"], [[1500, 1500]])
    ratio = unknown["focal"][0, 0] / 1500
    np.testing.assert_allclose(unknown["trans"][:, 2], ratio * known["trans"][:, 2], rtol=1e-5)
    np.testing.assert_allclose(unknown["trans"][:, :2], known["trans"][:, :2], atol=1e-4)

    model = hap.load(checkpoints("hmr2"))
    sample = model.transform(image, {"box": np.array(box, np.float32)}, None)
    batch = {name: torch.as_tensor(value)[None] for name, value in sample.items()}
    with torch.no_grad():
        x, y, z = model.task(batch).translation[0].tolist()
    side = 1.25 * 159  # of the crop, whose middle is that of the box
    place = np.array([150, 25]) + np.array([99, 159]) / 2 + 5000 * side / 256 * np.array([x, y]) / z
    for found in (unknown, known):
        pixel = seen(found["trans"], found["focal"][0], found["center"][0])[0]
        np.testing.assert_allclose(pixel, place, atol=0.05)
        assert found["focal"][0, 0] / found["trans"][0, 2] == pytest.approx(5000 * side / 256 / z, rel=1e-4)
    with pytest.raises(HapError, match="focal=-3"):
        predict(tmp_path / "in", boxes, "focal=-3", name="negative")


def test_a_video_and_pictures_without_anybody(predict, tmp_path):
    picture(tmp_path / "in/a.jpg")
    picture(tmp_path / "in/b.jpg", seed=1)
    write_video(tmp_path / "in/walk.mp4", frames=6)
    (tmp_path / "in/list.txt").write_text("a.jpg\nb.jpg\nwalk.mp4\n")
    rows = [("b.jpg", 10, 10, 40, 60), *[(f"walk.mp4#{n}", 5, 5, 20, 20) for n in (2, 2, 4)]]
    found = bodies(
        folder := predict(
            tmp_path / "in/list.txt", save_boxes(tmp_path / "boxes.csv", *rows, ("a.jpg", 5, 5, 0, 9))
        )
    )
    assert found["frame"].tolist() == ["", "2", "2", "4"]
    assert found["seconds"].tolist() == ["", "0.080", "0.080", "0.160"]
    video = Video(folder / "pictures/walk.mp4", "walk.mp4")
    assert len(video) == 6
    assert [path.name for path in sorted((folder / "pictures").glob("*.png"))] == ["000000.png"]
    names = sorted(path.stem for path in (folder / "meshes").iterdir())
    assert names == ["000000_0", "video0_0", "video0_1"]  # of the first frame with somebody in it
    np.testing.assert_allclose(read_obj(folder / "meshes/video0_1.obj")[0], meshes(found)[2], atol=1e-3)
    assert "a.jpg, box 4" in next(folder.glob("bad_samples_predict_*")).read_text()  # of no area


# -- 2D joints ---------------------------------------------------------------------------------------------------------


def poses_of(folder: Path, source: Path, boxes: str, skeleton, keypoints) -> Path:
    """`poses.json` as `hap predict` writes it of a model of 2D pose."""
    inputs = read_inputs({"input": str(source)})
    people = read_boxes(Path(boxes.removeprefix("boxes=")), inputs, whole=True)
    folder.mkdir(exist_ok=True)
    write_poses(folder, list(people), np.float32(keypoints), skeleton, inputs)
    return folder / "poses.json"


def some_joints(count: int, joints: int = 17, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.uniform(20, 80, (count, joints, 2)), np.ones((count, joints, 1))], axis=2)


def test_joints_of_a_2d_pose_model_are_the_input(predict, tmp_path):
    """The paper's network, on pictures with two people; what is not found does not count."""
    for i in range(2):
        picture(tmp_path / f"in/{i}.jpg", 120, 100, seed=i)
    boxes = save_boxes(
        tmp_path / "b.csv", ("0.jpg", 10, 10, 60, 80), ("0.jpg", 50, 5, 60, 90), ("1.jpg", 9, 9, 70, 70)
    )
    keypoints = some_joints(3)
    keypoints[1, 9] = (400, 400, 0.01)
    file = poses_of(tmp_path / "2d", tmp_path / "in", boxes, COCO, keypoints)
    people = read_keypoints(file, read_inputs({"input": str(tmp_path / "in")}))
    for i, record in enumerate(people):
        known = record.annotations()
        np.testing.assert_allclose(known["joints"][COCO_IN_BODY, :2], keypoints[i, :, :2], atol=1e-3)
        np.testing.assert_array_equal(known["joints"][COCO_IN_BODY, 2], keypoints[i, :, 2] > 0.05)
        np.testing.assert_allclose(known["joints"][0, :2], keypoints[i, 11:13, :2].mean(0), atol=1e-3)
        assert known["joints"][:, 2].sum() == 18 - (i == 1)
        np.testing.assert_allclose(known["box"], [[10, 10, 60, 80], [50, 5, 60, 90], [9, 9, 70, 70]][i])
    found = bodies(folder := predict(tmp_path / "in", f"keypoints={file}", network="crowdnet"))
    assert found["pose"].shape == (3, 72)
    assert len(list((folder / "meshes").iterdir())) == 3

    keypoints[1, 9, :2] = 30  # still not found
    keypoints[2, 9] += 25
    file = poses_of(tmp_path / "2d", tmp_path / "in", boxes, COCO, keypoints)
    moved = bodies(predict(tmp_path / "in", f"keypoints={file}", network="crowdnet", name="moved"))
    np.testing.assert_array_equal(moved["pose"][:2], found["pose"][:2])
    assert np.abs(moved["pose"][2] - found["pose"][2]).max() > 1e-6


def test_joints_of_videos(predict, tmp_path):
    """Frames of two videos have the same numbers."""
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", frames=3)
    (tmp_path / "list.txt").write_text("a.mp4\nb.mp4\n")
    rows = [(f"{name}.mp4#{n}", 5, 5, 40, 40) for name in "ab" for n in (0, 2)]
    boxes = save_boxes(tmp_path / "b.csv", *rows)
    file = poses_of(tmp_path / "2d", tmp_path / "list.txt", boxes, MPII, some_joints(4, 16))
    found = bodies(predict(tmp_path / "list.txt", f"keypoints={file}", network="crowdnet"))
    assert found["frame"].tolist() == ["0", "2", "0", "2"]
    assert [Path(name).name for name in found["image"]] == ["a.mp4", "a.mp4", "b.mp4", "b.mp4"]


def annotated(path: Path, names: list[str], people: list[dict], **images) -> Path:
    """A file in COCO's format; of pictures a.jpg (1) and b.jpg (2)."""
    content = {
        "images": [{"id": i + 1, "file_name": f"{name}.jpg"} | images for i, name in enumerate("ab")],
        "annotations": [
            {"id": i, "category_id": 1, "image_id": 1, "bbox": [10, 10, 40, 60]} | person
            for i, person in enumerate(people)
        ],
        "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "person", "keypoints": names}],
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def pictures(tmp_path):
    for name in "ab":
        picture(tmp_path / f"in/{name}.jpg")
    return read_inputs({"input": str(tmp_path / "in")})


def test_annotations_of_coco_have_flags_and_crowds(pictures, tmp_path, caplog):
    keypoints = some_joints(1)[0]
    keypoints[:, 2] = [0, 1, 2] * 5 + [2, 1]
    keypoints[keypoints[:, 2] == 0, :2] = 0
    people = [
        {"keypoints": [0] * 51, "num_keypoints": 0},
        {"keypoints": keypoints.ravel().tolist()},
        {"keypoints": [1] * 51, "iscrowd": 1},
        {"image_id": 2, "keypoints": keypoints.ravel().tolist()},
        {"category_id": 3, "keypoints": [1, 1, 1]},
    ]
    found = read_keypoints(annotated(tmp_path / "a.json", list(COCO.joints), people), pictures)
    assert [record.name.rpartition("/")[2] for record in found] == ["a.jpg, box 1", "b.jpg, box 3"]
    joints = found[0].annotations()["joints"]
    np.testing.assert_array_equal(joints[COCO_IN_BODY, 2], keypoints[:, 2] > 0)
    assert joints[0, 2] == (keypoints[11, 2] * keypoints[12, 2] > 0)
    assert "left out 1 people without a joint and 1 crowds" in caplog.text


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (list(MPII.joints), {"Pelvis": 6, "Neck": 8, "Head_top": 9, "L_Wrist": 15, "R_Ankle": 0}),
        (["LHip", "RHip", "l_knee", "knee_right", "neck", "headset"], {"L_Hip": 0, "R_Knee": 3, "Neck": 4}),
        (list(SMPL30), {name: i for i, name in enumerate(SMPL30)}),
    ],
)
def test_joints_of_other_sets_by_their_names(pictures, tmp_path, names, places):
    """A pelvis of the set is taken, else the middle of the hips; joints that the body has not are left."""
    keypoints = some_joints(1, len(names))[0]
    people = [{"keypoints": keypoints.ravel().tolist()}]
    (record,) = read_keypoints(annotated(tmp_path / "a.json", names, people), pictures)
    joints = record.annotations()["joints"]
    for name, place in places.items():
        np.testing.assert_allclose(joints[SMPL30.index(name)], [*keypoints[place, :2], 1], rtol=1e-6)
    if "Pelvis" not in places:
        np.testing.assert_allclose(joints[0, :2], keypoints[:2, :2].mean(0), rtol=1e-6)
        assert joints[:, 2].sum() == 6


def test_what_is_no_file_of_joints_is_named(pictures, tmp_path):
    good = {"keypoints": some_joints(1)[0].ravel().tolist()}
    path = tmp_path / "a.json"

    def refused(match: str, people: list[dict], names=COCO.joints, **images) -> None:
        with pytest.raises(HapError, match=match):
            read_keypoints(annotated(path, list(names), people, **images), pictures)

    with pytest.raises(HapError, match=r"file not found: .*nothing\.json"):
        read_keypoints(tmp_path / "nothing.json", pictures)
    for content in ("[]", '{"images": [], "annotations": [1], "categories": []}', '{"images": {}}'):
        path.write_text(content)
        with pytest.raises(HapError, match="no file of people with joints"):
            read_keypoints(path, pictures)
    path.write_text('{"images": [], "annotations": [], "categories": [{"id": 1, "keypoints": []}]}')
    with pytest.raises(HapError, match="categories do not name the joints"):
        read_keypoints(path, pictures)
    refused("fewer than 4 are the body's", [good], [f"paw_{i}" for i in range(17)])
    refused("nobody with a joint", [])
    for wrong in (
        {"bbox": None},
        {"bbox": [1, 2, 3]},
        {"bbox": [1, 2, 3, "wide"]},
        {"bbox": [0, 0, float("nan"), 4]},
        {"keypoints": [1, 2, 3]},
        {"keypoints": [None] * 51},
        {"keypoints": [1e300] * 51},
        {"keypoints": "left"},
        {"keypoint_scores": [1.0] * 16},
        {"keypoint_scores": None},
        {"image_id": 9},
        {"image_id": [1]},
    ):
        refused(r"1 people have no bbox, .*\n  annotation 1: image_id", [good, good | wrong])
    refused("annotation 0", [good], file_name=None)
    refused("1 of 1 boxes belong to no image", [good], file_name="other.jpg")


def test_joints_are_for_networks_of_bodies(checkpoints, predict, tmp_path):
    picture(tmp_path / "in/a.jpg")
    file = annotated(
        tmp_path / "a.json", list(COCO.joints), [{"keypoints": some_joints(1)[0].ravel().tolist()}]
    )
    with pytest.raises(
        HapError, match=r"given the 2D joints of each person: keypoints=FILE, the poses\.json"
    ):
        predict(tmp_path / "in", network="crowdnet")
    with pytest.raises(HapError, match="leave boxes= out"):
        predict(tmp_path / "in", f"keypoints={file}", "boxes=none", name="both")
    assert len(bodies(predict(tmp_path / "in", f"keypoints={file}", name="hmr2"))["pose"]) == 1
    cfg = config("predict", "experiment=pose2d_coco", *TINY, f"input={tmp_path}/in", f"keypoints={file}")
    with pytest.raises(HapError, match="is for models of 3D pose"):
        find_people(cfg, tmp_path, build(cfg.task, "task"))


def test_other_joints_are_another_prediction(pictures, tmp_path):
    """What a prediction that was stopped goes on with is told from others."""
    sums = set()
    for seed in range(2):
        people = [{"keypoints": some_joints(1, seed=seed)[0].ravel().tolist()}]
        found = read_keypoints(annotated(tmp_path / "a.json", list(COCO.joints), people), pictures)
        sums.add(found.checksums()["boxes"])
    assert len(sums) == 2


# -- in Python ---------------------------------------------------------------------------------------------------------


def test_in_python(checkpoints, predict, tmp_path):
    image = picture(tmp_path / "in/a.jpg", 200, 150)
    places = [[10, 10, 60, 120], [80, 5, 50, 90]]
    boxes = save_boxes(tmp_path / "boxes.csv", *[("a.jpg", *place) for place in places])
    expected = bodies(predict(tmp_path / "in", boxes, "focal=900"))
    model = hap.load(checkpoints("hmr2"))
    found = model.predict(image, places, focal=900)
    for name in ("pose", "betas", "trans"):
        np.testing.assert_allclose(getattr(found, name), expected[name], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.vertices, meshes(expected), atol=1e-3)
    assert found.faces.max() < found.vertices.shape[1]
    of_model = hap.load(checkpoints("hmr2"), "focal=900").predict(image, places)
    np.testing.assert_array_equal(of_model.trans, found.trans)
    unknown = model.predict(image, places)
    np.testing.assert_allclose(unknown.trans[:, 2], found.trans[:, 2] * 200 * 5000 / 256 / 900, rtol=1e-5)

    assert len(model.predict(image).pose) == len(model.predict(image).image) == 1
    nobody = model.predict(image, np.empty((0, 4)))
    assert [v.shape for v in nobody[:-1]] == [(0, *v.shape[1:]) for v in found[:-1]]
    for wrong in ([[1, 2, 3]], [[1, 2, 0, 4]]):
        with pytest.raises(HapError, match="x, y, width, height"):
            model.predict(image, wrong)
    for focal in (0, -1, float("nan"), float("inf")):
        with pytest.raises(HapError, match="focal"):
            model.predict(image, places, focal=focal)
    with pytest.raises(HapError, match="uint8"):
        model.predict(image / 255)


def test_in_python_with_joints(checkpoints, predict, tmp_path):
    """As from a file; without boxes the crop is around them, as in an evaluation on 3DPW."""
    image = picture(tmp_path / "in/a.jpg", 200, 150)
    keypoints, place = some_joints(1), [10, 10, 60, 120]
    boxes = save_boxes(tmp_path / "boxes.csv", ("a.jpg", *place))
    file = poses_of(tmp_path / "2d", tmp_path / "in", boxes, COCO, keypoints)
    expected = bodies(predict(tmp_path / "in", f"keypoints={file}", network="crowdnet"))
    model = hap.load(checkpoints("crowdnet"))
    found = model.predict(image, [place], keypoints=keypoints)
    for name in ("pose", "betas", "trans"):
        np.testing.assert_allclose(getattr(found, name), expected[name], rtol=1e-4, atol=1e-4)
    low, high = keypoints[0, :, :2].min(0), keypoints[0, :, :2].max(0)
    around = np.concatenate([(low + high) / 2 - 0.6 * (high - low), 1.2 * (high - low)])
    np.testing.assert_allclose(
        model.predict(image, keypoints=keypoints).trans,
        model.predict(image, [around], keypoints=keypoints).trans,
        rtol=1e-3,
    )
    with pytest.raises(HapError, match="given 2D joints"):
        model.predict(image, [place])
    for wrong in (keypoints[0], keypoints[:, :16], some_joints(2)):
        with pytest.raises(HapError, match=r"\(P, 17, 3\)"):
            model.predict(image, [place], keypoints=wrong)


def test_another_body_is_refused(checkpoints, predict, tmp_path):
    picture(tmp_path / "in/a.jpg")
    write_bodies(tmp_path / "smpl")
    file = tmp_path / "smpl/basicModel_neutral_lbs_10_207_0_v1.0.0.npz"
    with np.load(file) as content:
        arrays = dict(content) | {"v_template": content["v_template"] * np.float32(1.01)}
    np.savez(file, **arrays)
    body = ("synthetic=false", "body=smpl", f"body.folder={tmp_path}/smpl")
    with pytest.raises(HapError, match="was trained with the body drawn"):
        predict(tmp_path / "in", *body)
    with pytest.raises(HapError, match="was trained with the body drawn"):
        hap.load(checkpoints("hmr2"), *body)
