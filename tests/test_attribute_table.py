"""Tables of attributes as people write them."""

import logging
from pathlib import Path

import numpy as np
import pytest

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
        ("image,hat", "test.csv: no column bag, which the training table has"),
        ("image,hat,bag,female", "test.csv: the training table has no column female"),
        (
            "photo,hat,bag",
            "test.csv: one column must be called image or path; the first line has photo, hat, bag",
        ),
        ("image,path,hat,bag", "one column must be called image or path"),
        ("image,hat,positive", "no attribute can be called positive: rename the column"),
        ("image", "no column of an attribute"),
    ],
)
def test_other_columns(write, columns, message):
    root = write(train="image,hat,bag\na.jpg,1,0\n", test=f"{columns}\nb.jpg{',1' * columns.count(',')}\n")
    with pytest.raises(HapError, match=message):
        read_attribute_table(root)


def test_labels_1_and_2_are_no_truth_values(write):
    rows = ["a.jpg,1,2", "b.jpg,2,2", "c.jpg,1,1", "d.jpg,0,2"]
    root = write(train="\n".join(["path,hat,bag", *rows]), test="path,hat,bag\ne.jpg,1,2\n")
    with pytest.raises(HapError) as error:
        read_attribute_table(root)
    message = str(error.value)
    assert (
        "column hat, line 3: '2' is no label; the column has 2 times '1', 1 times '2', 1 times '0'" in message
    )
    assert "column bag, line 2: '2' is no label" in message
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


@pytest.mark.parametrize(
    "labels",
    [
        {"positive": 1},
        {"yes": 1, "no": 0},
        {"positive": 1, "negative": 1},
        {"positive": 1, "negative": 0, "x": 2},
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


@pytest.mark.parametrize("cell", ["hat#bag", "hat;bag", '"{""choices"": [""hat""]}"'])
def test_a_list_in_one_cell(write, cell):
    root = write(train=f"image,wears\na.jpg,{cell}\n", test="image,wears\nb.jpg,1\n")
    with pytest.raises(HapError, match="make a column for each name"):
        read_attribute_table(root)


def test_exports_of_spreadsheets(write, tmp_path):
    root = write(test="image;hat;Tüte;;\r\nb.jpg;0;1;;\r\n;;;;\r\n")
    (tmp_path / "train.csv").write_bytes("image;hat;Tüte\r\na.jpg;1;0\r\n".encode("utf-8-sig"))
    splits = read_attribute_table(root)
    assert splits["train"].attributes == ("hat", "Tüte")
    assert splits["test"].labels.tolist() == [[0, 1]]


def test_images_that_are_wrong_or_there_twice(write, caplog):
    root = write(
        train="image,hat\na.jpg,1\n./a.jpg,0\nx.jpg,1\n../b.jpg,1\n,1\nc.jpg,1,1\n",
        test="image,hat\nb.jpg,1\n",
    )
    with pytest.raises(HapError) as error:
        read_attribute_table(root)
    for problem in (
        "train.csv has 5 mistakes",
        "line 3: the image of line 2 with other labels",
        "line 4: image not found: 'x.jpg'",
        "line 5: image '../b.jpg' is none, or leads out of",
        "line 6: image '' is none",
        "line 7: more fields",
    ):
        assert problem in str(error.value)
    write(train="image,hat\na.jpg,1\n./a.jpg,1\nb.jpg,0\n")
    with caplog.at_level(logging.WARNING):
        splits = read_attribute_table(root)
    assert splits["train"].names == ["a.jpg", "b.jpg"]
    assert "names 1 images again" in caplog.text
    assert "1 images of test are trained on" in caplog.text


def test_an_attribute_that_nobody_knows(write):
    root = write(train="image,hat,bag\na.jpg,1,\nb.jpg,0,\n", test="image,hat,bag\nc.jpg,1,1\n")
    with pytest.raises(HapError, match="bag is unknown on every training image"):
        read_attribute_table(root)


def test_folders_without_tables(write):
    with pytest.raises(HapError, match=r"neither attributes\.csv"):
        read_attribute_table(write(train="image,hat\na.jpg,1\n"))
    with pytest.raises(HapError, match=r"no rows of test"):
        read_attribute_table(write(attributes="image,split,hat\na.jpg,train,1\n"))
    with pytest.raises(HapError, match="line 2: split 'Test' is not"):
        read_attribute_table(write(attributes="image,split,hat\na.jpg,Test,1\n"))


def test_counts_are_logged(write, caplog):
    root = write(train="image,hat\na.jpg,0\nb.jpg,0\n", test="image,hat\nc.jpg,1\n")
    with caplog.at_level(logging.INFO):
        splits = read_attribute_table(root)
    assert "no positives in train of hat" in caplog.text
    assert splits["train"].labels.dtype == np.int8
