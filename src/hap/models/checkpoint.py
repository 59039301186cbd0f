"""Initialises a model from weights of any source: they fit, or are refused; and a report of what happened.

`weight_names` finds the file, `weight_file` reads it as data, `weight_state` picks the state dict. Here it is fitted
into the model.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from hap.config import CONF_DIR
from hap.errors import HapError
from hap.models.weight_file import OddTensor, StoredTensor, read_weight_file
from hap.models.weight_names import check_sha256, locate
from hap.models.weight_state import State, find_state, foreign, is_tensor, others, some

Grid = tuple[int, int]

POS_EMBEDS = ("pos_embed", "decoder_pos_embed")
# What every task shares and no file may have otherwise; decoders and heads may differ.
ENCODER = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")
# Of other encoders. A parameter of the model itself (a token, positions) is the encoder's, too, unless it is one of
# the free.
_OTHER_ENCODERS = ("norm_pre.", "rel_pos_bias.", "rope.", "layers.", "stages.")
_FREE = ("mask_token", "decoder_", "head", "logit_scale", "logit_bias")
HAP_GRID = (16, 8)
# Of released files, by their source; these record none.
OFFICIAL_GRIDS: dict[str, tuple[Grid, ...]] = {"hap": (HAP_GRID,), "vitpose": ((16, 12), (24, 18))}


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did, by name of parameter or buffer."""

    origin: str  # file, source and how the source was found
    licence: str | None  # of the weights, where it is known
    sha256: str  # of the file
    matched: tuple[str, ...]  # loaded
    missing: tuple[str, ...]  # of the model, not in the file: left as they were
    unexpected: tuple[str, ...]  # of the file, not in the model or there of another size: not loaded
    resized: tuple[str, ...]  # of the matched: positions of another grid
    notes: tuple[str, ...]  # what was decided, and the key that decides otherwise

    def __str__(self) -> str:
        lines = [f"weights of {self.origin}: {len(self.matched)} matched"]
        for kind in ("missing", "unexpected", "resized"):
            names = getattr(self, kind)
            if names:
                lines.append(f"  {len(names)} {kind}: {some(names)}")
        licence = (f"licence of these weights: {self.licence}",) if self.licence else ()
        return "\n  ".join(["\n".join(lines), *self.notes, *licence])

    def record(self) -> dict[str, Any]:
        """For weights.json of a run: where the weights are from and how much of them was taken."""
        counted = ("matched", "missing", "unexpected")
        return asdict(self) | {kind: len(getattr(self, kind)) for kind in counted}


def load_weights(
    model: nn.Module,
    weights: str | Path,
    source: str = "auto",
    *,
    entry: str | None = None,
    prefix: str = "",
    grid: str | Sequence[int] | None = None,
    sha256: str | None = None,
    partial: bool = False,
) -> LoadReport:
    """Initialises a `ViT` or `MaskedAutoencoder`. On the command line the arguments are the keys `weights_...`.

    Args:
        model: has `grid`, the rows and columns of its patches.
        weights: a file or a name, see `hap.models.weight_names`.
        source: whose file it is.
            `hap`: the official pre-training checkpoint;
            `mae`: MAE's, with or without decoder;
            `timm`: a plain state dict, .safetensors or .pth;
            `lightning`: a checkpoint of this project;
            `attributes`: one that the official code fine-tuned for attributes;
            `vitpose`: a pose model of ViTPose's or the official code;
            `crowdnet`: a snapshot of 3D pose of the official code;
            `text_reid`: one of text-to-image ReID of the official code.
            `auto` decides by the kind of container, never by the names of the parameters.
        entry: of a file of several state dicts the one to take, such as `teacher`; dots lead into dicts of dicts.
        prefix: what the encoder's names begin with, such as `backbone.`; names without it are left out.
        grid: rows and columns of the file's position embeddings, (24, 8) or "24x8". By default what the file
            records (its entry or metadata `grid`), or released files of its source have; else the model's, where the
            number of patches is the same; else 16 x 8 (HAP's) for 128 patches; else a square.
        sha256: the file's checksum; another file is refused.
        partial: consent to an encoder of another kind: what only the file has is left out, what only the model has
            stays as it was.

    Raises:
        HapError: the file is unreadable, contains code, has no parameter of the model's, or its encoder is of
            another kind or size. (A decoder or head of another size is not loaded, and reported.)
    """
    located = locate(weights, sha256)
    path = located.path
    file = read_weight_file(path)
    digest = check_sha256(path, sha256, str(path))
    try:
        state, found = find_state(file, source, entry, prefix)
        rest = others(file, state)
        state = _with_class_position({name: value for name, value in state.items() if is_tensor(value)})
        adapted: list[str] = []
        if adapt := getattr(model, "adapted", None):  # an encoder of other names than the rest
            state, adapted = adapt(state, partial)
        if misfit := _misfit(state, model, partial):
            fitting = [keys for keys, other in rest.items() if not _misfit(other, model, partial=False)]
            hint = f": set {some([' or '.join(fitting)])}" if fitting else foreign(file)
            raise HapError(f"{misfit}; read as {found}{hint}{_named_size(state)}")
        known = _parse_grid(grid, "weights_grid") or _recorded_grid(file.metadata, state, found)
        loaded, resized, notes = _fit(state, model, known)
    except HapError as error:
        raise HapError(f"{path}: {error}") from error
    model.load_state_dict(loaded, strict=False)

    notes += adapted
    if located.note:
        notes.append(located.note)
    if rest:
        notes.append(f"not taken from the same file: {some(rest)}")
    if partial and (differs := _difference(state, model)):
        notes.append(f"an encoder of another kind, with weights_partial=true: {differs}")
    return LoadReport(
        origin=f"{path if str(weights) == str(path) else f'{weights} = {path}'} ({found})",
        licence=file.metadata.get("licence") or file.metadata.get("license") or located.licence,
        sha256=digest,
        matched=tuple(loaded),
        missing=tuple(name for name in model.state_dict() if name not in loaded),
        unexpected=tuple(name for name in state if name not in loaded),
        resized=tuple(resized),
        notes=tuple(notes),
    )


def resize_pos_embed(
    pos_embed: Tensor, source_grid: Grid, target_grid: Grid, mode: str = "bicubic"
) -> Tensor:
    """Position embeddings (1, 1 + rows x cols, D) of one grid -> of another. The class token's is kept, the
    others are resized without antialiasing, as in the official code (timm's antialiases).

    Args:
        mode: bicubic, or bilinear for text-to-image ReID.
    """
    if tuple(source_grid) == tuple(target_grid):
        return pos_embed
    cls, patches = pos_embed[:, :1], pos_embed[:, 1:]
    patches = patches.unflatten(1, source_grid).permute(0, 3, 1, 2)  # (1, D, rows, cols)
    patches = F.interpolate(patches.float(), size=tuple(target_grid), mode=mode, align_corners=False)
    patches = patches.flatten(2).transpose(1, 2).to(cls.dtype)  # (1, rows x cols, D)
    return torch.cat([cls, patches], dim=1)


def _misfit(state: State, model: nn.Module, partial: bool) -> str:
    """Why a state dict is not of this model's encoder, by its names; or nothing."""
    target = model.state_dict()
    if state.keys().isdisjoint(target):
        return f"none of its parameters ({some(state)}) is one of the model's ({some(target)})"
    differs = "" if partial else _difference(state, model)
    return differs and f"its encoder is of another kind: {differs}; weights_partial=true takes what fits"


def _difference(state: State, model: nn.Module) -> str:
    """What only one of two encoders has, in words; or nothing."""
    target = model.state_dict()
    extra = [name for name in state if name not in target and _of_encoder(name)]
    lacking = [name for name in target if name.startswith(ENCODER) and name not in state]
    said = []
    if (depths := (_depth(state), _depth(target)))[0] != depths[1]:
        said.append(f"it has {depths[0]} blocks, the model {depths[1]}")
    if extra:
        said.append(f"only it has {some(extra)}")
    if lacking:
        said.append(f"only the model has {some(lacking)}")
    if "norm.weight" in lacking and "fc_norm.weight" in state:
        said.append("its fc_norm is of averaged patches, from a fine-tuning, not the final norm")
    return "; ".join(said)


def _of_encoder(name: str) -> bool:
    if name.startswith(_FREE):
        return False
    return name.startswith((*ENCODER, *_OTHER_ENCODERS)) or "." not in name


def _named_size(state: State) -> str:
    """What to type for a model of the size of a file, where that has a name."""
    patches: Any = getattr(state.get("patch_embed.proj.weight"), "shape", ())
    for path in sorted((CONF_DIR / "model").glob("*.yaml")):
        size: Any = OmegaConf.load(path)
        if (size.depth, size.embed_dim, size.patch_size) == (_depth(state), *patches[:1], *patches[-1:]):
            return f" (the file is of model={path.stem})"
    return ""


def _depth(names: Iterable[str]) -> int:
    return max(
        (int(match[1]) + 1 for name in names if (match := re.match(r"blocks\.(\d+)\.", name))), default=0
    )


def _fit(
    state: State, model: nn.Module, known: Grid | None
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """The tensors that the model takes, with its positions; the names of those resized; and what was assumed."""
    target_grid: Grid = model.grid  # type: ignore[assignment]
    loaded: dict[str, Tensor] = {}
    resized, notes = [], []
    for name, wanted in model.state_dict().items():
        if name not in state:
            continue
        value, shape = state[name], tuple(getattr(state[name], "shape", ()))
        if name in POS_EMBEDS:
            value = dense(name, value, wanted)
            grid, assumed = _grid_of(name, shape, known, target_grid)
            value = resize_pos_embed(value, grid, target_grid, getattr(model, "resize_mode", "bicubic"))
            notes += [assumed] if assumed and name == "pos_embed" else []
        if getattr(value, "shape", None) == wanted.shape:
            loaded[name] = dense(name, value, wanted)
            if name in POS_EMBEDS and grid != target_grid:
                resized.append(name)
        elif name.startswith(ENCODER):
            dense(name, value, wanted)
            raise HapError(
                f"{name} has shape {shape}, the model's has {tuple(wanted.shape)}: "
                f"the file is of a model of another size{_named_size(state)}"
            )
    return loaded, resized, notes


def dense(name: str, value: Any, wanted: Tensor) -> Tensor:
    """Reads a parameter. Raises HapError if it is not of plain, finite numbers."""
    if isinstance(value, OddTensor):
        raise HapError(f"{name} is {value.what}: save it as a dense tensor of floating-point numbers")
    tensor = value.read() if isinstance(value, StoredTensor) else value
    if wanted.is_floating_point():
        if not tensor.is_floating_point():
            raise HapError(f"{name} is of {tensor.dtype}: save it as floating-point numbers")
        if not tensor.float().isfinite().all():
            raise HapError(f"{name} is not finite everywhere: a damaged file, or of a training that diverged")
    return tensor


def _with_class_position(state: State) -> State:
    """PASS keeps the position of the class token apart from those of the patches."""
    if "cls_pos" not in state or "pos_embed" not in state:
        return state
    wanted = torch.empty(0)
    apart = [dense(name, state[name], wanted) for name in ("cls_pos", "pos_embed")]
    return {name: value for name, value in state.items() if name != "cls_pos"} | {
        "pos_embed": torch.cat(apart, 1)
    }


def _grid_of(name: str, shape: tuple[int, ...], known: Grid | None, target: Grid) -> tuple[Grid, str]:
    """The grid of a file's positions, checked or inferred from their number; and what was assumed, if anything."""
    if len(shape) != 3 or shape[1] < 2:
        raise HapError(f"{name} is {shape} instead of (1, 1 + patches, width)")
    count = shape[1] - 1
    if known is not None:
        if math.prod(known) != count:
            raise HapError(
                f"{name} has {count} patches, the grid {known[0]}x{known[1]} has {math.prod(known)}{_grids(count)}"
            )
        return known, ""
    side = math.isqrt(count)
    usual = HAP_GRID if count == math.prod(HAP_GRID) else (side, side) if side * side == count else None
    if count == math.prod(target):
        if usual in (None, target):
            return target, ""
        return target, f"{name} is taken as it is, on the model's grid; {_key(usual)} if the file's is that"
    if usual is None:
        raise HapError(f"{name} has {count} patches, of a grid that nothing records{_grids(count)}")
    return usual, f"{name} is taken to be of {usual[0]}x{usual[1]} patches; weights_grid says otherwise"


def _grids(count: int) -> str:
    """What to type for a number of patches: people are about twice as high as wide."""
    grids = [(count // cols, cols) for cols in range(2, math.isqrt(count) + 1) if count % cols == 0]
    grids.sort(key=lambda grid: abs(math.log(grid[0] / grid[1] / 2)))
    return f": rows x columns, such as {' or '.join(map(_key, grids[:3]))}" if grids else ""


def _key(grid: Grid) -> str:
    return f"weights_grid={grid[0]}x{grid[1]}"


def _recorded_grid(metadata: Mapping[str, str], state: State, found: str) -> Grid | None:
    if "grid" in metadata:
        return _parse_grid(metadata["grid"], "its entry 'grid'")
    positions: Any = getattr(state.get("pos_embed"), "shape", ())
    for source, grids in OFFICIAL_GRIDS.items():
        for grid in grids:
            if found.startswith(f"source {source},") and tuple(positions[1:2]) == (1 + math.prod(grid),):
                return grid
    return None


def _parse_grid(grid: str | Sequence[int] | None, what: str) -> Grid | None:
    if grid is None:
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", grid if isinstance(grid, str) else "x".join(map(str, grid)))
    if not match:
        raise HapError(f"{what} is {grid!r} instead of rows x columns, something like '16x8'")
    return int(match[1]), int(match[2])
