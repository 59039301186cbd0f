"""From the content of a weight file to one state dict in our names, which are timm's: sources, entries, prefixes."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from hap.errors import HapError, printable
from hap.models.weight_file import OddTensor, StoredTensor, WeightFile

State = dict[str, Any]  # of a parameter's name to a Tensor, a StoredTensor, or something that is neither

# Every plain ViT has both, once; what stands before them is a prefix.
_ANCHOR, _SECOND = "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"
_FOREIGN = {
    r"layers\.\d+\.(blocks\.\d+\.|downsample)": "a Swin Transformer, which has no place in a plain ViT",
    r"encoder\.layers?\.\d+\.(attention|layernorm)": "a ViT in the names of the library transformers: "
    "take the same one of timm, such as weights=timm:vit_base_patch16_224.mae",
    r"resblocks\.\d+\.": "CLIP's encoder in names of its own",
    r"layer1\.\d+\.conv1\.": "a ResNet",
}


def find_state(file: WeightFile, source: str, entry: str | None, prefix: str) -> tuple[State, str]:
    """One state dict of a file, and in words where it was and why.

    Raises:
        HapError: there is none. The message names the keys that would find one.
    """
    if source != "auto" and source not in SOURCES:
        raise HapError(f"there is no weight source {source!r}: choose auto, {', '.join(SOURCES)}")
    if entry is not None:
        if source != "auto":
            raise HapError("weights_entry says where the weights are: leave weights_source=auto")
        state, found = _select(file, entry), f"entry {entry}"
    else:
        how = "given"
        if source == "auto":
            source, how = _detect(file)
        state, found = SOURCES[source](file.entries), f"source {source}, {how}"
    if not any(map(is_tensor, state.values())):
        raise HapError(f"read as {found}, it has no weights where they should be: {_elsewhere(file)}")
    if prefix:
        stripped = _without(prefix, state)
        if not stripped:
            raise HapError(f"read as {found}, no parameter begins with {prefix!r}; there are {some(state)}")
        state, found = stripped, f"{found}, prefix {prefix}"
    return state, found


def is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor | StoredTensor | OddTensor)


def others(file: WeightFile, taken: State) -> dict[str, State]:
    """The encoders of a file beside the one taken, by the keys that take them, such as "weights_entry=teacher
    weights_prefix=backbone."."""
    return {
        keys: state for keys, state in _encoders(file).items() if state[_ANCHOR] is not taken.get(_ANCHOR)
    }


def _encoders(file: WeightFile) -> dict[str, State]:
    found = {}
    for path, state in _state_dicts(file.entries):
        for name in state:
            prefix = name.removesuffix(_ANCHOR)
            if prefix != name and prefix + _SECOND in state:
                keys = [f"weights_entry={path}"] * bool(path) + [f"weights_prefix={prefix}"] * bool(prefix)
                found[" ".join(keys)] = _without(prefix, state)
    return found


def _without(prefix: str, state: Mapping) -> State:
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def foreign(file: WeightFile) -> str:
    """What else the file may be of, as the end of a message; or nothing."""
    names = [name for _, state in _state_dicts(file.entries) for name in state]
    kinds = (kind for pattern, kind in _FOREIGN.items() if any(re.search(pattern, name) for name in names))
    return "".join(f"; it looks like {kind}" for kind in itertools.islice(kinds, 1))


def some(names: Any) -> str:
    """The first few names, and how many more. A file can have written anything into its names."""
    names = [printable(str(name)) for name in names]
    more = f", and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def _state_dicts(
    entries: Mapping, path: str = "", seen: set[int] | None = None
) -> Iterator[tuple[str, Mapping]]:
    """All dicts of named tensors, three levels deep, each once, with their dotted paths."""
    seen = set() if seen is None else seen
    if id(entries) in seen or not all(isinstance(key, str) for key in entries):
        return
    seen.add(id(entries))
    if any(map(is_tensor, entries.values())):
        yield path, entries
    for key, value in entries.items():
        if isinstance(value, Mapping) and path.count(".") < 2:
            yield from _state_dicts(value, f"{path}.{key}" if path else key, seen)


def _select(file: WeightFile, entry: str) -> State:
    node: Any = file.entries
    for key in [entry] if entry in node else entry.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    if not isinstance(node, Mapping):
        raise HapError(f"there is no entry {entry!r} of weights: {_elsewhere(file)}")
    return dict(node)


def _elsewhere(file: WeightFile) -> str:
    keys = list(_encoders(file)) or [
        f"weights_entry={path}" for path, _ in _state_dicts(file.entries) if path
    ]
    if keys:
        return f"set {some([' or '.join(filter(None, keys))])}{foreign(file)}"
    return f"it holds no dict of tensors (entries {some(file.entries)})"


def _from_hap(entries: Mapping[str, Any]) -> State:
    """Official pre-training file. A model inside a wrapper has names that begin with `mae.`."""
    return {name.removeprefix("mae."): value for name, value in _entry(entries, "model").items()}


def _from_mae(entries: Mapping[str, Any]) -> State:
    """MAE's files, encoder alone or with decoder; the names are ours."""
    return _entry(entries, "model")


def _from_timm(entries: Mapping[str, Any]) -> State:
    """A plain state dict, possibly under `state_dict`; the names are ours."""
    return _entry(entries, "state_dict") or dict(entries)


def _from_lightning(entries: Mapping[str, Any]) -> State:
    """Our own checkpoint: the network is the task's attribute `model`."""
    state = _entry(entries, "state_dict")
    return {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}


def _from_attributes(entries: Mapping[str, Any]) -> State:
    """Fine-tuned for attributes by the official code. Its `state_dict_ema` holds no average, but the same again."""
    names = {r"^module\.": "", r"^backbone\.": "", r"^classifier\.logits\.0\.": "head."}
    state = {}
    for name, value in _entry(entries, "state_dicts").items():
        for pattern, ours in names.items():
            name = re.sub(pattern, ours, name)
        state[name] = value
    return state


def _from_vitpose(entries: Mapping[str, Any]) -> State:
    """A pose model of mmpose's kind, ViTPose's and the official code's: heads of further data sets are associates."""
    state = {}
    for name, value in _entry(entries, "state_dict").items():
        name = re.sub(r"^backbone\.", "", name.removeprefix("module."))
        name = re.sub(r"^keypoint_head\.", "heads.0.", name)
        name = re.sub(r"^associate_keypoint_heads\.(\d+)\.", lambda m: f"heads.{int(m[1]) + 1}.", name)
        state[name] = value
    return state


def _from_crowdnet(entries: Mapping[str, Any]) -> State:
    """A snapshot of the official code of 3D pose; the rest of its names is the model's to know."""
    return {
        re.sub(r"^(backbone|vposer)\.", "", name.removeprefix("module.")): value
        for name, value in _entry(entries, "network").items()
    }


def _from_text_reid(entries: Mapping[str, Any]) -> State:
    """Text-to-image ReID of the official code; its projection is a convolution over one pixel."""
    names = {
        r"^module\.": "",
        r"^ImageExtract\.model\.": "",
        r"^TextExtract\.text_embed\.": "text.bert.",
        r"^TextExtract\.lstm\.(\w+)_reverse$": r"lstm.back.\1",
        r"^TextExtract\.lstm\.": "lstm.forth.",
        r"^conv_1X1_2\.block\.0\.": "projection.",
        r"^(W\.)?block\.": "classifier.",
    }
    state = {}
    for name, value in (_entry(entries, "network") | _entry(entries, "W")).items():
        for pattern, ours in names.items():
            name = re.sub(pattern, ours, name)
        if name == "projection.weight" and isinstance(value, Tensor | StoredTensor):
            value = (value.read() if isinstance(value, StoredTensor) else value).flatten(1)
        state[name] = value
    return state


def _entry(entries: Mapping[str, Any], key: str) -> State:
    """An entry that should be a state dict; empty if it is not there or is something else."""
    entry = entries.get(key)
    return dict(entry) if isinstance(entry, Mapping) and all(isinstance(k, str) for k in entry) else {}


SOURCES: dict[str, Callable[[Mapping[str, Any]], State]] = {
    "hap": _from_hap,
    "mae": _from_mae,
    "timm": _from_timm,
    "lightning": _from_lightning,
    "attributes": _from_attributes,
    "vitpose": _from_vitpose,
    "crowdnet": _from_crowdnet,
    "text_reid": _from_text_reid,
}


def _detect(file: WeightFile) -> tuple[str, str]:
    """The source by the container alone, and the reason for the report."""
    entries = file.entries
    if file.kind == "safetensors":
        return "timm", "a .safetensors file"
    if "pytorch-lightning_version" in entries:
        return "lightning", "by its entry 'pytorch-lightning_version'"
    if "model" in entries and "arch" in entries:
        return "hap", "by its entries 'model' and 'arch'"
    if "model" in entries:
        return "mae", "by its entry 'model', without 'arch'"
    if "state_dicts" in entries:
        return "attributes", "by its entry 'state_dicts'"
    if "network" in entries and "W" in entries:
        return "text_reid", "by its entries 'network' and 'W'"
    if "network" in entries and "optimizer" in entries:
        return "crowdnet", "by its entries 'network' and 'optimizer'"
    if "state_dict" in entries and "meta" in entries:
        return "vitpose", "by its entries 'state_dict' and 'meta'"
    if "state_dict" in entries:
        return "timm", "by its entry 'state_dict'"
    if any(map(is_tensor, entries.values())):
        return "timm", "a plain state dict"
    raise HapError(f"not a known kind of checkpoint (entries {some(entries)}): {_elsewhere(file)}")
