"""Packed images and body points: what `hap pack` writes, read at random by any number of processes.

    manifest.json    the source, the options, and of each shard the rows, bytes and checksums, with a checksum of
                     all this; written last
    00000.tar        LUPerson-data/x.jpg, LUPerson-pose/x.npy, ... in the order of the source's list
    00000.npy        its index: a structured array, one row per image (see INDEX)

Plain tar archives: `tar xf` gives the folders back. An image and its body points, (17, 3) float32, lie side
by side, so a sample is one read. Reads go through `pread`: a memory map makes the kernel read half a megabyte
for each image that is not cached (measured in docs/data.md).
"""

import itertools
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import numpy as np

from hap.data.decoding import Encoded
from hap.data.stores import RandomFile, map_array
from hap.errors import BadSample, HapError, printable

MANIFEST, SKIPPED, PLAN, FORMAT = "manifest.json", "skipped.tsv", "notes/plan.json", "hap-shards-1"
# What the manifest must say, and what of each shard.
HEAD = {"listed": int, "ranked": bool, "shards": list}
SHARD = {"rows": int, "file": str, "bytes": int, "last_position": int, "sha256": str, "index_sha256": str}
_AGAIN = "delete it and run the same hap pack again: only its shard is made"
POINTS = 17 * 3 * 4  # bytes of the points, which end the sample

# position: place in the source's list; offset: of the image in the archive; size: of the image; length: from
# the image's first byte to the points' last; crc: CRC-32 of these bytes.
INDEX = [("position", "<i8"), ("offset", "<i8"), ("size", "<u4"), ("length", "<u4"), ("crc", "<u4")]


def index_type(name_bytes: int) -> np.dtype:
    """The type of an index row whose longest name has `name_bytes` bytes."""
    return np.dtype([*INDEX, ("name", f"S{max(1, name_bytes)}")])


def is_packed(root: Path) -> bool:
    """Whether `hap pack` has written here, finished or not."""
    return (root / MANIFEST).is_file() or (root / PLAN).is_file()


def first_entries(listed: int, ratio: float, ranked: bool, root: Path) -> int:
    """How many of `listed` entries cfs_ratio takes, counted as the official code does. Raises HapError."""
    if ratio == 1:
        return listed
    if not ranked:
        raise HapError(f"cfs_ratio={ratio:g} needs cfs_list.pkl, which {root} does not have: set it to 1")
    if ratio <= 0 or (ratio > 1 and ratio != int(ratio)):
        raise HapError(f"cfs_ratio={ratio:g}: give a share below 1, a whole number of images, or 1 for all")
    return int(listed * ratio) if ratio < 1 else min(int(ratio), listed)


@dataclass(frozen=True)
class PackedPerson(Encoded):
    """One image of a shard; image and points come with one read, kept while the record lives."""

    name: str
    file: RandomFile = field(repr=False)
    offset: int
    size: int
    length: int
    crc: int

    @cached_property
    def _sample(self) -> bytes:
        sample = self.file.read(self.offset, self.length)
        if zlib.crc32(sample) != self.crc:
            raise BadSample(f"damaged in {self.file.path}, see `hap pack --verify`")
        return sample

    def encoded(self) -> bytes:
        return self._sample[: self.size]

    def annotations(self) -> dict[str, Any]:
        """`keypoints`: (17, 3) float32, x and y in pixels of the stored image, score."""
        return {"keypoints": np.frombuffer(self._sample[-POINTS:], "<f4").reshape(17, 3).copy()}


class _Shard:
    def __init__(self, path: Path, rows: int):
        self.file, self.rows = RandomFile(path), rows

    @cached_property
    def index(self) -> np.ndarray:
        path = self.file.path.with_suffix(".npy")
        try:
            index = map_array(path)
        except FileNotFoundError:
            raise HapError(f"{path} is missing: {_AGAIN}") from None
        if index.dtype.descr[:-1] != INDEX or len(index) != self.rows:
            raise HapError(
                f"{path} is damaged: {len(index)} rows of {index.dtype.descr}, not {self.rows} of {INDEX}; {_AGAIN}"
            )
        return index

    def __reduce__(self) -> tuple[Any, ...]:
        return _Shard, (self.file.path, self.rows)


class Shards(Sequence[PackedPerson]):
    """The first `length` records of all shards, made when asked for; `rows` are the images of each shard."""

    def __init__(self, shards: Sequence[_Shard], rows: Sequence[int], length: int):
        self.shards, self.length = shards, length
        self.starts = np.cumsum([0, *rows])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        index = range(self.length)[index]
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        shard = self.shards[number]
        _, *place, name = shard.index[index - self.starts[number]].item()
        return PackedPerson(os.fsdecode(name), shard.file, *place)

    @property
    def names(self) -> Iterator[str]:
        """Of all records, without making them."""
        stored = (name for shard in self.shards for name in shard.index["name"].tolist())
        return (os.fsdecode(name) for name in itertools.islice(stored, self.length))


def read_shards(root: Path, cfs_ratio: float = 1.0) -> Shards:
    """The records of a packed folder, in the order of the list it was packed from.

    `cfs_ratio` counts entries of that list, packed or not, so it picks the same images as in the source.
    Raises HapError if a shard is missing or has another size.
    """
    manifest = read_manifest(root)
    wrong = [entry["file"] for entry in manifest["shards"] if _size(root / entry["file"]) != entry["bytes"]]
    wrong += [name for name in _indices(manifest) if _size(root / name) <= 0]
    if wrong:
        raise HapError(f"{root}: missing or incomplete: {', '.join(wrong)}; copy again, or {_AGAIN}")
    shards = [_Shard(root / entry["file"], entry["rows"]) for entry in manifest["shards"]]
    rows = [entry["rows"] for entry in manifest["shards"]]
    limit = first_entries(manifest["listed"], cfs_ratio, manifest["ranked"], root)
    length = 0
    for shard, count, entry in zip(shards, rows, manifest["shards"], strict=True):
        whole = entry["last_position"] < limit
        length += count if whole else int(np.searchsorted(shard.index["position"], limit))
        if not whole:
            break
    return Shards(shards, rows, length)


def read_manifest(root: Path) -> dict[str, Any]:
    """The checked content of manifest.json. Raises HapError if it is missing, damaged or edited."""
    path = root / MANIFEST
    if not path.is_file():
        raise HapError(
            f"{root} has no {MANIFEST}: `hap pack` has not finished there; run the same command again"
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        if (found := manifest["format"]) != FORMAT:
            raise HapError(f"{path} has format {found!r}, not {FORMAT!r}: pack again")
        stored = manifest.pop("sha256", None)  # none in older ones
        damage = None if stored in (None, checksum(manifest)) else "its checksum differs"
        for entry in [manifest, *manifest["shards"]]:
            for key, kind in (HEAD if entry is manifest else SHARD).items():
                if not isinstance(entry[key], kind) or (key == "file" and "/" in entry[key]):
                    damage = f"{key} is {entry[key]!r}"
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        damage = repr(error)
    if damage:
        raise HapError(f"{path} is damaged or was edited: {damage}; run the same hap pack again")
    return manifest


def checksum(manifest: dict[str, Any]) -> str:
    """Of all the manifest says, however it is laid out."""
    return sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def verify(root: Path) -> list[str]:
    """Compare every file of a packed folder with its checksum; what is wrong, one line for each file."""
    manifest = read_manifest(root)
    sums = {entry["file"]: entry["sha256"] for entry in manifest["shards"]}
    sums |= dict(
        zip(_indices(manifest), (entry["index_sha256"] for entry in manifest["shards"]), strict=True)
    )
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda name: _sha256(root / name), sums)
    wrong = [
        f"{name}: {'damaged' if sha256 else 'missing'}"
        for name, sha256 in zip(sums, found, strict=True)
        if sha256 != sums[name]
    ]
    known = {*sums, MANIFEST, SKIPPED, "notes"}
    return wrong + sorted(
        f"{printable(path.name)}: not of this packing" for path in root.iterdir() if path.name not in known
    )


def _indices(manifest: dict[str, Any]) -> list[str]:
    return [entry["file"].replace(".tar", ".npy") for entry in manifest["shards"]]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _sha256(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
