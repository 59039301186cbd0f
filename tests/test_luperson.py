import io
import json
import logging
import os
import pickle
import runpy
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from hap.data.base import BadSample, BadSampleLog, Dataset
from hap.data.decoding import decode_image
from hap.data.pretrain import Names, open_luperson, read_luperson, write_poses
from hap.errors import HapError

SCRIPT = Path(__file__).parents[1] / "scripts" / "coco_to_luperson.py"


def jpeg(number: int, height: int = 64) -> bytes:
    """A smooth image that is different for each number."""
    small = np.random.default_rng(number).integers(0, 256, (4, 2, 3), np.uint8)
    return cv2.imencode(".jpg", cv2.resize(small, (height // 2, height)))[1].tobytes()


def points(number: int) -> np.ndarray:
    return np.random.default_rng(number).uniform(0, 30, (17, 3)).astype(np.float32)


def write_pose(path: Path, keypoints) -> None:
    pose = np.empty((1, 1), object)  # the official form
    pose[0, 0] = {"keypoints": keypoints, "bbox": np.zeros(5, np.float32)}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, pose, allow_pickle=True)


def write_set(root: Path, count: int, ranked: bool = True) -> list[str]:
    """A set in the official layout, nested, with all suffixes; the names, best first."""
    names = []
    for number in range(count):
        name = f"{'ab'[number % 2]}/{number:04d}" + (".jpg", ".JPG", ".jpeg")[number % 3]
        image = root / "LUPerson-data" / name
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(jpeg(number))
        write_pose((root / "LUPerson-pose" / name).with_suffix(".npy"), points(number))
        names.append(name)
    np.random.default_rng(0).shuffle(names)
    if ranked:
        (root / "cfs_list.pkl").write_bytes(pickle.dumps(names))
    return names


def number_of(name: str) -> int:
    return int(Path(name).stem)


def names_of(records) -> list[str]:
    return [record.name for record in records]


def check(records) -> None:
    """Every record has the image and the points of its name."""
    for record in records:
        assert record.encoded() == jpeg(number_of(record.name))
        keypoints = record.annotations()["keypoints"]
        assert keypoints.dtype == np.float32
        assert np.array_equal(keypoints, points(number_of(record.name)))


def test_order_is_the_lists_and_every_record_has_its_own_image_and_points(tmp_path):
    names = write_set(tmp_path, 30)
    records = open_luperson(tmp_path)
    assert names_of(records) == names
    check(records)
    assert records[-1].name == names[-1]
    with pytest.raises(IndexError):
        records[30]


def test_without_a_list_the_order_is_sorted(tmp_path):
    names = write_set(tmp_path, 30, ranked=False)
    assert names_of(open_luperson(tmp_path)) == sorted(names)
    with pytest.raises(HapError, match=r"cfs_list\.pkl"):
        read_luperson(tmp_path, cfs_ratio=0.5)


@pytest.mark.parametrize(("ratio", "count"), [(0.5, 15), (0.1, 3), (1, 31), (1.0, 31), (7, 7), (500, 31)])
def test_cfs_ratio_counts_entries_as_the_official_code_does(tmp_path, ratio, count):
    names = write_set(tmp_path, 31)
    assert names_of(open_luperson(tmp_path, ratio)) == names[:count]


@pytest.mark.parametrize("ratio", [0, -1, 2.5])
def test_a_ratio_that_means_nothing_is_refused(tmp_path, ratio):
    write_set(tmp_path, 3)
    with pytest.raises(HapError, match="cfs_ratio"):
        read_luperson(tmp_path, ratio)


def test_validation_images_are_held_out_by_seed(tmp_path):
    names = write_set(tmp_path, 100)
    splits = read_luperson(tmp_path, num_val=1000)
    train, val = names_of(splits["train"]), names_of(splits["val"])
    assert len(val) == 5  # 5 % at most
    assert sorted(train + val) == sorted(names)
    assert train == [name for name in names if name not in val]  # both keep the list's order
    assert names_of(read_luperson(tmp_path)["val"]) == val
    assert names_of(read_luperson(tmp_path, split_seed=1)["val"]) != val
    assert len(read_luperson(tmp_path, num_val=2)["val"]) == 2
    assert len(read_luperson(tmp_path, num_val=0)["val"]) == 0


def test_what_is_missing_is_counted_and_left_out(tmp_path, caplog):
    names = write_set(tmp_path, 20)
    (tmp_path / "cfs_list.pkl").write_bytes(pickle.dumps(["gone/1.jpg", *names, "gone/2.jpg"]))
    (tmp_path / "LUPerson-pose" / names[3]).with_suffix(".npy").unlink()
    with caplog.at_level(logging.WARNING):
        records = open_luperson(tmp_path)
    assert names_of(records) == names[:3] + names[4:]
    assert list(records.positions) == [1, 2, 3, *range(5, 21)]
    assert "2 of 22 names in cfs_list.pkl have no image" in caplog.text
    assert "gone/1.jpg" in caplog.text
    assert "1 of 22 images have no pose" in caplog.text
    assert names[3] in caplog.text
    # entries that are not there count: others do not move up
    assert names_of(open_luperson(tmp_path, 5)) == names[:3]

    kept = open_luperson(tmp_path, require_pose=False)
    assert names_of(kept) == names
    assert np.array_equal(kept[3].annotations()["keypoints"], np.tile([-1, -1, 0], (17, 1)))
    check([kept[i] for i in range(20) if i != 3])


def test_images_alone_need_a_word(tmp_path):
    (tmp_path / "LUPerson-data").mkdir()
    (tmp_path / "LUPerson-data" / "0001.PNG").write_bytes(
        cv2.imencode(".png", np.zeros((8, 4, 3), np.uint8))[1]
    )
    with pytest.raises(HapError, match="require_pose=false"):
        read_luperson(tmp_path)
    (record,) = read_luperson(tmp_path, num_val=0, require_pose=False)["train"]
    assert decode_image(record.encoded()).shape == (8, 4, 3)


def test_missing_and_empty_folders_are_named(tmp_path):
    for root, match in (
        (tmp_path / "none", "none not found.*by agreement"),
        (tmp_path, "neither LUPerson-data/"),
    ):
        with pytest.raises(HapError, match=match):
            read_luperson(root)
    (tmp_path / "LUPerson-data").mkdir()
    with pytest.raises(HapError, match="no poses"):
        read_luperson(tmp_path)


def test_a_list_with_code_or_of_something_else_is_refused(tmp_path):
    write_set(tmp_path, 3)
    for value, match in (
        (os.system, "contains code"),
        ({"a": 1}, "list of image names"),
        ([1], "list of image names"),
    ):
        (tmp_path / "cfs_list.pkl").write_bytes(pickle.dumps(value))
        with pytest.raises(HapError, match=match):
            read_luperson(tmp_path)


def test_poses_in_one_file(tmp_path):
    names = write_set(tmp_path, 12)
    (tmp_path / "LUPerson-pose").rename(tmp_path / "unused")
    write_poses(
        tmp_path / "LUPerson-pose.npy", names[1:], np.stack([points(number_of(n)) for n in names[1:]])
    )
    records = open_luperson(tmp_path)
    assert names_of(records) == names[1:]
    check(records)
    check(pickle.loads(pickle.dumps(records)))
    np.save(tmp_path / "LUPerson-pose.npy", np.zeros((12, 17, 3)))
    with pytest.raises(HapError, match="write_poses"):
        open_luperson(tmp_path)


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def test_tar_archives(tmp_path):
    names = write_set(tmp_path / "folder", 12)
    root = tmp_path / "tars"
    root.mkdir()
    for part in range(2):
        with tarfile.open(root / f"part{part}.tar", "w") as archive:
            for name in names[part::2]:
                pose = Path(name).with_suffix(".npy")
                data = (tmp_path / "folder" / "LUPerson-pose" / pose).read_bytes()
                add(archive, f"./LUPerson-data/{name}" if part else name, jpeg(number_of(name)))
                add(archive, f"./LUPerson-pose/{pose}" if part else str(pose), data)
    records = open_luperson(root)
    assert names_of(records) == sorted(names)
    check(records)
    check(pickle.loads(pickle.dumps(records)))
    assert len(open_luperson(root / "part0.tar")) == 6

    whole = (root / "part1.tar").read_bytes()
    (root / "part1.tar").write_bytes(whole[:5000])
    with pytest.raises(HapError, match=r"part1\.tar is not a complete"):
        open_luperson(root)


def test_lmdb(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    names = write_set(tmp_path / "folder", 12)
    root = tmp_path / "lmdb"
    with lmdb.open(str(root), map_size=1 << 24) as env, env.begin(write=True) as transaction:
        for name in names:
            key = name.removesuffix(".jpg")  # the authors' keys have no suffix
            pose = Path(name).with_suffix(".npy")
            transaction.put(key.encode(), jpeg(number_of(name)))
            transaction.put(str(pose).encode(), (tmp_path / "folder" / "LUPerson-pose" / pose).read_bytes())
    records = open_luperson(root)
    assert names_of(records) == sorted(names)
    check(records)


BROKEN = {
    "truncated": (lambda image, pose: image.write_bytes(image.read_bytes()[:-200]), "truncated"),
    "empty": (lambda image, pose: image.write_bytes(b""), "empty"),
    "not an image": (lambda image, pose: image.write_bytes(b"<html>"), "OpenCV"),
    "gone": (lambda image, pose: image.unlink(), "No such file"),
    "NaN": (lambda image, pose: write_pose(pose, np.full((17, 3), np.nan)), "not finite"),
    "shape": (lambda image, pose: write_pose(pose, np.zeros((14, 3))), r"\(14, 3\)"),
    "words": (lambda image, pose: write_pose(pose, ["a"]), r"\[0\]\[0\]"),
    "nobody": (
        lambda image, pose: np.save(pose, np.empty((0, 0), object), allow_pickle=True),
        "nobody was found",
    ),
    "code": (lambda image, pose: write_pose(pose, os.system), "contains code"),
    "half a pose": (lambda image, pose: pose.write_bytes(pose.read_bytes()[:200]), "damaged"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_replaced_and_named(tmp_path, kind):
    names = write_set(tmp_path, 10)
    records = open_luperson(tmp_path)  # before the damage: files also vanish in mid-run
    damage, reason = BROKEN[kind]
    damage(tmp_path / "LUPerson-data" / names[4], (tmp_path / "LUPerson-pose" / names[4]).with_suffix(".npy"))
    dataset = Dataset(records, lambda image, annotations, rng: annotations)
    with pytest.raises((BadSample, OSError), match=reason):
        dataset.read(4)
    sample = dataset[0, 4]
    assert sample["bad"] == 4
    assert np.array_equal(sample["keypoints"], points(number_of(names[sample["index"]])))
    report = BadSampleLog(dataset, tmp_path / "bad.txt", max_fraction=0.1)
    report(torch.tensor([-1, 4, 4]))
    assert (tmp_path / "bad.txt").read_text().startswith(f"{names[4]}: ")


def test_a_wrong_suffix_does_no_harm(tmp_path):
    names = write_set(tmp_path, 3)
    image = tmp_path / "LUPerson-data" / names[0]
    image.write_bytes(cv2.imencode(".png", decode_image(image.read_bytes()))[1])
    assert decode_image(open_luperson(tmp_path)[0].encoded()).shape == (64, 32, 3)


def test_names_come_back_from_one_block():
    given = ["", "é/ü.jpg", "a" * 300, "\udcff.jpg"]  # the last is not UTF-8 on disk
    names = Names(given)
    assert list(names) == given
    assert [names[i] for i in range(-4, 0)] == given
    assert list(pickle.loads(pickle.dumps(names))) == given
    assert len(Names([])) == 0


def test_the_official_layout_as_it_is_drawn(luperson):
    listed = pickle.loads((luperson / "cfs_list.pkl").read_bytes())
    assert names_of(open_luperson(luperson)) == listed


# scripts/coco_to_luperson.py


def test_people_are_cut_out_with_their_points(tmp_path):
    photograph = np.zeros((200, 300, 3), np.uint8)
    photograph[60:160, 100:150] = 255  # a person of 50 x 100 pixels
    cv2.imwrite(str(tmp_path / "one.png"), photograph)
    joints = ["Right Shoulder", "Head top", "Left Ankle"]
    person = {
        "image_id": 3,
        "id": 8,
        "bbox": [100, 60, 50, 100],
        "keypoints": [110, 70, 2, 120, 60, 2, 130, 150, 1],
    }
    content = {
        "categories": [{"keypoints": joints}],
        "images": [{"id": 3, "file_name": "one.png"}],
        "annotations": [
            person,
            person | {"id": 9, "iscrowd": 1},
            person | {"id": 10, "keypoints": [0] * 9},
            person | {"id": 11, "bbox": [100, 60, 50, 40]},
        ],
    }
    (tmp_path / "people.json").write_text(json.dumps(content))
    script = runpy.run_path(str(SCRIPT))
    assert script["convert"](tmp_path / "people.json", tmp_path, tmp_path / "out", margin=0) == 1
    (record,) = open_luperson(tmp_path / "out")
    assert record.name == "one_8.jpg"
    assert decode_image(record.encoded()).shape == (100, 50, 3)
    assert decode_image(record.encoded()).min() > 250
    expected = np.tile(np.float32([-1, -1, 0]), (17, 1))
    expected[6], expected[15] = (10, 10, 1), (30, 90, 0.5)  # right shoulder, left ankle
    assert np.array_equal(record.annotations()["keypoints"], expected)


@pytest.mark.skipif("HAP_SAMPLES" not in os.environ, reason="HAP_SAMPLES: a folder with real photographs")
@pytest.mark.parametrize(
    ("annotations", "images", "people"),
    [
        ("coco/annotations/person_keypoints_val2017.json", "coco/val2017", 12),
        ("aic/annotations/aic_val.json", "aic/*/keypoint_validation_images_*", 9),
    ],
)
def test_real_photographs(tmp_path, annotations, images, people):
    samples = Path(os.environ["HAP_SAMPLES"])
    (folder,) = samples.glob(images)
    assert runpy.run_path(str(SCRIPT))["convert"](samples / annotations, folder, tmp_path) == people
    inside = []
    for record in open_luperson(tmp_path):
        height, width, _ = decode_image(record.encoded()).shape
        x, y, score = record.annotations()["keypoints"].T
        inside.append(((x >= 0) & (x < width) & (y >= 0) & (y < height))[score > 0])
    assert np.concatenate(inside).mean() > 0.9  # people are annotated a little beyond their boxes
