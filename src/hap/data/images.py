"""Images of one's own, without annotations: what `hap predict` reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hap.errors import HapError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


@dataclass(frozen=True)
class ImageRecord:
    """One image file of a folder that the user gave as `part` (input, query or gallery)."""

    folder: Path
    file: str  # path within the folder
    part: str

    @property
    def name(self) -> str:
        return str(self.folder / self.file)

    def encoded(self) -> bytes:
        return (self.folder / self.file).read_bytes()

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
        files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        files = [file for file in files if not file.name.startswith(".")]
        if not files:
            raise HapError(f"{part}: no images ({', '.join(sorted(SUFFIXES))}) in {folder}")
        records += [ImageRecord(folder, str(file), part) for file in files]
    return records
