"""Files of SMPL's of every age, made by hand, and such as are damaged, of another model, or would do something."""

import os
import pickle
import struct
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from hap.body.arrays import BodyArrays
from hap.body.model import BodyModel
from hap.data import body_files
from hap.data.body_files import FIELDS, load_bodies, read_body
from hap.errors import HapError
from hap.synthetic.smpl import drawn_bodies, write_bodies

GOLDEN = dict(np.load(Path(__file__).parent / "data" / "pose3d_body.npz"))
ARRAYS = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights")


# Files as other programs wrote them -------------------------------------------------------------------------


class Foreign:
    """An object of another package, which need not be there."""

    def __init__(self, kind: str, **state):
        self.kind, self.state = kind, state


class Python2(pickle._Pickler):
    """Writes strings, the bytes of arrays and objects as Python 2 did."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_string(self, value):
        data = value if isinstance(value, bytes) else value.encode("latin1")
        if self.bin:
            self.write(b"T" + struct.pack("<i", len(data)) + data)
        else:
            self.write(b"S'" + b"".join(b"\\x%02x" % byte for byte in data) + b"'\n")
        self.memoize(value)

    def save_foreign(self, value):
        kind = b"c%s\n%s\n" % tuple(part.encode() for part in value.kind.rsplit(".", 1))
        if self.proto >= 2:
            self.write(kind + b")\x81")
        else:
            self.write(b"ccopy_reg\n_reconstructor\n(" + kind + b"c__builtin__\nobject\nNtR")
        self.memoize(value)
        self.save(value.state)
        self.write(b"b")

    dispatch[str] = dispatch[bytes] = save_string
    dispatch[Foreign] = save_foreign


def python_2(content, protocol: int) -> bytes:
    """The pickle of a Python 2 with the NumPy of its time."""

    class Buffer(bytearray):
        write = bytearray.extend

    buffer = Buffer()
    Python2(buffer, protocol).dump(content)
    return bytes(buffer).replace(b"cnumpy._core.", b"cnumpy.core.")


def plain(**changed) -> dict:
    parents = GOLDEN["parents"].copy()
    parents[0] = 2**32 - 1
    content = {name: GOLDEN[name].astype(np.float64) for name in ARRAYS}
    content |= {
        "f": GOLDEN["faces"].astype(np.uint32),
        "kintree_table": np.stack([parents, range(24)]).astype("u4"),
    }
    content |= {"face_vertices": GOLDEN["face_vertices"]}
    return content | changed


def sparse(array: np.ndarray, kind: str, shape_name: str = "_shape"):
    """Compressed by columns or by rows, as SciPy keeps it."""
    by_rows = kind.endswith("csr_matrix")
    lines = array if by_rows else array.T
    kept = [np.flatnonzero(line) for line in lines]
    return Foreign(
        kind,
        data=np.concatenate([line[k] for line, k in zip(lines, kept, strict=True)]),
        indices=np.concatenate(kept).astype(np.int32),
        indptr=np.cumsum([0, *map(len, kept)]).astype(np.int32),
        maxprint=50,
        **{shape_name: array.shape},
    )


def chumpy(kind: str, **state) -> Foreign:
    """A node with what all of them keep of themselves."""
    own = {
        "_dirty_vars": {"x"},
        "_itr": None,
        "_depends_on_deps": {},
        "_make_dense": False,
        "_make_sparse": False,
    }
    return Foreign(f"chumpy.{kind}", **own | state)


def smpl_1_0(regressor: str = "scipy.sparse.csc.csc_matrix", shape_name: str = "_shape") -> dict:
    """The shapes a part of a larger node, the regressor sparse, nodes in what nobody needs."""
    whole = np.concatenate([plain()["shapedirs"], np.full((60, 3, 5), 9.0)], axis=2)
    places = np.arange(whole.size).reshape(whole.shape)[:, :, :10].ravel()
    node = chumpy("ch.Ch", x=whole)
    return plain(
        shapedirs=chumpy("reordering.Select", a=node, idxs=places, preferred_shape=(60, 3, 10)),
        J_regressor=sparse(GOLDEN["J_regressor"].astype(np.float64), regressor, shape_name),
        J=chumpy("ch.MatVecMult", mtx=node, vec=None),
        J_regressor_prior=sparse(np.eye(3), "scipy.sparse.csr.csr_matrix"),
        bs_style="lbs",
        bs_type="lrotmin",
    )


def equal(found: BodyArrays) -> None:
    for name in ARRAYS:
        value = getattr(found, name)
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, GOLDEN[name], err_msg=name)
    np.testing.assert_array_equal(found.faces, GOLDEN["faces"])
    assert found.faces.dtype == np.int64
    assert found.face_vertices == (3, 14, 25, 36, 47)
    assert found.parents == tuple(GOLDEN["parents"].tolist())


def put(folder: Path, content, name: str = "body.pkl") -> Path:
    path = folder / name
    if name.endswith(".npz"):
        np.savez(path, **content)
    else:
        path.write_bytes(content if isinstance(content, bytes) else python_2(content, 2))
    return path


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
@pytest.mark.parametrize("name", ["body.pkl", "body.NPZ.npz"])
def test_plain_arrays(tmp_path, name, protocol):
    content = plain() if name.endswith(".npz") else pickle.dumps(plain(), protocol)
    equal(read_body(put(tmp_path, content, name)))


@pytest.mark.parametrize("protocol", [0, 2])
@pytest.mark.parametrize(
    ("kind", "shape_name"),
    [
        ("scipy.sparse.csc.csc_matrix", "_shape"),
        ("scipy.sparse.csc.csc_matrix", "shape"),
        ("scipy.sparse._csc.csc_matrix", "_shape"),
        ("scipy.sparse.csr.csr_matrix", "_shape"),
    ],
)
def test_chumpy_and_sparse_matrices_of_python_2(tmp_path, protocol, kind, shape_name):
    data = python_2(smpl_1_0(kind, shape_name), protocol)
    assert b"chumpy.reordering" in data
    assert b"cnumpy.core" in data
    before = set(sys.modules)
    equal(read_body(put(tmp_path, data)))
    assert set(sys.modules) == before  # nothing of the file's is imported


def test_a_node_without_a_shape_and_one_made_by_its_class(tmp_path):
    """`Select` leaves `preferred_shape` out where it gives a row; protocol 0 may call a class and tell it nothing."""
    tree = plain()["kintree_table"]
    row = chumpy("reordering.Select", a=tree, idxs=np.arange(24))
    equal(read_body(put(tmp_path, plain(kintree_table=row))))
    for code in (
        b"cchumpy.ch\nCh\n(tR",
        b"cchumpy.ch\nCh\n(t\x81",
        b"(ichumpy.ch\nCh\n",
        b"(cchumpy.ch\nCh\no",
    ):
        data = pickle.dumps(plain(), 0)[:-1] + b"Vweights\n" + code + b"s."
        with pytest.raises(HapError, match=r"weights is a damaged chumpy\.ch\.Ch: KeyError\('x'\)"):
            read_body(put(tmp_path, data))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_another_reader_reads_the_same(tmp_path):
    """smplfitter (MIT), which trusts files, and chumpy's nodes as it knows them."""
    import smplfitter.common as smplfitter

    content = smpl_1_0()
    content.pop("J")
    path = put(tmp_path, content, "basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl")
    np.save(tmp_path / "kid_template.npy", np.zeros((60, 3)))
    ours, theirs = read_body(path), smplfitter.initialize("smpl", "neutral", str(tmp_path))
    mean, moved = ours.rest_joints
    np.testing.assert_allclose(ours.shapedirs, theirs.shapedirs, atol=1e-6)
    np.testing.assert_allclose(mean, theirs.J_template, atol=1e-5)
    np.testing.assert_allclose(moved, theirs.J_shapedirs, atol=1e-5)
    np.testing.assert_array_equal(ours.faces, theirs.faces)
    assert theirs.kintree_parents[1:] == list(ours.parents[1:])


@pytest.mark.parametrize("columns", [10, 16, 300])
def test_the_first_ten_shapes_are_used(tmp_path, caplog, columns):
    shapedirs = np.concatenate([plain()["shapedirs"], np.ones((60, 3, columns - 10))], axis=2)
    with caplog.at_level("INFO", "hap"):
        equal(read_body(put(tmp_path, plain(shapedirs=shapedirs), "smpl.npz")))
    said = "the first 10 of" in caplog.text
    assert said == (columns > 10)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (1, "have 1 columns, 10 are needed"),
        (6, "have 6 columns"),
        (11, "11 columns, the last of which is of age"),
    ],
)
def test_other_shapes_are_named(tmp_path, columns, message):
    with pytest.raises(HapError, match=message):
        read_body(put(tmp_path, plain(shapedirs=np.zeros((60, 3, columns)))))


def test_objects_in_fields_that_nobody_needs(tmp_path):
    """As an .npz has them that was written of a whole pickle."""
    objects = {"J": np.array([{"a": 1}, None], object), "bs_style": "lbs"}
    equal(read_body(put(tmp_path, plain(**objects), "smpl.npz")))


# Files that are none ----------------------------------------------------------------------------------------


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("field", ["weights", "comment"])
def test_code_is_refused_and_never_run(tmp_path, protocol, field):
    target = tmp_path / "made"
    path = put(tmp_path, pickle.dumps(plain(**{field: Code(target)}), protocol))
    with pytest.raises(HapError, match=r"body\.pkl refused: it contains code \(\w+\.mkdir\)"):
        read_body(path)
    assert not target.exists()


@pytest.mark.parametrize(
    "call",
    [
        b"ccopy_reg\n_reconstructor\n(c__builtin__\nobject\nc__builtin__\nobject\nNtR",
        b"ccopy_reg\n_reconstructor\n(cchumpy.ch\nCh\nccollections\nOrderedDict\nNtR",
        b"ccopy_reg\n_reconstructor\n(Vword\nc__builtin__\nobject\nNtR",
        b"ccopy_reg\n_reconstructor\n(tR",
        b"c__builtin__\nobject\n(tR",
        b"c__builtin__\neval\n(V1\ntR",
        b"cchumpy\nutils\n(tR",
        b"cscipy.sparse.linalg\nsvds\n(tR",
        b"ccopy_reg\n_reconstructor\n(N}V__defaults__\n(I1\ntstb",  # sets an attribute of a function
        b"cchumpy.ch\nCh\n}V__init__\nNsb",  # of a class
        b"cchumpy.ch\nCh\x00\n(tR",
        b"c__builtin__\nset\n(I5\ntR",
    ],
)
def test_what_builds_nodes_builds_nothing_else(tmp_path, call):
    with pytest.raises(HapError, match=r"body\.pkl (refused|is a damaged pickle)"):
        read_body(put(tmp_path, pickle.dumps(plain(), 0)[:-1] + b"Vcomment\n" + call + b"s."))
    assert body_files._reconstructor.__defaults__ is None
    assert body_files._Node.__init__ is not None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("v_template", np.zeros((60, 2)), r"v_template is \(60, 2\) instead of \(60, 3\)"),
        ("v_template", np.zeros((0, 3)), r"v_template is \(0, 3\) instead of \(1, 3\)"),
        ("v_template", np.float64(1), r"v_template is \(\) instead of"),
        ("v_template", np.zeros((59, 3)), r"shapedirs is \(60, 3, 10\) instead of \(59, 3, 10\)"),
        ("v_template", np.full((60, 3), np.nan), "v_template is not finite"),
        ("v_template", np.full((60, 3), 1e300), "v_template is not finite"),
        ("v_template", np.zeros((60, 3), complex), "v_template is of complex128, not of numbers"),
        ("v_template", "v_template.npy", "v_template is of <U14, not of numbers"),
        ("shapedirs", np.float64(1), "shapedirs have 0 columns"),
        ("shapedirs", np.zeros((60, 10)), r"shapedirs is \(60, 10\) instead of \(60, 3, 10\)"),
        ("posedirs", np.zeros((60, 3, 486)), r"posedirs is \(60, 3, 486\) instead of \(60, 3, 207\)"),
        ("J_regressor", np.zeros((24, 60)), "row 0 of J_regressor sums to 0, not to 1"),
        ("weights", np.eye(60, 24), "row 24 of weights sums to 0, not to 1"),
        ("weights", np.eye(24)[[*range(24), *[0] * 36]] * 1.001, r"of weights sums to 1\.001, not to 1"),
        ("kintree_table", np.zeros((2, 24), np.int64), "its tree of 24 joints is not SMPL's of 24"),
        ("kintree_table", np.zeros((2, 55), np.uint32), "its tree of 55 joints is not SMPL's"),
        ("kintree_table", np.zeros((0, 24)), "its tree of 0 joints is not SMPL's"),
        ("kintree_table", np.full((2, 24), np.nan), "its tree"),
        ("f", np.full((5, 3), 60), "faces name vertices beyond the 60"),
        ("f", np.full((5, 3), -1), "faces name vertices beyond the 60"),
        ("f", np.full((5, 3), 2**64 - 1, np.uint64), "faces name vertices beyond the 60"),
        ("f", np.zeros((5, 4), int), r"faces is \(5, 4\) instead of \(5, 3\)"),
        ("f", np.zeros((0, 3), int), r"faces is \(0, 3\) instead of \(1, 3\)"),
        ("f", np.int64(1), r"faces is \(\) instead of \(1, 3\)"),
        ("f", np.full((5, 3), 0.5), "numbers of vertices are float64, not whole"),
        ("face_vertices", np.arange(4), r"face_vertices are \(4,\) instead of \(5,\)"),
        ("face_vertices", np.int64(4), r"face_vertices are \(\) instead of \(5,\)"),
        ("face_vertices", np.arange(56, 61), "face_vertices name vertices beyond"),
        ("face_vertices", "nose", "face_vertices is of <U4"),
    ],
)
@pytest.mark.parametrize("name", ["body.pkl", "body.npz"])
def test_wrong_fields_are_named(tmp_path, field, value, message, name):
    with pytest.raises(HapError, match=message) as error:
        read_body(put(tmp_path, plain(**{field: value}), name))
    assert f"{name} is no body model of SMPL's" in str(error.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "weights is of object, not of numbers"),
        ([[1, 2, 3], [1, 2]], "weights is no array"),
        ({"x": 1}, "weights is of object"),
    ],
)
def test_what_is_no_array_is_named(tmp_path, value, message):
    with pytest.raises(HapError, match=message):
        read_body(put(tmp_path, plain(weights=value)))
    np.savez(tmp_path / "body.npz", **plain(weights=np.array([value, 0], object)))
    with pytest.raises(HapError, match=r"body\.npz is no readable \.npz of plain arrays"):
        read_body(tmp_path / "body.npz")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"indptr": np.array([0, 10**12] + [5] * 59)}, "its shape and its content differ"),
        ({"indptr": np.array([0, 10**12] + [5] * 59, np.uint64)}, "its shape and its content differ"),
        ({"indptr": np.array([0, 5])}, "its shape and its content differ"),
        ({"indptr": np.array(5)}, "damaged"),
        ({"indptr": None}, "damaged"),
        ({"indices": np.full(5, 24)}, "its indices lie outside its shape"),
        ({"indices": np.full(5, -1)}, "its indices lie outside its shape"),
        ({"data": np.ones(4)}, "its shape and its content differ"),
        ({"data": np.array(["a"] * 5)}, "damaged"),
        ({"_shape": (24, 10**9)}, "its shape and its content differ"),
        ({"_shape": (10**9, 60)}, "its shape and its content differ"),
        ({"_shape": (-1, 60)}, "damaged"),
        ({"_shape": (24, 60, 1)}, "damaged"),
        ({"_shape": (float("inf"), 60)}, "damaged"),
        ({"_shape": None}, "damaged"),
    ],
)
def test_sparse_matrices_that_lie(tmp_path, state, message):
    """They announce what is not there, and no memory is taken for it."""
    honest = {
        "data": np.ones(5),
        "indices": np.arange(5),
        "indptr": np.array([0, 5] + [5] * 59),
        "_shape": (24, 60),
    }
    matrix = Foreign("scipy.sparse.csc.csc_matrix", **honest | state)
    path = put(tmp_path, plain(J_regressor=matrix))
    tracemalloc.start()
    with pytest.raises(HapError, match=message) as error:
        read_body(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert "J_regressor is a damaged scipy.sparse.csc.csc_matrix" in str(error.value)


@pytest.mark.parametrize(
    ("kind", "state", "message"),
    [
        ("chumpy.ch.Ch", {}, r"damaged chumpy\.ch\.Ch: KeyError"),
        ("chumpy.ch.MatVecMult", {"x": np.ones(3)}, "is a chumpy.ch.MatVecMult, which is not evaluated here"),
        ("chumpy.reordering.Select", {"a": np.ones(3), "idxs": np.array([3])}, "damaged.*IndexError"),
        ("chumpy.reordering.Select", {"a": np.ones(3), "idxs": np.array([0.5])}, "damaged.*IndexError"),
        (
            "chumpy.reordering.Select",
            {"a": np.ones(3), "idxs": np.array([0]), "preferred_shape": (2, 2)},
            "damaged.*ValueError",
        ),
        (
            "chumpy.reordering.Select",
            {"a": np.ones(3), "idxs": np.array([0]), "preferred_shape": "wide"},
            "damaged.*TypeError",
        ),
    ],
)
def test_nodes_that_cannot_be_evaluated(tmp_path, kind, state, message):
    path = put(tmp_path, plain(weights=Foreign(kind, **state)))
    with pytest.raises(HapError, match=f"weights is a.*{message}" if "damaged" in message else message):
        read_body(path)


def test_nodes_in_nodes_end(tmp_path):
    node = chumpy("ch.Ch", x=None)
    node.state["x"] = node
    with pytest.raises(HapError, match="nested too deeply"):
        read_body(put(tmp_path, plain(weights=node)))


def test_fields_that_are_missing_are_named(tmp_path):
    for name in ("body.pkl", "body.npz"):
        content = {k: v for k, v in plain().items() if k not in ("weights", "f")}
        with pytest.raises(HapError, match="no body model of SMPL's: it has no weights, f"):
            read_body(put(tmp_path, content, name))
    with pytest.raises(HapError, match="a dictionary was expected, not list"):
        read_body(put(tmp_path, [1, 2]))


@pytest.mark.parametrize("name", ["body.pkl", "body.npz"])
def test_files_that_are_cut_off_or_hold_something_else(tmp_path, name):
    whole = put(tmp_path, plain(), name).read_bytes()
    cuts = {0, 1, 2, 10, 500, len(whole) // 2, len(whole) - 1}
    for data in [whole[:cut] for cut in sorted(cuts)] + [
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\0" * 999,
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(HapError, match=rf"body\.{name[-3:]}"):
            read_body(tmp_path / name)


def test_every_byte_may_be_wrong(tmp_path):
    """A damaged file is refused or is a body; never anything else."""
    data = bytearray(python_2(smpl_1_0(), 2))
    rng = np.random.default_rng(0)
    skeleton = [i for i in range(len(data)) if i < 200 or i > len(data) - 200]
    for place in [*rng.choice(skeleton, 150), *rng.integers(0, len(data), 50)]:
        changed = data.copy()
        changed[place] = rng.integers(256)
        path = put(tmp_path, bytes(changed))
        try:
            found = len(read_body(path).v_template)
        except HapError:
            continue
        assert found == 60


@pytest.mark.parametrize("name", ["body.pkl", "body.npz"])
def test_what_is_no_file(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(HapError, match=r"cannot read|no readable"):
        read_body(path)
    path.mkdir()
    with pytest.raises(HapError, match=str(path)):
        read_body(path)
    path.rmdir()
    os.mkfifo(path)  # nobody writes into it
    with pytest.raises(HapError, match="not a regular file"):
        read_body(path)


# Folders ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """The drawn bodies in files, and no memory of another folder."""
    load_bodies.cache_clear()
    write_bodies(tmp_path)
    return tmp_path


def rename(folder: Path, start: str, name: str) -> Path:
    (path,) = folder.glob(f"basicModel_{start}_*")
    return path.rename(folder / name)


def test_bodies_of_a_folder(folder):
    bodies = load_bodies(str(folder))
    assert bodies.name.startswith("basicModel_neutral_lbs_10_207_0_v1.0.0.npz, sha256 ")
    for gender in range(3):
        np.testing.assert_array_equal(bodies.of(gender).v_template, drawn_bodies().of(gender).v_template)
    np.testing.assert_allclose(bodies.joints30, drawn_bodies().joints30)
    assert bodies.joints30.shape[0] == 30


@pytest.mark.parametrize(
    "names",
    [
        ("basicmodel_neutral_lbs_10_207_0_v1.1.0.npz", "basicmodel_m_lbs_10_207_0_v1.1.0.npz"),
        ("SMPL_NEUTRAL.npz", "SMPL_MALE.NPZ"),
    ],
)
def test_names_of_every_age(folder, names):
    rename(folder, "neutral", names[0])
    rename(folder, "m", names[1])
    bodies = load_bodies(str(folder))
    assert bodies.name.startswith(names[0])
    np.testing.assert_array_equal(bodies.male.v_template, drawn_bodies().male.v_template)


def test_what_is_missing_is_named(folder, caplog):
    (folder / "J_regressor_h36m_correct.npy").unlink()
    rename(folder, "f", "somewhere_else.npz")
    with caplog.at_level("INFO", "hap"):
        bodies = load_bodies(str(folder))
    assert "no J_regressor_h36m_correct.npy" in caplog.text
    assert "no female body" in caplog.text
    with pytest.raises(HapError, match="has no female body: it is the truth of female people in 3DPW"):
        bodies.of(2)
    load_bodies.cache_clear()
    (folder / "J_regressor_extra.npy").unlink()
    with pytest.raises(HapError, match=r"no J_regressor_extra\.npy in .*: it gives the top of the head"):
        load_bodies(str(folder))
    rename(folder, "neutral", "other.npz")
    with pytest.raises(HapError, match=r"no neutral body model in .* after registration"):
        load_bodies(str(folder))
    with pytest.raises(HapError, match=r"no folder of body models: .*nowhere"):
        load_bodies(str(folder / "nowhere"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("extra", np.zeros((8, 60)), r"J_regressor_extra\.npy is \(8, 60\), not \(9, \d+\)"),
        ("extra", np.array(["a"]), "is no array of numbers"),
        ("extra", np.array([None]), "is no array of numbers"),
        ("extra", np.ones((9, 9), complex), "is no array of numbers"),
        ("h36m_correct", None, r"row of J_regressor_h36m_correct\.npy is off a sum of 1 by 1"),
        ("h36m_correct", b"", "is no array of numbers"),
        ("h36m_correct", b"\x93NUMPY\x01\x00", "is no array of numbers"),
        ("h36m_correct", b"PK\x05\x06" + bytes(18), "is no array of numbers"),  # an empty .npz
    ],
)
def test_wrong_regressors_are_named(folder, file, content, message):
    path = folder / f"J_regressor_{file}.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, np.load(path) * 2 if content is None else content)
    with pytest.raises(HapError, match=message) as error:
        load_bodies(str(folder))
    assert str(folder) in str(error.value)


def test_bodies_of_two_models_do_not_mix(folder):
    put(folder, plain(), "basicModel_m_lbs_10_207_0_v1.0.0.npz")
    with pytest.raises(
        HapError, match=r"the male body has 60 vertices, the neutral one [\d,]+: files of two models"
    ):
        load_bodies(str(folder))


def test_a_link_to_nowhere_is_named(folder):
    path = rename(folder, "neutral", "kept.npz")
    (folder / "SMPL_NEUTRAL.npz").symlink_to(folder / "gone.npz")
    with pytest.raises(HapError, match=r"SMPL_NEUTRAL\.npz"):
        load_bodies(str(folder))
    assert path.exists()


# SMPL's size ------------------------------------------------------------------------------------------------


def test_a_body_of_smpls_size_is_read_and_posed_in_a_moment(tmp_path):
    """6,890 vertices, 300 shapes, float64, written by Python 2: of its 134 MB five copies at most."""
    rng = np.random.default_rng(0)
    weights = rng.random((6890, 24))
    parents = plain()["kintree_table"]
    content = {
        "v_template": rng.normal(size=(6890, 3)),
        "shapedirs": rng.normal(size=(6890, 3, 300)),
        "posedirs": rng.normal(size=(6890, 3, 207)),
        "J_regressor": np.eye(24, 6890),
        "weights": weights / weights.sum(1, keepdims=True),
        "kintree_table": parents,
        "f": rng.integers(6890, size=(13776, 3)).astype(np.uint32),
    }
    path = put(tmp_path, python_2(content, 2))
    tracemalloc.start()
    start = time.perf_counter()
    arrays = read_body(path)
    seconds = time.perf_counter() - start
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 5
    assert peak < 5.5 * path.stat().st_size
    assert held < 0.6 * path.stat().st_size
    assert arrays.face_vertices == (331, 2802, 6262, 3489, 3990)
    assert set(FIELDS) == set(content)
    vertices, joints = BodyModel(arrays)(torch.eye(3).expand(4, 24, 3, 3), torch.zeros(4, 10))
    np.testing.assert_allclose(vertices[0], arrays.v_template, atol=1e-5)
    np.testing.assert_allclose(joints[0], arrays.v_template[:24], atol=1e-5)
