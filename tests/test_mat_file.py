"""MATLAB files, against SciPy, which wrote or reads them; and what SciPy's reader believes."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from hap.data.mat_file import read_mat
from hap.errors import HapError

SAMPLES = Path(os.environ.get("HAP_SAMPLES", "missing"))


def element(kind: int, content: bytes, order: str = "<") -> bytes:
    return struct.pack(f"{order}II", kind, len(content)) + content + bytes(-len(content) % 8)


def array(
    kind: int, shape: tuple[int, ...], content: bytes = b"", name: bytes = b"", order: str = "<"
) -> bytes:
    flags = element(6, struct.pack(f"{order}II", kind, 0), order)
    sizes = element(5, struct.pack(f"{order}{len(shape)}i", *shape), order)
    return element(14, flags + sizes + element(1, name, order) + content, order)


def header(order: str = "<") -> bytes:
    return (
        b"MATLAB 5.0 MAT-file".ljust(124)
        + struct.pack(f"{order}H", 0x100)
        + (b"IM" if order == "<" else b"MI")
    )


def plain(value):
    """What `scipy.io.loadmat` gives, in our words."""
    if value.dtype.names:
        rows = [{n: plain(row[n]) for n in value.dtype.names} for row in value.flatten("F")]
        return rows[0] if len(rows) == 1 else rows
    if value.dtype == object:
        return [plain(item) for item in value.flatten("F")]
    if value.dtype.kind == "U":
        rows = [row.rstrip(" \0") for row in value.flatten()]
        return rows[0] if len(rows) == 1 else rows or ""
    return value


def equal(a, b) -> bool:
    if isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and a.shape == b.shape and bool(np.all(a == b))
    if isinstance(b, dict):
        return isinstance(a, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(b, list):
        return isinstance(a, list) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def cells(*values) -> np.ndarray:
    column = np.empty((len(values), 1), object)
    column[:, 0] = values
    return column


VARIABLES = {
    "numbers": np.arange(12, dtype=np.uint8).reshape(3, 4),
    "doubles": np.array([[0.5, -1], [2, 1e300]]),
    "cube": np.arange(24, dtype=np.int32).reshape(2, 3, 4),
    "logical": np.array([[True, False]]),
    "nothing": np.empty((0, 3)),
    "text": "Skirt&Dress",
    "chinese": "女性",
    "padded": np.array(["000001.jpg  ", "000002.jpg"]),
    "names": cells("a.jpg", "bb.jpg", ""),
    "struct": {
        "label": np.ones((2, 2), np.int32),
        "partion": cells({"train_index": np.array([[2, 1]], np.uint16)}),
    },
    "structs": np.array([(1, "x"), (2, "y")], dtype=[("one", object), ("two", object)]),
}


@pytest.mark.parametrize("compressed", [False, True])
def test_what_scipy_writes(tmp_path, compressed):
    path = tmp_path / "some.mat"
    scipy.io.savemat(path, VARIABLES, do_compression=compressed)
    found, expected = read_mat(path), scipy.io.loadmat(path)
    assert list(found) == list(VARIABLES)
    for name in VARIABLES:
        assert equal(found[name], plain(expected[name])), name
    assert found["padded"] == ["000001.jpg", "000002.jpg"]
    assert found["chinese"] == "女性"
    assert found["struct"]["partion"][0]["train_index"].tolist() == [[2, 1]]


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="HAP_SAMPLES is not set")
@pytest.mark.parametrize("name", ["pa100k/annotation.mat", "mpii/annotations/mpii_gt_val.mat"])
def test_what_matlab_wrote(name):
    found, expected = read_mat(SAMPLES / name), scipy.io.loadmat(SAMPLES / name)
    assert set(found) == {name for name in expected if not name.startswith("__")}
    assert all(equal(found[name], plain(expected[name])) for name in found)


def test_the_other_order_of_bytes(tmp_path):
    numbers = array(10, (1, 3), element(3, struct.pack(">3h", 1, -2, 300), ">"), b"a", ">")
    text = array(4, (1, 2), element(17, "né".encode("utf-16-be"), ">"), b"b", ">")
    (tmp_path / "sun.mat").write_bytes(header(">") + numbers + text)
    found = read_mat(tmp_path / "sun.mat")
    assert found["a"].tolist() == [[1, -2, 300]]
    assert found["b"] == "né"


def test_what_is_no_plain_data_is_none(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"c": np.array([1j]), "s": scipy.sparse.eye(2), "n": 1})
    found = read_mat(tmp_path / "a.mat")
    assert found["c"] is None
    assert found["s"] is None
    assert found["n"].tolist() == [[1]]


def nested(depth: int) -> bytes:
    inner = array(6, (1, 1), element(9, bytes(8)))
    for _ in range(depth):
        inner = array(1, (1, 1), inner)
    return inner


def sized(kind: int, size: int) -> bytes:
    return struct.pack("<II", kind, size)


ABSURD = {
    "2^27 cells": (array(1, (1 << 27, 1)), "134,217,728 arrays should follow in 0 bytes"),
    "2^27 structures": (
        array(2, (1 << 27, 1), element(5, struct.pack("<i", 8)) + element(1, b"a".ljust(8, b"\0"))),
        "134,217,728 arrays",
    ),
    "2^62 numbers": (array(6, (1 << 31 >> 1,) * 4, element(9, bytes(8))), "1 numbers in an array of shape"),
    "a negative shape": (array(1, (-1, 1)), r"shape \(-1, 1\)"),
    "no shape": (array(6, ()), r"shape \(\)"),
    "cells within cells": (nested(100), "more than 16 arrays within each other"),
    "4 GB of numbers": (
        element(14, array(6, (1, 1))[8:] + sized(9, (1 << 32) - 8)),
        "cut off: 4,294,967,288 bytes should follow, 0 do",
    ),
    "a wrong small element": (sized(0x50001, 0), "wrong length"),
    "names of no length": (array(2, (1, 1), element(5, bytes(4)) + element(1, b"a")), "damaged names"),
    "numbers that are text": (array(6, (1, 1), element(16, b"12345678")), "numbers of an unknown type"),
    "text that is numbers": (array(4, (1, 1), element(9, b"12345678")), "text of an unknown type"),
    "text that is no UTF-8": (array(4, (1, 1), element(16, b"\xff")), "UnicodeDecodeError"),
    "a matrix with a row too few": (array(4, (2, 2), element(16, b"abc")), "3 characters in a matrix"),
    "a cell of a number": (array(1, (1, 1), element(9, bytes(8))), "a cell holds no array"),
    "half a number": (array(6, (1, 1), element(9, bytes(4))), "damaged"),
    "nothing compressed": (element(15, b"12345678"), "damaged"),
    "a cut compressed element": (
        element(15, zlib.compress(array(6, (1, 1), element(9, bytes(8))))[:20]),
        "cut off",
    ),
}


@pytest.mark.parametrize("case", ABSURD)
def test_absurd_sizes_are_errors_at_once(tmp_path, case):
    content, message = ABSURD[case]
    (tmp_path / "bad.mat").write_bytes(header() + content)
    with pytest.raises(HapError, match=message) as error:
        read_mat(tmp_path / "bad.mat")
    assert "bad.mat is damaged" in str(error.value)


def test_a_bomb_is_not_unpacked(tmp_path):
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(1 << 24)) for _ in range(17)) + packer.flush()
    (tmp_path / "bomb.mat").write_bytes(header() + struct.pack("<II", 15, len(bomb)) + bomb)
    with pytest.raises(HapError, match="unpacks to more than 268,435,456 bytes"):
        read_mat(tmp_path / "bomb.mat")


def test_a_file_cut_off_anywhere_is_an_error(tmp_path):
    path, short = tmp_path / "a.mat", tmp_path / "short.mat"
    scipy.io.savemat(path, {"a": np.ones((3, 3)), "names": cells("x", "y")})
    whole = path.read_bytes()
    ends = {128, whole.index(b"names") // 8 * 8 - 48}  # before, between and after variables: whole files
    for length in range(0, len(whole), 5):
        if length not in ends:
            short.write_bytes(whole[:length])
            with pytest.raises(HapError, match=r"short\.mat is (damaged|no MATLAB 5 file)"):
                read_mat(short)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "is no MATLAB 5 file .it starts with 'version https://git-",
        ),
        (b"", "is no MATLAB 5 file"),
        (
            b"\x89HDF\r\n\x1a\n" + bytes(600),
            "saved as MATLAB v7.3 .HDF5.: load it in MATLAB or Octave, save it with -v7",
        ),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\x02IM" + bytes(384) + b"\x89HDF\r\n\x1a\n", "v7.3"),
    ],
)
def test_other_files_say_what_they_are(tmp_path, content, message):
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(HapError, match=message):
        read_mat(tmp_path / "a.mat")


def test_a_missing_file(tmp_path):
    with pytest.raises(HapError, match=r"cannot read .*a\.mat"):
        read_mat(tmp_path / "a.mat")
