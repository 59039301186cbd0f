"""Person re-identification data: Market-1501, MSMT17 and one's own people, as sorted records.

Query and gallery form one split, query first. There is no validation split: what a run evaluates while it
trains is the test data, as in every ReID code base, so the last epoch is the one to report.
"""

import csv
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hap.errors import HapError

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
JUNK, DISTRACTOR = -1, 0  # identities of Market-1501: not to be ranked; ranked, but nobody's match


@dataclass(frozen=True, slots=True)
class ReidRecord:
    """One image of one person.

    Attributes:
        root: folder of the data set.
        name: path of the image below `root`.
        person: the identity as the data set writes it, for pictures and tables.
        identity: its number, from 0 without gaps in the order of the names: the class in training, common to
            query and gallery in the test. The people of training and test are different ones.
        camera: from 0. A query is not compared with images of the same person by the same camera.
        is_query: query or gallery; False in training.
    """

    root: Path
    name: str
    person: str
    identity: int
    camera: int
    is_query: bool = False

    def encoded(self) -> bytes:
        return (self.root / self.name).read_bytes()

    def annotations(self) -> dict[str, Any]:
        return {"identity": self.identity, "camera": self.camera, "is_query": self.is_query}


class Found(NamedTuple):
    """What one line of a list, or one file name, says."""

    name: str
    person: str
    camera: int


_MARKET_NAME = re.compile(r"(-?\d+)_c(\d+)")
_MSMT17_NAME = re.compile(r"(\d+)_\d+_(\d+)_\d{4}(?:morning|noon|afternoon)_")

Splits = dict[str, list[ReidRecord]]
Counts = dict[str, tuple[int, int, int]]  # split -> images, people, cameras

MARKET1501: Counts = {"train": (12_936, 751, 6), "query": (3_368, 750, 6), "gallery": (15_913, 751, 6)}
MSMT17: Counts = {"train": (32_621, 1_041, 15), "query": (11_659, 3_060, 15), "gallery": (82_161, 3_060, 15)}
MSMT17_TRAIN_ONLY: Counts = MSMT17 | {"train": (30_248, 1_041, 15)}


def read_market1501(root: Path) -> Splits:
    """Market-1501 (Zheng et al., ICCV 2015): `bounding_box_train`, `bounding_box_test` (gallery), `query`.

    Names are `PPPP_cCsS_FFFFFF_BB.jpg`: person, camera, sequence, frame, box. Junk (`-1`) is left out,
    distractors (`0000`) stay in the gallery. Data sets of one's own in this layout are read as well.

    Official counts: 12,936 training images of 751 people, 3,368 queries of 750, 15,913 gallery images (2,798
    of them distractors; 3,819 junk images are not counted), 6 cameras.

    Raises:
        HapError: a folder is missing or holds no image, or a query is junk or a distractor.
    """
    root = _locate(Path(root), "bounding_box_train", "Market-1501-v15.09.15")
    return _splits(root, _market_folders(root, no_query=(JUNK, DISTRACTOR)), "Market-1501", MARKET1501)


def read_msmt17(root: Path, train_lists: Literal["train+val", "train"] = "train+val") -> Splits:
    """MSMT17 (Wei et al., CVPR 2018), as released or repacked in the folders of Market-1501.

    As released: `list_{train,val,query,gallery}.txt` of lines `PPPP/PPPP_III_CC_MMDDslot_FFFF_B.jpg PERSON`,
    images below `train` and `test` (V1, faces visible) or `mask_train_v2` and `mask_test_v2` (V2, faces
    blurred, which costs 1.5 to 2 points of mAP). Repacked: `bounding_box_train` (train and val),
    `bounding_box_test` (gallery), `query` with names `PPPP_cC_IIII.jpg`; the official HAP code reads this.

    Official counts: 32,621 training images of 1,041 people (30,248 without val), 11,659 queries and 82,161
    gallery images of 3,060, 15 cameras.

    Args:
        train_lists: "train+val" as in HAP and most others, or "train" alone (only as released).

    Raises:
        HapError: a list, folder or listed image is missing, or a line cannot be parsed.
    """
    root = _locate(Path(root), ("list_train.txt", "bounding_box_train"), "MSMT17_V1")
    counts = MSMT17 if train_lists == "train+val" else MSMT17_TRAIN_ONLY
    if not (root / "list_train.txt").exists():
        if train_lists == "train":
            raise HapError(
                f"{root}/bounding_box_train mixes train and val: train_lists=train needs the list files"
            )
        found = _market_folders(root, no_query=(JUNK,))
        return _splits(root, found, "MSMT17 (repacked, V1 or V2 unknown)", counts)
    version = "V2" if (root / "mask_train_v2").is_dir() else "V1"
    train, test = ("mask_train_v2", "mask_test_v2") if version == "V2" else ("train", "test")
    found = {
        "train": [line for part in train_lists.split("+") for line in _msmt17_list(root, part, train)],
        "query": _msmt17_list(root, "query", test),
        "gallery": _msmt17_list(root, "gallery", test),
    }
    return _splits(root, found, f"MSMT17 {version}, {train_lists}", counts)


def identity_in_name(name: str) -> tuple[int, int] | None:
    """Person and camera (from 0) as a file is named in Market-1501 or MSMT17; None for junk and other names."""
    match = _MARKET_NAME.match(name) or _MSMT17_NAME.match(name)
    if not match or int(match[1]) == JUNK:
        return None
    return int(match[1]), int(match[2]) - 1


def read_people(root: Path, table: str = "people.csv") -> Splits:
    """People of one's own: a table, or a folder per person.

    The table has the columns `path` (below `root`), `identity` (any text), `split` (train, query or gallery)
    and, if known, `camera` (any text). Without a table: folders `{train,query,gallery}/IDENTITY/*.jpg`,
    without cameras. An image without a camera counts as a camera of its own: then only the very same file is
    left out of the gallery of a query.

    Raises:
        HapError: columns, values or images are missing; names the lines.
    """
    root = Path(root)
    if (root / table).is_file():
        rows = _table(root, table)
    elif (root / "train").is_dir():
        rows = [
            (split, f"{split}/{person}/{file}", person, "")
            for split in ("train", "query", "gallery")
            for person in _visible(root / split)
            if (root / split / person).is_dir()
            for file in _visible(root / split / person)
            if file.lower().endswith(IMAGE_SUFFIXES)
        ]
    else:
        raise HapError(
            f"{root} has neither {table} (columns path, identity, split, camera) nor folders "
            f"{{train,query,gallery}}/IDENTITY/*.jpg"
        )
    cameras = {camera: i for i, camera in enumerate(sorted({camera or path for _, path, _, camera in rows}))}
    found: dict[str, list[Found]] = {"train": [], "query": [], "gallery": []}
    for split, path, person, camera in rows:
        found[split].append(Found(path, person, cameras[camera or path]))
    return _splits(root, {k: sorted(v) for k, v in found.items()}, "people", None)


def _splits(root: Path, found: dict[str, list[Found]], title: str, published: Counts | None) -> Splits:
    """Number the people and report the counts next to the published ones."""
    for split, items in found.items():
        if not items:
            raise HapError(f"{title}: no {split} images in {root}")
        counts = len(items), len({i.person for i in items}), len({i.camera for i in items})
        log.info("%s: %s %s images of %s people, %s cameras", title, split, *(f"{c:,}" for c in counts))
        if published and counts != published[split]:
            expected = "{:,} images of {:,} people, {:,} cameras".format(*published[split])
            log.warning("%s: %s is not the published set, which has %s", title, split, expected)
    train = _number(root, found["train"])
    test = _number(root, found["query"] + found["gallery"], queries=len(found["query"]))
    return {"train": train, "val": test, "test": test}


def _number(root: Path, items: Sequence[Found], queries: int = 0) -> list[ReidRecord]:
    numbers = {person: i for i, person in enumerate(sorted({item.person for item in items}))}
    return [
        ReidRecord(root, item.name, item.person, numbers[item.person], item.camera, is_query=i < queries)
        for i, item in enumerate(items)
    ]


def _locate(root: Path, markers: str | tuple[str, ...], usual: str) -> Path:
    """The folder at `root` or up to two levels below that holds one of the markers."""
    markers = (markers,) if isinstance(markers, str) else markers
    level = [root]
    for _ in range(3):
        matches = [folder for folder in level if any((folder / marker).exists() for marker in markers)]
        if len(matches) > 1:
            raise HapError(
                f"several data sets below {root}: {', '.join(map(str, matches))}; set data.root to one"
            )
        if matches:
            return matches[0]
        level = sorted(entry for folder in level for entry in folder.iterdir() if entry.is_dir())
    raise HapError(
        f"no {' or '.join(markers)} in {root} or the folders below it: data.root is the unpacked data set "
        f"(usually named {usual})"
    )


def _visible(folder: Path) -> list[str]:
    """Sorted names in a folder, without hidden files and the leftovers of Windows and macOS."""
    if not folder.is_dir():
        raise HapError(f"folder not found: {folder}")
    return sorted(
        n for n in os.listdir(folder) if not n.startswith(".") and n not in ("Thumbs.db", "__MACOSX")
    )


def _market_folders(root: Path, no_query: Iterable[int]) -> dict[str, list[Found]]:
    folders = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
    return {split: _market_folder(root, folder, no_query) for split, folder in folders.items()}


def _market_folder(root: Path, folder: str, no_query: Iterable[int]) -> list[Found]:
    """Parse base names only: the official code searches the whole path, and `/data/exp_10_c2/` is a match."""
    found, unparsed = [], []
    for name in _visible(root / folder):
        match = _MARKET_NAME.match(name)
        if not match or not name.lower().endswith(IMAGE_SUFFIXES):
            unparsed.append(f"{name}: not an image named PERSON_cCAMERA...")
            continue
        person, camera = int(match[1]), int(match[2])
        if folder == "query" and person in no_query:
            raise HapError(
                f"{root / folder / name}: identity {match[1]} (junk or distractor) cannot be a query"
            )
        if person != JUNK:
            found.append(Found(f"{folder}/{name}", f"{person:04d}", camera - 1))
    if unparsed:
        log.warning("%s: %d files left out%s", root / folder, len(unparsed), _first(unparsed))
    return found


def _msmt17_list(root: Path, part: str, folder: str) -> list[Found]:
    """One list in its own order; every listed image must be there."""
    path = root / f"list_{part}.txt"
    if not path.is_file():
        raise HapError(
            f"list not found: {path} (MSMT17 comes with list_train, list_val, list_query, list_gallery)"
        )
    names = cache(lambda directory: set(os.listdir(directory)) if directory.is_dir() else set())
    found, missing = [], []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        listed, _, person = line.strip().rpartition(" ")
        directory, base = os.path.split(listed)
        fields = base.split("_")
        if not person.isdecimal() or len(fields) < 3 or not fields[2].isdecimal():
            raise HapError(f"{path}, line {number}: expected 'PPPP/PPPP_III_CC_....jpg PERSON', got {line!r}")
        if base not in names(root / folder / directory):
            missing.append(f"line {number}: {folder}/{listed}")
        found.append(Found(f"{folder}/{listed}", f"{int(person):04d}", int(fields[2]) - 1))
    if missing:
        raise HapError(f"{path} names {len(missing)} missing images{_first(missing)}")
    return found


def _table(root: Path, table: str) -> list[tuple[str, str, str, str]]:
    """Rows (split, path, identity, camera) of the CSV table; all mistakes are reported together."""
    rows, errors = [], []
    with (root / table).open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        lacking = [c for c in ("path", "identity", "split") if c not in columns]
        if lacking:
            raise HapError(
                f"{root / table}: no column {', '.join(lacking)}; the first line has {', '.join(columns)}"
            )
        seen: dict[tuple[str, str], int] = {}
        for row in reader:
            split, path, person, camera = (
                (row.get(c) or "").strip() for c in ("split", "path", "identity", "camera")
            )
            if row.get(None):
                problem = "more fields than the first line"
            elif not person:
                problem = "no identity"
            elif split not in ("train", "query", "gallery"):
                problem = f"split {split!r} is not train, query or gallery"
            elif not path or not (root / path).is_file():
                problem = f"image not found: {path!r}"
            elif (split, path) in seen:
                problem = f"the same image as line {seen[split, path]}"
            else:
                seen[split, path] = reader.line_num
                rows.append((split, path, person, camera))
                continue
            errors.append(f"line {reader.line_num}: {problem}")
    if errors:
        raise HapError(f"{root / table} has {len(errors)} mistakes{_first(errors)}")
    return rows


def _first(lines: list[str], most: int = 10) -> str:
    """The first of many findings, for a message."""
    shown = lines[:most] + ([f"... and {len(lines) - most} more"] if len(lines) > most else [])
    return "".join(f"\n  {line}" for line in shown)
