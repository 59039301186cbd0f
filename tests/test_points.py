"""Body points that do not fit their images, and images without anybody."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hap.data.base import BadSampleLog, Dataset
from hap.data.pretrain import open_luperson, read_luperson, write_poses
from hap.errors import HapError, Unwanted
from hap.packing import pack


def with_points(luperson: Path, root: Path, change) -> Path:
    """The drawn people with all points changed by `change(points, (width, height))`."""
    shutil.copytree(luperson / "LUPerson-data", root / "LUPerson-data")
    records = open_luperson(luperson)
    points = []
    for record in records:
        with Image.open(luperson / "LUPerson-data" / record.name) as image:
            points.append(change(record.annotations()["keypoints"].copy(), np.array(image.size)))
    write_poses(root / "LUPerson-pose.npy", list(records.names), np.stack(points))
    return root


def shares(points, size):
    points[:, :2] /= size
    return points


def centred(points, size):
    points[:, :2] = 2 * points[:, :2] / size - 1
    return points


def photograph(points, size):
    points[:, :2] += 700, 300
    return points


def unscored(points, size):
    points[:, 2] = 0
    return points


def right(points, size):
    return points


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (right, ""),
        (shares, "as if shares of its size. Points are x, y in pixels"),
        (centred, "as if shares of its size"),
        (photograph, "0 lie in their image; they go from"),
        (unscored, "all of them have score 0"),
    ],
)
def test_points_of_another_unit_or_picture_are_a_warning_at_the_start(
    luperson, tmp_path, caplog, change, message
):
    root = with_points(luperson, tmp_path / "root", change)
    for read in (read_luperson, lambda root: pack(root, tmp_path / "out", num_workers=0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            read(root)
        assert message in caplog.text
        assert ("body points" in caplog.text) == bool(message)
    caplog.clear()
    read_luperson(tmp_path / "out")
    assert message in caplog.text


@pytest.fixture
def nobody(luperson, tmp_path) -> Path:
    """A hundred images; six pose files hold an empty list, as pose tools write it."""
    root = tmp_path / "nobody"
    shutil.copytree(luperson, root)
    for path in sorted((root / "LUPerson-pose").rglob("*.npy"))[:6]:
        pose = np.empty((1, 1), object)
        pose[0, 0] = []
        np.save(path, pose, allow_pickle=True)
    return root


def test_an_image_of_nobody_is_named_but_no_damage(nobody, tmp_path):
    dataset = Dataset(open_luperson(nobody), lambda image, annotations, rng: annotations)
    bad = [dataset[0, i]["bad"] for i in range(len(dataset))]
    report = BadSampleLog(dataset, tmp_path / "bad.txt", max_fraction=0)
    report(torch.tensor(bad))
    lines = (tmp_path / "bad.txt").read_text().splitlines()
    assert len(lines) == sum(index >= 0 for index in bad) == 6
    assert all("nobody was found" in line for line in lines)
    assert isinstance(dataset.problem(max(bad)), Unwanted)
    report = pack(nobody, tmp_path / "out", num_workers=0)
    assert (report.images, report.skipped) == (94, 6)
    assert (tmp_path / "out/skipped.tsv").read_text().count("nobody was found") == 6


def test_without_poses_asked_for_an_image_of_nobody_is_an_image(nobody, tmp_path):
    dataset = Dataset(open_luperson(nobody, require_pose=False), lambda image, annotations, rng: annotations)
    samples = [dataset[0, i] for i in range(len(dataset))]
    assert all(sample["bad"] < 0 for sample in samples)
    assert sum((sample["keypoints"] == [-1, -1, 0]).all() for sample in samples) == 6
    assert pack(nobody, tmp_path / "out", require_pose=False, num_workers=0).images == 100


def test_a_table_of_poses_in_other_spellings_or_of_something_else(luperson, tmp_path, caplog):
    root = with_points(luperson, tmp_path / "root", right)
    table = np.load(root / "LUPerson-pose.npy")
    expected = [record.annotations()["keypoints"] for record in open_luperson(root)]
    spelt = np.zeros(len(table) + 1, [("name", "S99"), ("keypoints", np.float32, (17, 3))])
    spelt["name"][1:] = [b"./" + name.replace(b"/", b"//") for name in table["name"]]
    spelt["keypoints"][1:] = table["keypoints"]
    spelt["name"][0] = table["name"][0]
    np.save(root / "LUPerson-pose.npy", spelt)
    records = open_luperson(root)
    assert all(
        np.array_equal(r.annotations()["keypoints"], e) for r, e in zip(records, expected, strict=True)
    )
    assert "1 poses are of images that have a later one" in caplog.text
    for wrong in (
        table.reshape(-1, 2),
        table["keypoints"],
        np.zeros(3, [("name", "f8"), ("keypoints", "f8")]),
    ):
        np.save(root / "LUPerson-pose.npy", wrong)
        with pytest.raises(HapError, match="write_poses"):
            open_luperson(root)
    with (root / "LUPerson-pose.npy").open("wb") as file:
        np.savez(file, table=table)
    with pytest.raises(HapError, match="damaged, or not"):
        open_luperson(root)
