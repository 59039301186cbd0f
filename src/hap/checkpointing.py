"""Checkpoints that are either whole or not there, and the search for the newest one that can be trusted."""

import contextlib
import errno
import logging
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.utils._pytree import tree_leaves

from hap.errors import HapError
from hap.run_folder import unused

log = logging.getLogger(__name__)


class CheckpointFiles(TorchCheckpointIO):
    """Writes to a temporary file, flushes it to the disk, then renames: a kill at any moment leaves the old
    checkpoints and no half of a new one. Reads with `weights_only=True`: nothing in a file is executed.

    Args:
        path, content: of a checkpoint that was read already; handed out at the first load of it.
    """

    def __init__(self, path: Path | None = None, content: dict[str, Any] | None = None):
        self._read = {path: content}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp")
        cause: Exception | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                writer = _Writer(file)
                try:
                    torch.save(checkpoint, writer)  # type: ignore[arg-type]  # it needs write and flush
                except RuntimeError as error:  # torch's own words for an error of ours
                    raise writer.error or error from None
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)  # the new name itself
            os.close(folder)
            return
        except (OSError, RuntimeError) as error:
            cause = error
            with contextlib.suppress(OSError):
                temporary.unlink()
        raise HapError(
            f"cannot write the checkpoint {path}: {_why(cause, checkpoint, path.parent)}; earlier checkpoints in "
            f"{path.parent} are untouched"
        ) from cause

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict:
        return self._read.pop(Path(path), None) or read_checkpoint(path)


class _Writer:
    """A file that remembers what went wrong: torch reports a full disk as `unexpected pos 917952 vs 917844`."""

    def __init__(self, file: BinaryIO):
        self.file, self.flush = file, file.flush
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise


def _why(error: Exception, checkpoint: dict[str, Any], folder: Path) -> str:
    if not isinstance(error, OSError):
        return str(error)
    text = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        needed = sum(leaf.nbytes for leaf in tree_leaves(checkpoint) if isinstance(leaf, torch.Tensor))
        text += (
            f" ({needed / 1e6:,.1f} MB are needed, {shutil.disk_usage(folder).free / 1e6:,.1f} MB are free)"
        )
    return text


def read_checkpoint(path: str | Path, verified: bool = False) -> dict[str, Any]:
    """Read one of our own checkpoints to the CPU.

    Args:
        verified: its checksums were compared already.

    Raises:
        HapError: the file is damaged, or something else.
    """
    path = Path(path)
    if not verified and not is_intact(path):
        with path.open("rb") as file:
            ours = file.read(2) in (b"PK", b"")  # of a zip archive, which torch.save writes
        raise HapError(
            f"{path} is damaged: cut off, or its checksums do not hold; take an earlier checkpoint"
            if ours
            else f"{path} is not a checkpoint of hap; weights=FILE reads other files"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a hostile file
        raise HapError(f"{path} is not a checkpoint of hap: {str(error).splitlines()[0]}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise HapError(f"{path} is not a checkpoint of hap (no state_dict); weights=FILE reads other files")
    return checkpoint


def is_intact(path: Path) -> bool:
    """Compare every part of the file with its stored checksum."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except Exception:  # zipfile raises half a dozen types for a damaged file
        return False


def step_of(path: Path) -> int:
    """Optimiser steps taken when `step-000001234.ckpt` was written."""
    return int(path.stem.removeprefix("step-"))


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a run, the one with the most steps first."""
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(
        (folder / name for name in names if re.fullmatch(r"step-\d+\.ckpt", name)), key=step_of, reverse=True
    )


def newest_intact(folder: Path) -> Path | None:
    """The checkpoint with the most steps whose checksums hold, None if there are no checkpoints; damaged ones are
    named and passed over. Raises HapError if all are damaged: a run never starts anew by itself."""
    found = checkpoints_in(folder)
    for path in found:
        if is_intact(path):
            return path
        log.warning("damaged checkpoint passed over: %s", path)
    if found:
        raise HapError(
            f"all checkpoints in {folder} are damaged: {', '.join(path.name for path in found)}. To start anew, "
            f"choose another run_dir, or remove them: rm {folder}/step-*.ckpt"
        )
    return None


def set_aside(folder: Path, step: int, origin: Path | None) -> None:
    """Rename the checkpoints that do not lead to `step`, where a run goes on from `origin`: those of an abandoned
    branch, or damaged. Else they would be taken for the newest again."""
    for path in checkpoints_in(folder):
        same = origin is not None and path.resolve() == origin.resolve()
        if step_of(path) < step or same:
            continue
        aside = unused(path.with_name(f"{path.name}.abandoned"))
        path.rename(aside)
        log.warning("%s is not part of this run, which goes on from step %d: now %s", path, step, aside.name)
    if not (folder / "last.ckpt").exists():
        point_to_last(folder)


def point_to_last(folder: Path) -> None:
    """Let `last.ckpt` be a link to the newest checkpoint; without one it goes."""
    found = checkpoints_in(folder)
    if not found:
        (folder / "last.ckpt").unlink(missing_ok=True)
        return
    link = folder / ".last.tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(found[0].name)
    link.replace(folder / "last.ckpt")
