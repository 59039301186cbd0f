"""Readers of people with descriptions: CUHK-PEDES, ICFG-PEDES, RSTPReid as they are released, and one's own."""

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hap.data.files import LeftOut, first_lines, list_files, locate, read_json, read_text, relative
from hap.data.text_reid import Described, TextRecords
from hap.errors import HapError, printable
from hap.text.tokens import Tokenizer

log = logging.getLogger(__name__)

Splits = dict[str, TextRecords]
Counts = Mapping[str, tuple[int, int, int]]  # split -> images, captions, people
# Makes the tokeniser, of the captions to train on.
Tokens = Callable[[Sequence[str]], Tokenizer]
Protocol = Literal["standard", "official"]


class Published(NamedTuple):
    """A released data set.

    Attributes:
        title: its name.
        files: names of its annotation file.
        image: the field with an image's path.
        counts: of the released splits.
        official: of those that the official code made of them.
        dropped: identities that it leaves out of training.
        merged: whether it trains on the validation part, too.
    """

    title: str
    files: tuple[str, ...]
    image: str
    counts: Counts
    official: Counts
    dropped: frozenset[str] = frozenset()
    merged: bool = False


_CUHK_TEST, _ICFG_TEST, _RSTP_TEST = (3_074, 6_156, 1_000), (19_848, 19_848, 1_000), (1_000, 2_000, 200)
CUHK_PEDES = Published(
    "CUHK-PEDES",
    ("reid_raw.json",),
    "file_path",
    {"train": (34_054, 68_126, 11_003), "val": (3_078, 6_158, 1_000), "test": _CUHK_TEST},
    {"train": (34_051, 68_120, 11_000), "test": _CUHK_TEST},
    dropped=frozenset({"1369", "4116", "6116"}),  # they have one image
)
ICFG_PEDES = Published(
    "ICFG-PEDES",
    ("ICFG-PEDES.json", "ICFG_PEDES.json"),
    "file_path",
    {"train": (34_674, 34_674, 3_102), "test": _ICFG_TEST},
    {"train": (34_664, 34_664, 3_101), "test": _ICFG_TEST},
    dropped=frozenset({"1369"}),  # by a rule for CUHK-PEDES: here it has ten images
)
RSTPREID = Published(
    "RSTPReid",
    ("data_captions.json",),
    "img_path",
    {"train": (18_505, 37_010, 3_701), "val": (1_000, 2_000, 200), "test": _RSTP_TEST},
    {"train": (19_505, 39_010, 3_901), "test": _RSTP_TEST},
    merged=True,
)


def read_cuhk_pedes(root: Path, tokens: Tokens, **options: Any) -> Splits:
    """CUHK-PEDES (Li et al., CVPR 2017): `reid_raw.json`, images below `imgs`; see `read_published`."""
    return read_published(root, CUHK_PEDES, tokens, **options)


def read_icfg_pedes(root: Path, tokens: Tokens, **options: Any) -> Splits:
    """ICFG-PEDES (Ding et al., 2021): `ICFG-PEDES.json`, images below `imgs` or the folder itself. It has no validation
    part; see `read_published`."""
    return read_published(root, ICFG_PEDES, tokens, **options)


def read_rstpreid(root: Path, tokens: Tokens, **options: Any) -> Splits:
    """RSTPReid (Zhu et al., 2021): `data_captions.json`, images in `imgs` or the folder itself; see
    `read_published`."""
    return read_published(root, RSTPREID, tokens, **options)


def read_published(
    root: Path,
    kind: Published,
    tokens: Tokens,
    protocol: Protocol = "standard",
    captions_per_image: int | None = None,
    drop_doubtful: bool = False,
    strict: bool = False,
) -> Splits:
    """A released data set.

    Args:
        tokens: the captions to train on -> tokeniser.
        protocol: "standard", the released splits; or "official", what HAP's code made of them: people are left out of
            the training of CUHK-PEDES and ICFG-PEDES, RSTPReid is trained on its validation part, too, and the best
            epoch is one on the test part.
        captions_per_image: of an image the first so many; None for all.
        drop_doubtful: leave captions out of the training that have no letter, other characters than ASCII, or are
            those of several people.
        strict: other counts than the published ones are an error, not a warning.

    Raises:
        HapError: the file or images are missing, or it has mistakes, all of which are named by their record.
    """
    if protocol not in ("standard", "official"):
        raise HapError(f"data.reader.protocol={protocol}: choose standard or official")
    root = _located(Path(root), kind)
    file = next(root / name for name in kind.files if (root / name).is_file())
    content = read_json(file, "surrogateescape")
    if not isinstance(content, list) or not content:
        raise HapError(f"{file} is not a list of records, one for each image")
    found: dict[str, list[Described]] = {}
    _collect(file, found, enumerate(content), kind.image, "id", "record")
    found = _resolved(root, file, found)
    if protocol == "official":
        merged = [*found.get("train", []), *(found.pop("val", []) if kind.merged else [])]
        found = {"train": [i for i in merged if i.person not in kind.dropped], "test": found.get("test", [])}
    counts = kind.official if protocol == "official" else kind.counts
    return _splits(
        root, found, f"{kind.title}, {protocol}", counts, tokens, captions_per_image, drop_doubtful, strict
    )


def read_described(
    root: Path,
    tokens: Tokens,
    table: str = "captions.jsonl",
    captions_per_image: int | None = None,
    drop_doubtful: bool = False,
) -> Splits:
    """People of one's own: a file with a JSON object on each line, `image` (path below the root), `identity` (any
    text or number), `split` (train, val or test) and `captions` (a list of sentences; in the gallery it may be empty).

    Other arguments, errors: see `read_published`.
    """
    root, file = Path(root), Path(root) / table
    if not file.is_file():
        raise HapError(
            f"{file} is missing: a line for each image, "
            '{"image": "a.jpg", "identity": "p1", "split": "train", "captions": ["a woman in a red coat"]}'
        )
    rows: list[tuple[int, Any]] = []
    for number, line in enumerate(read_text(file, "surrogateescape").split("\n"), start=1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise HapError(f"{file}, line {number} is no JSON: {error}") from None
    found: dict[str, list[Described]] = {}
    _collect(file, found, rows, "image", "identity", "line")
    return _splits(
        root, _resolved(root, file, found), "people", None, tokens, captions_per_image, drop_doubtful, False
    )


def _located(root: Path, kind: Published) -> Path:
    try:
        return locate(root, kind.files, f"data.root is the unpacked data set (usually named {kind.title})")
    except HapError:
        if kind is CUHK_PEDES and root.is_dir() and any(root.glob("**/caption_all.json")):
            raise HapError(
                f"{root} has caption_all.json, which has no splits: reid_raw.json is a download of its own, from "
                "the authors of CUHK-PEDES"
            ) from None
        raise


_SPLITS = ("train", "val", "test")


def _collect(
    file: Path,
    found: dict[str, list[Described]],
    records: Iterable[tuple[int, Any]],
    image: str,
    identity: str,
    unit: str,
) -> None:
    """Sort the records of a file into splits. Raises HapError with all mistakes."""
    mistakes = []
    for number, record in records:
        if isinstance(problem := _described(record, image, identity), str):
            mistakes.append(f"{unit} {number}: {problem}")
        else:
            found.setdefault(problem[0], []).append(problem[1])
    if mistakes:
        raise HapError(f"{file} has {len(mistakes)} mistakes{first_lines(mistakes)}")


def _described(record: Any, image: str, identity: str) -> tuple[str, Described] | str:
    """The split and the image of a record, or what is wrong with it."""
    if not isinstance(record, dict):
        return "it is no object with fields"
    if missing := [key for key in ("split", identity, image, "captions") if key not in record]:
        return f"no {', '.join(missing)}"
    split, person, name, captions = (record[key] for key in ("split", identity, image, "captions"))
    if not isinstance(split, str) or split.lower() not in _SPLITS:
        return f"split {split!r} is not train, val or test"
    if isinstance(person, bool) or not isinstance(person, int | str) or person == "":
        return f"{identity} {person!r} is no name or number"
    path = relative(name) if isinstance(name, str) and name else None
    if path is None:
        return f"{image} {name!r} is no path below the folder"
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        return "captions is not a list of sentences"
    return split.lower(), Described(path, str(person), tuple(captions))


def _resolved(root: Path, file: Path, found: dict[str, list[Described]]) -> dict[str, list[Described]]:
    """Paths below the root: images are in `imgs` or not, ICFG-PEDES's also without what stands before the last three
    parts (as the official code has them). Raises HapError with a line for each folder that lacks images."""
    left_out = LeftOut()
    there = set(list_files(root, left_out=left_out))
    resolved: dict[str, list[Described]] = {}
    lost: Counter[str] = Counter()
    for split, items in found.items():
        resolved[split] = []
        for item in items:
            last = "/".join(item.name.split("/")[-3:])
            places = (f"imgs/{item.name}", item.name, f"imgs/{last}", last)
            name = next((place for place in places if place in there), None)
            if name is None:
                lost[item.name.rpartition("/")[0] or "."] += 1
            else:
                resolved[split].append(item._replace(name=name))
    if lost:
        left_out.log(root)
        lines = [f"{printable(folder)}: {count:,}" for folder, count in sorted(lost.items())]
        raise HapError(
            f"{root} lacks {lost.total():,} of the images that {file.name} names, by folder"
            f"{first_lines(lines)}\nthey are looked for below {root}/imgs and {root}"
        )
    return resolved


def _splits(
    root: Path,
    found: dict[str, list[Described]],
    title: str,
    published: Counts | None,
    tokens: Tokens,
    captions_per_image: int | None,
    drop_doubtful: bool,
    strict: bool,
) -> Splits:
    """Check, count and tokenise the splits; where there is no validation part, or no test part, the other stands for
    it."""
    if captions_per_image is not None and captions_per_image < 1:
        raise HapError(f"data.reader.captions_per_image={captions_per_image}: 1 or more, or null for all")
    for split in ("train", "test" if "test" in found else "val"):
        if not any(item.captions for item in found.get(split, ())):
            raise HapError(f"{title}: no {split} images with captions in {root}")
    differs = []
    for split, items in found.items():
        counts = len(items), sum(len(i.captions) for i in items), len({i.person for i in items})
        log.info("%s: %s %s images, %s captions, %s people", title, split, *(f"{c:,}" for c in counts))
        if published and split in published and counts != published[split]:
            expected = "{:,} images, {:,} captions, {:,} people".format(*published[split])
            differs.append(f"{title}: {split} is not the published set, which has {expected}")
    if differs and strict:
        raise HapError("\n".join(differs))
    for line in differs:
        log.warning("%s", line)
    if captions_per_image is not None:
        title += f", {captions_per_image} captions per image"
        found = {
            split: [item._replace(captions=item.captions[:captions_per_image]) for item in items]
            for split, items in found.items()
        }
    for split, items in found.items():
        doubtful = _doubtful(f"{title}: {split}", items)
        if split == "train" and drop_doubtful and doubtful:
            found[split] = [
                item._replace(
                    captions=tuple(c for i, c in enumerate(item.captions) if (number, i) not in doubtful)
                )
                for number, item in enumerate(items)
            ]
            title += ", doubtful captions left out of training"
            log.info("%s: %s captions are left out", title, f"{len(doubtful):,}")
    # Nobody gets a class without a caption to learn it from.
    found["train"] = [item for item in found["train"] if item.captions]
    if not found["train"]:
        raise HapError(f"{title}: no train images with captions in {root}")
    tokenizer = cache(lambda: tokens([caption for item in found["train"] for caption in item.captions]))
    splits = {
        split: TextRecords(root, items, tokenizer, pairs=split == "train", source=title)
        for split, items in found.items()
    }
    test = splits.get("test", splits.get("val"))
    return {"train": splits["train"], "val": splits.get("val", test), "test": test}  # type: ignore[dict-item]


_LETTER = re.compile(r"[^\W\d_]")


def _doubtful(where: str, items: Sequence[Described]) -> set[tuple[int, int]]:
    """Captions that seem to describe nobody, or several people, by image and number; they are counted in the log."""
    people: dict[str, set[str]] = {}
    for item in items:
        for caption in item.captions:
            people.setdefault(caption, set()).add(item.person)
    reasons: dict[str, list[tuple[int, int]]] = {}
    for number, item in enumerate(items):
        for i, caption in enumerate(item.captions):
            if not _LETTER.search(caption):
                reasons.setdefault("without a letter", []).append((number, i))
            elif len(people[caption]) > 1:
                reasons.setdefault("of several people", []).append((number, i))
            elif not caption.isascii():
                reasons.setdefault("with other characters than ASCII", []).append((number, i))
    for reason, places in reasons.items():
        shown = [f"{items[n].name}: {items[n].captions[i]!r}" for n, i in places]
        log.warning(
            "%s: %s captions %s%s",
            where,
            f"{len(places):,}",
            reason,
            first_lines([printable(s) for s in shown], 3),
        )
    return {place for places in reasons.values() for place in places}
