"""People in full pictures: boxes as detectors write them, each its crop, and files that do not fit."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import TINY_PRETRAIN, config
from PIL import Image

from hap.cli import quote_paths
from hap.data.base import BadSample
from hap.data.boxes import Boxes, read_boxes
from hap.data.decoding import decode_image, image_size
from hap.data.sources import read_inputs, source_columns
from hap.errors import HapError
from hap.runner import run
from hap.tasks.reid import people_in_names

# COCO val2017, image 785 (640 x 425), person 442619.
CORNERS = [280.79, 44.73, 499.49, 391.41]
XYWH = [280.79, 44.73, 218.7, 346.68]


def gradient(width: int, height: int, number: int = 0) -> np.ndarray:
    """RGB: x / 4, y / 4, number."""
    image = np.full((height, width, 3), number, np.uint8)
    image[..., 0], image[..., 1] = np.arange(width) // 4, np.arange(height)[:, None] // 4
    return image


@pytest.fixture
def pictures(tmp_path, monkeypatch) -> Path:
    """Four pictures of 640 x 425, named as COCO's; the current folder is above."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "val").mkdir()
    for number in (785, 872, 885, 1000):
        image = gradient(640, 425, number % 251)
        cv2.imwrite(str(tmp_path / f"val/{number:012d}.png"), image[..., ::-1])
    return tmp_path


def write(content, name: str = "boxes.json") -> Path:
    Path(name).write_text(content if isinstance(content, str) else json.dumps(content))
    return Path(name)


def detection(image, bbox, score=0.5, **more) -> dict:
    return {"image_id": image, "bbox": bbox, "score": score, **more}


def boxes(content, name: str = "boxes.json", given: str = "val") -> Boxes:
    return read_boxes(write(content, name), read_inputs({"input": given}))


def refused(content, name: str = "boxes.json", given: str = "val") -> str:
    with pytest.raises(HapError) as error:
        boxes(content, name, given)
    return str(error.value)


def test_detections_of_coco_in_the_order_of_the_file(pictures, caplog):
    caplog.set_level("INFO")
    found = boxes(
        [detection(885, [10, 20, 30, 40], 0.9), detection(785, XYWH, 0.25), detection(885, [0, 0, 640, 425])]
    )
    assert [record.name for record in found] == [
        "val/000000000885.png, box 0",
        "val/000000000785.png, box 1",
        "val/000000000885.png, box 2",
    ]
    assert np.array_equal(found[0].pixels(), gradient(640, 425, 885 % 251)[20:60, 10:40])
    assert found[1].pixels().shape == (392 - 44, 500 - 280, 3)  # every pixel that the box touches
    assert np.array_equal(found[1].pixels(), gradient(640, 425, 785 % 251)[44:392, 280:500])
    assert found[2].pixels().shape == (425, 640, 3)
    assert source_columns(found) == {
        "image": ["val/000000000885.png", "val/000000000785.png", "val/000000000885.png"],
        "box": [0, 1, 2],
        "x": [10, 280.79, 0],
        "y": [20, 44.73, 0],
        "w": [30, 218.7, 640],
        "h": [40, 346.68, 425],
        "score": [0.9, 0.25, 0.5],
    }
    assert "3 boxes in 2 images, at most 2 in one, scores from 0.25 to 0.9" in caplog.text
    assert "2 of 4 images have no box" in caplog.text


def test_a_table(pictures):
    text = (
        "sep=;\nimage;x;y;w;h\n000000000785.png;280,79;44,73;218,7;346,68\n\nval/000000000872.png;1;2;3;4\n"
    )
    found = boxes(text, "boxes.csv")
    assert [record.box for record in found] == [(0, *XYWH, None), (1, 1, 2, 3, 4, None)]
    assert source_columns(found)["score"] == ["", ""]
    scored = boxes("image,x,y,w,h,score,name\n785,1,2,3,4,0.75,x\n872,1,2,3,4,,\n", "boxes.csv")
    assert source_columns(scored)["score"] == [0.75, ""]


@pytest.mark.parametrize(
    "image", [885, "885", "000000000885", "000000000885.png", "val/000000000885.png", "/coco/val/000000000885.png",
              "./val/../val/000000000885.png", r"C:\coco\val\000000000885.png", "train/000000000885.png"]
)  # fmt: skip
def test_images_by_number_name_and_path(pictures, image):
    (record,) = boxes([detection(image, [1, 2, 3, 4])])
    assert record.file == "val/000000000885.png"


def test_names_that_several_images_have(pictures):
    (pictures / "val/a").mkdir()
    (pictures / "val/000000000785.png").rename(pictures / "val/a/000000000885.png")
    for image in (885, "000000000885.png"):
        message = refused([detection(image, [1, 2, 3, 4])])
        assert f"{image} may be val/000000000885.png, val/a/000000000885.png" in message
    (record,) = boxes([detection("a/000000000885.png", [1, 2, 3, 4])])
    assert record.file == "val/a/000000000885.png"
    (record,) = boxes([detection("val/000000000885.png", [1, 2, 3, 4])])
    assert record.file == "val/000000000885.png"
    message = refused(
        [detection(name, [1, 2, 3, 4]) for name in ("x/000000001000.png", "y/000000001000.png")]
    )
    assert "x/000000001000.png, y/000000001000.png would all be val/000000001000.png" in message


def test_boxes_of_other_images_are_refused_with_counts(pictures):
    (pictures / "val/000000000785.png").unlink()
    content = [detection(785, [1, 2, 3, 4])] * 22 + [detection(872, [1, 2, 3, 4])] * 96
    message = refused(content)
    assert "22 of 118 boxes belong to no image of the input; their images\n  785: 22 boxes" in message
    assert "2 of 2 boxes belong to no image" in refused(
        [detection("a.jpg", [1, 2, 3, 4]), detection(9, [1, 2, 3, 4])]
    )


def test_corners_are_recognised(pictures):
    message = refused([detection(785, CORNERS)])
    assert "looks like x1 y1 x2 y2: subtract to get x, y, w, h; 1 of 1 boxes leave their picture" in message
    assert "box 0: x 280.79, y 44.73, w 499.49, h 391.41 in 640 x 425 pixels" in message
    rng = np.random.default_rng(0)
    x1, y1 = rng.uniform(0, 540, 500), rng.uniform(0, 225, 500)
    w, h = rng.uniform(20, 100, 500), rng.uniform(50, 200, 500)
    corners = np.stack([x1, y1, x1 + w, y1 + h], 1).tolist()
    assert "looks like x1 y1 x2 y2" in refused([detection(872, box) for box in corners])
    assert len(boxes([detection(872, box) for box in np.stack([x1, y1, w, h], 1).tolist()])) == 500


def test_exchanged_axes_are_recognised(pictures):
    y, x, h, w = (XYWH[i] for i in (1, 0, 3, 2))
    assert len(boxes([detection(785, [x, y, w, h])])) == 1
    message = refused([detection(785, [30, 420, 80, 200])])
    assert (
        "looks like y x h w, or like those of pictures that were not turned upright; 1 of 1 boxes" in message
    )
    assert "looks like y x h w" in refused([detection(785, [y + n, x + 3 * n, h, w]) for n in range(8)])


@pytest.mark.parametrize(
    "bbox", [[-140, 50, 300, 90], [500, 50, 200, 90], [50, 300, 90, 200], [-100, -100, 900, 700]]
)
def test_a_few_people_at_the_border_are_no_other_format(pictures, bbox):
    assert len(boxes([detection(872, bbox)])) == 1


@pytest.mark.parametrize(
    ("bbox", "looks"),
    [
        ([0.4, 0.1, 0.3, 0.8], "looks like shares of the picture"),
        ([900, 500, 100, 300], "looks like those of other"),
    ],
)
def test_other_units_are_recognised(pictures, bbox, looks):
    assert looks in refused([detection(872, bbox)] * 3)


def test_partial_boxes_are_clipped_and_empty_ones_named(pictures):
    full = [[100, 100, 50, 50]] * 20
    odd = [[-10, -5, 20, 15], [630, 400, 100, 100], [700, 10, 20, 20], [10, 10, 0, 5], [10, 10, 5, -5]]
    found = boxes([detection(872, bbox) for bbox in full + odd])
    assert found[20].pixels().shape == (10, 10, 3)
    assert found[21].pixels().shape == (25, 10, 3)
    for number in (22, 23, 24):
        with pytest.raises(BadSample, match=r"the box x .* is empty in 640 x 425 pixels"):
            found[number].pixels()


def test_boxes_are_of_the_upright_picture(pictures):
    """Stored 640 x 425, shown 425 x 640."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(gradient(640, 425)).save(
        pictures / "val/turned.jpg", exif=exif, quality=100, subsampling=0
    )
    (record,) = boxes([detection("turned.jpg", [0, 600, 425, 40])])
    assert record.pixels().shape == (40, 425, 3)
    assert record.pixels()[20, :, 0].mean() == pytest.approx(620 / 4, abs=2)  # x as stored is y as shown


@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp"])
def test_the_size_of_an_upright_image_is_known_without_decoding(tmp_path, orientation, kind):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(gradient(60, 40)).save(tmp_path / "x", kind, exif=exif)
    data = (tmp_path / "x").read_bytes()
    assert image_size(data, upright=True) == decode_image(data, upright=True).shape[:2]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "b.csv", "b.csv is empty"),
        ("image,x,y,w,h\n", "b.csv", "b.csv has no boxes"),
        ("image,x1,y1,x2,y2\na,1,2,3,4\n", "b.csv", "no column x, y, w, h; the first line has image, x1, y1"),
        ("image,x,y,w,h\n785,1,2,3,4\n785,1,2,nan,4\n,1,2,3,4\n785,1,2,3\n785,1,2,3,4,5\n", "b.csv",
         "b.csv: 4 lines are no image with four numbers\n  line 3: image '785', x '1', y '2', w 'nan', h '4'"),
        ("image,x,y,w,h,score\n785,1,2,3,4,high\n", "b.csv", "line 2: image '785', x '1'"),
        ("{", "b.json", "b.json is no JSON"),
        ("[" * 100_000, "b.json", "b.json is no JSON"),
        ({"annotations": []}, "b.json", "is no list of detections, each with image_id, bbox"),
        ([[1, 2, 3, 4]], "b.json", "is no list of detections"),
        ([], "b.json", "b.json has no boxes"),
        ([detection(785, [1, 2, 3, 4]), detection(785, [1, 2, 3]), {"image_id": 785}, detection(None, [1, 2, 3, 4]),
          detection(785, [1, 2, None, 4]), detection(785, [1, 2, 1e999, 4]), detection(785, [1, 2, 3, 4], "x")],
         "b.json", "6 detections are no image_id with a bbox of four numbers\n  detection 1: "),
        ([detection(785, [1, 2, 3, 4], category_id=3), detection(785, [1, 2, 3, 4], category_id=17)], "b.json",
         "has boxes of categories 3, 17: leave those of people"),
    ],
)  # fmt: skip
def test_files_that_are_no_boxes(pictures, content, name, message):
    assert message in refused(content, name)


def test_a_file_that_is_not_there(pictures):
    with pytest.raises(HapError, match=r"boxes: file not found: none\.csv"):
        read_boxes(Path("none.csv"), read_inputs({"input": "val"}))


def test_of_several_categories_people_are_taken(pictures, caplog):
    found = boxes([detection(785, [1, 2, 3, n + 1], category_id=[18, 1, 3, 1][n]) for n in range(4)])
    assert [record.box.number for record in found] == [1, 3]
    assert "2 boxes of other categories than 1, people, are left out" in caplog.text
    assert len(boxes([detection(785, [1, 2, 3, 4], category_id=9)])) == 1


def video(path: Path, frames: int) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(frames):
        writer.write(np.full((48, 64, 3), 10 * number, np.uint8))
    writer.release()


def test_people_in_videos(pictures):
    video(pictures / "walk.avi", 20)
    found = boxes("image,x,y,w,h\n3,1,2,10,20\n3,5,5,8,8\nwalk.avi#19,60,40,20,20\n", "b.csv", "walk.avi")
    assert [record.name for record in found] == [
        f"walk.avi#{n}" for n in ("3, box 0", "3, box 1", "19, box 2")
    ]
    assert [round(float(record.pixels().mean() / 10)) for record in found] == [3, 3, 19]
    columns = source_columns(found)
    assert columns["frame"] == [3, 3, 19]
    assert columns["seconds"] == ["0.300", "0.300", "1.900"]
    assert "box 1 is of a frame before the last one: sort the file" in refused(
        "image,x,y,w,h\n3,1,2,10,20\n2,5,5,8,8\n", "b.csv", "walk.avi"
    )


def test_query_and_gallery_may_be_one_picture(pictures):
    """Each box is somebody, who is not found in the same box."""
    inputs = read_inputs({"query": "val/000000000785.png", "gallery": "val"})
    found = read_boxes(write([detection(785, XYWH), detection(785, [1, 2, 30, 40])]), inputs)
    assert [(record.box.number, record.part) for record in found] == [
        *((0, "query"), (0, "gallery")),
        *((1, "query"), (1, "gallery")),
    ]
    who, told = people_in_names(found)
    assert not told.any()
    assert who[:, 0].tolist() == [-1, -1, -2, -2]


def test_the_whole_way(pictures, luperson, tmp_path):
    """The features of boxes are those of their crops; a box of nothing and those of a broken picture are left out."""
    overrides = ["experiment=pretrain_hap", *TINY_PRETRAIN]
    run("train", config("train", *overrides, f"data.root={luperson}", "epochs=1", "callbacks.pictures=null"),
        tmp_path / "run")  # fmt: skip
    broken = Path("val/000000000872.png")
    broken.write_bytes(broken.read_bytes()[:-20])
    rows = [("885", 10, 20, 100, 200), ("785", *XYWH), ("872", 1, 2, 30, 40), ("885", 700, 2, 3, 4),
            ("785", 0, 0, 640, 425), ("785", 3, 3, 64, 128), ("785", 9, 3, 64, 128)]  # fmt: skip
    with open("people [1].csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", *"xywh"), *rows])
    more = quote_paths(
        ["input=val", f"ckpt_path={tmp_path}/run/checkpoints/last.ckpt", "boxes=people [1].csv"]
    )
    run("predict", config("predict", *overrides, *more, "data.num_workers=2", "data.eval_batch_size=2"),
        tmp_path / "boxes")  # fmt: skip
    with np.load(tmp_path / "boxes/predictions.npz") as file:
        names, features = file["names"].tolist(), file["feature"]
    kept = [0, 1, 4, 5, 6]
    assert names == [f"val/{int(rows[n][0]):012d}.png, box {n}" for n in kept]
    lines = (tmp_path / "boxes/bad_samples_predict_rank0.txt").read_text().splitlines()
    assert lines == [
        "val/000000000872.png, box 2: the image file is truncated",
        "val/000000000885.png, box 3: the box x 700, y 2, w 3, h 4 is empty in 640 x 425 pixels",
    ]
    Path("crops").mkdir()
    for place, number in enumerate(kept):
        image, x, y, w, h = rows[number]
        crop = gradient(640, 425, int(image) % 251)[
            int(y) : int(np.ceil(y + h)), int(x) : int(np.ceil(x + w))
        ]
        cv2.imwrite(f"crops/{place}.png", crop[..., ::-1])
    more = ["input=crops", f"ckpt_path={tmp_path}/run/checkpoints/last.ckpt"]
    run("predict", config("predict", *overrides, *more), tmp_path / "crops_out")
    with np.load(tmp_path / "crops_out/predictions.npz") as file:
        assert np.abs(file["feature"] - features).max() < 1e-4
