"""Writers of 2D pose data: COCO, MPII, AI Challenger, and the three together, with joints that are true of the drawing.

A quarter of the pictures is for evaluation. Everybody of whom enough is seen is labelled.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from hap.errors import HapError
from hap.pose.skeletons import AIC, COCO
from hap.synthetic.pictures import HEAD_TOP, NECK, PELVIS, THORAX, UPPER_NECK, Seen, draw_picture
from hap.synthetic.writing import Run, save_image, save_mat, write_json

DETECTIONS = "person_detection_results/COCO_val2017_detections_AP_H_56_person.json"
# Points of a picture's people in the order of MPII's and of AIC's joints.
MPII_POINTS = (16, 14, 12, 11, 13, 15, PELVIS, THORAX, UPPER_NECK, HEAD_TOP, 10, 8, 6, 5, 7, 9)
AIC_POINTS = (6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, HEAD_TOP, NECK)
MPII_NAMES = "rank rkne rhip lhip lkne lank pelv thor neck head rwri relb rsho lsho lelb lwri"

# Pictures are numbered from 0; a job is (file, seed, number, arguments of `draw_picture`).
_Job = tuple[Path, int, int, dict[str, Any]]


def _draw(job: _Job) -> list[Seen]:
    path, seed, number, options = job
    image, people, quality = draw_picture(seed, number, **options)
    save_image(path, image, quality)
    return people


def draw_pictures(
    names: dict[str, list[str]],
    folders: dict[str, Path],
    seed: int,
    run: Run,
    longer: int,
    **options: Any,
) -> dict[str, list[list[Seen]]]:
    """Draws the pictures of each split, with arguments of `draw_picture`; who is in each."""
    jobs: list[_Job] = []
    options["longer"] = longer
    for split, files in names.items():
        folders[split].mkdir(parents=True, exist_ok=True)
        jobs += [(folders[split] / file, seed, len(jobs) + i, options) for i, file in enumerate(files)]
    drawn = iter(run(_draw, jobs))
    return {split: [next(drawn) for _ in files] for split, files in names.items()}


def split_numbers(num_images: int) -> dict[str, range]:
    """Numbers of the pictures of each split."""
    if num_images < 4:
        raise HapError(f"num_images is {num_images}: at least 4 pictures are needed")
    return {
        "train": range(num_images - num_images // 4),
        "val": range(num_images - num_images // 4, num_images),
    }


def keypoints_of(person: Seen, points: Any) -> list[list[float]]:
    """x, y and COCO's flag of some of the points; zeros where one is outside."""
    xy, flags = person.points[list(points)].round(1), person.visibility[list(points)]
    return [[*map(float, p), int(v)] if v else [0, 0, 0] for p, v in zip(xy, flags, strict=True)]


def coco(out: Path, num_images: int, seed: int, run: Run, *, longer: int = 320) -> None:
    """COCO keypoints 2017: `annotations/person_keypoints_{train,val}2017.json`, `train2017`, `val2017`, and boxes of a
    detector of some quality in `person_detection_results`. `longer`: side of the pictures."""
    numbers = split_numbers(num_images)
    names = {split: [f"{n + 1:012d}.jpg" for n in of] for split, of in numbers.items()}
    folders = {split: out / f"{split}2017" for split in names}
    categories = [
        {
            "id": 1,
            "name": "person",
            "supercategory": "person",
            "keypoints": list(COCO.joints),
            "skeleton": [[a + 1, b + 1] for a, b in COCO.links],
        }
    ]
    detections: list[dict[str, Any]] = []
    people_so_far = 0
    for split, pictures in draw_pictures(names, folders, seed, run, longer).items():
        images, annotations = [], []
        for number, name, people in zip(numbers[split], names[split], pictures, strict=True):
            width, height = size_of(folders[split] / name)
            images.append({"id": number + 1, "file_name": name, "width": width, "height": height})
            for person in people:
                people_so_far += 1
                annotations.append(coco_person(person, number + 1, people_so_far))
            if split == "val":
                detections += _detected(people, number + 1, (width, height), seed)
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(out / f"annotations/person_keypoints_{split}2017.json", content)
    write_json(out / DETECTIONS, detections)


def size_of(path: Path) -> tuple[int, int]:
    """Width and height."""
    with Image.open(path) as image:
        return image.size


def coco_person(person: Seen, image: int, identifier: int) -> dict[str, Any]:
    crowd = not len(person.points)
    keypoints = [[0, 0, 0]] * 17 if crowd else keypoints_of(person, range(17))
    return {
        "id": identifier,
        "image_id": image,
        "category_id": 1,
        "iscrowd": int(crowd),
        "bbox": person.box.tolist(),
        "area": float(person.mask.sum()),
        "segmentation": _runs(person.mask) if crowd else _polygons(person.mask),
        "num_keypoints": sum(v > 0 for _, _, v in keypoints),
        "keypoints": [value for keypoint in keypoints for value in keypoint],
    }


def _polygons(mask: np.ndarray) -> list[list[float]]:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [contour.ravel().astype(float).tolist() for contour in contours if len(contour) > 2]


def _runs(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed run lengths: column by column, of 0 first."""
    flat = np.concatenate([[False], mask.T.ravel(), [False]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], ends, [mask.size]])).tolist()
    return {"counts": counts, "size": list(mask.shape)}


def _detected(people: list[Seen], image: int, size: tuple[int, int], seed: int) -> list[dict[str, Any]]:
    """A little off where somebody is, and unsure where nobody is."""
    rng = np.random.default_rng([seed, 47, image])
    found = []
    for person in people:
        box = person.box + rng.normal(0, 0.03, 4) * np.tile(person.box[2:], 2)
        found.append((box, 1 - rng.beta(1.2, 8)))
    for _ in range(int(rng.integers(0, 3))):
        extent = rng.uniform((0.05, 0.15), (0.3, 0.7)) * size
        found.append((np.concatenate([rng.uniform(0, size - extent), extent]), rng.beta(1.2, 8)))
    return [
        {"image_id": image, "category_id": 1, "bbox": box.round(2).tolist(), "score": round(float(score), 5)}
        for box, score in found
    ]


def mpii(out: Path, num_images: int, seed: int, run: Run, *, longer: int = 320) -> None:
    """MPII as converted: `annotations/mpii_{train,val}.json` and `mpii_gt_val.mat`, `images`; counted from 1.
    `longer`: side of the pictures."""
    names = {split: [f"{n:09d}.jpg" for n in of] for split, of in split_numbers(num_images).items()}
    folders = dict.fromkeys(names, out / "images")
    for split, pictures in draw_pictures(names, folders, seed, run, longer).items():
        found = [
            (name, person)
            for name, people in zip(names[split], pictures, strict=True)
            for person in people
            if len(person.points)
        ]
        joints = np.array([_mpii_joints(person) for _, person in found])  # (N, 16, 3), from 1
        content = [
            {
                "image": name,
                "center": (person.box[:2] + person.box[2:] / 2 + 1).round(1).tolist(),
                "scale": round(person.height / 200, 4),
                "joints": points[:, :2].tolist(),
                "joints_vis": points[:, 2].astype(int).tolist(),
            }
            for (name, person), points in zip(found, joints, strict=True)
        ]
        write_json(out / f"annotations/mpii_{split}.json", content)
    labelled = joints[..., 2] > 0  # of val, the last
    heads = np.array([_head_box(person) for _, person in found])  # (N, 2, 2)
    titles = np.empty((1, 16), object)
    titles[0] = MPII_NAMES.split()
    variables = {
        "dataset_joints": titles,
        "jnt_missing": (~labelled).T.astype(float),
        "pos_gt_src": np.moveaxis(joints[..., :2] * labelled[..., None], 0, -1),
        "headboxes_src": np.moveaxis(heads, 0, -1),
    }
    save_mat(out / "annotations/mpii_gt_val.mat", variables)


def _mpii_joints(person: Seen) -> np.ndarray:
    """(16, 3): x, y from 1 and whether it is labelled; -1, -1, 0 where it is not."""
    points = np.array(keypoints_of(person, MPII_POINTS))
    labelled = points[:, 2:] > 0
    return np.where(labelled, np.concatenate([points[:, :2] + 1, labelled], axis=1), [-1, -1, 0])


def _head_box(person: Seen) -> np.ndarray:
    """Two corners, from 1: 0.8 times the diagonal is the way from the upper neck to the top of the head."""
    neck, top = person.points[UPPER_NECK], person.points[HEAD_TOP]
    half = max(float(np.linalg.norm(top - neck)), 1.0) / 0.8 / 2 / np.sqrt(2)
    middle = (neck + top) / 2 + 1
    return np.stack([middle - half, middle + half]).round(1)


def aic(out: Path, num_images: int, seed: int, run: Run, *, longer: int = 320) -> None:
    """AI Challenger: the raw json beside the images, and `annotations/aic_{train,val}.json` in COCO's format.
    `longer`: side of the pictures."""
    numbers = split_numbers(num_images)
    names = {split: [f"{n + 1:040x}" for n in of] for split, of in numbers.items()}
    titles = {"train": ("train", "20170909", "20170902"), "val": ("validation", "20170911", "20170911")}
    roots = {
        split: out / f"ai_challenger_keypoint_{name}_{date}" for split, (name, date, _) in titles.items()
    }
    folders = {
        split: roots[split] / f"keypoint_{name}_images_{date}" for split, (name, _, date) in titles.items()
    }
    files = {split: [f"{name}.jpg" for name in of] for split, of in names.items()}
    categories = [{"id": 1, "name": "person", "keypoints": list(AIC.joints)}]
    for split, pictures in draw_pictures(files, folders, seed, run, longer).items():
        raw: list[dict[str, Any]] = []
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for name, file, people in zip(names[split], files[split], pictures, strict=True):
            width, height = size_of(folders[split] / file)
            images.append({"id": len(images) + 1, "file_name": file, "width": width, "height": height})
            people = [person for person in people if len(person.points)]
            boxes = [person.box.astype(int) for person in people]
            points = [keypoints_of(person, AIC_POINTS) for person in people]
            humans = [f"human{i + 1}" for i in range(len(people))]
            raw.append(
                {
                    "image_id": name,
                    "human_annotations": {
                        h: [*map(int, b[:2]), *map(int, b[:2] + b[2:])]
                        for h, b in zip(humans, boxes, strict=True)
                    },
                    "keypoint_annotations": {
                        h: [value for x, y, v in p for value in (x, y, 3 - v)]
                        for h, p in zip(humans, points, strict=True)
                    },
                }
            )
            annotations += [
                {
                    "id": len(annotations) + i + 1,
                    "image_id": len(images),
                    "category_id": 1,
                    "bbox": b.tolist(),
                    "num_keypoints": sum(v > 0 for _, _, v in p),
                    "keypoints": [value for keypoint in p for value in keypoint],
                }
                for i, (b, p) in enumerate(zip(boxes, points, strict=True))
            ]
        name, date, _ = titles[split]
        write_json(roots[split] / f"keypoint_{name}_annotations_{date}.json", raw)
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(out / f"annotations/aic_{split}.json", content)


def pose_multi(out: Path, num_images: int, seed: int, run: Run, *, longer: int = 320) -> None:
    """The three in folders `coco`, `aic` and `mpii`, a third of the pictures each, of other people.
    `longer`: side of the pictures."""
    for i, (name, writer) in enumerate((("coco", coco), ("aic", aic), ("mpii", mpii))):
        (out / name).mkdir()
        writer(out / name, max(num_images // 3, 4), seed + 1000 * i, run, longer=longer)
