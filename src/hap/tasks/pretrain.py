"""HAP pre-training: reconstruct the masked patches of two views of one crop, and align the views."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from hap.losses import ReconstructionLoss
from hap.metrics.losses import SplitLosses
from hap.models.masking import STRATEGIES, rank
from hap.models.mim import MaskedAutoencoder, MIMOutput
from hap.plots import draw_attention, draw_pose, hide_patches, mosaic
from hap.tasks.base import Task


class PretrainOutput(NamedTuple):
    cls: torch.Tensor  # (V, N, D) class tokens of the V views, after the final norm
    reconstruction: torch.Tensor  # scalar; in evaluation (N,), of each image


class Pretrain(Task):
    """Masked image modelling with structure-invariant alignment (HAP, section 3).

    Total loss = reconstruction + alignment_weight * alignment.

    Args:
        model: encoder and decoder; takes normalised images and scores (N, V, L).
        reconstruction: loss on (predictions, true patches) of the removed patches.
        alignment: loss on the class tokens of two views; None for plain MAE.
        alignment_weight: 0.05 in the paper.
        negatives: what the alignment loss compares with. "micro_batch": the images of one pass on all devices,
            as the official code does under gradient accumulation. "total_batch": the images of the whole
            optimiser step, whatever fits into memory: the step is run in one piece, but the activations of
            each micro-batch but the last are thrown away and computed again in the backward pass (up to a third
            more arithmetic; the gradient is that of the undivided batch).
    """

    model: MaskedAutoencoder
    metric: SplitLosses

    def __init__(
        self,
        *args: Any,
        reconstruction: ReconstructionLoss,
        alignment: torch.nn.Module | None = None,
        alignment_weight: float = 0.05,
        negatives: Literal["micro_batch", "total_batch"] = "total_batch",
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.metric = SplitLosses(alignment, alignment_weight)
        self.reconstruction: ReconstructionLoss = reconstruction
        self.alignment = alignment
        self.alignment_weight = alignment_weight
        # Without alignment nothing compares images, and plain accumulation is exact.
        self.negatives = negatives if alignment is not None else "micro_batch"
        self.any_micro_batch = alignment is None or negatives == "total_batch"
        self.micro_batch_size: int | None = None  # set by the runner when a step does not fit at once

    def forward(self, batch: dict[str, torch.Tensor]) -> PretrainOutput:
        size = self.micro_batch_size
        if not torch.is_grad_enabled() or size is None or size >= len(batch["image"]):
            return self._forward(batch["image"], batch["scores"])
        *first, last = zip(batch["image"].split(size), batch["scores"].split(size), strict=True)
        parts = [checkpoint(self._piece, *x, use_reentrant=False, preserve_rng_state=False) for x in first]
        parts.append(self._piece(*last))  # the backward pass begins here: what is kept is used up at once
        return PretrainOutput(
            torch.cat([part.cls for part in parts], dim=1),
            torch.stack([part.reconstruction for part in parts]).mean(),
        )

    def _piece(self, images: torch.Tensor, scores: torch.Tensor) -> PretrainOutput:
        """`_forward` with 16-bit weights of its own: the gradients of weights that several passes share would be
        summed in 16 bits, not in the float32 of the parameters."""
        kind = images.device.type
        on, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        with torch.autocast(kind, dtype, enabled=on, cache_enabled=False):
            return self._forward(images, scores)

    def _forward(self, images: torch.Tensor, scores: torch.Tensor) -> PretrainOutput:
        outputs = self.model(self.normalize(images), scores)
        loss = self.reconstruction if self.training else self.reconstruction.per_image
        return PretrainOutput(outputs.cls, loss(outputs.pred, outputs.target))

    def losses(self, outputs: PretrainOutput, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not self.training:
            return {}  # those of a whole split are the metric's
        losses = {"reconstruction": outputs.reconstruction}
        loss = outputs.reconstruction
        if self.alignment is not None:
            losses["alignment"] = self.alignment(*outputs.cls)
            loss = loss + self.alignment_weight * losses["alignment"]
        return {"loss": loss, **losses}

    def update_metrics(self, outputs: PretrainOutput, batch: dict[str, torch.Tensor]) -> None:
        self.metric.update(batch["index"], outputs.reconstruction, outputs.cls)

    def predictions(self, outputs: PretrainOutput, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Features of the whole image, nothing masked: the class token (D) after the final norm."""
        return {"feature": self.model.features(self.normalize(batch["image"]))[:, 0]}

    @torch.no_grad()
    def rebuild(self, batch: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """The images with their removed patches as the decoder makes them, (V, N, H, W, 3) uint8, and which patches
        these are, bool (V, N, rows, columns). A prediction in normalised pixels gets the true patch's mean and
        deviation back."""
        images = self.normalize(batch["image"])
        outputs: MIMOutput = self.model(images, batch["scores"])
        removed = self.reconstruction.to_pixels(outputs.pred.float(), outputs.target.float())
        painted = self.model.paste(images, removed, outputs.masking)  # (V, N, 3, H, W)
        pixels = (painted * self.std + self.mean).round().clamp(0, 255).byte().movedim(2, -1)
        return pixels.cpu().numpy(), outputs.masking.mask.bool().unflatten(-1, self.model.grid).cpu().numpy()

    def pictures(self, batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """One column per image. `masks_and_reconstructions`: with its skeleton, then per view what the encoder sees and
        what the decoder makes of it; `attention`: where the class token of the whole image looks; before the first step
        `masking_strategies`: a mask of every kind, as they stay the same."""
        pixels, masks = self.rebuild(batch)
        originals = batch["image"].movedim(1, -1).cpu().numpy()  # (N, H, W, 3)
        keypoints = batch["keypoints"].cpu().numpy()
        posed = [draw_pose(*person) for person in zip(originals, keypoints, strict=True)]
        patch_size = self.model.patch_size
        columns = []
        for n, image in enumerate(originals):
            column = [posed[n]]
            for view, mask in enumerate(masks[:, n]):
                column += [hide_patches(image, mask, patch_size), pixels[view, n]]
            columns.append(column)
        views = range(1, len(masks) + 1)
        titles = ["original", *(f"{what} {view}" for view in views for what in ("masked", "rebuilt"))]
        pictures = {"masks_and_reconstructions": mosaic(columns, titles)}
        attention = self.model.class_attention(self.normalize(batch["image"])).unflatten(1, self.model.grid)
        looks = [
            draw_attention(*pair) for pair in zip(originals, attention.float().cpu().numpy(), strict=True)
        ]
        pictures["attention"] = mosaic(list(zip(originals, looks, strict=True)), ["original", "attention"])
        if self.global_step == 0:
            columns = [[posed[n], *self._masked(n, image, keypoints[n])] for n, image in enumerate(originals)]
            pictures["masking_strategies"] = mosaic(columns, ["original", *STRATEGIES])
        return pictures

    def _masked(self, n: int, image: np.ndarray, keypoints: np.ndarray) -> Iterator[np.ndarray]:
        """What every strategy leaves of image n, at the model's ratio."""
        for build in STRATEGIES.values():
            rng = np.random.default_rng((self.seed, n))
            strategy = build(self.model.patch_size)
            scores = strategy(self.model.grid, self.model.mask_ratio, keypoints, rng)
            mask = rank(torch.from_numpy(scores), self.model.mask_ratio).mask.unflatten(0, self.model.grid)
            yield hide_patches(image, mask.numpy(), self.model.patch_size)
