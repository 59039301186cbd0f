"""The reader alone: random reads, the loader by its number of workers, the masks, the way to the GPU."""

import copy
import os
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hap.benchmarks.timing import median_seconds, timed
from hap.data.base import DataModule, Record
from hap.data.samplers import BatchPlan, Plan
from hap.data.shards import is_packed
from hap.packing import pack

Row = dict[str, Any]


def sources(data: DataModule, shards: Path | None) -> dict[str, DataModule]:
    """The data as it is, and from `shards`, which are made if they are not there."""
    data.setup()
    if is_packed(data.root):
        return {"shards": data}
    if shards is None:
        return {"folders": data}
    pack(data.root, shards)
    packed = copy.copy(data)
    packed.root, packed.splits, packed.synthetic = shards, {}, False
    return {"folders": data, "shards": packed}


def random_reads(sources: dict[str, DataModule], repeats: int) -> list[Row]:
    """Bytes and body points of all training images in random order, one process, nothing decoded. Cold: the
    files' contents were dropped from the page cache before; names and inodes stay there, which favours folders.
    The sources take turns, so that whatever else the machine does meets them alike."""
    states = ("cold", "warm") if hasattr(os, "posix_fadvise") else ("warm",)
    rates: dict[tuple[str, str], list[float]] = {(name, s): [] for name in sources for s in states}
    for _ in range(repeats):
        for name, data in sources.items():
            records = data.records("train")
            for state in states:
                if state == "cold":
                    drop_from_page_cache(data.root)
                rates[name, state].append(len(records) / timed(partial(read_all, records)))
    return [
        {"source": name, "page_cache": state, "images_per_s": statistics.median(values)}
        for (name, state), values in rates.items()
    ]


def read_all(records: Sequence[Record]) -> None:
    for index in np.random.default_rng(0).permutation(len(records)):
        record = records[index]
        record.encoded()
        record.annotations()


def drop_from_page_cache(root: Path) -> None:
    os.sync()  # pages that are not yet written cannot be dropped
    for path in root.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def loader_rates(sources: dict[str, DataModule], images_per_worker: int) -> list[Row]:
    """Images/s of the training loader alone, decoded, augmented and masked, with 0, 1, 2, 4, ... workers up to
    the cores of this process; its workers started, the files in the page cache."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = [0, *(2**i for i in range(5) if 2**i <= cores)]
    return [
        {"source": name, "workers": workers, "images_per_s": loader_rate(data, workers, images_per_worker)}
        for workers in counts
        for name, data in sources.items()
    ]


def loader_rate(data: DataModule, workers: int, images_per_worker: int, batch: int = 64) -> float:
    data = copy.copy(data)
    warm_up = 2 + 2 * workers
    steps = max(1, images_per_worker * max(1, workers) // batch)
    data.num_workers, data.batch_plan = workers, BatchPlan(batch, batch)
    data.plan = one_epoch(warm_up + steps)
    batches = iter(data.train_dataloader())
    for _ in range(warm_up):
        next(batches)
    return steps * batch / timed(lambda: sum(1 for _ in batches))


def one_epoch(steps: int) -> Callable[[Sequence[Record], int, int], Plan]:
    """A plan of any length, drawn with replacement: few images would make short epochs, and between epochs the
    workers run dry."""

    def plan(records: Sequence[Record], total: int, seed: int) -> Plan:
        return lambda epoch: np.random.default_rng((seed, epoch)).integers(len(records), size=(steps, total))

    return plan


def mask_seconds(data: DataModule, repeats: int) -> float:
    """Time to draw the masks of all views of one image."""
    transform: Any = data.transforms["train"]
    dataset = data.dataset("train")
    points = [dataset[0, i]["keypoints"].numpy() for i in range(min(64, len(dataset)))]
    rng = np.random.default_rng(0)

    def draw() -> None:
        for keypoints in points:
            for _ in range(transform.views):
                transform.masking(transform.grid, transform.mask_ratio, keypoints, rng)

    return median_seconds(draw, repeats) / len(points)


def transfer_rates(image: torch.Tensor, repeats: int) -> list[Row]:
    """256 copies of an image (3, H, W) uint8 to the GPU: as bytes from pinned memory, which is what training
    does, and otherwise."""
    pixels = image.expand(256, -1, -1, -1).contiguous()  # (256, 3, H, W)
    forms = {"uint8, pinned": pixels.pin_memory(), "uint8": pixels, "float32": pixels.float()}
    return [
        {
            "form": form,
            "images_per_s": 256 / median_seconds(partial(p.to, "cuda", non_blocking=True), repeats),
        }
        for form, p in forms.items()
    ]
