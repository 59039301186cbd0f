"""Weight files as data: .safetensors, PyTorch's zip, and PyTorch's format before it.

Nothing in a file is executed: each name that a pickle may contain stands for a harmless function or class of this
module, any other name is refused. Nothing is believed: a tensor is within its storage, a storage within the file
and the file's checksums hold before memory is taken. What nobody asks for (an optimiser's moments) is not read.
"""

import io
import itertools
import math
import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from torch import Tensor

from hap.errors import HapError, printable

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # how PyTorch's format before zip begins


def plain_file(path: Path) -> str:
    """What to type to get a file that can be read."""
    code = (
        f"import torch; s = torch.load({str(path)!r}, map_location='cpu', weights_only=False); "
        "torch.save(s.get('state_dict', s.get('model', s)), 'plain.pth')"
    )
    return f'only if you trust whoever made it, as this runs what is in it, write a plain one: python -c "{code}"'


class Refused(Exception):
    """The file is readable, and not what it should be. The message is for the user."""


@dataclass(eq=False, slots=True)
class Storage:
    """The values of one or several tensors, in the file."""

    path: Path
    dtype: torch.dtype
    numel: int
    offset: int  # of its first byte in the file; in the format before zip known last


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in the file that was not read yet, checked to lie within its storage."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self) -> Tensor:
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        span = 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        data = bytearray(span * self.dtype.itemsize)
        with self.storage.path.open("rb") as file:
            file.seek(self.storage.offset + self.offset * self.dtype.itemsize)
            if file.readinto(data) != len(data):
                raise HapError(f"{self.storage.path}: damaged: it is shorter than it says")
        return torch.frombuffer(data, dtype=self.dtype).as_strided(self.shape, self.stride)


class Other:
    """Stands for what a file holds beside dense tensors. It keeps nothing of it."""

    def __new__(cls, *args: Any) -> "Other":
        return super().__new__(cls)


class OddTensor(Other):
    """A tensor that is not made of plain numbers in a storage."""

    what: str  # in words


@dataclass(frozen=True)
class WeightFile:
    """
    Attributes:
        kind: `safetensors`, or `pytorch`.
        entries: of a .safetensors file all its tensors; of PyTorch's what was saved, with `StoredTensor`s.
        metadata: texts beside the weights, such as `grid` and `licence`.
    """

    kind: str
    entries: Mapping[str, Any]
    metadata: Mapping[str, str]


def read_weight_file(path: Path) -> WeightFile:
    """
    Raises:
        HapError: there is no such file, it is damaged, not of weights, or names anything but data.
    """
    if not path.is_file():
        raise HapError(f"{path}: {'a folder, not a weight file' if path.is_dir() else 'no such weight file'}")
    try:
        with path.open("rb") as file:
            start = file.read(64)
            if start[8:9] == b"{":  # behind the length of the header
                return _read_safetensors(path)
            file.seek(0)
            if start.startswith(b"PK"):
                content = _read_zip(path, file)
            elif start.startswith(b"\x80"):
                content = _read_before_zip(path, file)
            else:
                raise Refused(f"not a weight file, or a damaged one{_looks_like(start)}")
    except Refused as refusal:
        raise HapError(f"{path}: {refusal}") from None
    except PermissionError as error:
        raise HapError(f"{path}: no permission to read it") from error
    except Exception as error:  # a damaged file can fail anywhere
        raise HapError(f"{path}: not a weight file, or a damaged one ({type(error).__name__})") from error
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        kind = "Tensor" if isinstance(content, StoredTensor) else type(content).__name__
        raise HapError(f"{path}: holds a {kind}, not a dict of named weights")
    texts = {key: value for key, value in content.items() if isinstance(value, str)}
    return WeightFile("pytorch", content, texts)


def _looks_like(start: bytes) -> str:
    if start.startswith(b"version https://git-lfs"):
        return ": a git-lfs pointer, not the file itself: `git lfs pull`, or download it again"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        return ": a web page, not the file itself: download it again"
    return ""


def _read_safetensors(path: Path) -> WeightFile:
    """The library compares the header with the length of the file."""
    with safe_open(path, framework="pt") as file:
        entries = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return WeightFile("safetensors", entries, file.metadata() or {})


def _read_zip(path: Path, file: IO[bytes]) -> Any:
    with zipfile.ZipFile(file) as archive:
        parts = {part.filename: part for part in archive.infolist()}
        pickles = [name for name in parts if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Refused("not a weight file: a zip archive, but not of PyTorch")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in parts:
            raise Refused(
                "a TorchScript program, not a file of weights; only if you trust whoever made it, write a plain one: "
                f"python -c \"import torch; s = torch.jit.load({str(path)!r}, map_location='cpu'); "
                "torch.save(s.state_dict(), 'plain.pth')\""
            )
        claimed = sum(part.file_size for part in archive.infolist())
        stored = all(part.compress_type == zipfile.ZIP_STORED for part in parts.values())
        if not stored or claimed > path.stat().st_size:
            raise Refused(
                f"refused: compressed or damaged: its parts claim {claimed:,} bytes, the file has "
                f"{path.stat().st_size:,}; {plain_file(path)}"
            )
        if (damaged := archive.testzip()) is not None:
            raise Refused(
                f"damaged: the checksum of {damaged!r} in it does not hold; copy or download it again"
            )
        if f"{folder}byteorder" in parts and archive.read(f"{folder}byteorder") != b"little":
            raise Refused("written on a big-endian machine: load and save it there as .safetensors")

        def find(dtype: torch.dtype, key: str, numel: int) -> Storage:
            part = parts[f"{folder}data/{key}"]
            if numel * dtype.itemsize > part.file_size:
                raise Refused(f"damaged: {part.filename!r} in it claims {numel:,} values, and has fewer")
            file.seek(part.header_offset + 26)  # of the part's own header: length of name and extra field
            lengths = file.read(4)
            skip = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            return Storage(path, dtype, numel, part.header_offset + 30 + skip)

        return _load(path, io.BytesIO(archive.read(pickles[0])), find)


def _read_before_zip(path: Path, file: IO[bytes]) -> Any:
    """Magic number, protocol and machine; the content; the keys of the storages; the storages."""
    storages: dict[str, Storage] = {}
    size = path.stat().st_size

    def find(dtype: torch.dtype, key: str, numel: int) -> Storage:
        if numel * dtype.itemsize > size:
            raise Refused(f"damaged: storage {key} claims {numel:,} values, the file has {size:,} bytes")
        return storages.setdefault(key, Storage(path, dtype, numel, -1))

    for expected in (_MAGIC, _PROTOCOL):
        if _load(path, file, find) != expected:
            raise Refused("not a weight file, or a damaged one: a pickle, but not of PyTorch")
    _load(path, file, find)  # the machine
    content = _load(path, file, find)
    for key in _load(path, file, find):
        storage = storages[key]
        numel = int.from_bytes(file.read(8), "little")
        storage.offset = file.tell()
        end = file.seek(storage.numel * storage.dtype.itemsize, 1)
        if numel != storage.numel or end > size:
            raise Refused("not a weight file, or a damaged one: it is shorter than it says")
    if any(storage.offset < 0 for storage in storages.values()):
        raise Refused("not a weight file, or a damaged one: it lacks values that it names")
    return content


Find = Callable[[torch.dtype, str, int], Storage]


def _load(path: Path, file: IO[bytes], find: Find) -> Any:
    try:
        return _Unpickler(file, find).load()
    except pickle.UnpicklingError as error:
        raise Refused(f"refused: contains code ({error}), not executed; {plain_file(path)}") from None


class _Unpickler(pickle._Unpickler):
    """The one that is written in Python: the one in C takes as much memory for its memo as a file says."""

    def __init__(self, file: IO[bytes], find: Find):
        super().__init__(file, encoding="latin1")
        self._find = find

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        known = _KNOWN.get(f"{module}.{name}")
        if known is None and module in ("torch", "torch.cuda", "torch.storage"):
            known = _STORAGES.get(name) or (name if name in _DTYPES else None)
        if known is None:
            raise pickle.UnpicklingError(printable(f"{module}.{name}"))
        return known

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _device, numel, *view = pid
        if kind != "storage" or not isinstance(key, str) or not _are_sizes([numel]):
            raise Refused("not a weight file, or a damaged one: it names no storage where one is due")
        if not isinstance(dtype, torch.dtype):
            return dtype  # an `Other`: of quantised numbers
        storage = self._find(dtype, key, numel)
        if view and view[0] is not None:  # of another storage, only in the format before zip
            raise Refused(f"refused: storages that share memory; {plain_file(storage.path)}")
        return storage

    def load_build(self) -> None:
        """What a file would set on an object is dropped: nothing of ours can be changed by it."""
        self.stack.pop()  # type: ignore[attr-defined]
        if not isinstance(self.stack[-1], dict | Other):  # type: ignore[attr-defined]
            raise pickle.UnpicklingError("instructions that weights do not need")

    dispatch = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}  # type: ignore[dict-item]  # noqa: RUF012


def _are_sizes(values: Any) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _tensor(storage: Any, offset: int, shape: Any, stride: Any, *rest: Any) -> Any:
    """`torch._utils._rebuild_tensor` and `_v2`."""
    return _view(storage, getattr(storage, "dtype", None), offset, shape, stride)


def _tensor_v3(
    storage: Any, offset: int, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> Any:
    """The same with the number's type apart: the storage is of bytes."""
    return _view(storage, _DTYPES[dtype], offset, shape, stride)


def _view(storage: Any, dtype: Any, offset: Any, shape: Any, stride: Any) -> Any:
    if isinstance(storage, Other):
        return storage
    if not isinstance(storage, Storage) or not _are_sizes([offset, *shape, *stride]) or len(shape) > 8:
        raise Refused("not a weight file, or a damaged one: a tensor without place or size")
    numel = math.prod(shape)
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if (last + 1) * dtype.itemsize > storage.numel * storage.dtype.itemsize and numel:
        raise Refused(
            f"refused: a tensor of shape {shape} lies outside the {storage.numel:,} values it is of"
        )
    if numel > max(storage.numel, 1):
        raise Refused(
            f"refused: a tensor of shape {shape} is {storage.numel:,} values, repeated; save it contiguous"
        )
    return StoredTensor(storage, dtype, offset, tuple(shape), tuple(stride))


def _only(*kinds: type) -> Callable[..., Any]:
    """Passes on one value that exists already, and copies nothing: a file could ask for a copy very often."""

    def check(value: Any = None, *rest: Any) -> Any:
        if not isinstance(value, kinds):
            raise pickle.UnpicklingError("instructions that weights do not need")
        return value

    return check


def _from_type(rebuild: Callable[..., Any], cls: Any, args: tuple, state: Any) -> Any:
    """`torch._tensor._rebuild_from_type_v2`: a tensor with attributes of its own, which are dropped."""
    return rebuild(*args)


def _empty_dict(*args: Any) -> dict:
    if args and isinstance(args[0], Iterable):
        raise pickle.UnpicklingError("instructions that weights do not need")
    return {}


def _odd(what: str) -> type[OddTensor]:
    return type("OddTensor", (OddTensor,), {"what": what})


_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_QUANTISED = _odd("quantised")
_STORAGES: dict[str, Any] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
} | {f"{name}Storage": _QUANTISED() for name in ("QInt8", "QInt32", "QUInt8", "QUInt4x2", "QUInt2x4")}


def _names(modules: str, names: str, meaning: Any) -> dict[str, Any]:
    return {f"{m}.{n}": meaning for m, n in itertools.product(modules.split(), names.split())}


_KNOWN: dict[str, Any] = (
    _names("torch._utils", "_rebuild_tensor _rebuild_tensor_v2", _tensor)
    | _names("torch._utils", "_rebuild_tensor_v3", _tensor_v3)
    | _names(
        "torch._utils", "_rebuild_parameter _rebuild_parameter_with_state", _only(StoredTensor, OddTensor)
    )
    | _names("torch._tensor", "_rebuild_from_type_v2", _from_type)
    | _names("torch._utils", "_rebuild_sparse_tensor", _odd("sparse"))
    | _names("torch._utils", "_rebuild_meta_tensor_no_storage", _odd("without values (device meta)"))
    | _names("torch._utils", "_rebuild_qtensor", _QUANTISED)
    | _names("torch._utils", "_rebuild_nested_tensor", _odd("nested"))
    | _names("torch", "Size", _only(tuple))
    | _names("torch", "Tensor nn.parameter.Parameter device serialization._get_layout", Other)
    | _names(
        "torch", "per_tensor_affine per_tensor_symmetric per_channel_affine per_channel_symmetric", Other
    )
    | _names("torch", "per_channel_affine_float_qparams", Other)
    | _names("torch.torch_version", "TorchVersion", Other)
    | _names("collections", "OrderedDict defaultdict", _empty_dict)
    | _names("argparse", "Namespace", Other)
    | _names("collections", "Counter", Other)
    | _names("_codecs", "encode", Other)
    | _names("numpy", "dtype ndarray", Other)
    | _names("numpy.core numpy._core", "multiarray.scalar multiarray._reconstruct numeric._frombuffer", Other)
    | _names("pathlib pathlib._local", "PosixPath PurePosixPath WindowsPath PureWindowsPath", Other)
    | _names("builtins", "bool bytearray bytes complex dict float frozenset int list", Other)
    | _names("builtins", "range set slice str tuple", Other)
)
