"""CSV tables as people write them."""

import pytest

from hap.data.tables import read_table
from hap.errors import HapError


@pytest.mark.parametrize(
    "content",
    [
        b"image,hat\na.jpg,1\n\nb.jpg,0\n",
        b"\xef\xbb\xbfimage;hat\r\na.jpg;1\r\n;;\r\nb.jpg;0\r\n",  # a spreadsheet's
        "image\that\na.jpg\t1\n\nb.jpg\t0".encode("utf-16"),
        b' image , "hat",,\n"a.jpg", 1,,\n,,,\nb.jpg,0,\n',
        b"sep=;\r\nimage;hat\r\n\r\na.jpg;1\r\nb.jpg;0\r\n",
        b"\n \nimage;hat\na.jpg;1\nb.jpg;0\n",
    ],
)
def test_exports_of_one_table(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    table = read_table(tmp_path / "t.csv", ["image"])
    assert table.columns == ["image", "hat"]
    assert [row.cells for row in table.rows] == [
        {"image": "a.jpg", "hat": "1"},
        {"image": "b.jpg", "hat": "0"},
    ]
    text = content.decode("utf-16" if b"\0" in content else "utf-8").split("\n")
    assert [table.rows[0].line, table.rows[1].line] == [
        1 + next(i for i, line in enumerate(text) if name in line) for name in ("a.jpg", "b.jpg")
    ]
    assert not any(row.too_long or row.too_short for row in table.rows)


def test_lines_of_another_length(tmp_path):
    (tmp_path / "t.csv").write_text("image,hat\na.jpg\nb.jpg,1,2\nc.jpg,1,,\n")
    rows = read_table(tmp_path / "t.csv").rows
    assert rows[0].cells == {"image": "a.jpg", "hat": ""}
    assert [row.too_long for row in rows] == [False, True, False]
    assert [row.too_short for row in rows] == [True, False, False]


def test_separators_within_quotes(tmp_path):
    (tmp_path / "t.csv").write_text('image,note\na.jpg,"a;b, c"\n')
    assert read_table(tmp_path / "t.csv").rows[0].cells["note"] == "a;b, c"


@pytest.mark.parametrize(
    "header",
    ["image;Age, young;Age, old", 'image,"Age, young","Age, old"', 'image;"Age, young";"Age, old"'],
)
def test_commas_in_names(tmp_path, header):
    (tmp_path / "t.csv").write_text(f"{header}\na.jpg,1,0\n")
    assert read_table(tmp_path / "t.csv").columns == ["image", "Age, young", "Age, old"]


def test_the_separator_is_told(tmp_path, caplog):
    (tmp_path / "t.csv").write_text("image;hat\na.jpg;1\n")
    with caplog.at_level("INFO"):
        read_table(tmp_path / "t.csv")
    assert "t.csv: fields are separated by ';'" in caplog.text
    caplog.clear()
    (tmp_path / "t.csv").write_text("image\na.jpg\n")
    with caplog.at_level("INFO"):
        read_table(tmp_path / "t.csv")
    assert not caplog.text


def test_names_do_nothing_to_a_terminal(tmp_path):
    (tmp_path / "t.csv").write_text("path,h\x1b[31mat,h\x1b[31mat\n")
    with pytest.raises(HapError, match=r"2 columns are called 'h\\x1b\[31mat'; no column image") as error:
        read_table(tmp_path / "t.csv", ["image"])
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("sep=;\n", "is empty"),
        ("path,hat\na,1\n", "no column image; the first line has path, hat"),
        ("image,hat,hat\na,1,1\n", "2 columns are called 'hat'"),
        ("image,,hat\na,1,1\n", "column 2 has no name;"),
        (",image,hat\n0,a,1\n", r"column 1 has no name \(an index of pandas: write it with index=False\);"),
        ('image,hat\n"a,1\n', "line 2"),
    ],
)
def test_what_is_no_table(tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(HapError, match=message) as error:
        read_table(tmp_path / "t.csv", ["image"])
    assert str(tmp_path / "t.csv") in str(error.value)
