"""Features of a gallery, kept in a file and searched again."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hap.data.sources import ImageRecord
from hap.errors import HapError

SUFFIX = ".npz"


class Kept(Sequence[ImageRecord]):
    """Images whose features are known.

    Attributes:
        features: float32 (N, D).
        model: checksum of the weights that they are of.
    """

    def __init__(self, file: Path, names: np.ndarray, paths: np.ndarray, features: np.ndarray, model: str):
        self.file, self.names, self.paths, self.features, self.model = file, names, paths, features, model

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        return ImageRecord(str(self.names[index]), Path(str(self.paths[index])), "gallery")


def write_kept(path: Path, records: Sequence[Any], features: np.ndarray, model: str) -> None:
    """`names` and `paths` of the images (N), their `features` (N, D), and the checksum of the `model`."""
    names = np.array([record.name for record in records])
    paths = np.array([str(record.path.absolute()) for record in records])
    np.savez(path, names=names, paths=paths, features=features.astype(np.float32), model=np.array(model))


def read_kept(path: Path) -> Kept:
    """Raises HapError where it is no such file."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            names, paths, features = file["names"], file["paths"], file["features"]
            model = str(file["model"])
    # A single array has no parts (TypeError), an empty file none to read (EOFError).
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise HapError(f"gallery: {path} holds no features as hap predict keeps them: {error}") from None
    fits = (
        features.ndim == 2 and names.ndim == paths.ndim == 1 and len(names) == len(paths) == len(features) > 0
    )
    if not fits or features.dtype.kind != "f" or not np.isfinite(features).all():
        raise HapError(f"gallery: {path} holds no finite features (N, D) of N named images")
    return Kept(path, names, paths, features.astype(np.float32), model)
