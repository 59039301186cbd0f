"""Weights from files: one converter per source, a grid-aware resize of positions, a report of what happened.

Nothing in a file is executed: pickles are read by PyTorch's `weights_only` loader, which knows tensors,
numbers, strings and containers, and there is no way around it.
"""

import argparse
import math
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from hap.errors import HapError

Grid = tuple[int, int]
State = dict[str, Tensor]

POS_EMBEDS = ("pos_embed", "decoder_pos_embed")
# What every task shares and no file may have in another size; decoders and heads may differ.
ENCODER = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")
HAP_GRID = (16, 8)


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did, by name of parameter or buffer."""

    origin: str  # file, source and how the source was found
    matched: tuple[str, ...]  # loaded
    missing: tuple[str, ...]  # of the model, not in the file: left as they were
    unexpected: tuple[str, ...]  # of the file, not in the model or there of another size: not loaded
    resized: tuple[str, ...]  # of the matched: positions of another grid

    def __str__(self) -> str:
        lines = [f"weights of {self.origin}: {len(self.matched)} matched"]
        for kind in ("missing", "unexpected", "resized"):
            names = getattr(self, kind)
            if names:
                lines.append(f"  {len(names)} {kind}: {_some(names)}")
        return "\n".join(lines)


def load_weights(
    model: nn.Module, path: str | Path, source: str = "auto", source_grid: Grid | None = None
) -> LoadReport:
    """Initialises a `ViT` or `MaskedAutoencoder` from a file.

    Args:
        model: has `grid`, the rows and columns of its patches.
        source: whose file it is.
            `hap`: the official pre-training checkpoint;
            `mae`: MAE's, with or without decoder;
            `timm`: a plain state dict, .safetensors or .pth;
            `lightning`: a checkpoint of this project.
            `auto` decides by the kind of container, never by the names of the parameters.
        source_grid: rows and columns of the file's position embeddings. By default what the file records (its
            entry or metadata `grid`, such as "16x8"), else 16 x 8 (HAP's) for 128 patches, else a square.

    Raises:
        HapError: the file is unreadable, contains code, has no parameter of the model's, or has one of the
            encoder's in another shape. (A decoder or head of another size is not loaded, and reported.)
    """
    path = Path(path)
    content = _read(path)
    how = "given"
    if source == "auto":
        source, how = _detect(content, path)
    if source not in SOURCES:
        raise HapError(f"there is no weight source {source!r}: choose auto, {', '.join(SOURCES)}")
    state = SOURCES[source](content)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise HapError(f"{path}: source {source!r} ({how}) has its weights elsewhere: name another source")

    grid = source_grid or _recorded_grid(content, path)
    loadable, unexpected, resized = _fit(state, model, grid, path)
    target = model.state_dict()
    if not loadable:
        raise HapError(
            f"{path}: none of its parameters ({_some(state)}) is one of the model's ({_some(target)}); "
            f"read as source {source!r} ({how})"
        )
    model.load_state_dict(loadable, strict=False)
    return LoadReport(
        origin=f"{path} (source {source}, {how})",
        matched=tuple(loadable),
        missing=tuple(name for name in target if name not in loadable),
        unexpected=tuple(unexpected),
        resized=tuple(resized),
    )


def resize_pos_embed(pos_embed: Tensor, source_grid: Grid, target_grid: Grid) -> Tensor:
    """Position embeddings (1, 1 + rows x cols, D) of one grid -> of another. The class token's is kept, the
    others are resized bicubically without antialiasing, as in the official code (timm's antialiases)."""
    if tuple(source_grid) == tuple(target_grid):
        return pos_embed
    cls, patches = pos_embed[:, :1], pos_embed[:, 1:]
    patches = patches.unflatten(1, source_grid).permute(0, 3, 1, 2)  # (1, D, rows, cols)
    patches = F.interpolate(patches.float(), size=tuple(target_grid), mode="bicubic", align_corners=False)
    patches = patches.flatten(2).transpose(1, 2).to(cls.dtype)  # (1, rows x cols, D)
    return torch.cat([cls, patches], dim=1)


def _fit(state: State, model: nn.Module, grid: Grid | None, path: Path) -> tuple[State, list[str], list[str]]:
    """The tensors that the model takes, with its positions, and the names of those not taken and resized."""
    target = model.state_dict()
    target_grid: Grid = model.grid  # type: ignore[assignment]
    loadable: State = {}
    unexpected, resized = [], []
    for name, value in state.items():
        if name not in target:
            unexpected.append(name)
            continue
        shape = tuple(value.shape)
        if name in POS_EMBEDS:
            source_grid = _pos_embed_grid(name, value, grid, path)
            value = resize_pos_embed(value, source_grid, target_grid)
        if value.shape == target[name].shape:
            loadable[name] = value
            if name in POS_EMBEDS and source_grid != target_grid:
                resized.append(name)
        elif name.startswith(ENCODER):
            raise HapError(
                f"{path}: {name} has shape {shape}, the model's has {tuple(target[name].shape)}: "
                "the file is of a model of another size"
            )
        else:
            unexpected.append(name)
    return loadable, unexpected, resized


def _pos_embed_grid(name: str, pos_embed: Tensor, grid: Grid | None, path: Path) -> Grid:
    """Checks the known grid of a file's positions, or infers it from their number."""
    if pos_embed.ndim != 3:
        raise HapError(f"{path}: {name} is {tuple(pos_embed.shape)} instead of (1, 1 + patches, width)")
    count = pos_embed.shape[1] - 1
    if grid is not None:
        if grid[0] * grid[1] != count:
            raise HapError(f"{path}: {name} has {count} patches, the source grid {grid[0]}x{grid[1]}")
        return grid
    if count == HAP_GRID[0] * HAP_GRID[1]:
        return HAP_GRID
    side = math.isqrt(max(count, 0))
    if side * side != count or not count:
        raise HapError(f"{path}: {name} has {count} patches of an unknown grid: give source_grid")
    return side, side


def _recorded_grid(content: Mapping[str, Any], path: Path) -> Grid | None:
    """The entry `grid` of a file, such as "16x8"."""
    grid = content.get("grid")
    if grid is None:
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", str(grid))
    if not match:
        raise HapError(f"{path}: its entry 'grid' is {grid!r} instead of something like '16x8'")
    return int(match[1]), int(match[2])


def _from_hap(content: Mapping[str, Any]) -> State:
    """Official pre-training file. A model inside a wrapper has names that begin with `mae.`."""
    return {name.removeprefix("mae."): value for name, value in _entry(content, "model").items()}


def _from_mae(content: Mapping[str, Any]) -> State:
    """MAE's files, encoder alone or with decoder; the names are ours."""
    return _entry(content, "model")


def _from_timm(content: Mapping[str, Any]) -> State:
    """A plain state dict, possibly under `state_dict`; the names are ours."""
    state = _entry(content, "state_dict") or content
    return {name: value for name, value in state.items() if name != "grid"}


def _from_lightning(content: Mapping[str, Any]) -> State:
    """Our own checkpoint: the network is the task's attribute `model`."""
    state = _entry(content, "state_dict")
    return {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}


def _entry(content: Mapping[str, Any], key: str) -> State:
    """An entry that should be a state dict; empty if it is not there or is something else."""
    entry = content.get(key)
    return dict(entry) if isinstance(entry, Mapping) else {}


SOURCES: dict[str, Callable[[Mapping[str, Any]], State]] = {
    "hap": _from_hap,
    "mae": _from_mae,
    "timm": _from_timm,
    "lightning": _from_lightning,
}


def _detect(content: Mapping[str, Any], path: Path) -> tuple[str, str]:
    """The source by the container alone, and the reason for the report."""
    if path.suffix == ".safetensors":
        return "timm", "by its suffix"
    if "pytorch-lightning_version" in content:
        return "lightning", "by its entry 'pytorch-lightning_version'"
    if "model" in content and "arch" in content:
        return "hap", "by its entries 'model' and 'arch'"
    if "model" in content:
        return "mae", "by its entry 'model', without 'arch'"
    if "state_dict" in content:
        return "timm", "by its entry 'state_dict'"
    if all(isinstance(value, Tensor) for value in content.values()):
        return "timm", "a plain state dict"
    raise HapError(f"{path}: not a known kind of checkpoint (entries {_some(content)}): name its source")


def _read(path: Path) -> Mapping[str, Any]:
    """The entries of a weight file, on the CPU; for .safetensors, the tensors and its metadata's `grid`."""
    if not path.is_file():
        raise HapError(f"{path}: {'a folder, not a weight file' if path.is_dir() else 'no such weight file'}")
    try:
        if path.suffix == ".safetensors":
            content = _read_safetensors(path)
        else:
            # MAE's full checkpoints hold their command line: a Namespace, inert. PyTorch warns about pickles
            # that are not its own; here they load or are refused.
            with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with path.open("rb") as file:
            pickled = file.read(2).startswith((b"PK", b"\x80"))  # PyTorch's zip, or a bare pickle
        if not pickled:
            raise HapError(f"{path}: not a weight file, or a damaged one") from error
        code = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({code[1]})" if code else " or pickle instructions that weights do not need"
        raise HapError(f"{path}: refused: contains code{what}, not executed") from None
    except PermissionError as error:
        raise HapError(f"{path}: no permission to read it") from error
    except Exception as error:  # a damaged file can fail anywhere inside the loader
        raise HapError(f"{path}: not a weight file, or a damaged one ({type(error).__name__})") from error
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise HapError(f"{path}: holds a {type(content).__name__}, not a dict of named weights")
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        content: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if "grid" in (file.metadata() or {}):
            content["grid"] = file.metadata()["grid"]
    return content


def _some(names: Any) -> str:
    """The first few names, and how many more."""
    names = list(names)
    more = f", and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(map(str, names[:4])) + more
