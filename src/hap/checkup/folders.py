"""Is a data set there, is it whole, which one is it, and what is to be typed next?"""

import fnmatch
import json
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hap.checkup.findings import Clock, Finding, Level
from hap.checkup.parts import IMAGES, DataSet, Part
from hap.data.files import is_hidden, read_file, relative, subfolders

MAX_FOLDERS = 200  # that are looked into for a data set that lies deeper
MAX_LISTING = 1 << 28  # bytes of an annotation that is read
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
TREES = ("", "pose3d")  # below the folder of all data, what may be several sets at once


def look_for(dataset: DataSet, base: Path, clock: Clock) -> list[Finding]:
    """The findings of a data set below the folder of all data, or in that folder itself; one that is not there is a
    note with where it is to be had."""
    named = [place for name in dataset.folders for place in _matches(base, name)]
    marked = [base / tree for tree in TREES if any(_matches(base / tree, mark) for mark in dataset.marks)]
    for start in (*named, *marked):
        if root := _root(dataset, start, clock):
            return look_at(dataset, root, clock)
    for start in named:
        return [_empty(dataset, start, "warn", clock)]
    text = f"not there ({base / dataset.folders[0]}); licence: {dataset.licence}"
    return [Finding("note", dataset.title, text, (dataset.url,))]


def look_in(dataset: DataSet, start: Path, clock: Clock) -> list[Finding]:
    """The findings of a data set in a folder that is said to hold it."""
    root = _root(dataset, start, clock)
    return look_at(dataset, root, clock) if root else [_empty(dataset, start, "stop", clock)]


def look_at(dataset: DataSet, root: Path, clock: Clock) -> list[Finding]:
    """The findings of a data set that is at least partly in `root`: first a line of what there is, then its faults."""
    counted, options, missing = [], [], []
    faults: list[Finding] = []
    for part in dataset.parts:
        places = [place for path in part.paths for place in _matches(root, path)]
        good = next((place for place in places if not trouble(place)), None)
        if good is None and places:
            faults.append(_unusable(part, places[0]))
        elif good is None:
            missing.append(part)
        elif good.is_dir():
            number, level, empty = _counted(part, good, root, clock)
            options += [part.option] * (empty and bool(part.option))
            if level is None:
                counted.append(number)
            else:
                faults.append(Finding(level, "", number, _count_todo(dataset, part, root, level)))
    faults += _lacking(dataset, root, missing, clock)
    options += [part.option for part in missing if part.option]
    if dataset.listing and not any(fault.level == "stop" for fault in faults):
        faults += _listed(dataset, root, clock)
    version = next((text for path, text in dataset.versions if _matches(root, path)), "")
    text = "; ".join(filter(None, (str(root), "people drawn by hap" * _drawn(root), version, *counted)))
    stopped = any(fault.level == "stop" for fault in faults)
    todo = (command(dataset, root, options),) if not stopped else ()
    return [Finding("note" if stopped else "ok", dataset.title, text, todo), *faults]


def command(dataset: DataSet, root: Path, options: Sequence[str] = ()) -> str:
    """What to type next. Paths are quoted for a shell where they need it."""
    places = {"root": str(root.absolute()), "above": str(root.absolute().parent)}
    words = [shlex.quote(word.format(**places)) for word in dataset.command.split()]
    return " ".join([*words, *dict.fromkeys(options)])


def trouble(path: Path) -> str:
    """Why a file or folder cannot be used; "" if it can."""
    try:
        if path.is_dir():
            with os.scandir(path):
                os.stat(path / ".")
        else:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except PermissionError:
        return "may not be read"
    except FileNotFoundError:
        if path.is_symlink():
            return f"is a link to {os.readlink(path)}, where nothing is"
        return "is not there"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return ""


def count_files(folder: Path, suffixes: Sequence[str], clock: Clock) -> tuple[int, bool]:
    """Files below a folder with one of the suffixes (lower case), and whether all were counted: it ends with the
    clock. Links to folders are followed, each folder once; hidden files and folders do not count."""
    ends, number, folders = tuple(suffixes), 0, [os.fspath(folder)]
    seen: set[tuple[int, int]] = set()
    while folders:
        here = folders.pop()
        try:
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                for place, entry in enumerate(entries):
                    if place % 1024 == 0 and not clock.left:
                        return number, False
                    if is_hidden(entry.name):
                        continue
                    if entry.name.lower().endswith(ends):  # without a look at each: there may be millions
                        number += 1
                    elif entry.is_dir():
                        folders.append(entry.path)
        except OSError:
            continue
    return number, True


def _matches(root: Path, pattern: str) -> list[Path]:
    """What is there by a path of a `Part`, also if it is a link to nowhere or may not be read."""
    if "*" not in pattern:
        try:
            os.lstat(root / pattern)
        except PermissionError:
            pass
        except (OSError, ValueError):
            return []
        return [root / pattern]
    folder, _, last = pattern.rpartition("/")
    try:
        names = sorted(os.listdir(root / folder))
    except OSError:
        return []
    return [root / folder / n for n in names if not is_hidden(n) and fnmatch.fnmatch(n.lower(), last.lower())]


def _root(dataset: DataSet, start: Path, clock: Clock) -> Path | None:
    """The folder at `start` or up to two levels below that has a part of the data set: archives unpack to folders."""
    paths = [path for part in dataset.parts for path in part.paths]
    level = [start]
    for _ in range(3):
        for folder in level:
            if not trouble(folder) and any(_matches(folder, path) for path in paths):
                return folder
        level = [deeper for folder in level[:MAX_FOLDERS] if clock.left for deeper in _below(folder)]
    return None


def _below(folder: Path) -> list[Path]:
    try:
        return subfolders(folder)
    except OSError:
        return []


def _empty(dataset: DataSet, start: Path, level: Level, clock: Clock) -> Finding:
    """A folder that has nothing of the data set that it is called like."""
    if reason := trouble(start):
        return Finding("stop", dataset.title, f"{start} {reason}", (_mend(start, reason) or _get(dataset),))
    for part in dataset.parts:
        if notes := _mistaken(part, start):
            return Finding(level, dataset.title, notes[0], (_get(dataset),))
    wanted = ", ".join(part.paths[0] for part in dataset.parts[:3])
    text = f"{start} has nothing of it: neither there nor two levels below is any of {wanted}, ..."
    return Finding(level, dataset.title, text, (*_unpack(start), _get(dataset)))


def _unusable(part: Part, place: Path) -> Finding:
    reason = trouble(place)
    todo = tuple(filter(None, (_mend(place, reason), _instead(part))))
    return Finding("warn" if part.without else "stop", "", f"{place} {reason}", todo)


def _mend(place: Path, reason: str) -> str:
    quoted = shlex.quote(str(place))
    if reason == "may not be read":
        return f"chmod -R u+rX {quoted}, or ask whoever owns it"
    if reason.startswith("is a link"):
        return f"ln -sfn FOLDER {quoted}, or mount what it leads to"
    return ""


def _instead(part: Part) -> str:
    return f"{part.option} does without" if part.option else ""


def _get(dataset: DataSet) -> str:
    return f"from {dataset.url}; licence: {dataset.licence}"


def _lacking(dataset: DataSet, root: Path, missing: Sequence[Part], clock: Clock) -> Iterator[Finding]:
    """Parts that are not there: those that nothing runs without together, the others each."""
    needed = [part for part in missing if not part.without]
    if needed:
        names = [part.paths[0] for part in needed]
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        text = f"{len(names)} of {len(dataset.parts)} parts missing: {', '.join(names[:6])}{more}"
        notes = [note for part in needed for note in _mistaken(part, root)]
        yield Finding("stop", "", text, (*notes, *_unpack(root), _get(dataset)))
    for part in missing:
        if part.without:
            todo = tuple(filter(None, (*_mistaken(part, root), _instead(part))))
            yield Finding("warn", "", f"{part.paths[0]} is missing: no {part.without}", todo)


def _mistaken(part: Part, root: Path) -> list[str]:
    return [f"{place.name} {why}" for path, why in part.mistaken for place in _matches(root, path)]


def _unpack(root: Path) -> tuple[str, ...]:
    try:
        names = sorted(name for name in os.listdir(root) if name.lower().endswith(ARCHIVES))
    except OSError:
        return ()
    return (f"unpack {', '.join(names[:4])}{', ...' if len(names) > 4 else ''} in {root}",) if names else ()


def _counted(part: Part, folder: Path, root: Path, clock: Clock) -> tuple[str, Level | None, bool]:
    """How many files there are, in words, whether that is a fault, and whether there is none."""
    path = folder.relative_to(root).as_posix()
    official = 0 if _drawn(root) else dict(part.counts).get(path, part.count)
    number, complete = count_files(folder, part.suffixes, clock.part(0.8))
    if not complete:
        return f"{path}: at least {number:,} files (there was no time to count on)", None, False
    if not number:
        kind = "image" if part.suffixes == IMAGES else part.suffixes[0]
        return f"{path} has no {kind}", "warn" if part.without else "stop", True
    files = f"{path}: {number:,} file{'s' * (number > 1)}"
    if not official or number == official:
        return f"{files}{', as published' if official else ''}", None, False
    return f"{files}, {official:,} were published", "warn", False


def _drawn(root: Path) -> bool:
    """Whether people were drawn in this layout, as many as somebody asked for; some layouts have a folder around."""
    return any(os.path.exists(folder / "synthetic.json") for folder in (root, root.absolute().parent))


def _count_todo(dataset: DataSet, part: Part, root: Path, level: Level) -> tuple[str, ...]:
    if level == "stop":
        return (*_unpack(root), _get(dataset))
    return (_instead(part) or "fine if this is a part of it on purpose; else unpack all archives again",)


def _listed(dataset: DataSet, root: Path, clock: Clock) -> Iterator[Finding]:
    """Images that the annotation names and that are not there, by folder, as the reader looks for them."""
    assert dataset.listing is not None
    paths, field = dataset.listing
    file = next(place for path in paths for place in _matches(root, path))
    try:
        content: Any = json.loads(read_file(file, MAX_LISTING))
        names = [relative(record[field]) for record in content]
    except Exception as error:  # a damaged file fails in any way
        yield Finding("stop", "", f"{file} is no list of images with {field}: {error}", (_get(dataset),))
        return
    lost: Counter[str] = Counter()
    for number, name in enumerate(names):
        if number % 256 == 0 and not clock.left:
            yield Finding("note", "", f"{file.name}: there was time for {number:,} of {len(names):,} images")
            break
        last = "/".join((name or "").split("/")[-3:])
        if name is None or not any(
            os.path.exists(root / place) for place in (f"imgs/{name}", name, f"imgs/{last}", last)
        ):
            lost[(name or "").rpartition("/")[0] or "."] += 1
    if lost:
        text = (
            f"{lost.total():,} of the {len(names):,} images that {file.name} names are not there, by folder:"
        )
        yield Finding(
            "stop", "", text, tuple(f"{folder}: {count:,}" for folder, count in sorted(lost.items())[:12])
        )
