"""Losses: plain modules, tensors in, one scalar out, always computed in float32.

Legend: N images on this rank, D features, A attributes.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from hap.body.joints import GRAPH15, places
from hap.body.rotations import to_axis_angle, to_matrix


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


class RankingLoss(nn.Module):
    """Semi-hard triplets of images and captions (the official code of text-to-image ReID; SSAN): of each image one
    caption of another person that is less alike than its own, but by less than the margin, and of each caption such an
    image, drawn at random. The sum of margin - own + other over all of them. Where one side has none, its last sample
    with the first of another person stands for it.

    Other captions of the same person are neither pulled nor pushed, and an image is never its own negative.

    Args:
        margin: of the cosines.
        batch_size: pairs N of which it is the sum; of another number it is brought to that of so many.
        seed: of the draws, with `step`.
    """

    def __init__(self, margin: float = 0.2, batch_size: int = 64, seed: int = 0):
        super().__init__()
        self.margin, self.batch_size, self.seed = margin, batch_size, seed
        self.step = 0  # set by the task: the draws of a step are the same on every rank

    def forward(self, images: Tensor, texts: Tensor, identity: Tensor) -> Tensor:
        """images, texts: (N, E), of one pair each; identity: (N,) integers. The same N on every rank."""
        with torch.autocast(images.device.type, enabled=False):
            pair, identity = _gather_pairs(images, texts, identity)
            cosine = F.normalize(pair[0]) @ F.normalize(pair[1]).T  # (N, N), N from here on of all ranks
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
            chosen = [self.triplets(side, identity, generator) for side in (cosine, cosine.T)]
            return self.of_triplets(cosine, *chosen) * self.batch_size / len(cosine)

    def candidates(self, cosine: Tensor, identity: Tensor) -> Tensor:
        """The semi-hard negatives of each row, bool (N, N)."""
        distance = cosine - cosine.diagonal()[:, None] + self.margin
        return (identity[:, None] != identity) & (distance > 0) & (distance < self.margin)

    @torch.no_grad()
    def triplets(self, cosine: Tensor, identity: Tensor, generator: torch.Generator) -> Tensor:
        """Rows of (N, N) and the column that was drawn for each, (T, 2); none if all are one person."""
        candidates = self.candidates(cosine, identity)
        anchors = candidates.any(1).nonzero().squeeze(1)
        if len(anchors):
            drawn = torch.multinomial(candidates[anchors].float().cpu(), 1, generator=generator)
            return torch.stack([anchors, drawn.squeeze(1).to(anchors.device)], 1)
        other = identity[-1] != identity
        if not other.any():
            return anchors.new_zeros(0, 2)
        return torch.stack([other.new_tensor(len(other) - 1, dtype=torch.long), other.int().argmax()])[None]

    def of_triplets(self, cosine: Tensor, image: Tensor, text: Tensor) -> Tensor:
        """The sum over given triplets (T, 2) of images and of texts."""
        loss = cosine.new_zeros(())
        for side, (row, column) in ((cosine, image.unbind(1)), (cosine.T, text.unbind(1))):
            loss = loss + F.relu(self.margin - side[row, row] + side[row, column]).sum()
        return loss


class SDMLoss(nn.Module):
    """Similarity distribution matching (Jiang and Ye, CVPR 2023): the Kullback-Leibler divergence of the softmax over
    the cosines from the even distribution over all pairs of the same person, summed over both directions. All captions
    of a person are pulled to all images of it.

    Args:
        scale: of the cosines, 1 / temperature.
    """

    def __init__(self, scale: float = 50.0):
        super().__init__()
        self.scale = scale

    def forward(self, images: Tensor, texts: Tensor, identity: Tensor) -> Tensor:
        """images, texts: (N, E), of one pair each; identity: (N,) integers. The same N on every rank."""
        with torch.autocast(images.device.type, enabled=False):
            pair, identity = _gather_pairs(images, texts, identity)
            cosine = F.normalize(pair[0]) @ F.normalize(pair[1]).T  # (N, N), N from here on of all ranks
            same = (identity[:, None] == identity).float()
            wanted = (same / same.sum(1, keepdim=True) + 1e-8).log()
            logs = [(self.scale * side).log_softmax(1) for side in (cosine, cosine.T)]
            return torch.stack([(log.exp() * (log - wanted)).sum(1).mean() for log in logs]).sum()


def _gather_pairs(images: Tensor, texts: Tensor, identity: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Of all ranks, float32, with gradients: every rank computes the same loss, and DDP's mean of the ranks'
    gradients is the gradient of one process with the whole batch."""
    pair = images.float(), texts.float()
    if not _distributed():
        return pair, identity
    return (_GatherRows.apply(pair[0]), _GatherRows.apply(pair[1])), _GatherRows.apply(identity)


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


class BodyPrediction(NamedTuple):
    """
    rotations: (N, 24, 3, 3); betas: (N, 10).
    joints: (N, 30, 3), relative to the root, metres.
    joints_2d: (N, 30, 2), in 64ths of the crop.
    joint_img: (N, 15, 3), what the network found on the way, 64ths of the crop and of 2 m around the root; or None.
    """

    rotations: Tensor
    betas: Tensor
    joints: Tensor
    joints_2d: Tensor
    joint_img: Tensor | None


class BodyTargets(NamedTuple):
    """Joints of the data set and of a body that was fitted to them. `..._img` are in 64ths of the crop, the third of
    2 m around the root; `..._cam` metres, relative to the root. Masks are 0 or 1.

    joint_img, joint_cam: (N, 30, 3); valid, trunc: (N, 30), labelled, and also inside the crop.
    fit_img, fit_cam: (N, 30, 3); fit_trunc: (N, 30).
    pose: (N, 72), axis-angle vectors; pose_valid: (N, 72), joints that a fit knows.
    betas: (N, 10); betas_valid: (N,).
    fitted: (N,), whether there is a fit, and a good one; has_3d: (N,), whether the data set's joints are in 3D.
    """

    joint_img: Tensor
    joint_cam: Tensor
    valid: Tensor
    trunc: Tensor
    fit_img: Tensor
    fit_cam: Tensor
    fit_trunc: Tensor
    pose: Tensor
    pose_valid: Tensor
    betas: Tensor
    betas_valid: Tensor
    fitted: Tensor
    has_3d: Tensor


class CrowdNetLoss(nn.Module):
    """Seven mean absolute errors, all elements of all samples counted, what is masked as 0 (3DCrowdNet)."""

    def forward(self, said: BodyPrediction, target: BodyTargets) -> dict[str, Tensor]:
        """`loss`, their sum, and each by its name."""
        terms = self.errors(said, target)
        means = {name: error.mean() for name, error in terms.items()}
        return {"loss": torch.stack(list(means.values())).sum(), **means}

    def errors(self, said: BodyPrediction, target: BodyTargets) -> dict[str, Tensor]:
        """Of every element, by the name of the term, factors included."""
        t, fitted = target, target.fitted[:, None, None]
        graph = torch.from_numpy(places(GRAPH15)).to(said.betas.device)
        is_3d = torch.stack([torch.ones_like(t.has_3d)] * 2 + [t.has_3d], dim=1)[:, None]  # x and y always
        found = said.joint_img
        assert found is not None
        pose = to_axis_angle(said.rotations.float()).flatten(1)
        img = (found - t.joint_img[:, graph]).abs() * t.trunc[:, graph, None] * is_3d
        fit_img = (found - t.fit_img[:, graph]).abs() * t.fit_trunc[:, graph, None] * fitted
        return {
            "body_joint_img": img / 8,
            "smpl_joint_img": fit_img / 8,
            "smpl_pose": (pose - t.pose).abs() * t.pose_valid * t.fitted[:, None],
            "smpl_shape": (said.betas - t.betas).abs() * (t.betas_valid * t.fitted)[:, None],
            "body_joint_proj": (said.joints_2d - t.joint_img[..., :2]).abs() * t.trunc[..., None] / 8,
            "body_joint_cam": (said.joints - t.joint_cam).abs() * (t.valid * t.has_3d[:, None])[..., None],
            "smpl_joint_cam": (said.joints - t.fit_cam).abs() * fitted,
        }


class Hmr2Loss(nn.Module):
    """Sums over a person, means over the batch, times the batch that the weights were made for: so that no batch size
    changes them (HMR 2.0, where they are sums over the batch; without its adversary)."""

    BATCH = 48

    def __init__(
        self,
        joints_2d: float = 0.01,
        joints_3d: float = 0.05,
        root: float = 0.001,
        body: float = 0.001,
        betas: float = 0.0005,
    ):
        super().__init__()
        self.weights = {
            "joints_2d": joints_2d, "joints_3d": joints_3d, "root": root, "body": body, "betas": betas
        }  # fmt: skip

    def forward(self, said: BodyPrediction, target: BodyTargets) -> dict[str, Tensor]:
        """`loss`, the weighted sum, and each term by its name."""
        t = target
        rotations = to_matrix(t.pose.unflatten(1, (24, 3)))
        turned = (said.rotations - rotations).square() * t.fitted[:, None, None, None]
        known = t.pose_valid.unflatten(1, (24, 3))[..., :1, None]
        errors = {
            "joints_2d": (said.joints_2d - t.joint_img[..., :2]).abs() * t.valid[..., None] / 64,
            "joints_3d": (said.joints - t.joint_cam).abs() * (t.valid * t.has_3d[:, None])[..., None],
            "root": turned[:, :1],
            "body": (turned * known)[:, 1:],
            "betas": (said.betas - t.betas).square() * (t.betas_valid * t.fitted)[:, None],
        }
        terms = {
            name: self.BATCH * self.weights[name] * error.sum() / len(error) for name, error in errors.items()
        }
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}


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
