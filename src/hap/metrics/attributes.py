"""How well yes-or-no answers to many questions agree with the labels.

Two views of one table (Li et al., 2016, "A richly annotated dataset for pedestrian attribute recognition"): by
attribute, mA is the mean over the attributes of the mean of two recalls, that of yes and that of no; by image,
accuracy is intersection over union of the answers yes (true negatives never count), with precision, recall and F1.

Legend: N images, A attributes; labels 1 yes, 0 no, -1 unknown, which counts nowhere (the official code takes it for
no in the measures by image); probabilities from 0 to 1, compared in float32. A ratio 0/0 is 0, as in the official code.
Counts are integers, ratios float64.
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
    unknown: Tensor
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
    """Yes where a probability is above its threshold, not at it: bool (N, A).

    Raises:
        HapError: a threshold is no probability, or there is not one for each attribute.
    """
    thresholds = torch.as_tensor(threshold, dtype=torch.float32, device=probability.device)
    if not ((thresholds >= 0) & (thresholds <= 1)).all():
        raise HapError(f"a threshold is a probability from 0 to 1, got {threshold}")
    if thresholds.shape not in ((), probability.shape[1:]):
        raise HapError(f"{thresholds.numel()} thresholds for {probability.shape[1]} attributes")
    return probability.float() > thresholds


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
    counts = yes.sum(0), (labels == 0).sum(0), (labels < 0).sum(0)
    return Scores(*counts, pos_recall, neg_recall, (pos_recall + neg_recall) / 2, precision, f1, ap)


def image_scores(probability: Tensor, labels: Tensor, threshold: Threshold = 0.5) -> dict[str, float]:
    """`accuracy`, `precision`, `recall`: means over the images that have a known label; one without a yes, true or
    said, counts as 0. `F1` is of the two means, not the mean of the images'."""
    known = labels >= 0
    said, yes = decide(probability, threshold) & known, labels > 0
    both = (said & yes).sum(1)
    some = known.any(1)
    accuracy, precision, recall = (
        _mean(_ratio(both, out_of.sum(1))[some]) for out_of in (said | yes, said, yes)
    )
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"accuracy": accuracy, "precision": precision, "recall": recall, "F1": f1}


def average_precision(probability: Tensor, labels: Tensor) -> Tensor:
    """Area under precision over recall as a sum over the distinct probabilities, float64 (A,); nan without a yes."""
    # Unknown ones below all others: in no set of images above a threshold.
    ascending, order = probability.masked_fill(labels < 0, -1).T.contiguous().sort()  # (A, N)
    yes = (labels > 0).T.gather(1, order)
    below = torch.searchsorted(ascending, ascending)  # images with a lower probability
    found = yes.sum(1, keepdim=True) - (yes.cumsum(1) - yes.long()).gather(1, below)
    precision = found.double() / (yes.shape[1] - below)
    area = (precision * yes).cpu().numpy().sum(1)  # by NumPy as in `_mean`
    return torch.from_numpy(area).to(yes.device) / yes.sum(1)


def best_thresholds(probability: Tensor, labels: Tensor) -> Tensor:
    """For each attribute the threshold with the highest mean of the two recalls, float32 (A,).

    All thresholds between two neighbouring probabilities are alike: the middle stands for them, or 0.5 where it is
    among them. Of equals it is the nearest to 0.5; and 0.5 where one of the recalls is undefined.
    """
    beyond = 2.0  # unknown ones come last, above every threshold
    ordered, order = probability.float().masked_fill(labels < 0, beyond).T.contiguous().sort()  # (A, N)
    labels = labels.T.gather(1, order)
    yes, no = labels > 0, labels == 0
    edge = ordered.new_zeros(len(ordered), 1)
    low, high = torch.cat([edge, ordered], 1), torch.cat([ordered, edge + beyond], 1)
    # Threshold k says no to the first k images and yes to the others, k = 0 .. N. In integers: equals are equal.
    num_yes, num_no = yes.sum(1, keepdim=True), no.sum(1, keepdim=True)
    missed, spared = (torch.cat([edge.long(), x.cumsum(1)], 1) for x in (yes, no))
    score = ((num_yes - missed) * num_no + spared * num_yes).masked_fill(low >= high, -1)
    middle = (low + high.clamp(max=1)) / 2
    middle = torch.where(middle < high, middle, low)  # rounding between two neighbouring numbers
    threshold = torch.where((low <= 0.5) & (high > 0.5), 0.5, middle)
    distance = (threshold - 0.5).abs().masked_fill(score < score.amax(1, keepdim=True), torch.inf)
    chosen = threshold.gather(1, distance.argmin(1, keepdim=True))
    return torch.where(num_yes * num_no == 0, 0.5, chosen).squeeze(1)


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
    worst, rows = distance.sort(dim=0, descending=True, stable=True)
    worst, rows = worst[:of_each], rows[:of_each]  # (of_each, A)
    order = worst.flatten().argsort(descending=True, stable=True)
    order = order[worst.flatten()[order] >= 0][:most]
    columns = torch.arange(labels.shape[1], device=rows.device).expand_as(rows)
    return torch.stack([rows.flatten()[order], columns.flatten()[order]], dim=1)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole == 0, 0.0, part.double() / whole)


def _mean(values: Tensor) -> float:
    """By NumPy, whose sums do not depend on the number of threads."""
    return float(values.double().cpu().numpy().mean())


class AttributeMetric(Metric):
    """The measures above over a split, each image counted once: the same on any number of processes and for any
    evaluation batch.

    Args:
        threshold: see `decide`; may be set before `compute`.
        kwargs: of `torchmetrics.Metric`.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    index: list[Tensor]
    probability: list[Tensor]
    labels: list[Tensor]
    loss: list[Tensor]

    def __init__(self, threshold: Threshold = 0.5, **kwargs: Any):
        super().__init__(**kwargs)
        self.threshold = threshold
        for name in ("index", "probability", "labels", "loss"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self._collected: tuple[Tensor, Tensor, Tensor] | None = None

    def update(self, probability: Tensor, labels: Tensor, index: Tensor, loss: Tensor | None = None) -> None:
        """Add N images.

        Args:
            probability: (N, A), from 0 to 1; kept in float32.
            labels: integers (N, A).
            index: integers (N,), position in the data set.
            loss: (N,), of all images or of none.
        """
        self.index.append(index.to(probability.device))
        self.probability.append(probability.detach().float())
        self.labels.append(labels.to(probability.device, torch.int8))
        if loss is not None:
            self.loss.append(loss.detach().float())

    def compute(self) -> dict[str, float]:
        """Fractions `mA`, `accuracy`, `precision`, `recall`, `F1`; `label_F1`, `pos_recall`, `neg_recall`, means over
        the attributes; `AP`, the mean over those somebody has; `images`, those with a known label; `loss` if given,
        their mean. Where recalls are undefined, `undefined_recalls` counts them and `mA_defined` is the mean over the
        others.

        Raises:
            HapError: there are no images, or none with a known label; a probability is none, or a label.
        """
        if len(self.index) == 0:
            raise HapError("no images to evaluate: none were run through the model")
        order, kept = sort_once(dim_zero_cat(self.index))
        states = [self.probability, self.labels, self.index, *([self.loss] if len(self.loss) else [])]
        probability, labels, index, *loss = (dim_zero_cat(state)[order[kept]].cpu() for state in states)
        known = _check(probability, labels, index)
        self._collected = probability, labels, index
        scores = self.scores()
        result = {"mA": scores.mA.mean().item(), **image_scores(probability, labels, self.threshold)}
        result |= {
            "label_F1": scores.f1.mean().item(),
            "pos_recall": scores.pos_recall.mean().item(),
            "neg_recall": scores.neg_recall.mean().item(),
            "AP": scores.ap.nanmean().nan_to_num().item(),
            "images": float(known.sum()),
        }
        if undefined := int(scores.undefined.sum()):
            recalls = torch.stack([scores.pos_recall, scores.neg_recall])
            result["mA_defined"] = recalls[~scores.undefined].mean().item()
            result["undefined_recalls"] = float(undefined)
        if loss:
            result["loss"] = _mean(loss[0][known])
        return result

    def collected(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the last `compute` scored, of all processes: probabilities and labels (N, A) and indices (N,), in the
        order of the index, on the CPU. (The states are those of one process again.)"""
        if self._collected is None:
            raise RuntimeError("call compute() first")
        return self._collected

    def scores(self) -> Scores:
        """By attribute, of the last `compute`."""
        probability, labels, _ = self.collected()
        return label_scores(probability, labels, self.threshold)

    def best_thresholds(self) -> Tensor:
        """Of the last `compute`."""
        probability, labels, _ = self.collected()
        return best_thresholds(probability, labels)

    def reset(self) -> None:
        super().reset()
        self._collected = None


def _check(probability: Tensor, labels: Tensor, index: Tensor) -> Tensor:
    """Which images have a known label, bool (N,)."""
    if (wrong := ~((probability >= 0) & (probability <= 1)).all(1)).any():
        raise HapError(
            f"{int(wrong.sum())} images have answers that are no probabilities, the first is number "
            f"{int(index[wrong][0])} (counted from 0)"
        )
    if (wrong := ((labels < -1) | (labels > 1)).any(1)).any():
        raise HapError(
            f"{int(wrong.sum())} images have labels other than 1, 0 and -1 (unknown), the first is number "
            f"{int(index[wrong][0])} (counted from 0)"
        )
    known = (labels >= 0).any(1)
    if not known.any():
        raise HapError(f"none of the labels of {len(labels):,} images is known: there is nothing to score")
    return known
