"""Read MATLAB 5 files (`save -v6`, `-v7`), believing nothing that they say of their size.

SciPy's reader takes the memory that a file of 200 bytes asks for, and overflows its stack on cells within cells.
Here a count is compared with the bytes that are there, and nothing is allocated that is not in the file. The
format is documented by MathWorks ("MAT-File Format"): elements of a type, a length and bytes, some of them
compressed, some of them arrays made of further elements.
"""

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from hap.data.files import MAX_BYTES, read_file
from hap.errors import BadSample, HapError, printable

MAX_NESTING = 16  # arrays within each other
_HDF5 = b"\x89HDF\r\n\x1a\n"
_HEADER = 128  # bytes: text, version, order of bytes

# Types of elements.
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXT = {1: "utf-8", 2: "utf-8", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}

# Classes of arrays.
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMERIC = range(6, 16)  # double, single, integers of 8 to 64 bits
_COMPLEX = 0x0800


def read_mat(path: Path) -> dict[str, Any]:
    """The variables of a file by name.

    A numeric or logical array is an ndarray (rows, columns, ...) of the type it is stored in, which is the
    smallest that holds its values; text a string without the blanks at its end; a matrix of characters a list of
    strings, one a row; a cell array a list, column by column; a structure a dict, or a list of dicts where it is
    not 1 x 1. What is none of these (objects, functions, sparse and complex arrays) is None.

    Raises HapError, naming the file: it cannot be read, is no MATLAB 5 file, or is damaged.
    """
    try:
        data = read_file(path)
    except (BadSample, OSError) as error:
        raise HapError(f"cannot read {path}: {error}") from None
    order = {b"IM": "<", b"MI": ">"}.get(data[126:_HEADER])
    if _HDF5 in (data[:8], data[512:520]):
        raise HapError(
            f"{path} is saved as MATLAB v7.3 (HDF5): load it in MATLAB or Octave, save it with -v7"
        )
    if order is None:
        start = printable(data[:20].decode("latin1"))
        raise HapError(f"{path} is no MATLAB 5 file (it starts with {start!r}): in MATLAB, save it with -v7")
    try:
        return _Reader(order).variables(memoryview(data)[_HEADER:])
    except HapError as error:
        raise HapError(f"{path} is damaged: {error}; copy it again") from None
    except (ValueError, struct.error, zlib.error) as error:
        raise HapError(f"{path} is damaged: {error!r}; copy it again") from None


class _Reader:
    """Reads elements in one order of bytes ("<" or ">")."""

    def __init__(self, order: str):
        self.order = order
        self.tag = struct.Struct(f"{order}II")
        self.unpacked = 0

    def element(self, data: memoryview, position: int) -> tuple[int, memoryview, int]:
        """Type and content of the element at a position, and the position of the next."""
        if position + 8 > len(data):
            raise HapError("it is cut off")
        kind, size = self.tag.unpack_from(data, position)
        start = position + 8
        if kind >> 16:  # up to four bytes are kept in the tag
            kind, size, start = kind & 0xFFFF, kind >> 16, position + 4
            following = position + 8
            if size > 4:
                raise HapError("an element has a wrong length")
        else:
            following = start + size + (-size % 8 if kind != _COMPRESSED else 0)
        if start + size > len(data):
            raise HapError(f"it is cut off: {size:,} bytes should follow, {len(data) - start:,} do")
        return kind, data[start : start + size], following

    def variables(self, data: memoryview) -> dict[str, Any]:
        found: dict[str, Any] = {}
        position = 0
        while position < len(data):
            kind, content, position = self.element(data, position)
            if kind == _COMPRESSED:
                kind, content, _ = self.element(self.decompressed(content), 0)
            if kind == _MATRIX:
                name, value = self.array(content, 0)
                found[name] = value
        return found

    def decompressed(self, content: memoryview) -> memoryview:
        room = MAX_BYTES - self.unpacked
        data = zlib.decompressobj().decompress(content, room + 1)
        self.unpacked += len(data)
        if len(data) > room:
            raise HapError(f"it unpacks to more than {MAX_BYTES:,} bytes")
        return memoryview(data)

    def array(self, data: memoryview, depth: int) -> tuple[str, Any]:
        """Name and value of an array, from the content of its element."""
        if depth > MAX_NESTING:
            raise HapError(f"it holds more than {MAX_NESTING} arrays within each other")
        if not len(data):  # how an empty cell is written
            return "", np.empty((0, 0))
        _, flags, position = self.element(data, 0)
        (flag,) = struct.unpack_from(f"{self.order}I", flags)
        _, sizes, position = self.element(data, position)
        shape = tuple(np.frombuffer(sizes, f"{self.order}i4").tolist())
        if min(shape, default=-1) < 0:
            raise HapError(f"an array has the shape {shape}")
        _, name, position = self.element(data, position)
        kind, rest = flag & 0xFF, data[position:]
        value: Any = None
        if kind in _NUMERIC and not flag & _COMPLEX:
            value = self.numbers(rest, shape)
        elif kind == _CHAR:
            value = self.text(rest, shape)
        elif kind == _CELL:
            value = self.arrays(rest, 0, math.prod(shape), depth)
        elif kind == _STRUCT:
            value = self.structure(rest, math.prod(shape), depth)
        return str(name, "latin1"), value

    def arrays(self, data: memoryview, position: int, count: int, depth: int) -> list[Any]:
        if count * 8 > len(data) - position:  # an element has 8 bytes at least
            raise HapError(f"{count:,} arrays should follow in {len(data) - position:,} bytes")
        values = []
        for _ in range(count):
            kind, content, position = self.element(data, position)
            if kind != _MATRIX:
                raise HapError("a cell holds no array")
            values.append(self.array(content, depth + 1)[1])
        return values

    def structure(self, data: memoryview, count: int, depth: int) -> Any:
        _, length, position = self.element(data, 0)
        _, names, position = self.element(data, position)
        width = int.from_bytes(length[:4], "little" if self.order == "<" else "big")
        if not 0 < width <= max(1, len(names)):
            raise HapError("a structure has damaged names")
        fields = [str(names[i : i + width], "latin1").partition("\0")[0] for i in range(0, len(names), width)]
        values = self.arrays(data, position, count * len(fields), depth)
        rows = [
            dict(zip(fields, values[i * len(fields) :], strict=False)) for i in range(count if fields else 0)
        ]
        return rows[0] if len(rows) == 1 else rows

    def numbers(self, data: memoryview, shape: tuple[int, ...]) -> np.ndarray:
        kind, content, _ = self.element(data, 0)
        if kind not in _NUMBERS:
            raise HapError(f"numbers of an unknown type ({kind})")
        stored = np.frombuffer(content, np.dtype(f"{self.order}{_NUMBERS[kind]}"))
        if len(stored) != math.prod(shape):
            raise HapError(f"{len(stored):,} numbers in an array of shape {shape}")
        return stored.astype(_NUMBERS[kind]).reshape(shape, order="F")

    def text(self, data: memoryview, shape: tuple[int, ...]) -> str | list[str]:
        if not math.prod(shape):
            return ""
        kind, content, _ = self.element(data, 0)
        if kind not in _TEXT:
            raise HapError(f"text of an unknown type ({kind})")
        ends = {"<": "-le", ">": "-be"}[self.order] if _TEXT[kind] != "utf-8" else ""
        text = str(content, f"{_TEXT[kind]}{ends}")
        rows = shape[0]
        if rows == 1:  # characters beyond 16 bits count twice in the shape
            return _stripped(text)
        if len(text) != math.prod(shape):
            raise HapError(f"{len(text):,} characters in a matrix of shape {shape}")
        return [_stripped(text[row::rows]) for row in range(rows)]


def _stripped(text: str) -> str:
    """Rows of a matrix are filled up with blanks."""
    return text.rstrip(" \0")
