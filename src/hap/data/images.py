"""Images of one's own, without annotations: what `hap predict` reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hap.data.files import IMAGE_SUFFIXES, list_files, read_file
from hap.errors import HapError


@dataclass(frozen=True)
class ImageRecord:
    """One image file of a folder that the user gave as `part` (input, query or gallery)."""

    folder: Path
    file: str  # path within the folder
    part: str

    upright: ClassVar[bool] = True  # photographs, seen as a viewer shows them

    @property
    def name(self) -> str:
        return str(self.folder / self.file)

    def encoded(self) -> bytes:
        return read_file(self.folder / self.file)

    def annotations(self) -> dict[str, Any]:
        """Nothing is known: all 17 keypoints missing; `is_query` says from which folder it is."""
        return {"keypoints": np.zeros((17, 3), np.float32), "is_query": self.part == "query"}


def read_images(folders: Mapping[str, Path]) -> list[ImageRecord]:
    """All images below each folder, sorted by path, in the order of the folders.

    Args:
        folders: part -> folder.

    Raises:
        HapError: a folder is not there or holds no image.
    """
    records = []
    for part, folder in folders.items():
        if not folder.is_dir():
            raise HapError(f"{part}: folder not found: {folder}")
        files = list_files(folder)
        if not files:
            raise HapError(f"{part}: no images ({', '.join(IMAGE_SUFFIXES)}) in {folder}")
        records += [ImageRecord(folder, file, part) for file in files]
    return records
