"""People in pictures, whatever is known of them: what the records of 2D and of 3D pose share.

A split is one object of columns, not a list of 150,000 people. It is a sequence of records like any other.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hap.data.decoding import Encoded
from hap.data.files import read_file
from hap.errors import BadSample


class People(Sequence[Any]):
    """The people N of one split; a subclass is a dataclass that has these columns, and more.

    Attributes:
        root: folder of the images.
        files: paths of the images below `root` (I).
        sizes: int64 (I, 2), width and height by the annotations; 0, 0 where they do not say.
        image: int64 (N,), each person's place in `files`.
        ids: of the annotations (N).
    """

    root: Path
    files: Sequence[str]
    sizes: np.ndarray
    image: np.ndarray
    ids: Sequence[int | str]

    def __len__(self) -> int:
        return len(self.image)

    @property
    def names(self) -> Iterator[str]:
        """Of the records, without making them."""
        return (
            f"{self.files[image]}, person {person}"
            for image, person in zip(self.image, self.ids, strict=True)
        )

    @property
    def num_images(self) -> int:
        """Pictures that have people."""
        return len(np.unique(self.image))

    @abstractmethod
    def checksums(self) -> dict[str, Any]:
        """What tells these people from others of the same names."""


@dataclass(frozen=True, slots=True)
class PersonRecord(Encoded):
    """One person in a picture."""

    people: Any = field(repr=False)  # the `People`
    row: int

    @property
    def file(self) -> str:
        return self.people.files[self.people.image[self.row]]

    @property
    def path(self) -> Path:
        return self.people.root / self.file

    @property
    def name(self) -> str:
        return f"{self.file}, person {self.people.ids[self.row]}"

    def encoded(self) -> bytes:
        return read_file(self.path)

    def pixels(self) -> np.ndarray:
        """The whole picture (H, W, 3). Raises BadSample where it has another size than its annotation says: then
        boxes and joints would lie elsewhere."""
        image = Encoded.pixels(self)
        size = image.shape[1], image.shape[0]
        said = tuple(self.people.sizes[self.people.image[self.row]].tolist())
        if said in ((0, 0), size):
            return image
        ways = ("turned upright by its EXIF orientation", "annotated as it is stored")
        if not self.upright:
            ways = ("read as it is stored", "annotated upright, as its EXIF orientation says")
        hint = f": it is {ways[0]}, and was {ways[1]}" if size == said[::-1] else ""
        raise BadSample(f"{size[0]} x {size[1]} pixels, its annotation says {said[0]} x {said[1]}{hint}")


class PeopleInARow(Sequence[Any]):
    """People of several data sets, one after the other.

    Attributes:
        parts: the data sets, by name, in their order.
        starts: int64 (P + 1,), where each begins.
    """

    def __init__(self, parts: Mapping[Any, People]):
        self.parts = dict(parts)
        self.starts = np.cumsum([0, *(len(part) for part in self.parts.values())])
        self._rows = list(self.parts.values())

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: Any) -> Any:
        index = range(len(self))[index]
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self._rows[part][index - int(self.starts[part])]

    @property
    def names(self) -> Iterator[str]:
        return (name for part in self._rows for name in part.names)

    @property
    def num_images(self) -> int:
        return sum(part.num_images for part in self._rows)

    def checksums(self) -> dict[str, Any]:
        return {
            f"{key}_{name}": v for name, part in self.parts.items() for key, v in part.checksums().items()
        }
