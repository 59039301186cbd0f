"""Person re-identification data: Market-1501, MSMT17 and one's own people, as sorted records.

Query and gallery form one split, query first. There is no validation split: what a run evaluates while it
trains is the test data, as in every ReID code base, so the last epoch is the one to report.
"""

import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hap.data.decoding import Encoded
from hap.data.files import (
    LeftOut,
    file_id,
    first_lines,
    list_files,
    locate,
    read_file,
    read_text,
    relative,
)
from hap.data.tables import read_table
from hap.errors import HapError, printable

log = logging.getLogger(__name__)

JUNK, DISTRACTOR = -1, 0  # identities of Market-1501: not to be ranked; ranked, but nobody's match
NOBODY = -2  # what `identity_in_name` says of a distractor: MSMT17 has a person 0


@dataclass(frozen=True, slots=True)
class ReidRecord(Encoded):
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
        return read_file(self.root / self.name)

    def annotations(self) -> dict[str, Any]:
        return {"identity": self.identity, "camera": self.camera, "is_query": self.is_query}


class Found(NamedTuple):
    """What one line of a list, or one file name, says."""

    name: str
    person: str
    camera: int


_UNPACKED = "data.root is the unpacked data set (usually named {})"
_MARKET_NAME = re.compile(r"(-?\d{1,9})_c(\d{1,9})(?!\d)(s\d)?", re.ASCII)
_NUMBER = re.compile(r"\d{1,9}$", re.ASCII)
_MSMT17_NAME = re.compile(r"(\d{1,9})_\d+_(\d{1,9})_\d{4}(?:morning|noon|afternoon)_", re.ASCII)

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
    root = locate(Path(root), ("bounding_box_train",), _UNPACKED.format("Market-1501-v15.09.15"))
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
    root = locate(Path(root), ("list_train.txt", "bounding_box_train"), _UNPACKED.format("MSMT17_V1"))
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
    there = {folder: set(list_files(root / folder)) for folder in (train, test)}
    found = {
        "train": _msmt17_lists(root, train_lists.split("+"), train, there[train]),
        "query": _msmt17_lists(root, ["query"], test, there[test]),
        "gallery": _msmt17_lists(root, ["gallery"], test, there[test]),
    }
    return _splits(root, found, f"MSMT17 {version}, {train_lists}", counts)


def identity_in_name(name: str) -> tuple[int, int] | None:
    """Person and camera (from 0) as a file is named in Market-1501 or MSMT17; None for junk and other names. Of
    Market-1501's distractors, whose names have a sequence number, the person is `NOBODY`."""
    market = _MARKET_NAME.match(name)
    match = market or _MSMT17_NAME.match(name)
    if not match or int(match[1]) == JUNK:
        return None
    distractor = market and market[3] and int(match[1]) == DISTRACTOR
    return NOBODY if distractor else int(match[1]), int(match[2]) - 1


def read_people(root: Path, table: str = "people.csv") -> Splits:
    """People of one's own: a table, or a folder per person.

    The table has the columns `path` (below `root`), `identity` (any text), `split` (train, query or gallery)
    and, if known, `camera` (any text). Without a table: folders `{train,query,gallery}/IDENTITY/`, with images
    at any depth, without cameras. An image without a camera counts as a camera of its own: then only the very
    same file, whatever its name, is left out of the gallery of a query.

    Raises:
        HapError: columns, values or images are missing; names the lines.
    """
    root = Path(root)
    if (root / table).is_file():
        rows = _table(root, table)
    elif (root / "train").is_dir():
        rows = [row for split in ("train", "query", "gallery") for row in _person_folders(root, split)]
    else:
        raise HapError(
            f"{root} has neither {table} (columns path, identity, split, camera) nor folders "
            f"{{train,query,gallery}}/IDENTITY/*.jpg"
        )
    found: dict[str, list[Found]] = {"train": [], "query": [], "gallery": []}
    for (split, path, person, _), camera in zip(rows, _cameras(root, rows), strict=True):
        found[split].append(Found(path, person, camera))
    return _splits(root, {k: sorted(v) for k, v in found.items()}, "people", None)


Row = tuple[str, str, str, str]  # split, path below the root, identity, camera ("" if unknown)


def _person_folders(root: Path, split: str) -> list[Row]:
    rows, left_out = [], LeftOut()
    for name in list_files(root / split, left_out=left_out):
        person, below, _ = name.partition("/")
        if below:
            rows.append((split, f"{split}/{name}", person, ""))
        else:
            left_out.add("not in a folder of a person", name)
    left_out.log(root / split)
    return rows


def _cameras(root: Path, rows: Sequence[Row]) -> list[int]:
    """A number for the camera of each row. Where none is given: that of the same file in another row, else one
    of its own, the same for all names of the file."""
    files = [path if split == "train" else file_id(root / path) for split, path, _, _ in rows]
    keys: dict[Any, tuple[int, str]] = {}
    for file, (_, path, _, camera) in sorted(zip(files, rows, strict=True), key=lambda row: row[1][1]):
        if camera or file not in keys:
            keys[file] = (0, camera) if camera else (1, path)
    cameras = [(0, row[3]) if row[3] else keys[file] for file, row in zip(files, rows, strict=True)]
    numbers = {camera: i for i, camera in enumerate(sorted(set(cameras)))}
    return [numbers[camera] for camera in cameras]


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
    _check_same_files(root, found["query"], found["gallery"])
    train = _number(root, found["train"])
    test = _number(root, found["query"] + found["gallery"], queries=len(found["query"]))
    return {"train": train, "val": test, "test": test}


def _check_same_files(root: Path, queries: Sequence[Found], gallery: Sequence[Found]) -> None:
    """An image must not find itself: a file in both is left out for having one person and one camera, or else it
    is a mistake in the data."""
    named: dict[Any, list[Found]] = {}
    for item in queries:
        named.setdefault(file_id(root / item.name), []).append(item)
    wrong = [
        f"{printable(query.name)} and {printable(item.name)}"
        for item in gallery
        for query in named.get(file_id(root / item.name), ())
        if (query.person, query.camera) != (item.person, item.camera)
    ]
    if wrong:
        raise HapError(
            f"{root}: {len(wrong)} images are one file in query and gallery, but of different people or cameras"
            + first_lines(wrong)
        )


def _number(root: Path, items: Sequence[Found], queries: int = 0) -> list[ReidRecord]:
    numbers = {person: i for i, person in enumerate(sorted({item.person for item in items}))}
    return [
        ReidRecord(root, item.name, item.person, numbers[item.person], item.camera, is_query=i < queries)
        for i, item in enumerate(items)
    ]


def _market_folders(root: Path, no_query: Iterable[int]) -> dict[str, list[Found]]:
    folders = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
    return {split: _market_folder(root, folder, no_query) for split, folder in folders.items()}


def _market_folder(root: Path, folder: str, no_query: Iterable[int]) -> list[Found]:
    """Parse base names only: the official code searches the whole path, and `/data/exp_10_c2/` is a match."""
    found, left_out = [], LeftOut()
    for name in list_files(root / folder, left_out=left_out):
        match = _MARKET_NAME.match(name)
        if "/" in name:
            left_out.add("in a folder below", name)
            continue
        if not match:
            left_out.add("not an image named PERSON_cCAMERA...", name)
            continue
        person, camera = int(match[1]), int(match[2])
        if folder == "query" and person in no_query:
            raise HapError(
                f"{root / folder / printable(name)}: identity {match[1]} (junk or distractor) cannot be a query"
            )
        if person != JUNK:
            found.append(Found(f"{folder}/{name}", f"{person:04d}", camera - 1))
    left_out.log(root / folder)
    return found


def _msmt17_lists(root: Path, parts: Sequence[str], folder: str, there: set[str]) -> list[Found]:
    """The lists of a split in their own order; every listed image must be there, and counts once."""
    found: dict[str, Found] = {}
    for part in parts:
        path = root / f"list_{part}.txt"
        if not path.is_file():
            raise HapError(
                f"list not found: {path} (MSMT17 comes with list_train, list_val, list_query, list_gallery)"
            )
        missing, again = [], []
        for number, line in enumerate(read_text(path).split("\n"), start=1):
            if not line.strip():
                continue
            listed, _, person = line.strip().rpartition(" ")
            name = relative(listed)
            fields = listed.rpartition("/")[2].split("_")
            if not _NUMBER.match(person) or len(fields) < 3 or not _NUMBER.match(fields[2]):
                raise HapError(
                    f"{path}, line {number}: expected 'PPPP/PPPP_III_CC_....jpg PERSON', got {line!r}"
                )
            if name is None:
                raise HapError(f"{path}, line {number}: {listed!r} leads out of {folder}")
            item = Found(f"{folder}/{name}", f"{int(person):04d}", int(fields[2]) - 1)
            if name not in there:
                missing.append(f"line {number}: {printable(item.name)}")
            if found.setdefault(name, item) != item:
                raise HapError(f"{path}, line {number}: {listed!r} is another person in a line before")
            if found[name] is not item:
                again.append(f"line {number}: {printable(item.name)}")
        if missing:
            raise HapError(f"{path} names {len(missing)} missing images{first_lines(missing)}")
        if again:
            log.warning("%s names %d images again, which count once%s", path, len(again), first_lines(again))
    return list(found.values())


def _table(root: Path, table: str) -> list[Row]:
    """Rows of the CSV table; all mistakes are reported together."""
    rows, errors = [], []
    seen: dict[Any, int] = {}
    for number, cells, too_long, _ in read_table(root / table, ("path", "identity", "split")).rows:
        split, listed, person, camera = (cells.get(c, "") for c in ("split", "path", "identity", "camera"))
        path = relative(listed)
        if too_long:
            problem = "more fields than the first line"
        elif not person:
            problem = "no identity"
        elif split not in ("train", "query", "gallery"):
            problem = f"split {split!r} is not train, query or gallery"
        elif path is None:
            problem = f"path {listed!r} is empty or leads out of {root}"
        elif not os.path.isfile(root / path):
            problem = f"image not found: {listed!r}"
        elif (file := (split, file_id(root / path))) in seen:
            problem = f"the same image as line {seen[file]}"
        else:
            seen[file] = number
            rows.append((split, path, person, camera))
            continue
        errors.append(f"line {number}: {problem}")
    if errors:
        raise HapError(f"{root / table} has {len(errors)} mistakes{first_lines(errors)}")
    return rows
