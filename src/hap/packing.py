"""The body of `hap pack`: a data set of millions of small files becomes some large ones.

Shard n holds the records [n * size, (n + 1) * size) of the source, whoever writes it. It is written under
another name, renamed when complete and then noted in notes/, so a packing that was killed at any moment goes
on where it was and ends with the same bytes, and a shard that was lost or deleted is made again.
"""

import io
import json
import logging
import os
import tarfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from filelock import FileLock, Timeout
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hap.data.base import default_workers
from hap.data.decoding import decode_image
from hap.data.pretrain import IMAGES, POSES, LuPerson, look_at_points, open_luperson
from hap.data.shards import FORMAT, MANIFEST, PLAN, SHARD, SKIPPED, checksum, index_type, is_packed
from hap.errors import BadSample, HapError, printable
from hap.processes import from_workers, prepare_worker
from hap.progress import progress

log = logging.getLogger(__name__)

JPEG_QUALITY = 95  # of shrunk images
SECONDS = 0.5  # between two reports of a worker: it cannot be stopped in between
BLOCK = 512  # of a tar archive, in bytes


@dataclass(frozen=True)
class PackReport:
    """images packed, left out (named in skipped.tsv with the reason), shards, their bytes, seconds taken."""

    images: int
    skipped: int
    shards: int
    bytes: int
    seconds: float


def pack(
    root: Path,
    out: Path,
    *,
    height: int | None = None,
    shard_mb: int = 256,
    num_workers: int | None = None,
    cfs_ratio: float = 1.0,
    require_pose: bool = True,
) -> PackReport:
    """Pack the images and poses of `root` into shards under `out`; call it again to go on, or to repair.

    Images that cannot be decoded and poses that cannot be used are left out and named in skipped.tsv.

    Args:
        root: whatever `hap.data.pretrain.open_luperson` reads.
        out: a new folder, or one where the same packing was begun.
        height: shrink higher images to this height, their points with them; None keeps the original bytes.
        shard_mb: about the size of one shard in MB.
        num_workers: processes; None takes the cores of this process.
        cfs_ratio, require_pose: as for `hap.data.pretrain.read_luperson`.

    Raises HapError if `out` holds something else, is being written by another process or cannot be written, and
    if `root` goes away; what is finished stays.
    """
    start = time.perf_counter()
    if is_packed(root):
        raise HapError(f"{root} is packed already")
    if height is not None and height < 1:
        raise HapError(f"height={height}: give pixels, or null for the original images")
    records = open_luperson(root, cfs_ratio, require_pose)
    if not len(records):
        raise HapError(f"{root} has no image that can be packed")
    look_at_points(root, records)
    plan: dict[str, Any] = {
        "source": str(root.resolve()),
        "listed": records.listed,
        "ranked": records.ranked,
        "cfs_ratio": cfs_ratio,
        "require_pose": require_pose,
        "height": height,
        "records": len(records),
        "names_sha256": sha256(records.names.block.tobytes()).hexdigest(),
        "shard_size": max(1, int(shard_mb * 1e6 / _mean_bytes(records))),
    }
    numbers = range(-(-len(records) // plan["shard_size"]))
    try:
        with _claim(out):
            _begin(out, plan)
            if todo := [number for number in numbers if _note(out, number) is None]:
                if num_workers is None:
                    num_workers = default_workers(None) + 1  # no training loop needs the last core
                _write_shards(records, root, out, plan, todo, num_workers)
            manifest = _finish(records, out, plan, numbers)
    except OSError as error:
        raise HapError(_cannot_write(out, error)) from None
    sizes = [entry["bytes"] for entry in manifest["shards"]]
    seconds = time.perf_counter() - start
    return PackReport(manifest["images"], manifest["skipped"], len(sizes), sum(sizes), seconds)


def _mean_bytes(records: LuPerson) -> float:
    """Bytes of a packed sample, from some evenly spread ones."""
    sizes = []
    for index in np.linspace(0, len(records) - 1, 64).astype(int):
        try:
            sizes.append(len(records[index].encoded()))
        except (BadSample, OSError):
            continue
    return float(np.mean(sizes or [10_000])) + 4 * 512  # two headers, points, and padding


@contextmanager
def _claim(out: Path) -> Iterator[None]:
    """One process packs into a folder at a time. The system gives the lock back when a process is killed."""
    notes = out / "notes"
    found = [path for folder in (out, notes) if folder.is_dir() for path in folder.iterdir()]
    foreign = [p for p in found if p not in (notes, notes / "lock") and p.suffix != ".tmp"]
    if foreign and not (out / PLAN).is_file():
        raise HapError(f"{out} is not empty and no packing was begun there; choose another folder")
    notes.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(notes / "lock", timeout=1):
            yield
    except Timeout:
        raise HapError(
            f"another hap pack is writing to {out}: wait for it, or choose another folder"
        ) from None


def _begin(out: Path, plan: dict[str, Any]) -> None:
    if not (out / PLAN).is_file():
        _write(out / PLAN, _json(plan))
        return
    try:
        begun = json.loads((out / PLAN).read_text())
        changed = [
            f"{key} was {begun.get(key)}, is {plan[key]}" for key in plan if begun.get(key) != plan[key]
        ]
    except (ValueError, AttributeError) as error:
        raise HapError(f"{out / PLAN} is damaged ({error}): pack into another folder") from None
    if changed:
        raise HapError(f"{out} holds another packing ({'; '.join(changed)}); choose another folder")


def _write_shards(
    records: LuPerson, root: Path, out: Path, plan: dict[str, Any], todo: list[int], workers: int
) -> None:
    size, workers = plan["shard_size"], min(workers, len(todo))
    images = sum(min(size, len(records) - number * size) for number in todo)
    loader = DataLoader(
        _Packer(records, root, out, todo, size, plan["height"]),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=16 if workers else None,
        worker_init_fn=prepare_worker,
    )
    advice = "lower num_workers; what is finished stays, the same command goes on"
    with progress("packing", len(records), len(records) - images) as advance:
        for done in from_workers(loader.__iter__, advice):
            advance(done)


class _Packer(IterableDataset):
    """Writes shards where it is iterated; yields now and then how many images were done."""

    def __init__(
        self, records: LuPerson, root: Path, out: Path, todo: list[int], size: int, height: int | None
    ):
        self.records, self.root, self.out = records, root, out
        self.todo, self.size, self.height = todo, size, height

    def __iter__(self) -> Iterator[int]:
        worker = get_worker_info()
        for number in self.todo[worker.id :: worker.num_workers] if worker else self.todo:
            try:
                yield from self._shard(number)
            except OSError as error:
                raise HapError(_cannot_write(self.out, error)) from None

    def _shard(self, number: int) -> Iterator[int]:
        path = self.out / f"{number:05d}.tar"
        temporary = _temporary(path)
        begin, end = number * self.size, min((number + 1) * self.size, len(self.records))
        rows, skipped = [], []
        told, told_at = begin, time.monotonic()
        try:
            with temporary.open("wb") as file:
                archive = _Archive(file)
                for index in range(begin, end):
                    name = self.records.names[index]
                    try:
                        place = archive.append(name, *self._sample(index))
                        rows.append((int(self.records.positions[index]), *place, os.fsencode(name)))
                    except _Unusable as error:
                        skipped.append((name, str(error)))
                    if time.monotonic() - told_at > SECONDS:
                        yield index + 1 - told
                        told, told_at = index + 1, time.monotonic()
                archive.write(bytes(2 * BLOCK))  # the end of a tar archive
                file.flush()
                os.fsync(file.fileno())
            note: dict[str, Any] = {"rows": len(rows), "skipped": skipped}
            if rows:
                index_bytes = _npy(np.array(rows, index_type(max(len(row[-1]) for row in rows))))
                _write(path.with_suffix(".npy"), index_bytes)
                temporary.replace(path)
                note |= {
                    "file": path.name,
                    "bytes": archive.size,
                    "last_position": rows[-1][0],
                    "sha256": archive.sha256.hexdigest(),
                    "index_sha256": sha256(index_bytes).hexdigest(),
                }
            _write(_note_path(self.out, number), _json(note))
        finally:
            temporary.unlink(missing_ok=True)
        yield end - told

    def _sample(self, index: int) -> tuple[bytes, np.ndarray]:
        """The bytes to store and the points (17, 3) in pixels of the stored image."""
        try:
            record = self.records[index]
            encoded, points = record.encoded(), record.annotations()["keypoints"]
            image = decode_image(encoded)  # (H, W, 3)
        except (BadSample, OSError) as error:
            if _is_gone(self.root):  # a disk or a network that went away is not a million broken images
                raise HapError(
                    f"{self.root} cannot be read any more: {error} (what is finished stays; the same command goes on)"
                ) from None
            raise _Unusable(str(error)) from None
        except Exception as error:
            error.add_note(f"while packing {self.records.names[index]}")
            raise
        if self.height is None or image.shape[0] <= self.height:
            return encoded, points
        width = max(1, round(image.shape[1] * self.height / image.shape[0]))
        scale = np.array([width / image.shape[1], self.height / image.shape[0], 1], np.float32)
        small = cv2.resize(image, (width, self.height), interpolation=cv2.INTER_AREA)
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), quality)
        return jpeg.tobytes(), points * scale


def _is_gone(root: Path) -> bool:
    try:
        return not root.is_file() and not any(root.iterdir())
    except OSError:
        return True


def _cannot_write(out: Path, error: OSError) -> str:
    return f"cannot write {out}: {error} (what is finished stays; the same command goes on)"


class _Unusable(Exception):
    """An image or a pose that is left out, as opposed to an output that cannot be written."""


class _Archive:
    """Appends samples to a tar archive, counting bytes and keeping the checksum."""

    def __init__(self, file: BinaryIO):
        self.file, self.size, self.sha256 = file, 0, sha256()

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.size += len(data)
        self.sha256.update(data)

    def append(self, name: str, image: bytes, points: np.ndarray) -> tuple[int, int, int, int]:
        """Returns the offset, size, length and crc of `hap.data.shards.INDEX`."""
        npy = _npy(points.astype("<f4"))
        self.write(_header(f"{IMAGES}/{name}", len(image)))
        offset = self.size
        sample = _padded(image) + _header(f"{POSES}/{name.rpartition('.')[0]}.npy", len(npy)) + npy
        self.write(_padded(sample))
        return offset, len(image), len(sample), zlib.crc32(sample)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _finish(records: LuPerson, out: Path, plan: dict[str, Any], numbers: range) -> dict[str, Any]:
    """Gather all notes into the manifest, which is returned, and the list of what was left out."""
    notes = []
    for number in numbers:
        if (note := _note(out, number)) is None:
            raise HapError(f"shard {number:05d} has gone from {out}: run the same hap pack again")
        notes.append(note)
    left_out = [(name, "no image") for name in records.absent]
    left_out += [(name, "no pose") for name in records.without_pose]
    left_out += [(name, "named before") for name in records.repeated]
    left_out += [(name, reason) for note in notes for name, reason in note.pop("skipped")]
    if left_out:
        lines = "".join(f"{printable(name)}\t{printable(reason)}\n" for name, reason in left_out)
        _write(out / SKIPPED, lines.encode())
    shards = [note for note in notes if note["rows"]]
    images = sum(note["rows"] for note in shards)
    manifest = {"format": FORMAT, **plan, "images": images, "skipped": len(left_out), "shards": shards}
    _write(out / MANIFEST, _json({"sha256": checksum(manifest), **manifest}))
    for path in out.rglob("*.tmp"):
        path.unlink(missing_ok=True)
    return manifest


def _note_path(out: Path, number: int) -> Path:
    return out / "notes" / f"{number:05d}.json"


def _note(out: Path, number: int) -> dict[str, Any] | None:
    """What was noted of a finished shard; None if it has to be made, or made again."""
    path = _note_path(out, number)
    try:
        note: dict[str, Any] = json.loads(path.read_text())
        whole = {"rows", "skipped"} | (SHARD.keys() if note["rows"] else set()) <= note.keys()
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, AttributeError):
        whole = False
    if not whole:
        log.warning("%s is damaged: its shard is made again", path)
        return None
    files = [out / f"{number:05d}{suffix}" for suffix in (".tar", ".npy")] if note["rows"] else []
    return note if all(file.is_file() for file in files) else None


def _temporary(path: Path) -> Path:
    """Named after the process: a worker may outlive its program and must not touch the next one's file."""
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


def _write(path: Path, data: bytes) -> None:
    """Write a file that is there complete or not at all."""
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
