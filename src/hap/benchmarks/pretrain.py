"""Speed of pre-training: the device's own matrix products, the training step on synthetic tensors and what its
options bring, the reader, and training with the reader. Every figure is a median of repeated measurements."""

import copy
import logging
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from hap.callbacks import Throughput
from hap.data.base import DataModule, Record
from hap.data.samplers import BatchPlan, Plan
from hap.data.shards import is_packed
from hap.errors import HapError
from hap.flops import training_flops
from hap.packing import pack

log = logging.getLogger(__name__)

Row = dict[str, Any]
DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "bf16-true": torch.bfloat16}


def run(
    task: Any,
    data: DataModule,
    trainer: Callable[..., L.Trainer],
    shards: str | None = None,
    batch_sizes: Sequence[int] | None = None,
    compiled: Sequence[bool] = (False, True),
    repeats: int = 3,
    reader_images: int = 3000,
    train_seconds: float = 15,
) -> dict[str, Any]:
    """Measure on the GPU if there is one, else on the CPU.

    Args:
        task: a `Pretrain`; it is copied, never changed.
        data: its data.
        trainer: makes the Trainer, given what the benchmark sets.
        shards: folder of the data packed, made if it is not there; None leaves the comparison out.
        batch_sizes: images per step. None: 4 on a CPU; 64 to 1024 on a GPU, as far as memory goes.
        compiled: without and with torch.compile.
        repeats: of each measurement.
        reader_images: images read per worker.
        train_seconds: about how long training with the reader takes.

    Returns:
        single values and lists of rows, see docs/performance.md.
    """
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    sample = data.dataset("train")[0, 0]
    task.flops_per_image = training_flops(task, sample)
    peaks = {name: matmul_peak(DTYPES[name], device, repeats) for name in ("32-true", "bf16-mixed")}
    precision = max(peaks, key=lambda name: peaks[name])
    bench = StepBench(task, device, peaks, repeats)
    sizes = batch_sizes or ([64, 128, 256, 512, 1024] if on_gpu else [4])
    steps = [row for mode in compiled for row in bench.sweep(sizes, precision, mode)]
    if not steps:
        raise HapError(
            f"a step of {sizes[0]} images does not fit into memory: set benchmark.batch_sizes=[...]"
        )
    best = max(steps, key=lambda row: row["images_per_s"])
    options = bench.options(best)

    sources = {"shards" if is_packed(data.root) else "folders": data}
    if shards is not None and not is_packed(data.root):
        pack(data.root, Path(shards).expanduser())
        sources["shards"] = elsewhere(data, Path(shards).expanduser())
    reads = random_reads(sources, repeats)
    loaders = [
        {"source": name, "workers": workers, "images_per_s": loader_rate(source, workers, reader_images)}
        for workers in worker_counts()
        for name, source in sources.items()
    ]
    training = train(task, sources.get("shards", data), trainer, best, train_seconds)
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "gflop_per_image": task.flops_per_image / 1e9,
        "mask_us_per_image": 1e6 * mask_seconds(data, repeats),
        "matrix_product": [{"precision": name, "tflops": peak / 1e12} for name, peak in peaks.items()],
        "transfer_to_the_gpu": transfers(sample["image"], repeats) if on_gpu else [],
        "step": steps,
        "options": options,
        "random_reads": reads,
        "reader": loaders,
        "training_with_the_reader": [training],
        "ratios": ratios(best, options, reads, loaders, training),
    }


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Median time of one call, after one to warm up; short calls are timed several at once."""
    timed(function, 1)
    first = timed(function, 1)
    calls = max(1, min(50, round(0.5 / first)))
    samples = [first] if calls == 1 else []
    while len(samples) < repeats:
        samples.append(timed(function, calls))
    return statistics.median(samples)


def timed(function: Callable[[], object], calls: int) -> float:
    """Seconds per call, until the device has finished."""
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize()
    return (time.perf_counter() - start) / calls


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_peak(dtype: torch.dtype, device: torch.device, repeats: int) -> float:
    """FLOP/s of the fastest square matrix product: sizes are doubled from 512 while one takes below 0.1 s."""
    rates, size, seconds = [], 256, 0.0
    while seconds < 0.1 and size < 16384:
        size *= 2
        a, b = torch.randn(2, size, size, device=device, dtype=dtype)
        seconds = median_seconds(lambda a=a, b=b: a @ b, repeats)  # type: ignore[misc]
        rates.append(2 * size**3 / seconds)
    return max(rates)


@dataclass(frozen=True)
class Variant:
    """One way to make a step of `batch` images."""

    batch: int
    precision: str
    compiled: bool = False
    fused: bool | None = None  # AdamW in one kernel; None: as training does it
    channels_last: bool = False
    checkpointing: bool = False
    passes: int = 1
    all_negatives: bool = True  # with several passes: negatives of the whole step, else of each pass


class StepBench:
    """Times forward, backward and optimiser on tensors that are on the device already."""

    def __init__(self, task: Any, device: torch.device, peaks: dict[str, float], repeats: int):
        self.task, self.device, self.peaks, self.repeats = task, device, peaks, repeats

    def sweep(self, sizes: Sequence[int], precision: str, compiled: bool) -> list[Row]:
        """One row for each batch size, until memory is full."""
        rows = []
        for size in sizes:
            row = self.measure(Variant(size, precision, compiled))
            if row is None:
                break
            rows.append(row)
        return rows

    def options(self, best: Row) -> list[Row]:
        """The best step with one thing changed at a time; empty where it does not fit into memory, or where the
        device only emulates the precision and a step would take over half a minute. Compiled only on a GPU: a
        CPU compiles for a minute each time."""
        on_gpu = self.device.type == "cuda"
        base = Variant(best["batch"], best["precision"], best["compiled"] and on_gpu)
        half = {"passes": 2, "all_negatives": False}
        variants = {
            "as it is": base,
            "float32" if base.precision != "32-true" else "bf16 autocast": replace(
                base, precision="32-true" if base.precision != "32-true" else "bf16-mixed"
            ),
            "bf16 parameters": replace(base, precision="bf16-true"),
            "AdamW not fused" if on_gpu else "AdamW fused": replace(base, fused=not on_gpu),
            "patch embedding channels-last": replace(base, channels_last=True),
            "gradient checkpointing": replace(base, checkpointing=True),
            "2 passes, negatives of each": replace(base, **half),
            "2 passes, all negatives": replace(base, passes=2),
        }
        rows = []
        for name, variant in variants.items():
            seconds = variant.batch * self.task.flops_per_image / self.peak(variant.precision)
            row = (self.measure(variant) if seconds < 30 else None) or {}
            speed = row.get("images_per_s")
            rows.append({"option": name, "images_per_s": speed, "memory_gb": row.get("memory_gb")})
            rows[-1]["speed"] = speed and speed / (rows[0]["images_per_s"] or speed)
        return rows

    def peak(self, precision: str) -> float:
        """FLOP/s of the device's matrix products."""
        return self.peaks["32-true" if precision == "32-true" else "bf16-mixed"]

    def measure(self, variant: Variant) -> Row | None:
        """None where memory is too small."""
        torch._dynamo.reset()  # a shape of an earlier variant would make this one's dynamic
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            seconds = median_seconds(self.step(variant), self.repeats)
        except torch.OutOfMemoryError:
            return None
        flops = variant.batch * self.task.flops_per_image / seconds
        memory = torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else None
        return {
            "batch": variant.batch,
            "precision": variant.precision,
            "compiled": variant.compiled,
            "ms": 1000 * seconds,
            "images_per_s": variant.batch / seconds,
            "tflops": flops / 1e12,
            "share_of_matrix_product": flops / self.peak(variant.precision),
            "memory_gb": memory,
        }

    def step(self, variant: Variant) -> Callable[[], None]:
        """A function that makes one optimiser step, as training does, without logging."""
        task = copy.deepcopy(self.task).to(self.device).train()
        if variant.precision == "bf16-true":
            task.to(torch.bfloat16)
        if variant.channels_last:
            task.model.patch_embed.to(memory_format=torch.channels_last)
        if variant.compiled:
            task.model.compile()
        task.model.set_grad_checkpointing(variant.checkpointing)
        pieces = 1 if variant.all_negatives else variant.passes
        task.micro_batch_size = variant.batch // variant.passes if variant.all_negatives else None
        optimizer, _ = task.recipe.build(task.model, variant.batch, steps_per_epoch=1)
        if variant.fused is not None:
            for group in optimizer.param_groups:
                group["fused"] = variant.fused
        batches = [self.batch(variant.batch // pieces, variant.channels_last) for _ in range(pieces)]
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=variant.precision == "bf16-mixed")

        def step() -> None:
            for batch in batches:
                with autocast:
                    loss = task.losses(task(batch), batch)["loss"]
                (loss / pieces).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def batch(self, size: int, channels_last: bool) -> dict[str, torch.Tensor]:
        """Random pixels (N, 3, H, W) uint8 and scores (N, 2, L)."""
        model = self.task.model
        height, width = (model.patch_size * cells for cells in model.grid)
        image = torch.randint(256, (size, 3, height, width), dtype=torch.uint8, device=self.device)
        if channels_last:
            image = image.to(memory_format=torch.channels_last)
        scores = torch.rand(size, 2, model.patch_embed.num_patches, device=self.device)
        return {"image": image, "scores": scores}


def transfers(image: torch.Tensor, repeats: int) -> list[Row]:
    """256 images from memory to the GPU: as bytes from pinned memory, as training does, and as floats."""
    pixels = image.expand(256, -1, -1, -1).contiguous()  # (256, 3, H, W)
    forms = {"uint8, pinned": pixels.pin_memory(), "uint8": pixels, "float32": pixels.float()}
    return [
        {
            "form": form,
            "images_per_s": 256 / median_seconds(lambda p=p: p.to("cuda", non_blocking=True), repeats),
        }  # type: ignore[misc]
        for form, p in forms.items()
    ]


def elsewhere(data: DataModule, root: Path) -> DataModule:
    """The same data module on another folder."""
    other = copy.copy(data)
    other.root, other.splits, other.synthetic = root, {}, False
    return other


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


def random_reads(sources: dict[str, DataModule], repeats: int) -> list[Row]:
    """Bytes and body points of all training images in random order, one process, nothing decoded; cold: file
    contents dropped from the page cache before (names and inodes stay, which favours folders). The sources
    take turns, so that whatever else the machine does meets them alike."""
    states = ("cold", "warm") if hasattr(os, "posix_fadvise") else ("warm",)
    rates: dict[tuple[str, str], list[float]] = {(name, s): [] for name in sources for s in states}
    for _ in range(repeats):
        for name, data in sources.items():
            records = data.records("train")
            for state in states:
                if state == "cold":
                    drop_from_page_cache(data.root)
                rates[name, state].append(len(records) / timed(lambda r=records: read_all(r), 1))  # type: ignore[misc]
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


def worker_counts() -> list[int]:
    """0, 1, 2, 4, ... up to the cores of this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [0, *(2**i for i in range(5) if 2**i <= cores)]


def loader_rate(data: DataModule, workers: int, images: int, batch: int = 64) -> float:
    """Images/s of the training loader alone, its workers started and the files in the page cache."""
    data = copy.copy(data)
    warm_up = 2 + 2 * workers
    steps = max(1, images * max(1, workers) // batch)
    data.num_workers, data.batch_plan = workers, BatchPlan(batch, batch)
    data.plan = drawn_with_replacement(warm_up + steps)
    batches = iter(data.train_dataloader())
    for _ in range(warm_up):
        next(batches)
    return steps * batch / timed(lambda: sum(1 for _ in batches), 1)


def drawn_with_replacement(steps: int) -> Callable[[Sequence[Record], int, int], Plan]:
    """One epoch of any length, whatever the number of images: between epochs the workers run dry."""

    def plan(records: Sequence[Record], total: int, seed: int) -> Plan:
        return lambda epoch: np.random.default_rng((seed, epoch)).integers(len(records), size=(steps, total))

    return plan


def train(task: Any, data: DataModule, make: Callable[..., L.Trainer], best: Row, seconds: float) -> Row:
    """Training by Lightning with the reader, logging included: speed and wait as `perf/` shows them. Half of
    the steps warm up."""
    steps = max(2, min(200, round(seconds / 2 / (best["ms"] / 1000))))
    task, data = copy.deepcopy(task), copy.copy(data)
    if best["compiled"]:
        task.model.compile()
    data.plan = drawn_with_replacement(2 * steps + 1)
    data.batch_plan = task.batch_plan = BatchPlan(best["batch"], best["batch"])
    trainer = make(callbacks=[Throughput()], logger=False, max_steps=2 * steps + 1, log_every_n_steps=steps)
    trainer.fit(task, data)
    return {
        "batch": best["batch"],
        "precision": trainer.precision,
        "compiled": best["compiled"],
        "workers": trainer.train_dataloader.num_workers,
        "images_per_s": float(trainer.callback_metrics["perf/images_per_s"]),
        "data_wait": float(trainer.callback_metrics["perf/data_wait"]),
    }


def ratios(best: Row, options: list[Row], reads: list[Row], loaders: list[Row], training: Row) -> list[Row]:
    """What the aims are about; docs/performance.md has the aims."""
    speed = {row["option"]: row["images_per_s"] for row in options}
    read = {(row["source"], row["page_cache"]): row["images_per_s"] for row in reads}
    base = speed["as it is"]
    bf16, float32 = (base, speed["float32"]) if "float32" in speed else (speed["bf16 autocast"], base)
    all_negatives, accumulated = speed["2 passes, all negatives"], speed["2 passes, negatives of each"]
    values = {
        "bf16 step / float32 step": (bf16, float32),
        "shards / folders, cold": (read.get(("shards", "cold")), read.get(("folders", "cold"))),
        "shards / folders, warm": (read.get(("shards", "warm")), read.get(("folders", "warm"))),
        "reader / step": (max(row["images_per_s"] for row in loaders), best["images_per_s"]),
        "training with the reader / step": (training["images_per_s"], best["images_per_s"]),
        "time of all negatives / accumulation": (accumulated, all_negatives),
    }
    return [{"ratio": name, "value": a / b if a and b else None} for name, (a, b) in values.items()]
