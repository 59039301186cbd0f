import io
import os
import pickle
import sys
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest

from hap.data import safe_pickle
from hap.errors import HapError

DATA = {
    "list": [1, -2.5, 2**70, True, None, "é", b"\xff\x00", (1, 2)],
    "array": np.arange(12, dtype=np.float32).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "objects": np.array([{"a": 1}, "b"], dtype=object),
    "strings": np.array(["left", "right"]),
    "scalar": np.float32(0.5),
    "ordered": OrderedDict(x=1),
}


def equal(a, b) -> bool:
    if isinstance(a, dict):
        return type(a) is type(b) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    same = np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
    return same and type(a) is type(b)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("package", [b"numpy._core", b"numpy.core"])
def test_plain_data_of_either_numpy_round_trips(protocol, package):
    data = pickle.dumps(DATA, protocol)
    if protocol < 4:  # names are lines of text there, without a length in front
        data = data.replace(b"cnumpy._core.", b"c" + package + b".").replace(
            b"cnumpy.core.", b"c" + package + b"."
        )
    assert equal(safe_pickle.load(data), DATA)


def test_python_2_strings_and_arrays():
    raw = np.float32([1, 2.5])
    data = (
        b"(dp0\nS'a\\xe9'\np1\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I2\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'"
        + b"".join(b"\\x%02x" % byte for byte in raw.tobytes())
        + b"'\ntbs."
    )
    assert equal(safe_pickle.load(data), {"aé": raw})


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_is_refused_and_never_run(tmp_path, protocol):
    target, file = tmp_path / "made", tmp_path / "list.pkl"
    file.write_bytes(pickle.dumps({"names": ["a", [Hostile(target)]]}, protocol))
    with pytest.raises(HapError, match=r"list\.pkl refused: it contains code \(\w+\.mkdir\)"):
        safe_pickle.load(file)
    array = np.empty((1, 1), object)
    array[0, 0] = Hostile(target)
    np.save(tmp_path / "pose.npy", array, allow_pickle=True)
    with pytest.raises(HapError, match="contains code"):
        safe_pickle.load_npy(tmp_path / "pose.npy")
    assert not target.exists()
    np.load(tmp_path / "pose.npy", allow_pickle=True)  # the file is dangerous indeed
    assert target.exists()


@pytest.mark.parametrize("name", ["eval", "getattr", "__import__"])
def test_builtins_and_dotted_names_are_refused(name):
    with pytest.raises(HapError, match="contains code"):
        safe_pickle.load(b"\x80\x02cbuiltins\n" + name.encode() + b"\n.")
    dotted = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    with pytest.raises(HapError, match="contains code"):
        safe_pickle.load(dotted)


def test_extra_names_are_built_by_what_the_caller_gives(monkeypatch):
    class EasyDict(dict):  # a foreign class, known to the writer only
        pass

    class StandIn(dict):
        pass

    EasyDict.__module__, EasyDict.__qualname__ = "easydict", "EasyDict"
    monkeypatch.setitem(sys.modules, "easydict", SimpleNamespace(EasyDict=EasyDict))
    value = EasyDict(names=["a"])
    value.names = ["a"]
    data = pickle.dumps(value)
    with pytest.raises(HapError, match=r"easydict\.EasyDict"):
        safe_pickle.load(data)
    assert equal(safe_pickle.load(data, {("easydict", "EasyDict"): StandIn}), StandIn(names=["a"]))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_many_strings_of_numpy_are_no_nested_tuples(protocol):
    names = [np.str_(f"{i:06d}.jpg") for i in range(12_000)]  # each with a tuple of arguments
    assert safe_pickle.load(pickle.dumps(names, protocol)) == names


@pytest.mark.parametrize(
    "wrapped",
    [
        b"\x85q\x00",  # (inner,)
        b"q\x000cnumpy\ndtype\nU\x02f4h\x00\x86q\x00R0h\x00",  # (inner), used as an argument, and fetched again
        b"q\x000(h\x00Ntq\x000h\x00",  # (inner, None)
    ],
)
def test_tuples_within_each_other_are_refused(wrapped):
    with pytest.raises(HapError, match="10,000 tuples within each other"):
        safe_pickle.load(b"\x80\x02})" + wrapped * 11_000 + b"Ns.")
    value = safe_pickle.load(b"\x80\x02})" + wrapped * 300 + b"Ns.")
    assert len(value) == 1


def test_damage_is_an_error_that_names_the_file(tmp_path):
    file = tmp_path / "list.pkl"
    whole = pickle.dumps(DATA)
    for data in (b"", b"not a pickle", *(whole[:n] for n in range(0, len(whole) - 1, 7))):
        file.write_bytes(data)
        with pytest.raises(HapError, match=r"list\.pkl"):
            safe_pickle.load(file)
    file.write_bytes(b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.")  # announces a string of 2^60 bytes
    with pytest.raises(HapError, match=r"list\.pkl"):
        safe_pickle.load(file)
    with pytest.raises(FileNotFoundError):
        safe_pickle.load(tmp_path / "absent.pkl")


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def test_npy_files():
    pose = np.empty((1, 1), object)
    pose[0, 0] = {"keypoints": np.ones((17, 3), np.float32)}
    assert equal(safe_pickle.load_npy(npy(pose))[0][0], pose[0][0])
    plain = np.arange(6.0).reshape(2, 3).T
    assert equal(safe_pickle.load_npy(npy(plain)), plain)
    for data in (b"", b"\x93NUMPY", b"not a numpy file", npy(pose)[:-9], npy(plain)[:-9], npy(pose)[:100]):
        with pytest.raises(HapError, match=r"damaged|not a readable"):
            safe_pickle.load_npy(data)
    with pytest.raises(HapError, match="header"):
        safe_pickle.load_npy(npy(pose).replace(b"(1, 1)", b"(2, 1)"))
    with pytest.raises(HapError, match="not a readable"):
        safe_pickle.load_npy(npy(plain).replace(b"(3, 2)", b"(3000000000000, 2)"))
