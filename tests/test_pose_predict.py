"""What `hap predict` leaves of poses: tables, pictures, videos, pose files; and the same in Python."""

import csv
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import config
from test_pose_task import COCO, SMALL, train
from test_sources import turned, write_video

import hap
from hap.data.decoding import decode_image, orientation, stored_points
from hap.data.pretrain import open_luperson
from hap.data.video import Video
from hap.description import add_experiment
from hap.errors import HapError
from hap.plots import close_up, draw_pose
from hap.pose.skeletons import COCO as SKELETON
from hap.pose.skeletons import of_names
from hap.runner import run

SAMPLES = Path(os.environ.get("HAP_SAMPLES", "nowhere"))
QUIET = ("trainer=cpu", "callbacks.progress=null", "trainer.enable_progress_bar=false", "data.num_workers=0")


@pytest.fixture(scope="module")
def checkpoint(drawn, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(drawn("coco", 16), folder, *COCO, "epochs=1")
    return folder / "checkpoints/last.ckpt"


@pytest.fixture
def predict(checkpoint, tmp_path):
    """predict(input, ...): the run folder."""

    def start(source, *overrides: str, model: Path = checkpoint, name: str = "run") -> Path:
        options = add_experiment([f"ckpt_path={model}"])
        run("predict", config("predict", *options, *QUIET, f"input={source}", *overrides), tmp_path / name)
        return tmp_path / name

    return start


def picture(
    path: Path, width: int = 120, height: int = 90, seed: int = 0, tag: int | None = None
) -> np.ndarray:
    """A smooth picture, as JPEG with an EXIF orientation if asked. The stored pixels."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    image = cv2.GaussianBlur(noise, (0, 0), 6)
    data = cv2.imencode(".jpg", image)[1].tobytes()
    if tag is not None:
        entry = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([tag]) + b"\0\0\0\0\0\0\0"
        data = data[:2] + b"\xff\xe1" + (len(entry) + 8).to_bytes(2, "big") + b"Exif\0\0" + entry + data[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return decode_image(data)


def read(folder: Path) -> tuple[dict, list[dict[str, str]]]:
    with (folder / "poses.csv").open() as file:
        return json.loads((folder / "poses.json").read_text()), list(csv.DictReader(file))


def test_each_picture_is_one_person(predict, tmp_path):
    for i in range(3):
        picture(tmp_path / f"in/{i}.jpg", seed=i)
    poses, rows = read(folder := predict(tmp_path / "in", "boxes=none"))
    assert [image["file_name"].rsplit("/", 1)[1] for image in poses["images"]] == ["0.jpg", "1.jpg", "2.jpg"]
    assert (poses["images"][0]["width"], poses["images"][0]["height"]) == (120, 90)
    assert poses["categories"][0]["keypoints"] == list(SKELETON.joints)
    for person, row in zip(poses["annotations"], rows, strict=True):
        assert len(person["keypoints"]) == 51
        assert person["keypoints"][2::3] == [2] * 17  # every joint has its place, however unsure
        assert person["bbox"] == [0, 0, 120, 90]
        assert float(row["left_wrist_x"]) == pytest.approx(person["keypoints"][3 * 9], rel=1e-4)
        assert float(row["left_wrist_score"]) == pytest.approx(person["keypoint_scores"][9], abs=1e-4)
    assert sorted(p.name for p in (folder / "pictures").iterdir()) == [f"{i:06d}.png" for i in range(3)]
    assert not (folder / "luperson").exists()


def test_boxes_give_the_poses_of_each_alone_in_their_order(predict, tmp_path):
    picture(tmp_path / "in/a.jpg", 300, 200)
    picture(tmp_path / "in/b.jpg", 200, 300, seed=1)
    boxes = [
        ("a", 10, 20, 60, 120),
        ("b", 50, 40, 90, 200),
        ("a", 150, 5, 100, 180),
        ("b", -5, 100, 80, 150),
    ]
    (tmp_path / "boxes.csv").write_text(
        "image,x,y,w,h,score\n" + "".join(f"{n}.jpg,{x},{y},{w},{h},0.5\n" for n, x, y, w, h in boxes)
    )
    poses, rows = read(predict(tmp_path / "in", f"boxes={tmp_path}/boxes.csv", "data.eval_batch_size=3"))
    assert [row["box"] for row in rows] == ["0", "1", "2", "3"]
    for i, (name, *box) in enumerate(boxes):
        (tmp_path / "one.csv").write_text(f"image,x,y,w,h\n{name}.jpg,{','.join(map(str, box))}\n")
        _, (alone,) = read(predict(tmp_path / f"in/{name}.jpg", f"boxes={tmp_path}/one.csv", name=f"one{i}"))
        for joint in SKELETON.joints:
            for axis in "xy":
                assert float(rows[i][f"{joint}_{axis}"]) == pytest.approx(
                    float(alone[f"{joint}_{axis}"]), abs=1e-2
                )
    per_image = {image["id"]: image["file_name"] for image in poses["images"]}
    found = [(per_image[p["image_id"]][-5:], p["bbox"]) for p in poses["annotations"]]
    assert sorted(found) == sorted((f"{n}.jpg", box) for n, *box in boxes)


def test_a_box_of_nothing_is_left_out(predict, tmp_path):
    picture(tmp_path / "in/a.jpg")
    (tmp_path / "boxes.csv").write_text(
        "image,x,y,w,h\na.jpg,10,10,40,60\na.jpg,10,10,0,60\na.jpg,500,10,20,20\n"
    )
    _, rows = read(folder := predict(tmp_path / "in", f"boxes={tmp_path}/boxes.csv"))
    assert [row["box"] for row in rows] == ["0"]
    named = next(folder.glob("bad_samples_predict_*")).read_text()
    assert "a.jpg, box 1" in named
    assert "a.jpg, box 2" in named


def test_a_turned_photograph_is_shown_and_measured_upright(predict, tmp_path):
    picture(tmp_path / "in/a.jpg", 120, 80, tag=6)
    poses, _ = read(folder := predict(tmp_path / "in"))
    assert (poses["images"][0]["width"], poses["images"][0]["height"]) == (80, 120)
    assert cv2.imread(str(folder / "pictures/000000.png")).shape == (120, 80, 3)


def test_a_video_is_drawn_over_at_its_rate(predict, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "walk.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 12.5, (96, 64))
    for level in range(10):
        writer.write(np.full((64, 96, 3), 20 * level, np.uint8))
    writer.release()
    poses, rows = read(folder := predict(tmp_path / "walk.avi"))
    assert [image["frame"] for image in poses["images"]] == list(range(10))
    assert poses["images"][5]["seconds"] == pytest.approx(0.4)
    assert [row["frame"] for row in rows] == [str(i) for i in range(10)]
    video = Video(folder / "pictures/walk.mp4", "walk.mp4")
    assert (len(video), video.size) == (10, (64, 96))
    assert np.diff(video.seconds).mean() == pytest.approx(1 / 12.5, abs=1e-3)


def test_frames_and_pictures_without_anybody_stay(predict, tmp_path):
    """Boxes in some frames of a video: it keeps its length; the others are pictures in the table, too."""
    picture(tmp_path / "in/a.jpg")
    write_video(tmp_path / "in/walk.mp4", frames=8)
    picture(tmp_path / "in/b.jpg")
    (tmp_path / "in/list.txt").write_text("a.jpg\nb.jpg\nwalk.mp4\n")
    boxes = "image,x,y,w,h\nb.jpg,10,10,40,60\n" + "".join(f"walk.mp4#{n},5,5,20,20\n" for n in (2, 2, 6))
    (tmp_path / "boxes.csv").write_text(boxes)
    poses, rows = read(folder := predict(tmp_path / "in/list.txt", f"boxes={tmp_path}/boxes.csv"))
    assert len(poses["images"]) == 2 + 8
    of = {image["id"]: (image["file_name"][-5:], image.get("frame")) for image in poses["images"]}
    found = [of[person["image_id"]] for person in poses["annotations"]]
    assert found == [("b.jpg", None), ("k.mp4", 2), ("k.mp4", 2), ("k.mp4", 6)]
    assert [row["frame"] for row in rows] == ["", "2", "2", "6"]
    assert len(Video(folder / "pictures/walk.mp4", "walk.mp4")) == 8
    assert [path.name for path in sorted((folder / "pictures").glob("*.png"))] == ["000000.png"]


def test_a_phone_s_video_is_drawn_over_upright(predict, tmp_path):
    """Stored lying, shown standing: the places count in what is shown, and so is what is written."""
    path = turned(write_video(tmp_path / "lying.mp4", frames=6), tmp_path / "phone.mp4", 90)
    stored = cv2.VideoCapture(str(path))
    stored.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
    width, height = (int(stored.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    poses, _ = read(folder := predict(path))
    assert {(image["width"], image["height"]) for image in poses["images"]} == {(height, width)}
    drawn = Video(folder / "pictures/phone.mp4", "phone.mp4")
    assert drawn.size == (width, height)
    difference = drawn.read(0).astype(int) - Video(path, "phone").read(0)
    assert np.abs(difference).mean() < 12


def test_videos_of_one_name_are_two(predict, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_video(tmp_path / folder / "walk.mp4", frames=3)
    folder = predict(f"'{tmp_path}/*/walk.mp4'")
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == ["walk.mp4", "walk_2.mp4"]


@pytest.mark.parametrize("tag", range(1, 9))
def test_points_return_to_the_stored_pixels(tmp_path, tag):
    """A bright spot is found in the picture as it is turned; its place leads to the spot in the file."""
    stored = np.zeros((40, 64, 3), np.uint8)
    stored[9:12, 20:23] = 255
    picture(tmp_path / "a.jpg", 64, 40, tag=tag)
    data = (tmp_path / "a.jpg").read_bytes()
    head = data[: data.index(b"Exif") + 32]
    data = head + cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()[2:]
    upright = decode_image(data, upright=True)
    y, x = np.argwhere(upright[..., 0] > 200).mean(0)
    assert orientation(data) == tag
    assert stored_points(np.array([x, y]), tag, upright.shape[:2]).tolist() == pytest.approx(
        [21, 10], abs=0.3
    )


def test_pose_files_are_what_pre_training_reads(predict, tmp_path):
    """A portrait, a landscape, a turned photograph, two files of one stem."""
    picture(tmp_path / "in/a/portrait.jpg", 60, 120)
    picture(tmp_path / "in/landscape.jpg", 150, 90, seed=1)
    picture(tmp_path / "in/turned.jpg", 120, 80, seed=2, tag=8)
    cv2.imwrite(str(tmp_path / "in/landscape.png"), picture(tmp_path / "x.jpg", 70, 90, seed=3))
    stale = tmp_path / "run/luperson/LUPerson-data/landscape.jpg"  # of a writing that was stopped
    stale.parent.mkdir(parents=True)
    stale.symlink_to(tmp_path / "gone.jpg")
    poses, _ = read(folder := predict(tmp_path / "in", "output=luperson"))
    people = open_luperson(folder / "luperson")
    assert len(people) == 4
    found = {}
    for person in people:
        points = person.annotations()["keypoints"]
        height, width = person.pixels().shape[:2]
        found[(height, width)] = points
    for image, annotation in zip(poses["images"], poses["annotations"], strict=True):
        xy = np.reshape(annotation["keypoints"], (17, 3))[:, :2]
        size = (image["height"], image["width"])
        if "turned" in image["file_name"]:
            xy = stored_points(xy, 8, size)
            size = size[::-1]
        np.testing.assert_allclose(found[size][:, :2], xy, atol=1e-3)
        np.testing.assert_allclose(found[size][:, 2], annotation["keypoint_scores"], atol=1e-4)


def test_pose_files_are_of_crops_with_coco_s_joints(predict, drawn, tmp_path):
    picture(tmp_path / "in/a.jpg")
    (tmp_path / "boxes.csv").write_text("image,x,y,w,h\na.jpg,10,10,40,60\n")
    with pytest.raises(HapError, match="images of one person each"):
        predict(tmp_path / "in", f"boxes={tmp_path}/boxes.csv", "output=luperson", name="boxes")
    with pytest.raises(HapError, match="output=openpose: luperson"):
        predict(tmp_path / "in", "output=openpose", name="other")
    train(drawn("mpii", 12), tmp_path / "mpii", "experiment=pose2d_mpii", *SMALL, "epochs=1")
    model = tmp_path / "mpii/checkpoints/last.ckpt"
    with pytest.raises(HapError, match="output=luperson: its joints are not those of coco: missing nose"):
        predict(tmp_path / "in", "output=luperson", model=model, name="joints")


def test_in_python(checkpoint, predict, tmp_path):
    picture(tmp_path / "in/a.jpg", 200, 150)
    (tmp_path / "boxes.csv").write_text("image,x,y,w,h\na.jpg,10,10,60,120\na.jpg,80,5,50,90\n")
    poses, _ = read(predict(tmp_path / "in", f"boxes={tmp_path}/boxes.csv"))
    model = hap.load(checkpoint)
    image = decode_image((tmp_path / "in/a.jpg").read_bytes())
    found = model.predict(image, [[10, 10, 60, 120], [80, 5, 50, 90]])
    assert found.keypoints.shape == (2, 17, 3)
    for keypoints, annotation in zip(found.keypoints, poses["annotations"], strict=True):
        expected = np.reshape(annotation["keypoints"], (17, 3))[:, :2]
        np.testing.assert_allclose(keypoints[:, :2], expected, atol=1e-2)
    assert model.predict(image).keypoints.shape == (1, 17, 3)
    assert model.predict(image, np.empty((0, 4))).keypoints.shape == (0, 17, 3)
    for wrong in ([[1, 2, 3]], [[1, 2, 0, 4]]):
        with pytest.raises(HapError, match="x, y, width, height"):
            model.predict(image, wrong)
    with pytest.raises(HapError, match="uint8"):
        model.predict(image / 255)


def test_joints_are_drawn_above_a_threshold_by_their_side():
    skeleton = of_names(
        ["nose", "left_hand", "right_hand"], links=[["nose", "left_hand"], ["nose", "right_hand"]]
    )
    image = np.zeros((100, 100, 3), np.uint8)
    keypoints = np.array([[50, 20, 0.9], [80, 60, 0.9], [20, 60, 0.2]])
    drawn = draw_pose(image, keypoints, skeleton, threshold=0.3, box=np.array([5, 5, 90, 90]))
    assert not image.any()
    blue, green, nothing = drawn[60, 80], drawn[20, 50], drawn[60, 20]
    assert blue[2] > blue[0]
    assert green[1] > max(green[0], green[2])
    assert not nothing.any()
    assert drawn[5, 50].any()
    near = close_up(image, keypoints, skeleton, np.array([40, 10, 50, 60]), (60, 50))
    scale = 1.3 * max(50 / 50, 60 / 60)
    place = (np.array([80, 60]) - (65, 40)) / scale + (25, 30)  # of the left hand, from the middle of the box
    x, y = place.round().astype(int)
    assert near.shape == (60, 50, 3)
    assert near[y, x, 2] > near[y, x, 0]


def test_a_released_file_needs_no_checkpoint(checkpoint, predict, tmp_path):
    """Its joints are those of the experiment; without one they are asked for."""
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    names = {
        name: name.removeprefix("model.").replace("heads.0.", "keypoint_head.")
        for name in state
        if name.startswith("model.")
    }
    official = {
        (new if new.startswith("keypoint_head.") else f"backbone.{new}"): state[old]
        for old, new in names.items()
    }
    torch.save({"meta": {}, "state_dict": official}, tmp_path / "released.pth")
    picture(tmp_path / "in/a.jpg")
    options = (*COCO, *QUIET, f"weights={tmp_path}/released.pth", f"input={tmp_path}/in")
    run("predict", config("predict", *options), tmp_path / "released")
    assert read(tmp_path / "released")[1] == read(predict(tmp_path / "in"))[1]
    with pytest.raises(HapError, match=r"does not name the joints: give task\.skeleton=coco"):
        run("predict", config("predict", *options, "task.skeleton=null"), tmp_path / "unknown")


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="HAP_SAMPLES is not set")
def test_people_in_photographs(predict):
    """The detections of the sample of COCO; boxes as corners are noticed."""
    boxes = SAMPLES / "coco/person_detection_results/COCO_val2017_detections_AP_H_56_person.json"
    poses, rows = read(folder := predict(SAMPLES / "coco/val2017", f"boxes={boxes}"))
    assert len(rows) == len(poses["annotations"]) == 118
    assert len(list((folder / "pictures").iterdir())) == len(poses["images"]) == 4
