"""2D pose data: people in pictures, each with a region to crop and, where they are labelled, joints.

A split is one object of columns, not a list of 150,000 people. It is a sequence of records like any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hap.data.decoding import Encoded
from hap.data.files import read_file
from hap.pose.skeletons import Skeleton, of_names
from hap.pose.truth import Truth, arranged


@dataclass(frozen=True, eq=False)
class PoseRecords(Sequence["PoseRecord"]):
    """The people N of one split.

    Attributes:
        root: folder of the images.
        files: paths of the images below `root` (I).
        sizes: int32 (I, 2), width and height by the annotations; 0, 0 where they do not say.
        image: int64 (N,), each person's place in `files`.
        ids: int64 (N,), of the annotation, or the place in the file of detections.
        box: float32 (N, 4), x, y, w, h in pixels, as it was cropped.
        center: float32 (N, 2), of the region to crop, in pixels.
        scale: float32 (N, 2), its width and height in units of 200 px, margin included.
        score: float32 (N,), of the box: the detector's; 1 of a true one.
        joints: float32 (N, K, 3): x, y in pixels from 0, and 1 labelled, 0 not.
        skeleton: names and pairs of the joints.
        truth: what predictions for this split are scored against; None in training.
        source: which of several data sets of one model this is.
        protocol: which data and boxes these are, as a table of results names them.
    """

    root: Path
    files: Sequence[str]
    sizes: np.ndarray
    image: np.ndarray
    ids: np.ndarray
    box: np.ndarray
    center: np.ndarray
    scale: np.ndarray
    score: np.ndarray
    joints: np.ndarray
    skeleton: Skeleton
    truth: Truth | None = None
    source: int = 0
    protocol: str = field(default="", compare=False)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            columns = ("image", "ids", "box", "center", "scale", "score", "joints")
            return replace(self, **{name: getattr(self, name)[index] for name in columns})
        return PoseRecord(self, range(len(self))[index])

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


@dataclass(frozen=True, slots=True)
class PoseRecord(Encoded):
    """One person in a picture."""

    people: PoseRecords = field(repr=False)
    row: int

    @property
    def file(self) -> str:
        return self.people.files[self.people.image[self.row]]

    @property
    def name(self) -> str:
        return f"{self.file}, person {self.people.ids[self.row]}"

    def encoded(self) -> bytes:
        return read_file(self.people.root / self.file)

    def annotations(self) -> dict[str, Any]:
        """`center` (2,), `scale` (2,), `joints` (K, 3), see `PoseRecords`; `skeleton`; `source`."""
        columns = {name: getattr(self.people, name)[self.row] for name in ("center", "scale", "joints")}
        return columns | {"skeleton": self.people.skeleton, "source": self.people.source}
