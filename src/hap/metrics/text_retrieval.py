"""Sentences look for images: the scores of text-to-image person ReID."""

from typing import Any

from hap.metrics.ranking import Ranking, evaluate_both
from hap.metrics.retrieval import RetrievalMetric, _Labels, _Samples


class TextRetrieval(RetrievalMetric):
    """`RetrievalMetric` of captions (queries) and images (gallery), an image by its number as the camera of both.

    Every image of the person is right, the caption's own, too. `compute` adds `mAP_trapz`, the average precision of the
    official code, and as `other_*` its second protocol, printed as "wm": without the caption's own image, and without
    captions that have no other.
    """

    _other: Ranking

    def compute(self) -> dict[str, float]:
        values = super().compute()
        values["mAP_trapz"] = self.ranking().mAP_trapezoid
        if self._other.num_valid:
            values |= {f"other_rank{k}": self._other.rank(k) for k in (1, 5, 10)}
            values |= {"other_mAP": self._other.mAP, "other_mAP_trapz": self._other.mAP_trapezoid}
        return values

    def _rank(self, query: _Samples, gallery: _Samples) -> Ranking:
        labels: Any = super()._labels(query, gallery)
        ranking, self._other = evaluate_both(
            query.features, gallery.features, *labels, distance=self.distance, block_size=self.block_size
        )
        return ranking

    def _labels(self, query: _Samples, gallery: _Samples) -> _Labels:
        return query.ids, gallery.ids, None, None
