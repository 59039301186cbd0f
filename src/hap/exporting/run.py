"""The body of `hap export`: read, write, open again, compare; the folder is whole or not there."""

import copy
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from hap.config import did_you_mean
from hap.console import print_table
from hap.data.files import user_path
from hap.errors import HapError
from hap.exporting.card import card
from hap.exporting.check import compare
from hap.exporting.formats import FORMATS
from hap.exporting.networks import network_of
from hap.exporting.source import GRAPHS, read_source

log = logging.getLogger(__name__)


def export(cfg: DictConfig) -> dict[str, float]:
    """Export a model as the configuration (of `ExportRoot`) says.

    Returns:
        the largest differences to the model, see `check.compare`.

    Raises:
        HapError: a key or a file is wrong, the format cannot hold the model, or what was written is not the model.
    """
    kind, out = cfg.format, user_path(cfg.out)
    if kind not in FORMATS:
        raise HapError(f"format={kind}{did_you_mean(kind, FORMATS)}")
    if cfg.encoder and kind not in GRAPHS:
        raise HapError(
            f"encoder=true is for {' and '.join(GRAPHS)}: format={kind} has nothing but the encoder"
        )
    if cfg.half and kind != "onnx":
        raise HapError(
            "half=true is for format=onnx; other formats are loaded in float32 and become `model.half()` in PyTorch"
        )
    try:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise HapError(f"{out} is there already: choose another out=FOLDER, or remove it")
    except OSError as error:
        raise _cannot_write(out, error) from error
    source = read_source(cfg)
    network = network_of(source)
    written = network
    if cfg.half:
        written = copy.deepcopy(network)
        written.to_half()
    with _writing(out) as folder:
        run = FORMATS[kind](folder, source, written)
        differences = compare(network, run, cfg.input, cfg.half)
        (folder / "README.md").write_text(
            card(source, network, kind, differences, cfg.half), encoding="utf-8", errors="backslashreplace"
        )
    unit = "largest difference, share of the largest value" if cfg.half else "largest difference"
    print_table(["images", unit], [[name, f"{value:.2e}"] for name, value in differences.items()])
    files = sorted(out.iterdir())
    size = sum(file.stat().st_size for file in files) / 1e6
    log.info("%s: %s (%.1f MB)", out, ", ".join(file.name for file in files), size)
    return differences


@contextmanager
def _writing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name at the end of the block, and is removed where that is not reached."""
    folder = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.replace(out)
    except OSError as error:
        raise _cannot_write(out, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _cannot_write(out: Path, error: OSError) -> HapError:
    return HapError(f"cannot write to {out}: {error.strerror or error}")
