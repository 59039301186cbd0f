"""The published sets of 2D pose: COCO, MPII, AI Challenger, and the three together."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hap.data.decoding import image_size
from hap.data.files import check_images, first_lines, locate, read_file, read_json
from hap.data.mat_file import read_mat
from hap.data.pose import MixedRecords, PoseRecords
from hap.data.pose_crops import Size, of_detections, of_people
from hap.data.pose_files import Annotation, read_annotation
from hap.errors import BadSample, HapError
from hap.pose.geometry import PIXELS
from hap.pose.skeletons import AIC, COCO, MPII
from hap.pose.truth import MpiiTruth

log = logging.getLogger(__name__)

Splits = dict[str, Any]  # to PoseRecords, or MixedRecords in training

AIC_FOLDERS = {
    "train": ("train", "20170909", "20170902"),
    "val": ("validation", "20170911", "20170911"),
}  # name, date of the folder and the annotations, date of the images
# Names of the joints in MPII's file of the truth.
MPII_MAT = "rank rkne rhip lhip lkne lank pelv thor neck head rwri relb rsho lsho lelb lwri"


def read_coco(
    root: Path,
    size: Size,
    boxes: Literal["detections", "truth"] = "detections",
    detections: str = "person_detection_results/COCO_val2017_detections_AP_H_56_person.json",
    jitter: float = 0.3,
    seed: int = 0,
) -> Splits:
    """COCO keypoints 2017: trained on the annotated boxes of train2017, evaluated on val2017.

    Args:
        size: height and width of the input, whose aspect the regions have.
        boxes: of the evaluation: those of the file `detections`, as published, or of the annotations.
        jitter: share of the training boxes whose center is moved, once for all epochs.
        seed: of that.

    Raises:
        HapError: files or images are missing, or do not belong together.
    """
    folder = locate(root, ["annotations"], "it holds person_keypoints_{train,val}2017.json")
    train = _coco_train(folder, size, jitter, seed)
    annotation = _coco_annotation(folder, "val")
    truth, images = annotation.truth(), folder / "val2017"
    if boxes == "detections":
        val = of_detections(folder / detections, annotation, truth, images, size)
        _compare("COCO val2017", {"images": (len(val.files), 5_000), "boxes": (len(val), 104_125)})
    elif boxes == "truth":
        val = of_people(annotation, images, size, truth=truth, drop_empty=True)
        _compare("COCO val2017", {"images": (len(val.files), 5_000), "people": (len(val), 6_352)})
    else:
        raise HapError(f"data.reader.boxes={boxes}: detections or truth")
    return {**train, "val": val, "test": val}


def _coco_annotation(folder: Path, split: str) -> Annotation:
    annotation = read_annotation(folder / f"annotations/person_keypoints_{split}2017.json", COCO)
    check_images(annotation.file, folder / f"{split}2017", annotation.files)
    return annotation


def _coco_train(folder: Path, size: Size, jitter: float, seed: int) -> Splits:
    if not (folder / "annotations/person_keypoints_train2017.json").is_file():
        return _no_training(folder)
    annotation = _coco_annotation(folder, "train")
    train = of_people(annotation, folder / "train2017", size, jitter=jitter, seed=seed, drop_empty=True)
    _compare("COCO train2017", {"people": (len(train), 149_813)})
    return {"train": train}


def _no_training(folder: Path) -> Splits:
    """Whoever evaluates needs no training people."""
    log.info("%s has no annotations for training", folder)
    return {}


def read_mpii(root: Path) -> Splits:
    """MPII as converted to json; evaluated on the 2,958 people of `mpii_gt_val.mat`. Regions are squares."""
    folder = _mpii_folder(root)
    train = _mpii_train(folder)
    people = read_json(folder / "annotations/mpii_val.json")
    truth = _mpii_truth(folder / "annotations/mpii_gt_val.mat", people)
    val = _mpii_people(folder, "val", people, truth)
    _compare("MPII val", {"people": (len(val), 2_958)})
    return {**train, "val": val, "test": val}


def _mpii_folder(root: Path) -> Path:
    return locate(root, ["annotations"], "it holds mpii_{train,val}.json and mpii_gt_val.mat")


def _mpii_train(folder: Path) -> Splits:
    path = folder / "annotations/mpii_train.json"
    if not path.is_file():
        return _no_training(folder)
    train = _mpii_people(folder, "train", read_json(path))
    _compare("MPII train", {"people": (len(train), 22_246)})
    return {"train": train}


def read_aic(root: Path, size: Size, jitter: float = 0.3, seed: int = 0) -> Splits:
    """AI Challenger: `aic_{train,val}.json` in COCO's format, or the raw json; evaluated on the annotated boxes."""
    train = _aic_train(root, size, jitter, seed)
    if (found := _aic_annotation(root, "val")) is None:
        raise HapError(_no_aic(root, "val"))
    val = of_people(*found, size, truth=found[0].truth(area_of_box=True))
    _compare("AIC val", {"images": (len(val.files), 30_000)})
    return {**train, "val": val, "test": val}


def _aic_train(root: Path, size: Size, jitter: float, seed: int) -> Splits:
    if (found := _aic_annotation(root, "train")) is None:
        return _no_training(root)
    train = of_people(*found, size, jitter=jitter, seed=seed)
    _compare("AIC train", {"people": (len(train), 378_352)})
    return {"train": train}


def read_multi(
    root: Path,
    size: Size,
    folders: Mapping[str, str] | None = None,
    boxes: Literal["detections", "truth"] = "detections",
    jitter: float = 0.3,
    seed: int = 0,
) -> Splits:
    """COCO, AIC and MPII one after the other for training, COCO for evaluation (ViTPose+).

    Args:
        folders: of the three below `root`, where they are not called coco, aic and mpii.
    """
    where = {name: root / (folders or {}).get(name, name) for name in ("coco", "aic", "mpii")}
    splits = read_coco(where["coco"], size, boxes, jitter=jitter, seed=seed)
    parts = [
        splits,
        _aic_train(where["aic"], size, jitter, seed),
        _mpii_train(_mpii_folder(where["mpii"])),
    ]
    if lacking := [name for name, part in zip(where, parts, strict=True) if "train" not in part]:
        raise HapError(f"no annotations for training in {', '.join(str(where[name]) for name in lacking)}")
    return {**splits, "train": MixedRecords([part["train"] for part in parts])}


def _mpii_people(folder: Path, split: str, people: Any, truth: MpiiTruth | None = None) -> PoseRecords:
    """In the order of the file, nobody left out. Joints are read for training alone."""
    file = folder / f"annotations/mpii_{split}.json"
    if not isinstance(people, list) or not people or not all(isinstance(p, dict) for p in people):
        raise HapError(f"{file} is no list of people")
    needed = ("image", "center", "scale", *(("joints", "joints_vis") if truth is None else ()))
    if wrong := [f"person {i}: no {key}" for i, p in enumerate(people) for key in needed if key not in p]:
        raise HapError(f"{file}: {len(wrong):,} fields are missing{first_lines(wrong)}")
    files = tuple(dict.fromkeys(person["image"] for person in people))
    check_images(file, folder / "images", files)
    place = {name: i for i, name in enumerate(files)}
    center = np.array([person["center"] for person in people], np.float64)
    scale = np.array([person["scale"] for person in people], np.float64)
    known = center[:, 0] != -1  # 1-based, like everything in MPII
    center[:, 1] += np.where(known, 15 * scale, 0)
    padded = np.where(known, 1.25, 1) * scale
    center -= 1
    joints = np.zeros((len(people), 16, 3), np.float32)
    if truth is None:
        try:
            joints[..., :2] = np.array([person["joints"] for person in people], np.float64) - 1
            joints[..., 2] = [person["joints_vis"] for person in people]
        except (TypeError, ValueError) as error:
            raise HapError(f"{file}: joints are not 16 times x, y with a visibility each: {error}") from None
        joints[..., :2] *= joints[..., 2:] > 0
    side = PIXELS * scale
    box = np.column_stack([center - side[:, None] / 2, side, side])
    return PoseRecords(
        root=folder / "images",
        files=files,
        sizes=np.zeros((len(files), 2), int),
        image=np.array([place[person["image"]] for person in people]),
        ids=list(range(len(people))),
        box=box.astype(np.float32),
        center=center.astype(np.float32),
        scale=np.column_stack([padded, padded]).astype(np.float32),
        score=np.ones(len(people), np.float32),
        joints=joints,
        skeleton=MPII,
        truth=truth,
        protocol=f"{file.name}, {len(files):,} images, annotated centers and scales of {len(people):,} people",
    )


def _mpii_truth(path: Path, people: Sequence[Mapping[str, Any]]) -> MpiiTruth:
    """Raises HapError where the file is of other people, or of the same in another order."""
    if not path.is_file():
        raise HapError(
            f"no truth of the validation people: {path} (the `gt_valid.mat` of other projects); the test split has "
            "no public one"
        )
    found = read_mat(path)
    if missing := [key for key in ("pos_gt_src", "jnt_missing", "headboxes_src") if key not in found]:
        raise HapError(f"{path} has no {', '.join(missing)}")
    names = found.get("dataset_joints")
    if names is not None and " ".join(map(str, np.ravel(names))) != MPII_MAT:
        raise HapError(f"{path}: its joints are not {MPII_MAT}")
    joints = np.moveaxis(np.asarray(found["pos_gt_src"], np.float64), -1, 0)  # (N, 16, 2)
    labelled = np.moveaxis(np.asarray(found["jnt_missing"]) == 0, -1, 0)
    corners = np.moveaxis(np.asarray(found["headboxes_src"], np.float64), -1, 0)  # (N, 2, 2)
    if len(joints) != len(people):
        raise HapError(
            f"{path} has {len(joints):,} people, mpii_val.json {len(people):,}: person n is the same in both"
        )
    for i, person in enumerate(people):
        apart = np.abs(np.array(person.get("joints", joints[i])) - joints[i])[labelled[i]]
        if apart.max(initial=0) > 1:
            raise HapError(
                f"{path}: person {i} has other joints than in mpii_val.json, up to {apart.max():.0f} pixels away: "
                "person n has to be the same in both"
            )
    return MpiiTruth(MPII, joints, labelled, 0.6 * np.linalg.norm(corners[:, 1] - corners[:, 0], axis=1))


def _aic_annotation(root: Path, split: str) -> tuple[Annotation, Path] | None:
    """The annotation of a split, and the folder of its images."""
    name, date, images_date = AIC_FOLDERS[split]
    named = [root / f"ai_challenger_keypoint_{name}_{d}" for d in (date, images_date)]
    folder = next(filter(os.path.isdir, named), root)
    images = folder / f"keypoint_{name}_images_{images_date}"
    places = [root / "annotations", folder, root]
    for kind, file in (("json", f"aic_{split}.json"), ("raw", f"keypoint_{name}_annotations_{date}.json")):
        for place in places:
            if (path := place / file).is_file():
                annotation = read_annotation(path, AIC) if kind == "json" else raw_aic(path, images)
                check_images(path, images, annotation.files)
                return annotation, images
    return None


def _no_aic(root: Path, split: str) -> str:
    name, date, _ = AIC_FOLDERS[split]
    return (
        f"{root}: no aic_{split}.json and no keypoint_{name}_annotations_{date}.json in annotations/, "
        f"ai_challenger_keypoint_{name}_{date}/ or the folder itself"
    )


def raw_aic(path: Path, images: Path) -> Annotation:
    """A raw file of AI Challenger: corners become x, y, w, h, its 1 visible, 2 hidden, 3 absent COCO's 2, 1, 0. Sizes
    of the images are read from their headers."""
    content = read_json(path)
    keys = ("image_id", "human_annotations", "keypoint_annotations")
    if not isinstance(content, list) or not all(
        isinstance(e, dict) and all(k in e for k in keys) for e in content
    ):
        raise HapError(f"{path} is no list of images, each with {', '.join(keys)}")
    files = tuple(f"{entry['image_id']}.jpg" for entry in content)
    check_images(path, images, files)
    image: list[int] = []
    corners, joints = [], []
    for i, entry in enumerate(content):
        boxes, points = entry["human_annotations"], entry["keypoint_annotations"]
        for human in sorted(boxes, key=lambda name: (len(name), name)):  # human2 before human10
            if human not in points or len(points[human]) != 42 or len(boxes[human]) != 4:
                raise HapError(
                    f"{path}: {entry['image_id']}, {human}: 4 numbers of a box and 42 of joints are needed"
                )
            image.append(i)
            corners.append(boxes[human])
            joints.append(points[human])
    box = np.array(corners, np.float64).reshape(-1, 4)
    box[:, 2:] -= box[:, :2]
    points = np.array(joints, np.float64).reshape(-1, 14, 3)
    if not np.isin(points[..., 2], (1, 2, 3)).all():
        raise HapError(f"{path}: joints are visible (1), hidden (2) or absent (3)")
    points[..., 2] = 3 - points[..., 2]
    return Annotation(
        file=path,
        image_ids=tuple(range(1, len(files) + 1)),
        files=files,
        sizes=np.array([_size(images / name) for name in files]),
        image=np.array(image),
        person_ids=tuple(range(1, len(image) + 1)),
        box=box,
        area=np.full(len(box), np.nan),
        crowd=np.zeros(len(box), bool),
        joints=points,
        skeleton=AIC,
    )


def _size(path: Path) -> tuple[int, int]:
    """Width and height; 0, 0 of what is no image, which is met again when it is read."""
    try:
        height, width = image_size(read_file(path), upright=True)
    except (BadSample, OSError):
        return 0, 0
    return width, height


def _compare(title: str, counts: Mapping[str, tuple[int, int]]) -> None:
    """Say whether these are the published data."""
    if other := [f"{n:,} {what} (published: {p:,})" for what, (n, p) in counts.items() if n != p]:
        log.warning("%s differs from the published set: %s", title, "; ".join(other))
    else:
        log.info("%s: as many %s as published", title, " and ".join(counts))
