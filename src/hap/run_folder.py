"""One run, one folder: chosen, made and held so that no second run can write there at the same time."""

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from hap.errors import HapError

log = logging.getLogger(__name__)


def unused(path: Path) -> Path:
    """`path`, or the first of path_2, path_3, ... that is not there."""
    number, free = 1, path
    while free.exists() or free.is_symlink():
        number += 1
        free = path.with_name(f"{path.name}_{number}")
    return free


def make_folder(path: str, now: str | None = None) -> str:
    """Make a run folder and return its name. One that is named by the time, `now`, is meant to be new: of two runs
    that start in the same second, the later gets NAME_2. Raises HapError where nothing can be written."""
    dated = now is not None and now in path
    folder = Path(path)
    try:
        while True:
            folder = unused(Path(path)) if dated else folder
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir()  # one process can, the others see that it is there
            except FileExistsError:
                if dated:
                    continue
                if not folder.is_dir():
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return str(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error


@contextmanager
def hold(folder: Path, resume: bool) -> Iterator[None]:
    """Hold a run folder until the end of the block.

    The lock is the operating system's: it ends with the process, however that ends.

    Raises:
        HapError: another run holds the folder, or it has the record of an earlier run and `resume` is False.
    """
    make_folder(str(folder))
    with _opened(folder / ".lock") as file:
        try:
            fcntl.lockf(
                file, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # of this process alone, not of its loader processes
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                log.warning(
                    "%s cannot be locked (%s): let no other run use it", folder, error.strerror
                )  # some network file systems
            else:
                file.seek(0)
                raise HapError(
                    f"another run is using {folder} ({file.read().decode()}): wait for its end, or choose another "
                    "run_dir"
                ) from None
        if (folder / "config.yaml").exists() and not resume:
            raise HapError(f"{folder} holds a run already: choose another run_dir, or go on with resume=auto")
        with suppress(OSError):  # a full disk: who holds it is for others to read, the lock does without
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {socket.gethostname()}".encode())
        yield


def _opened(lock: Path) -> IO[bytes]:
    try:
        return lock.open("a+b", buffering=0)  # nothing is left to be written when it is closed
    except OSError as error:
        raise cannot_write(lock.parent, error) from error


def write_json(path: Path, content: Any) -> None:
    """A file of a run folder: whole, or as it was before. Raises HapError where it cannot be written."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise cannot_write(path.parent, error) from error


def cannot_write(folder: Path, error: OSError) -> HapError:
    return HapError(f"cannot write to the run folder {folder}: {error.strerror} (set run_dir=FOLDER)")


def is_held(folder: Path) -> bool:
    """Whether another process holds a run folder."""
    try:
        with (folder / ".lock").open() as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    return False
