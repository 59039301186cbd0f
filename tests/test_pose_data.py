"""Readers of 2D pose: the published layouts with the official numbers, files of one's own, and what is wrong."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from hap.data.pose_crops import of_people
from hap.data.pose_files import read_annotation
from hap.data.pose_own import read_coco_style
from hap.data.pose_sets import MPII_MAT, raw_aic, read_aic, read_coco, read_mpii, read_multi
from hap.data.samplers import fingerprint
from hap.errors import BadSample, HapError
from hap.pose.skeletons import COCO, of_names

SIZE = (256, 192)
NAMES = ["nose", "left_hand", "right_hand"]
DETECTIONS = "person_detection_results/COCO_val2017_detections_AP_H_56_person.json"
SAMPLES = Path(os.environ.get("HAP_SAMPLES", "nowhere"))
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="HAP_SAMPLES is not set")


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def picture(path: Path, width=100, height=80) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))


def person(number, image=1, box=(10, 10, 40, 60), joints=((20, 20, 2), (15, 40, 1), (45, 40, 2)), **more):
    keypoints = [value for joint in joints for value in joint]
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "bbox": list(box),
        "keypoints": keypoints,
        **more,
    }


def content(people=None, names=NAMES, images=2, **more):
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 80} for i in range(1, images + 1)
        ],
        "categories": [{"id": 1, "name": "person", "keypoints": names, "skeleton": [[1, 2], [1, 3]]}],
        "annotations": [person(1), person(2, image=2)] if people is None else people,
        **more,
    }


@pytest.fixture
def own(tmp_path):
    """own(train, val=None): a folder in the usual places; val is the same as train unless given."""

    def make(train, val=None, images="images"):
        for split, file in (("train", train), ("val", train if val is None else val)):
            write(tmp_path / f"annotations/{split}.json", file)
        for i in (1, 2):
            picture(tmp_path / images / f"{i}.jpg")
        return tmp_path

    return make


@pytest.fixture
def coco(tmp_path) -> Path:
    """The sample of COCO, whose val is train, too."""
    for split in ("train", "val"):
        link(
            SAMPLES / "coco/annotations/person_keypoints_val2017.json",
            tmp_path / f"coco/annotations/person_keypoints_{split}2017.json",
        )
        link(SAMPLES / "coco/val2017", tmp_path / f"coco/{split}2017")
    link(SAMPLES / "coco" / DETECTIONS, tmp_path / "coco" / DETECTIONS)
    return tmp_path / "coco"


def link(source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(source)


@pytest.fixture
def mpii(tmp_path) -> Path:
    for split in ("train", "val"):
        link(SAMPLES / "mpii/annotations/mpii_val.json", tmp_path / f"mpii/annotations/mpii_{split}.json")
    link(SAMPLES / "mpii/annotations/mpii_gt_val.mat", tmp_path / "mpii/annotations/mpii_gt_val.mat")
    link(SAMPLES / "mpii/images", tmp_path / "mpii/images")
    return tmp_path / "mpii"


AIC_IMAGES = "ai_challenger_keypoint_{}_2017{}/keypoint_{}_images_2017{}"


@pytest.fixture
def aic(tmp_path) -> Path:
    for split, name, folder, images in (
        ("train", "train", "0909", "0902"),
        ("val", "validation", "0911", "0911"),
    ):
        link(SAMPLES / "aic/annotations/aic_val.json", tmp_path / f"aic/annotations/aic_{split}.json")
        source = SAMPLES / "aic" / AIC_IMAGES.format("validation", "0911", "validation", "0911")
        link(source, tmp_path / "aic" / AIC_IMAGES.format(name, folder, name, images))
    return tmp_path / "aic"


@needs_samples
def test_coco_as_the_official_code_reads_it(coco):
    splits = read_coco(coco, SIZE, jitter=0)
    train, val = splits["train"], splits["val"]
    assert splits["test"] is val  # its scores are those that are reported
    assert len(train) == 12
    assert not {1202706, 508900} & set(train.ids)  # nothing labelled
    first = list(train.ids).index(442619)
    np.testing.assert_allclose(train.box[first], [280.79, 44.73, 217.7, 345.68], atol=1e-4)
    np.testing.assert_allclose(train.center[first], [389.64, 217.57], atol=1e-4)
    np.testing.assert_allclose(train.scale[first], [1.620375, 2.1605], atol=1e-6)
    assert train.joints[..., 2].sum() == 181
    assert set(np.unique(train.joints[..., 2])) == {0, 1}
    assert train[first].pixels().sum() == 161_014_287
    assert len(val) == 118
    np.testing.assert_allclose(val.center[0], [389.66394, 212.4798], atol=1e-4)
    np.testing.assert_allclose(val.scale[0], [1.5635638, 2.0847516], atol=1e-6)
    assert (val.score.min(), val.score.max()) == pytest.approx((0.00289, 0.99999), abs=1e-5)
    assert len(val.truth.image) == 14
    assert "118 detected boxes" in val.protocol
    assert "lowest score 0.00289" in val.protocol


@needs_samples
def test_coco_on_true_boxes(coco):
    val = read_coco(coco, SIZE, boxes="truth")["val"]
    assert (len(val), len(val.truth.image)) == (12, 14)
    assert "annotated boxes" in val.protocol
    with pytest.raises(HapError, match="detections or truth"):
        read_coco(coco, SIZE, boxes="gt")


@needs_samples
def test_centers_are_moved_once_for_the_whole_run(coco):
    plain, moved, again = (read_coco(coco, SIZE, jitter=j)["train"] for j in (0, 1.0, 1.0))
    np.testing.assert_array_equal(moved.center, again.center)
    shift = np.abs(moved.center - plain.center) / plain.box[:, 2:]
    assert 0.05 < shift.max() <= 0.2
    some = read_coco(coco, SIZE, jitter=0.3, seed=1)["train"].center
    share = (some != plain.center).any(1).mean()
    assert 0 < share < 0.8


@needs_samples
def test_mpii_counts_from_one_and_crops_squares(mpii):
    splits = read_mpii(mpii)
    train, val = splits["train"], splits["val"]
    np.testing.assert_allclose(train.center[:2], [[965, 409.77731], [315, 245.42752]], atol=1e-3)
    np.testing.assert_allclose(train.scale[:2], [[5.8981104] * 2, [2.2022936] * 2], atol=1e-5)
    np.testing.assert_allclose(train.joints[0, 0], [803, 710, 1])
    assert not val.joints.any()  # not read in an evaluation
    np.testing.assert_allclose(
        val.truth.head_size, [117.96221, 44.04589, 78.48082, 81.22191, 84.36990], atol=1e-5
    )
    assert val.truth.labelled.sum(0).tolist() == [3, 5, 5, 5, 5, 3, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5]


@needs_samples
def test_aic_in_both_forms(aic):
    splits = read_aic(aic, SIZE, jitter=0)
    val = splits["val"]
    ids = list(val.ids)
    np.testing.assert_allclose(val.center[[ids.index(4), ids.index(7)]], [[385, 326.5], [697, 386.5]])
    np.testing.assert_allclose(val.scale[ids.index(4)], [2.5453126, 3.39375], atol=1e-6)
    np.testing.assert_allclose(val.truth.area[ids.index(4)], 0.53 * 213 * 544)
    folder = "ai_challenger_keypoint_validation_20170911"
    raw = SAMPLES / "aic" / folder / "keypoint_validation_annotations_20170911.json"
    images = SAMPLES / "aic" / AIC_IMAGES.format("validation", "0911", "validation", "0911")
    other = of_people(raw_aic(raw, images), images, SIZE)
    for name in ("box", "center", "scale", "joints"):
        np.testing.assert_array_equal(getattr(other, name), getattr(val, name))
    (aic / "annotations/aic_val.json").unlink()
    link(raw, aic / "annotations" / raw.name)
    assert len(read_aic(aic, SIZE)["val"]) == 9


@needs_samples
def test_three_sets_one_after_the_other(coco, mpii, aic, tmp_path):
    splits = read_multi(tmp_path, SIZE)
    train = splits["train"]
    assert len(train) == 12 + 9 + 5
    assert [train[i].annotations()["source"] for i in (0, 11, 12, 20, 21, 25)] == [0, 0, 1, 1, 2, 2]
    assert [len(train[i].annotations()["joints"]) for i in (0, 12, 21)] == [17, 14, 16]
    assert len(list(train.names)) == 26
    assert splits["val"].skeleton is COCO
    assert {"joints_0", "people_2"} <= fingerprint(train).keys()


@needs_samples
def test_an_evaluation_needs_no_training_people(coco, mpii, aic, tmp_path):
    for file in ("coco/annotations/person_keypoints_train2017.json", "mpii/annotations/mpii_train.json"):
        (tmp_path / file).unlink()
    (tmp_path / "aic/annotations/aic_train.json").unlink()
    for splits in (read_coco(coco, SIZE), read_mpii(mpii), read_aic(aic, SIZE)):
        assert set(splits) == {"val", "test"}
    with pytest.raises(HapError, match=r"no annotations for training in .*coco, .*aic, .*mpii"):
        read_multi(tmp_path, SIZE)
    (aic / "annotations/aic_val.json").unlink()
    with pytest.raises(
        HapError, match=r"no aic_val.json and no keypoint_validation_annotations_20170911.json"
    ):
        read_aic(aic, SIZE)


@needs_samples
def test_detections_of_another_set(coco, caplog):
    annotation = json.loads((coco / "annotations/person_keypoints_val2017.json").read_text())
    detections = json.loads((coco / DETECTIONS).read_text())
    file = coco / "annotations/person_keypoints_val2017.json"
    file.unlink()
    fewer = {**annotation, "images": [i for i in annotation["images"] if i["id"] != 785]}
    fewer["annotations"] = [a for a in annotation["annotations"] if a["image_id"] != 785]
    write(file, fewer)
    with pytest.raises(HapError, match=r"(?s)22 of 118 boxes .*785"):
        read_coco(coco, SIZE)
    write(file, annotation)
    (coco / DETECTIONS).unlink()
    write(coco / DETECTIONS, [d for d in detections if d["image_id"] != 785])
    val = read_coco(coco, SIZE)["val"]
    assert len(val) == 96
    assert "1 of 4 images have no box" in caplog.text
    assert "1 images without a box" in val.protocol
    write(coco / DETECTIONS, [{**d, "image_id": d["image_id"] + 1} for d in detections])
    with pytest.raises(HapError, match="118 of 118 boxes"):
        read_coco(coco, SIZE)
    write(coco / DETECTIONS, [{**d, "category_id": 3} for d in detections])
    with pytest.raises(HapError, match="0 of 0 boxes"):
        read_coco(coco, SIZE)
    write(coco / DETECTIONS, [*detections[:5], {**detections[5], "bbox": [1, 2]}])
    with pytest.raises(HapError, match="1 detections have no bbox"):
        read_coco(coco, SIZE)
    write(coco / DETECTIONS, [*detections[:5], {**detections[5], "bbox": [1, 2, 0, 5]}])
    assert len(read_coco(coco, SIZE)["val"]) == 5
    (coco / DETECTIONS).unlink()
    with pytest.raises(HapError, match=r"data.reader.boxes=truth"):
        read_coco(coco, SIZE)


def test_mpii_truth_is_of_the_same_people(tmp_path):
    joints = np.random.default_rng(0).uniform(10, 60, (2, 16, 2))
    people = [
        {"image": "1.jpg", "center": [40, 40], "scale": 0.3, "joints": j.tolist(), "joints_vis": [1] * 16}
        for j in joints
    ]
    for split in ("train", "val"):
        write(tmp_path / f"annotations/mpii_{split}.json", people)
    picture(tmp_path / "images/1.jpg")
    with pytest.raises(HapError, match=r"no truth of the validation people.*mpii_gt_val.mat"):
        read_mpii(tmp_path)

    def mat(order, count=2):
        names = np.empty((1, 16), object)
        names[0] = MPII_MAT.split()
        variables = {
            "dataset_joints": names,
            "jnt_missing": np.zeros((16, count)),
            "pos_gt_src": np.moveaxis(joints[order], 0, -1)[..., :count],
            "headboxes_src": np.ones((2, 2, count)) * np.array([[[1], [1]], [[4], [5]]]),
        }
        savemat(tmp_path / "annotations/mpii_gt_val.mat", variables)

    mat([0, 1])
    assert read_mpii(tmp_path)["val"].truth.head_size.tolist() == [3, 3]
    mat([1, 0])
    with pytest.raises(HapError, match="person 0 has other joints"):
        read_mpii(tmp_path)
    mat([0, 1], count=1)
    with pytest.raises(HapError, match=r"has 1 people, mpii_val.json 2"):
        read_mpii(tmp_path)
    write(tmp_path / "annotations/mpii_train.json", [{"image": "1.jpg", "center": [1, 1]}])
    with pytest.raises(HapError, match="person 0: no scale"):
        read_mpii(tmp_path)


def perfect(records):
    """The truth as it is scored: joints that are labelled, of people who count."""
    truth = records.truth
    counts = ~truth.crowd & (truth.joints[..., 2] > 0).any(1)
    return truth.joints[counts], truth.area[counts]


def test_own_joints_are_those_of_the_file(own):
    splits = read_coco_style(own(content()), SIZE, jitter=0)
    train = splits["train"]
    assert set(splits) == {"train", "val"}
    assert train.skeleton.joints == tuple(NAMES)
    assert train.skeleton.flip_pairs == ((1, 2),)
    assert train.skeleton.links == ((0, 1), (0, 2))
    assert train.skeleton.sigmas is None
    assert train.joints[0].tolist() == [[20, 20, 1], [15, 40, 1], [45, 40, 1]]
    assert train[0].file == "images/1.jpg"
    assert train[0].pixels().shape == (80, 100, 3)


def test_own_joints_are_arranged_by_name(own):
    """Names and triplets exchanged together are the same people."""
    other = content(
        [person(1, joints=((45, 40, 2), (20, 20, 2), (15, 40, 1)))], ["Right Hand", "Nose", "l_hand"]
    )
    root = own(content([person(1)]), other)
    splits = read_coco_style(root, SIZE)
    np.testing.assert_array_equal(splits["val"].joints, splits["train"].joints)
    np.testing.assert_array_equal(splits["val"].truth.joints[0, :, 2], [2, 1, 2])
    with pytest.raises(HapError, match=r"missing right_hand; new foot"):
        read_coco_style(own(content(), content(names=["nose", "left_hand", "foot"])), SIZE)
    with pytest.raises(HapError, match="missing left_eye"):
        read_coco_style(root, SIZE, skeleton="coco")


def test_joints_without_names_are_taken_in_order_with_a_warning(own, caplog):
    file = content()
    del file["categories"][0]["keypoints"]
    with pytest.raises(HapError, match="does not name its joints"):
        read_coco_style(own(file), SIZE)
    read_coco_style(own(file), SIZE, skeleton={"joints": NAMES})
    assert "taken to be the 3 of own, in its order" in caplog.text
    with pytest.raises(HapError, match=r"keypoints \(17 joints\) of 2 annotations is not 51 numbers"):
        read_coco_style(own(file), SIZE, skeleton="coco")


@pytest.mark.parametrize("area", [{}, {"area": 0}, {"area": None}, {"area": -1}])
def test_areas_that_are_missing_are_replaced(own, caplog, area):
    people = [person(1, **area), person(2, image=2, area=500)]
    splits = read_coco_style(own(content(people)), SIZE)
    assert len(splits["train"]) == 2
    assert splits["val"].truth.area.tolist() == pytest.approx([0.53 * 40 * 60, 500])
    assert "1 of 2 people have no area above 0" in caplog.text


def exporters():
    """The same two people as tools write them."""
    plain = content()
    cvat = content(
        [person(1, attributes={"occluded": False}, iscrowd=0), person(2, image=2, num_keypoints=7)]
    )
    fiftyone = content([{**person(i, image=i), "score": 1.0, "supercategory": "x"} for i in (1, 2)])
    label_studio = content()
    label_studio["images"] = [
        {**image, "file_name": f"images\\{image['file_name']}"} for image in plain["images"]
    ]
    roboflow = content([{**person(i, image=i), "category_id": 7} for i in (1, 2)])
    roboflow["categories"] = [{"id": 0, "name": "people"}, {**plain["categories"][0], "id": 7}]
    zero = content([{**person(i - 1, image=i - 1), "category_id": 0} for i in (1, 2)])
    zero["images"] = [{**image, "id": image["id"] - 1} for image in plain["images"]]
    zero["categories"][0]["id"] = 0
    text = content([{**person(f"p{i}", image=f"img{i}")} for i in (1, 2)])
    text["images"] = [{**image, "id": f"img{image['id']}"} for image in plain["images"]]
    floats = content([person(1.0, image=1.0), person(2.0, image=2)])
    nothing = content(
        [person(1), person(2, image=2), person(3, joints=((float("nan"), float("nan"), 0),) * 3)]
    )
    unlabelled = content(
        [person(1), person(2, image=2), person(3, joints=[(0, 0, 0)] * 3), {**person(4), "keypoints": []}]
    )
    return {
        "plain": plain,
        "cvat": cvat,
        "fiftyone": fiftyone,
        "label_studio": label_studio,
        "roboflow": roboflow,
        "ids from 0": zero,
        "text ids": text,
        "floating ids": floats,
        "people without joints": unlabelled,
        "no numbers where nothing is labelled": nothing,
    }


@pytest.mark.parametrize("tool", exporters())
def test_files_of_annotation_tools_are_one_truth(own, tool):
    splits = read_coco_style(own(exporters()[tool]), SIZE)
    joints, area = perfect(splits["val"])
    assert joints.tolist() == [[[20, 20, 2], [15, 40, 1], [45, 40, 2]]] * 2
    assert area.tolist() == pytest.approx([0.53 * 2400] * 2)
    assert len(splits["train"]) == 2
    assert splits["val"].truth.category_id == exporters()[tool]["categories"][-1]["id"]


def test_roboflow_s_folders(tmp_path):
    for folder in ("train", "valid"):
        write(tmp_path / folder / "_annotations.coco.json", content())
        for i in (1, 2):
            picture(tmp_path / folder / f"{i}.jpg")
    splits = read_coco_style(tmp_path, SIZE)
    assert (splits["train"][0].file, splits["val"][0].file) == ("train/1.jpg", "valid/1.jpg")


def test_crowds_and_boxes_outside(own, caplog):
    people = [
        person(1),
        person(2, iscrowd=1),
        person(3, box=(200, 10, 20, 20)),
        person(4, box=(10, 10, 0, 20)),
        {**person(5), "bbox": None},
        person(6, box=(90, 70, 40, 40)),
    ]
    splits = read_coco_style(own(content(people)), SIZE)
    assert list(splits["train"].ids) == [1, 4, 5, 6]
    assert splits["train"].box[3].tolist() == [90, 70, 9, 9]
    truth = splits["val"].truth
    assert truth.crowd.tolist() == [False, True, False, False, False, False]
    for row in (3, 4):  # without a box, or one of an area: the extent of the joints
        assert truth.box[row].tolist() == [15, 20, 30, 20]
        assert truth.area[row] == pytest.approx(0.53 * 30 * 20)
    assert "2 of 6 people have no box of an area" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["annotations"][1].update(keypoints=[1, 2, 2]),
            r"(?s)keypoints .* of 1 annotations .*annotation 2: 3 values",
        ),
        (
            lambda c: c["annotations"][1].update(keypoints=[1, 2, 0.7] * 3),
            r"(?s)not x, y and 0 .*annotation 2",
        ),
        (
            lambda c: c["annotations"][1].update(keypoints=[float("nan"), 2, 2] * 3),
            r"(?s)not x, y and 0 .*annotation 2",
        ),
        (
            lambda c: c["annotations"][1].update(bbox=[1, 2, 3]),
            r"(?s)bbox of 1 annotations.*annotation 2: 3 values",
        ),
        (lambda c: c["annotations"][1].update(area="large"), r"(?s)area of 1 annotations.*annotation 2"),
        (
            lambda c: c["annotations"][1].update(image_id=9),
            r"(?s)1 of 2 annotations are of images.*annotation 2: image_id 9",
        ),
        (lambda c: c["images"].append(c["images"][0]), "1 ids of images are there twice"),
        (
            lambda c: c["images"].append({"id": 9, "file_name": "9.jpg"}),
            r"(?s)lacks 1 of the 3 images.*9.jpg",
        ),
        (lambda c: c["images"][0].pop("file_name"), "1 has no file_name"),
        (lambda c: c.pop("images"), "no lists of images and annotations"),
        (lambda c: c.update(annotations=[]), "no annotations of category 1"),
        (
            lambda c: c["categories"].append({"id": 2, "name": "dog", "keypoints": ["tail"]}),
            r"several categories have joints, person \(1\), dog \(2\): .*data.reader.category=",
        ),
        (lambda c: [a.update(bbox=[40, 30, 95, 78]) for a in c["annotations"]], "looks like x1 y1 x2 y2"),
        (
            lambda c: [
                a.update(bbox=[60, 0, 30, 20], keypoints=[5, 70, 2, 10, 80, 2, 15, 85, 2])
                for a in c["annotations"]
            ],
            "look like y, x: 100% of them",
        ),
    ],
)
def test_files_that_make_no_sense(own, change, message):
    file = content()
    change(file)
    with pytest.raises(HapError, match=message):
        read_coco_style(own(file), SIZE)


def test_one_of_several_categories(own):
    file = content([person(1), {**person(2), "category_id": 2, "keypoints": [1, 1, 2]}])
    file["categories"].append({"id": 2, "name": "dog", "keypoints": ["tail"]})
    assert read_coco_style(own(file), SIZE, category="dog")["train"].skeleton.joints == ("tail",)
    assert len(read_coco_style(own(file), SIZE, category=1)["train"]) == 1
    with pytest.raises(HapError, match="no category cat has joints"):
        read_coco_style(own(file), SIZE, category="cat")


def test_sigmas_and_pairs_are_declared(own):
    names = ["a", "b", "c"]
    records = read_coco_style(
        own(content(names=names)), SIZE, sigmas=[0.1, 0.2, 0.3], flip_pairs=[["b", "c"]], upper_body=["a"]
    )["val"]
    assert records.truth.skeleton.sigmas == (0.1, 0.2, 0.3)
    assert records.skeleton.flip_pairs == ((1, 2),)
    with pytest.raises(HapError, match="2 values for 3 joints"):
        read_coco_style(own(content()), SIZE, sigmas=[0.1, 0.2])
    with pytest.raises(HapError, match=r"go into data.reader.skeleton"):
        read_coco_style(own(content()), SIZE, skeleton={"joints": NAMES}, sigmas=[0.1] * 3)


def test_missing_files_are_named(tmp_path, own):
    with pytest.raises(HapError, match="no annotations of train and val"):
        read_coco_style(tmp_path, SIZE)
    root = own(content())
    with pytest.raises(HapError, match=r"no file x.json"):
        read_coco_style(root, SIZE, annotations={"train": "x.json"})
    (root / "images/2.jpg").unlink()
    with pytest.raises(HapError, match=r"(?s)lacks 1 of the 2 images.*2.jpg"):
        read_coco_style(root, SIZE)
    (root / "annotations/train.json").write_text("{")
    with pytest.raises(HapError, match=r"train.json is no JSON"):
        read_coco_style(root, SIZE)


def test_a_picture_of_another_size_is_not_used(own):
    """A photograph that was annotated as it is stored, and is shown turned."""
    root = own(content())
    records = read_coco_style(root, SIZE)["train"]
    jpeg = (root / "images/1.jpg").read_bytes()
    tag = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    exif = b"\xff\xe1" + (len(tag) + 8).to_bytes(2, "big") + b"Exif\0\0" + tag
    (root / "images/1.jpg").write_bytes(jpeg[:2] + exif + jpeg[2:])
    with pytest.raises(
        BadSample, match="80 x 100 pixels, its annotation says 100 x 80: it is turned upright"
    ):
        records[0].pixels()
    picture(root / "images/2.jpg", width=50)
    with pytest.raises(BadSample, match=r"50 x 80 pixels, its annotation says 100 x 80$"):
        records[1].pixels()


def test_another_training_set_has_another_fingerprint(own):
    one = fingerprint(read_coco_style(own(content()), SIZE)["train"])
    moved = [person(1, joints=((21, 20, 2), (15, 40, 1), (45, 40, 2))), person(2, image=2)]
    other = fingerprint(read_coco_style(own(content(moved)), SIZE)["train"])
    assert {key for key in one if one[key] != other[key]} == {"people"}
    assert one["images"] == 2


def test_joints_of_the_model_in_another_order(own):
    records = read_coco_style(own(content()), SIZE, sigmas=[0.1, 0.2, 0.3])["val"]
    other = records.arranged(["right_hand", "nose", "left_hand"])
    assert other.joints[0, :, 0].tolist() == [45, 20, 15]
    assert other.truth.joints[0, :, 0].tolist() == [45, 20, 15]
    assert other.truth.skeleton.sigmas == (0.3, 0.1, 0.2)
    assert records.arranged(NAMES) is records
    with pytest.raises(HapError, match="joints are not those of the model: missing tail; new"):
        records.arranged(["nose", "left_hand", "tail"])


def test_a_file_without_categories(own):
    file = content()
    del file["categories"]
    assert len(read_annotation(own(file) / "annotations/train.json", of_names(NAMES)).image) == 2
