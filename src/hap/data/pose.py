"""2D pose data: people in pictures, each with a region to crop and, where they are labelled, joints."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hap.data.people import People, PeopleInARow, PersonRecord
from hap.pose.skeletons import Skeleton, of_names
from hap.pose.truth import Truth, arranged


@dataclass(frozen=True, eq=False)
class PoseRecords(People):
    """The people N of one split.

    Attributes:
        root: folder of the images.
        files: paths of the images below `root` (I).
        sizes: int64 (I, 2), width and height by the annotations; 0, 0 where they do not say.
        image: int64 (N,), each person's place in `files`.
        ids: of the annotations, or the places in the file of detections (N).
        box: float32 (N, 4), x, y, w, h in pixels, as it was cropped.
        center: float32 (N, 2), of the region to crop, in pixels.
        scale: float32 (N, 2), its width and height in units of 200 px, margin included.
        score: float32 (N,), of the box: the detector's; 1 of a true one.
        joints: float32 (N, K, 3): x, y in pixels from 0, and 1 labelled, 0 not.
        skeleton: names and pairs of the joints.
        truth: what predictions for this split are scored against; None where it is for training alone.
        source: which of several data sets of one model this is.
        protocol: which data and boxes these are, as a table of results names them.
    """

    root: Path
    files: Sequence[str]
    sizes: np.ndarray
    image: np.ndarray
    ids: Sequence[int | str]
    box: np.ndarray
    center: np.ndarray
    scale: np.ndarray
    score: np.ndarray
    joints: np.ndarray
    skeleton: Skeleton
    truth: Truth | None = None
    source: int = 0
    protocol: str = field(default="", compare=False)

    def __getitem__(self, index: int) -> "PoseRecord":  # type: ignore[override]
        return PoseRecord(self, range(len(self))[index])

    def checksums(self) -> dict[str, Any]:
        """What tells these people from others of the same names."""
        columns = (self.center, self.scale, self.joints)
        return {
            "joints": len(self.skeleton.joints),
            "names_of_joints": f"{zlib.crc32(chr(0).join(self.skeleton.joints).encode()):08x}",
            "people": f"{zlib.crc32(b''.join(np.ascontiguousarray(c).tobytes() for c in columns)):08x}",
        }

    def arranged(self, joints: Sequence[str]) -> "PoseRecords":
        """The same people with the joints in the order of a model's.

        Raises:
            HapError: names the joints that only one side has.
        """
        index = of_names(joints, name="the model").mapped(self.skeleton.joints, str(self.root))
        if (index == np.arange(len(index))).all():
            return self
        truth = None if self.truth is None else arranged(self.truth, index.tolist())
        skeleton = self.skeleton.arranged(index.tolist())
        return replace(self, joints=self.joints[:, index], skeleton=skeleton, truth=truth)


class PoseRecord(PersonRecord):
    """One person in a picture."""

    __slots__ = ()

    upright: ClassVar[bool] = True  # as the official code reads pictures, and annotators saw them

    def annotations(self) -> dict[str, Any]:
        """`center` (2,), `scale` (2,), `joints` (K, 3), see `PoseRecords`; `skeleton`; `source`."""
        columns = {name: getattr(self.people, name)[self.row] for name in ("center", "scale", "joints")}
        return columns | {"skeleton": self.people.skeleton, "source": self.people.source}


class MixedRecords(PeopleInARow):
    """People of several data sets in a row, the first of which names the joints."""

    def __init__(self, parts: Sequence[PoseRecords]):
        super().__init__({source: replace(part, source=source) for source, part in enumerate(parts)})
        self.skeleton = parts[0].skeleton
