"""What can be read off frozen features: by the nearest neighbours, by one linear layer, on a map.

Legend: N images to learn from, M others, D width of a feature, A attributes. Labels are 1 yes, 0 no, -1 unknown, which
counts nowhere. Yes and no weigh the same for every attribute, however rare it is: so 0.5 is the threshold for mA, the
mean of the recalls of both (`hap.metrics.attributes`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hap.errors import HapError

BLOCK = 1024  # images that are compared with all others at once


def answerable(labels: Tensor) -> Tensor:
    """Which attributes somebody is known to have and somebody else not to: (N, A) -> bool (A,)."""
    return (labels == 1).any(0) & (labels == 0).any(0)


def standardised(features: Tensor, *others: Tensor) -> list[Tensor]:
    """Features (N, D) with mean 0 and deviation 1 in each dimension, others by the same numbers, float64. A constant
    dimension becomes 0.

    Raises:
        HapError: a feature is not finite.
    """
    given = [x.double() for x in (features, *others)]
    if not all(x.isfinite().all() for x in given):
        raise HapError("features are not finite: weights that are damaged, or of a training that diverged")
    mean, std = given[0].mean(0), given[0].std(0, correction=0)
    std = torch.where(std > 1e-9 * mean.abs(), std, torch.inf)
    return [(x - mean) / std for x in given]


def knn_probability(
    features: Tensor, labels: Tensor, others: Tensor, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Vote of the k nearest neighbours by cosine, each with the weight exp(cosine / temperature) (Wu et al., 2018,
    section 3.4), divided by how often the answer is given among all N.

    Args:
        features: (N, D), not normalised.
        labels: integers (N, A); all have to be `answerable`.
        others: (M, D).
        k: at most N are there.

    Returns:
        Share of yes, float32 (M, A); 0.5 where the neighbours' labels are unknown.
    """
    known = F.normalize(features.float())
    share = _shares(labels)
    yes, no = (labels == 1).double() / share, (labels == 0).double() / (1 - share)
    parts = []
    for block in F.normalize(others.float()).split(BLOCK):
        cosine, nearest = (block @ known.T).topk(min(k, len(known)))  # (block, k)
        weight = ((cosine.double() - 1) / temperature).exp().unsqueeze(2)
        votes = [(weight * answer[nearest]).sum(1) for answer in (yes, no)]  # (block, A)
        total = votes[0] + votes[1]
        parts.append(torch.where(total == 0, 0.5, votes[0] / total))
    return torch.cat(parts).float()


def linear_probability(features: Tensor, labels: Tensor, others: Tensor, penalty: float = 0.03) -> Tensor:
    """One logistic regression per attribute.

    Minimises mean cross-entropy, yes and no by half each, + penalty / 2 x the squared weights (not the bias), in
    float64 by L-BFGS from zero: the same numbers at every call.

    Args:
        features: (N, D), of mean 0 and deviation 1 (`standardised`).
        labels: integers (N, A); all have to be `answerable`.
        others: (M, D).

    Returns:
        Probability of yes, float32 (M, A).
    """
    x, yes, known = features.double(), (labels == 1).double(), (labels >= 0).double()
    share = _shares(labels)
    weight = known * torch.where(yes == 1, 1 / share, 1 / (1 - share)) / (2 * known.sum(0))  # sums to 1
    matrix = x.new_zeros(x.shape[1], labels.shape[1], requires_grad=True)
    bias = x.new_zeros(labels.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS(
        [matrix, bias],
        max_iter=300,
        tolerance_grad=1e-6,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        entropy = F.binary_cross_entropy_with_logits(x @ matrix + bias, yes, weight, reduction="sum")
        total = entropy + penalty / 2 * matrix.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        solver.step(loss)
    return (others.double() @ matrix.detach() + bias.detach()).sigmoid().float()


def map_2d(features: Tensor) -> Tensor:
    """Principal components of the features (N, D): their two widest directions, (N, 2) float32, N and D at least 2.
    An axis points to where its largest weight is positive, so that the map is not mirrored at random."""
    x = features.double()
    x = x - x.mean(0)
    axes = torch.linalg.svd(x, full_matrices=False).Vh[:2]  # (2, D)
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))  # (2, 1)
    return (x @ (axes * largest.sign()).T).float()


def _shares(labels: Tensor) -> Tensor:
    """Of yes among the known labels, float64 (A,)."""
    return (labels == 1).sum(0) / (labels >= 0).sum(0).double()
