"""Checkpoints that are either whole or not there, and the search for the newest one that can be trusted."""

import contextlib
import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from hap.errors import HapError

log = logging.getLogger(__name__)


class CheckpointFiles(TorchCheckpointIO):
    """Writes to a temporary file, flushes it to the disk, then renames: a kill at any moment leaves the old
    checkpoints and no half of a new one. Reads with `weights_only=True`: nothing in a file is executed."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)  # the new name itself
            os.close(folder)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise HapError(
                f"cannot write the checkpoint {path}: {error}; earlier checkpoints in {path.parent} are untouched"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict:
        return read_checkpoint(path)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read one of our own checkpoints to the CPU. Raises HapError for anything else."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a broken or hostile file
        raise HapError(f"{path} is not an intact checkpoint of hap: {str(error).splitlines()[0]}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise HapError(f"{path} is not a checkpoint of hap (no state_dict); weights=FILE reads other files")
    return checkpoint


def step_of(path: Path) -> int:
    """Optimiser steps taken when `step-000001234.ckpt` was written."""
    return int(path.stem.removeprefix("step-"))


def is_intact(path: Path) -> bool:
    """Compare every part of the file with its stored checksum."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def newest_intact(folder: Path) -> Path | None:
    """The checkpoint with the most steps whose checksums hold; damaged ones are named and passed over."""
    for path in sorted(folder.glob("step-*.ckpt"), key=step_of, reverse=True):
        if is_intact(path):
            return path
        log.warning("damaged checkpoint passed over: %s", path)
    return None
