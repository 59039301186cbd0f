"""Images and videos of one's own, without annotations: what `hap predict` reads."""

import glob
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hap.data.decoding import Encoded
from hap.data.files import IMAGE_SUFFIXES, LeftOut, first_lines, list_files, read_file, read_text, user_path
from hap.data.tables import read_table
from hap.data.video import VIDEO_SUFFIXES, Video
from hap.errors import HapError, printable

log = logging.getLogger(__name__)

LIST_SUFFIXES = (".csv", ".txt")
BOX_COLUMNS = ("box", *"xywh", "score")
SOURCE_COLUMNS = ("image", "frame", "seconds", *BOX_COLUMNS)  # that result tables may have
INPUTS = "an image, a video, a pattern such as 'crops/*.jpg', or a list (.txt, .csv)"


@dataclass(frozen=True, slots=True)
class ImageRecord(Encoded):
    """One image file.

    Attributes:
        name: of the file, as it was given.
        path: where it is.
        part: the key that it was given for: input, query or gallery.
    """

    name: str
    path: Path
    part: str

    upright: ClassVar[bool] = True  # photographs, seen as a viewer shows them
    frame: ClassVar[int | None] = None
    seconds: ClassVar[float | None] = None
    box: ClassVar[None] = None  # it is the whole image

    @property
    def file(self) -> str:
        return self.name

    def encoded(self) -> bytes:
        return read_file(self.path)

    def annotations(self) -> dict[str, Any]:
        return nothing_known(self.part)


@dataclass(frozen=True, slots=True)
class FrameRecord:
    """One frame of a video, from 0; `name` is `walk.mp4#120`."""

    video: Video = field(repr=False)
    frame: int
    part: str

    box: ClassVar[None] = None

    @property
    def name(self) -> str:
        return f"{self.video.name}#{self.frame}"

    @property
    def file(self) -> str:
        return self.video.name

    @property
    def path(self) -> Path:
        return Path(self.video.path)

    @property
    def seconds(self) -> float:
        return float(self.video.seconds[self.frame])

    def pixels(self) -> np.ndarray:
        return self.video.read(self.frame)

    def annotations(self) -> dict[str, Any]:
        return nothing_known(self.part)


def nothing_known(part: str) -> dict[str, Any]:
    """All 17 keypoints missing; `is_query` says for which key the image was given."""
    return {"keypoints": np.zeros((17, 3), np.float32), "is_query": part == "query"}


@dataclass(frozen=True)
class Frames(Sequence[FrameRecord]):
    """Every `stride`-th frame of a video."""

    video: Video
    part: str
    stride: int = 1

    def __len__(self) -> int:
        return -(-len(self.video) // self.stride)

    def __getitem__(self, index: Any) -> Any:
        return FrameRecord(self.video, range(0, len(self.video), self.stride)[index], self.part)


class Inputs(Sequence[ImageRecord | FrameRecord]):
    """Images and the frames of videos in a row; a frame's record is made when it is asked for."""

    def __init__(self, items: Sequence[ImageRecord | Frames]):
        self.items = items
        self.ends = np.cumsum([len(item) if isinstance(item, Frames) else 1 for item in items])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: Any) -> Any:
        index = range(len(self))[index]
        number = int(np.searchsorted(self.ends, index, side="right"))
        item = self.items[number]
        return item[index - int(self.ends[number])] if isinstance(item, Frames) else item


def read_inputs(given: Mapping[str, str], video_stride: int = 1) -> Inputs:
    """All images and frames of what the user gave for each key, in the order of the keys.

    A folder gives the images below it, a pattern what matches it (`**`: folders at any depth), both sorted by path; a
    list gives its lines in their order: `.txt` with a path a line, without empty lines and those that begin with `#`,
    or `.csv` with a column `image` or `path`; paths in a list count from its folder. What is given twice counts once.

    Args:
        given: key -> folder, file, pattern or list.
        video_stride: every so manieth frame of videos, from the first.

    Raises:
        HapError: nothing is there, or a list names what is not; with all of its lines.
    """
    if video_stride < 1:
        raise HapError(f"video_stride={video_stride}: every n-th frame, n from 1")
    items: list[ImageRecord | Frames] = []
    for key, text in given.items():
        for name, path in _files(key, text).items():
            if name.lower().endswith(VIDEO_SUFFIXES):
                items.append(Frames(Video(path, name), key, video_stride))
            else:
                items.append(ImageRecord(name, path, key))
    return Inputs(items)


def source_columns(records: Sequence[Any]) -> dict[str, list[Any]]:
    """What a result table says of where each row is from: `image`, the file as it was given; where there are videos,
    `frame` and `seconds`, empty for images; where there are boxes, `box`, its place in their file, and `x,y,w,h,score`
    as they are there."""
    columns: dict[str, list[Any]] = {"image": [record.file for record in records]}
    if any(record.frame is not None for record in records):
        columns["frame"] = ["" if record.frame is None else record.frame for record in records]
        columns["seconds"] = ["" if record.frame is None else f"{record.seconds:.3f}" for record in records]
    if records and records[0].box is not None:
        for name, values in zip(BOX_COLUMNS, zip(*(r.box for r in records), strict=True), strict=True):
            columns[name] = ["" if value is None else value for value in values]
    return columns


def _files(key: str, text: str) -> dict[str, Path]:
    """The names of images and videos, as they are given, and where they are."""
    path, kinds = user_path(text), (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    if path.is_dir():
        names = list_files(path)
        if not names:
            raise HapError(
                f"{key}: no images ({', '.join(IMAGE_SUFFIXES)}) in {path}; videos are given by a file or a pattern"
            )
        return {str(path / name): path / name for name in names}
    if path.exists():
        if text.lower().endswith(LIST_SUFFIXES):
            return _listed(key, path)
        if text.lower().endswith(kinds):
            return {str(path): path}
        raise HapError(
            f"{key}: {printable(text)} is no image ({', '.join(IMAGE_SUFFIXES)}), no video "
            f"({', '.join(VIDEO_SUFFIXES)}) and no list ({', '.join(LIST_SUFFIXES)})"
        )
    if glob.has_magic(text):
        found, left_out = [], LeftOut()
        for name in matches(str(path)):
            if name.lower().endswith(kinds):
                found.append(name)
            else:
                left_out.add("neither image nor video", name)
        left_out.log(Path(text))
        if not found:
            raise HapError(f"{key}: no image or video matches {printable(text)}")
        return {name: Path(name) for name in found}
    raise HapError(f"{key}: not found: {printable(text)} (give a folder, {INPUTS})")


def matches(pattern: str) -> list[str]:
    """The files that match a pattern, sorted. `*`, `?` and `[abc]` stand for a part of a name, `**` for folders at any
    depth."""
    if "**" not in Path(pattern).parts:
        return sorted(name for name in glob.glob(pattern) if os.path.isfile(name))
    parts = Path(pattern).parts
    start = parts.index("**")
    found = []
    # Not by glob's own `**`, which links in circles lead nowhere.
    for folder in glob.glob(str(Path(*parts[:start]))) if start else ["."]:
        names = list_files(Path(folder), suffixes=("",))
        found += [str(Path(folder) / name) for name in names if _fits(name.split("/"), parts[start:])]
    return sorted(set(found))


def _fits(names: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern or not names:
        return not names and not pattern
    if pattern[0] == "**":
        return any(_fits(names[skipped:], pattern[1:]) for skipped in range(len(names) + 1))
    return fnmatchcase(names[0], pattern[0]) and _fits(names[1:], pattern[1:])


def _listed(key: str, path: Path) -> dict[str, Path]:
    """What a list names."""
    if path.suffix.lower() == ".csv":
        table = read_table(path, errors="surrogateescape")
        column = next((name for name in ("image", "path") if name in table.columns), None)
        if column is None:
            raise HapError(f"{key}: {path} has no column image or path; it has {', '.join(table.columns)}")
        lines = [(row.line, row.cells[column]) for row in table.rows]
    else:
        lines = [
            (n, line.strip())
            for n, line in enumerate(read_text(path, "surrogateescape").split("\n"), start=1)
        ]
        lines = [(n, line) for n, line in lines if line and not line.startswith("#")]
    found: dict[str, Path] = {}
    seen: set[str] = set()
    wrong, again = [], []
    for number, name in lines:
        file = path.parent / user_path(name)
        if not name.lower().endswith((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)):
            wrong.append(f"line {number}: neither image nor video: {printable(name)}")
        elif not file.is_file():
            wrong.append(f"line {number}: not found: {printable(name)}")
        elif (spelling := os.path.normpath(file)) in seen:
            again.append(f"line {number}: {printable(name)}")
        else:
            seen.add(spelling)
            found[name] = file
    if wrong:
        raise HapError(f"{key}: {len(wrong)} lines of {path} cannot be used{first_lines(wrong)}")
    if not found:
        raise HapError(f"{key}: {path} names no image or video")
    if again:
        log.warning("%s names %d files again, which count once%s", path, len(again), first_lines(again))
    return found
