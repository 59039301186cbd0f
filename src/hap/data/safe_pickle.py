"""Read pickled data without running it.

A pickle is a program: loading one from the internet with `pickle.load` or `np.load(allow_pickle=True)` runs
whatever its author put in. The unpickler here knows the few names that build plain data and refuses the rest.
Those few are dangerous, too, in the hands of C code that trusts them: NumPy writes outside an array whose shape
and content differ, Python overflows its stack on nested tuples, and seven bytes can ask for gigabytes. So the
file is walked over before it is run, and types and arrays are made here, from checked values.
"""

import io
import math
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
from numpy.lib import format as npy

from hap.data.files import read_file
from hap.errors import BadSample, HapError

MAX_NPY = 1 << 20  # bytes of a .npy file: a pose has some hundred
MAX_FILE = 1 << 32  # bytes of any: a list of four million names has 200 MB
MAX_TUPLES = 10_000  # within each other: hashing that many fits the stack

Names = Mapping[tuple[str, str], Callable[..., Any]]
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class _Dtype:
    """Stands for a dtype while its pickle is read: NumPy's own takes any state, and a lie in it moves memory."""

    def __init__(self, spec: Any, align: Any = False, copy: Any = False):
        self.dtype = np.dtype(spec if isinstance(spec, str) else "V")
        if self.dtype.kind not in "biufcSUO":
            raise HapError("it holds a type that is not plain")

    def __setstate__(self, state: Any) -> None:
        _, order, *rest = state
        if rest[:3] != [None, None, None]:  # subarray, names, fields
            raise HapError("it holds a type that is not plain")
        if order in ("<", ">", "="):
            self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray):
    """An array that compares shape and content before it takes them."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        content = _bytes_2(content)
        state = (1, shape, _checked(shape, dtype, content), bool(fortran), content)
        super().__setstate__(state)  # type: ignore[arg-type]


def _checked(shape: Any, dtype: Any, content: Any) -> np.dtype:
    """The dtype of an array whose shape, dtype and content fit each other."""
    if not (isinstance(dtype, _Dtype) and isinstance(shape, tuple) and all(type(n) is int for n in shape)):
        raise HapError("it holds a damaged array")
    kind, size = (list, 1) if dtype.dtype.hasobject else (bytes, dtype.dtype.itemsize)
    if type(content) is not kind or len(content) != math.prod(shape) * size or min(shape, default=0) < 0:
        raise HapError("it holds an array whose shape and content differ")
    return dtype.dtype


def _bytes_2(content: Any) -> Any:
    """Python 2 wrote bytes as what is read as a string."""
    return content.encode("latin1") if isinstance(content, str) else content


_NDARRAY = "numpy.ndarray"  # a word, not the class: it is an argument of _reconstruct and must not be called


def _reconstruct(kind: Any, shape: Any, code: Any) -> np.ndarray:
    if kind != _NDARRAY or shape != (0,):
        raise HapError("it holds a damaged array")
    return _Array((0,), np.int8)


def _frombuffer(content: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if order not in ("C", "F"):
        raise HapError("it holds a damaged array")
    array = np.frombuffer(bytes(content), _checked(shape, dtype, bytes(content)))
    return np.reshape(array, shape, "F" if order == "F" else "C").copy(order="K").view(_Array)


def _scalar(dtype: Any, content: Any) -> Any:
    content = _bytes_2(content)
    return np.frombuffer(content, _checked((1,), dtype, content))[0]


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise HapError(f"it contains code (_codecs.encode to {encoding})")
    return text.encode("latin1")


# numpy 1 writes numpy.core, numpy 2 numpy._core: either version of numpy must read the other's files.
_PLAIN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,  # bytes in protocol 2
} | {
    (f"{package}.{module}", name): function
    for package in ("numpy.core", "numpy._core")
    for module, name, function in (
        ("multiarray", "_reconstruct", _reconstruct),
        ("multiarray", "scalar", _scalar),
        ("numeric", "_frombuffer", _frombuffer),
    )
}


class _Call:
    """A function without attributes that a pickle could set."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


# Of each opcode: the bytes of its argument, or minus what pickletools calls a line or a length in front of it.
_SIZES = {ord(op.code): op.arg.n if op.arg else 0 for op in pickletools.opcodes}
_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_PUTS = frozenset(b"qr")  # with the index as a number of 1 and of 4 bytes
_TUPLES = frozenset(b"t\x85\x86\x87")
_TWO_LINES = frozenset(b"ci")
_TUPLE_NAMES = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"})
_MARKED = (pickletools.markobject, pickletools.stackslice)


def _walk(data: bytes) -> None:
    """Compare what a pickle announces with what is there, before C code allocates it: lengths, and indices of
    its memory, which a pickler counts up. Raises HapError; IndexError or ValueError if it is cut off."""
    position = count = tuples = 0
    while (code := data[position]) != 0x2E:  # STOP
        position += 1
        count += 1
        size = _SIZES[code]
        if size > 0:
            end = position + size
            if code in _PUTS and int.from_bytes(data[position:end], "little") > count:
                raise HapError("it asks for memory that it does not use")
            position = end
        elif size == 0:
            tuples += code in _TUPLES
        elif size == pickletools.UP_TO_NEWLINE:
            end = data.index(b"\n", position)
            if code == 0x70 and int(data[position:end]) > count:  # PUT, the index as text
                raise HapError("it asks for memory that it does not use")
            position = end + 1 if code not in _TWO_LINES else data.index(b"\n", end + 1) + 1
        else:
            start = position + _LENGTHS[size]
            position = start + int.from_bytes(data[position:start], "little")
    if tuples > MAX_TUPLES and _nested_tuples(data) > MAX_TUPLES:
        raise HapError(f"it holds more than {MAX_TUPLES:,} tuples within each other")


def _nested_tuples(data: bytes) -> int:
    """How many tuples lie within each other at most. 100,000 strings of NumPy's have a tuple of arguments each:
    their number says nothing. The stack is followed in thought, with a number in place of each object."""
    stack: list[int | None] = []  # None is a mark
    memo: dict[Any, int] = {}
    deepest = 0
    for operation, argument, _ in pickletools.genops(data):
        name, before, after = operation.name, operation.stack_before, operation.stack_after
        if name == "MARK":
            stack.append(None)
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if argument is None else argument] = stack[-1] or 0
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            taken = []
            if pickletools.markobject in before:
                while (top := stack.pop()) is not None:
                    taken.append(top)
            taken += [stack.pop() or 0 for kind in before if kind not in _MARKED]
            inside = 1 + max(taken, default=0) if name in _TUPLE_NAMES else 0
            deepest = max(deepest, inside)
            stack += [inside] * len(after)
    return deepest


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, extra: Names):
        super().__init__(file, encoding="latin1")  # what numpy asks for in files of Python 2
        self.extra = extra

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.extra:
            known = self.extra[module, name]
            return _Call(known) if isinstance(known, FunctionType) else known
        if (module, name) not in _PLAIN:
            raise HapError(f"it contains code ({module}.{name})")
        known = _PLAIN[module, name]
        return known if known in (_NDARRAY, OrderedDict) else _Call(known)


def load(source: Path | bytes, extra: Names | None = None) -> Any:
    """Unpickle lists, dicts, tuples, strings, numbers and numpy arrays; nothing in the file is executed.

    Args:
        source: the file, or its bytes.
        extra: further (module, name) pairs to admit, each with what builds the object in its place.

    Raises HapError for a file that names anything else, or that is damaged; OSError if it cannot be read.
    """
    data, where = _bytes(source)
    return _unpickle(data, where, {} if extra is None else extra)


def load_npy(source: Path | bytes) -> np.ndarray:
    """Read a .npy file, also one that holds a pickled object array, as `load` does.

    Raises HapError for a file that names anything but data, that is damaged, or above MAX_NPY; OSError if it
    cannot be read.
    """
    data, where = _bytes(source)
    if len(data) > MAX_NPY:
        raise HapError(f"{where} is not a pose: it has {len(data):,} bytes, more than {MAX_NPY:,}")
    file = io.BytesIO(data)
    try:
        shape, fortran, dtype = _HEADERS[npy.read_magic(file)](file)
        body = data[file.tell() :]
        if not dtype.hasobject:
            if len(body) != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"its header says {shape} of {dtype}, {len(body)} bytes follow")
            return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C").copy()
    except Exception as error:  # numpy parses the header as Python: a damaged one fails in many ways
        raise HapError(f"{where} is not a readable .npy file: {error!r}") from None
    array = _unpickle(body, where, {})
    if not isinstance(array, np.ndarray) or array.size != math.prod(shape):
        raise HapError(f"{where} is not a readable .npy file: its header says {shape}, its content differs")
    return np.asarray(array).reshape(shape)


def _finished(value: Any, done: dict[int, Any]) -> Any:
    """NumPy's own arrays in place of `_Array`s, wherever they are."""
    if type(value) in (str, bytes, int, float, bool) or value is None:
        return value
    if id(value) in done:
        return done[id(value)][1]
    if isinstance(value, _Dtype):
        return value.dtype
    result = value
    if isinstance(value, _Array):
        result = value.view(np.ndarray)
    done[id(value)] = value, result  # keeps the value, so that no other has its id
    if isinstance(result, np.ndarray) and result.dtype.hasobject:
        for place, item in enumerate(result.flat):
            result.flat[place] = _finished(item, done)
    elif type(value) is tuple:
        result = tuple(_finished(item, done) for item in value)
        done[id(value)] = value, result
    elif isinstance(value, list):
        value[:] = [_finished(item, done) for item in value]
    elif isinstance(value, dict):
        value.update({key: _finished(item, done) for key, item in value.items()})
    if hasattr(value, "__dict__"):
        _finished(vars(value), done)
    return result


def _bytes(source: Path | bytes) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        return source, "the pickle"
    try:
        return read_file(source, MAX_FILE), str(source)
    except BadSample as error:
        raise HapError(f"{source} is no pickle: {error}") from None


def _unpickle(data: bytes, where: str, extra: Names) -> Any:
    try:
        _walk(data)
        return _finished(_Unpickler(io.BytesIO(data), extra).load(), {})
    except HapError as error:
        raise HapError(f"{where} refused: {error}; only plain data is read") from None
    except Exception as error:  # a damaged pickle fails in any way: EOFError, TypeError, MemoryError, ...
        raise HapError(f"{where} is a damaged pickle: {error!r}") from None
