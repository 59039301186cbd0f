"""Pedestrian attribute data: images of one person each, with a row of labels.

A split is one object: names and one matrix of labels, not a list of 90,000 rows. It is a sequence of records like
any other; the names of the attributes, in the order of the columns, are those of the model's outputs.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from hap.data.attribute_files import (
    PA100K,
    PETA,
    RAP,
    UNKNOWN,
    Annotation,
    Published,
    pa100k_mat,
    peta_mat,
    prepared,
    rap_mat,
)
from hap.data.attribute_splits import (
    choose,
    coded,
    image_names,
    select,
    shared_people,
    split_by_person,
    split_rows,
)
from hap.data.decoding import Encoded
from hap.data.files import check_images, first_lines, locate, read_file
from hap.errors import HapError, printable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AttributeRecord(Encoded):
    """One image of one person.

    Attributes:
        root: folder of the images.
        name: path of the image below `root`.
        labels: int8 (A,): 1 has the attribute, 0 has not, `UNKNOWN`.
    """

    root: Path
    name: str
    labels: np.ndarray

    def encoded(self) -> bytes:
        return read_file(self.root / self.name)

    def annotations(self) -> dict[str, Any]:
        return {"labels": self.labels}


class AttributeRecords(Sequence[AttributeRecord]):
    """The images of one split.

    Args:
        root: folder of the images.
        names: their paths below `root` (N).
        labels: int8 (N, A), see `AttributeRecord`.
        attributes: names of the columns (A), all different.
        protocol: which data these are, as a table of results names them: set, partition, parts, attributes.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        labels: np.ndarray,
        attributes: Sequence[str],
        protocol: str = "",
    ):
        assert labels.shape == (len(names), len(attributes))
        self.protocol = protocol
        self.root, self.names, self.attributes = root, list(names), tuple(attributes)
        self.labels = labels.astype(np.int8)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> AttributeRecord: ...
    @overload
    def __getitem__(self, index: slice) -> "AttributeRecords": ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return AttributeRecords(
                self.root, self.names[index], self.labels[index], self.attributes, self.protocol
            )
        return AttributeRecord(self.root, self.names[index], self.labels[index])

    def arranged(self, attributes: Sequence[str]) -> "AttributeRecords":
        """The same images with the columns in this order.

        Raises:
            HapError: names the attributes that only one side has.
        """
        if missing := [name for name in attributes if name not in self.attributes]:
            raise HapError(f"{self.root}: no labels for {', '.join(missing)}, which the model puts out")
        if new := [name for name in self.attributes if name not in attributes]:
            raise HapError(f"{self.root}: the model does not put out {', '.join(new)}, which the data label")
        columns = [self.attributes.index(name) for name in attributes]
        return AttributeRecords(self.root, self.names, self.labels[:, columns], attributes, self.protocol)


Splits = dict[str, AttributeRecords]


def log_labels(title: str, splits: Splits) -> None:
    """A table of the positives of each attribute in training and test, with their share of the known labels.

    An attribute that a split has no positive or no negative of is one warning with its name.

    Raises:
        HapError: an attribute is unknown on every training image.
    """
    sets = {"train": splits["train"], "test": splits["test"]}
    if splits["val"] is not splits["test"]:
        sets = {"train": splits["train"], "val": splits["val"], "test": splits["test"]}
    attributes = splits["train"].attributes
    positive = {split: (records.labels == 1).sum(axis=0) for split, records in sets.items()}
    known = {split: (records.labels != UNKNOWN).sum(axis=0) for split, records in sets.items()}
    if lost := [name for name, count in zip(attributes, known["train"], strict=True) if not count]:
        raise HapError(
            f"{title}: {', '.join(map(printable, lost))} is unknown on every training image: leave it out "
            f"(data.reader.attributes=[NAMES])"
        )
    for split in sets:
        for what, count in (("positives", positive[split]), ("negatives", known[split] - positive[split])):
            if none := [printable(name) for name, n in zip(attributes, count, strict=True) if not n]:
                log.warning("%s: no %s in %s of %s", title, what, split, ", ".join(none))
    width = max(len(printable(name)) for name in attributes)
    lines = [f"{'positive (share)':{width}}" + "".join(f"{split:>20}" for split in sets)]
    for column, name in enumerate(attributes):
        cells = [
            f"{positive[split][column]:>10,} {positive[split][column] / max(1, known[split][column]):>9.6f}"
            for split in sets
        ]
        lines.append(f"{printable(name):{width}}" + "".join(cells))
    log.info("%s, labels:\n  %s", title, "\n  ".join(lines))


PREPARED, ZERO_SHOT = "dataset_all.pkl", "dataset_zs_run0.pkl"
PA100K_FILES = ("annotation.mat", "annotation/annotation.mat")
PA100K_IMAGES = ("data", "release_data/release_data", "data/release_data/release_data")
RAP_FILES = ("RAP_annotation/RAP_annotation.mat", "RAP_annotation.mat")
PETA_FILES = ("PETA.mat",)
_NO_ZERO_SHOT = (
    "it is the published split without shared people; data.reader.split=by_person makes another one from the "
    "annotation file, whose numbers do not compare"
)


class _Set(NamedTuple):
    """A published data set."""

    title: str
    description: str  # of its prepared pickles, at the beginning
    files: tuple[str, ...]  # the annotation, below the root
    images: tuple[str, ...]  # the folder of the images, as the archives unpack
    read: Callable[[Path], Annotation]
    published: Published | None = None
    version: int | None = None  # of RAP, if a pickle has to be told from the other one's


def read_pa100k(root: Path, train_on: str = "trainval", attributes: str | Sequence[str] = "eval") -> Splits:
    """PA-100K (Liu et al., ICCV 2017): 26 attributes, `annotation.mat` (or `dataset_all.pkl`) and `data/*.jpg`.

    Official counts: 90,000 images of trainval (80,000 of train, 10,000 of val), 10,000 of test.

    Args:
        train_on: "trainval", as all published numbers, which leaves no validation data: val is the test part; or
            "train", with val as validation part.
        attributes: "eval", in the order of published models, "all" in the order of the file, or names, in any order.

    Raises:
        HapError: a file, image or attribute is missing, or labels are not 0 and 1.
    """
    dataset = _Set("PA-100K", "pa100k", PA100K_FILES, PA100K_IMAGES, pa100k_mat, PA100K)
    return _read(dataset, root, train_on, attributes)


def read_rap(
    root: Path,
    train_on: str = "trainval",
    partition: int = 0,
    attributes: str | Sequence[str] = "eval",
    unsure: str = "negative",
    split: str = "random",
    split_seed: int = 0,
    version: int = 1,
) -> Splits:
    """RAP v1 (Li et al., 2016): 51 of 92 attributes, `RAP_annotation/RAP_annotation.mat` (or `dataset_all.pkl`) and
    `RAP_dataset/*.png`.

    Official counts: 33,268 images of trainval, 8,317 of test. There is no validation part. The random partitions
    share people: 98.9 % of the test images with a person number show somebody who is trained on.

    Args:
        train_on: "trainval"; "train" too where the split has a validation part.
        partition: 0 (that of published numbers) to 4, of the random split.
        attributes: see `read_pa100k`; "color" is the evaluated ones, then 29 colours.
        unsure: what label 2 is (Female, 125 images): "negative", as in published numbers, or "unknown".
        split: "random"; "zero_shot", `dataset_zs_run0.pkl` (RAPzs of Jia et al., 2021, images of RAP v2); or
            "by_person", made here: 60, 20 and 20 % of the images that have a person number, nobody in two parts.
        split_seed: of the split by person.
        version: 1, or 2 for RAP v2 (Li et al., TIP 2019; 54 attributes, five partitions into train, val and test).

    Raises:
        HapError: as `read_pa100k`; or the annotation is of the other version.
    """
    choose("version", version, (1, 2))
    title = "RAP" if split == "zero_shot" else f"RAP v{version}"
    read, published = partial(rap_mat, version=version), RAP if version == 1 else None
    told = version if split == "random" else None
    dataset = _Set(title, "rap", RAP_FILES, ("RAP_dataset",), read, published, told)
    return _read(dataset, root, train_on, attributes, partition, split, split_seed, unsure)


def read_peta(
    root: Path,
    train_on: str = "trainval",
    partition: int = 0,
    attributes: str | Sequence[str] = "eval",
    split: str = "random",
    split_seed: int = 0,
) -> Splits:
    """PETA (Deng et al., ACM MM 2014): 35 of 105 attributes, `PETA.mat` (or `dataset_all.pkl`) and `images/*.png`.

    Official counts: 11,400 images of trainval (9,500 of train, 1,900 of val), 7,600 of test. The random partitions
    share people: 57.7 % of the test images show somebody who is trained on.

    Args: see `read_rap`. "color" is the evaluated attributes, then 44 colours.

    Raises:
        HapError: as `read_pa100k`.
    """
    dataset = _Set("PETA", "peta", PETA_FILES, ("images",), peta_mat, PETA)
    return _read(dataset, root, train_on, attributes, partition, split, split_seed)


def read_prepared(
    root: Path,
    file: str = PREPARED,
    images: str = "images",
    train_on: str = "trainval",
    partition: int = 0,
    attributes: str | Sequence[str] = "eval",
    unsure: str = "error",
) -> Splits:
    """Any data set that comes as a pickle in the format of `dataset_all.pkl`: RAP v2, MSP60K, one's own.

    Args:
        file, images: the pickle and the folder of the images, below the root.
        train_on, partition, attributes: see `read_rap`.
        unsure: what a label 2 is: "negative", "unknown", or an "error".

    Raises:
        HapError: as `read_pa100k`.
    """
    root = Path(root)
    annotation = prepared(root / file)
    title = f"{printable(annotation.description) or 'data'} ({file})"
    return _splits(annotation, root, (images,), title, train_on, attributes, partition, unsure)


def _read(
    dataset: _Set,
    root: Path,
    train_on: str,
    attributes: str | Sequence[str],
    partition: int = 0,
    split: str = "random",
    split_seed: int = 0,
    unsure: str | None = None,
) -> Splits:
    choose("split", split, ("random", "zero_shot", "by_person"))
    if partition and split != "random":
        raise HapError(
            f"data.reader.partition={partition} is of the random split: split={split} has no partitions"
        )
    files, advice = (*dataset.files, PREPARED), f"data.root is the unpacked {dataset.title}"
    if split == "zero_shot":
        files, advice = (ZERO_SHOT,), _NO_ZERO_SHOT
    root = locate(Path(root), files, advice)
    file = next(root / name for name in files if os.path.exists(root / name))
    annotation = dataset.read(file) if file.suffix == ".mat" else prepared(file)
    title, note = dataset.title, ""
    if file.suffix == ".pkl":
        _check_release(annotation, dataset)
    if split == "random":
        if len(annotation.partitions.get("test", ())) > 1:
            title += f" partition {partition}"
        if dataset.published:
            note = _compared(annotation, dataset)
    elif split == "zero_shot":
        title += f" zero-shot ({ZERO_SHOT})"
    else:
        annotation = split_by_person(annotation, split_seed)
        title, note = (
            f"{title} by person (our own split, seed {split_seed})",
            ", not the published zero-shot split",
        )
    return _splits(annotation, root, dataset.images, title, train_on, attributes, partition, unsure, note)


def _check_release(annotation: Annotation, dataset: _Set) -> None:
    """A pickle is of the data set that was asked for; RAP v1 alone has no validation part."""
    described = annotation.description.lower()
    if described and not described.startswith(dataset.description):
        raise HapError(
            f"{annotation.file} describes {printable(annotation.description)}, {dataset.title} was asked for: "
            f"choose its own data=..., or data=prepared, which reads any"
        )
    is_version = 2 if "train" in annotation.partitions else 1
    if dataset.version and dataset.version != is_version:
        raise HapError(
            f"{annotation.file} is RAP v{is_version} (by its parts), {dataset.title} was asked for: get the other "
            f"file, or set data.reader.version={is_version}"
        )


def _compared(annotation: Annotation, dataset: _Set) -> str:
    """Whether these are the published data, in words."""
    assert dataset.published
    if differences := dataset.published.differences(annotation):
        log.warning("%s is not the published %s%s", annotation.file, dataset.title, first_lines(differences))
        return ", differs from the published data"
    log.info("%s: counts, labels and names match the published data", annotation.file)
    return ", matches the published data"


def _splits(
    annotation: Annotation,
    root: Path,
    images: Sequence[str],
    title: str,
    train_on: str,
    attributes: str | Sequence[str],
    partition: int,
    unsure: str | None,
    note: str = "",
) -> Splits:
    columns, words = select(annotation, attributes)
    labels = coded(annotation, columns, unsure)
    rows = split_rows(annotation, train_on, partition)
    chosen = [annotation.attributes[column] for column in columns]
    names = image_names(annotation, rows, labels, chosen)
    folder = _image_folder(root, images, names["train"][0])
    log.info("%s: labels of %s, images in %s", title, annotation.file, folder)
    check_images(annotation.file, folder, [name for own in names.values() for name in own])
    if (share := shared_people(annotation, rows)) is not None:
        log.info("%s: %.1f %% of the test images show a person who is trained on", title, 100 * share)
    parts = "trainval/test" if train_on == "trainval" else "train/val/test"
    protocol = f"{title}, {parts}, {words}{', unsure is unknown' if unsure == 'unknown' else ''}{note}"
    splits = {
        split: AttributeRecords(folder, names[split], labels[rows[split]], chosen, protocol)
        for split in names
    }
    splits = {"train": splits["train"], "val": splits.get("val", splits["test"]), "test": splits["test"]}
    log_labels(title, splits)
    return splits


def _image_folder(root: Path, folders: Sequence[str], first: str) -> Path:
    there = [root / folder for folder in folders if os.path.isdir(root / folder)]
    if not there:
        raise HapError(f"{root} has no folder of images {' or '.join(folders)}")
    return next((folder for folder in there if os.path.exists(folder / first)), there[0])
