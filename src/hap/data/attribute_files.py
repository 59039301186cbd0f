"""What the annotation files of attribute data sets say, as one structure: `.mat` as released, `.pkl` as prepared.

Rows and columns are in the order of the file; rows count from 0, though RAP's and PETA's files count from 1.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hap.data import safe_pickle
from hap.data.mat_file import read_mat
from hap.errors import HapError, printable

UNKNOWN = -1  # a label that leaves loss, ratio and metric
MAT_PARTS = ("train", "val", "test")
PARTS = (*MAT_PARTS, "trainval")

# The evaluated attributes: columns of the file, in the order of the outputs of all published models. HAP's and the
# code it builds on keep those that concern one part of the body together.
PA100K_ORDER = (*(7, 8), *range(13, 26), *range(9, 13), *(1, 2, 3, 0, 4, 5, 6))
RAP_ORDER = (*range(9, 43), *(1, 2, 3, 0, 4, 5, 6, 7, 8), *range(43, 51))
PETA_ORDER = (
    *(10, 18, 19, 30, 15, 7, 9, 11, 14, 21, 26, 29, 32, 33, 34, 6, 8, 12, 25, 27, 31, 13, 23, 24, 28),
    *(4, 5, 17, 20, 22, 0, 1, 2, 3, 16),
)
RAP_COLORS, RAP_COLUMNS = range(63, 92), 92
PETA_COLORS, PETA_COLUMNS = range(35, 79), 105
PETA_FIRST = 4  # columns of PETA's `data` before the attributes: image, person, source, a number


@dataclass(frozen=True)
class Annotation:
    """One annotation file.

    Attributes:
        file: where it was read from.
        names: of the image files (N).
        labels: (N, C), as stored: not checked yet.
        attributes: names of the columns (C).
        columns: "eval", the evaluated columns in the order of outputs, and "color" where there are any.
        partitions: part (of `PARTS`) -> an array of rows for each of the random partitions.
        people: number of the person on each image (N), 0 or less where it is not known; None if the file has none.
        description: what the file calls the data set; "" if it does not.
    """

    file: Path
    names: list[str]
    labels: np.ndarray
    attributes: list[str]
    columns: Mapping[str, Sequence[int]]
    partitions: Mapping[str, Sequence[np.ndarray]]
    people: np.ndarray | None = None
    description: str = ""

    def __post_init__(self) -> None:
        if self.labels.ndim != 2:
            raise HapError(f"{self.file}: the labels are no table of rows and columns")
        for what, names, count in (
            ("images", self.names, len(self.labels)),
            ("attributes", self.attributes, self.labels.shape[1]),
        ):
            if len(names) != count:
                raise HapError(f"{self.file}: names of {len(names):,} {what}, labels of {count:,}")
        for column in self.columns["eval"]:
            if not 0 <= column < len(self.attributes):
                raise HapError(
                    f"{self.file}: the evaluated column {column} (counted from 0) is none of {len(self.attributes)}"
                )
        for part, partitions in self.partitions.items():
            for rows in partitions:
                outside = rows[(rows < 0) | (rows >= len(self.names))]
                if len(outside):
                    raise HapError(
                        f"{self.file}: {part} has row {outside[0] + 1:,} (counted from 1), of {len(self.names):,}"
                    )

    def rows(self, part: str, partition: int = 0) -> np.ndarray:
        """The images of a part, in the order of the file. trainval is train followed by val if the file has no
        list of its own. Empty where the file has no such part.

        Raises HapError for a partition that the file has not.
        """
        if part == "trainval" and part not in self.partitions:
            return np.concatenate([self.rows("train", partition), self.rows("val", partition)])
        partitions = self.partitions.get(part)
        if partitions is None:
            return np.empty(0, np.int64)
        if partition not in range(len(partitions)):
            raise HapError(
                f"data.reader.partition={partition}: {self.file} has {len(partitions)}, counted from 0"
            )
        return partitions[partition]


@dataclass(frozen=True)
class Published:
    """The published data of a set, partition 0: images in a part, and SHA-256 of their labels and names.

    Labels: uint8, rows in the order of the partition, the evaluated columns in the order of outputs, RAP's 2 as 0.
    Names: of the files in the same order, joined by line feeds.
    """

    images: Mapping[str, int]
    labels: Mapping[str, str]
    names: Mapping[str, str]

    def differences(self, annotation: Annotation) -> list[str]:
        """What differs, with both values; nothing if these are the published data."""
        found = []
        for part, images in self.images.items():
            rows = annotation.rows(part)
            if len(rows) != images:
                found.append(f"{part} has {len(rows):,} images, published are {images:,}")
                continue
            labels = annotation.labels[rows][:, list(annotation.columns["eval"])]
            with np.errstate(invalid="ignore"):
                labels = np.where(labels == 2, 0, labels).astype(np.uint8)
            names = "\n".join(annotation.names[row] for row in rows)
            for what, content, published in (
                ("labels", labels.tobytes(), self.labels[part]),
                ("names", names.encode("utf-8", "surrogateescape"), self.names[part]),
            ):
                digest = hashlib.sha256(content).hexdigest()
                if digest != published:
                    found.append(f"{part}: SHA-256 of the {what} is {digest}, published is {published}")
        return found


PA100K = Published(
    images={"trainval": 90_000, "test": 10_000},
    labels={
        "trainval": "0e9f1bb256d2edd4a086bb125beff5928248124040d79a713180f5c53905b308",
        "test": "c99c67adb06822523dff44b655949f50f37f4cf24c28c5c898da48acd9616fc2",
    },
    names={
        "trainval": "97e562f3228cab2893c4040110f06577a837c80b70fa2dc966304fab048a4598",
        "test": "686e8965a5597e107a93046e2c2e6b9551f3c344b0ef2187b88f706dbbaac076",
    },
)
RAP = Published(
    images={"trainval": 33_268, "test": 8_317},
    labels={
        "trainval": "be10f6025053452411728fd72eb21ff6702267ee5fd6927f6bb929968f0a0576",
        "test": "cf5cb72595109ee6748870f102a9e69f02863a484f0e0d024c882c609684d73a",
    },
    names={
        "trainval": "7e782b26cc4c38d3538b7c228df1c0ddcad65d6595ecf91fb42f85e634aeff91",
        "test": "86d5984d5d2c6c7f8fb5b1adc787ec047da9412cbda718e1c9fdf34f0b9b2f73",
    },
)
PETA = Published(
    images={"trainval": 11_400, "test": 7_600},
    labels={
        "trainval": "13a666f77c23e9494a6a97de986c42f242b9b0af059d9a8877a9024b89dbd583",
        "test": "59914a439e23580b47b94c6aff397796cdb850dc87480e8505163b1e555984f7",
    },
    names={
        "trainval": "04052c447eaa29c1e262fc9997d30d38f0cada7812cdf9a8c74d7d940dd96bae",
        "test": "959a0cda4c8335a213638d98592d2edb21075d463261cb64c323e4945c70f9be",
    },
)


def pa100k_mat(path: Path) -> Annotation:
    """`annotation.mat` of PA-100K (Liu et al., ICCV 2017). Raises HapError."""
    needed = [f"{part}_{what}" for part in MAT_PARTS for what in ("images_name", "label")]
    found = _fields(path, read_mat(path), "PA-100K", [*needed, "attributes"])
    names = [_strings(path, found[f"{part}_images_name"], "image") for part in MAT_PARTS]
    labels = [_table(path, found[f"{part}_label"], f"{part}_label") for part in MAT_PARTS]
    if len({table.shape[1] for table in labels}) > 1:
        raise HapError(f"{path}: the labels of train, val and test have different numbers of columns")
    for part, own, table in zip(MAT_PARTS, names, labels, strict=True):
        if len(own) != len(table):
            raise HapError(f"{path}: {part} has names of {len(own):,} images, labels of {len(table):,}")
    rows = np.split(np.arange(sum(map(len, names))), np.cumsum([len(own) for own in names])[:-1])
    attributes = _strings(path, found["attributes"], "attribute")
    return Annotation(
        file=path,
        names=[name for own in names for name in own],
        labels=np.concatenate(labels),
        attributes=attributes,
        columns={"eval": _ordered(PA100K_ORDER, range(len(attributes)))},
        partitions={part: [own] for part, own in zip(MAT_PARTS, rows, strict=True)},
    )


def rap_mat(path: Path, version: int) -> Annotation:
    """`RAP_annotation.mat` of RAP v1 (Li et al., 2016) or v2 (Li et al., TIP 2019). Raises HapError, also for the
    other version: they are told apart by their fields."""
    variables = _fields(path, read_mat(path), "RAP", ["RAP_annotation"])
    found = _structure(path, variables["RAP_annotation"], "RAP_annotation")
    is_version = 2 if "partition_attribute" in found else 1
    if version != is_version:
        raise HapError(
            f"{path} is RAP v{is_version} (by its fields), RAP v{version} was asked for: "
            f"get the other file, or set data.reader.version={is_version}"
        )
    return _rap1(path, found) if version == 1 else _rap2(path, found)


def _rap1(path: Path, found: Mapping[str, Any]) -> Annotation:
    _fields(path, found, "RAP v1", ["partion", "label", "attribute_eng", "imagesname"])
    attributes = _strings(path, found["attribute_eng"], "attribute")
    published = len(attributes) == RAP_COLUMNS
    evaluated = len(RAP_ORDER) if published else len(attributes)
    if "attribute_exp" in found:  # short names of the evaluated attributes, which come first
        evaluated = len(_strings(path, found["attribute_exp"], "attribute"))
    columns: dict[str, Sequence[int]] = {"eval": _ordered(RAP_ORDER, range(evaluated))}
    return Annotation(
        file=path,
        names=_strings(path, found["imagesname"], "image"),
        labels=_table(path, found["label"], "label"),
        attributes=attributes,
        columns=columns | ({"color": RAP_COLORS} if published else {}),
        partitions=_partitions(path, found["partion"], {"trainval": "train_index", "test": "test_index"}),
        people=_numbers(path, found["identity"], "identity") if "identity" in found else None,
    )


def _rap2(path: Path, found: Mapping[str, Any]) -> Annotation:
    _fields(path, found, "RAP v2", ["name", "attribute", "data", "selected_attribute"])
    parts = {part: f"{part}_index" for part in MAT_PARTS}
    return Annotation(
        file=path,
        names=_strings(path, found["name"], "image"),
        labels=_table(path, found["data"], "data"),
        attributes=_strings(path, found["attribute"], "attribute"),
        columns={"eval": (_numbers(path, found["selected_attribute"], "selected_attribute") - 1).tolist()},
        partitions=_partitions(path, found["partition_attribute"], parts),
    )


def peta_mat(path: Path) -> Annotation:
    """`PETA.mat`: PETA (Deng et al., ACM MM 2014) as renumbered by Li et al. Raises HapError."""
    variables = _fields(path, read_mat(path), "PETA", ["peta"])
    found = _structure(path, variables["peta"], "peta")
    _fields(path, found, "PETA", ["data", "attribute", "selected_attribute", "partion_attribute"])
    data = _table(path, found["data"], "data")
    if data.shape[1] <= PETA_FIRST:
        raise HapError(f"{path}: data has {data.shape[1]} columns, the attributes begin after {PETA_FIRST}")
    # They count from 1 and among all columns of the data.
    selected = _numbers(path, found["selected_attribute"], "selected_attribute") - 1 - PETA_FIRST
    attributes = _strings(path, found["attribute"], "attribute")
    columns: dict[str, Sequence[int]] = {"eval": _ordered(PETA_ORDER, selected.tolist())}
    if len(attributes) == PETA_COLUMNS:
        columns["color"] = PETA_COLORS
    return Annotation(
        file=path,
        names=[f"{row + 1:05d}.png" for row in range(len(data))],
        labels=data[:, PETA_FIRST:],
        attributes=attributes,
        columns=columns,
        partitions=_partitions(path, found["partion_attribute"], {part: part for part in MAT_PARTS}),
        people=data[:, 1].astype(np.int64),
    )


class _EasyDict(dict):
    """In place of `easydict.EasyDict`, whose attributes hold the same content a second time."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None: ...


_PREPARED_NAMES: dict[tuple[str, str], Any] = {
    ("easydict", "EasyDict"): _EasyDict,
    ("builtins", "range"): range,
    ("__builtin__", "xrange"): range,  # the same in protocol 2
}


def prepared(path: Path) -> Annotation:
    """A pickle in the format of `dataset_all.pkl` (Jia et al., 2021), read without executing it.

    Keys: `image_name`, `label`, `attr_name` (or `attributes`, `attr_words`), `partition` of some of train, val,
    trainval, test, each an array or a list of arrays; `label_idx` with `eval` and `color` may be missing, then all
    columns are evaluated, in their order. Raises HapError.
    """
    try:
        found = safe_pickle.load(path, _PREPARED_NAMES)
    except OSError as error:
        raise HapError(f"cannot read {path}: {error}") from None
    found = _structure(path, found, "it")
    named = next((key for key in ("attr_name", "attributes", "attr_words") if key in found), "attr_name")
    _fields(path, found, "a prepared data set", ["image_name", "label", named, "partition"])
    attributes = _strings(path, found[named], "attribute")
    columns: dict[str, Sequence[int]] = {"eval": range(len(attributes))}
    for key, listed in _structure(path, found.get("label_idx", {}), "label_idx").items():
        if key in ("eval", "color"):
            # One more than there can be: a range may be longer than the memory.
            short = listed[: len(attributes) + 1] if isinstance(listed, range) else listed
            columns[key] = _numbers(path, short, f"label_idx.{key}").tolist()
    parts = _structure(path, found["partition"], "partition")
    return Annotation(
        file=path,
        names=_strings(path, found["image_name"], "image"),
        labels=_table(path, found["label"], "label"),
        attributes=attributes,
        columns=columns,
        partitions={
            part: [_numbers(path, rows, f"partition.{part}") for rows in _each(parts[part])]
            for part in PARTS
            if part in parts and not (isinstance(parts[part], list) and not parts[part])
        },
        description=str(found.get("description", "")),
    )


def _each(value: Any) -> Sequence[Any]:
    """The partitions of a part: an array is the only one, a list has one in each place, or is itself of numbers."""
    return value if isinstance(value, list) and isinstance(value[0], list | np.ndarray) else [value]


def _ordered(order: Sequence[int], evaluated: Sequence[int]) -> Sequence[int]:
    """The published order if these are the published columns, else that of the file."""
    return order if sorted(order) == sorted(evaluated) else evaluated


def _fields(path: Path, found: Mapping[str, Any], title: str, needed: Sequence[str]) -> Mapping[str, Any]:
    if missing := [name for name in needed if name not in found]:
        there = ", ".join(printable(str(name)) for name in found)
        raise HapError(f"{path} is no annotation of {title}: it lacks {', '.join(missing)}, and has {there}")
    return found


def _structure(path: Path, value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise HapError(f"{path}: {name} is no structure with named fields")
    return value


def _strings(path: Path, value: Any, what: str) -> list[str]:
    """Names from a list, an array or cells of strings, without the blanks that a matrix is filled up with."""
    if isinstance(value, np.ndarray):
        value = value.reshape(-1).tolist()
    names = []
    for number, item in enumerate(value if isinstance(value, list) else [value], start=1):
        while isinstance(item, list) and len(item) == 1:
            item = item[0]
        name = item.rstrip() if isinstance(item, str) else ""
        if not name:
            raise HapError(f"{path}: the name of {what} {number:,} is empty, or no text")
        names.append(name)
    try:
        "".join(names).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise HapError(f"{path} holds a name that is no text: {error}") from None
    return names


def _table(path: Path, value: Any, name: str) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf" or value.ndim != 2:
        raise HapError(f"{path}: {name} is no table of numbers")
    return value


def _numbers(path: Path, value: Any, name: str) -> np.ndarray:
    """Whole numbers (N), in whatever shape and type they are stored."""
    try:
        numbers = np.asarray(value).reshape(-1)
    except ValueError:  # lists of different lengths
        numbers = np.empty(1, object)
    if numbers.dtype.kind in "iuf":
        with np.errstate(invalid="ignore"):
            whole = numbers.astype(np.int64)
        if np.array_equal(whole, numbers):
            return whole
    raise HapError(f"{path}: {name} is no list of whole numbers")


def _partitions(path: Path, value: Any, fields: Mapping[str, str]) -> dict[str, list[np.ndarray]]:
    """Of each part, the rows in each of the random partitions. They count from 1 in the file."""
    partitions = value if isinstance(value, list) else [value]
    found: dict[str, list[np.ndarray]] = {part: [] for part in fields}
    for number, partition in enumerate(partitions):
        there = _structure(path, partition, f"partition {number}")
        _fields(path, there, f"partition {number}", list(fields.values()))
        for part, field in fields.items():
            found[part].append(_numbers(path, there[field], f"{field} of partition {number}") - 1)
    return found
