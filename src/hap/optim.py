"""AdamW with named parameter groups, and the learning rate as a function of the step."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

_ENCODER = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.", "last_norm.")


def parameter_groups(
    model: Any,
    weight_decay: float,
    no_decay: frozenset[str] = frozenset(),
    layer_decay: float | None = None,
    decay_all: bool = False,
    encoder_scale: float = 1.0,
    text_scale: float = 1.0,
) -> list[dict]:
    """Group the trainable parameters by (learning-rate scale, weight decay), in order of first appearance.

    One-dimensional parameters (biases, norms) and those named in `no_decay` are decayed by `decay_all` only. With
    `layer_decay` the scale is layer_decay^(depth + 1 - id), by `model.layer_id(name)`: 0 for the embeddings, i + 1
    for block i, depth + 1 for whatever stands on top (BEiT's rule). The scale of an encoder's parameters is multiplied
    by `encoder_scale`, that of a text encoder's by `text_scale`.

    Returns:
        dicts with `params`, `names`, `lr_scale`, `weight_decay`, as torch.optim takes them.
    """
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = weight_decay if decay_all or not (parameter.ndim <= 1 or name in no_decay) else 0.0
        scale = 1.0 if layer_decay is None else layer_decay ** (len(model.blocks) + 1 - model.layer_id(name))
        scale *= encoder_scale if name.startswith(_ENCODER) else 1
        scale *= text_scale if name.startswith("text.") else 1
        group = groups.setdefault(
            (scale, decay), {"params": [], "names": [], "lr_scale": scale, "weight_decay": decay}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


@dataclass(frozen=True)
class Recipe:
    """AdamW, linear warm-up from 0, half-cosine to 0, set at every optimiser step.

    Args:
        epochs, warmup_epochs: length of the schedule, in epochs.
        base_lr: learning rate per 256 images: the peak is base_lr * total batch / 256.
        lr: the peak itself. Give one of the two.
        weight_decay, betas, eps: of AdamW.
        layer_decay: factor per layer from the top, None for none.
        decay_all: decay biases, norms and position embeddings, too.
        clip_norm: largest norm of the gradient of all parameters together; None does not clip.
        encoder_lr, text_lr: peak of the parameters of the image encoder and of a text encoder; None: as the others.
    """

    epochs: int
    warmup_epochs: float
    base_lr: float | None = None
    lr: float | None = None
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    layer_decay: float | None = None
    decay_all: bool = False
    clip_norm: float | None = None
    encoder_lr: float | None = None
    text_lr: float | None = None

    def __post_init__(self):
        if (self.base_lr is None) == (self.lr is None):
            raise ValueError("give either base_lr (per 256 images) or lr (absolute)")
        for name in ("base_lr", "lr", "encoder_lr", "warmup_epochs", "weight_decay", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 <= value < math.inf):
                raise ValueError(f"task.recipe.{name}={value}: 0 or more")

    def peak_lr(self, total_batch_size: int) -> float:
        return self.lr if self.lr is not None else self.base_lr * total_batch_size / 256  # type: ignore[operator]

    def factor(self, epoch: float) -> float:
        """Share of the peak learning rate at a fractional epoch."""
        if epoch < self.warmup_epochs or self.epochs <= self.warmup_epochs:
            return epoch / self.warmup_epochs
        progress = (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))

    def build(
        self,
        model: nn.Module,
        total_batch_size: int,
        steps_per_epoch: int,
        schedule_steps: int | None = None,
        no_decay: frozenset[str] = frozenset(),
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        """The optimiser and its per-step schedule.

        Step i of epoch e has the learning rate of the fractional epoch e + i / schedule_steps; the number of steps
        by which a recipe counts may be a little larger than the real one (ReID). None: they are the same.
        """
        schedule_steps = schedule_steps or steps_per_epoch
        peak = self.peak_lr(total_batch_size)
        scales = [1.0 if lr is None else lr / peak for lr in (self.encoder_lr, self.text_lr)]
        groups = parameter_groups(
            model, self.weight_decay, no_decay, self.layer_decay, self.decay_all, *scales
        )
        for group in groups:
            group["lr"] = peak * group["lr_scale"]
            del group["names"]
        optimizer = self.optimizer_of(groups, peak)
        schedule = self.schedule(steps_per_epoch, schedule_steps)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)

    @property
    def fused(self) -> bool:
        """The fused step of fp16 undoes the scale of the gradients itself: too late for clipping."""
        return self.clip_norm is None

    def optimizer_of(self, groups: list[dict], peak: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=peak, betas=self.betas, eps=self.eps, fused=self.fused)

    def schedule(self, steps_per_epoch: int, schedule_steps: int) -> Callable[[int], float]:
        """Share of the peak learning rate at a step."""

        def factor(step: int) -> float:
            return self.factor(step // steps_per_epoch + step % steps_per_epoch / schedule_steps)

        return factor

    def warmup(self, steps_per_epoch: int) -> float:
        """Its length in epochs."""
        return self.warmup_epochs


@dataclass(frozen=True)
class EpochRecipe(Recipe):
    """AdamW with a learning rate that is constant within an epoch: linear warm-up from `warmup_lr`, half-cosine to
    `final_lr` over *all* epochs, so that the peak is never reached (the official code of attributes).

    Args:
        warmup_lr: of epoch 0.
        final_lr: that the cosine would reach after the last epoch.
    """

    warmup_lr: float = 0.0
    final_lr: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.lr is None:
            raise ValueError("give lr: the other learning rates are absolute, too")

    def factor(self, epoch: float) -> float:
        assert self.lr is not None
        epoch = math.floor(epoch)
        if epoch < self.warmup_epochs:
            lr = self.warmup_lr + epoch * (self.lr - self.warmup_lr) / self.warmup_epochs
        else:
            lr = self.final_lr + 0.5 * (self.lr - self.final_lr) * (
                1 + math.cos(math.pi * epoch / self.epochs)
            )
        return lr / self.lr


@dataclass(frozen=True)
class StepRecipe(Recipe):
    """A learning rate that falls to a tenth at certain epochs, after a linear warm-up that is counted in steps (the
    official code of 2D pose).

    Args:
        optimizer: adamw; adam, without any decay; sgd, without decay and momentum.
        milestones: epochs, from 0, at which the learning rate falls.
        warmup_steps: length of the warm-up, whatever the length of an epoch; or give `warmup_epochs`.
        warmup_ratio: share of the peak that it begins with.
    """

    warmup_epochs: float = 0.0
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    milestones: Sequence[int] = ()
    warmup_steps: int | None = None
    warmup_ratio: float = 0.001

    def __post_init__(self):
        super().__post_init__()
        if self.optimizer not in ("adamw", "adam", "sgd"):
            raise ValueError(f"optimizer={self.optimizer}: adamw, adam or sgd")
        if self.optimizer != "adamw" and self.weight_decay:
            raise ValueError(
                f"weight_decay={self.weight_decay}: 0 with optimizer={self.optimizer}, or take adamw"
            )
        if self.warmup_steps is not None and self.warmup_epochs:
            raise ValueError("give either warmup_steps or warmup_epochs")

    def optimizer_of(self, groups: list[dict], peak: float) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=peak, fused=self.fused)
        if self.optimizer == "adam":
            return torch.optim.Adam(groups, lr=peak, betas=self.betas, eps=self.eps, fused=self.fused)
        return super().optimizer_of(groups, peak)

    def factor(self, epoch: float) -> float:
        """Without the warm-up, which follows the steps."""
        return 0.1 ** sum(epoch >= milestone for milestone in self.milestones)

    def schedule(self, steps_per_epoch: int, schedule_steps: int) -> Callable[[int], float]:
        warmup = self.warmup(steps_per_epoch) * steps_per_epoch

        def factor(step: int) -> float:
            rise = 1 - (1 - step / warmup) * (1 - self.warmup_ratio) if step < warmup else 1.0
            return rise * self.factor(step // steps_per_epoch)

        return factor

    def warmup(self, steps_per_epoch: int) -> float:
        return self.warmup_epochs if self.warmup_steps is None else self.warmup_steps / steps_per_epoch
