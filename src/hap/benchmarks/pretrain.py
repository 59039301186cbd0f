"""Speed of pre-training: the device's own matrix products, the step on synthetic tensors and what changes it,
the reader, and training with the reader."""

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from hap.benchmarks.profiling import profile
from hap.benchmarks.reading import (
    loader_rates,
    mask_seconds,
    one_epoch,
    random_reads,
    sources,
    transfer_rates,
)
from hap.benchmarks.steps import Row, StepBench, Variant
from hap.benchmarks.timing import matmul_peak, median_seconds
from hap.callbacks import Throughput
from hap.data.base import DataModule
from hap.data.samplers import BatchPlan
from hap.errors import HapError
from hap.flops import training_flops


def run(
    task: Any,
    data: DataModule,
    trainer: Callable[..., L.Trainer],
    shards: str | None = None,
    batch_sizes: Sequence[int] | None = None,
    compiled: Sequence[bool] = (False, True),
    passes: int = 1,
    parts: Sequence[str] = ("options", "reader", "training"),
    repeats: int = 3,
    max_step_seconds: float = 6,
    reader_images: int = 3000,
    train_seconds: float = 20,
) -> Iterator[dict[str, Any]]:
    """Measure on the GPU if there is one, else on the CPU.

    Args:
        task: a `Pretrain`; it is copied for each measurement. Another task has a step, a profile and training too.
        data: its data.
        trainer: makes the Trainer, given what the benchmark sets.
        shards: folder of the data packed, made if it is not there; None leaves the comparison out.
        batch_sizes: images per step. None: 4 on a CPU; 64 to 1024 on a GPU, as far as memory goes.
        compiled: eager, compiled, or both.
        passes: in which each step is divided, with the negatives of all.
        parts: what is measured besides the step: "options", "profile", "reader", "training".
        repeats: of each measurement; the median counts.
        max_step_seconds: torch.compile and what else changes a step are left out where it takes longer.
        reader_images: images read per worker.
        train_seconds: about how long training with the reader takes.

    Yields:
        after each measurement all results so far, single values and lists of rows; docs/performance.md says how
        each is reached.
    """
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    sample = data.dataset("train")[0, 0]
    task.flops_per_image = training_flops(task, sample)
    dtypes = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
    peaks = {precision: matmul_peak(dtype, device, repeats) for precision, dtype in dtypes.items()}
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "gflop_per_image": task.flops_per_image / 1e9,
        "matrix_product": [{"precision": name, "tflops": peak / 1e12} for name, peak in peaks.items()],
    }
    yield results

    bench = StepBench(task, device, sample, peaks, repeats, max_step_seconds)
    sizes = batch_sizes or ([64, 128, 256, 512, 1024] if on_gpu else [4])
    precision = max(peaks, key=lambda name: peaks[name])
    steps = results["step"] = []
    for row in bench.sweep([Variant(n, precision, c, passes=passes) for c in compiled for n in sizes]):
        steps.append(row)
        yield results
    if not steps:
        raise HapError(
            f"a step of {sizes[0]} images does not fit into memory: set benchmark.batch_sizes=[...]"
        )
    best = max(steps, key=lambda row: row["images_per_s"])
    options = results["step_changed"] = []
    if "options" in parts:
        for row in bench.options(best):
            options.append(row)
            yield results
    variant = Variant(best["batch"], best["precision"], best["compiled"])
    if "profile" in parts:
        results["profile"] = profile(bench.step(variant))
        yield results

    reads, loaders = [], []
    if "reader" in parts or "training" in parts:
        readers = sources(data, Path(shards).expanduser() if shards is not None else None)
    if "reader" in parts:
        results["mask_us_per_image"] = 1e6 * mask_seconds(data, repeats)
        results["transfer_to_the_gpu"] = transfer_rates(sample["image"], repeats) if on_gpu else []
        reads = results["random_reads"] = random_reads(readers, repeats)
        yield results
        loaders = results["reader"] = loader_rates(readers, reader_images)
        yield results
    if "training" in parts:
        before = median_seconds(bench.step(variant), repeats)
        training = train(task, list(readers.values())[-1], trainer, best, train_seconds)
        after = median_seconds(bench.step(variant), repeats)
        training["step_alone_images_per_s"] = 2 * variant.batch / (before + after)
        results["training_with_the_reader"] = [training]
        if loaders:
            results["ratios"] = ratios(best, options, reads, loaders, training)
        yield results


def train(task: Any, data: DataModule, make: Callable[..., L.Trainer], best: Row, seconds: float) -> Row:
    """Training by Lightning with the reader, logging included: speed and wait as `perf/` shows them. The first
    half of the steps warms up."""
    steps = max(2, min(200, round(seconds / 2 / (best["ms"] / 1000))))
    task, data = copy.deepcopy(task), copy.copy(data)
    if best["compiled"]:
        task.model.compile(dynamic=False)
    data.plan = one_epoch(2 * steps + 1)
    data.batch_plan = task.batch_plan = BatchPlan(best["batch"], best["batch"])
    trainer = make(callbacks=[Throughput()], logger=False, max_steps=2 * steps + 1, log_every_n_steps=steps)
    trainer.fit(task, data)
    loader: Any = trainer.train_dataloader
    return {
        "batch": best["batch"],
        "precision": str(trainer.precision),
        "compiled": best["compiled"],
        "workers": loader.num_workers,
        "images_per_s": float(trainer.callback_metrics["perf/images_per_s"]),
        "data_wait": float(trainer.callback_metrics["perf/data_wait"]),
    }


def ratios(best: Row, options: list[Row], reads: list[Row], loaders: list[Row], training: Row) -> list[Row]:
    """What the aims in docs/performance.md are about; None where one of the two was not measured."""
    step = {row["option"]: row["speed_ratio"] for row in options}
    read = {(row["source"], row["page_cache"]): row["images_per_s"] for row in reads}
    values = {
        "bf16 step / float32 step": (step.get("bf16 autocast", 1), step.get("float32", 1))
        if step
        else (None, None),
        "shards / folders, cold": (read.get(("shards", "cold")), read.get(("folders", "cold"))),
        "shards / folders, warm": (read.get(("shards", "warm")), read.get(("folders", "warm"))),
        "reader / step": (max(row["images_per_s"] for row in loaders), best["images_per_s"]),
        "training with the reader / step": (
            training["images_per_s"],
            training["step_alone_images_per_s"],
        ),
        "time of all negatives / accumulation": (
            step.get("2 passes, negatives of each"),
            step.get("2 passes, all negatives"),
        ),
    }
    return [{"ratio": name, "value": a / b if a and b else None} for name, (a, b) in values.items()]
