"""How well yes-or-no answers to many questions agree with the labels.

Two views of one table (Li et al., 2016, "A richly annotated dataset for pedestrian attribute recognition"): by
attribute, mA is the mean over the attributes of the mean of two recalls, that of yes and that of no; by image,
accuracy is intersection over union of the answers yes (true negatives never count), with precision, recall and F1.

Legend: N images, A attributes; labels 1 yes, 0 no, below 0 unknown, which counts nowhere. A ratio 0/0 is 0, as in the
official code.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from hap.errors import HapError
from hap.metrics.losses import sort_once

Threshold = float | Tensor  # of all attributes, or one of each (A,)


class Scores(NamedTuple):
    """By attribute, float64 (A,); counts are integers. `ap` is nan where nobody has the attribute."""

    positives: Tensor
    negatives: Tensor
    pos_recall: Tensor
    neg_recall: Tensor
    mA: Tensor
    precision: Tensor
    f1: Tensor
    ap: Tensor

    @property
    def undefined(self) -> Tensor:
        """Which recalls, of yes and of no, have nothing to count: bool (2, A)."""
        return torch.stack([self.positives, self.negatives]) == 0


def decide(probability: Tensor, threshold: Threshold = 0.5) -> Tensor:
    """Yes where a probability is above its threshold, not at it: bool (N, A)."""
    threshold = torch.as_tensor(threshold, dtype=probability.dtype, device=probability.device)
    return probability > threshold


def label_recalls(probability: Tensor, labels: Tensor, threshold: Threshold = 0.5) -> Tensor:
    """Of yes and of no, float64 (2, A)."""
    said, yes, no = decide(probability, threshold), labels > 0, labels == 0
    return torch.stack([_ratio((said & yes).sum(0), yes.sum(0)), _ratio((~said & no).sum(0), no.sum(0))])


def label_scores(probability: Tensor, labels: Tensor, threshold: Threshold = 0.5) -> Scores:
    """By attribute, over all images. probability, labels: (N, A)."""
    said, yes = decide(probability, threshold), labels > 0
    pos_recall, neg_recall = label_recalls(probability, labels, threshold)
    precision = _ratio((said & yes).sum(0), (said & (labels >= 0)).sum(0))
    f1 = _ratio(2 * precision * pos_recall, precision + pos_recall)
    ap = average_precision(probability, labels)
    counts = yes.sum(0), (labels == 0).sum(0)
    return Scores(*counts, pos_recall, neg_recall, (pos_recall + neg_recall) / 2, precision, f1, ap)


def image_scores(probability: Tensor, labels: Tensor, threshold: Threshold = 0.5) -> dict[str, float]:
    """`accuracy`, `precision`, `recall`: means over the images that have a known label; one without a yes, true or
    said, counts as 0. `F1` is of the two means, not the mean of the images'."""
    known = labels >= 0
    said, yes = decide(probability, threshold) & known, labels > 0
    both = (said & yes).sum(1)
    some = known.any(1)
    accuracy, precision, recall = (
        _ratio(both, out_of.sum(1))[some].mean().item() for out_of in (said | yes, said, yes)
    )
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"accuracy": accuracy, "precision": precision, "recall": recall, "F1": f1}


def average_precision(probability: Tensor, labels: Tensor) -> Tensor:
    """Area under precision over recall as a sum over the distinct probabilities, float64 (A,)."""
    order = probability.argsort(dim=0, descending=True)
    ordered = probability.gather(0, order)
    labels = labels.gather(0, order)
    found, seen = (labels > 0).double().cumsum(0), (labels >= 0).double().cumsum(0)
    # Of images with one probability the last stands for all: order among them must not matter.
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    at_last = torch.where(last, found, 0).cummax(0).values
    gained = at_last - torch.cat([torch.zeros_like(at_last[:1]), at_last[:-1]])
    return (gained * _ratio(found, seen)).sum(0) / found[-1]


def best_thresholds(probability: Tensor, labels: Tensor) -> Tensor:
    """For each attribute the threshold with the highest mean of the two recalls, (A,).

    All thresholds between two neighbouring probabilities are alike: the middle stands for them, or 0.5 where it is
    among them. Of equals it is the nearest to 0.5; and 0.5 where one of the recalls is undefined.
    """
    ordered, order = probability.sort(dim=0)
    labels = labels.gather(0, order)
    yes, no = (labels > 0).double(), (labels == 0).double()
    edge = torch.zeros_like(yes[:1])
    # Threshold k says no to the first k images and yes to the others, k = 0 .. N.
    pos_recall = 1 - torch.cat([edge, yes.cumsum(0)]) / yes.sum(0)
    neg_recall = torch.cat([edge, no.cumsum(0)]) / no.sum(0)
    low, high = torch.cat([edge.to(ordered), ordered]), torch.cat([ordered, 1 + edge.to(ordered)])
    middle = (low + high) / 2
    middle = torch.where(middle < high, middle, low)  # rounding between two neighbouring numbers
    threshold = torch.where((low <= 0.5) & (high > 0.5), 0.5, middle)
    score = (pos_recall + neg_recall).masked_fill(low >= high, -1)
    distance = (threshold - 0.5).abs().masked_fill(score < score.max(0).values - 1e-12, torch.inf)
    chosen = threshold.gather(0, distance.argmin(0, keepdim=True))[0]
    return torch.where((yes.sum(0) == 0) | (no.sum(0) == 0), 0.5, chosen)


def threshold_curve(probability: Tensor, labels: Tensor, steps: int = 101) -> Tensor:
    """mA and F1 for one threshold of all attributes, from 0 to 1: float64 (steps, 3), the threshold first."""
    rows = []
    for threshold in torch.linspace(0, 1, steps).tolist():
        recalls = label_recalls(probability, labels, threshold)
        f1 = image_scores(probability, labels, threshold)["F1"]
        rows.append((threshold, recalls.mean().item(), f1))
    return torch.tensor(rows, dtype=torch.float64)


def confident_mistakes(
    probability: Tensor, labels: Tensor, threshold: Threshold = 0.5, most: int = 24, of_each: int = 2
) -> Tensor:
    """The wrong answers that are the furthest from the label, at most `of_each` of an attribute, so that one does not
    hide the others: rows and columns, int64 (at most `most`, 2), the worst first."""
    yes = labels > 0
    wrong = (decide(probability, threshold) != yes) & (labels >= 0)
    distance = torch.where(wrong, (probability - yes.to(probability)).abs(), -1)
    worst, rows = distance.topk(min(of_each, len(labels)), dim=0)  # (of_each, A)
    order = worst.flatten().argsort(descending=True, stable=True)
    order = order[worst.flatten()[order] >= 0][:most]
    columns = torch.arange(labels.shape[1], device=rows.device).expand_as(rows)
    return torch.stack([rows.flatten()[order], columns.flatten()[order]], dim=1)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole == 0, 0.0, part.double() / whole)


class AttributeMetric(Metric):
    """The measures above over a split, each image counted once: the same on any number of processes and for any
    evaluation batch.

    Args:
        kwargs: of `torchmetrics.Metric`.

    Attributes:
        threshold: see `decide`; 0.5 unless set.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    index: list[Tensor]
    probability: list[Tensor]
    labels: list[Tensor]
    loss: list[Tensor]

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.threshold: Threshold = 0.5
        for name in ("index", "probability", "labels", "loss"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, probability: Tensor, labels: Tensor, index: Tensor, loss: Tensor | None = None) -> None:
        """Add N images.

        Args:
            probability: (N, A), from 0 to 1; kept in float32.
            labels: integers (N, A).
            index: integers (N,), position in the data set.
            loss: (N,), if known.
        """
        self.index.append(index.to(probability.device))
        self.probability.append(probability.detach().float())
        self.labels.append(labels.to(probability.device, torch.int8))
        loss = torch.full_like(probability[:, 0], torch.nan) if loss is None else loss
        self.loss.append(loss.detach().float())

    def collected(self) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities and labels (N, A) and indices (N,) of all images, in the order of the index.

        Raises:
            HapError: there are none, or a probability is none.
        """
        if len(self.index) == 0:
            raise HapError("no images to evaluate: none were run through the model")
        order, kept = sort_once(dim_zero_cat(self.index))
        rows = order[kept]
        probability, labels, index = (
            dim_zero_cat(state)[rows] for state in (self.probability, self.labels, self.index)
        )
        if (wrong := ~((probability >= 0) & (probability <= 1)).all(1)).any():
            raise HapError(
                f"{int(wrong.sum())} images have answers that are no probabilities, the first is number "
                f"{int(index[wrong][0])} (counted from 0)"
            )
        return probability, labels, index

    def scores(self) -> Scores:
        """By attribute."""
        probability, labels, _ = self.collected()
        return label_scores(probability, labels, self.threshold)

    def compute(self) -> dict[str, float]:
        """Fractions `mA`, `accuracy`, `precision`, `recall`, `F1`; `label_F1`, `pos_recall`, `neg_recall`, means over
        the attributes; `AP`, the mean over those somebody has; `images`, those with a known label; `loss`. Where
        recalls are undefined, `undefined_recalls` counts them and `mA_defined` is the mean over the others."""
        probability, labels, _ = self.collected()
        scores = label_scores(probability, labels, self.threshold)
        result = {"mA": scores.mA.mean().item(), **image_scores(probability, labels, self.threshold)}
        result |= {
            "label_F1": scores.f1.mean().item(),
            "pos_recall": scores.pos_recall.mean().item(),
            "neg_recall": scores.neg_recall.mean().item(),
            "AP": scores.ap.nanmean().item(),
            "images": float((labels >= 0).any(1).sum()),
        }
        if undefined := int(scores.undefined.sum()):
            recalls = torch.stack([scores.pos_recall, scores.neg_recall])
            result["mA_defined"] = recalls[~scores.undefined].mean().item()
            result["undefined_recalls"] = float(undefined)
        order, kept = sort_once(dim_zero_cat(self.index))
        loss = dim_zero_cat(self.loss)[order[kept]]
        return result if loss.isnan().all() else result | {"loss": loss.double().mean().item()}

    def best_thresholds(self) -> Tensor:
        probability, labels, _ = self.collected()
        return best_thresholds(probability, labels)
