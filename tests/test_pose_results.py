"""Files of poses: what is written is the official form, what is read is scored as it is, or refused."""

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from hap.data.pose import PoseRecords
from hap.errors import HapError
from hap.metrics.pose import PoseMetric, Poses
from hap.pose.skeletons import AIC, COCO, MPII, of_names
from hap.pose.truth import CocoTruth, MpiiTruth
from hap.tasks.pose2d_results import read_results, write_results

SAMPLES = Path(os.environ.get("HAP_SAMPLES", "/nowhere"))
samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="HAP_SAMPLES is not set")

IDS = (785, 40083, 197388, 196141)
SIZES = [(640, 425), (500, 333), (640, 392), (425, 640)]


def coco_records(skeleton=COCO, ids=IDS, category: int = 1, people: int = 8) -> PoseRecords:
    """Two people in each of four pictures, on the right and at the bottom."""
    rng = np.random.default_rng(0)
    sizes = np.array(SIZES)
    image = np.arange(people) % 4
    size = sizes[image].astype(np.float64)
    box = np.concatenate([size * rng.uniform(0.5, 0.7, (people, 2)), size * 0.25], axis=1)
    xy = box[:, None, :2] + rng.random((people, len(skeleton.joints), 2)) * box[:, None, 2:]
    visible = np.full((*xy.shape[:2], 1), 2)
    files = tuple(f"val/{i:012d}.jpg" if isinstance(i, int) else f"val/{i}.jpg" for i in ids)
    area = box[:, 2] * box[:, 3] * 0.53
    joints = np.concatenate([xy, visible], axis=2)
    names = tuple(range(people))
    truth = CocoTruth(
        *(skeleton, ids, files, image, box, area, np.zeros(people, bool), joints, names), category_id=category
    )
    return records_of(truth, files, sizes, image, box, skeleton)


def records_of(truth, files, sizes, image, box, skeleton) -> PoseRecords:
    people = len(image)
    return PoseRecords(
        *(Path("/nowhere"), files, sizes, image, np.arange(people), box.astype(np.float32)),
        center=(box[:, :2] + box[:, 2:] / 2).astype(np.float32),
        scale=(box[:, 2:] / 160).astype(np.float32),
        score=np.linspace(1, 0.5, people).astype(np.float32),
        joints=np.zeros((people, len(skeleton.joints), 3), np.float32),
        skeleton=skeleton,
        truth=truth,
    )


def perfect(records: PoseRecords) -> Poses:
    keypoints = records.truth.joints.astype(np.float32)
    keypoints[..., 2] = 0.75
    rows = np.arange(len(keypoints))
    return Poses(records.truth.image, keypoints, np.linspace(0.9, 0.3, len(rows)), rows)


def results(records: PoseRecords, **changes) -> list[dict]:
    """As somebody else writes them: of each person the true joints."""
    poses = perfect(records)
    return [
        {
            "image_id": records.truth.image_ids[poses.image[p]],
            "category_id": records.truth.category_id,
            "keypoints": poses.keypoints[p].ravel().tolist(),
            "score": float(poses.score[p]),
        }
        | changes
        for p in range(len(poses.image))
    ]


def written(folder: Path, content) -> Path:
    path = folder / "theirs.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def scored(path: Path, records: PoseRecords) -> dict[str, float]:
    metric = PoseMetric()
    metric.records = records
    metric.give(read_results(path, records)[0])
    return metric.compute()


# --- written ------------------------------------------------------------------------------------------------


def test_the_official_form_of_coco(tmp_path):
    records = coco_records(category=9)
    path = write_results(tmp_path, records, perfect(records))
    assert path.name == "result_keypoints.json"
    content = json.loads(path.read_text())
    assert len(content) == 8
    first = content[0]
    assert list(first) == ["image_id", "category_id", "keypoints", "score", "center", "scale"]
    assert (first["image_id"], first["category_id"], first["score"]) == (785, 9, 0.9)
    assert len(first["keypoints"]) == 51
    assert first["keypoints"][:3] == [*records.truth.joints[0, 0, :2].astype(np.float32).tolist(), 0.75]
    assert first["center"] == records.center[0].tolist()
    assert first["scale"] == records.scale[0].tolist()
    poses, protocol = read_results(path, records)
    assert np.array_equal(poses.keypoints, perfect(records).keypoints)
    assert np.array_equal(poses.image, records.truth.image)
    assert np.array_equal(poses.score, perfect(records).score)
    assert protocol == {
        "poses": "8 in 4 of 4 images, at most 2 in one",
        "images with people and without a pose": 0,
    }
    assert scored(path, records)["AP"] == pytest.approx(1)


def test_ids_and_joints_of_other_sets(tmp_path):
    ids = ("054d9ce9201beffc76e5ff2169d2af2f027002ca", "b", "c", "d")
    records = coco_records(AIC, ids)
    path = write_results(tmp_path, records, perfect(records))
    content = json.loads(path.read_text())
    assert content[0]["image_id"] == ids[0]
    assert len(content[0]["keypoints"]) == 42
    result = scored(path, records)
    assert result["AP"] == pytest.approx(1)
    assert result["AIC_score"] == pytest.approx(1)


def test_no_pose_at_all(tmp_path, caplog):
    records = coco_records()
    none = perfect(records)[np.zeros(0, int)]
    path = write_results(tmp_path, records, none)
    assert json.loads(path.read_text()) == []
    assert scored(path, records)["AP"] == 0
    assert "4 of 4 images with people have no pose" in caplog.text


def mpii_records(people: int = 5) -> PoseRecords:
    rng = np.random.default_rng(0)
    joints = rng.integers(100, 900, (people, 16, 2)).astype(np.float64)
    truth = MpiiTruth(MPII, joints, np.ones((people, 16), bool), np.full(people, 60.0))
    box = np.tile([0.0, 0, 100, 100], (people, 1))
    files = tuple(f"{i}.jpg" for i in range(people))
    return records_of(truth, files, np.zeros((people, 2), int), np.arange(people), box, MPII)


def test_the_official_form_of_mpii(tmp_path):
    records = mpii_records()
    keypoints = np.concatenate([records.truth.joints - 1, np.full((5, 16, 1), 0.3)], 2).astype(np.float32)
    rows = np.arange(5)
    path = write_results(tmp_path, records, Poses(rows, keypoints, np.ones(5), rows))
    assert path.name == "pred.mat"
    preds = loadmat(path)["preds"]
    assert preds.shape == (5, 16, 2)
    assert np.array_equal(preds, records.truth.joints)  # from 1, as the truth
    assert scored(path, records)["PCKh@0.1"] == 1


def test_people_of_mpii_who_were_not_run(tmp_path, caplog):
    records = mpii_records()
    keypoints = np.concatenate([records.truth.joints - 1, np.ones((5, 16, 1))], 2).astype(np.float32)
    rows = np.array([0, 3, 4])
    path = write_results(tmp_path, records, Poses(rows, keypoints[rows], np.ones(3), rows))
    result = scored(path, records)
    assert (result["PCKh"], result["people"]) == (0.6, 5)
    assert "2 of 5 people have no pose" in caplog.text


# --- read ---------------------------------------------------------------------------------------------------


def test_somebodys_poses_are_scored_as_they_are(tmp_path):
    """By their scores, low ones of joints notwithstanding, and repeats stay."""
    records = coco_records()
    content = results(records)
    for row in content:
        row["keypoints"][2::3] = [0] * 17
    path = written(tmp_path, [*content, *({**row, "score": 0.1} for row in content)])
    result = scored(path, records)
    assert result["poses"] == 16
    assert result["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    "form",
    [
        "nested",
        "nested without scores",
        "without scores",
        "file names",
        "text ids",
        "float ids",
        "paths",
        "stems",
    ],
)
def test_forms_that_are_read(form, tmp_path):
    records = coco_records()
    content = results(records)
    for row in content:
        points = np.array(row["keypoints"]).reshape(17, 3)
        image = row["image_id"]
        row.update(
            {
                "nested": {"keypoints": points.tolist()},
                "nested without scores": {"keypoints": points[:, :2].tolist()},
                "without scores": {"keypoints": points[:, :2].ravel().tolist()},
                "file names": {"image_id": f"{image:012d}.jpg"},
                "text ids": {"image_id": str(image)},
                "float ids": {"image_id": float(image)},
                "paths": {"image_id": f"C:\\data\\val\\{image:012d}.jpg"},
                "stems": {"image_id": f"{image:012d}"},
            }[form]
        )
    poses, _ = read_results(written(tmp_path, content), records)
    assert np.array_equal(poses.image, records.truth.image)
    assert np.array_equal(poses.keypoints[..., :2], perfect(records).keypoints[..., :2])
    assert scored(tmp_path / "theirs.json", records)["AP"] == pytest.approx(1)


def test_a_file_with_its_own_image_ids_and_joint_order(tmp_path):
    """By the names of the files and of the joints, whatever the numbers are."""
    records = coco_records()
    order = np.random.default_rng(0).permutation(17)
    content = results(records)
    images = [
        {"id": IDS[::-1][i], "file_name": f"elsewhere/{number:012d}.jpg"} for i, number in enumerate(IDS)
    ]
    for row in content:
        row["image_id"] = IDS[::-1][IDS.index(row["image_id"])]
        row["keypoints"] = np.array(row["keypoints"]).reshape(17, 3)[order].ravel().tolist()
    names = [COCO.joints[k].replace("_", " ").title() for k in order]
    category = {"id": 1, "name": "person", "keypoints": names}
    path = written(tmp_path, {"images": images, "annotations": content, "categories": [category]})
    assert scored(path, records)["AP"] == pytest.approx(1)
    category["keypoints"] = ["tail", *names[1:]]
    path = written(tmp_path, {"images": images, "annotations": content, "categories": [category]})
    with pytest.raises(
        HapError, match=r"theirs\.json: its joints are not those of coco: missing .*; new tail"
    ):
        read_results(path, records)


def test_categories(tmp_path, caplog):
    records = coco_records(category=9)
    content = results(records)
    assert scored(written(tmp_path, [{**row, "category_id": 1} for row in content]), records)["AP"] == 1
    assert "8 poses of another category than 9, people, are taken for people" in caplog.text
    caplog.clear()
    path = written(tmp_path, [*content, {**content[0], "category_id": 18, "keypoints": [1, 2]}])
    assert scored(path, records)["poses"] == 8
    assert "1 poses of another category than 9, people, are left out" in caplog.text
    content = [{**row, "category_id": 1 + number % 2} for number, row in enumerate(content)]
    with pytest.raises(HapError, match="poses of categories 1, 2, people are 9 in the annotations"):
        read_results(written(tmp_path, content), records)
    for row in content:
        del row["category_id"]
    assert scored(written(tmp_path, content), records)["AP"] == 1


def test_poses_of_foreign_images(tmp_path):
    records = coco_records()
    content = results(records)
    for row in content[:3]:
        row["image_id"] = 7
    content[3]["image_id"] = "8.jpg"
    with pytest.raises(
        HapError, match=r"4 of 8 poses belong to no image of the annotations[^\n]*\n  7: 3 poses\n  8.jpg"
    ):
        read_results(written(tmp_path, content), records)
    for value in (None, [785], True):
        with pytest.raises(HapError, match="8 of 8 poses belong to no image"):
            read_results(written(tmp_path, results(records, image_id=value)), records)


def test_two_images_of_one_name_are_not_told_apart_by_it(tmp_path):
    records = coco_records()
    files = ("a/1.jpg", "b/1.jpg", "b/2.jpg", "c/3.jpg")
    records = replace(records, truth=replace(records.truth, files=files))
    poses, _ = read_results(written(tmp_path, results(records, image_id="b/1.jpg")), records)
    assert set(poses.image.tolist()) == {1}
    with pytest.raises(HapError, match=r"1\.jpg: 8 poses"):
        read_results(written(tmp_path, results(records, image_id="1.jpg")), records)


def test_images_without_a_pose_are_said(tmp_path, caplog):
    records = coco_records()
    content = [row for row in results(records) if row["image_id"] != 785]
    _, protocol = read_results(written(tmp_path, content), records)
    assert "1 of 4 images with people have no pose" in caplog.text
    assert protocol["images with people and without a pose"] == 1
    assert scored(tmp_path / "theirs.json", records)["AR"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"keypoints": [1.0] * 48},
            "8 of 8 poses do not have 17 joints .* 51 numbers.*\n  pose 0: keypoints: 48 numbers",
        ),
        ({"keypoints": [[1, 2, 3]] * 16}, "pose 0: keypoints: 48 numbers"),
        ({"keypoints": [[1, 2, 3], [1]] * 8}, "keypoints: no list of numbers"),
        ({"keypoints": ["a"] * 51}, "keypoints: no list of numbers"),
        ({"keypoints": [float("nan")] * 51}, "keypoints: no list of numbers"),
        ({"keypoints": None}, "keypoints: no list of numbers"),
        ({"keypoints": [10**400] * 51}, "keypoints: no list of numbers"),
        ({"score": None}, "pose 0: score: None"),
        ({"score": "high"}, "pose 0: score: 'high'"),
        ({"score": [0.5]}, "pose 0: score"),
    ],
)
def test_what_is_no_pose_is_named(change, message, tmp_path):
    records = coco_records()
    with pytest.raises(HapError, match=f"(?s){message}"):
        read_results(written(tmp_path, results(records, **change)), records)


def test_y_before_x(tmp_path):
    records = coco_records()
    content = results(records)
    for row in content:
        points = np.array(row["keypoints"]).reshape(17, 3)
        row["keypoints"] = points[:, [1, 0, 2]].ravel().tolist()
    with pytest.raises(HapError, match="keypoints look like y, x: exchanged they fit the pictures"):
        read_results(written(tmp_path, content), records)
    square = replace(records, sizes=np.zeros_like(records.sizes))  # then only the true joints tell
    with pytest.raises(HapError, match="keypoints look like y, x"):
        read_results(written(tmp_path, content), square)
    poor = [{**row, "keypoints": (np.array(row["keypoints"]) * 0.9 + 30).tolist()} for row in content]
    with pytest.raises(HapError, match="keypoints look like y, x"):  # then only the pictures tell
        read_results(written(tmp_path, poor), records)


def test_poor_poses_in_the_right_order_are_read(tmp_path):
    records = coco_records()
    rng = np.random.default_rng(0)
    for spread in (1, 30, 300):
        content = results(records)
        for row in content:
            row["keypoints"] = (np.array(row["keypoints"]) + rng.normal(0, spread, 51)).tolist()
        read_results(written(tmp_path, content), records)


def test_shares_of_the_picture(tmp_path):
    records = coco_records()
    content = results(records, keypoints=[0.5, 0.4, 0.9] * 17)
    with pytest.raises(HapError, match="look like shares of the picture: multiply by its width and height"):
        read_results(written(tmp_path, content), records)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("3", "is no list of poses"),
        ("[1, 2]", "is no list of poses"),
        ('{"images": []}', "is no list of poses"),
        ('{"annotations": [7]}', "is no list of poses"),
    ],
)
def test_files_that_are_no_results(text, message, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(HapError, match=message):
        read_results(path, coco_records())


def test_the_other_format(tmp_path):
    savemat(tmp_path / "pred.mat", {"preds": np.ones((5, 16, 2))})
    with pytest.raises(HapError, match=r"pred\.mat: these data are scored by a list of poses in JSON"):
        read_results(tmp_path / "pred.mat", coco_records())
    with pytest.raises(HapError, match=r"MPII is scored by pred\.mat"):
        read_results(written(tmp_path, []), mpii_records())
    with pytest.raises(HapError, match=r"predictions: file not found: .*none\.json"):
        read_results(tmp_path / "none.json", coco_records())


def test_own_joints_without_sigmas(tmp_path):
    records = coco_records(of_names(["head", "left hand", "right hand"], name="three"))
    result = scored(written(tmp_path, results(records)), records)
    assert "AP" not in result
    assert result["PCK_box@0.05"] == 1


def mat(folder: Path, preds, name: str = "preds") -> Path:
    savemat(folder / "pred.mat", {name: preds})
    return folder / "pred.mat"


def test_predictions_of_mpii_count_from_one(tmp_path):
    records = mpii_records()
    preds = records.truth.joints.copy()
    preds[..., 0] += 6  # a tenth of a head
    assert scored(mat(tmp_path, preds), records)["PCKh@0.1"] == 1
    preds[..., 0] += 0.5
    assert scored(mat(tmp_path, preds), records)["PCKh@0.1"] == 0
    _, protocol = read_results(tmp_path / "pred.mat", records)
    assert protocol == {"poses": "of 5 of 5 people"}


def test_wrong_predictions_of_mpii(tmp_path):
    records = mpii_records()
    joints = records.truth.joints
    with pytest.raises(HapError, match="has no array preds; it has pred"):
        read_results(mat(tmp_path, joints, "pred"), records)
    with pytest.raises(HapError, match=r"preds has the shape \(16, 2, 5\): \(people, 16, 2\)"):
        read_results(mat(tmp_path, joints.transpose(1, 2, 0)), records)
    with pytest.raises(HapError, match=r"poses of 4 people, the validation set has 5"):
        read_results(mat(tmp_path, joints[:4]), records)
    with pytest.raises(HapError, match=r"preds looks like y, x: PCKh is .*, exchanged 100\.0%"):
        read_results(mat(tmp_path, joints[..., ::-1]), records)
    broken = joints.copy()
    broken[2, 3, 1] = np.nan
    with pytest.raises(
        HapError, match=r"1 poses are no finite numbers, the first is that of person 2 \(counted"
    ):
        read_results(mat(tmp_path, broken), records)
    (tmp_path / "pred.mat").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600))
    with pytest.raises(HapError, match=r"saved as MATLAB v7\.3"):
        read_results(tmp_path / "pred.mat", records)


@samples
def test_photographs_with_x_and_y_exchanged(tmp_path):
    """The file of the annotations as results: read as it is; refused with x and y exchanged."""
    content = json.loads((SAMPLES / "coco/annotations/person_keypoints_val2017.json").read_text())
    ids = tuple(image["id"] for image in content["images"])
    files = tuple(image["file_name"] for image in content["images"])
    sizes = np.array([(image["width"], image["height"]) for image in content["images"]])
    people = [person for person in content["annotations"] if person["num_keypoints"]]
    image = np.array([ids.index(person["image_id"]) for person in people])
    box = np.array([person["bbox"] for person in people])
    joints = np.array([person["keypoints"] for person in people], dtype=np.float64).reshape(-1, 17, 3)
    area = np.array([person["area"] for person in people])
    truth = CocoTruth(
        *(COCO, ids, files, image, box, area, np.zeros(12, bool), joints), tuple(p["id"] for p in people)
    )
    records = records_of(truth, files, sizes, image, box, COCO)
    given = [
        {"image_id": p["image_id"], "category_id": 1, "keypoints": p["keypoints"], "score": 1} for p in people
    ]
    assert scored(written(tmp_path, given), records)["AP"] == pytest.approx(1)
    for row in given:
        row["keypoints"] = np.array(row["keypoints"]).reshape(17, 3)[:, [1, 0, 2]].ravel().tolist()
    with pytest.raises(HapError, match="look like y, x"):
        read_results(written(tmp_path, given), records)


def test_the_level_of_what_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    read_results(written(tmp_path, results(coco_records())), coco_records())
    assert "poses: 8 in 4 of 4 images, at most 2 in one" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
