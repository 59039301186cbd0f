"""Weight files that are damaged, lie about their sizes, or are something else: one message, nothing allocated."""

import contextlib
import io
import os
import pickle
import struct
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import as_another_user
from safetensors.torch import save_file
from test_checkpoint import assert_loaded, encoder, save

from hap.errors import HapError
from hap.models.checkpoint import load_weights
from hap.models.weight_file import read_weight_file


def rezipped(source: Path, target: Path, compression: int = zipfile.ZIP_STORED, **parts: bytes) -> Path:
    """The same archive written anew, parts of it replaced."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for part in old.infolist():
            name = part.filename.partition("/")[2]
            new.writestr(part.filename, parts.get(name, old.read(part)), compression)
    return target


def refused(path: Path, message: str, model: torch.nn.Module | None = None, limit: int = 20_000_000) -> None:
    """With this message, before memory is taken."""
    model = model or encoder()
    tracemalloc.start()
    try:
        with pytest.raises(HapError, match=message) as error:
            load_weights(model, path)
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()
    assert str(error.value).startswith(str(path))


# --- damage ----------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path):
    path = save(tmp_path / "whole.pth", {"model": encoder().state_dict()})
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        parts = [part for part in archive.infolist() if part.file_size]
    flipped = tmp_path / "flipped.pth"
    for part in (parts[0], parts[1], parts[len(parts) // 2], max(parts, key=lambda part: part.file_size)):
        data = bytearray(whole)
        lengths = struct.unpack("<HH", data[part.header_offset + 26 : part.header_offset + 30])
        data[part.header_offset + 30 + sum(lengths) + part.file_size // 2] ^= 0x40
        flipped.write_bytes(data)
        refused(flipped, f"flipped.pth: damaged: the checksum of '{part.filename}' in it does not hold")


def test_values_that_are_not_finite_are_refused(tmp_path):
    state = encoder().state_dict()
    state["blocks.1.mlp.fc1.weight"][3, 4] = float("nan")
    refused(save(tmp_path / "nan.pth", state), r"blocks\.1\.mlp\.fc1\.weight is not finite everywhere")


@pytest.mark.parametrize("change", [-8, -1, 8])
def test_a_safetensors_file_of_another_length_is_damaged(tmp_path, change):
    path = tmp_path / "file.safetensors"
    save_file(encoder().state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:change] if change < 0 else whole + bytes(change))
    refused(path, "not a weight file, or a damaged one")


def test_a_safetensors_header_that_lies_is_damaged(tmp_path):
    path = tmp_path / "file.safetensors"
    for header in (
        b'{"pos_embed":{"dtype":"F32","shape":[1,99999999],"data_offsets":[0,8]}}',
        b"{}" + b" " * 6,
    ):
        for length in (len(header), 10**12):
            path.write_bytes(struct.pack("<Q", length) + header + bytes(8))
            refused(path, "not a weight file, or a damaged one")


# --- sizes that are not there ----------------------------------------------------------------------------


def test_compressed_parts_are_refused(tmp_path):
    state = encoder().state_dict() | {"blocks.0.zeros": torch.zeros(50_000_000)}
    path = save(tmp_path / "file.pth", state)
    bomb = rezipped(path, tmp_path / "bomb.pth", zipfile.ZIP_DEFLATED)
    path.unlink()
    assert bomb.stat().st_size < 1_000_000
    refused(bomb, r"refused: compressed or damaged: its parts claim 200,\d+,\d+ bytes, the file has")


STORAGE = object()


def stored(values: int, shape: tuple, stride: tuple, offset: int = 0) -> bytes:
    """A pickle of one tensor of a storage of that many values, as PyTorch writes it."""

    class Persistent(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", torch.FloatStorage, "0", "cpu", values) if obj is STORAGE else None

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (STORAGE, offset, shape, stride, False, {})

    file = io.BytesIO()
    Persistent(file, protocol=2).dump({"model": {"pos_embed": Tensor()}})
    return file.getvalue()


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (stored(10**10, (10**10,), (1,)), "claims 10,000,000,000 values, and has fewer"),
        (stored(4, (10**10,), (1,)), "lies outside the 4 values"),
        (stored(4, (10**10,), (0,)), "is 4 values, repeated"),
        (stored(4, (2, 2), (2, 1), offset=1), "lies outside the 4 values"),
        (stored(4, (2,), (-1,)), "a tensor without place or size"),
        (stored(-4, (2,), (1,)), "names no storage"),
        (stored(4, (2,), (2**70,)), "lies outside the 4 values"),
    ],
)
def test_tensors_lie_within_the_file(tmp_path, pickled, message):
    path = save(tmp_path / "file.pth", {"model": {"pos_embed": torch.zeros(4)}})
    refused(rezipped(path, tmp_path / "lies.pth", **{"data.pkl": pickled}), message)


def test_storages_before_zip_lie_within_the_file(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"model": {"pos_embed": torch.zeros(300)}}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    assert whole.count(b"M,\x01") >= 1  # 300 in a pickle
    path.write_bytes(whole.replace(b"M,\x01", b"J\xff\xff\xff\x7f"))
    refused(path, "claims 2,147,483,647 values, the file has")
    path.write_bytes(whole[:-1])
    refused(path, "not a weight file, or a damaged one: it is shorter than it says")


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02r\xff\xff\xff\x7f}q\x00.",  # memo index 2^31
        b"\x80\x02}X\x04\x00\x00\x00textr\xff\xff\xff\x0f}s.",  # 2^28, behind something
        b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
        b"\x80\x02ctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85R.",
        b"\x80\x02c_codecs\nencode\nX\x04\x00\x00\x00textX\x06\x00\x00\x00utf-32\x86R.",
        b"\x80\x02X\xff\xff\xff\x7ftext.",
        pytest.param(b"\x80\x05\x96\xff\xff\xff\xff\x00\x00\x00\x00text.", marks=pytest.mark.slow),
    ],
)
def test_a_pickle_that_asks_for_memory_gets_none(tmp_path, pickled):
    path = save(tmp_path / "file.pth", {"model": {"pos_embed": torch.zeros(4)}})
    refused(rezipped(path, tmp_path / "asks.pth", **{"data.pkl": pickled}), "asks.pth: ", limit=5_000_000_000)
    before = Path("/proc/self/statm").read_text().split()
    with contextlib.suppress(HapError):
        read_weight_file(tmp_path / "asks.pth")
    after = Path("/proc/self/statm").read_text().split()
    assert (int(after[1]) - int(before[1])) * os.sysconf("SC_PAGE_SIZE") < 50_000_000


def test_a_file_cannot_change_what_reads_it(tmp_path):
    """BUILD sets attributes of an object; here of a function that the next tensor is made with."""
    path = save(tmp_path / "file.pth", {"model": {"pos_embed": torch.zeros(4)}})
    for name in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nSize\n", b"cargparse\nNamespace\n"):
        for state in (b"}X\x04\x00\x00\x00evilK\x01s", b"N}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86"):
            pickled = b"\x80\x02" + name + state + b"b."
            refused(rezipped(path, tmp_path / "build.pth", **{"data.pkl": pickled}), "build.pth: refused")
    assert load_weights(encoder(), save(tmp_path / "next.pth", encoder().state_dict())).missing == ()


# --- tensors that are not plain --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("sparse", "blocks.0.attn.qkv.weight is sparse: save it as a dense tensor"),
        ("meta", r"blocks.0.attn.qkv.weight is without values \(device meta\)"),
        ("quantised", "blocks.0.attn.qkv.weight is quantised"),
        ("integer", "blocks.0.attn.qkv.weight is of torch.int8: save it as floating-point"),
    ],
)
def test_tensors_of_another_kind_are_refused(tmp_path, kind, message):
    convert = {
        "sparse": lambda x: x.to_sparse(),
        "meta": lambda x: x.to("meta"),
        "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        "integer": lambda x: x.to(torch.int8),
    }[kind]
    state = encoder().state_dict()
    name = "blocks.0.attn.qkv.weight"
    refused(save(tmp_path / "odd.pth", state | {name: convert(state[name])}), message)
    whole = {n: convert(value) for n, value in state.items()}
    refused(save(tmp_path / "odd.pth", whole), message.replace(name, "cls_token"))


def test_parameters_views_and_other_numbers_are_read(tmp_path):
    source = encoder().state_dict()
    flat = torch.cat([value.flatten() for value in source.values()])
    sizes = [value.numel() for value in source.values()]
    state: dict = {
        name: part.view(value.shape)
        for (name, value), part in zip(source.items(), flat.split(sizes), strict=True)
    }
    state["norm.bias"] = torch.nn.Parameter(source["norm.bias"])
    state["norm.weight"] = torch.nn.Parameter(source["norm.weight"], requires_grad=False)
    state["norm.weight"].note = "an attribute of its own"
    qkv = "blocks.0.attn.qkv.weight"
    state[qkv] = source[qkv].t().contiguous().t()  # column by column
    state["blocks.0.norm1.weight"] = source["blocks.0.norm1.weight"].double()
    state["blocks.0.norm1.bias"] = source["blocks.0.norm1.bias"].half()
    state["unused"] = {
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3),
        "float8": torch.zeros(2).to(torch.float8_e5m2),
    }
    for zipped in (True, False):
        path = tmp_path / "views.pth"
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        model = encoder()
        assert load_weights(model, path).missing == ()
        assert_loaded(model, source, source.keys() - {"blocks.0.norm1.bias"})


# --- something else --------------------------------------------------------------------------------------


def test_other_files_are_recognised(tmp_path):
    lfs = b"version https://git-lfs.example/spec/v1\noid sha256:0\nsize 343249461\n"
    for content, message in (
        (lfs, "a git-lfs pointer, not the file itself"),
        (b"<!DOCTYPE html><html>Quota exceeded</html>", "a web page, not the file itself: download it again"),
        (b"  <html lang='en'>", "a web page"),
        (b'{"architecture": "vit"}', "not a weight file, or a damaged one$"),
        (pickle.dumps({"model": 3}), "a pickle, but not of PyTorch"),
    ):
        path = tmp_path / "file.pth"
        path.write_bytes(content)
        refused(path, f"file.pth: .*{message}")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.pth", b"x")
    refused(path, "a zip archive, but not of PyTorch")


def test_a_torchscript_program_is_refused_with_a_way_out(tmp_path):
    path = save(tmp_path / "file.pth", {"model": {"pos_embed": torch.zeros(4)}})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{archive.namelist()[0].partition('/')[0]}/constants.pkl", b"\x80\x02.")
    refused(path, "a TorchScript program, not a file of weights.*torch.jit.load.*state_dict")


def test_a_file_without_permission_is_named():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = save(Path(folder) / "file.pth", encoder().state_dict())
        path.chmod(0)
        with as_another_user():
            refused(path, "no permission to read it")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "mine.pth", encoder().state_dict())
    assert load_weights(encoder(), "~/mine.pth").missing == ()
    with pytest.raises(HapError, match=r"~/other\.pth: no such weight file"):
        load_weights(encoder(), "~/other.pth")


def test_names_in_a_file_do_nothing_to_a_terminal(tmp_path):
    path = save(tmp_path / "file.pth", {"\x1b[2Jevil\n": torch.zeros(2)})
    with pytest.raises(HapError, match=r"none of its parameters \(\\x1b\[2Jevil\\n\)"):
        load_weights(encoder(), path)
