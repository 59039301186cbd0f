"""The pre-training step (forward, backward, optimiser) on tensors that are on the device already."""

import copy
import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import default_collate

from hap.benchmarks.timing import compare, median_seconds

log = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One way to make a step of `batch` images."""

    batch: int
    precision: str  # Lightning's name
    compiled: bool = False
    fused: bool = True  # AdamW in one kernel
    channels_last: bool = False
    checkpointing: bool = False
    passes: int = 1
    all_negatives: bool = True  # with several passes: negatives of the whole step, else of each pass


class StepBench:
    """Measures variants of a task's step.

    Args:
        task: with `flops_per_image`; each variant is made of a copy.
        sample: of its training data, for the shapes of a batch.
        peaks: FLOP/s of the device's matrix products, for 32-true and bf16-mixed.
        repeats: of each measurement; the median counts.
        max_step_seconds: what changes a slower step is not measured.
    """

    def __init__(
        self,
        task: Any,
        device: torch.device,
        sample: dict[str, Any],
        peaks: dict[str, float],
        repeats: int,
        max_step_seconds: float,
    ):
        self.task, self.device, self.sample, self.peaks = task, device, sample, peaks
        torch._dynamo.config.cache_size_limit = 64  # every variant is another copy of the same module
        self.repeats, self.max_step_seconds = repeats, max_step_seconds
        self.on_gpu = device.type == "cuda"

    def sweep(self, variants: Sequence[Variant]) -> Iterator[Row]:
        """A row for each that fits into memory and that is worth compiling."""
        for variant in variants:
            row = None if variant.compiled and self.too_slow(variant) else self.measure(variant)
            if row is not None:
                yield row

    def options(self, best: Row) -> Iterator[Row]:
        """The best step with one thing changed at a time; empty where memory is too small or a step would be
        too slow: bf16 that a CPU only emulates takes a hundred times as long. No rows if the step itself is."""
        base = Variant(best["batch"], best["precision"], best["compiled"])
        if self.too_slow(base):
            return
        in_float32 = base.precision == "32-true"
        variants = {
            "not compiled" if base.compiled else "torch.compile": replace(base, compiled=not base.compiled),
            "bf16 autocast" if in_float32 else "float32": replace(
                base, precision="bf16-mixed" if in_float32 else "32-true"
            ),
            "bf16 parameters": replace(base, precision="bf16-true"),
            "AdamW not fused": replace(base, fused=False),
            "patch embedding channels-last": replace(base, channels_last=True),
            "gradient checkpointing": replace(base, checkpointing=True),
            "2 passes, negatives of each": replace(base, passes=2, all_negatives=False),
            "2 passes, all negatives": replace(base, passes=2),
        }
        unchanged = self.step(base)
        for name, variant in variants.items():
            yield {"option": name, **self.against(unchanged, variant)}
        torch._dynamo.reset()  # at the end: the base is compiled once

    def against(self, base: Callable[[], None], variant: Variant) -> Row:
        """Speed as a multiple of the base's, measured in turns."""
        row: Row = {"images_per_s": None, "speed_ratio": None, "activations_gb": None}
        if self.too_slow(variant):
            return row
        self.forget()
        try:
            step = self.step(variant)
            seconds, ratio = compare(base, step, self.repeats)
            memory = self.memory_of(step)
        except torch.OutOfMemoryError:
            return row
        log.info("%s: %.0f ms, %.2f times as fast", variant, 1000 * seconds, ratio)
        return {"images_per_s": variant.batch / seconds, "speed_ratio": ratio, "activations_gb": memory}

    def peak(self, precision: str) -> float:
        """FLOP/s of the device's matrix products."""
        return self.peaks["32-true" if precision == "32-true" else "bf16-mixed"]

    def too_slow(self, variant: Variant) -> bool:
        flops = variant.batch * self.task.flops_per_image
        return flops / self.peak(variant.precision) > self.max_step_seconds

    def measure(self, variant: Variant) -> Row | None:
        """None where memory is too small."""
        torch._dynamo.reset()
        self.forget()
        try:
            step = self.step(variant)
            seconds = median_seconds(step, self.repeats)
            memory = self.memory_of(step)
        except torch.OutOfMemoryError:
            return None
        log.info("%s: %.0f ms", variant, 1000 * seconds)
        flops = variant.batch * self.task.flops_per_image / seconds
        return {
            "batch": variant.batch,
            "precision": variant.precision,
            "compiled": variant.compiled,
            "ms": 1000 * seconds,
            "images_per_s": variant.batch / seconds,
            "tflops": flops / 1e12,
            "share_of_matrix_product": flops / self.peak(variant.precision),
            "activations_gb": memory,
        }

    def memory_of(self, step: Callable[[], None]) -> float | None:
        """GB that a step needs at its peak beyond weights and optimiser state; None on a CPU."""
        if not self.on_gpu:
            return None
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - held) / 1e9

    def forget(self) -> None:
        """The memory of earlier variants."""
        gc.collect()  # a compiled model refers to itself
        if self.on_gpu:
            torch.cuda.empty_cache()

    def step(self, variant: Variant) -> Callable[[], None]:
        """A function that makes one optimiser step as training does, without logging."""
        task = copy.deepcopy(self.task).to(self.device).train()
        if variant.precision == "bf16-true":
            task.to(torch.bfloat16)
        if variant.channels_last:
            task.model.patch_embed.to(memory_format=torch.channels_last)
        if variant.compiled:
            task.model.compile(dynamic=False)  # two batch sizes would else share one general kernel
        task.model.set_grad_checkpointing(variant.checkpointing)
        pieces = 1 if variant.all_negatives else variant.passes
        task.micro_batch_size = variant.batch // variant.passes if variant.all_negatives else None
        optimizer, _ = task.recipe.build(task.model, variant.batch, steps_per_epoch=1)
        for group in optimizer.param_groups:
            group["fused"] = variant.fused
        batches = [self.batch(variant.batch // pieces, variant.channels_last) for _ in range(pieces)]
        # Lightning's Trainer has no cache either.
        mixed = variant.precision == "bf16-mixed"
        bf16 = torch.autocast(self.device.type, torch.bfloat16, enabled=mixed, cache_enabled=False)

        def step() -> None:
            for batch in batches:
                with bf16:
                    loss = task.losses(task(batch), batch)["loss"]
                (loss / pieces).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def batch(self, size: int, channels_last: bool) -> dict[str, torch.Tensor]:
        """The sample `size` times, with random pixels (N, 3, H, W) uint8 and, where it has any, scores (N, V, L)."""
        batch = {
            name: value.to(self.device).expand(size, *value.shape[1:]).contiguous()
            for name, value in default_collate([self.sample]).items()
        }
        batch["image"].random_(256)
        if "scores" in batch:
            batch["scores"].uniform_()
        if channels_last:
            batch["image"] = batch["image"].to(memory_format=torch.channels_last)
        return batch
