"""Named files, wherever they lie: in a folder, in tar archives, in an LMDB.

A store lists names and reads one by its name, from any number of processes: nothing is open when it is copied
to a worker, and no file position is shared.
"""

import multiprocessing
import os
import posixpath
import tarfile
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hap.data.files import (
    HIDDEN,
    IMAGE_SUFFIXES,
    MAX_BYTES,
    LeftOut,
    is_hidden,
    list_files,
    read_file,
    relative,
)
from hap.errors import BadSample, HapError, printable

SUFFIXES = (*IMAGE_SUFFIXES, ".npy")  # of images and poses


class Store(Protocol):
    def names(self, *suffixes: str) -> list[str]:
        """The names that end in one of the lower-case `suffixes`, in any case, sorted."""

    def read(self, name: str) -> bytes:
        """The content of one file. Raises BadSample or OSError."""


class RandomFile:
    """A file that is read at any position. Opened where it is used; pickles as its path."""

    def __init__(self, path: Path):
        self.path = path

    @cached_property
    def _descriptor(self) -> int:
        return os.open(self.path, os.O_RDONLY)

    def read(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError:  # the next read opens it anew: a file system that was away forgets what was open
            self._close()
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        return RandomFile, (self.path,)

    def _close(self) -> None:
        if "_descriptor" in self.__dict__:
            with suppress(OSError):
                os.close(self.__dict__.pop("_descriptor"))

    def __del__(self) -> None:
        self._close()


def map_array(path: Path) -> np.ndarray:
    """A .npy file as a memory map: processes share its pages. Raises HapError if it is damaged."""
    try:
        mapped: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        return mapped.view(np.ndarray)  # indexing a np.memmap is several times slower
    except OSError:
        raise
    except Exception as error:  # numpy parses the header as Python: a damaged one fails in many ways
        raise HapError(f"{path} is damaged, or not a .npy file of numbers: {error!r}") from None


class FolderStore:
    """The files of a folder and the folders in it, named by their relative paths."""

    def __init__(self, folder: Path):
        self.folder, self._said = folder, False

    def names(self, *suffixes: str) -> list[str]:
        left_out = LeftOut()
        found = list_files(self.folder, SUFFIXES, left_out)
        if not self._said:
            left_out.log(self.folder)
        self._said = True  # poses may lie beside the images
        return [name for name in found if name.lower().endswith(suffixes)]

    def read(self, name: str) -> bytes:
        return read_file(f"{self.folder}/{name}")


class _Archive:
    """A store with one index of everything; subclasses fill it from their entries' names."""

    index: dict[str, Any]

    def names(self, *suffixes: str) -> list[str]:
        return sorted(name for name in self.index if name.lower().endswith(suffixes))

    def _fill(self, entries: Iterable[tuple[str, str, Any]], left_out: LeftOut, where: Path) -> None:
        """Index (name of an entry, archive, place) by the entry's one name. Raises HapError if two entries have
        one name: neither may be lost."""
        self.index = {}
        archives: dict[str, str] = {}
        twice = []
        for entry, archive, place in entries:
            path = relative(entry.lstrip("/"))
            if path is None:
                left_out.add("a name that leads out of the archive", entry)
                continue
            name = self.name_of(path)
            if any(map(is_hidden, path.split("/"))):
                left_out.add(HIDDEN, entry)
            elif not name.lower().endswith(SUFFIXES):
                left_out.add(f"not {', '.join(SUFFIXES)}", entry)
            elif name in self.index:
                twice.append(printable(f"{entry} in {archive} and {archives[name]}"))
            else:
                self.index[name] = place
                archives[name] = archive
        left_out.log(where)
        if twice:
            more = f"\n  ... and {len(twice) - 5} more" if len(twice) > 5 else ""
            raise HapError(
                f"{where}: different entries have one name; rename them:\n  " + "\n  ".join(twice[:5]) + more
            )

    @staticmethod
    def name_of(path: str) -> str:
        """Entries may have the official folders in front: "x/LUPerson-data/a/b.jpg" and "a/b.jpg" are one."""
        for folder in ("LUPerson-data/", "LUPerson-pose/"):
            path = path.rpartition(folder)[2]
        return path


class TarStore(_Archive):
    """The members of uncompressed tar archives. Raises HapError for one that is compressed or cut off, and for
    different members of one name."""

    def __init__(self, paths: list[Path]):
        self.files = [RandomFile(path) for path in paths]
        left_out = LeftOut()
        entries = (
            (name, path.name, (number, *place))
            for number, path in enumerate(paths)
            for name, place in _members(path, left_out).items()
        )
        self._fill(entries, left_out, paths[0].parent)

    def read(self, name: str) -> bytes:
        number, offset, size = self.index[name]
        if size > MAX_BYTES:
            raise BadSample(f"the file has {size:,} bytes, more than {MAX_BYTES:,}")
        return self.files[number].read(offset, size)


def _members(path: Path, left_out: LeftOut) -> dict[str, tuple[int, int]]:
    """Name -> (offset, size) of the files in an archive; links are the files that they lead to."""
    found: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else it keeps every one
                if member.isfile() and not member.issparse():
                    if member.name in found:
                        left_out.add("an older version: the archive has the name again", member.name)
                    found[member.name] = (member.offset_data, member.size)
                elif member.islnk():
                    links[posixpath.normpath(member.name)] = posixpath.normpath(member.linkname)
                elif member.issym():
                    folder = posixpath.dirname(member.name)
                    target = posixpath.normpath(posixpath.join(folder, member.linkname))
                    links[posixpath.normpath(member.name)] = target
                elif not member.isdir():
                    left_out.add("no plain file", member.name)
    except tarfile.TarError as error:
        raise HapError(f"{path} is not a complete, uncompressed tar archive: {error}") from None
    places = {posixpath.normpath(name): place for name, place in found.items()} if links else {}
    for name, target in links.items():
        for _ in range(8):  # a link may lead to a link
            if target not in places:
                target = links.get(target, target)
        if target in places:
            found[name] = places[target]
        else:
            left_out.add("a link to what the archive has not", name)
    return found


class LmdbStore(_Archive):
    """The values of an LMDB. A key without a suffix, as in the LUPerson authors' own, names a JPEG."""

    def __init__(self, folder: Path):
        self.folder = folder
        with self._transaction as transaction:
            keys = [os.fsdecode(bytes(key)) for key in transaction.cursor().iternext(values=False)]
        del self._transaction  # an environment does not survive a fork
        entries = ((key if "." in key else f"{key}.jpg", "the LMDB", key) for key in keys)
        self._fill(entries, LeftOut(), folder)

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
        value = self._transaction.get(os.fsencode(self.index[name]))
        data = None if value is None else bytes(value)
        if multiprocessing.parent_process() is None:  # workers are forked from here, where none may be open
            del value, self._transaction
        if data is None:
            raise BadSample("the LMDB has it no longer")
        return data

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_transaction"}
