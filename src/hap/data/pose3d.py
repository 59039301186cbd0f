"""3D pose data: people in pictures with joints in 2D and 3D and, where there are any, the parameters of a body.

A split is one object of columns, like that of 2D pose. Metres everywhere, coordinates of the camera (x right, y down,
z forward); joints are the 30 of the body (`hap.body.joints.SMPL30`), whatever the data set calls its own.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hap.data.people import People, PersonRecord


@dataclass(frozen=True)
class Kind:
    """What a data set knows of its people.

    Attributes:
        name: of the data set.
        has_3d: whether its joints are in 3D.
        checked: joints (of the 30) by which a fit is compared with these; a fit that is far off is not trained on.
        exact: whether the body is the truth, so that the joints are its own.
        from_joints: whether crops are made around the joints of the input, not around boxes.
        absolute_fit: whether the official code trains on its fits with a mistake (trap of MPII).
    """

    name: str
    has_3d: bool = False
    checked: tuple[int, ...] = ()
    exact: bool = False
    from_joints: bool = False
    absolute_fit: bool = False


@dataclass(frozen=True, eq=False)
class BodyRecords(People):
    """The people N of one data set.

    Attributes:
        root: folder of the images.
        files: paths of the images below `root` (I).
        sizes: int64 (I, 2), width and height by the annotations; 0, 0 where they do not say.
        image: int64 (N,), each person's place in `files`.
        ids: of the annotations (N).
        kind: of the data set.
        box: float32 (N, 4), tight, x, y, w, h in pixels.
        joints: float32 (N, 30, 3): x, y in pixels from 0, and 1 there, 0 not. Of the evaluation: those of the input.
        joints3d: float32 (N, 30, 4): x, y, z relative to the data set's pelvis, and 1 there, 0 not.
        camera: float32 (N, 4), focal lengths and principal point fx, fy, cx, cy in pixels.
        pose: float32 (N, 72), axis-angle vectors, the root's in the frame of the camera.
        betas: float32 (N, 10).
        trans: float32 (N, 3), in the frame of the camera.
        fitted: bool (N,), whether the three above are known; else they are 0.
        gender: int64 (N,), of the body that they are of, a place in `hap.body.arrays.GENDERS`.
        near: int64 (N + 1,), where each person's neighbours begin in `near_joints`.
        near_joints: float32 (M, 17, 3), COCO's joints of people who overlap: x, y in pixels, and 1 labelled, 0 not.
        sequence: name of each person's video and actor, to tabulate scores (N); empty where there are none.
        protocol: which data these are, as a table of results names them.
    """

    root: Path
    files: Sequence[str]
    sizes: np.ndarray
    image: np.ndarray
    ids: Sequence[int | str]
    kind: Kind
    box: np.ndarray
    joints: np.ndarray
    joints3d: np.ndarray
    camera: np.ndarray
    pose: np.ndarray
    betas: np.ndarray
    trans: np.ndarray
    fitted: np.ndarray
    gender: np.ndarray
    near: np.ndarray
    near_joints: np.ndarray
    sequence: Sequence[str] = ()
    protocol: str = field(default="", compare=False)

    def __getitem__(self, index: int) -> "BodyRecord":  # type: ignore[override]
        return BodyRecord(self, range(len(self))[index])

    def checksums(self) -> dict[str, Any]:
        """What tells these people from others of the same names."""
        columns = (self.box, self.joints, self.joints3d, self.pose, self.betas, self.trans)
        return {
            "people": f"{zlib.crc32(b''.join(np.ascontiguousarray(c).tobytes() for c in columns)):08x}",
        }


class BodyRecord(PersonRecord):
    """One person in a picture; pixels as they are stored, as the official code reads them."""

    __slots__ = ()

    def annotations(self) -> dict[str, Any]:
        """Its row of the columns `box`, `joints`, `joints3d`, `camera`, `pose`, `betas`, `trans`, `fitted`, `gender`;
        `near` (P, 17, 3); `kind`."""
        people, row = self.people, self.row
        columns = ("box", "joints", "joints3d", "camera", "pose", "betas", "trans", "fitted", "gender")
        near = people.near_joints[people.near[row] : people.near[row + 1]]
        return {name: getattr(people, name)[row] for name in columns} | {"near": near, "kind": people.kind}
