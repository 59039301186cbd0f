"""Readers of attribute data sets: the published files, prepared pickles, and what is wrong with those of one's own."""

import copy
import hashlib
import logging
import os
import pickle
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.io
from conftest import config

from hap.config import check_config
from hap.data.attribute import (
    UNKNOWN,
    AttributeRecords,
    log_labels,
    read_pa100k,
    read_peta,
    read_prepared,
    read_rap,
)
from hap.data.attribute_files import PA100K, PETA, RAP, Published, pa100k_mat
from hap.data.samplers import BatchPlan, TrainBatches, fingerprint, permutation
from hap.errors import HapError

SAMPLES = Path(os.environ.get("HAP_SAMPLES", "missing"))

# Evaluated columns as they are published.
PA100K_ORDER = [7, 8, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 9, 10, 11, 12, 1, 2, 3, 0, 4, 5, 6]
RAP_ORDER = [*range(9, 43), 1, 2, 3, 0, 4, 5, 6, 7, 8, *range(43, 51)]
PETA_ORDER = [
    10,
    18,
    19,
    30,
    15,
    7,
    9,
    11,
    14,
    21,
    26,
    29,
    32,
    33,
    34,
    6,
    8,
    12,
    25,
    27,
    31,
    13,
    23,
    24,
    28,
    4,
    5,
]
PETA_ORDER += [17, 20, 22, 0, 1, 2, 3, 16]


class EasyDict(dict):
    """Pickles like the one of the package easydict: its content is in the dict and in its attributes."""

    def __setattr__(self, name, value):
        value = EasyDict.of(value) if isinstance(value, dict) else value
        super().__setattr__(name, value)
        super().__setitem__(name, value)

    __setitem__ = __setattr__

    @classmethod
    def of(cls, content: dict):
        made = cls()
        for name, value in content.items():
            made[name] = value
        return made


EasyDict.__module__, EasyDict.__qualname__ = "easydict", "EasyDict"


def dump(path: Path, content: dict, protocol: int = 4, plain: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.modules["easydict"] = SimpleNamespace(EasyDict=EasyDict)
    try:
        path.write_bytes(pickle.dumps(content if plain else EasyDict.of(content), protocol))
    finally:
        del sys.modules["easydict"]
    return path


def cells(values) -> np.ndarray:
    values = list(values)
    column = np.empty((len(values), 1), object)
    column[:, 0] = values
    return column


def images(folder: Path, names) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def random_labels(rows: int, columns: int) -> np.ndarray:
    labels = np.random.default_rng(0).integers(0, 2, (rows, columns))
    labels[:2] = [[0], [1]]  # each column has both
    return labels.astype(np.uint8)


def pa100k(
    root: Path, columns: int = 26, where: str = "annotation.mat", folder: str = "data", **other
) -> Path:
    """Six images of train, three of val, three of test."""
    labels = random_labels(12, columns)
    labels[9:11] = labels[:2]
    names = [f"{i + 1:06d}.jpg" for i in range(12)]
    content = {"attributes": cells(f"a{i}" for i in range(columns))}
    for part, rows in {"train": slice(0, 6), "val": slice(6, 9), "test": slice(9, 12)}.items():
        content |= {f"{part}_images_name": cells(names[rows]), f"{part}_label": labels[rows]}
    (root / where).parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(root / where, content | other)
    images(root / folder, names)
    return root


RAP_TRAIN, RAP_TEST = [[3, 1, 6, 7], [1, 2, 3, 4]], [[8, 2, 5], [7, 6, 5]]  # from 1, two partitions


def rap(root: Path, columns: int = 92, **other) -> Path:
    labels = random_labels(8, columns).astype(np.int32)
    labels[:, 1:] = np.resize(np.eye(8, dtype=np.int32), (8, columns - 1))
    labels[:, 0] = [2, 1, 0, 1, 2, 0, 1, 0]
    names = [f"CAM{i:02d}-x_tarid{i}.png" for i in range(8)]
    partitions = [
        {"train_index": np.array([a], np.uint16), "test_index": np.array([b], np.uint16)}
        for a, b in zip(RAP_TRAIN, RAP_TEST, strict=True)
    ]
    content = {
        "partion": cells(partitions),
        "label": labels,
        "attribute_chinese": cells("女性" for _ in range(columns)),
        "attribute_eng": cells(f"a{i}" for i in range(columns)),
        "position": np.zeros((8, 16), np.int32),
        "imagesname": cells(names),
        "attribute_exp": cells(f"short{i}" for i in range(51)),
        "identity": np.array([[1], [1], [2], [-1], [3], [3], [4], [2]], np.int16),
    } | other
    (root / "RAP_annotation").mkdir(parents=True)
    content = {name: value for name, value in content.items() if value is not None}
    scipy.io.savemat(root / "RAP_annotation/RAP_annotation.mat", {"RAP_annotation": content})
    images(root / "RAP_dataset", names)
    return root


def peta(root: Path, count: int = 10, people=None, **other) -> Path:
    labels = random_labels(count, 105)
    who = np.arange(1, count + 1) if people is None else np.asarray(people)
    head = np.stack([np.arange(1, count + 1), who, np.ones(count), np.zeros(count)], axis=1)
    rows = np.random.default_rng(1).permutation(count) + 1
    cut = (count // 2, count // 2 + 2)
    partitions = [
        {
            name: part.astype(np.uint16)[:, None]
            for name, part in zip(("train", "val", "test"), parts, strict=True)
        }
        for parts in (np.split(rows, cut), np.split(rows[::-1], cut))
    ]
    content = {
        "data": np.concatenate([head, labels], axis=1).astype(np.uint16),
        "attribute": cells(f"a{i}" for i in range(105)),
        "selected_attribute": np.arange(5, 40, dtype=np.uint8)[None],
        "partion_attribute": cells(partitions),
    } | other
    root.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(root / "PETA.mat", {"peta": content}, do_compression=True)
    images(root / "images", [f"{i + 1:05d}.png" for i in range(count)])
    return root


def same(a: dict[str, AttributeRecords], b: dict[str, AttributeRecords]) -> None:
    for split in ("train", "val", "test"):
        assert a[split].names == b[split].names
        assert a[split].attributes == b[split].attributes
        assert a[split].labels.dtype == b[split].labels.dtype == np.int8
        assert np.array_equal(a[split].labels, b[split].labels)
        assert a[split].root == b[split].root
        assert a[split].protocol == b[split].protocol


# ------------------------------------------------------------------------------------------- the published file


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    if not SAMPLES.is_dir():
        pytest.skip("HAP_SAMPLES is not set")
    root = tmp_path_factory.mktemp("pa100k")
    (root / "data").mkdir()
    for number in range(1, 100_001):
        os.close(os.open(root / f"data/{number:06d}.jpg", os.O_CREAT | os.O_WRONLY))
    shutil.copy(SAMPLES / "pa100k/annotation.mat", root)
    return root


def test_pa100k_is_the_published_one(published, caplog):
    caplog.set_level(logging.INFO)
    start = time.perf_counter()
    splits = read_pa100k(published)
    assert time.perf_counter() - start < 10
    train, test = splits["train"], splits["test"]
    assert splits["val"] is test
    assert (len(train), len(test)) == (90_000, 10_000)
    assert (train.names[:2], test.names[:2]) == (["000001.jpg", "000002.jpg"], ["090001.jpg", "090002.jpg"])
    assert (int(train.labels.sum()), int(test.labels.sum())) == (507_738, 55_841)
    digests = [
        hashlib.sha256(part.labels.astype(np.uint8).tobytes()).hexdigest()[:16] for part in (train, test)
    ]
    assert digests == ["0e9f1bb256d2edd4", "c99c67adb0682252"]
    digests = [hashlib.sha256("\n".join(part.names).encode()).hexdigest()[:16] for part in (train, test)]
    assert digests == ["97e562f3228cab28", "686e8965a5597e10"]
    table = {
        name: (int(a), int(b))
        for name, a, b in zip(
            train.attributes, train.labels.sum(axis=0), test.labels.sum(axis=0), strict=True
        )
    }
    assert list(table)[:4] == ["Hat", "Glasses", "ShortSleeve", "LongSleeve"]
    assert list(table)[-5:] == ["AgeLess18", "Female", "Front", "Side", "Back"]
    assert table["Hat"] == (3_919, 287)
    assert table["LowerStripe"] == (425, 25)
    assert table["Skirt&Dress"] == (10_336, 819)
    assert table["Age18-60"] == (83_194, 9_650)
    assert train.protocol == ("PA-100K, trainval/test, 26 attributes (eval), matches the published data")
    assert "counts, labels and names match the published data" in caplog.text
    assert "images in" in caplog.text
    assert any(
        line.split() == ["boots", "540", "0.006000", "55", "0.005500"] for line in caplog.text.splitlines()
    )


def test_pa100k_with_a_validation_part(published):
    splits = read_pa100k(published, train_on="train", attributes=["Female", "Hat"])
    assert [len(splits[name]) for name in ("train", "val", "test")] == [80_000, 10_000, 10_000]
    assert splits["val"].names[0] == "080001.jpg"
    assert splits["val"].attributes == ("Female", "Hat")
    assert splits["test"].labels.sum(axis=0).tolist() == [3_896, 287]
    assert splits["train"].protocol.startswith("PA-100K, train/val/test, 2 attributes (chosen), matches")


def test_pa100k_prepared_gives_the_same(published, tmp_path):
    content = scipy.io.loadmat(SAMPLES / "pa100k/annotation.mat")
    parts = ("train", "val", "test")
    prepared = {
        "description": "pa100k",
        "reorder": "group_order",
        "root": "/home/somebody/PA100k/data",
        "image_name": [
            row[0][0] for part in parts for row in content[f"{part}_images_name"]
        ],  # NumPy's strings
        "label": np.concatenate([content[f"{part}_label"] for part in parts]),
        "attr_name": [row[0][0] for row in content["attributes"]],
        "label_idx": {"eval": PA100K_ORDER},
        "partition": {
            "train": np.arange(80_000),
            "val": np.arange(80_000, 90_000),
            "test": np.arange(90_000, 100_000),
            "trainval": np.arange(90_000),
        },
        "weight_train": np.zeros(26, np.float32),
    }
    dump(tmp_path / "dataset_all.pkl", prepared)
    (tmp_path / "data").symlink_to(published / "data")
    found, expected = read_pa100k(tmp_path), read_pa100k(published)
    for records in expected.values():
        records.root = tmp_path / "data"
    same(found, expected)


# -------------------------------------------------------------------------------------------- the three layouts


@pytest.mark.parametrize(
    ("where", "folder"),
    [
        ("annotation.mat", "data"),
        ("annotation/annotation.mat", "release_data/release_data"),
        ("annotation.mat", "data/release_data/release_data"),
        ("below/PA-100K/annotation.mat", "below/PA-100K/data"),
    ],
)
def test_pa100k_as_its_archives_unpack(tmp_path, where, folder, caplog):
    caplog.set_level(logging.INFO)
    splits = read_pa100k(pa100k(tmp_path, where=where, folder=folder))
    assert splits["train"].attributes == tuple(f"a{i}" for i in PA100K_ORDER)
    assert splits["train"].names == [f"{i + 1:06d}.jpg" for i in range(9)]
    assert splits["train"].root == tmp_path / folder
    assert np.array_equal(splits["train"].labels, random_labels(12, 26)[:9][:, PA100K_ORDER])
    assert f"labels of {tmp_path / where}, images in {tmp_path / folder}" in caplog.text
    assert "trainval has 9 images, published are 90,000" in caplog.text
    assert splits["train"].protocol.endswith("differs from the published data")


def test_what_differs_from_the_published_data_is_said_with_both_values(tmp_path):
    annotation = pa100k_mat(pa100k(tmp_path) / "annotation.mat")
    labels, names = random_labels(12, 26)[:9][:, PA100K_ORDER], [f"{i + 1:06d}.jpg" for i in range(9)]
    digests = [
        hashlib.sha256(content).hexdigest() for content in (labels.tobytes(), "\n".join(names).encode())
    ]
    published = Published({"trainval": 9}, {"trainval": digests[0]}, {"trainval": digests[1]})
    assert published.differences(annotation) == []
    annotation.labels[3, 7] ^= 1
    (difference,) = published.differences(annotation)
    labels[3, 0] ^= 1  # column 7 comes first
    assert difference == (
        f"trainval: SHA-256 of the labels is {hashlib.sha256(labels.tobytes()).hexdigest()}, published is {digests[0]}"
    )
    annotation.names[8] = "x.jpg"
    assert [line.split(" is ")[0] for line in published.differences(annotation)] == [
        "trainval: SHA-256 of the labels",
        "trainval: SHA-256 of the names",
    ]
    published = Published({"trainval": 10}, {}, {})
    assert published.differences(annotation) == ["trainval has 9 images, published are 10"]


def test_published_hashes_are_those_of_the_released_files():
    for published, *expected in (
        (PA100K, "0e9f1bb2", "c99c67ad", "97e562f3", "686e8965"),
        (RAP, "be10f602", "cf5cb725", "7e782b26", "86d5984d"),
        (PETA, "13a666f7", "59914a43", "04052c44", "959a0cda"),
    ):
        found = [
            kind[part][:8] for kind in (published.labels, published.names) for part in ("trainval", "test")
        ]
        assert found == expected
        assert all(len(kind[part]) == 64 for kind in (published.labels, published.names) for part in kind)
    assert RAP.images == {"trainval": 33_268, "test": 8_317}
    assert PETA.images == {"trainval": 11_400, "test": 7_600}


def test_rap_counts_from_one_and_keeps_the_order(tmp_path):
    splits = read_rap(rap(tmp_path))
    assert splits["val"] is splits["test"]
    assert splits["train"].attributes == tuple(f"a{i}" for i in RAP_ORDER)
    assert splits["train"].names == [f"CAM{i - 1:02d}-x_tarid{i - 1}.png" for i in RAP_TRAIN[0]]
    assert splits["test"].names == [f"CAM{i - 1:02d}-x_tarid{i - 1}.png" for i in RAP_TEST[0]]
    female = RAP_ORDER.index(0)
    assert splits["train"].labels[:, female].tolist() == [0, 0, 0, 1]  # 0, 2, 0, 1
    assert splits["test"].labels[:, female].tolist() == [0, 1, 0]  # 0, 1, 2
    assert splits["train"].protocol == (
        "RAP v1 partition 0, trainval/test, 51 attributes (eval), differs from the published data"
    )
    unknown = read_rap(tmp_path, unsure="unknown")
    assert unknown["train"].labels[:, female].tolist() == [0, UNKNOWN, 0, 1]
    assert "unsure is unknown" in unknown["train"].protocol
    other = read_rap(tmp_path, partition=1)
    assert other["test"].names == [f"CAM{i - 1:02d}-x_tarid{i - 1}.png" for i in RAP_TEST[1]]


def test_rap_without_the_last_fields(tmp_path):
    splits = read_rap(rap(tmp_path, identity=None, attribute_exp=None))
    assert splits["train"].attributes == tuple(f"a{i}" for i in RAP_ORDER)


def test_peta_counts_from_one_among_columns_and_rows(tmp_path):
    root = peta(tmp_path)
    data = scipy.io.loadmat(root / "PETA.mat")["peta"][0, 0]
    parts = {name: data["partion_attribute"][0, 0][0, 0][name][:, 0] for name in ("train", "val", "test")}
    splits = read_peta(root)
    assert splits["train"].attributes == tuple(f"a{i}" for i in PETA_ORDER)
    rows = np.concatenate([parts["train"], parts["val"]])
    assert splits["train"].names == [f"{row:05d}.png" for row in rows]
    assert np.array_equal(splits["train"].labels, data["data"][rows - 1][:, np.array(PETA_ORDER) + 4])
    assert splits["test"].names == [f"{row:05d}.png" for row in parts["test"]]
    validated = read_peta(root, train_on="train", partition=1)
    assert len(validated["train"]) == 5
    assert validated["val"] is not validated["test"]
    assert "PETA partition 1, train/val/test, 35 attributes (eval)" in validated["train"].protocol


def rap_prepared(root: Path) -> dict:
    data = scipy.io.loadmat(root / "RAP_annotation/RAP_annotation.mat")["RAP_annotation"][0, 0]
    parts = [part[0, 0] for part in data["partion"][:, 0]]
    return {
        "description": "rap",
        "image_name": [row[0] for row in data["imagesname"][:, 0]],
        "label": data["label"],
        "attr_name": [row[0] for row in data["attribute_eng"][:, 0]],
        "label_idx": {"eval": RAP_ORDER, "color": list(range(63, 92)), "extra": list(range(51, 63))},
        "partition": {
            "trainval": [part["train_index"][0] - 1 for part in parts],
            "test": [part["test_index"][0] - 1 for part in parts],
        },
    }


def peta_prepared(root: Path) -> dict:
    data = scipy.io.loadmat(root / "PETA.mat")["peta"][0, 0]
    parts = [part[0, 0] for part in data["partion_attribute"][:, 0]]
    lists = {name: [part[name][:, 0] - 1 for part in parts] for name in ("train", "val", "test")}
    lists["trainval"] = [np.concatenate(pair) for pair in zip(lists["train"], lists["val"], strict=True)]
    return {
        "description": "peta",
        "image_name": [f"{i + 1:05d}.png" for i in range(len(data["data"]))],
        "label": data["data"][:, 4:],
        "attr_name": [row[0] for row in data["attribute"][:, 0]],
        "label_idx": {"eval": PETA_ORDER, "color": list(range(35, 79)), "extra": range(79, 105)},
        "partition": lists,
    }


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("attributes", ["eval", "color", "all", ["a7", "a70"]])
def test_mat_and_prepared_pickle_are_one(tmp_path, protocol, attributes):
    for write, read, prepared in ((rap, read_rap, rap_prepared), (peta, read_peta, peta_prepared)):
        root = write(tmp_path / write.__name__)
        content = prepared(root)
        for partition in (0, 1):
            expected = read(root, partition=partition, attributes=attributes)
            annotation = next(root.rglob("*.mat"))
            annotation = annotation.rename(annotation.with_suffix(".away"))
            dump(root / "dataset_all.pkl", content, protocol)
            same(read(root, partition=partition, attributes=attributes), expected)
            (root / "dataset_all.pkl").unlink()
            annotation.rename(annotation.with_suffix(".mat"))
    count = {"eval": 35, "color": 35 + 44, "all": 105}.get(str(attributes), 2)
    assert len(expected["train"].attributes) == count


# ------------------------------------------------------------------------------------- attributes that are chosen


def test_names_choose_and_order_and_unknown_ones_are_refused(tmp_path):
    root = pa100k(tmp_path, columns=3, attributes=cells(["Hat", "Bag", "Female"]))
    splits = read_pa100k(root, attributes=["Female", "Hat"])
    assert splits["train"].attributes == ("Female", "Hat")
    assert np.array_equal(splits["train"].labels, random_labels(12, 3)[:9][:, [2, 0]])
    assert read_pa100k(root)["train"].attributes == (
        "Hat",
        "Bag",
        "Female",
    )  # of one's own: the order of the file
    for attributes, message in (
        (["hat", "Bag"], r"no attribute hat \(did you mean Hat\?\)"),
        (
            ["Shoe", "Femal"],
            r"no attribute Shoe \(it has Hat, Bag, Female\); Femal \(did you mean Female\?\)",
        ),
        (["Hat", "Hat"], "Hat is there, or asked for, twice"),
        ([], "name one attribute at least"),
        ("evla", r"attributes=evla: give eval, color, all, or names in brackets, as \[Hat\]"),
        ("color", "does not say which are colours"),
    ):
        with pytest.raises(HapError, match=message):
            read_pa100k(root, attributes=attributes)


def test_a_name_that_is_there_twice(tmp_path):
    root = pa100k(tmp_path, columns=3, attributes=cells(["Hat", "Bag", "Hat"]))
    with pytest.raises(HapError, match="Hat is there, or asked for, twice"):
        read_pa100k(root)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"train_on": "val"}, "train_on=val: choose from trainval, train"),
        ({"unsure": "positive"}, "unsure=positive: choose from negative, unknown"),
        ({"split": "zs"}, "split=zs: choose from random, zero_shot, by_person"),
        ({"partition": 5}, r"partition=5: .*RAP_annotation.mat has 2, counted from 0"),
        ({"partition": -1}, "partition=-1"),
        ({"partition": 1, "split": "by_person"}, "split=by_person has no partitions"),
        ({"train_on": "train"}, r"no images of train and val; .*train_on=trainval .*split=by_person"),
        ({"version": 3}, "version=3: choose from 1, 2"),
    ],
)
def test_arguments_that_do_not_exist(tmp_path, argument, message):
    with pytest.raises(HapError, match=message):
        read_rap(rap(tmp_path), **argument)


# ----------------------------------------------------------------------------------------- releases and editions


def rap2(root: Path) -> Path:
    parts = {"train_index": [[1]], "val_index": [[2]], "test_index": [[3]]}
    content = {
        "name": cells(["a.png", "b.png", "c.png"]),
        "attribute": cells(["Female", "Hat", "extra"]),
        "data": np.array([[1, 0, 7], [0, 1, 7], [2, 1, 7]], np.int32),
        "selected_attribute": np.array([[2, 1]], np.uint8),
        "partition_attribute": cells([{k: np.array(v, np.uint32) for k, v in parts.items()}]).T,
    }
    (root / "RAP_annotation").mkdir(parents=True)
    scipy.io.savemat(root / "RAP_annotation/RAP_annotation.mat", {"RAP_annotation": content})
    images(root / "RAP_dataset", ["a.png", "b.png", "c.png"])
    return root


def test_rap_v1_and_v2_are_told_apart_by_their_fields(tmp_path):
    with pytest.raises(HapError, match=r"is RAP v2 \(by its fields\), RAP v1 was asked for.*version=2"):
        read_rap(rap2(tmp_path / "v2"))
    with pytest.raises(HapError, match=r"is RAP v1 \(by its fields\), RAP v2 was asked for.*version=1"):
        read_rap(rap(tmp_path / "v1"), version=2)
    splits = read_rap(tmp_path / "v2", version=2, train_on="train")
    assert splits["train"].attributes == ("Hat", "Female")
    assert [splits[split].names for split in ("train", "val", "test")] == [["a.png"], ["b.png"], ["c.png"]]
    assert splits["test"].labels.tolist() == [[1, 0]]
    assert splits["test"].protocol == "RAP v2, train/val/test, 2 attributes (eval)"


def test_prepared_rap_v1_and_v2_are_told_apart_by_their_parts(tmp_path):
    root = rap(tmp_path)
    content = rap_prepared(root)
    shutil.rmtree(root / "RAP_annotation")
    dump(root / "dataset_all.pkl", content)
    with pytest.raises(HapError, match=r"is RAP v1 \(by its parts\), RAP v2 was asked for"):
        read_rap(root, version=2)
    content["partition"] |= {"train": [np.arange(3)], "val": [np.arange(3, 4)]}
    dump(root / "dataset_all.pkl", content)
    with pytest.raises(HapError, match=r"is RAP v2 \(by its parts\), RAP v1 was asked for"):
        read_rap(root)


@pytest.mark.parametrize("read", [read_pa100k, read_peta, read_rap])
def test_annotations_of_other_sets_say_what_they_are(tmp_path, read):
    name = {read_pa100k: "annotation.mat", read_peta: "PETA.mat", read_rap: "RAP_annotation.mat"}[read]
    scipy.io.savemat(tmp_path / name, {"something": 1})
    with pytest.raises(HapError, match=r"is no annotation of .*: it lacks .*, and has something"):
        read(tmp_path)
    (tmp_path / name).unlink()
    dump(tmp_path / "dataset_all.pkl", peta_prepared(peta(tmp_path / "p")) | {"description": "market"})
    shutil.rmtree(tmp_path / "p")
    with pytest.raises(HapError, match=r"describes market, .* was asked for: .*data=prepared"):
        read(tmp_path)


@pytest.mark.parametrize("read", [read_pa100k, read_peta, read_rap])
def test_no_annotation(tmp_path, read):
    with pytest.raises(HapError, match=r"no .*\.mat or dataset_all\.pkl in .*: data\.root is the unpacked"):
        read(tmp_path)


def test_names_in_a_matrix_of_characters(tmp_path):
    names = np.array(["000001.jpg   ", "2.jpg"])  # filled up with blanks
    content = {"train_images_name": names, "train_label": np.eye(2, dtype=np.uint8)}
    root = pa100k(tmp_path, columns=2, **content)
    images(root / "data", ["2.jpg"])
    splits = read_pa100k(root, train_on="train")
    assert splits["train"].names == ["000001.jpg", "2.jpg"]


def test_a_file_of_matlab_7_3(tmp_path):
    (tmp_path / "PETA.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n")
    with pytest.raises(HapError, match=r"PETA\.mat is saved as MATLAB v7\.3 .*-v7"):
        read_peta(tmp_path)


# ------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("stray", "message"),
    [
        (2, r"a1 has 0 \(\d times\), 1 \(\d times\), 2 \(1 times\); the first 2 is in row 4 \(000004.jpg\)"),
        (255, r"255 \(1 times\); the first 255 is in row 4"),
    ],
)
def test_labels_that_are_neither_0_nor_1(tmp_path, stray, message):
    labels = random_labels(6, 3)
    labels[3, 1] = stray
    with pytest.raises(HapError, match=message):
        read_pa100k(pa100k(tmp_path, columns=3, train_label=labels))


@pytest.mark.parametrize("coding", [(1, 2), (-1, 1), (0.5, 1), (np.nan, 1)])
def test_other_codings_are_refused(tmp_path, coding):
    negative, positive = coding
    labels = np.where(random_labels(6, 3), positive, negative)
    with pytest.raises(HapError, match=r"labels are 0 and 1, but a0 has .*data="):
        read_pa100k(pa100k(tmp_path, columns=3, train_label=labels))


def test_labels_of_other_types(tmp_path):
    expected = read_pa100k(pa100k(tmp_path / "a", columns=3))
    for number, kind in enumerate((np.float64, np.bool_, np.int64)):
        root = pa100k(tmp_path / str(number), columns=3, train_label=random_labels(12, 3)[:6].astype(kind))
        found = read_pa100k(root)
        assert np.array_equal(found["train"].labels, expected["train"].labels)


def test_attributes_without_positives_or_negatives_are_one_warning_each(tmp_path, caplog):
    labels = random_labels(12, 4)
    labels[:9, 1], labels[:9, 2], labels[9:, 3] = 0, 1, 0
    parts = {"train_label": labels[:6], "val_label": labels[6:9], "test_label": labels[9:]}
    labels[9:11, :3] = [[0], [1]]
    read_pa100k(pa100k(tmp_path, columns=4, **parts))
    warnings = [r.message for r in caplog.records if r.levelname == "WARNING" and "PA-100K: no " in r.message]
    assert warnings == [
        "PA-100K: no positives in train of a1",
        "PA-100K: no negatives in train of a2",
        "PA-100K: no positives in test of a3",
    ]


def test_an_attribute_unknown_everywhere_is_an_error(tmp_path):
    labels = np.zeros((8, 92), np.int32)
    labels[:, 0] = 2
    root = rap(tmp_path, label=labels)
    with pytest.raises(HapError, match="a0 is unknown on every training image: leave it out"):
        read_rap(root, unsure="unknown")
    read_rap(root)


def test_shares_leave_unknown_labels_out(caplog):
    caplog.set_level(logging.INFO)
    train = AttributeRecords(Path("x"), list("abcde"), np.array([[1], [0], [0], [-1], [1]]), ["hat"])
    log_labels("mine", {"train": train, "val": train, "test": train})
    assert any(line.split()[:3] == ["hat", "2", "0.500000"] for line in caplog.text.splitlines())


# ------------------------------------------------------------------------------------------------ rows and images


def test_missing_images_are_counted_and_named(tmp_path):
    root = peta(tmp_path, count=30)
    for number in (4, 9, *range(11, 26)):
        (root / f"images/{number:05d}.png").unlink()
    with pytest.raises(HapError, match=r"images lacks 17 of the 30 images that .*PETA\.mat names") as error:
        read_peta(root)
    assert "\n  ... and 7 more" in str(error.value)
    shutil.rmtree(root / "images")
    with pytest.raises(HapError, match="has no folder of images images"):
        read_peta(root)


def changed(tmp_path: Path, **other) -> Path:
    """Six images in the prepared format."""
    content = {
        "image_name": [f"{i}.jpg" for i in range(6)],
        "label": random_labels(6, 2),
        "attr_name": ["hat", "bag"],
        "partition": {"train": np.arange(3), "val": np.arange(3, 4), "test": np.arange(4, 6)},
    }
    dump(tmp_path / "dataset_all.pkl", copy.deepcopy(content) | other, plain=True)
    images(tmp_path / "images", content["image_name"])
    return tmp_path


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        (
            {"train": [0, 1, 4], "test": [4, 5]},
            "1 images are in two splits\n  4.jpg: train row 5 and test row 5",
        ),
        ({"train": [0, 6], "test": [4, 5]}, "train has row 7 .counted from 1., of 6"),
        ({"train": [-1], "test": [4, 5]}, "train has row 0"),
        ({"train": [0.5], "test": [4, 5]}, "partition.train is no list of whole numbers"),
        ({"train": np.array([True, False]), "test": [4]}, "partition.train is no list of whole numbers"),
        ({"train": [0, 1]}, "no images of test"),
        ({"test": [0, 1]}, "no images of trainval"),
        ({"train": [[0], [1, 2]], "test": [4, 5]}, "partition=1: .* has 1"),
        ([1, 2], "partition is no structure"),
    ],
)
def test_partitions_that_cannot_be(tmp_path, partition, message):
    root = changed(tmp_path, partition=partition)
    chosen = 1 if "partition=1" in message else 0
    with pytest.raises(HapError, match=message):
        read_prepared(root, partition=chosen)


def test_partitions_of_a_mat_file_that_cannot_be(tmp_path):
    wrong = cells([{"train_index": np.array([[1, 9]]), "test_index": np.array([[2]])}])
    with pytest.raises(HapError, match=r"trainval has row 9 \(counted from 1\), of 8"):
        read_rap(rap(tmp_path / "a", partion=wrong))
    wrong = cells([{"train_index": np.array([[0, 1]]), "test_index": np.array([[2]])}])
    with pytest.raises(HapError, match="trainval has row 0"):
        read_rap(rap(tmp_path / "b", partion=wrong))


def test_an_image_that_is_there_twice(tmp_path, caplog):
    names = ["0.jpg", "1.jpg", "./0.jpg", "3.jpg", "4.jpg", "5.jpg"]
    labels = random_labels(6, 2)
    labels[2] = labels[0]
    read_prepared(changed(tmp_path, image_name=names, label=labels))
    assert "1 images are there twice, and count twice\n  0.jpg: train row 1 and train row 3" in caplog.text
    labels[2, 1] ^= 1
    with pytest.raises(
        HapError, match=r"1 images are there twice, labelled differently\n  0.jpg: .* row 3 \(bag\)"
    ):
        read_prepared(changed(tmp_path, image_name=names, label=labels))
    names[2] = "../0.jpg"
    with pytest.raises(HapError, match=r"image 3: \.\./0\.jpg leads out of the folder"):
        read_prepared(changed(tmp_path, image_name=names))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"label": np.zeros((5, 2), np.uint8)}, "names of 6 images, labels of 5"),
        ({"attr_name": ["hat"]}, "names of 1 attributes, labels of 2"),
        ({"label": np.zeros(12)}, "label is no table of numbers"),
        ({"label": [["1"]]}, "label is no table of numbers"),
        ({"image_name": [1, 2]}, "the name of image 1 is empty, or no text"),
        ({"image_name": 7}, "the name of image 1 is empty, or no text"),
        ({"image_name": ["\ud800"] * 6}, "a name that is no text"),
        ({"attr_name": ["hat", "  "]}, "the name of attribute 2 is empty"),
        ({"label_idx": {"eval": [0, 2]}}, "the evaluated column 2 .counted from 0. is none of 2"),
        ({"label_idx": {"eval": range(1 << 62)}}, "the evaluated column 2"),
        ({"label_idx": {"eval": [0, 0]}}, "hat is there, or asked for, twice"),
        ({"label_idx": [1]}, "label_idx is no structure"),
    ],
)
def test_prepared_files_that_do_not_fit_together(tmp_path, other, message):
    with pytest.raises(HapError, match=message):
        read_prepared(changed(tmp_path, **other))


def test_prepared_files_that_are_none(tmp_path):
    with pytest.raises(HapError, match=r"cannot read .*dataset_all\.pkl"):
        read_prepared(tmp_path)
    (tmp_path / "dataset_all.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(HapError, match="it is no structure"):
        read_prepared(tmp_path)
    (tmp_path / "dataset_all.pkl").write_bytes(pickle.dumps({"image_name": Path("/")}))
    with pytest.raises(HapError, match=r"refused: it contains code \(pathlib\.PosixPath\)"):
        read_prepared(tmp_path)
    (tmp_path / "dataset_all.pkl").write_bytes(pickle.dumps({"image_name": 1}))
    with pytest.raises(HapError, match="it lacks label, attr_name, partition, and has image_name"):
        read_prepared(tmp_path)


# --------------------------------------------------------------------------- other sets, and people who are not shared


def test_other_sets_in_the_prepared_format(tmp_path):
    content = {
        "description": "msp",
        "image_name": [f"{scene}/{i}.jpg" for scene in ("market", "school") for i in range(4)],
        "attributes": ["Female", "Long hair", "Hat"],
        "attr_words": np.array(["Female", "Long hair", "Hat"]),
        "label": random_labels(8, 3).astype(np.int64),
        "partition": {"trainval": np.arange(5), "test": np.arange(5, 8)},
        "sentences": {"market/0.jpg": "A woman."},
        "attr_vectors": np.zeros((3, 8), np.float32),
    }
    dump(tmp_path / "dataset_ms_split_1.pkl", content)
    images(tmp_path / "images", content["image_name"])
    splits = read_prepared(tmp_path, file="dataset_ms_split_1.pkl")
    assert splits["train"].names == content["image_name"][:5]
    assert splits["train"].attributes == ("Female", "Long hair", "Hat")
    assert splits["test"].protocol == "msp (dataset_ms_split_1.pkl), trainval/test, 3 attributes (eval)"
    with pytest.raises(HapError, match="no images of train and val"):
        read_prepared(tmp_path, file="dataset_ms_split_1.pkl", train_on="train")


def test_label_2_of_other_sets_has_to_be_declared(tmp_path):
    labels = random_labels(6, 2)
    labels[1, 1] = 2
    root = changed(tmp_path, label=labels)
    with pytest.raises(HapError, match=r"data\.reader\.unsure=negative or unknown"):
        read_prepared(root)
    assert read_prepared(root, unsure="negative")["train"].labels[1].tolist() == [1, 0]
    assert read_prepared(root, unsure="unknown")["train"].labels[1].tolist() == [1, UNKNOWN]


def test_zero_shot_is_the_published_file_or_none(tmp_path):
    root = peta(tmp_path, count=40)
    with pytest.raises(HapError, match=r"no dataset_zs_run0\.pkl in .*split=by_person .*do not compare"):
        read_peta(root, split="zero_shot")
    content = peta_prepared(root)
    content["partition"] = {"train": np.arange(20), "val": np.arange(20, 25), "test": np.arange(25, 30)}
    content["partition"]["trainval"] = np.arange(25)
    content["weight_train"] = [np.zeros(105, np.float32)]
    dump(root / "dataset_zs_run0.pkl", content)
    splits = read_peta(root, split="zero_shot")
    assert [len(splits[name]) for name in ("train", "test")] == [25, 5]
    assert (
        splits["train"].protocol
        == "PETA zero-shot (dataset_zs_run0.pkl), trainval/test, 35 attributes (eval)"
    )


def test_rap_zero_shot_has_images_of_v2_and_no_label_2(tmp_path):
    content = {
        "description": "rap2",
        "image_name": [f"{i}.png" for i in range(6)],
        "label": np.array([[0, 1], [1, 0], [2, 1], [0, 1], [1, 0], [0, 1]]),
        "attr_name": ["Female", "Hat"],
        "label_idx": {
            "eval": [1, 0],
            "color": range(54, 96),
        },  # as in files that hold the evaluated columns only
        "partition": {"train": [], "val": [], "trainval": np.arange(4), "test": np.arange(4, 6)},
    }
    dump(tmp_path / "dataset_zs_run0.pkl", content)
    images(tmp_path / "RAP_dataset", content["image_name"])
    splits = read_rap(tmp_path, split="zero_shot")
    assert splits["train"].labels.tolist() == [[1, 0], [0, 1], [1, 0], [1, 0]]
    assert splits["train"].protocol.startswith("RAP zero-shot (dataset_zs_run0.pkl)")
    with pytest.raises(HapError, match="a colour is column 54, of 2"):
        read_rap(tmp_path, split="zero_shot", attributes="color")


@pytest.mark.parametrize(("dataset", "read"), [("peta", read_peta), ("rap", read_rap)])
def test_zero_shot_of_drawn_people(drawn, dataset, read):
    root = drawn(dataset, 60)
    splits = read(root, split="zero_shot", train_on="train")
    assert [len(splits[split]) for split in ("train", "val", "test")] == [37, 11, 12]
    random = read(root)
    assert set(splits["test"].attributes) == set(random["test"].attributes)
    labels = {
        name: row for half in random.values() for name, row in zip(half.names, half.labels, strict=True)
    }
    for half in splits.values():  # the same pictures, labelled alike, in another order of columns
        columns = [random["test"].attributes.index(name) for name in half.attributes]
        assert all(
            np.array_equal(labels[n][columns], row) for n, row in zip(half.names, half.labels, strict=True)
        )


@pytest.mark.parametrize("data", ["pa100k", "rap", "peta", "rap_zs", "peta_zs", "prepared"])
def test_configurations_fit(data):
    check_config(config("train", "experiment=attribute_pa100k", f"data={data}"))


@pytest.mark.parametrize("seed", [0, 1])
def test_split_by_person_shares_nobody(tmp_path, seed):
    people = np.random.default_rng(2).integers(1, 80, 400)
    root = peta(tmp_path, count=400, people=people)
    splits = read_peta(root, split="by_person", split_seed=seed, train_on="train")
    who = {split: {people[int(name[:5]) - 1] for name in splits[split].names} for split in splits}
    assert not who["train"] & who["val"]
    assert not (who["train"] | who["val"]) & who["test"]
    assert sum(len(splits[split]) for split in splits) == 400
    assert len(splits["train"]) == pytest.approx(240, abs=12)
    assert len(splits["test"]) == pytest.approx(80, abs=12)
    again = read_peta(root, split="by_person", split_seed=seed)
    assert again["train"].names == splits["train"].names + splits["val"].names
    assert again["train"].protocol == (
        f"PETA by person (our own split, seed {seed}), trainval/test, 35 attributes (eval), "
        "not the published zero-shot split"
    )
    other = read_peta(root, split="by_person", split_seed=seed + 1, train_on="train")
    assert other["test"].names != splits["test"].names


def test_split_by_person_leaves_unnumbered_images_out(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    splits = read_rap(rap(tmp_path), split="by_person", train_on="train")
    names = [name for split in splits.values() for name in split.names]
    assert len(names) == 7
    assert "CAM03-x_tarid3.png" not in names
    assert "1 images without a person number are in no part" in caplog.text
    assert "0.0 % of the test images show a person who is trained on" in caplog.text


def test_split_by_person_needs_person_numbers(tmp_path):
    root = rap(tmp_path, identity=None)
    with pytest.raises(HapError, match="has no person numbers"):
        read_rap(root, split="by_person")


def test_random_partitions_say_whom_they_share(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    read_rap(rap(tmp_path))  # trained on are 2, 1, 3, 4; tested 2, 1, 3
    assert "100.0 % of the test images show a person who is trained on" in caplog.text
    caplog.clear()
    read_rap(tmp_path, partition=1)  # trained on are 1, 1, 2 and one unknown; tested 4, 3, 3
    assert "0.0 % of the test images" in caplog.text


# --------------------------------------------------------------------------------------------------------- a resume


def test_other_labels_or_attributes_are_another_run(tmp_path):
    train = read_pa100k(pa100k(tmp_path, columns=3))["train"]

    def batches(records: AttributeRecords) -> TrainBatches:
        plan = permutation(records, 3, 0)
        return TrainBatches(plan, BatchPlan(total=3, micro=3), 0, fingerprint(records))

    state = batches(train).state_dict()
    batches(train).load_state_dict(state)
    labels = train.labels.copy()
    labels[4, 1] ^= 1
    with pytest.raises(HapError, match="labels of images: ") as error:
        batches(AttributeRecords(train.root, train.names, labels, train.attributes)).load_state_dict(state)
    assert "names" not in str(error.value)
    fewer = AttributeRecords(train.root, train.names, train.labels[:, :2], train.attributes[:2])
    with pytest.raises(HapError, match="attributes: 2, the checkpoint's run had 3"):
        batches(fewer).load_state_dict(state)
    with pytest.raises(HapError, match="names of attributes"):
        batches(train.arranged(train.attributes[::-1])).load_state_dict(state)


def test_the_protocol_stays_with_the_records(tmp_path):
    train = read_pa100k(pa100k(tmp_path, columns=3))["train"]
    assert train.protocol == train[2:4].protocol == train.arranged(train.attributes[::-1]).protocol
