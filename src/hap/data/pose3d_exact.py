"""People whose bodies are known exactly: arrays of .npz files -> records, with the joints of the bodies.

Legend: N people, of SMPL's body; metres and radians in the frame of the camera (x right, y down, z forward), pixels
from 0.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hap.body.arrays import GENDERS, PARENTS, Bodies
from hap.body.camera import project
from hap.body.crops import crop_box, joints_box
from hap.body.joints import SMPL30, to_smpl30
from hap.body.rotations import to_matrix
from hap.data.files import check_images, first_lines, relative
from hap.data.pose3d import BodyRecords, Kind
from hap.data.pose3d_files import neighbours, to_coco
from hap.errors import HapError, printable

# Columns of N people, as of `BodyRecords`: `file`, `id`, `gender`, `size` of the picture, `camera`, `pose`, `betas`,
# `trans`; and if there are any, key points `found` (N, 30, 3), and `box`.
People = dict[str, np.ndarray]

JOINTS = SMPL30[: len(PARENTS)]  # the model's own
FEW = 0.1  # share of the people who may be out of place
NEAR, FAR = 6000.0, 6.0  # pixels of a metre where a person is: at 30 cm and at 300 m with a usual lens


def load(
    path: Path, needed: Sequence[str], optional: Sequence[str], others: bool = False
) -> dict[str, np.ndarray]:
    """Arrays of an .npz file, by name.

    Args:
        others: whether there may be more in it, which are then not read.

    Raises:
        HapError: it is damaged, lacks one, has more, or one holds objects of Python, which are not loaded.
    """
    known = (*needed, *optional)
    arrays, name = {}, "it"
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            there = set(file.files)
            for name in sorted(there.intersection(known)):
                arrays[name] = file[name]
    except Exception as error:  # a damaged archive fails in any way
        raise HapError(f"{path} is no .npz of plain arrays, {name} cannot be read: {error}") from None
    if missing := [name for name in needed if name not in there]:
        raise HapError(f"{path} has no array {', '.join(missing)}")
    if not others and (more := sorted(there.difference(known))):
        raise HapError(
            f"{path} has arrays that nothing reads: {', '.join(map(printable, more))}; known are {', '.join(known)}"
        )
    return arrays


def numbers(path: Path, name: str, array: np.ndarray, shape: tuple[int, ...], hint: str = "") -> np.ndarray:
    """An array of that shape as float64. Raises HapError, with the hint for another shape, or the first rows that are
    not finite."""
    if array.dtype.kind not in "fiu":
        raise HapError(f"{path}: {name} is of {array.dtype}, not of numbers")
    if array.shape != shape:
        raise HapError(f"{path}: {name} is {array.shape}, not {shape}{hint and ': '}{hint}")
    wrong = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))
    if len(wrong):
        rows = [f"row {i}" for i in wrong.tolist()]
        raise HapError(f"{path}: {name} of {len(wrong):,} of {len(array):,} is not finite{first_lines(rows)}")
    return array.astype(np.float64)


def text(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """An array of text (N,). Raises HapError."""
    if array.dtype.kind != "U" or array.ndim != 1 or not len(array):
        raise HapError(
            f"{path}: {name} is {array.shape} of {array.dtype}, not (N,) of text: np.array(names, str)"
        )
    return array


def files(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """Paths (N,) in their one spelling. Raises HapError for those that lead out of their folder."""
    given, inverse = np.unique(text(path, name, array), return_inverse=True)
    cleaned = [relative(file.replace("\\", "/")) for file in given.tolist()]
    if wrong := [
        printable(file) for file, clean in zip(given.tolist(), cleaned, strict=True) if clean is None
    ]:
        raise HapError(
            f"{path}: {name} of {len(wrong):,} leads out of the folder of images{first_lines(wrong)}"
        )
    return np.array(cleaned)[inverse]


def placed(path: Path, people: People, bodies: Bodies, off: float) -> People:
    """The people who can be seen, with their `joints` (N, 30, 3): those that were found, or the 24 of their bodies; and
    the `box` of the latter where there is none.

    Args:
        off: share of a box's longer side by which the two may be apart.

    Raises:
        HapError: bodies are out of scale, behind the camera, or not where their key points are.
    """
    points, camera = _joints(people, bodies), people["camera"]
    _check_distance(path, points, camera)
    ahead = points[..., 2:] > 0
    pixels = project(torch.from_numpy(points), torch.from_numpy(camera)[:, None]).numpy()
    own = to_smpl30(np.concatenate([np.where(ahead, pixels, 0), ahead], axis=2), JOINTS)
    joints, box = people.pop("found", own), people.pop("box", joints_box(own))
    sizes = np.where(people["size"] > 0, people["size"], np.inf)
    seen = ahead.any((1, 2)) & (box[:, 2:] > 0).all(1) & np.isfinite(crop_box(box, sizes)).all(1)
    _check_apart(path, own[seen], joints[seen], box[seen], off)
    return {name: column[seen] for name, column in (people | {"joints": joints, "box": box}).items()}


def _joints(people: People, bodies: Bodies) -> np.ndarray:
    """Where the joints of the bodies are, (N, 24, 3), without their meshes."""
    rest = np.empty((len(people["pose"]), len(PARENTS), 3))
    for number in np.unique(people["gender"]).tolist():
        mine = people["gender"] == number
        mean, moved = bodies.of(number).rest_joints
        rest[mine] = mean + np.einsum("nb,jcb->njc", people["betas"][mine], moved)
    turns = torch.from_numpy(people["pose"]).unflatten(1, (-1, 3))
    turned, points = [to_matrix(turns[:, 0]).numpy()], [rest[:, 0] + people["trans"]]
    for joint, parent in list(enumerate(PARENTS))[1:]:
        bone = (rest[:, joint] - rest[:, parent])[..., None]
        points.append(points[parent] + (turned[parent] @ bone)[..., 0])
        turned.append(turned[parent] @ to_matrix(turns[:, joint]).numpy())
    return np.stack(points, axis=1)


def _check_distance(path: Path, points: np.ndarray, camera: np.ndarray) -> None:
    depth = np.median(points[..., 2], axis=1)
    if (behind := depth <= 0).mean() > FEW:
        raise HapError(
            f"{path}: {behind.sum():,} of {len(depth):,} people are behind the camera: pose and trans have to be in "
            "its frame, x right, y down, z forward, trans in metres"
        )
    metre = camera[:, :2].mean(1) / np.where(behind, np.nan, depth)
    off = (metre < FAR) | (metre > NEAR)
    if off.mean() > FEW:
        raise HapError(
            f"{path}: {off.sum():,} of {len(depth):,} people are {np.median(depth[off]):.3g} m away, where a metre has "
            f"{np.median(metre[off]):.3g} pixels: trans has to be in metres (a factor of 1000?), focal in pixels"
        )


def _check_apart(path: Path, own: np.ndarray, joints: np.ndarray, box: np.ndarray, off: float) -> None:
    both = (own[..., 2] > 0) & (joints[..., 2] > 0)
    some = both.any(1)
    apart = np.linalg.norm(own[..., :2] - joints[..., :2], axis=2)[some]
    share = (apart * both[some]).sum(1) / both[some].sum(1) / box[some, 2:].max(1)
    if len(share) and (middle := np.median(share)) > off:
        raise HapError(
            f"{path}: bodies are not where their key points are, by {middle:.0%} of their boxes: are pose and trans in "
            "the frame of the camera, y down, and focal and center those of these pictures?"
        )


def records(kind: Kind, path: Path, images: Path, parts: Sequence[People]) -> BodyRecords:
    """The people of several files in a row, by image.

    Args:
        path: where they are from, for messages.

    Raises:
        HapError: nobody is left, or images are missing.
    """
    people = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    count = len(people["id"])
    if not count:
        raise HapError(f"{path}: nobody is in front of the camera and in the picture")
    names, first, image = np.unique(people["file"], return_index=True, return_inverse=True)
    check_images(path, images, names.tolist())
    order = np.argsort(image, kind="stable")
    sizes = people["size"][first]
    people, image = {name: column[order] for name, column in people.items()}, image[order]
    near, others = neighbours(people["box"], image, np.arange(count))
    float32 = ("box", "joints", "camera", "pose", "betas", "trans")
    columns: dict[str, Any] = {name: people[name].astype(np.float32) for name in float32}
    whose = " and ".join(GENDERS[number] for number in np.unique(people["gender"]))
    return BodyRecords(
        root=images,
        files=names.tolist(),
        sizes=sizes,
        image=image,
        ids=people["id"].tolist(),
        kind=kind,
        joints3d=np.zeros((count, len(SMPL30), 4), np.float32),
        fitted=np.ones(count, bool),
        gender=people["gender"],
        near=near,
        near_joints=to_coco(columns["joints"], SMPL30)[others],
        protocol=f"{path.name}: {count:,} people in {len(names):,} images, {whose} bodies",
        **columns,
    )
