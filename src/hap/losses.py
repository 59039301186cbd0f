"""Losses: plain modules, tensors in, one scalar out, always computed in float32.

Legend: N images on this rank, D features, A attributes.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


class ReconstructionLoss(nn.Module):
    """Mean squared error of the removed patches' pixels (MAE; HAP, section 3.1).

    Args:
        norm_target: predict each patch normalised to mean 0 and (unbiased) variance 1 over its values.
    """

    def __init__(self, norm_target: bool = True):
        super().__init__()
        self.norm_target = norm_target

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """pred, target: (..., P) values of removed patches only; the mean is over all of them. Every view has
        the same number, so this is also the mean of the views' losses."""
        target = target.float()
        if self.norm_target:
            mean, std = self._statistics(target)
            target = (target - mean) / std
        return F.mse_loss(pred.float(), target)

    def per_image(self, pred: Tensor, target: Tensor) -> Tensor:
        """pred, target: (V, N, M, P) -> (N,), the loss of each image alone."""
        pairs = zip(pred.unbind(1), target.unbind(1), strict=True)
        return torch.stack([self(*pair) for pair in pairs])

    def to_pixels(self, pred: Tensor, target: Tensor) -> Tensor:
        """Predictions (..., P) in the target's units, for pictures."""
        if not self.norm_target:
            return pred.float()
        mean, std = self._statistics(target.float())
        return pred.float() * std + mean

    def _statistics(self, target: Tensor) -> tuple[Tensor, Tensor]:
        var, mean = torch.var_mean(target, dim=-1, keepdim=True)  # divides by P - 1
        return mean, (var + 1e-6).sqrt()


class AlignmentLoss(nn.Module):
    """Brings the class tokens of two views of one image together, against all images of the global batch
    (HAP, section 3.3).

    Each view's tokens are matched with the other's: 2 tau x cross-entropy of the cosines / tau, summed over
    both directions. The other side is a constant on every rank, this one included. So no gradient crosses
    ranks, and DDP's mean of the ranks' gradients is the gradient of one process with the whole batch.

    Args:
        temperature: tau.
    """

    def __init__(self, temperature: float = 0.2):
        super().__init__()
        self.temperature = temperature

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b: (N, D) features of the two views, the same N on every rank. In evaluation: of this rank alone."""
        with torch.autocast(a.device.type, enabled=False):
            q = F.normalize(torch.stack([a, b]).float(), dim=-1)  # (2, N, D)
            gather = self.training and _distributed()  # an evaluation is the same on any number of ranks
            k = _gather_batch(q.detach()) if gather else q.detach()  # (2, N x ranks, D)
            logits = q @ k.flip(0).mT / self.temperature  # (2, N, N x ranks)
            rank = dist.get_rank() if gather else 0
            labels = torch.arange(len(a), device=a.device) + rank * len(a)
            a_to_b, b_to_a = logits
            return 2 * self.temperature * (F.cross_entropy(a_to_b, labels) + F.cross_entropy(b_to_a, labels))


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _all_gather(gathered: Tensor, x: Tensor) -> None:
    """x of every rank, in rank order, into `gathered`."""
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.14
    gather(gathered, x)


def _gather_batch(x: Tensor) -> Tensor:
    """(2, N, D) on each rank -> (2, N x ranks, D), in rank order, without gradient, in one collective."""
    gathered = x.new_empty(dist.get_world_size(), *x.shape)  # (ranks, 2, N, D)
    _all_gather(gathered.flatten(0, 1), x.contiguous())
    return gathered.transpose(0, 1).flatten(1, 2)


class SoftTripletLoss(nn.Module):
    """Batch-hard triplet loss with a soft margin (Hermans et al., 2017): mean of log(1 + exp(p - n)), with an
    image's distances p to the farthest image of its identity and n to the nearest of another.

    Euclidean distances of the features as they are, float32 by differences: neither TF32 nor the cancellation
    of a matrix product touches them. Identities may have different numbers of images. p - n is unlimited: the
    official exp overflows above 88.

    Args:
        global_batch: search among the images of all ranks. Every rank then computes the same loss, and DDP's
            mean of the ranks' gradients is the gradient of one process with the whole batch. False: only
            among the rank's own, a different (easier) loss.
    """

    def __init__(self, global_batch: bool = True):
        super().__init__()
        self.global_batch = global_batch

    def forward(self, features: Tensor, identity: Tensor) -> Tensor:
        """features: (N, D); identity: (N,) integers. The same N on every rank. 0 if all show one identity."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            if self.global_batch and _distributed():
                features, identity = _GatherRows.apply(features), _GatherRows.apply(identity)
            same = identity[:, None] == identity  # (N, N), N from here on of all ranks
            distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")  # (N, N)
            positive = distance.masked_fill(~same, -torch.inf).max(dim=1).values
            negative = distance.masked_fill(same, torch.inf).min(dim=1).values
            return F.softplus(positive - negative).mean()


class WeightedBCE(nn.Module):
    """Binary cross-entropy of many attributes in which the rarer of yes and no weighs more (Li et al., ACPR 2015):
    exp(1 - r) for yes and exp(r) for no, r the share of yes in training. A label below 0 is unknown and costs nothing.

    Args:
        weighted: by r; False weighs all alike.
    """

    def __init__(self, weighted: bool = True):
        super().__init__()
        self.weighted = weighted

    def forward(self, logits: Tensor, labels: Tensor, ratio: Tensor) -> Tensor:
        """Mean over the images of the sum over the attributes.

        Args:
            logits: (N, A).
            labels: (N, A), 1 yes, 0 no, below 0 unknown.
            ratio: (A,), r.
        """
        return self.per_image(logits, labels, ratio).mean()

    def per_image(self, logits: Tensor, labels: Tensor, ratio: Tensor) -> Tensor:
        """(N,), the loss of each image alone."""
        weight = torch.where(labels > 0, (1 - ratio).exp(), ratio.exp()) if self.weighted else None
        target = (labels > 0).float()
        loss = F.binary_cross_entropy_with_logits(logits.float(), target, weight, reduction="none")
        return (loss * (labels >= 0)).sum(dim=1)


class HeatmapLoss(nn.Module):
    """Squared error of heat maps, the mean over all pixels of all joints: one that is not labelled counts as 0."""

    def forward(self, heatmaps: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """
        Args:
            heatmaps, target: (N, K, h, w).
            weight: (N, K); difference and target are multiplied by it.
        """
        return ((heatmaps.float() - target) * weight[..., None, None]).square().mean()


class _GatherRows(torch.autograd.Function):
    """(N, ...) on each rank -> (N x ranks, ...), in rank order. As every rank goes on with the same rows to
    the same loss, the sum of the ranks' gradients is a multiple of the own."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        gathered = x.new_empty(dist.get_world_size() * len(x), *x.shape[1:])
        _all_gather(gathered, x.contiguous())
        return gathered

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad.chunk(dist.get_world_size())[dist.get_rank()] * dist.get_world_size()
