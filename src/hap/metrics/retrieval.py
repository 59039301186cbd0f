"""The retrieval metric of a test run: collects features batch by batch, ranks the gallery at the end."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from hap.errors import HapError
from hap.metrics.ranking import Ranking, check_distance, evaluate_distances, evaluate_ranking, top_matches
from hap.metrics.rerank import k_reciprocal_rerank


@dataclass(frozen=True)
class RankedLists:
    """The first k gallery entries of n queries. Samples are named by the index they were added with.

    Attributes:
        query: int64 (n,).
        ap: average precision of the queries, float64 (n,).
        gallery: int64 (n, k), -1 where fewer than k entries are left.
        distance: of the metric, float32 (n, k).
        match: same identity as the query, bool (n, k).
    """

    query: Tensor
    ap: Tensor
    gallery: Tensor
    distance: Tensor
    match: Tensor


class _Samples(NamedTuple):
    """All queries or the whole gallery, N samples sorted by `sample`."""

    features: Tensor  # (N, D)
    ids: Tensor
    cams: Tensor
    sample: Tensor


_Labels = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


class RetrievalMetric(Metric):
    """mAP, mINP and CMC of features that arrive in any order and on any number of processes.

    Every process gathers all features, drops the repeats with which a distributed sampler pads (a padded
    gallery would change the mAP) and works in the order of the sample index, so that the number of processes
    does not matter. Distance: cosine of the whole vectors. Protocol: `hap.metrics.ranking`.

    Args:
        rerank: also score k-reciprocal re-ranked distances, under `rerank_*`.
        block_size: see `evaluate_ranking`.
        kwargs: of `torchmetrics.Metric`.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    features: list[Tensor]
    ids: list[Tensor]
    cams: list[Tensor]
    is_query: list[Tensor]
    sample: list[Tensor]

    def __init__(
        self, *, distance: str = "cosine", rerank: bool = False, block_size: int = 512, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_distance(distance)
        self.distance = distance
        self.rerank = rerank
        self.block_size = block_size
        for state in ("features", "ids", "cams", "is_query", "sample"):
            self.add_state(state, default=[], dist_reduce_fx="cat")
        self._result: tuple[Ranking, _Samples, _Samples] | None = None

    def update(
        self, features: Tensor, identities: Tensor, cameras: Tensor | None, is_query: Tensor, index: Tensor
    ) -> None:
        """Add N samples.

        Args:
            features: (N, D), any floating dtype, not normalised; kept in float32.
            identities: integers (N,).
            cameras: integers (N,), or None for no camera rule.
            is_query: bool (N,); the others are gallery.
            index: integers >= 0 (N,), unique among the queries and among the gallery entries.
        """
        if cameras is None:  # one of its own for every sample, so that nothing is removed
            cameras = 2 * index + is_query.to(index)
        self.features.append(features.detach().float())
        self.is_query.append(is_query.to(features.device, torch.bool))
        for state, values in ((self.ids, identities), (self.cams, cameras), (self.sample, index)):
            state.append(values.to(features.device, torch.int64))

    def compute(self) -> dict[str, float]:
        """Fractions `mAP`, `mINP`, `rank1`, `rank5`, `rank10`; `num_valid`, `num_skipped`, `num_gallery`."""
        if len(self.sample) == 0:
            raise HapError(
                "no features to evaluate: the query and gallery images were not run through the model"
            )
        query, gallery = self._samples(query=True), self._samples(query=False)
        ranking = self._rank(query, gallery)
        self._result = ranking, query, gallery
        values = _measures(ranking)
        if self.rerank:
            features = query.features, gallery.features
            if self.distance == "cosine":
                features = F.normalize(query.features), F.normalize(gallery.features)
            distances = k_reciprocal_rerank(*features)
            labels = self._labels(query, gallery)
            reranked = evaluate_distances(distances, *labels, block_size=self.block_size)
            values |= {f"rerank_{name}": value for name, value in _measures(reranked).items()}
        counts = (ranking.num_valid, ranking.num_skipped, len(gallery.ids))
        return values | dict(
            zip(("num_valid", "num_skipped", "num_gallery"), map(float, counts), strict=True)
        )

    def ranking(self) -> Ranking:
        """Results per query of the last `compute`, queries in the order of their index."""
        return self._computed_result()[0]

    def ranked_lists(self, num_queries: int, k: int = 10, *, best: bool = False) -> RankedLists:
        """Lists of the queries with the lowest average precision, worst first, or with the highest, best first,
        after `compute`. There is none for a skipped query."""
        ranking, query, gallery = self._computed_result()
        order = (-ranking.ap if best else ranking.ap).argsort(stable=True)  # NaN comes last
        chosen = order[: min(num_queries, ranking.num_valid)]
        features, ids, cams, sample = (values[chosen.to(values.device)] for values in query)
        index, distance = top_matches(
            features,
            gallery.features,
            *self._labels(_Samples(features, ids, cams, sample), gallery),
            k=k,
            distance=self.distance,
            block_size=self.block_size,
        )
        missing = index < 0
        return RankedLists(
            query=sample,
            ap=ranking.ap[chosen],
            gallery=gallery.sample[index].masked_fill(missing, -1),
            distance=distance,
            match=(gallery.ids[index] == ids[:, None]) & ~missing,
        )

    def reset(self) -> None:
        super().reset()
        self._result = None

    def _samples(self, *, query: bool) -> _Samples:
        """The queries or the gallery, sorted by index, each index once."""
        chosen = (dim_zero_cat(self.is_query) == query).nonzero().squeeze(1)
        index, order = dim_zero_cat(self.sample)[chosen].sort(stable=True)
        first = index.diff(prepend=index.new_tensor([-1])) != 0
        rows = chosen[order[first]]
        return _Samples(
            *(dim_zero_cat(state)[rows] for state in (self.features, self.ids, self.cams, self.sample))
        )

    def _rank(self, query: _Samples, gallery: _Samples) -> Ranking:
        labels = self._labels(query, gallery)
        options: dict[str, Any] = {"distance": self.distance, "block_size": self.block_size}
        return evaluate_ranking(query.features, gallery.features, *labels, **options)

    def _labels(self, query: _Samples, gallery: _Samples) -> _Labels:
        """Identities and cameras, of queries and gallery."""
        return query.ids, gallery.ids, query.cams, gallery.cams

    def _computed_result(self) -> tuple[Ranking, _Samples, _Samples]:
        if self._result is None:
            raise RuntimeError("call compute() first")
        return self._result


def _measures(ranking: Ranking) -> dict[str, float]:
    return {"mAP": ranking.mAP, "mINP": ranking.mINP} | {f"rank{k}": ranking.rank(k) for k in (1, 5, 10)}
