"""Files of the user's: one listing, one way to read, one spelling of a name, for every reader.

Data folders are met as they come from other systems: linked together from several disks, with hidden copies,
thumbnails and pipes in them, in names of any bytes. What is left out is counted by its reason and said once.
"""

import json
import logging
import os
import posixpath
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hap.errors import BadSample, HapError, printable

log = logging.getLogger(__name__)

# What both OpenCV and Pillow read, in any case.
IMAGE_SUFFIXES = (
    *(".bmp", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)
MAX_BYTES = 1 << 28  # of one file; a sparse or endless one would fill the memory
MAX_JSON = 1 << 33  # of one with all annotations of a data set; of MuCo-3DHP it may be more than two GB

# Names that systems give to things of their own: Synology's, Apple's and Windows' thumbnails and leftovers.
_FOREIGN = frozenset(
    {"@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db"}
)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is no data: dot names (AppleDouble, notebook checkpoints, ...) and
    what operating systems put beside images."""
    return name.startswith(".") or name in _FOREIGN


class LeftOut:
    """Counts what is left out, by reason, with the first of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, name)

    def log(self, where: Path) -> None:
        """One message, a line for each reason; a warning if there is more than hidden files."""
        if self.counts:
            lines = [
                f"\n  {printable(self.first[reason])}{f' and {count - 1:,} more' if count > 1 else ''}: {reason}"
                for reason, count in self.counts.items()
            ]
            level = logging.WARNING if set(self.counts) - {HIDDEN} else logging.INFO
            log.log(level, "%s: %s left out%s", where, f"{self.counts.total():,}", "".join(lines))


HIDDEN = "hidden, or a system's own"


def list_files(
    folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES, left_out: LeftOut | None = None
) -> list[str]:
    """The regular files below a folder whose names end in one of the suffixes, sorted: "a/b.jpg".

    Links are followed, each folder is listed once, under its own name where it has one here. Folders that may
    not be read, hidden files, pipes, devices and links to nothing are left out.

    Args:
        suffixes: lower case; files may have them in any case.
        left_out: where to count what is left out, for the caller to log; None logs it here.

    Raises HapError if the folder is not there or a folder in it cannot be listed.
    """
    counted = LeftOut() if left_out is None else left_out
    ends = tuple(suffixes)
    found: list[str] = []
    # A link may lead to a folder that is listed already, or to one that this one lies in: neither again.
    seen = {_key(parent) for parent in Path(os.path.abspath(folder)).resolve().parents}
    folders: list[str] = [""]
    linked: list[str] = []
    while folders or linked:
        prefix, behind_link = (folders.pop(), False) if folders else (linked.pop(), True)
        try:
            key = _key(folder / prefix)
            if behind_link and key in seen:
                counted.add("the same folder as another", prefix)
                continue
            seen.add(key)
            entries = os.scandir(folder / prefix)
        except OSError as error:
            if not prefix and isinstance(error, FileNotFoundError):
                raise HapError(f"folder not found: {folder}") from None
            if not prefix or not isinstance(error, PermissionError):
                raise HapError(f"cannot list {folder / printable(prefix)}: {error.strerror}") from None
            counted.add("a folder that may not be read", prefix)
            continue
        with entries:
            for entry in entries:  # the kind comes with the name: no stat per file
                name = entry.name
                path = prefix + name
                try:
                    if is_hidden(name):
                        counted.add(HIDDEN, path)
                    elif entry.is_file():
                        if name.lower().endswith(ends):
                            found.append(path)
                        else:
                            counted.add(f"not {', '.join(ends)}", path)
                    elif entry.is_dir():
                        (linked if behind_link or entry.is_symlink() else folders).append(f"{path}/")
                    else:
                        counted.add("no file: a pipe, a device, or a link that leads to none", path)
                except OSError:
                    counted.add("a link that leads in circles, or to where one may not read", path)
        linked.sort(reverse=True)
    if left_out is None:
        counted.log(folder)
    return sorted(found)


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones; none if it may not be read."""
    try:
        return sorted(
            entry for entry in folder.iterdir() if not is_hidden(entry.name) and os.path.isdir(entry)
        )
    except PermissionError:
        return []


def locate(root: Path, markers: Sequence[str], advice: str) -> Path:
    """The folder at `root` or up to two levels below that holds one of the markers (files or folders).

    Raises HapError if there is none, with the advice, or if there are several.
    """
    level = [root]
    for _ in range(3):
        matches = [folder for folder in level if any(os.path.exists(folder / marker) for marker in markers)]
        if len(matches) > 1:
            raise HapError(
                f"several data sets below {root}: {', '.join(map(str, matches))}; set data.root to one"
            )
        if matches:
            return matches[0]
        level = [entry for folder in level for entry in subfolders(folder)]
    raise HapError(f"no {' or '.join(markers)} in {root} or the folders below it: {advice}")


def user_path(text: str) -> Path:
    """A path as it is typed: `~` is the home folder, but a folder may be called `~x` where nobody is."""
    return Path(os.path.expanduser(text))


def _key(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def file_id(path: Path) -> tuple[int, int] | str:
    """The same for all names of one file: links, hard links, other spellings. Its path if it cannot be read."""
    try:
        return _key(path)
    except OSError:
        return os.path.realpath(path)


def relative(name: str) -> str | None:
    """A listed name in its one spelling: "./a//b.jpg" and "a/c/../b.jpg" are "a/b.jpg". None if it leads out of
    the folder it is listed for, or to none."""
    name = posixpath.normpath(name)
    return None if name.startswith(("/", "../")) or name in (".", "..") else name


def read_file(path: str | Path, limit: int = MAX_BYTES) -> bytes:
    """The content of a regular file. Raises BadSample if it is none, or above `limit` bytes; OSError."""
    # A pipe without a writer would be waited for: O_NONBLOCK opens it at once, and it is refused.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BadSample("not a regular file")
        if status.st_size > limit:
            raise BadSample(f"the file has {status.st_size:,} bytes, more than {limit:,}")
        return file.read()


def read_text(path: Path, errors: str = "strict", limit: int = MAX_BYTES) -> str:
    """A text file in UTF-8, or UTF-16 with its mark, as spreadsheets and PowerShell write it; lines end in "\\n".

    Args:
        errors: "surrogateescape" for names of files of any bytes.
        limit: of its bytes.

    Raises HapError, naming the file, for another encoding, or if it cannot be read.
    """
    try:
        data = read_file(path, limit)
    except (BadSample, OSError) as error:
        raise HapError(f"cannot read {path}: {error}") from None
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = data.decode(encoding, errors)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise HapError(f"{path}, line {line}, is not {encoding} text: save the file in UTF-8") from None
    if "\0" in text:
        raise HapError(f"{path} holds zero bytes (UTF-16 without a mark?): save the file in UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, errors: str = "strict") -> Any:
    """The content of a JSON file, of annotations of any size; `errors` as of `read_text`. Raises HapError, naming the
    file."""
    try:
        return json.loads(read_text(path, errors, MAX_JSON))
    except (ValueError, RecursionError) as error:
        raise HapError(f"{path} is no JSON: {error}") from None


def check_images(file: Path, folder: Path, names: Iterable[str]) -> None:
    """Raises HapError where a folder lacks images that an annotation file names, and logs what else is there."""
    left_out = LeftOut()
    wanted, there = set(names), set(list_files(folder, left_out=left_out))
    if missing := [printable(name) for name in sorted(wanted) if name not in there]:
        left_out.log(folder)
        raise HapError(
            f"{folder} lacks {len(missing):,} of the {len(wanted):,} images that {file} names{first_lines(missing)}"
        )


def first_lines(lines: Sequence[str], most: int = 10) -> str:
    """The first of many findings, each on a line of its own, for a message."""
    shown = [*lines[:most], *([f"... and {len(lines) - most:,} more"] if len(lines) > most else [])]
    return "".join(f"\n  {line}" for line in shown)
