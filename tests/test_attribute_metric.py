"""Measures of attributes against worked values, the official implementation, literal loops and another library."""

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy.io import loadmat
from torchmetrics.functional.classification import binary_average_precision

from hap.errors import HapError
from hap.metrics.attributes import (
    AttributeMetric,
    average_precision,
    best_thresholds,
    confident_mistakes,
    decide,
    label_scores,
    threshold_curve,
)

DATA = Path(__file__).parent / "data"
NAMES = ("mA", "accuracy", "precision", "recall", "F1")

# An attribute without yes, one without no, a probability of exactly 0.5.
LABELS = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 1], [1, 1, 0, 1], [0, 0, 0, 1], [1, 0, 0, 1]])
SAID = torch.tensor(
    [[0.9, 0.2, 0.1, 0.8], [0.6, 0.7, 0.5, 0.9], [0.4, 0.8, 0.6, 0.3], [0.1, 0.5, 0.2, 0.51],
     [0.7, 0.9, 0.3, 0.2]]
)  # fmt: skip


def filled(probability, labels, threshold=0.5, **options) -> AttributeMetric:
    metric = AttributeMetric(threshold)
    metric.update(probability, labels, torch.arange(len(labels)), **options)
    return metric


def scores(*args, **options) -> dict[str, float]:
    return filled(*args, **options).compute()


def random(seed: int = 0, images: int = 200, levels: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Many equal probabilities, unknown labels; nobody has the second of seven attributes, everybody the third, and
    of the fourth image nothing is known."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 2, (images, 7), generator=generator)
    noise = torch.randint(0, levels + 1, labels.shape, generator=generator) / levels
    probability = (noise + 0.25 * labels).clamp(0, 1)
    labels[:, 1].clamp_(max=0)
    labels[:, 2] = labels[:, 2].masked_fill(labels[:, 2] == 0, 1)
    labels[3] = -1
    return probability, labels


def ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def literal(probability, labels, thresholds) -> dict[str, float]:
    """The measures, one decision at a time."""
    p, y, t = probability.tolist(), labels.tolist(), thresholds.tolist()
    recalls, instance = [], []
    for a in range(len(t)):
        for value in (1, 0):
            rows = [i for i in range(len(y)) if y[i][a] == value]
            right = sum((p[i][a] > t[a]) == (value == 1) for i in rows)
            recalls.append((ratio(right, len(rows)), bool(rows)))
    for i in range(len(y)):
        known = [a for a in range(len(t)) if y[i][a] >= 0]
        said, true = {a for a in known if p[i][a] > t[a]}, {a for a in known if y[i][a] == 1}
        if known:
            both = len(said & true)
            instance.append((ratio(both, len(said | true)), ratio(both, len(said)), ratio(both, len(true))))
    accuracy, precision, recall = np.mean(instance, axis=0)
    return {
        "mA": np.mean([r for r, _ in recalls]),
        "mA_defined": np.mean([r for r, defined in recalls if defined]),
        "undefined_recalls": sum(not defined for _, defined in recalls),
        "pos_recall": np.mean([r for r, _ in recalls[::2]]),
        "neg_recall": np.mean([r for r, _ in recalls[1::2]]),
        "accuracy": accuracy,
        "precision": precision,
        "recall": recall,
        "F1": 2 * precision * recall / (precision + recall),
        "images": len(instance),
    }


def literal_ap(p: list[float], y: list[int]) -> float:
    """Area below the steps of precision over recall, a step for each distinct probability."""
    pairs = [(a, b) for a, b in zip(p, y, strict=True) if b >= 0]
    total, area, before = sum(b for _, b in pairs), 0.0, 0.0
    for level in sorted({a for a, _ in pairs}, reverse=True):
        above = [b for a, b in pairs if a >= level]
        area += (sum(above) / total - before) * sum(above) / len(above)
        before = sum(above) / total
    return area


# --- worked values ------------------------------------------------------------------------------------------


def test_worked_by_hand():
    metric = filled(SAID, LABELS)
    result = metric.compute()
    assert [result[name] for name in NAMES] == pytest.approx(
        [0.529167, 0.65, 0.733333, 0.766667, 0.749630], abs=1e-6
    )
    assert result["label_F1"] == pytest.approx((2 / 3 + 0.8 + 0.75) / 4)
    assert result["undefined_recalls"] == 2
    assert result["mA_defined"] == pytest.approx((2 / 3 + 1 + 0.6 + 0.5 + 2 / 3 + 0.8) / 6)
    expected = {
        "positives": [3, 2, 0, 5],
        "negatives": [2, 3, 5, 0],
        "unknown": [0, 0, 0, 0],
        "pos_recall": [2 / 3, 1, 0, 0.6],
        "neg_recall": [0.5, 2 / 3, 0.8, 0],
        "mA": [0.583333, 0.833333, 0.4, 0.3],
        "precision": [2 / 3, 2 / 3, 0, 1],
        "f1": [2 / 3, 0.8, 0, 0.75],
    }
    for name, values in expected.items():
        assert getattr(metric.scores(), name).tolist() == pytest.approx(values, abs=1e-6), name


def test_images_without_a_yes_count_as_0():
    labels = torch.tensor([[0, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 1]])
    said = torch.tensor([[0.1, 0.2, 0.3], [0.9, 0.8, 0.1], [0.2, 0.3, 0.4], [0.9, 0.6, 0.7]])
    result = scores(said, labels)
    assert [result[name] for name in NAMES] == pytest.approx(
        [0.833333, 0.416667, 0.416667, 0.5, 0.454545], abs=1e-6
    )
    assert not {"undefined_recalls", "mA_defined"} & set(result)


def test_agrees_with_the_official_measures():
    with np.load(DATA / "attribute_metric.npz") as file:
        expected = {name: file[name] for name in file.files}
    assert (expected["prob"] == 0.5).any()
    metric = filled(torch.from_numpy(expected["prob"]), torch.from_numpy(expected["gt"]))
    result = metric.compute()
    official = ("ma", "instance_acc", "instance_prec", "instance_recall", "instance_f1")
    assert [result[name] for name in NAMES] == pytest.approx(
        [float(expected[n]) for n in official], rel=1e-12
    )
    for name, theirs in (
        ("mA", "ma"),
        ("f1", "f1"),
        ("pos_recall", "pos_recall"),
        ("neg_recall", "neg_recall"),
        ("precision", "prec"),
    ):
        assert getattr(metric.scores(), name).tolist() == pytest.approx(
            expected[f"label_{theirs}"].tolist(), rel=1e-12
        ), name


@pytest.mark.skipif("HAP_SAMPLES" not in os.environ, reason="needs the annotation file of PA-100K")
def test_on_the_labels_of_pa100k():
    file = loadmat(Path(os.environ["HAP_SAMPLES"]) / "pa100k" / "annotation.mat")
    columns = [*range(7, 9), *range(13, 26), *range(9, 13), 1, 2, 3, 0, 4, 5, 6]
    labels = torch.from_numpy(file["test_label"][:, columns].astype(int))
    share = np.concatenate([file["train_label"], file["val_label"]])[:, columns].mean(0)
    i, j = np.indices(labels.shape)
    for said, expected in (
        (torch.from_numpy(share).float().expand(labels.shape), (0.5, 0.357728, 0.730633, 0.401126, 0.517912)),
        (torch.ones(labels.shape), (0.5, 0.214773, 0.214773, 1, 0.353602)),
        (torch.zeros(labels.shape), (0.5, 0, 0, 0, 0)),
        (
            (labels ^ torch.from_numpy((7 * i + 13 * j) % 20 == 0)).float(),
            (0.948957, 0.801520, 0.842670, 0.950214, 0.893217),
        ),
    ):
        result = scores(said, labels)
        assert [result[name] for name in NAMES] == pytest.approx(expected, abs=1e-6)
        assert result["images"] == 10_000


def test_unknown_labels_count_nowhere():
    """Coded as positive 1, negative -1, unknown 0 in the file: y = 1, -1, -1, 0, 1."""
    metric = filled(
        torch.tensor([[0.9], [0.2], [0.7], [0.9], [0.4]]), torch.tensor([[1], [0], [0], [-1], [1]])
    )
    result = metric.compute()
    assert (result["pos_recall"], result["neg_recall"], result["mA"], result["images"]) == (0.5, 0.5, 0.5, 4)
    assert "undefined_recalls" not in result
    assert result["precision"] == 0.25  # of the four images: 1, 0, 0, 0
    assert metric.scores().unknown.tolist() == [1]
    two = scores(torch.tensor([[0.9, 0.9], [0.1, 0.9]]), torch.tensor([[1, -1], [0, 1]]))
    assert two["accuracy"] == two["precision"] == two["recall"] == 1  # neither right nor wrong


def test_nothing_to_find():
    """Of four attributes, two have no yes and two no no; every answer is right."""
    metric = filled(torch.tensor([[0.0, 1, 0, 1]]), torch.tensor([[0, 1, 0, 1]]))
    result = metric.compute()
    assert (result["mA"], result["mA_defined"], result["undefined_recalls"]) == (0.5, 1.0, 4)
    assert metric.scores().undefined.tolist() == [[True, False, True, False], [False, True, False, True]]
    nobody = scores(SAID, torch.zeros_like(LABELS))
    assert nobody["AP"] == 0
    assert all(math.isfinite(value) for value in (*result.values(), *nobody.values()))


# --- against loops and another library ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_measures_against_literal_loops(seed):
    probability, labels = random(seed)
    thresholds = torch.tensor([0.5, 0.25, 0.75, 0.3, 0.0, 1.0, 0.5])
    result = scores(probability, labels, thresholds)
    for name, value in literal(probability, labels, thresholds).items():
        assert result[name] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("levels", [3, 20, 10_000])
def test_average_precision_is_the_usual_one(levels):
    probability, labels = random(levels=levels)
    ap = average_precision(probability, labels)
    assert ap.isnan().tolist() == [False, True, *[False] * 5]
    for a in (0, *range(2, 7)):
        p, y = probability[:, a], labels[:, a]
        assert ap[a].item() == pytest.approx(literal_ap(p.tolist(), y.tolist()), abs=1e-12)
        theirs = binary_average_precision(p[y >= 0], y[y >= 0])
        assert ap[a].item() == pytest.approx(theirs.item(), abs=1e-5)
    assert scores(probability, labels)["AP"] == pytest.approx(ap.nanmean().item())


def test_thresholds_are_compared_in_float32():
    """The float32 next to 0.3 is above the float64 0.3, but it is how 0.3 is written."""
    at = torch.full((1, 1), 0.3)
    assert not decide(at, 0.3)
    assert decide(at.nextafter(torch.ones(())), 0.3)
    assert not decide(at, torch.tensor([0.3], dtype=torch.float64))


# --- thresholds ---------------------------------------------------------------------------------------------


def mean_recall(p, y, threshold: float) -> float:
    p, y = p[y >= 0], y[y >= 0]
    return ((p[y == 1] > threshold).double().mean() + (p[y == 0] <= threshold).double().mean()).item() / 2


@pytest.mark.parametrize("seed", range(4))
def test_best_thresholds_are_the_best_of_all(seed):
    probability, labels = random(seed, images=60)
    if seed == 3:
        probability = 1 - probability  # worse than chance: it is best to say one thing of all
    best = best_thresholds(probability, labels)
    assert best[[1, 2]].tolist() == [0.5, 0.5]  # undefined
    for a in (0, 3, 4, 5, 6):
        p, y = probability[:, a], labels[:, a]
        levels = sorted({0.0, 1.0, *p[y >= 0].tolist()})
        every = [0.5, 1.0, *((low + high) / 2 for low, high in itertools.pairwise(levels))]
        recalls = {t: mean_recall(p, y, t) for t in every}
        highest = max(recalls.values())
        assert mean_recall(p, y, best[a].item()) == pytest.approx(highest)
        nearest = min(abs(t - 0.5) for t, value in recalls.items() if value > highest - 1e-9)
        assert abs(best[a].item() - 0.5) == pytest.approx(nearest, abs=1e-6)


@pytest.mark.parametrize(
    ("p", "y", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], 0.25),  # halfway
        ([0.1, 0.8], [0, 1], 0.5),  # 0.5 is as good
        ([0.5, 0.8], [0, 1], 0.5),  # at the threshold is below it
        ([0.2, 0.5], [0, 1], 0.35),
        ([0.6, 0.7], [1, 0], 0.5),  # nothing is told apart: yes to all
        ([0.2, 0.4], [1, 0], 0.5),  # and here no to all
        ([0.1, 0.5, 0.2, 0.3, 0.9], [0, 1, -1, -1, -1], 0.3),  # unknown ones are no neighbours
        ([0.0, 0.0], [0, 1], 0.5),
        ([1.0, 1.0], [0, 1], 0.5),
        ([0.2, 0.9], [1, 1], 0.5),  # undefined
        ([0.2, 0.9], [-1, 0], 0.5),
    ],
)
def test_best_threshold_by_hand(p, y, expected):
    best = best_thresholds(torch.tensor([p]).T, torch.tensor([y], dtype=torch.int8).T)
    assert best.dtype == torch.float32
    assert best.item() == pytest.approx(expected)


def test_best_threshold_between_neighbouring_numbers():
    low = torch.tensor(0.7)
    said = torch.stack([low, low.nextafter(torch.ones(()))])[:, None]
    labels = torch.tensor([[0], [1]])
    assert scores(said, labels, best_thresholds(said, labels))["mA"] == 1


def test_curve_over_thresholds():
    curve = threshold_curve(SAID, LABELS)
    assert curve.shape == (101, 3)
    assert curve[50].tolist() == pytest.approx([0.5, 0.529167, 0.749630], abs=1e-6)
    assert curve[100, 2] == 0
    probability, labels = random()
    for threshold, mA, f1 in threshold_curve(probability, labels, 11).tolist():
        result = scores(probability, labels, threshold)
        assert (mA, f1) == pytest.approx((result["mA"], result["F1"]), abs=1e-12)


def test_confident_mistakes():
    """The worst first, not all of one attribute."""
    said = torch.tensor([[0.99, 0.1], [0.98, 0.4], [0.97, 0.2], [0.2, 0.9]])
    labels = torch.tensor([[0, 0], [0, 1], [0, -1], [0, 1]])
    assert confident_mistakes(said, labels).tolist() == [[0, 0], [1, 0], [1, 1]]
    assert confident_mistakes(said, labels, most=1).tolist() == [[0, 0]]
    assert confident_mistakes(said[3:], labels[3:]).tolist() == []
    sure = torch.ones(300, 2)  # of equals the first
    assert confident_mistakes(sure, 0 * sure.long()).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_confident_mistakes_are_all_that_is_wrong():
    probability, labels = random()
    found = confident_mistakes(probability, labels, 0.4, most=10_000, of_each=10_000).tolist()
    wrong = [
        [i, a]
        for i, a in itertools.product(range(200), range(7))
        if labels[i, a] >= 0 and (probability[i, a] > 0.4) != (labels[i, a] == 1)
    ]
    assert sorted(found) == wrong
    distance = [abs(probability[i, a] - labels[i, a]).item() for i, a in found]
    assert distance == sorted(distance, reverse=True)


def test_ten_thousand_images_take_no_time():
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(10_000, 51, generator=generator)
    labels = (torch.rand(10_000, 51, generator=generator) < probability).long()
    assert (best_thresholds(probability, labels) - 0.5).abs().max() < 0.2
    assert label_scores(probability, labels).mA.mean() == pytest.approx(0.75, abs=0.01)


# --- the metric ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 64, 300])
def test_order_batches_and_repeats_do_not_matter(size):
    probability, labels = random()
    loss = torch.arange(200.0)
    whole = filled(probability, labels, loss=loss)
    metric = AttributeMetric()
    order = torch.from_numpy(np.random.default_rng(0).permutation(200))
    for rows in (*order.split(size), order[:9]):
        metric.update(probability[rows], labels[rows], rows, loss[rows])
    result = metric.compute()
    assert result == whole.compute()
    assert all(type(value) is float for value in result.values())
    assert result["images"] == 199
    assert result["loss"] == pytest.approx((loss.sum().item() - 3) / 199)  # without the image nobody labelled
    for ours, given in zip(
        metric.collected(), (probability, labels.to(torch.int8), order.sort()[0]), strict=True
    ):
        assert torch.equal(ours, given)
    assert torch.equal(metric.best_thresholds(), best_thresholds(probability, labels))
    metric.reset()
    with pytest.raises(RuntimeError):
        metric.scores()


def test_threshold_can_be_set_before_compute():
    metric = filled(SAID, LABELS, threshold=0.3)
    metric.threshold = torch.tensor([0.65, 0.5, 0.55, 0.25])
    result = metric.compute()
    both = (metric.threshold < SAID) & LABELS.bool()
    said = metric.threshold < SAID
    assert result["precision"] == pytest.approx((both.sum(1) / said.sum(1)).mean().item())
    assert "loss" not in result


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1 + rank)
    try:
        probability, labels = random(1, images=51)
        loss = probability[:, 0]
        rows = torch.arange(rank, 52, 2) % 51  # padded with the first
        saved = []
        for options in ({}, {"loss": loss[rows]}):
            metric = AttributeMetric()
            metric.update(probability[rows], labels[rows], rows, **options)
            saved.append((metric.compute(), *metric.collected(), metric.best_thresholds()))
        torch.save(saved, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow  # as of the features of re-identification
def test_two_processes_equal_one(tmp_path):
    """Also in what is asked for after `compute`: each process has the images of both."""
    torch.multiprocessing.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    probability, labels = random(1, images=51)
    for number, options in enumerate(({}, {"loss": probability[:, 0]})):
        metric = filled(probability, labels, **options)
        expected = metric.compute()
        for rank in (0, 1):
            theirs, *collected, best = torch.load(tmp_path / f"{rank}.pt")[number]
            assert theirs == expected
            assert all(map(torch.equal, collected, metric.collected()))
            assert torch.equal(best, metric.best_thresholds())


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.5, -0.1])
def test_what_is_no_probability_is_named(value):
    said = SAID.clone()
    said[3, 1] = value
    metric = AttributeMetric()
    metric.update(said, LABELS, torch.tensor([4, 8, 6, 70, 90]))
    with pytest.raises(
        HapError, match="1 images have answers that are no probabilities, the first is number 70"
    ):
        metric.compute()


def test_what_is_no_label_is_named():
    labels = LABELS.clone()
    labels[1:, 2] = 2
    with pytest.raises(
        HapError, match=r"4 images have labels other than 1, 0 and -1 .* the first is number 1"
    ):
        scores(SAID, labels)
    with pytest.raises(HapError, match="none of the labels of 5 images is known"):
        scores(SAID, torch.full_like(LABELS, -1))


def test_wrong_thresholds():
    for threshold in (1.5, math.nan, torch.tensor([0.5, 0.5, 0.5, -0.1])):
        with pytest.raises(HapError, match="a threshold is a probability from 0 to 1"):
            scores(SAID, LABELS, threshold)
    with pytest.raises(HapError, match="3 thresholds for 4 attributes"):
        scores(SAID, LABELS, torch.full((3,), 0.5))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_evaluated():
    with pytest.raises(HapError, match="no images to evaluate"):
        AttributeMetric().compute()
