"""Cut the people out of a data set with COCO-style key points, as a pre-training set in LUPerson's layout.

    python scripts/coco_to_luperson.py --annotations person_keypoints_val2017.json --images val2017 --out DIR

Joints are matched by name (AI Challenger's 14, for one); what COCO's 17 points have and the file has not is
marked missing, (-1, -1, 0). The score is 1 for a visible joint, 0.5 for a hidden one.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

PAIRS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
COCO = ["nose", *(f"{side}_{part}" for part in PAIRS for side in ("left", "right"))]


def joint_names(content: dict, path: Path) -> list[str]:
    """The names of the file's joints, in its order."""
    count = len(content["annotations"][0]["keypoints"]) // 3
    names = content["categories"][0].get("keypoints", [])
    if len(names) != count:
        raise SystemExit(f"{path}: {count} joints per person, categories[0]['keypoints'] names {len(names)}")
    return [name.lower().replace(" ", "_") for name in names]


def to_coco(keypoints: list[float], names: list[str]) -> np.ndarray:
    """COCO-style x, y, v triplets -> (17, 3): x, y in pixels of the photograph, score."""
    given = np.float32(keypoints).reshape(-1, 3)
    points = np.tile(np.float32([-1, -1, 0]), (17, 1))
    for name, (x, y, visible) in zip(names, given, strict=True):
        if visible > 0 and name in COCO:
            points[COCO.index(name)] = x, y, visible / 2
    return points


def crop_box(box: list[float], margin: float, width: int, height: int) -> tuple[int, int, int, int]:
    """x, y, w, h -> left, top, right, bottom, grown by the share `margin` per side, within the picture."""
    x, y, w, h = box
    left, top = np.floor([x - margin * w, y - margin * h]).clip(0).astype(int)
    right, bottom = np.ceil([x + w + margin * w, y + h + margin * h]).astype(int).clip(max=(width, height))
    return left, top, right, bottom


def convert(annotations: Path, images: Path, out: Path, min_height: int = 96, margin: float = 0.05) -> int:
    """Write one crop and one pose per person with a labelled joint; the number of crops."""
    content = json.loads(annotations.read_text())
    names = joint_names(content, annotations)
    people = defaultdict(list)
    for person in content["annotations"]:
        if not person.get("iscrowd") and any(person["keypoints"][2::3]):
            people[person["image_id"]].append(person)
    for folder in ("LUPerson-data", "LUPerson-pose"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    written = 0
    for entry in track(content["images"], "cutting"):
        path = images / entry["file_name"]
        photograph = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)  # (H, W, 3)
        if photograph is None:
            raise SystemExit(f"cannot read {path}")
        height, width = photograph.shape[:2]
        for person in people[entry["id"]]:
            left, top, right, bottom = crop_box(person["bbox"], margin, width, height)
            if bottom - top < min_height or right <= left:
                continue
            points = to_coco(person["keypoints"], names)
            points[points[:, 2] > 0, :2] -= (left, top)
            stem = f"{path.stem}_{person['id']}"
            crop = photograph[top:bottom, left:right]
            cv2.imwrite(str(out / "LUPerson-data" / f"{stem}.jpg"), crop, [cv2.IMWRITE_JPEG_QUALITY, 95])
            pose = np.empty((1, 1), object)  # the official form
            pose[0, 0] = {"keypoints": points}
            np.save(out / "LUPerson-pose" / f"{stem}.npy", pose, allow_pickle=True)
            written += 1
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotations", type=Path, required=True, help="the .json file")
    parser.add_argument("--images", type=Path, required=True, help="the folder of photographs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--min-height", type=int, default=96, help="leave out lower crops, in pixels")
    parser.add_argument("--margin", type=float, default=0.05, help="grow the box by this share on each side")
    args = parser.parse_args()
    written = convert(args.annotations, args.images, args.out, args.min_height, args.margin)
    print(f"{written} people in {args.out}")


if __name__ == "__main__":
    main()
