"""Named files, wherever they lie: in a folder, in tar archives, in an LMDB.

A store lists names and reads one by its name, from any number of processes: nothing is open when it is copied
to a worker, and no file position is shared.
"""

import os
import tarfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hap.errors import HapError


class Store(Protocol):
    def names(self, *suffixes: str) -> list[str]:
        """The names that end in one of the lower-case `suffixes`, in any case, sorted."""

    def read(self, name: str) -> bytes:
        """The content of one file. Raises OSError."""


class RandomFile:
    """A file that is read at any position. Opened where it is used; pickles as its path."""

    def __init__(self, path: Path):
        self.path = path

    @cached_property
    def _descriptor(self) -> int:
        return os.open(self.path, os.O_RDONLY)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    def __reduce__(self) -> tuple[Any, ...]:
        return RandomFile, (self.path,)

    def __del__(self) -> None:
        if "_descriptor" in self.__dict__:
            os.close(self._descriptor)


def map_array(path: Path) -> np.ndarray:
    """A .npy file as a memory map: processes share its pages. Raises HapError if it is damaged."""
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # numpy parses the header as Python: a damaged one fails in many ways
        raise HapError(f"{path} is damaged, or not a .npy file of numbers: {error!r}") from None
    return mapped.view(np.ndarray)  # indexing a np.memmap is several times slower


class FolderStore:
    """The files of a folder and the folders in it, named by their relative paths."""

    def __init__(self, folder: Path):
        self.folder = folder

    def names(self, *suffixes: str) -> list[str]:
        found, folders = [], [""]
        while folders:
            prefix = folders.pop()
            with os.scandir(self.folder / prefix) as entries:
                for entry in entries:  # one readdir per folder, no stat per file
                    if entry.name.lower().endswith(suffixes):
                        found.append(prefix + entry.name)
                    elif entry.is_dir():
                        folders.append(f"{prefix}{entry.name}/")
        return sorted(found)

    def read(self, name: str) -> bytes:
        with open(f"{self.folder}/{name}", "rb") as file:
            return file.read()


class _Archive:
    """A store with one index of everything; subclasses fill it from their entries' names."""

    index: dict[str, Any]

    def names(self, *suffixes: str) -> list[str]:
        return sorted(name for name in self.index if name.lower().endswith(suffixes))

    @staticmethod
    def name_of(entry: str) -> str:
        """Entries may have the official folders in front: "x/LUPerson-data/a/b.jpg" and "a/b.jpg" are one."""
        for folder in ("LUPerson-data/", "LUPerson-pose/"):
            entry = entry.rpartition(folder)[2]
        return entry.removeprefix("./")


class TarStore(_Archive):
    """The members of uncompressed tar archives. Raises HapError for one that is compressed or cut off."""

    def __init__(self, paths: list[Path]):
        self.files = [RandomFile(path) for path in paths]
        self.index = {}
        for number, path in enumerate(paths):
            for member in _members(path):
                self.index[self.name_of(member.name)] = (number, member.offset_data, member.size)

    def read(self, name: str) -> bytes:
        number, offset, size = self.index[name]
        return self.files[number].read(offset, size)


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else it keeps every one
                if member.isfile():
                    yield member
    except tarfile.TarError as error:
        raise HapError(f"{path} is not a complete, uncompressed tar archive: {error}") from None


class LmdbStore(_Archive):
    """The values of an LMDB. A key without a suffix, as in the LUPerson authors' own, names a JPEG."""

    def __init__(self, folder: Path):
        self.folder = folder
        with self._transaction as transaction:
            keys = [os.fsdecode(bytes(key)) for key in transaction.cursor().iternext(values=False)]
        self.index = {self.name_of(key if "." in key else f"{key}.jpg"): key for key in keys}
        del self._transaction  # an environment does not survive a fork

    @cached_property
    def _transaction(self) -> Any:
        try:
            import lmdb
        except ModuleNotFoundError:
            raise HapError(f"reading {self.folder} needs the package lmdb: pip install '.[lmdb]'") from None
        try:
            return lmdb.open(str(self.folder), readonly=True, lock=False, readahead=False).begin(buffers=True)
        except lmdb.Error as error:
            raise HapError(f"{self.folder} is not a readable LMDB: {error}") from None

    def read(self, name: str) -> bytes:
        return bytes(self._transaction.get(os.fsencode(self.index[name])))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_transaction"}
