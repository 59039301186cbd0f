"""The rows of a prediction, on disk as they come: memory stays flat, and what is there is not computed again."""

import contextlib
import json
import logging
import os
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from hap.data.files import read_json
from hap.errors import HapError
from hap.run_folder import cannot_write

log = logging.getLogger(__name__)

SECONDS = 10  # between two files
ZEROS = bytes(1 << 20)


class Spool:
    """A folder of small files that are whole or not there, written by all ranks.

    Rows are {name: (N, ...)} with `index` (N,), the place among the records, or -1 where there is no result. Which
    files there are is told from rank to rank: listings of a shared folder may be out of date.

    Args:
        folder: of the run's.
        rank: of this process.
        files: names of those that are there, from `begun`.

    Attributes:
        done: int64 (N,), ascending: the indices that are there at the start.
        files: those and the names of what this rank has written.
    """

    def __init__(self, folder: Path, rank: int = 0, files: Sequence[str] = ()):
        self.folder, self.rank, self.files = folder, rank, list(files)
        index = np.concatenate([_index(folder / name) for name in files]) if files else np.zeros(0, np.int64)
        self.done = np.unique(index[index >= 0])
        self._waiting: list[dict[str, Tensor]] = []
        self._number = 1 + max((int(name.split("_")[1]) for name in files), default=-1)
        self._written_at = time.monotonic()

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Take rows, and write what is there every `SECONDS`."""
        # Copies: a part of a larger tensor would keep all of it.
        self._waiting.append({name: value.to("cpu", copy=True) for name, value in rows.items()})
        if time.monotonic() - self._written_at >= SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits. Raises HapError where nothing can be written."""
        if not self._waiting:
            return
        rows = {name: torch.cat([part[name] for part in self._waiting]) for name in self._waiting[0]}
        name = f"rows_{self._number:06d}_rank{self.rank}.safetensors"
        _write(self.folder / name, save(rows))
        self._waiting.clear()
        self.files.append(name)
        self._number, self._written_at = self._number + 1, time.monotonic()

    def rows(self, files: Iterable[str]) -> tuple[np.ndarray, dict[str, Tensor]]:
        """The indices of the files of all ranks (N,), ascending and each once, and their rows, which stay on the disk:
        tensors that are mapped into memory."""
        paths = [self.folder / name for name in sorted(set(files))]
        parts = [_index(path) for path in paths]
        index, first = np.unique(np.concatenate(parts), return_index=True)
        index, first = index[index >= 0], first[index >= 0]
        place = np.full(sum(map(len, parts)), -1)
        place[first] = np.arange(len(index))
        places = np.split(place, np.cumsum([len(part) for part in parts])[:-1])
        columns: dict[str, Tensor] = {}
        for path, mine in zip(paths, map(torch.from_numpy, places), strict=True):
            taken = mine >= 0
            for name, value in load_file(path).items():
                if name == "index" or not taken.any():
                    continue
                if name not in columns:
                    columns[name] = self._column(name, (len(index), *value.shape[1:]), value.dtype)
                columns[name][mine[taken]] = value[taken]
        return index, columns

    def _column(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        path, size = self.folder / f"{name}.bin", int(np.prod(shape))
        try:
            # Written out, for a disk that is full to be an error here: in a map it would kill the process.
            with path.open("wb") as file:
                left = size * dtype.itemsize
                while left > 0:
                    left -= file.write(ZEROS[:left])
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        return torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(shape)


def begun(folder: Path, origin: Mapping[str, Any]) -> list[str]:
    """Names of the files that an earlier run with the same origin, what makes the rows what they are, has left.

    Raises:
        HapError: they are of another origin; says what differs.
    """
    known = folder / "origin.json"
    if not known.exists():
        _write(known, json.dumps(origin, indent=2).encode())
        return []
    before = read_json(known)
    differences = [
        f"  {key.replace('_', ' ')}: {origin.get(key)}, before {before.get(key)}"
        for key in dict.fromkeys([*origin, *before])
        if origin.get(key) != before.get(key)
    ]
    if differences:
        raise HapError(
            f"this is not the prediction that was begun in {folder.parent}:\n" + "\n".join(differences) + "\n"
            "go on with the same input, checkpoint and settings, or choose another run_dir"
        )
    found = []
    for path in sorted(folder.glob("rows_*.safetensors")):
        try:
            _index(path)
            found.append(path.name)
        except SafetensorError as error:
            log.warning("%s is damaged (%s): its images are predicted again", path, error)
            path.unlink()
    return found


def _index(path: Path) -> np.ndarray:
    with safe_open(path, "np") as file:
        return file.get_tensor("index")


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise cannot_write(path.parent, error) from error


def checksum(state: Mapping[str, Tensor]) -> str:
    """Of names and values of weights."""
    value = 0
    for name, tensor in state.items():
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        value = zlib.crc32(content, zlib.crc32(name.encode(), value))  # type: ignore[arg-type]
    return f"{value:08x}"
