"""The pre-training step (forward, backward, optimiser) on tensors that are on the device already."""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

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
        task: a `Pretrain` with `flops_per_image`; each variant is made of a copy.
        peaks: FLOP/s of the device's matrix products, for 32-true and bf16-mixed.
        repeats: of each measurement; the median counts.
        max_step_seconds: what changes a slower step is not measured.
    """

    def __init__(
        self, task: Any, device: torch.device, peaks: dict[str, float], repeats: int, max_step_seconds: float
    ):
        self.task, self.device, self.peaks = task, device, peaks
        self.repeats, self.max_step_seconds = repeats, max_step_seconds
        self.on_gpu = device.type == "cuda"

    def sweep(self, sizes: Sequence[int], precision: str) -> list[Row]:
        """Eager, then compiled: one row for each batch size, until memory is full."""
        rows: list[Row] = []
        for compiled in (False, True):
            for size in sizes:
                variant = Variant(size, precision, compiled)
                if compiled and self.too_slow(variant):
                    break
                row = self.measure(variant)
                if row is None:
                    break
                rows.append(row)
        return rows

    def options(self, best: Row) -> list[Row]:
        """The best step with one thing changed at a time; empty where memory is too small or a step would be
        too slow: bf16 that a CPU only emulates takes a hundred times as long. No rows if the step itself is."""
        base = Variant(best["batch"], best["precision"], best["compiled"])
        if self.too_slow(base):
            return []
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
        return [{"option": name, **self.against(unchanged, variant)} for name, variant in variants.items()]

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
        """What earlier variants compiled (only so many are kept) and allocated."""
        torch._dynamo.reset()
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
        bf16 = torch.autocast(self.device.type, torch.bfloat16, enabled=variant.precision == "bf16-mixed")

        def step() -> None:
            for batch in batches:
                with bf16:
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
