"""Every query ranks the whole gallery: mAP, CMC, mINP and ranked lists, exactly, in blocks of queries.

Shapes: Q queries, G gallery entries, D feature width; B queries of one block, M gallery entries that share
the identity of a query (the largest number in the block).

Protocol (Market-1501, single query; MSMT17 and text-to-image retrieval use it too):

1. Gallery entries with the same identity *and* the same camera as the query are removed. Other identities of
   that camera stay. Entries that must never be ranked (Market's junk, identity -1) must not be passed in.
2. The rest is ordered by (distance, gallery index). The official code leaves ties to an unstable sort.
3. A query without a remaining entry of its identity is skipped: it counts in no sum and no denominator.
4. With the 1-based ranks r_1 < ... < r_m of the m matches, AP = 1/m sum_j j / r_j, INP = m / r_m, and the
   query is a hit at rank k if r_1 <= k.

A "camera" is any number that tells that two images are too alike to count. Without cameras nothing is
removed. The number of the image file as camera removes only the very same file (data without cameras, or a
caption and the image it describes).
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hap.errors import HapError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Distances:
    """Distances of Q queries to G gallery entries that are computed block by block.

    Attributes:
        shape: (Q, G).
        block: slice of queries -> distances (B, G), float32 or float64, in a tensor the caller may overwrite.
    """

    shape: tuple[int, int]
    block: Callable[[slice], Tensor]


@dataclass(frozen=True)
class Ranking:
    """Results per query, in query order, on the CPU. Measures are fractions in [0, 1].

    Attributes:
        ap: average precision, float64 (Q,), NaN for skipped queries.
        ap_trapezoid: the same from the mean of the precisions just before and at each hit, the measure of
            Market-1501's release code and of the official text-to-image evaluation; never above `ap`.
        inp: inverse negative penalty m / r_m, float64 (Q,), NaN for skipped queries.
        first_hit: rank of the first match, int64 (Q,), 0 for skipped queries.
        max_rank: length of `cmc`.
    """

    ap: Tensor
    ap_trapezoid: Tensor
    inp: Tensor
    first_hit: Tensor
    max_rank: int

    @property
    def num_valid(self) -> int:
        return int((self.first_hit > 0).sum())

    @property
    def num_skipped(self) -> int:
        return len(self.first_hit) - self.num_valid

    @property
    def mAP(self) -> float:
        return self.ap.nanmean().item()

    @property
    def mAP_trapezoid(self) -> float:
        return self.ap_trapezoid.nanmean().item()

    @property
    def mINP(self) -> float:
        return self.inp.nanmean().item()

    def rank(self, k: int) -> float:
        """Share of the valid queries with a match among the first k entries (CMC at k)."""
        return (self.first_hit[self.first_hit > 0] <= k).double().mean().item()

    @property
    def cmc(self) -> Tensor:
        """`rank(1)` to `rank(max_rank)`, float64; constant beyond the end of a short gallery."""
        return torch.tensor([self.rank(k) for k in range(1, self.max_rank + 1)], dtype=torch.float64)


def evaluate_ranking(
    query: Tensor,
    gallery: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    query_cams: Tensor | None = None,
    gallery_cams: Tensor | None = None,
    *,
    distance: str = "cosine",
    max_rank: int = 50,
    block_size: int = 512,
) -> Ranking:
    """Rank the gallery by feature distance for every query and score it by the protocol of this module.

    Args:
        query, gallery: features (Q, D) and (G, D) on one device, which does the work.
        query_ids, gallery_ids: identities, integers (Q,) and (G,).
        query_cams, gallery_cams: cameras, integers (Q,) and (G,), or neither.
        distance: see `feature_distances`.
        max_rank: length of the CMC curve.
        block_size: queries at a time; they take about 8 * block_size * G bytes.

    Raises:
        HapError: wrong shapes, values that are not finite, or no query with a match.
    """
    distances = feature_distances(query, gallery, distance=distance)
    labels = (query_ids, gallery_ids, query_cams, gallery_cams)
    return evaluate_distances(distances, *labels, max_rank=max_rank, block_size=block_size)


@torch.no_grad()
def evaluate_distances(
    distances: Tensor | Distances,
    query_ids: Tensor,
    gallery_ids: Tensor,
    query_cams: Tensor | None = None,
    gallery_cams: Tensor | None = None,
    *,
    max_rank: int = 50,
    block_size: int = 512,
) -> Ranking:
    """`evaluate_ranking` on given distances: a matrix (Q, G), or blocks of it."""
    if isinstance(distances, Tensor):
        distances = _matrix_distances(distances)
    protocol = _Protocol(query_ids, gallery_ids, query_cams, gallery_cams)
    scores, lost = [], 0
    for block, columns, match, removed in _blocks(distances, protocol, block_size):
        scores.append(_score(_ranks(block, columns, match).cpu(), match))
        lost += int((removed.any(dim=1) & ~match.any(dim=1)).sum())
    return _checked(_joined(scores, max_rank), lost)


@torch.no_grad()
def evaluate_both(
    query: Tensor,
    gallery: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    query_cams: Tensor,
    gallery_cams: Tensor,
    *,
    distance: str = "cosine",
    max_rank: int = 50,
    block_size: int = 512,
) -> tuple[Ranking, Ranking]:
    """`evaluate_ranking` without the camera rule, and with it, in the time of one: an entry that the rule removes
    raises those behind it by a place. What the rule leaves without a match is skipped in silence."""
    distances = feature_distances(query, gallery, distance=distance)
    protocol = _Protocol(query_ids, gallery_ids, query_cams, gallery_cams)
    everything, remaining = [], []
    for block, columns, match, removed in _blocks(distances, protocol, block_size, remove=False):
        ranks = _ranks(block, columns, match | removed).cpu()  # (B, M)
        everything.append(_score(ranks, match | removed))
        behind = removed[:, None] & (ranks[:, None] < ranks[:, :, None])  # (B, M, M)
        remaining.append(_score(ranks - behind.sum(2), match))
    return _checked(_joined(everything, max_rank), 0), _joined(remaining, max_rank)


@torch.no_grad()
def top_matches(
    query: Tensor,
    gallery: Tensor,
    query_ids: Tensor | None = None,
    gallery_ids: Tensor | None = None,
    query_cams: Tensor | None = None,
    gallery_cams: Tensor | None = None,
    *,
    k: int = 10,
    distance: str = "cosine",
    block_size: int = 512,
) -> tuple[Tensor, Tensor]:
    """The first k gallery entries of every query, ordered and filtered as in `evaluate_ranking`.

    Identities and cameras serve the camera rule only; without them nothing is removed.

    Returns:
        Gallery indices int64 (Q, k) and distances float32 (Q, k); -1 and inf where fewer than k are left.
    """
    if query_ids is None or gallery_ids is None:
        query_ids, gallery_ids = torch.zeros(len(query)), torch.zeros(len(gallery))
    protocol = _Protocol(query_ids, gallery_ids, query_cams, gallery_cams)
    indices, values = [], []
    for block, *_ in _blocks(feature_distances(query, gallery, distance=distance), protocol, block_size):
        index = smallest(block, min(k, len(gallery)))  # (B, min(k, G))
        padding = (0, k - index.shape[1])
        value = F.pad(block.gather(1, index), padding, value=torch.inf)  # (B, k)
        indices.append(F.pad(index, padding).masked_fill(value.isinf(), -1))
        values.append(value)
    return torch.cat(indices), torch.cat(values)


def feature_distances(query: Tensor, gallery: Tensor, *, distance: str = "cosine") -> Distances:
    """Distances between feature rows, in full float32 whatever the TF32 and autocast settings are.

    Args:
        query, gallery: (Q, D) and (G, D) on one device, any floating dtype.
        distance: `cosine`: 1 - cos of the angle. `euclidean`: the squared distance of the features as they
            are (no root, the order is the same); of normalised features the official code's 2 - 2 cos.
    """
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise HapError(
            f"query and gallery features must be (Q, D) and (G, D), got {tuple(query.shape)} and "
            f"{tuple(gallery.shape)}"
        )
    check_distance(distance)
    query, gallery = query.detach().float(), gallery.detach().float()
    if distance == "cosine":
        query, gallery = F.normalize(query), F.normalize(gallery)
    square = gallery.square().sum(dim=1)  # (G,)

    def block(rows: slice) -> Tensor:
        product = _product(query[rows], gallery)  # (B, G)
        if distance == "cosine":
            return product.neg_().add_(1)
        return product.mul_(-2).add_(square).add_(query[rows].square().sum(dim=1, keepdim=True))

    return Distances((len(query), len(gallery)), block)


def check_distance(distance: str) -> None:
    if distance not in ("cosine", "euclidean"):
        raise HapError(f"distance must be 'cosine' or 'euclidean', got {distance!r}")


def smallest(block: Tensor, k: int) -> Tensor:
    """Columns of the k smallest values of each row by (value, column): float32 (B, G) -> int64 (B, k).

    `topk` alone may pick any of several equal values. Read as integers, the bits of floats sort like the
    floats, once those below the sign are flipped in negative values. With the column appended to the bits, no
    two keys are equal.
    """
    index = torch.arange(block.shape[1], device=block.device)
    columns = []
    for bits in block.view(torch.int32).split(16):  # few rows, whose 64-bit keys stay in the cache
        keys = (bits ^ (bits >> 31 & 0x7FFFFFFF)).long() << 32 | index
        columns.append(keys.topk(k, dim=1, largest=False).values & 0xFFFFFFFF)
    return torch.cat(columns)


def _matrix_distances(matrix: Tensor) -> Distances:
    if matrix.ndim != 2:
        raise HapError(f"distances must be a matrix (queries, gallery), got shape {tuple(matrix.shape)}")
    dtype = torch.float64 if matrix.dtype == torch.float64 else torch.float32

    def block(rows: slice) -> Tensor:
        return matrix[rows].to(dtype, copy=True, memory_format=torch.contiguous_format)

    return Distances((len(matrix), matrix.shape[1]), block)


def _product(query: Tensor, gallery: Tensor) -> Tensor:
    """All inner products (B, G) in full float32: TF32 would move a cosine by up to 5e-5, enough to swap
    neighbours. On the CPU with NumPy's BLAS, which takes 2/3 of the time of torch's on AMD."""
    if query.is_cpu:
        return torch.from_numpy(query.numpy() @ gallery.numpy().T)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(query.device.type, enabled=False):
            return query @ gallery.T
    finally:
        torch.set_float32_matmul_precision(precision)


class _Protocol:
    """Which gallery entries match a query, and which ones the camera rule removes. Lives on the CPU."""

    def __init__(
        self, query_ids: Tensor, gallery_ids: Tensor, query_cams: Tensor | None, gallery_cams: Tensor | None
    ) -> None:
        if (query_cams is None) != (gallery_cams is None):
            raise HapError("give cameras for both queries and gallery, or for neither")
        if query_cams is None or gallery_cams is None:  # no two cameras are equal
            query_cams, gallery_cams = torch.zeros_like(query_ids), torch.ones_like(gallery_ids)
        self.shape = (len(query_ids), len(gallery_ids))
        if 0 in self.shape:
            raise HapError(f"nothing to rank: {self.shape[0]} queries, {self.shape[1]} gallery entries")
        if (len(query_cams), len(gallery_cams)) != self.shape:
            raise HapError(
                f"{len(query_cams)} query and {len(gallery_cams)} gallery cameras, but {self.shape[0]} and "
                f"{self.shape[1]} identities"
            )
        self.query_ids = query_ids.cpu()
        self.query_cams = query_cams.cpu()
        self.gallery_cams = gallery_cams.cpu()
        self.sorted_ids, self.order = gallery_ids.cpu().sort(stable=True)

    def same_identity(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Gallery indices with the identity of each query, padded, int64 (B, M); which of them are matches
        and which are removed, bool (B, M)."""
        ids = self.query_ids[rows]
        start = torch.searchsorted(self.sorted_ids, ids)
        end = torch.searchsorted(self.sorted_ids, ids, right=True)
        width = max(int((end - start).max()), 1)
        position = start[:, None] + torch.arange(width)  # (B, M)
        present = position < end[:, None]
        columns = self.order[position.clamp(max=len(self.order) - 1)]
        same_camera = self.gallery_cams[columns] == self.query_cams[rows, None]
        return columns, present & ~same_camera, present & same_camera


def _blocks(
    distances: Distances, protocol: _Protocol, block_size: int, remove: bool = True
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Distances (B, G), inf for removed entries, with the `same_identity` of their queries."""
    if distances.shape != protocol.shape:
        raise HapError(f"distances or features of {distances.shape}, but identities of {protocol.shape}")
    num_queries = protocol.shape[0]
    for start in range(0, num_queries, block_size):
        rows = slice(start, min(start + block_size, num_queries))
        block = distances.block(rows)
        if not block.sum().isfinite():  # NaN and inf survive a sum, which is cheaper than a mask
            raise HapError(
                f"distances of queries {start} to {rows.stop - 1} are not finite: NaN in the features?"
            )
        columns, match, removed = protocol.same_identity(rows)
        if remove:
            row, entry = removed.nonzero(as_tuple=True)
            block[row.to(block.device), columns[row, entry].to(block.device)] = torch.inf
        yield block, columns, match, removed


def _ranks(block: Tensor, columns: Tensor, match: Tensor) -> Tensor:
    """Ranks of the entries `columns` (B, M) of each row by (distance, index), from 1; valid where `match`.

    The rank is one more than the number of nearer entries, which a binary search in the sorted row finds.
    Only values are sorted, several times faster than an argsort; exact ties, which are few, are counted
    afterwards. On the CPU NumPy does both, with vector instructions where torch has none.
    """
    columns, match = columns.to(block.device), match.to(block.device)
    rows = block.numpy() if block.is_cpu else block
    ordered = torch.from_numpy(np.sort(rows, axis=1)) if block.is_cpu else block.sort(dim=1).values
    distance = block.gather(1, columns)  # (B, M)
    before = torch.searchsorted(ordered, distance)
    tied = (torch.searchsorted(ordered, distance, right=True) - before > 1) & match
    row, entry = tied.nonzero(as_tuple=True)
    for i, j, column in zip(row.tolist(), entry.tolist(), columns[row, entry].tolist(), strict=True):
        before[i, j] += int((rows[i, :column] == rows[i, column]).sum())
    return before + 1


def _joined(scores: list[tuple[Tensor, Tensor, Tensor, Tensor]], max_rank: int) -> Ranking:
    ap, ap_trapezoid, inp, first_hit = (torch.cat(parts) for parts in zip(*scores, strict=True))
    return Ranking(ap, ap_trapezoid, inp, first_hit, max_rank)


def _checked(ranking: Ranking, lost: int) -> Ranking:
    """Says how many queries are skipped, `lost` of them by the camera rule. Raises HapError where none is left."""
    if ranking.num_skipped:
        message = (
            f"{ranking.num_skipped} of {len(ranking.ap)} queries have no match in the gallery: "
            f"{ranking.num_skipped - lost} because it lacks their identity, {lost} because of the camera "
            f"rule (entries with the same identity and the same camera as the query are removed)"
        )
        if not ranking.num_valid:
            raise HapError(
                f"{message}. Nothing is left to score: check that query and gallery identities share one "
                f"numbering, and turn the camera rule off for data without cameras."
            )
        log.warning("%s; they are skipped", message)
    return ranking


def _score(ranks: Tensor, match: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`ap`, `ap_trapezoid`, `inp` and `first_hit` of `Ranking` (B,) from the ranks of the matches (B, M)."""
    count = match.sum(dim=1)  # (B,)
    ordered = ranks.double().where(match, torch.inf).sort(dim=1).values  # (B, M), matches first
    hits = torch.arange(1, ranks.shape[1] + 1)
    precision = hits / ordered  # 0 in the padding
    previous = ((hits - 1) / (ordered - 1)).where(ordered > 1, 1.0)  # before rank 1 the precision counts as 1
    ap, ap_trapezoid = precision.sum(dim=1) / count, (precision + previous).sum(dim=1) / (2 * count)
    inp = count.double() / ranks.where(match, 0).amax(dim=1)  # 0 / 0 = NaN without a match, as in both AP
    return ap, ap_trapezoid, inp, ordered[:, 0].where(count > 0, 0).long()
