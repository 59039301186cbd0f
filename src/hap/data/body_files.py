"""Body models from SMPL's files of every age: pickles of Python 2 with chumpy in them, cleaned pickles, .npz.

Nothing in a file is executed: what chumpy and SciPy would build is put together here from the numbers that are there.
"""

import hashlib
import io
import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from hap.body.arrays import GENDERS, NUM_BETAS, PARENTS, SMPL_FACE, Bodies, BodyArrays
from hap.data.files import read_file, user_path
from hap.data.safe_pickle import MAX_FILE, load
from hap.errors import HapError

log = logging.getLogger(__name__)

# How the files are called: of SMPLify and SMPL 1.0 and 1.1, and cleaned of chumpy.
FILES = {
    "neutral": ("basicmodel_neutral_lbs_10_207_0_v", "smpl_neutral"),
    "male": ("basicmodel_m_lbs_10_207_0_v", "smpl_male"),
    "female": ("basicmodel_f_lbs_10_207_0_v", "smpl_female"),
}
SUFFIXES = (".npz", ".pkl")
FIELDS = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table", "f")
WHERE = (
    "SMPL's models are to be had after registration: basicModel_neutral_lbs_10_207_0_v1.0.0.pkl from "
    "https://smplify.is.tue.mpg.de, those of men (m) and women (f) from https://smpl.is.tue.mpg.de, for "
    "non-commercial use, not to be passed on; put them into the folder, or name another by body.folder=FOLDER. "
    "Without them: body=drawn, with drawn people"
)
REGRESSORS = {
    "extra": ("J_regressor_extra.npy", "the top of the head, one of the 30 joints (published with SPIN)"),
    "h36m": (
        "J_regressor_h36m_correct.npy",
        "the joints of the scores and the comparison of fits (published with Pose2Mesh and 3DCrowdNet); there is no "
        "score without it",
    ),
}


@lru_cache(maxsize=4)
def load_bodies(folder: str) -> Bodies:
    """The bodies in a folder, as `.pkl` or `.npz`, and `J_regressor_extra.npy`, `J_regressor_h36m_correct.npy`.

    Raises:
        HapError: there is no neutral body or no `J_regressor_extra.npy`; a file is damaged, is of another model, or
            contains code.
    """
    root = user_path(folder)
    if not root.is_dir():
        raise HapError(f"no folder of body models: {root}. {WHERE}")
    bodies = {gender: _find(root, gender) for gender in GENDERS}
    if (neutral := bodies["neutral"]) is None:
        raise HapError(f"no neutral body model in {root}. {WHERE}")
    arrays = {gender: None if path is None else read_body(path) for gender, path in bodies.items()}
    regressors = {name: _regressor(root / file) for name, (file, _) in REGRESSORS.items()}
    for name, (file, why) in REGRESSORS.items():
        if regressors[name] is None:
            if name == "extra":
                raise HapError(f"no {file} in {root}: it gives {why}")
            log.info("no %s in %s: it gives %s", file, root, why)
    if lacking := [gender for gender in GENDERS if arrays[gender] is None]:
        log.info("no %s body in %s: people of 3DPW cannot be scored", " and no ".join(lacking), root)
    digest = hashlib.sha256(read_file(neutral, MAX_FILE)).hexdigest()[:12]
    try:
        return Bodies(f"{neutral.name}, sha256 {digest}", **arrays, **regressors)  # type: ignore[arg-type]
    except HapError as error:
        raise HapError(f"{root}: {error}") from None


def _find(root: Path, gender: str) -> Path | None:
    found = [
        path
        for start in FILES[gender]
        for suffix in SUFFIXES
        for path in sorted(root.iterdir())
        if path.name.lower().startswith(start) and path.suffix.lower() == suffix
    ]
    return found[0] if found else None


def _regressor(path: Path) -> np.ndarray | None:
    if not path.is_file():
        return None
    try:
        array = np.load(io.BytesIO(read_file(path, MAX_FILE)), allow_pickle=False)
        return np.asarray(array.astype(np.float64, casting="same_kind"))
    except Exception as error:  # a damaged file fails in any way
        raise HapError(f"{path} is no array of numbers: {error}") from None


def read_body(path: Path) -> BodyArrays:
    """One file of SMPL. Of more than ten shape coefficients the first ten are used, which are the same.

    Raises:
        HapError: it contains code, is damaged, or is no body of SMPL's layout.
    """
    try:
        content = _npz(path) if path.suffix.lower() == ".npz" else load(path, _Names())
    except OSError as error:
        raise HapError(f"cannot read {path}: {error}") from None
    if not isinstance(content, Mapping):
        raise HapError(f"{path} is no body model: a dictionary was expected, not {type(content).__name__}")
    if missing := [name for name in FIELDS if name not in content]:
        raise HapError(f"{path} is no body model of SMPL's: it has no {', '.join(missing)}")
    try:
        fields = {name: _value(content[name], name) for name in FIELDS}
        fields["shapedirs"] = _first_ten(fields["shapedirs"], path)
        _check_tree(fields["kintree_table"])
        face = (
            _whole(_value(content["face_vertices"], "face_vertices"))
            if "face_vertices" in content
            else SMPL_FACE
        )
        if np.shape(face) != (len(SMPL_FACE),):
            raise HapError(f"face_vertices are {np.shape(face)} instead of ({len(SMPL_FACE)},)")
        with np.errstate(over="ignore"):  # what is infinite then is refused
            plain: dict[str, Any] = {name: fields[name].astype(np.float32) for name in FIELDS[:5]}
        return BodyArrays(**plain, faces=_whole(fields["f"]), face_vertices=tuple(map(int, face)))
    except HapError as error:
        raise HapError(f"{path} is no body model of SMPL's: {error}") from None


def _npz(path: Path) -> dict[str, Any]:
    """Those fields that are used; others may be objects."""
    try:
        with np.load(io.BytesIO(read_file(path, MAX_FILE)), allow_pickle=False) as file:
            return {name: file[name] for name in (*FIELDS, "face_vertices") if name in file.files}
    except Exception as error:  # a damaged archive fails in any way
        raise HapError(f"{path} is no readable .npz of plain arrays: {error}") from None


def _first_ten(shapedirs: np.ndarray, path: Path) -> np.ndarray:
    columns = shapedirs.shape[-1] if shapedirs.ndim else 0
    if columns < NUM_BETAS:
        raise HapError(f"shapedirs have {columns} columns, {NUM_BETAS} are needed")
    if columns == NUM_BETAS + 1:
        raise HapError(
            f"shapedirs have {columns} columns, the last of which is of age: that is not SMPL's body of adults"
        )
    if columns > NUM_BETAS:
        log.info("%s: the first %d of %d shape coefficients are used", path, NUM_BETAS, columns)
    return shapedirs[..., :NUM_BETAS]


def _check_tree(table: np.ndarray) -> None:
    wanted = np.array(PARENTS)
    parents = np.atleast_2d(table)[:1].ravel()  # the root's is -1, or 2^32 - 1, and is not compared
    if parents.shape != wanted.shape or (parents[1:] != wanted[1:]).any():
        raise HapError(f"its tree of {parents.size} joints is not SMPL's of {len(wanted)}")


def _whole(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "iu":
        raise HapError(f"numbers of vertices are {array.dtype}, not whole")
    return array.astype(np.int64)


class _Node:
    """What a pickle says of an object of chumpy or SciPy: its numbers, and nothing that acts."""

    kind = ""
    state: Mapping[str, Any] = MappingProxyType({})  # of one that is made and told nothing

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


class _Names(dict[tuple[str, str], Any]):
    """Names in a body file that are taken for `_Node`s: all of chumpy's, and SciPy's sparse matrices."""

    def __contains__(self, key: object) -> bool:
        module, name = map(str, key)  # type: ignore[call-overload]
        sparse = module.startswith("scipy.sparse") and name in ("csc_matrix", "csr_matrix")
        return module.startswith("chumpy.") or sparse or key in _REBUILT

    def __getitem__(self, key: tuple[str, str]) -> Any:
        return _REBUILT[key] if key in _REBUILT else type(key[1], (_Node,), {"kind": ".".join(key)})


_OBJECT = "object"  # a word: it is an argument and must not be called


def _reconstructor(kind: Any, base: Any, _: Any) -> _Node:
    if not (isinstance(kind, type) and issubclass(kind, _Node)) or base != _OBJECT:
        raise HapError("it contains code (copyreg._reconstructor of something else)")
    return kind()


def _set(items: Any = ()) -> list[Any]:
    """Names of what is new in a node of chumpy, which nobody reads."""
    return list(items)


_REBUILT: dict[tuple[str, str], Any] = {
    **{(module, "_reconstructor"): _reconstructor for module in ("copy_reg", "copyreg")},
    **{(module, "object"): _OBJECT for module in ("__builtin__", "builtins")},
    **{(module, "set"): _set for module in ("__builtin__", "builtins")},
}


def _value(value: Any, field: str, depth: int = 0) -> np.ndarray:
    """The numbers of a needed field."""
    if isinstance(value, _Node):
        if depth > 4:
            raise HapError(f"{field} is nested too deeply")
        state, kind = value.state, value.kind
        try:
            if kind.endswith(("csc_matrix", "csr_matrix")):
                return _dense(state, kind.endswith("csr_matrix"))
            if kind == "chumpy.ch.Ch":
                return _value(state["x"], field, depth + 1)
            if kind == "chumpy.reordering.Select":
                return (
                    _value(state["a"], field, depth + 1)
                    .ravel()[np.asarray(state["idxs"])]
                    .reshape(state.get("preferred_shape", -1))
                )
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise HapError(f"{field} is a damaged {kind}: {error!r}") from None
        raise HapError(f"{field} is a {kind}, which is not evaluated here: save it as a plain array")
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of different length
        raise HapError(f"{field} is no array: {error}") from None
    if array.dtype.kind not in "fiu":
        raise HapError(f"{field} is of {array.dtype}, not of numbers")
    return array


def _dense(state: Mapping[str, Any], by_rows: bool) -> np.ndarray:
    """A compressed sparse matrix, as an array."""
    rows, columns = map(int, state.get("_shape", state.get("shape")))  # type: ignore[arg-type]
    major, minor = (rows, columns) if by_rows else (columns, rows)
    starts, places = np.asarray(state["indptr"], np.int64), np.asarray(state["indices"])
    counts = np.diff(starts)
    fits = len(starts) == major + 1 and rows * columns <= 1 << 24 and (counts >= 0).all()
    if not fits or starts[0] != 0 or not len(places) == starts[-1] == len(state["data"]):
        raise ValueError("its shape and its content differ")
    if len(places) and not 0 <= places.min() <= places.max() < minor:
        raise ValueError("its indices lie outside its shape")
    line = np.repeat(np.arange(major), counts)
    result = np.zeros((major, minor))
    np.add.at(result, (line, places), np.asarray(state["data"], np.float64))
    return result if by_rows else result.T
