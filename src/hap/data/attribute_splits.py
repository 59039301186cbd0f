"""From an annotation to the rows, columns and labels of the splits that were asked for, all of them checked."""

import dataclasses
import difflib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from hap.data.attribute_files import UNKNOWN, Annotation
from hap.data.files import first_lines, relative
from hap.errors import HapError, printable

log = logging.getLogger(__name__)

TRAIN_SHARE, VAL_SHARE = 0.6, 0.2  # of the images in a split by person


def choose(argument: str, value: Any, options: Sequence[Any]) -> None:
    """Raises HapError if an argument of a reader is none of the options."""
    if value not in options:
        raise HapError(f"data.reader.{argument}={value}: choose from {', '.join(map(str, options))}")


def select(annotation: Annotation, attributes: str | Sequence[str]) -> tuple[list[int], str]:
    """The columns that were asked for, and their number and kind in words. Raises HapError, naming what the file
    has not, or has twice."""
    there = annotation.attributes
    if isinstance(attributes, str):
        if attributes not in ("eval", "color", "all"):
            raise HapError(
                f"data.reader.attributes={attributes}: give eval, color, all, or names in brackets, as [{there[0]}]"
            )
        if attributes == "color" and "color" not in annotation.columns:
            raise HapError(f"data.reader.attributes=color: {annotation.file} does not say which are colours")
        columns = list(range(len(there)) if attributes == "all" else annotation.columns["eval"])
        columns += annotation.columns["color"] if attributes == "color" else ()
        words = f"{len(columns)} attributes ({attributes})"
        if outside := [column for column in columns if not 0 <= column < len(there)]:
            raise HapError(f"{annotation.file}: a colour is column {outside[0]}, of {len(there)} (from 0)")
    else:
        names = [str(name) for name in attributes]
        if unknown := [name for name in names if name not in there]:
            advice = [f"{printable(name)}{_nearest(name, there)}" for name in unknown]
            raise HapError(f"{annotation.file} has no attribute {'; '.join(advice)}")
        if not names:
            raise HapError("data.reader.attributes=[]: name one attribute at least")
        columns = [there.index(name) for name in names]
        words = f"{len(columns)} attributes (chosen)"
    names = [there[column] for column in columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise HapError(
            f"{annotation.file}: the attribute {printable(twice[0])} is there, or asked for, twice"
        )
    return columns, words


def _nearest(name: str, names: Sequence[str]) -> str:
    folded = {other.casefold(): other for other in names}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    if close:
        return f" (did you mean {printable(folded[close[0]])}?)"
    more = ", ..." if len(names) > 12 else ""
    return f" (it has {', '.join(map(printable, names[:12]))}{more})"


def coded(annotation: Annotation, columns: Sequence[int], unsure: str | None) -> np.ndarray:
    """The labels of these columns, int8 (N, A): 0, 1, `UNKNOWN`.

    Args:
        unsure: what a 2 is: "negative", "unknown", or "error" like any other value; None where it cannot be chosen.

    Raises HapError with the column, the values in it, and the first row of a value that is none.
    """
    if unsure is not None:
        choose("unsure", unsure, ("negative", "unknown", "error"))
    stored = annotation.labels[:, columns]
    known = (stored == 0) | (stored == 1) | ((stored == 2) & (unsure in ("negative", "unknown")))
    if not known.all():
        column = int(np.argmin(known.all(axis=0)))
        row = int(np.argmin(known[:, column]))
        values, counts = np.unique(stored[:, column], return_counts=True)
        found = ", ".join(f"{v:g} ({n:,} times)" for v, n in list(zip(values, counts, strict=True))[:6])
        name = printable(annotation.attributes[columns[column]])
        advice = "a table of one's own can say what its values mean: data=attributes"
        if stored[row, column] == 2 and unsure == "error":
            advice = (
                "if 2 is unsure, as in RAP, data.reader.unsure=negative or unknown says what to make of it"
            )
        raise HapError(
            f"{annotation.file}: labels are 0 and 1, but {name} has {found}; the first {stored[row, column]:g} is "
            f"in row {row + 1:,} ({printable(annotation.names[row])}); {advice}"
        )
    labels = stored.astype(np.int8)
    labels[labels == 2] = 0 if unsure == "negative" else UNKNOWN
    return labels


def split_rows(annotation: Annotation, train_on: str, partition: int) -> dict[str, np.ndarray]:
    """Rows of "train" and "test", and with train_on="train" of "val". Raises HapError for an empty one."""
    choose("train_on", train_on, ("trainval", "train"))
    parts = {"train": train_on, "val": "val", "test": "test"}
    if train_on == "trainval":
        del parts["val"]
    rows = {split: annotation.rows(part, partition) for split, part in parts.items()}
    if empty := [parts[split] for split in parts if not len(rows[split])]:
        advice = ""
        if train_on == "train":
            advice = "; data.reader.train_on=trainval trains on all of it, and evaluates on test meanwhile"
            if annotation.people is not None and "val" not in annotation.partitions:
                advice += "; data.reader.split=by_person holds people out for validation"
        raise HapError(f"{annotation.file} has no images of {' and '.join(empty)}{advice}")
    return rows


def image_names(
    annotation: Annotation, rows: dict[str, np.ndarray], labels: np.ndarray, attributes: Sequence[str]
) -> dict[str, list[str]]:
    """The file names of each split. `labels` (N, A) and `attributes` (A) are those of the columns in use.

    Raises HapError for a name that leads out of the folder, an image in two splits, or one that a split has twice
    with different labels. With the same labels it counts twice, which is said.
    """
    seen: dict[str, tuple[str, int]] = {}
    both, differing, again = [], [], []
    names: dict[str, list[str]] = {split: [] for split in rows}
    for split, own in rows.items():
        for row in own.tolist():
            name = relative(annotation.names[row])
            if name is None:
                raise HapError(
                    f"{annotation.file}, image {row + 1:,}: {printable(annotation.names[row])} leads out of the folder"
                )
            names[split].append(name)
            if name not in seen:
                seen[name] = (split, row)
                continue
            other, before = seen[name]
            place = f"{printable(name)}: {other} row {before + 1:,} and {split} row {row + 1:,}"
            if other != split:
                both.append(place)
            elif np.any(differ := labels[before] != labels[row]):
                differing.append(f"{place} ({printable(attributes[int(np.argmax(differ))])})")
            else:
                again.append(place)
    if both:
        raise HapError(f"{annotation.file}: {len(both):,} images are in two splits{first_lines(both)}")
    if differing:
        raise HapError(
            f"{annotation.file}: {len(differing):,} images are there twice, labelled differently"
            + first_lines(differing)
        )
    if again:
        log.warning(
            "%s: %d images are there twice, and count twice%s",
            annotation.file,
            len(again),
            first_lines(again),
        )
    return names


def split_by_person(annotation: Annotation, seed: int) -> Annotation:
    """The same images with the people dealt out at random: nobody in two parts, about 60, 20 and 20 % of the images
    in train, val and test, in the order of the file. Images without a person number are in none.

    Raises HapError for a file without person numbers.
    """
    if annotation.people is None:
        raise HapError(f"{annotation.file} has no person numbers, which split=by_person needs")
    known = np.flatnonzero(annotation.people > 0)
    people, person, images = np.unique(annotation.people[known], return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(people))
    part = np.empty(len(people), np.int64)
    middle = np.cumsum(images[order]) - images[order] / 2  # of each person's images among all
    part[order] = np.searchsorted([TRAIN_SHARE, TRAIN_SHARE + VAL_SHARE], middle / max(1, len(known)))
    if unknown := len(annotation.people) - len(known):
        log.info("%s: %d images without a person number are in no part", annotation.file, unknown)
    parts = {name: [known[part[person] == number]] for number, name in enumerate(("train", "val", "test"))}
    return dataclasses.replace(annotation, partitions=parts)


def shared_people(annotation: Annotation, rows: dict[str, np.ndarray]) -> float | None:
    """Share of the test images of known people whose person is in training as well; None without any such image."""
    if annotation.people is None:
        return None
    test = annotation.people[rows["test"]]
    test = test[test > 0]
    return float(np.isin(test, annotation.people[rows["train"]]).mean()) if len(test) else None
