"""People with joints of one's own: any joint set, in COCO's format as annotation tools export it."""

import logging
import posixpath
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hap.data.files import first_lines, list_files, relative
from hap.data.pose import PoseRecords
from hap.data.pose_crops import of_people
from hap.data.pose_files import Annotation, read_annotation, with_boxes
from hap.errors import HapError, printable
from hap.pose.skeletons import get_skeleton

log = logging.getLogger(__name__)

# Where tools put the annotations of a split: {} is its name.
PLACES = (
    "annotations/{}.json",
    "annotations/person_keypoints_{}.json",
    "{}.json",
    "{}/_annotations.coco.json",
    "{}/annotations.json",
    "{}/labels.json",
)
OTHER_NAMES = {"val": ("val", "valid", "validation"), "train": ("train",), "test": ("test",)}


def read_coco_style(
    root: Path,
    size: Sequence[int],
    annotations: Mapping[str, str] | None = None,
    skeleton: str | Mapping[str, Any] | None = None,
    flip_pairs: Sequence[Sequence[str | int]] | None = None,
    sigmas: Sequence[float] | None = None,
    upper_body: Sequence[str | int] = (),
    category: str | int | None = None,
    jitter: float = 0.3,
    seed: int = 0,
) -> dict[str, PoseRecords]:
    """Splits `train`, `val` and, if there is one, `test`, of files below `root`. Images are found below it by the path
    that the annotations give, or by the name of the file where only one has it.

    Args:
        size: height and width of the input, whose aspect the regions have.
        annotations: the file of each split below `root`, where it is at none of the usual places.
        skeleton: joints by name (coco, mpii, aic) or {joints: [...], ...}, to which those of the files are arranged.
            null: the joints of the training file.
        flip_pairs: pairs of joints that a mirror swaps, where their names do not tell.
        sigmas: tolerance of each joint, for the object keypoint similarity; without there is no AP, but PCK.
        upper_body: joints of the upper half, for the half-body augmentation.
        category: of people, by name or id, where several have joints.
        jitter: share of the training boxes whose center is moved, once for all epochs.
        seed: of that.

    Raises:
        HapError: files or images are missing, or what they say makes no sense.
    """
    if skeleton is not None and (flip_pairs is not None or sigmas is not None or upper_body):
        raise HapError("flip_pairs, sigmas and upper_body go into data.reader.skeleton={joints: [...], ...}")
    joints = None if skeleton is None else get_skeleton(skeleton)
    options = {"flip_pairs": flip_pairs, "sigmas": sigmas, "upper_body": upper_body}
    there = list_files(root)
    splits: dict[str, PoseRecords] = {}
    for split in ("train", "val", "test"):
        file = _file(root, split, annotations)
        if file is None:
            continue
        annotation = read_annotation(file, joints, category, options)
        joints = annotation.skeleton
        annotation = with_boxes(replace(annotation, files=_located(root, annotation, there, split)))
        if split == "train":
            splits[split] = of_people(annotation, root, size, jitter=jitter, seed=seed)
        else:
            splits[split] = of_people(annotation, root, size, truth=annotation.truth())
    if missing := {"train", "val"} - splits.keys():
        raise HapError(
            f"{root} has no annotations of {' and '.join(sorted(missing))}: {PLACES[0].format('train')}, "
            f"{PLACES[3].format('train')}, ..., or data.reader.annotations={{train: FILE, val: FILE}}"
        )
    return splits


def _file(root: Path, split: str, given: Mapping[str, str] | None) -> Path | None:
    if given is not None:
        if split not in given:
            return None
        if not (root / given[split]).is_file():
            raise HapError(
                f"{root} has no file {given[split]}, which data.reader.annotations names for {split}"
            )
        return root / given[split]
    names = [place.format(name) for name in OTHER_NAMES[split] for place in PLACES]
    return next((root / name for name in names if (root / name).is_file()), None)


def _located(root: Path, annotation: Annotation, there: Sequence[str], split: str) -> tuple[str, ...]:
    """The images of an annotation, as paths below the root."""
    known, by_name = set(there), defaultdict(list)
    for path in there:
        by_name[posixpath.basename(path)].append(path)
    beside = annotation.file.parent.relative_to(root).as_posix()
    folders = ("", beside, "images", split, f"{split}/images", f"images/{split}")
    found: list[str] = []
    missing: list[str] = []
    for name in (name.replace("\\", "/") for name in annotation.files):
        paths = [relative(posixpath.join(folder, name)) for folder in folders]
        alike = by_name[posixpath.basename(name)]
        fitting = [path for path in paths if path in known] or (alike if len(alike) == 1 else [])
        if fitting and fitting[0]:
            found.append(fitting[0])
        else:
            missing.append(printable(name) + (f" ({len(alike)} files have that name)" if alike else ""))
    if missing:
        raise HapError(
            f"{root} lacks {len(missing):,} of the {len(annotation.files):,} images that {annotation.file} names"
            f"{first_lines(missing)}"
        )
    return tuple(found)
