"""k-reciprocal re-ranking (Zhong et al., CVPR 2017), sparse. Optional, and never the headline of a table.

N = Q + G, queries first. The authors' code keeps several (N, N) matrices, 35 GB each for MSMT17. Here all but
the distances is sparse (zero outside the neighbourhoods), and the distances are computed in blocks.
"""

from itertools import pairwise

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from hap.metrics.ranking import Distances, feature_distances, smallest


@torch.no_grad()
def k_reciprocal_rerank(
    query: Tensor,
    gallery: Tensor,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    block_size: int = 512,
) -> Distances:
    """Re-ranked distances (1 - lambda) Jaccard + lambda d of every query to every gallery entry.

    d is the squared Euclidean distance divided by the largest of its row. That, the weights of sum 1, each
    image among its own neighbours, and the strict "more than 2/3" follow the authors' code, not the paper.

    Args:
        query, gallery: features (Q, D) and (G, D) on one device; L2-normalise them to go with cosine ranking.
        k1: neighbours that must be mutual. k2: neighbours (self included) a neighbourhood is averaged over.
        lambda_value: share of the original distance, in [0, 1].
        block_size: rows at a time; the first pass takes about 4 * block_size * N bytes.

    Returns:
        Blocks for `evaluate_distances`, 12 G bytes per query. A copy of the features and about 1 kB per image
        are kept.
    """
    features = torch.cat([query.float(), gallery.float()])  # (N, D)
    neighbours, largest = _neighbours(features, k1, block_size)
    weights = _weights(features, neighbours, largest.cpu().numpy(), k1)
    averaged = neighbours[:, :k2]
    weights = _adjacency(averaged) @ weights / averaged.shape[1]
    query_weights, gallery_weights = weights[: len(query)], weights[len(query) :].tocsc()
    original = feature_distances(query, gallery, distance="euclidean")

    def block(rows: slice) -> Tensor:
        distance = original.block(rows).div_(largest[rows, None])
        jaccard = torch.from_numpy(_jaccard(query_weights[rows], gallery_weights)).to(distance)
        return distance.mul_(lambda_value).add_(jaccard, alpha=1 - lambda_value)

    return Distances(original.shape, block)


def _neighbours(features: Tensor, k: int, block_size: int) -> tuple[np.ndarray, Tensor]:
    """Each row's own index and its k nearest others (N, k + 1), and its largest squared distance (N,)."""
    distances = feature_distances(features, features, distance="euclidean")
    nearest, largest = [], []
    for start in range(0, len(features), block_size):
        block = distances.block(slice(start, start + block_size))  # (B, N)
        largest.append(block.amax(dim=1))
        block.diagonal(start).fill_(-torch.inf)  # itself comes first, whatever rounding and duplicates do
        nearest.append(smallest(block, min(k + 1, len(features))))
    return torch.cat(nearest).cpu().numpy(), torch.cat(largest)


def _adjacency(neighbours: np.ndarray) -> sparse.csr_array:
    """(N, k) -> 0/1 matrix (N, N) of "the column is a neighbour of the row"."""
    size, k = neighbours.shape
    rows = np.repeat(np.arange(size), k)
    return sparse.csr_array((np.ones(size * k, np.float32), (rows, neighbours.ravel())), shape=(size, size))


def _mutual(neighbours: np.ndarray) -> sparse.csr_array:
    """R(i, k) as a 0/1 matrix (N, N): neighbours of each other."""
    adjacent = _adjacency(neighbours)
    return adjacent.multiply(adjacent.T).tocsr()


def _weights(features: Tensor, neighbours: np.ndarray, largest: np.ndarray, k1: int) -> sparse.csr_array:
    """V (N, N): exp(-d) on the expanded mutual neighbours of each row, rows normalised to sum 1."""
    mutual, half = _mutual(neighbours), _mutual(neighbours[:, : round(k1 / 2) + 1])
    # For j in R(i, k1): if |R(i, k1) and R(j, k1 / 2)| > 2/3 |R(j, k1 / 2)|, R(j, k1 / 2) joins R(i, k1).
    common = (mutual @ half.T).multiply(mutual).tocoo()
    common.data = (3 * common.data > 2 * np.diff(half.indptr)[common.col]).astype(np.float32)
    common.eliminate_zeros()
    weights = (mutual + common.tocsr() @ half).tocoo()
    data = np.exp(-_pair_distances(features, weights.row, weights.col) / largest[weights.row])
    data /= np.bincount(weights.row, data)[weights.row]
    return sparse.csr_array((data, (weights.row, weights.col)), shape=weights.shape)


def _pair_distances(features: Tensor, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Squared distances of P pairs of feature rows (P,), some at a time."""
    pairs = torch.from_numpy(np.stack([rows, columns])).long().to(features.device)  # (2, P)
    chunks = [(features[i] - features[j]).square().sum(dim=1) for i, j in pairs.split(2048, dim=1)]
    return torch.cat(chunks).cpu().numpy()


def _jaccard(query: sparse.csr_array, gallery: sparse.csc_array) -> np.ndarray:
    """1 - sum_k min(q_k, g_k) / sum_k max(q_k, g_k) of rows with sum 1: (B, N), (G, N) -> float32 (B, G)."""
    result = np.empty((query.shape[0], gallery.shape[0]), np.float32)
    for i, (start, stop) in enumerate(pairwise(query.indptr)):
        shared = gallery[:, query.indices[start:stop]]  # the columns in which this query is not zero
        minimum = np.minimum(shared.data, np.repeat(query.data[start:stop], np.diff(shared.indptr)))
        total = np.bincount(shared.indices, minimum, minlength=len(result[i]))  # (G,)
        result[i] = 1 - total / (2 - total)
    return result
