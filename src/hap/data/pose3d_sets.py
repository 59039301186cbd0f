"""The published sets of people in 3D: Human3.6M and MuCo-3DHP, and the four training sets of 3D pose together."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from hap.body.arrays import GENDERS, Bodies
from hap.body.joints import H36M, MUCO, MUCO_CHECKED, places, to_smpl30
from hap.body.world import into_camera
from hap.data.files import check_images, first_lines, locate, read_json
from hap.data.people import PeopleInARow
from hap.data.pose3d import BodyRecords, Kind
from hap.data.pose3d_3dpw import read_3dpw
from hap.data.pose3d_files import (
    SHARE,
    Listing,
    check_units,
    compare,
    extent,
    field,
    fits,
    has_crop,
    neighbours,
    numbers,
    overlap,
    project,
    read_listing,
    records,
    to_coco,
)
from hap.data.pose3d_fits import read_coco3d, read_mpii3d
from hap.data.pose3d_own import read_bedlam
from hap.errors import HapError, printable

log = logging.getLogger(__name__)

SUBJECTS = (1, 5, 6, 7, 8)  # of Human3.6M, to train on
STRIDE = 5  # of their 50 frames a second every fifth
MM = 1000.0
IN_PLACE = 0.2  # overlap that joints have at least with the box that is given for them
MUCO_FILE = "MuCo-3DHP.json"


def read_h36m(root: Path, bodies: Bodies) -> BodyRecords:
    """Human3.6M in the files of 3DMPPE, with fits of SMPLify-X: every fifth frame of five subjects and four cameras.

    `annotations/Human36M_subject{1,5,6,7,8}_{data,camera,joint_3d,smpl_param}.json` and `images/`. Fits and joints are
    of the world there, joints and cameras in millimetres; here all is metres of the camera.

    Args:
        bodies: the neutral one says about which point a fit turns.

    Raises:
        HapError: files, images, cameras or joints are missing, or of another unit.
    """
    folder = locate(root, ["annotations/Human36M_subject1_data.json"], "Human3.6M as 3DMPPE has prepared it")
    annotations = folder / "annotations"
    kinds = ("data", "camera", "joint_3d", "smpl_param")
    paths = [[annotations / f"Human36M_subject{s}_{kind}.json" for kind in kinds] for s in SUBJECTS]
    if missing := [path.name for of_subject in paths for path in of_subject if not path.is_file()]:
        raise HapError(f"{annotations} lacks {len(missing)} of {4 * len(paths)} files{first_lines(missing)}")
    people = _joined([_subject(folder / "images", bodies, *of_subject) for of_subject in paths])
    check_units(people, annotations)
    check_images(annotations, people.root, people.files)
    compare("Human3.6M", len(people), 312_188)
    return replace(people, protocol=f"Human3.6M, 5 subjects, every {STRIDE}th frame, {len(people):,} people")


def _subject(images: Path, bodies: Bodies, data: Path, camera: Path, joint: Path, fit: Path) -> BodyRecords:
    listing = read_listing(data)
    frames = listing.of_images("frame_idx", 1)[listing.image, 0]
    listing = listing.only(frames % STRIDE == 0)
    box = listing.of_people("bbox", 4)
    rows = has_crop(box, listing.sizes()[listing.image])
    listing, box = listing.only(rows), box[rows]

    of_people = [listing.images[i] for i in listing.image.tolist()]
    names = [printable(image["file_name"]) for image in of_people]
    keys = [[str(image.get(f"{key}_idx")) for key in ("action", "subaction", "frame")] for image in of_people]
    content = read_json(joint)
    world = numbers([field(content, *key) for key in keys], 3 * len(H36M), "17 joints", joint, names)
    world = world.reshape(-1, len(H36M), 3)
    cameras = _cameras(camera, [str(image.get("cam_idx")) for image in of_people])
    _check_cameras(camera, world, cameras, box, names)
    points = _in_camera(world, cameras)

    content = read_json(fit)
    fitted = fits([field(content, *key) for key in keys], fit, names)
    mine = fitted["fitted"]
    root = bodies.root(np.full(mine.sum(), GENDERS.index("neutral")), fitted["betas"][mine])
    fitted["pose"][mine, :3], fitted["trans"][mine] = into_camera(
        fitted["pose"][mine, :3],
        fitted["trans"][mine],
        root,
        cameras.rotation[mine],
        cameras.translation[mine] / MM,
    )
    return records(
        Kind("h36m", has_3d=True, checked=tuple(places(H36M).tolist())),
        images,
        listing,
        box=box,
        joints=to_smpl30(project(points, cameras.inside), H36M),
        joints3d=_from_pelvis(points, H36M),
        camera=cameras.inside,
        **fitted,
    )


def _from_pelvis(points: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Joints (N, K, 3) in mm -> the column `joints3d` of records."""
    metres = (points - points[:, [names.index("Pelvis")]]) / MM
    return to_smpl30(np.concatenate([metres, np.ones_like(metres[..., :1])], axis=2), names)


class _Cameras(NamedTuple):
    """Of N people: `rotation` (N, 3, 3) and `translation` (N, 3) in mm, world to camera; `inside` (N, 4), fx, fy, cx,
    cy in pixels."""

    rotation: np.ndarray
    translation: np.ndarray
    inside: np.ndarray


def _cameras(file: Path, wanted: Sequence[str]) -> _Cameras:
    content = read_json(file)
    known = sorted(set(wanted))
    names = [f"camera {name}" for name in known]
    table = {
        key: numbers([field(content, name, key) for name in known], n, key, file, names)
        for key, n in {"R": 9, "t": 3, "f": 2, "c": 2}.items()
    }
    row = [known.index(name) for name in wanted]
    inside = np.concatenate([table["f"], table["c"]], axis=1)
    return _Cameras(table["R"].reshape(-1, 3, 3)[row], table["t"][row], inside[row])


def _in_camera(world: np.ndarray, cameras: _Cameras) -> np.ndarray:
    return world @ cameras.rotation.transpose(0, 2, 1) + cameras.translation[:, None]


def _check_cameras(
    file: Path, world: np.ndarray, cameras: _Cameras, box: np.ndarray, names: Sequence[str]
) -> None:
    """Raises HapError where the joints of more than a tenth of the people lie elsewhere than their boxes."""

    def outside(factor: float) -> np.ndarray:
        points = _in_camera(world, cameras._replace(translation=factor * cameras.translation))
        return overlap(extent(project(points, cameras.inside)), box) < IN_PLACE

    wrong = outside(1)
    if wrong.sum() <= SHARE * len(wrong):
        return
    named = first_lines([names[i] for i in np.flatnonzero(wrong).tolist()])
    advice = "are camera and joints of one subject?"
    for factor in (1000, 0.001):
        if outside(factor).mean() <= SHARE:
            advice = f"t has to be in millimetres, times {factor:g} it fits"
    raise HapError(
        f"{file}: the joints of {wrong.sum():,} of {len(wrong):,} people are not in their boxes: {advice}{named}"
    )


def _joined(parts: Sequence[BodyRecords]) -> BodyRecords:
    """People of several files as one set."""
    starts = np.cumsum([0, *(len(part.files) for part in parts)])
    names = ("sizes", "box", "joints", "joints3d", "camera", "pose", "betas", "trans", "fitted", "gender")
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in names
    }
    return replace(
        parts[0],
        files=[file for part in parts for file in part.files],
        ids=[person for part in parts for person in part.ids],
        image=np.concatenate([part.image + start for part, start in zip(parts, starts, strict=False)]),
        near=np.zeros(sum(map(len, parts)) + 1, int),
        **columns,
    )


def read_muco(root: Path) -> BodyRecords:
    """MuCo-3DHP in the files of 3DMPPE, with fits: of each picture the person nearest to the camera; the others whose
    boxes overlap with theirs are neighbours.

    `MuCo-3DHP.json` (joints in millimetres), `smpl_param.json`, and the images beside them.

    Raises:
        HapError: files or images are missing, or of another unit.
    """
    folder = locate(root, [MUCO_FILE], "MuCo-3DHP as 3DMPPE has prepared it")
    listing = read_listing(folder / MUCO_FILE)
    fit = folder / "smpl_param.json"
    content = read_json(fit)
    box = listing.of_people("bbox", 4)
    points = listing.of_people("keypoints_cam", 3 * len(MUCO)).reshape(-1, len(MUCO), 3)
    order = np.lexsort((points[:, MUCO.index("Pelvis"), 2], listing.image))  # stable: of equals the first
    rows = order[np.unique(listing.image, return_index=True)[1]]
    rows = rows[has_crop(box[rows], listing.sizes()[listing.image[rows]])]
    near, others = neighbours(box, listing.image, rows)
    joints_near = to_coco(_image_joints(listing.only(others)), MUCO)

    listing = listing.only(rows)
    inside = np.concatenate([listing.of_images("f", 2), listing.of_images("c", 2)], axis=1)
    people = records(
        Kind("muco", has_3d=True, checked=tuple(places(MUCO_CHECKED).tolist())),
        folder,
        listing,
        f"MuCo-3DHP, the nearest person of each picture, {len(rows):,} people",
        box=box[rows],
        joints=to_smpl30(_image_joints(listing), MUCO),
        joints3d=_from_pelvis(points[rows], MUCO),
        camera=inside[listing.image],
        near=near,
        near_joints=joints_near,
        **fits([field(content, str(person)) for person in listing.ids], fit, listing.names),
    )
    check_units(people, fit)
    check_images(listing.file, folder, people.files)
    compare("MuCo-3DHP", len(people), 400_000, about=True)
    return people


def _image_joints(listing: Listing) -> np.ndarray:
    """x, y and 1 of MuCo's joints (N, 21, 3)."""
    xy = listing.of_people("keypoints_img", 2 * len(MUCO)).reshape(-1, len(MUCO), 2)
    return np.concatenate([xy, np.ones_like(xy[..., :1])], axis=2)


def read_pose3d_multi(
    root: Path,
    bodies: Bodies,
    sets: Sequence[str] = ("h36m", "muco", "coco", "mpii"),
    pw3d: str = "PW3D",
    gt_body: Literal["gendered", "neutral"] = "gendered",
) -> dict[str, PeopleInARow | BodyRecords]:
    """Training on Human3.6M, MuCo, COCO and MPII, evaluation on the test split of 3DPW, in the tree of 3DCrowdNet;
    or training also or only on BEDLAM.

    Args:
        root: folder of all; each set is found in it by its files.
        bodies: fits and predictions are of the neutral one, the truth of 3DPW is of the others.
        sets: which to train on. None of them: there is only the evaluation.
        pw3d: folder of 3DPW below `root`.
        gt_body: see `read_3dpw`.

    Raises:
        HapError: there is no such set; and what the readers of the sets say.
    """
    readers: dict[str, Callable[[Path], BodyRecords]] = {
        "h36m": partial(read_h36m, bodies=bodies),
        "muco": read_muco,
        "coco": read_coco3d,
        "mpii": read_mpii3d,
        "bedlam": partial(read_bedlam, bodies=bodies),
    }
    if unknown := [printable(str(name)) for name in sets if name not in readers]:
        raise HapError(f"data.reader.sets: {', '.join(unknown)}: there are {', '.join(readers)}")
    splits: dict[str, PeopleInARow | BodyRecords] = {**read_3dpw(root / pw3d, bodies, gt_body=gt_body)}
    if sets:
        try:
            splits["train"] = PeopleInARow({name: readers[name](root) for name in sets})
        except HapError as error:
            raise HapError(f"{error} (an evaluation needs none of these sets: data.reader.sets=[])") from None
    return splits
