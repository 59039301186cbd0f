"""Which weights are on this machine, and what `weights=` or `ckpt_path=` is to be typed for them."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from hap.checkup.findings import Clock, Finding

SUFFIXES = (".pth", ".pt", ".safetensors", ".ckpt", ".bin")
DRAWN = Path(__file__).parents[1] / "weights" / "hap_drawn.safetensors"
MOST = 8  # of a place that are shown
MIN_BYTES = 1 << 20  # a smaller file is no encoder's


def weights(base: Path, clock: Clock) -> Iterator[Finding]:
    """Those of the package, in this folder, beside the data, in the caches of timm and PyTorch, of runs."""
    if DRAWN.is_file():
        yield Finding("ok", "of the package", "trained on drawn people: weights=drawn")
    else:
        yield Finding("note", "of the package", f"{DRAWN} is missing: weights=drawn does not work")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    torch = Path(os.environ.get("TORCH_HOME") or cache / "torch") / "hub/checkpoints"
    for place in dict.fromkeys(folder.absolute() for folder in (Path(), base, base / "weights", torch)):
        yield from _files(place)
    home = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    models = [
        f for f in _listed(hub) if f.name.startswith("models--timm--vit_") and any(f.glob("snapshots/*/*"))
    ]
    if models:
        names = [f"weights=timm:{folder.name.split('--')[-1]}" for folder in models[:MOST]]
        yield Finding("ok", "cache", f"{hub}: {', '.join(names)}")
    runs = [path for path in Path("runs").glob("*/*/checkpoints/last.ckpt") if clock.left]
    if runs:
        newest = max(runs, key=lambda path: path.stat().st_mtime)
        what = f"{len(runs)} checkpoint{'s' * (len(runs) > 1)}, the newest"
        yield Finding("ok", "runs", f"{what}: {shlex.quote(f'ckpt_path={newest}')}")


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _files(folder: Path) -> Iterator[Finding]:
    """Files with weights right in a folder; those that lead nowhere, may not be read or are too small are named."""
    found = [path for path in _listed(folder) if path.suffix.lower() in SUFFIXES and not path.is_dir()]
    good = [path for path in found if os.access(path, os.R_OK, effective_ids=True)]
    whole = [path for path in good if path.stat().st_size >= MIN_BYTES]
    if whole:
        names = ", ".join(path.name for path in whole[:MOST])
        more = f" and {len(whole) - MOST} more" if len(whole) > MOST else ""
        yield Finding("ok", "files", f"{folder}: {names}{more}", (shlex.quote(f"weights={whole[0]}"),))
    for path in found[:MOST]:
        if path not in good:
            yield Finding("warn", "files", f"{path} is a link to nowhere, or may not be read", ("ls -lL it",))
        elif path not in whole:
            text = f"{path} has {path.stat().st_size:,} bytes: no weights, but perhaps a page or a Git LFS pointer"
            yield Finding("warn", "files", text, ("download it again",))
