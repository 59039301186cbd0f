"""The pre-training losses over a whole split."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class SplitLosses(Metric):
    """Reconstruction and alignment over a split, each image counted once: the same on any number of processes and
    for any evaluation batch.

    The alignment loss compares an image with others, so its value depends on how many: here always with the
    `group` - 1 neighbours in the order of the data set. An incomplete last group is left out of it.

    Args:
        alignment: loss on two views' class tokens (N, D); None leaves it out.
        weight: of the alignment in the total.
        group: images that are compared with each other.
    """

    full_state_update = False
    index: list[Tensor]
    reconstruction: list[Tensor]
    tokens: list[Tensor]

    def __init__(self, alignment: nn.Module | None, weight: float, group: int = 128, **kwargs: Any):
        super().__init__(**kwargs)
        self.alignment, self.weight, self.group = alignment, weight, group
        for name in ("index", "reconstruction", "tokens"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, index: Tensor, reconstruction: Tensor, tokens: Tensor) -> None:
        """index (N,) int, position in the data set; reconstruction (N,) losses; tokens (2, N, D)."""
        self.index.append(index)
        self.reconstruction.append(reconstruction.float())
        self.tokens.append(tokens.float().transpose(0, 1).contiguous())  # (N, 2, D)

    def compute(self) -> dict[str, float]:
        order, kept = sort_once(dim_zero_cat(self.index))
        reconstruction = dim_zero_cat(self.reconstruction)[order][kept].mean()
        if self.alignment is None:
            return {"loss": float(reconstruction), "reconstruction": float(reconstruction)}
        tokens = dim_zero_cat(self.tokens)[order][kept]  # (images, 2, D)
        groups = [part for part in tokens.split(self.group) if len(part) == min(self.group, len(tokens))]
        alignment = torch.stack([self.alignment(*part.transpose(0, 1)) for part in groups]).mean()
        total = reconstruction + self.weight * alignment
        return {
            "loss": float(total),
            "reconstruction": float(reconstruction),
            "alignment": float(alignment),
        }


def sort_once(index: Tensor) -> tuple[Tensor, Tensor]:
    """Order by index, and which of the ordered to keep: an image that was seen twice counts once."""
    ordered, order = index.sort(stable=True)
    kept = torch.ones_like(ordered, dtype=torch.bool)
    kept[1:] = ordered[1:] != ordered[:-1]
    return order, kept
