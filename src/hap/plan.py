"""What a training run will do: images of a step over devices and passes, steps of an epoch, where the schedule ends."""

import logging
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from torch.nn.modules.batchnorm import _BatchNorm

from hap.data.base import DataModule
from hap.data.samplers import BatchPlan
from hap.errors import HapError
from hap.flops import training_flops
from hap.memory import step_memory
from hap.tasks.base import Task

log = logging.getLogger(__name__)

# Settings of the Trainer that would train other steps than the schedule is made for: their neutral values, and what
# says the same here.
_INSTEAD: dict[str, tuple[Any, str]] = {
    "accumulate_grad_batches": (1, "set micro_batch_size: the passes of a step are total_batch_size over it"),
    "overfit_batches": (
        0,
        "for few steps set trainer.limit_train_batches=N, for few images another data.root",
    ),
    "min_epochs": (None, "set epochs"),
    "min_steps": (None, "set epochs"),
    "gradient_clip_val": (None, "set task.recipe.clip_norm"),
    "gradient_clip_algorithm": (None, "task.recipe.clip_norm clips the norm"),
    "max_time": (None, "`timeout 2h hap train ...` saves before it stops, and resume=auto goes on"),
    "fast_dev_run": (False, "debug=fast tries two steps"),
    "reload_dataloaders_every_n_epochs": (0, "each epoch has an order of its own without"),
    "use_distributed_sampler": (False, "the order is shared among any number of devices without"),
}


def check_numbers(cfg: DictConfig) -> None:
    """Raise HapError for sizes that nothing can be trained with, and for what the Trainer would do by itself."""
    errors = [f"{key}={cfg[key]}: at least 1" for key in ("epochs", "total_batch_size") if cfg[key] < 1]
    if cfg.micro_batch_size is not None and cfg.micro_batch_size < 1:
        errors.append(f"micro_batch_size={cfg.micro_batch_size}: at least 1, or null")
    if len(cfg.img_size) != 2 or min(cfg.img_size) < 1:
        errors.append(f"img_size={list(cfg.img_size)}: [height, width], as in img_size=[256,128]")
    for key, (neutral, instead) in _INSTEAD.items():
        if (value := cfg.trainer.get(key)) not in (neutral, None):
            errors.append(f"trainer.{key}={value}: {instead}")
    if not 0 <= cfg.seed < 1 << 32:
        errors.append(f"seed={cfg.seed}: from 0 to {(1 << 32) - 1}")
    if cfg.trainer.max_epochs != cfg.epochs:
        errors.append(f"trainer.max_epochs={cfg.trainer.max_epochs}: set epochs; the schedule follows it")
    if cfg.trainer.max_steps == 0:
        errors.append("trainer.max_steps=0: trains nothing; dry_run=true says what would run")
    precision = str(cfg.trainer.precision)
    if precision.endswith("-true") and precision != "32-true":
        errors.append(
            f"trainer.precision={precision}: also rounds weights and moments; set bf16-mixed or 16-mixed"
        )
    if errors:
        raise HapError("the settings of this run cannot be:\n" + "\n".join(f"  {e}" for e in errors))


def plan_batches(cfg: DictConfig, trainer: L.Trainer, datamodule: DataModule, task: Task) -> None:
    """Work out what each device does in a step, tell everyone who needs it, and print it."""
    if cfg.total_batch_size < trainer.world_size:
        raise HapError(
            f"total_batch_size={cfg.total_batch_size} leaves some of the {trainer.world_size} devices without an "
            "image: raise it, or lower trainer.devices"
        )
    if (
        trainer.world_size > 1
        and trainer.strategy.root_device.type == "cpu"
        and cfg.trainer.get("sync_batchnorm")
        and any(isinstance(m, _BatchNorm) for m in task.modules())
    ):
        raise HapError(
            "batch norms are synchronised between GPUs only: train this model on one process of the CPU "
            "(trainer=cpu), or on GPUs"
        )
    whole_step = BatchPlan.divide(cfg.total_batch_size, None, trainer.world_size)
    sample = datamodule.dataset("train")[0, 0]
    memory = step_memory(task, sample, str(trainer.precision))
    micro = cfg.micro_batch_size
    if micro is None and task.any_micro_batch:
        micro = memory.micro_batch(whole_step.micro, free_memory(trainer))
    plan = BatchPlan.divide(cfg.total_batch_size, micro, trainer.world_size)
    passes = plan.accumulate
    if passes > 1 and getattr(task, "negatives", None) == "total_batch":
        task.micro_batch_size = plan.micro  # type: ignore[assignment]
        plan = whole_step
    datamodule.batch_plan = task.batch_plan = plan
    trainer.accumulate_grad_batches = plan.accumulate
    records = datamodule.records("train")
    epoch_plan = datamodule.plan(records, plan.total, datamodule.seed)
    all_steps = len(epoch_plan(0))
    steps = task.steps_per_epoch = datamodule.steps_per_epoch = _limit(trainer, all_steps, plan.accumulate)
    task.schedule_steps = getattr(epoch_plan, "schedule_steps", steps) if steps == all_steps else steps

    flops = task.flops_per_image = training_flops(task, sample)
    total = steps * cfg.epochs
    run = total if trainer.max_steps < 0 else min(total, trainer.max_steps)
    images = run * plan.total
    peak = task.recipe.peak_lr(plan.total)
    per_pass = plan.total // (plan.world * passes)
    needed = memory.needed(per_pass, whole_step.micro)
    end = f" stops after {run:,}; the schedule is of {total:,}" if run < total else ""
    rows = {
        "experiment": cfg.name,
        "data": f"{datamodule.root}, {len(records):,} training images",
        "model": f"{sum(p.numel() for p in task.model.parameters()):,} parameters",
        "batch": f"{plan.total} = {per_pass} images x {plan.world} device(s) x {passes} pass(es)",
        "steps": f"{steps:,} per epoch x {cfg.epochs} epochs = {total:,} ({images:,} images){end}",
        "peak lr": f"{peak:.3g}",
        "cost": f"{flops / 1e9:.1f} GFLOP per image, {flops * images / 1e15:,.3g} PFLOP in all",
        "memory": f"{needed / 1e9:.3g} GB per device: {memory.per_image / 1e6:.3g} MB for each image of a pass, "
        f"{memory.state / 1e9:.3g} GB of weights, gradients and moments",
        "precision": str(trainer.precision),
    }
    rank_zero_only(log.info)("\n".join(f"{k:>10}  {v}" for k, v in rows.items()))
    _warn(cfg, trainer, task, peak)


def _limit(trainer: L.Trainer, steps: int, passes: int) -> int:
    """Steps of an epoch under `trainer.limit_train_batches`: a share of them, or a number of passes. The plan is cut
    to that length, so that the position in a checkpoint is one within the shortened epoch."""
    limit: Any = trainer.limit_train_batches
    trainer.limit_train_batches = 1.0
    if isinstance(limit, int) and limit % passes:
        raise HapError(
            f"trainer.limit_train_batches={limit} ends within a step of {passes} passes: a multiple of {passes}, or "
            "another micro_batch_size"
        )
    limited = min(steps, limit // passes) if isinstance(limit, int) else int(steps * limit)
    if limited < 1:
        raise HapError(f"trainer.limit_train_batches={limit} leaves none of the {steps} steps of an epoch")
    return limited


def _warn(cfg: DictConfig, trainer: L.Trainer, task: Task, peak: float) -> None:
    """What is allowed, but seldom meant."""
    warmup = task.recipe.warmup(task.steps_per_epoch)
    if warmup >= cfg.epochs:
        rank_zero_only(log.warning)(
            "the warm-up of %g epochs is not over in %d: the learning rate gets to %.3g of the peak %.3g and never "
            "comes down. A tenth is usual: task.recipe.warmup_epochs=%g%s",
            *(warmup, cfg.epochs, peak * cfg.epochs / warmup, peak, cfg.epochs / 10),
            " task.recipe.warmup_steps=null" if "warmup_steps" in cfg.task.recipe else "",
        )
    milestones = getattr(task.recipe, "milestones", ())
    if late := [e for e in milestones if e >= cfg.epochs]:
        rank_zero_only(log.warning)(
            "the learning rate is to fall at epochs %s, after the last of %d: task.recipe.milestones=%s",
            *(late, cfg.epochs, [cfg.epochs * 20 * e // (21 * max(milestones)) for e in milestones]),
        )
    every = trainer.check_val_every_n_epoch
    if every is not None and every > cfg.epochs and trainer.limit_val_batches:
        rank_zero_only(log.warning)(
            "no validation in %d epochs: trainer.check_val_every_n_epoch=%d", cfg.epochs, every
        )


def free_memory(trainer: L.Trainer) -> float | None:
    """Bytes for this process on its GPU; None on a CPU. With several GPUs all that the card has: every rank has to
    come to the same number."""
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return free if trainer.world_size == 1 else total
