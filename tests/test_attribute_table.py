"""Tables of attributes as people write them."""

import logging
import os
import re
from pathlib import Path

import hydra
import numpy as np
import pytest
from conftest import config

from hap.data.attribute_table import read_attribute_table
from hap.errors import HapError


@pytest.fixture
def write(tmp_path):
    """write(train=..., test=...): tables in a folder that has the images a.jpg to h.jpg."""
    for name in "abcdefgh":
        (tmp_path / f"{name}.jpg").write_bytes(name.encode())  # readers decode nothing

    def tables(**content: str) -> Path:
        for name, text in content.items():
            (tmp_path / f"{name}.csv").write_text(text)
        return tmp_path

    return tables


def test_one_table_with_splits(write):
    root = write(
        attributes="image,split,hat,bag\na.jpg,train,1,0\nb.jpg,train,,1\nc.jpg,val,0,0\nd.jpg,test,1,1\n"
    )
    splits = read_attribute_table(root)
    assert {split: records.names for split, records in splits.items()} == {
        "train": ["a.jpg", "b.jpg"],
        "val": ["c.jpg"],
        "test": ["d.jpg"],
    }
    assert splits["train"].attributes == ("hat", "bag")
    assert splits["train"].labels.tolist() == [[1, 0], [-1, 1]]
    both = read_attribute_table(root, train_on="trainval")
    assert both["train"].names == ["a.jpg", "b.jpg", "c.jpg"]
    assert both["val"] is both["test"]
    assert read_attribute_table(root, attributes=["bag"])["train"].labels.tolist() == [[0], [1]]
    assert read_attribute_table(root, attributes=["bag", "hat"])["train"].labels.tolist() == [[0, 1], [1, -1]]
    name = f"{root.name} (attributes.csv)"
    assert {records.protocol for records in splits.values()} == {
        f"{name}, train/val/test, 2 attributes (all)"
    }
    assert both["train"].protocol == f"{name}, trainval/test, 2 attributes (all)"


def test_three_tables(write, caplog, monkeypatch):
    root = write(train="path,hat\na.jpg,1\n", val="image,hat\nb.jpg,0\n", test="path,hat\nc.jpg,1\n")
    splits = read_attribute_table(root)
    assert [splits[split].names for split in ("train", "val", "test")] == [["a.jpg"], ["b.jpg"], ["c.jpg"]]
    write(val="image,hat\n")
    monkeypatch.chdir(root)
    with caplog.at_level(logging.INFO):
        splits = read_attribute_table(Path("."))
    assert splits["val"] is splits["test"]
    assert "no validation part; the test part is validated on" in caplog.text
    files = "train.csv, val.csv, test.csv"
    assert splits["test"].protocol == f"{root.name} ({files}), train/test, 1 attributes (all)"


def test_columns_go_together_by_name(write):
    root = write(
        train="image,hat,bag,female\na.jpg,1,0,0\nb.jpg,0,1,1\n",
        test="path,female,hat,bag\nc.jpg,1,0,0\nd.jpg,0,1,0\ne.jpg,1,0,1\nf.jpg,0,1,1\n",
    )
    splits = read_attribute_table(root)
    assert splits["val"] is splits["test"]
    assert splits["test"].attributes == ("hat", "bag", "female")
    assert splits["test"].labels.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 1], [1, 1, 0]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("image,hat", "test.csv: no column bag, which train.csv has"),
        ("image,hat,bag,female,sex", "test.csv: train.csv has no column female, sex"),
        (
            "photo,hat,bag",
            "test.csv: one column must be called image or path; the first line has photo, hat, bag",
        ),
        ("image,path,hat,bag", "one column must be called image or path"),
        ("image,hat,bag,positive", "no attribute can be called positive: rename or delete the column"),
        ("image,hat,bag,frame,seconds", "no attribute can be called frame, seconds"),
        ("image,hat,bag,split", "no attribute can be called split"),
        ("image,hat,bag,hat", "test.csv: 2 columns are called 'hat'"),
        ("image,hat,,bag", "test.csv: column 3 has no name"),
        ("image", "no column of an attribute"),
    ],
)
def test_other_columns(write, columns, message):
    root = write(train="image,hat,bag\na.jpg,1,0\n", test=f"{columns}\nb.jpg{',1' * columns.count(',')}\n")
    with pytest.raises(HapError, match=message):
        read_attribute_table(root)


def test_names_of_columns_do_nothing_to_a_terminal(write):
    root = write(train="image,hat\na.jpg,1\n", test="image,hat,b\x1b[31mag\nb.jpg,1,1\n")
    with pytest.raises(HapError, match=re.escape(r"train.csv has no column b\x1b[31mag")):
        read_attribute_table(root)


def test_columns_that_are_chosen(write):
    root = write(
        train="image,note,hat,bag\na.jpg,seen twice,1,0\n", test="image,bag,hat,person\nb.jpg,1,0,7\n"
    )
    splits = read_attribute_table(root, attributes=["bag", "hat"])
    assert splits["train"].labels.tolist() == [[0, 1]]
    assert splits["test"].labels.tolist() == [[1, 0]]
    assert splits["test"].protocol.endswith("train/test, 2 attributes (chosen)")
    for attributes, message in (
        (["hat", "coat"], "no column coat; there are note, hat, bag"),
        (["hat", "bag", "hat"], "has hat twice"),
        (["hat", "note"], "test.csv: no column note"),
        ([], r"give names in brackets, as \[note\]"),
        ("hat", r"attributes=hat: give names in brackets"),
    ):
        with pytest.raises(HapError, match=message):
            read_attribute_table(root, attributes=attributes)


def test_labels_1_and_2_are_no_truth_values(write):
    rows = ["a.jpg,1,2", "b.jpg,2,2", "c.jpg,1,1", "d.jpg,0,2"]
    root = write(train="\n".join(["path,hat,bag", *rows]), test="path,hat,bag\ne.jpg,1,2\n")
    with pytest.raises(HapError) as error:
        read_attribute_table(root)
    message = str(error.value)
    assert (
        "train.csv, column hat, line 3: '2' is no label; the column has '1' 2 times, '2' 1 times, '0' 1 times"
        in message
    )
    assert (
        "train.csv, column bag, line 2: '2' is no label; the column has '2' 3 times, '1' 1 times" in message
    )
    assert "test.csv, column bag, line 2: '2' is no label" in message
    assert "data.reader.labels={positive: 1" in message
    with pytest.raises(HapError, match="column hat, line 5: '0' is no label") as error:
        read_attribute_table(root, labels={"negative": 1, "positive": 2})
    assert "column bag" not in str(error.value)
    write(train="\n".join(["path,hat,bag", *rows[:3]]))
    splits = read_attribute_table(root, labels={"negative": 1, "positive": 2})
    assert splits["train"].labels.tolist() == [[0, 1], [1, 1], [0, 0]]


def test_minus_one_has_to_be_declared(write):
    rows = [f"{name}.jpg,{label}" for name, label in zip("abcde", (1, -1, -1, 0, 1), strict=True)]
    root = write(train="\n".join(["image,hat", *rows]), test="image,hat\nf.jpg,1\n")
    with pytest.raises(HapError, match="line 3: '-1' is no label"):
        read_attribute_table(root)
    splits = read_attribute_table(root, labels={"positive": 1, "negative": -1, "unknown": 0})
    assert splits["train"].labels.ravel().tolist() == [1, 0, 0, -1, 1]
    splits = read_attribute_table(root, labels={"positive": 1, "negative": 0, "unknown": -1})
    assert splits["train"].labels.ravel().tolist() == [1, -1, -1, 0, 1]


def test_values_are_counted_over_the_whole_table(write):
    values = ["x"] + [str(value) for value in range(10)]
    rows = [f"a.jpg,{'test' if value == 'x' else 'train'},{value}" for value in values]
    root = write(attributes="\n".join(["image,split,hat", *rows]))
    with pytest.raises(HapError) as error:
        read_attribute_table(root)
    assert "line 2: 'x' is no label; the column has 'x' 1 times, '0' 1 times" in str(error.value)
    assert "'4' 1 times, 5 other values" in str(error.value)


def test_the_coding_as_it_is_typed(write):
    """What the message says works on the command line."""
    root = write(train="image,hat\na.jpg,1\nb.jpg,-1\nc.jpg,0\n", test="image,hat\nf.jpg,-1\n")
    with pytest.raises(HapError) as error:
        read_attribute_table(root)
    typed = re.search(r'"(data\.reader\.labels=.*)"', str(error.value))
    data = ["experiment=attribute_pa100k", "data=attributes"]
    reader = hydra.utils.instantiate(config("train", *data, typed[1]).data.reader)
    assert reader(root)["train"].labels.ravel().tolist() == [1, 0, -1]
    write(train="image,hat,note\na.jpg,1,x\n", test="image,hat\nf.jpg,0\n")
    reader = hydra.utils.instantiate(config("train", *data, "data.reader.attributes=[hat]").data.reader)
    assert reader(root)["test"].attributes == ("hat",)


@pytest.mark.parametrize(
    ("labels", "cells", "expected"),
    [
        ({"positive": True, "negative": False}, ["TRUE", "False", ""], [1, 0, -1]),
        ({"positive": 1.0, "negative": 0.0}, ["1", '"0,0"', ""], [1, 0, -1]),
        ({"positive": 1, "negative": 2}, ["1.0", "2.00", ""], [1, 0, -1]),
        ({"positive": "x", "negative": None}, ["X", "", "x"], [1, 0, 1]),  # a mark where the attribute is
        ({"positive": 1, "negative": 0, "unknown": None}, ["1", "0", ""], [1, 0, -1]),
        ({"positive": [1, "y"], "negative": [0, "n"], "unknown": [-1, "?"]}, ["Y", "0", "?"], [1, 0, -1]),
        ({"positive": "JA", "negative": "nein", "unknown": "NaN"}, ["ja", "Nein", "nan"], [1, 0, -1]),
    ],
)
def test_codings(write, labels, cells, expected):
    rows = [f"{name}.jpg,{cell}" for name, cell in zip("abc", cells, strict=True)]
    root = write(train="\n".join(["image,hat", *rows]), test="\n".join(["image,hat", *rows]))
    splits = read_attribute_table(root, labels=labels)
    assert splits["train"].labels.ravel().tolist() == splits["test"].labels.ravel().tolist() == expected


@pytest.mark.parametrize(
    "labels",
    [
        {"positive": 1},
        {"yes": 1, "no": 0},
        {"positive": 1, "negative": 1},
        {"positive": 1, "negative": 0, "x": 2},
        {"positive": 1, "negative": [0, 1.0]},
        {"positive": "Yes", "negative": "yes"},
        {1: "positive", 0: "negative"},
        [1, 0],
        "1",
    ],
)
def test_a_coding_needs_two_values(write, labels):
    root = write(train="image,hat\na.jpg,1\n", test="image,hat\nb.jpg,1\n")
    with pytest.raises(HapError, match=r"data\.reader\.labels"):
        read_attribute_table(root, labels=labels)


def test_spellings_of_exporters(write):
    values = ["true", "False", "1", "YES", "no", "0", "1.0", "0.0"]
    rows = [f"{name}.jpg,{value}" for name, value in zip("abcdefgh", values, strict=True)]
    root = write(train="\n".join(["image,hat", *rows]), test="image,hat\na.jpg,1\n")
    splits = read_attribute_table(root)
    assert splits["train"].labels.ravel().tolist() == [1, 0, 1, 1, 0, 0, 1, 0]
    write(train="image,hat\na.jpg,1\nb.jpg,maybe\n")
    with pytest.raises(HapError, match="column hat, line 3: 'maybe' is no label"):
        read_attribute_table(root)


@pytest.mark.parametrize(
    "cell", ["hat#bag", "hat;bag", "hat|bag", '"hat, bag"', '"{""choices"": [""hat""]}"']
)
def test_a_list_in_one_cell(write, cell):
    root = write(train=f"image,wears\na.jpg,{cell}\n", test="image,wears\nb.jpg,1\n")
    with pytest.raises(HapError, match="make a column for each name") as error:
        read_attribute_table(root)
    assert "column wears, line 2" in str(error.value)
    assert "data.reader.labels" not in str(error.value)


def test_exports_of_spreadsheets(write, tmp_path):
    root = write(test="image;hat;Tüte;;\r\nb.jpg;0;1;;\r\n;;;;\r\n")
    (tmp_path / "train.csv").write_bytes("image;hat;Tüte\r\na.jpg;1;0\r\n".encode("utf-8-sig"))
    splits = read_attribute_table(root)
    assert splits["train"].attributes == ("hat", "Tüte")
    assert splits["test"].labels.tolist() == [[0, 1]]


def test_a_column_with_gaps_is_written_as_decimals(write):
    root = write(
        train="image,hat\na.jpg,1.0\nb.jpg,\nc.jpg,0.0\n", test="sep=;\nimage;hat\nd.jpg;1,0\ne.jpg;0,0\n"
    )
    splits = read_attribute_table(root)
    assert splits["train"].labels.ravel().tolist() == [1, -1, 0]
    assert splits["test"].labels.ravel().tolist() == [1, 0]
    write(train="image,hat\na.jpg,0.5\nb.jpg,10\n")
    with pytest.raises(
        HapError, match=r"line 2: '0\.5' is no label; the column has '0.5' 1 times, '10' 1 times"
    ):
        read_attribute_table(root)


def test_images_that_are_wrong(write):
    root = write(
        train="image,hat,bag\na.jpg,1,0\n./a.jpg,1,1\nx.jpg,1,0\n../b.jpg,1,0\n,1,0\nc.jpg,1,1,1\nd.jpg,1\ne.jpg,7,0\n",
        test="image,hat,bag\nb.jpg,1,0\ny.jpg,1,0\n",
    )
    with pytest.raises(HapError) as error:
        read_attribute_table(root)
    lines = str(error.value).split("\n  ")
    assert lines[0] == f"{root}: 8 mistakes in the tables (images are below this folder)"
    assert lines[1:8] == [
        "train.csv, line 3: the image of train.csv, line 2, labelled differently (bag)",
        "train.csv, line 4: image not found: 'x.jpg'",
        f"train.csv, line 5: image '../b.jpg' is empty or leads out of {root}",
        f"train.csv, line 6: image '' is empty or leads out of {root}",
        "train.csv, line 7: more fields than the first line",
        "train.csv, line 8: fewer fields than the first line",
        "test.csv, line 3: image not found: 'y.jpg'",
    ]
    assert lines[8].startswith("train.csv, column hat, line 9: '7' is no label; the column has '1' 5 times,")


def test_images_that_are_there_twice(write, caplog):
    root = write(
        train="image,hat\na.jpg,1\n./a.jpg,1\nb.jpg,0\nlink.jpg,0\n",
        test="image,hat\nb.jpg,1\nc.jpg,0\na.jpg,1\n",
    )
    os.link(root / "b.jpg", root / "link.jpg")
    with caplog.at_level(logging.WARNING):
        splits = read_attribute_table(root)
    assert splits["train"].names == ["a.jpg", "b.jpg"]
    assert splits["test"].names == ["b.jpg", "c.jpg", "a.jpg"]
    assert (
        "2 images are there again, and count once\n  train.csv, line 3: the image of train.csv, line 2"
        in caplog.text
    )
    leak = "2 of 3 images of test are trained on: its scores will be too good"
    first = "b.jpg (test.csv, line 2; labelled differently in train)"
    assert f"{leak}\n  {first}\n  a.jpg (test.csv, line 4)\n" in caplog.text
    assert "the best epoch" not in caplog.text


def test_an_image_in_val_and_test(write, caplog):
    rows = "a.jpg,train,1\nb.jpg,train,0\nc.jpg,val,0\nd.jpg,val,1\nc.jpg,test,0\ne.jpg,test,1\n"
    root = write(attributes=f"image,split,hat\n{rows}")
    with caplog.at_level(logging.WARNING):
        read_attribute_table(root)
    assert (
        "1 of 2 images of test are in val: the best epoch is chosen by them\n  c.jpg (attributes.csv, line 6)"
        in caplog.text
    )
    assert "trained on" not in caplog.text


def test_an_image_in_train_and_val(write, caplog):
    rows = "a.jpg,train,1\nb.jpg,train,0\na.jpg,val,0\nc.jpg,test,1\nd.jpg,test,0\n"
    root = write(attributes=f"image,split,hat\n{rows}")
    with caplog.at_level(logging.WARNING):
        read_attribute_table(root)
    assert "1 of 1 images of val are trained on" in caplog.text
    with pytest.raises(
        HapError, match=r"line 4: the image of attributes.csv, line 2, labelled differently \(hat\)"
    ):
        read_attribute_table(root, train_on="trainval")
    write(attributes="image,split,hat\n" + rows.replace("val,0", "val,1"))
    assert read_attribute_table(root, train_on="trainval")["train"].names == ["a.jpg", "b.jpg"]


def test_an_attribute_that_nobody_knows(write):
    root = write(train="image,hat,bag\na.jpg,1,\nb.jpg,0,\n", test="image,hat,bag\nc.jpg,1,1\n")
    with pytest.raises(HapError, match="bag is unknown on every training image"):
        read_attribute_table(root)


def test_folders_without_tables(write):
    with pytest.raises(HapError, match=r"neither attributes\.csv"):
        read_attribute_table(write(train="image,hat\na.jpg,1\n"))
    with pytest.raises(HapError, match=r"no rows of test"):
        read_attribute_table(write(attributes="image,split,hat\na.jpg,train,1\n"))
    with pytest.raises(HapError, match=r"no rows of train and test in attributes\.csv"):
        read_attribute_table(write(attributes="image,split,hat\n"))
    with pytest.raises(HapError, match="no column split; the first line has image, hat"):
        read_attribute_table(write(attributes="image,hat\na.jpg,1\n"))
    with pytest.raises(HapError, match=r"train_on=both: choose from train, trainval"):
        read_attribute_table(write(), train_on="both")
    with pytest.raises(HapError, match="line 2: split 'Test' is not"):
        read_attribute_table(write(attributes="image,split,hat\na.jpg,Test,1\n"))


def test_counts_are_logged(write, caplog):
    root = write(train="image,hat\na.jpg,0\nb.jpg,0\n", test="image,hat\nc.jpg,1\n")
    with caplog.at_level(logging.INFO):
        splits = read_attribute_table(root)
    assert "no positives in train of hat" in caplog.text
    assert splits["train"].labels.dtype == np.int8
