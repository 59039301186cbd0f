"""Pickles of a few bytes that crash, or fill the memory of, those who trust them."""

import codecs
import io
import multiprocessing
import pickle
import resource
import warnings

import numpy as np
import pytest
from numpy.lib import format as npy

from hap.data import safe_pickle
from hap.data.pretrain import PoseFiles
from hap.errors import BadSample, HapError, Unwanted


def with_header(body: bytes, shape: tuple = (1, 1)) -> bytes:
    file = io.BytesIO()
    npy.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": shape})
    return file.getvalue() + body


class Call:
    """Pickles as the call of a function, and what is then set on its result."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def lying_array(dtype: str, shape: tuple, content, flags=None) -> Call:
    reconstruct = np.ones(1).__reduce__()[0]
    kind = np.dtype(dtype) if flags is None else Call(np.dtype, dtype, False, True, state=flags)
    return Call(reconstruct, np.ndarray, (0,), b"b", state=(1, shape, kind, False, content))


scalar = np.float64(1).__reduce__()[0]
nested: object = None
for _ in range(40):
    nested = [nested] * 10  # 10^40 numbers, 40 lists
HOSTILE = {
    "memo of 2^27 places": b"Nr\x00\x00\x00\x08.",
    "memo of 2^31 places": b"Nr\xff\xff\xff\x7f.",
    "memo of 10^10 places, as text": b"Np10000000000\n.",
    "an array made by its class": b"cnumpy\nndarray\n((L100000000L\ntS'O'\ntR.",
    "a string of 2^60 bytes": b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b"ab.",
    "a byte array of 2^35 bytes": b"\x80\x05\x96" + (2**35).to_bytes(8, "little") + b"ab.",
    "nested tuples as a key": b"}" + b")" + b"\x85" * 500_000 + b"Ns.",
    "a number of 400 digits": pickle.dumps([[{"keypoints": [[10**400] * 3] * 17}]]),
    "lists in lists": pickle.dumps([[{"keypoints": nested}]]),
    "objects that are not there": pickle.dumps(lying_array("O", (100_000,), [1])),
    "objects of no memory": pickle.dumps(lying_array("O", (2**40,), [1])),
    "numbers that are not there": pickle.dumps(lying_array("f8", (2**40,), b"12345678")),
    "a negative shape": pickle.dumps(lying_array("f8", (-1, -1), b"12345678")),
    "fields outside of their type": pickle.dumps(
        lying_array(
            "V8", (1,), b"12345678", flags=(3, "|", None, ("a",), {"a": (np.dtype("f8"), 10**6)}, 8, 1, 0)
        )
    ),
    "a scalar of nothing": pickle.dumps(Call(scalar, np.dtype("V2000000000"))),
    "a scalar of an address": pickle.dumps(Call(scalar, np.dtype("O"), b"12345678")),
    "a codec": pickle.dumps(Call(codecs.encode, "a", "hex")),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pickles_are_refused(kind):
    class One:
        def names(self, *_):
            return ["a.npy"]

        def read(self, _):
            return with_header(HOSTILE[kind])

    with pytest.raises(BadSample):
        PoseFiles(One()).read("a", 0)


def test_numbers_that_are_called_objects_stay_numbers():
    """NumPy would take them for addresses."""
    flags = (3, "<", None, None, None, 8, 8, 63)
    data = pickle.dumps(lying_array("f8", (1,), np.float64(0.5).tobytes(), flags=flags))
    assert safe_pickle.load(data).tolist() == [0.5]


def peak_of_reading() -> int:
    """MB by which the memory of this process grows while all of them are read."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for body in HOSTILE.values():
        with pytest.raises(HapError):
            safe_pickle.load_npy(with_header(body))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024


def test_they_cost_no_memory():
    """In a process of its own, as peaks of the past hide those that follow. `pickle` took gigabytes for some."""
    with warnings.catch_warnings(action="ignore"), multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(peak_of_reading) < 100


def test_nothing_of_the_reader_can_be_changed_by_what_it_reads():
    """A state sets attributes; on the reader's own functions it would stay for the next file."""
    for name in (
        "_codecs\nencode",
        "numpy._core.multiarray\nscalar",
        "numpy\ndtype",
        "collections\nOrderedDict",
    ):
        data = b"\x80\x02c" + name.encode() + b"\n}X\x08\x00\x00\x00__call__Nsb."
        with pytest.raises(HapError):
            safe_pickle.load(data)
        data = b"\x80\x02c" + name.encode() + b"\n}}X\x08\x00\x00\x00__call__Ns\x86b."
        with pytest.raises(HapError):
            safe_pickle.load(data)
    array = np.arange(3.0)
    assert np.array_equal(safe_pickle.load(pickle.dumps(array)), array)


def test_an_array_that_is_there_twice_stays_one():
    array = np.arange(3.0)
    loaded = safe_pickle.load(pickle.dumps({"a": array, "b": [array, (array,)]}))
    assert type(loaded["a"]) is np.ndarray
    assert loaded["a"] is loaded["b"][0] is loaded["b"][1][0]
    itself: list = []
    itself.append(itself)
    loaded = safe_pickle.load(pickle.dumps(itself))
    assert loaded[0] is loaded


def test_large_pose_files_are_refused_unread():
    with pytest.raises(HapError, match="more than 1,048,576"):
        safe_pickle.load_npy(with_header(pickle.dumps(bytes(2_000_000))))


@pytest.mark.parametrize(
    "shape", [(10**12,), (2**63, 2**63), (-1,), (0,), (17, 4), tuple([1] * 60), (2**31, 2**31, 2**31)]
)
def test_npy_headers_of_absurd_shapes(shape):
    file = io.BytesIO()
    npy.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with pytest.raises(HapError, match=r"not a readable \.npy file"):
        safe_pickle.load_npy(file.getvalue() + bytes(17 * 3 * 8))


def test_npy_files_keep_order_and_type(tmp_path):
    for array in (
        np.arange(51, dtype=">f4").reshape(17, 3),
        np.asfortranarray(np.ones((17, 3))),
        np.float32(3),
    ):
        file = io.BytesIO()
        np.save(file, array)
        loaded = safe_pickle.load_npy(file.getvalue())
        assert loaded.dtype == array.dtype
        assert np.array_equal(loaded, array)


EMPTY = np.empty((1, 1), object)
EMPTY[0, 0] = []
NO_POINTS = np.empty((1, 1), object)
NO_POINTS[0, 0] = {"keypoints": np.zeros((0, 17, 3))}


@pytest.mark.parametrize(
    "value", [EMPTY, NO_POINTS, np.empty((1, 0), object), np.zeros((0, 17, 3)), np.array([None])]
)
def test_a_file_that_says_nobody_is_no_damage(value):
    file = io.BytesIO()
    np.save(file, value, allow_pickle=True)

    class One:
        def read(self, _):
            return file.getvalue()

    assert PoseFiles(One()).read("a", 0) is None
    assert issubclass(Unwanted, BadSample)
