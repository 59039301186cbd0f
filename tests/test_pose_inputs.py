"""What `hap predict` makes of full pictures with boxes: one pose for each, in the order of the file, in pixels of the
picture as a viewer shows it."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import TINY, config
from PIL import Image

from hap.pose.skeletons import COCO
from hap.runner import run
from hap.tasks.pose2d import Pose2d

SMALL = (
    *(option for option in TINY if not option.startswith("img_size")),
    "experiment=pose2d_coco",
    "img_size=[64,48]",
    "task.model.head_dim=8",
)
BOXES = [
    ("a.png", 10, 20, 60, 100),
    ("b.png", 0, 0, 160, 120),
    ("a.png", 80, 5, 40, 110),
    ("b.png", -30, 50, 90, 90),  # partly outside
    ("a.png", 10, 20, 60, 100),  # the first again
    ("a.png", 33.5, 7.25, 12.5, 3.125),
]
EMPTY = [("a.png", 400, 2, 3, 4), ("b.png", 10, 10, 0, 0), ("a.png", 10, 10, 0, 5), ("b.png", 20, 20, -4, -4)]


@pytest.fixture(scope="module")
def checkpoint(drawn, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    training = ("epochs=1", "total_batch_size=8", "task.recipe.warmup_steps=2", "callbacks.pictures=null")
    run("train", config("train", *SMALL, *training, f"data.root={drawn('coco', 16)}"), folder)
    return folder / "checkpoints/last.ckpt"


@pytest.fixture
def pictures(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    rng = np.random.default_rng(0)
    for name in "ab":
        coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
        cv2.imwrite(f"photos/{name}.png", cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC))
    return tmp_path


def write_boxes(name: str, rows) -> str:
    with open(name, "w", newline="") as file:
        csv.writer(file).writerows([("image", *"xywh"), *rows])
    return f"boxes={name}"


def poses(checkpoint: Path, folder: str, *more: str, given: str = "photos") -> np.ndarray:
    """(N, K, 3): x, y, score; the rows of poses.csv."""
    options = (*SMALL, f"ckpt_path={checkpoint}", f"input={given}", *more)
    run("predict", config("predict", *options), Path(folder))
    columns = [f"{joint}_{what}" for joint in COCO.joints for what in ("x", "y", "score")]
    return np.array([[float(row[name]) for name in columns] for row in rows(folder)]).reshape(-1, 17, 3)


def rows(folder: str) -> list[dict[str, str]]:
    with open(f"{folder}/poses.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_each_pose_is_that_of_its_box_alone(checkpoint, pictures):
    """In batches over several pictures; boxes that touch no pixel are named and left out."""
    boxes = write_boxes("b.csv", BOXES[:3] + EMPTY + BOXES[3:])
    together = poses(checkpoint, "all", boxes, "data.eval_batch_size=4")
    table = rows("all")
    assert [row["box"] for row in table] == ["0", "1", "2", "7", "8", "9"]
    assert [(row["image"], float(row["x"]), float(row["w"])) for row in table] == [
        (f"photos/{name}", x, w) for name, x, _, w, _ in BOXES
    ]
    lines = Path("all/bad_samples_predict_rank0.txt").read_text().splitlines()
    assert lines[0] == "photos/a.png, box 3: the box x 400, y 2, w 3, h 4 is empty in 160 x 120 pixels"
    assert len(lines) == len(EMPTY)
    for n, (pose, box) in enumerate(zip(together, BOXES, strict=True)):
        (alone,) = poses(checkpoint, f"alone{n}", write_boxes("one.csv", [box]))
        assert np.abs(pose - alone).max() < 2e-2  # five digits are written


def test_without_boxes_the_picture_is_the_box(checkpoint, pictures):
    whole = poses(
        checkpoint, "boxed", write_boxes("b.csv", [("a.png", 0, 0, 160, 120), ("b.png", 0, 0, 160, 120)])
    )
    for boxes in ("none", "null"):
        assert np.abs(poses(checkpoint, f"run_{boxes}", f"boxes={boxes}") - whole).max() < 2e-2


def test_a_turned_photograph_is_seen_as_a_viewer_shows_it(checkpoint, pictures):
    """Stored 160 x 120 with the EXIF orientation 6: shown 120 x 160. The joints are those of the picture that is stored
    as it is shown."""
    Path("turned").mkdir()
    Path("upright").mkdir()
    stored = Image.open("photos/a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save("turned/a.png", exif=exif)
    stored.transpose(Image.Transpose.ROTATE_270).save("upright/a.png")
    boxes = write_boxes("b.csv", [("a.png", 5, 70, 100, 85)])
    turned = poses(checkpoint, "one", boxes, given="turned")
    assert np.array_equal(turned, poses(checkpoint, "two", boxes, given="upright"))
    (image,) = json.loads(Path("one/poses.json").read_text())["images"]
    assert (image["width"], image["height"]) == (120, 160)


def test_a_stopped_prediction_goes_on(checkpoint, pictures, monkeypatch):
    boxes = write_boxes("b.csv", BOXES)
    whole = poses(checkpoint, "whole", boxes)
    original = Pose2d.predict_step

    def step(task, batch, batch_idx):
        if batch_idx == 2:
            raise ValueError("stopped")
        return original(task, batch, batch_idx)

    with monkeypatch.context() as stopped:
        stopped.setattr(Pose2d, "predict_step", step)
        with pytest.raises(ValueError, match="stopped"):
            poses(checkpoint, "run", boxes, "data.eval_batch_size=2")
    assert not Path("run/poses.json").exists()
    assert np.abs(poses(checkpoint, "run", boxes, "resume=auto") - whole).max() < 2e-2
    assert [row["box"] for row in rows("run")] == [str(n) for n in range(len(BOXES))]
