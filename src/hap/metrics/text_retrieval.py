"""Sentences look for images: the scores of text-to-image person ReID."""

import torch

from hap.metrics.ranking import Ranking, evaluate_ranking
from hap.metrics.retrieval import RetrievalMetric, _Labels, _Samples


class TextRetrieval(RetrievalMetric):
    """`RetrievalMetric` of captions (queries) and images (gallery), an image by its number as the camera of both.

    Every image of the person is right, the caption's own, too. `compute` adds `mAP_trapz`, the average precision of the
    official code, and as `other_*` its second protocol, printed as "wm": without the caption's own image, and without
    captions that have no other.
    """

    def compute(self) -> dict[str, float]:
        values = super().compute()
        ranking, query, gallery = self._computed_result()
        values["mAP_trapz"] = ranking.mAP_trapezoid
        count = torch.bincount(gallery.ids, minlength=int(query.ids.max()) + 1)
        if (count[query.ids] > 1).any():
            other = self._without_own(query, gallery)
            values |= {f"other_rank{k}": other.rank(k) for k in (1, 5, 10)}
            values |= {"other_mAP": other.mAP, "other_mAP_trapz": other.mAP_trapezoid}
        return values

    def _labels(self, query: _Samples, gallery: _Samples) -> _Labels:
        return query.ids, gallery.ids, None, None

    def _without_own(self, query: _Samples, gallery: _Samples) -> Ranking:
        labels = super()._labels(query, gallery)
        return evaluate_ranking(
            query.features, gallery.features, *labels, distance=self.distance, block_size=self.block_size
        )
