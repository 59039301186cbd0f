"""Pedestrian attribute data: images of one person each, with a row of labels.

A split is one object: names and one matrix of labels, not a list of 90,000 rows. It is a sequence of records like
any other; the names of the attributes, in the order of the columns, are those of the model's outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, overload

import numpy as np

from hap.data.files import read_file
from hap.errors import HapError

UNKNOWN = -1  # a label that leaves loss, ratio and metric


@dataclass(frozen=True, slots=True)
class AttributeRecord:
    """One image of one person.

    Attributes:
        root: folder of the images.
        name: path of the image below `root`.
        labels: int8 (A,): 1 has the attribute, 0 has not, `UNKNOWN`.
    """

    root: Path
    name: str
    labels: np.ndarray

    upright: ClassVar[bool] = False  # as the official code reads them: pixels as they are stored

    def encoded(self) -> bytes:
        return read_file(self.root / self.name)

    def annotations(self) -> dict[str, Any]:
        return {"labels": self.labels}


class AttributeRecords(Sequence[AttributeRecord]):
    """The images of one split.

    Args:
        root: folder of the images.
        names: their paths below `root` (N).
        labels: int8 (N, A), see `AttributeRecord`.
        attributes: names of the columns (A), all different.
    """

    def __init__(self, root: Path, names: Sequence[str], labels: np.ndarray, attributes: Sequence[str]):
        assert labels.shape == (len(names), len(attributes))
        self.root, self.names, self.attributes = root, list(names), tuple(attributes)
        self.labels = labels.astype(np.int8)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> AttributeRecord: ...
    @overload
    def __getitem__(self, index: slice) -> "AttributeRecords": ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return AttributeRecords(self.root, self.names[index], self.labels[index], self.attributes)
        return AttributeRecord(self.root, self.names[index], self.labels[index])

    def arranged(self, attributes: Sequence[str]) -> "AttributeRecords":
        """The same images with the columns in this order.

        Raises:
            HapError: names the attributes that only one side has.
        """
        if missing := [name for name in attributes if name not in self.attributes]:
            raise HapError(f"{self.root}: no labels for {', '.join(missing)}, which the model puts out")
        if new := [name for name in self.attributes if name not in attributes]:
            raise HapError(f"{self.root}: the model does not put out {', '.join(new)}, which the data label")
        columns = [self.attributes.index(name) for name in attributes]
        return AttributeRecords(self.root, self.names, self.labels[:, columns], attributes)


Splits = dict[str, AttributeRecords]
