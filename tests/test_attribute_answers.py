"""Tables of answers: what `hap predict` writes is read back to the bit, other people's tables by name."""

import logging
import os
import re
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from hap.errors import HapError
from hap.tasks.attribute_answers import read_answers, write_answers

Image = namedtuple("Image", ["file", "frame", "seconds", "box"], defaults=[None, None, None])
HAT_BAG = ("hat", "bag")


def read(folder: Path, content: str | bytes, images, attributes=HAT_BAG) -> list[list[float]]:
    path = folder / "answers.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    answers = read_answers(path, images, attributes)
    assert answers.dtype == np.float32
    return answers.tolist()


def mistakes(folder: Path, content: str, images, attributes=HAT_BAG) -> str:
    with pytest.raises(HapError) as error:
        read(folder, content, images, attributes)
    return str(error.value)


def test_the_table_as_it_is_written(tmp_path):
    said = np.array([[0.5, 0.25, 0.875], [0.75, 0.5, 1.0]], np.float32)
    write_answers(tmp_path / "t.csv", [Image("a.jpg"), Image("b,c.jpg")], ("hat", "Mütze", "a;b"), said, 0.5)
    assert (tmp_path / "t.csv").read_text().splitlines() == [
        "image,hat,Mütze,a;b,positive",
        "a.jpg,0.5,0.25,0.875,a;b",
        '"b,c.jpg",0.75,0.5,1.0,hat;a;b',
    ]
    write_answers(tmp_path / "t.csv", [Image("v.mp4", 12, 0.48)], HAT_BAG, said[:1, :2], np.array([0.1, 0.9]))
    assert (tmp_path / "t.csv").read_text().splitlines()[:2] == [
        "image,frame,seconds,hat,bag,positive",
        "v.mp4,12,0.480,0.5,0.25,hat",
    ]


def test_read_back_to_the_bit(tmp_path):
    """Names of any bytes; a threshold that float32 rounds up decides alike."""
    rng = np.random.default_rng(0)
    said = rng.random((200, 3), np.float32) ** 8
    said[0] = 0, 1, np.float32(0.3)
    odd = ["", " b", "t\tb", "n\nb", "r\rb", '"q"', "é", os.fsdecode(b"\xe9\xff"), "b\\c", "红", "a=1", "x;y"]
    names = [f"folder/{odd[i % len(odd)]}{i}.jpg" for i in range(200)]
    write_answers(tmp_path / "t.csv", [Image(name) for name in names], ("hat", "bag", "Mütze"), said, 0.3)
    order = rng.permutation(200)
    again = read_answers(tmp_path / "t.csv", [names[i] for i in order], ("Mütze", "bag", "hat"))
    assert (again == said[order][:, ::-1]).all()
    first = (tmp_path / "t.csv").read_bytes().split(b"\r\n")[1]
    assert first.endswith(b",bag")


@pytest.mark.parametrize(
    "content",
    [
        b"image,hat,bag\na.jpg,0.25,0.5\nb.jpg,1,0\n",
        b"\xef\xbb\xbfbag;image;hat\r\n0,5;a.jpg;0,25\r\n0;b.jpg;1\r\n",  # a German spreadsheet's
        "image\that\tbag\nb.jpg\t1.0\t0e0\n\na.jpg\t.25\t5e-1".encode("utf-16"),
        b'positive,frame,image,seconds,bag,hat\n"hat;bag",1,./b.jpg,0.1,0,1\n,2,a.jpg,0.2,.5,.25\n',
    ],
)
def test_columns_and_rows_go_by_name(tmp_path, content, caplog):
    assert read(tmp_path, content, ["a.jpg", "b.jpg"]) == [[0.25, 0.5], [1, 0]]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_attribute_may_be_called_like_a_column_of_videos(tmp_path):
    content = "image,frame,seconds\na.jpg,0.25,1\n"
    assert read(tmp_path, content, ["a.jpg"], ["frame"]) == [[0.25]]


@pytest.mark.parametrize(
    ("listed", "images"),
    [
        (["a.jpg", "b.jpg"], ["a.jpg", "b.jpg"]),
        (["/x/data/a.jpg", "/x/data/b.jpg"], ["data/a.jpg", "data/b.jpg"]),
        (["/x/data/a.jpg", "/y/b.jpg"], ["a.jpg", "b.jpg"]),
        (["a.jpg", "b.jpg"], ["data/a.jpg", "data/b.jpg"]),
        (["C:\\x\\data\\a.jpg", "C:\\x\\data\\b.jpg"], ["data/a.jpg", "data/b.jpg"]),
        (["/x/1/a.jpg", "/x/2/a.jpg"], ["1/a.jpg", "2/a.jpg"]),  # one name, two folders
        (["/x/1/a.jpg", "a.jpg"], ["1/a.jpg", "a.jpg"]),
        (["/x/1/a.jpg", "/x/a.jpg"], ["1/a.jpg", "a.jpg"]),
    ],
)
def test_images_are_found_by_the_end_of_the_path(tmp_path, listed, images, caplog):
    content = f"image,hat,bag\n{listed[0]},0.25,0.5\n{listed[1]},1,0\n"
    assert read(tmp_path, content, images) == [[0.25, 0.5], [1, 0]]
    assert read(tmp_path, content, images[::-1]) == [[1, 0], [0.25, 0.5]]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_another_folder_is_said(tmp_path, caplog):
    content = "image,hat,bag\n/x/theirs/a.jpg,0.25,0.5\n"
    assert read(tmp_path, content, ["mine/a.jpg"]) == [[0.25, 0.5]]
    assert (
        "1 images found by the name of their file, in another folder\n  mine/a.jpg: /x/theirs/a.jpg"
        in caplog.text
    )


def test_a_file_of_another_folder_is_not_taken_for_one_that_is_there(tmp_path, caplog):
    """Test and training images of one name."""
    content = "image,hat,bag\n/x/train/a.jpg,1,1\n/x/test/a.jpg,0.25,0.5\n"
    assert read(tmp_path, content, ["test/a.jpg"]) == [[0.25, 0.5]]
    assert "1 images left out that are not in the split\n  /x/train/a.jpg" in caplog.text
    message = mistakes(tmp_path, content, ["a.jpg"])
    assert "line 3: the image of line 2 again, a.jpg" in message
    assert "1 of 1 images are missing, 1/a.jpg" in mistakes(tmp_path, content, ["1/a.jpg"])
    assert "2 of 2 images are missing, 1/a.jpg" in mistakes(
        tmp_path, "image,hat,bag\n/x/a.jpg,1,1\n", ["1/a.jpg", "2/a.jpg"]
    )


def test_what_is_too_much_is_left_out_and_said(tmp_path, caplog):
    content = "image,hat,shoes,bag\nz.jpg,many,9,9\na.jpg,0.25,9,0.5\n"
    assert read(tmp_path, content, ["a.jpg"]) == [[0.25, 0.5]]
    assert "1 images left out that are not in the split\n  z.jpg" in caplog.text
    assert "1 columns left out that are no attributes\n  shoes" in caplog.text


def test_all_mistakes_at_once_with_their_lines(tmp_path):
    content = (
        "image,hat,bag\n"
        "a.jpg,0.5,1.01\n"
        "b.jpg,nan,-0.1\n"
        "c.jpg,97%,0.5\n"
        "d.jpg,0.5\n"
        "e.jpg,0.5,0.5,0.5\n"
        ",0.5,0.5\n"
        "f.jpg,0.5,0.5\n"
        "f.jpg,0.5,0.5\n"
        "g.jpg,0_1,0.5\n"
    )
    assert re.sub("^.* has", "has", mistakes(tmp_path, content, [f"{x}.jpg" for x in "abcdefghi"])).split(
        "\n  "
    ) == [
        "has 9 mistakes",
        "line 2: bag is '1.01', no probability from 0 to 1",
        "line 3: hat is 'nan', no probability from 0 to 1, and 1 more",
        "line 4: hat is '97%', no probability from 0 to 1",
        "line 5: bag is '', no probability from 0 to 1",
        "line 6: more fields than the first line",
        "line 7: no image",
        "line 9: the image of line 8 again, f.jpg",
        "line 10: hat is '0_1', no probability from 0 to 1",
        "2 of 9 images are missing, h.jpg is the first",
    ]


def test_missing_columns_and_files(tmp_path):
    content = "image,hat\na.jpg,1\n"
    assert "no column bag, shoes; the first line has image, hat" in mistakes(
        tmp_path, content, ["a.jpg"], ("hat", "bag", "shoes")
    )
    assert "no column image" in mistakes(tmp_path, "file,hat,bag\na.jpg,1,1\n", ["a.jpg"])
    assert "2 columns are called 'hat'" in mistakes(tmp_path, "image,hat,hat,bag\na.jpg,1,1,1\n", ["a.jpg"])
    with pytest.raises(HapError, match="table not found"):
        read_answers(tmp_path / "none.csv", ["a.jpg"], HAT_BAG)
    latin = "image,hat,Mütze\na.jpg,1,1\n".encode("latin-1")
    with pytest.raises(HapError, match=r"no column Mütze; the first line has image, hat, M\\xfctze"):
        read(tmp_path, latin, ["a.jpg"], ("hat", "Mütze"))
