"""Read pickled data without running it.

A pickle is a program: loading one from the internet with `pickle.load` or `np.load(allow_pickle=True)` runs
whatever its author put in. The unpickler here knows the few names that build plain data and refuses the rest.
"""

import importlib
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from hap.errors import HapError

Names = Mapping[tuple[str, str], Callable[..., Any]]
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def _real(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


# numpy 1 writes numpy.core, numpy 2 numpy._core: either version of numpy must read the other's files.
_CORE = "numpy._core" if hasattr(np, "_core") else "numpy.core"
_PLAIN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _real("_codecs", "encode"),  # bytes in protocol 2
} | {
    (f"{package}.{module}", name): _real(f"{_CORE}.{module}", name)
    for package in ("numpy.core", "numpy._core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, extra: Names):
        super().__init__(file, encoding="latin1")  # what numpy asks for in files of Python 2
        self.known = _PLAIN | dict(extra)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.known:
            raise HapError(f"it contains code ({module}.{name})")
        return self.known[module, name]


def load(source: Path | bytes, extra: Names | None = None) -> Any:
    """Unpickle lists, dicts, tuples, strings, numbers and numpy arrays; nothing in the file is executed.

    Args:
        source: the file, or its bytes.
        extra: further (module, name) pairs to admit, each with what builds the object in its place.

    Raises HapError for a file that names anything else, or that is damaged; OSError if it cannot be read.
    """
    data, where = _bytes(source)
    return _unpickle(io.BytesIO(data), where, extra or {})


def load_npy(source: Path | bytes) -> np.ndarray:
    """Read a .npy file, also one that holds a pickled object array, as `load` does.

    Raises HapError for a file that names anything but data, or that is damaged; OSError if it cannot be read.
    """
    data, where = _bytes(source)
    file = io.BytesIO(data)
    try:
        shape, _, dtype = _HEADERS[npy.read_magic(file)](file)
        if not dtype.hasobject:
            return np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # numpy parses the header as Python: a damaged one fails in many ways
        raise HapError(f"{where} is not a readable .npy file: {error!r}") from None
    array = _unpickle(file, where, {})
    if not isinstance(array, np.ndarray) or array.size != np.prod(shape):
        raise HapError(f"{where} is not a readable .npy file: its header says {shape}, its content differs")
    return array.reshape(shape)


def _bytes(source: Path | bytes) -> tuple[bytes, str]:
    return (source, "the pickle") if isinstance(source, bytes) else (source.read_bytes(), str(source))


def _unpickle(file: io.BytesIO, where: str, extra: Names) -> Any:
    try:
        return _Unpickler(file, extra).load()
    except HapError as error:
        raise HapError(f"{where} refused: {error}; only plain data is read") from None
    except Exception as error:  # a damaged pickle fails in any way: EOFError, TypeError, MemoryError, ...
        raise HapError(f"{where} is a damaged pickle: {error!r}") from None
