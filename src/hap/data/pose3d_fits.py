"""Sets of people in 2D whose bodies NeuralAnnot has fitted: COCO and MPII."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hap.body.joints import COCO, MPII, to_smpl30, with_middle
from hap.data.files import check_images, locate, read_json
from hap.data.pose3d import BodyRecords, Kind
from hap.data.pose3d_files import (
    Listing,
    check_units,
    compare,
    field,
    fits,
    has_crop,
    neighbours,
    numbers,
    read_listing,
    records,
    to_coco,
)


def read_coco3d(root: Path) -> BodyRecords:
    """People of COCO train2017 who are no crowd and have a labelled joint, with fits of NeuralAnnot.

    `annotations/person_keypoints_train2017.json`, `annotations/MSCOCO_train_SMPL_NeuralAnnot.json`, and the images in
    `images/train2017` or `train2017`. The middle of the hips is added as their pelvis.

    Raises:
        HapError: files or images are missing, or do not belong together.
    """
    file = "annotations/person_keypoints_train2017.json"
    folder = locate(root, [file], "COCO's annotations of people, keypoints of 2017")
    listing = read_listing(folder / file)
    crowd = np.array([bool(person.get("iscrowd")) for person in listing.people], bool)
    joints = _keypoints(listing, len(COCO))
    keep = ~crowd & (joints[..., 2] > 0).any(1)
    listing, joints = listing.only(keep), joints[keep]
    images = next(
        (p for p in (folder / "images/train2017", folder / "train2017") if os.path.isdir(p)), folder
    )
    names = (*COCO, "Pelvis")
    joints = with_middle(joints, COCO.index("L_Hip"), COCO.index("R_Hip"))
    people = _with_fits(
        Kind("coco"),
        images,
        listing,
        joints,
        names,
        folder / "annotations/MSCOCO_train_SMPL_NeuralAnnot.json",
    )
    compare("COCO train2017", len(people), 149_813)
    return people


def read_mpii3d(root: Path) -> BodyRecords:
    """MPII in the files of 3DMPPE, with fits of NeuralAnnot, which the official code trains on with a mistake.

    `annotations/train.json`, `annotations/MPII_train_SMPL_NeuralAnnot.json`, and `images/` beside `annotations/`.

    Raises:
        HapError: files or images are missing, or do not belong together.
    """
    fit = "annotations/MPII_train_SMPL_NeuralAnnot.json"
    folder = locate(root, [fit], "fits of NeuralAnnot, and annotations/train.json as 3DMPPE has prepared it")
    listing = read_listing(folder / "annotations/train.json")
    joints = _keypoints(listing, len(MPII))
    people = _with_fits(Kind("mpii", absolute_fit=True), folder, listing, joints, MPII, folder / fit)
    compare("MPII train", len(people), 29_000, about=True)
    return people


def _keypoints(listing: Listing, count: int) -> np.ndarray:
    """x, y and 1 labelled, 0 not: (N, count, 3)."""
    joints = listing.of_people("keypoints", 3 * count).reshape(-1, count, 3)
    there = joints[..., 2:] > 0
    return np.concatenate([joints[..., :2] * there, there], axis=2)


def _with_fits(
    kind: Kind, images: Path, listing: Listing, joints: np.ndarray, names: Sequence[str], fit: Path
) -> BodyRecords:
    """Those people who can be cropped. Where nobody has fitted a body the camera is one of a usual angle of view."""
    box = listing.of_people("bbox", 4)
    rows = has_crop(box, listing.sizes()[listing.image])
    listing, box, joints = listing.only(rows), box[rows], joints[rows]
    content = read_json(fit)
    found = [field(content, str(person)) for person in listing.ids]
    fitted = fits(
        [None if entry is None else field(entry, "smpl_param") or {} for entry in found], fit, listing.names
    )
    near, others = neighbours(box, listing.image, np.arange(len(box)))
    people = records(
        kind,
        images,
        listing,
        f"{listing.file.name}, {len(box):,} people, {fitted['fitted'].sum():,} with fits of NeuralAnnot",
        box=box,
        joints=to_smpl30(joints, names),
        camera=_cameras(listing, found, fit),
        near=near,
        near_joints=to_coco(joints, names)[others],
        **fitted,
    )
    check_units(people, fit)
    check_images(listing.file, images, people.files)
    return people


def _cameras(listing: Listing, found: Sequence[Any], file: Path) -> np.ndarray:
    """fx, fy, cx, cy in pixels (N, 4)."""
    sizes = listing.sizes()[listing.image].astype(float)
    cameras = np.concatenate([np.linalg.norm(sizes, axis=1)[:, None].repeat(2, axis=1), sizes / 2], axis=1)
    rows = [i for i, entry in enumerate(found) if entry is not None]
    names = [listing.names[i] for i in rows]
    for key, columns in (("focal", slice(0, 2)), ("princpt", slice(2, 4))):
        values = [field(found[i], "cam_param", key) for i in rows]
        cameras[rows, columns] = numbers(values, 2, f"cam_param {key}", file, names)
    return cameras
