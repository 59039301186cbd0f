"""Measures of attributes against worked values, the official implementation and another library."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy.io import loadmat
from torchmetrics.functional.classification import multilabel_average_precision

from hap.errors import HapError
from hap.metrics.attributes import (
    AttributeMetric,
    average_precision,
    best_thresholds,
    confident_mistakes,
    label_scores,
    threshold_curve,
)

DATA = Path(__file__).parent / "data"
NAMES = ("mA", "accuracy", "precision", "recall", "F1")


def scores(probability, labels, threshold=0.5, **options) -> dict[str, float]:
    metric = AttributeMetric()
    metric.threshold = threshold
    metric.update(torch.tensor(probability), torch.tensor(labels), torch.arange(len(labels)), **options)
    return metric.compute()


def random(seed: int, images: int = 200, attributes: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounded, so that many are equal; a few labels are unknown."""
    generator = torch.Generator().manual_seed(seed)
    probability = (torch.rand(images, attributes, generator=generator) * 20).round() / 20
    labels = (torch.rand(images, attributes, generator=generator) < probability * 0.7).to(torch.int8)
    labels[torch.rand(images, attributes, generator=generator) < 0.05] = -1
    return probability, labels


# An attribute without yes, one without no, a probability of exactly 0.5.
LABELS = [[1, 0, 0, 1], [0, 1, 0, 1], [1, 1, 0, 1], [0, 0, 0, 1], [1, 0, 0, 1]]
SAID = [
    *([0.9, 0.2, 0.1, 0.8], [0.6, 0.7, 0.5, 0.9], [0.4, 0.8, 0.6, 0.3]),
    *([0.1, 0.5, 0.2, 0.51], [0.7, 0.9, 0.3, 0.2]),
]


def test_worked_by_hand():
    result = scores(SAID, LABELS)
    assert [result[name] for name in NAMES] == pytest.approx(
        [0.529167, 0.65, 0.733333, 0.766667, 0.749630], abs=1e-6
    )
    by_attribute = label_scores(torch.tensor(SAID), torch.tensor(LABELS))
    assert by_attribute.pos_recall.tolist() == pytest.approx([2 / 3, 1, 0, 0.6])
    assert by_attribute.neg_recall.tolist() == pytest.approx([0.5, 2 / 3, 0.8, 0])
    assert by_attribute.precision.tolist() == pytest.approx([2 / 3, 2 / 3, 0, 1])
    assert by_attribute.f1.tolist() == pytest.approx([2 / 3, 0.8, 0, 0.75])


def test_images_without_a_yes_count_as_0():
    labels = [[0, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 1]]
    said = [[0.1, 0.2, 0.3], [0.9, 0.8, 0.1], [0.2, 0.3, 0.4], [0.9, 0.6, 0.7]]
    result = scores(said, labels)
    assert [result[name] for name in NAMES] == pytest.approx(
        [0.833333, 0.416667, 0.416667, 0.5, 0.454545], abs=1e-6
    )


def test_agrees_with_the_official_measures():
    with np.load(DATA / "attribute_metric.npz") as file:
        expected = {name: file[name] for name in file.files}
    result = scores(expected["prob"], expected["gt"])
    official = ("ma", "instance_acc", "instance_prec", "instance_recall", "instance_f1")
    assert [result[name] for name in NAMES] == pytest.approx(
        [float(expected[n]) for n in official], rel=1e-12
    )
    by_attribute = label_scores(torch.from_numpy(expected["prob"]), torch.from_numpy(expected["gt"]))
    for name, theirs in (
        ("mA", "ma"),
        ("f1", "f1"),
        ("pos_recall", "pos_recall"),
        ("neg_recall", "neg_recall"),
        ("precision", "prec"),
    ):
        assert getattr(by_attribute, name).tolist() == pytest.approx(
            expected[f"label_{theirs}"].tolist(), rel=1e-12
        ), name


@pytest.mark.skipif("HAP_SAMPLES" not in os.environ, reason="needs the annotation file of PA-100K")
def test_on_the_labels_of_pa100k():
    file = loadmat(Path(os.environ["HAP_SAMPLES"]) / "pa100k" / "annotation.mat")
    columns = [*range(7, 9), *range(13, 26), *range(9, 13), 1, 2, 3, 0, 4, 5, 6]
    labels = file["test_label"].astype(int)[:, columns]
    share = np.concatenate([file["train_label"], file["val_label"]])[:, columns].mean(0)
    majority = scores(np.broadcast_to(share.astype(np.float32), labels.shape).copy(), labels)
    assert [majority[name] for name in NAMES] == pytest.approx(
        [0.5, 0.357728, 0.730633, 0.401126, 0.517912], abs=1e-6
    )
    everything = scores(np.ones(labels.shape, np.float32), labels)
    assert [everything[name] for name in NAMES] == pytest.approx(
        [0.5, 0.214773, 0.214773, 1, 0.353602], abs=1e-6
    )
    i, j = np.indices(labels.shape)
    flipped = np.where((7 * i + 13 * j) % 20 == 0, 1 - labels, labels)
    assert [scores(flipped.astype(np.float32), labels)[name] for name in NAMES] == pytest.approx(
        [0.948957, 0.801520, 0.842670, 0.950214, 0.893217], abs=1e-6
    )


def test_unknown_labels_count_nowhere():
    """Coded as positive 1, negative -1, unknown 0 in the file: y = 1, -1, -1, 0, 1."""
    result = scores([[0.9], [0.2], [0.7], [0.9], [0.4]], [[1], [0], [0], [-1], [1]])
    assert (result["pos_recall"], result["neg_recall"], result["mA"], result["images"]) == (0.5, 0.5, 0.5, 4)
    assert "undefined_recalls" not in result
    assert result["precision"] == 0.25  # of the four images: 1, 0, 0, 0
    two = scores([[0.9, 0.9], [0.1, 0.9]], [[1, -1], [0, 1]])  # an unknown answer is neither right nor wrong
    assert two["accuracy"] == two["precision"] == two["recall"] == 1


def test_nothing_to_find():
    """Of four attributes, two have no yes and two no no; every answer is right."""
    result = scores([[0.0, 1, 0, 1]], [[0, 1, 0, 1]])
    assert (result["mA"], result["mA_defined"], result["undefined_recalls"]) == (0.5, 1.0, 4)
    assert all(np.isfinite(value) for value in result.values())
    undefined = label_scores(torch.tensor([[0.0, 1, 0, 1]]), torch.tensor([[0, 1, 0, 1]])).undefined
    assert undefined.tolist() == [[True, False, True, False], [False, True, False, True]]


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_the_usual_one(seed):
    probability, labels = random(seed)
    labels[labels < 0] = 0
    expected = multilabel_average_precision(probability, labels.int(), labels.shape[1], average=None)
    torch.testing.assert_close(average_precision(probability, labels).float(), expected)


@pytest.mark.parametrize("seed", range(3))
def test_best_thresholds_are_the_best_of_all(seed):
    probability, labels = random(seed, images=40)
    labels[:, 5] = 0  # nobody has it
    chosen = best_thresholds(probability, labels)
    reached = label_scores(probability, labels, chosen).mA
    for j in range(5):
        every = [-1e-6, *np.unique(probability[:, j].numpy()), 0.5]
        possible = {float(t): label_scores(probability, labels, float(t)).mA[j].item() for t in every}
        assert reached[j].item() == pytest.approx(max(possible.values()))
        assert (chosen[j] == 0.5) or possible[0.5] < max(possible.values())
    assert chosen[5] == 0.5
    assert ((chosen >= 0) & (chosen < 1)).all()


def test_a_threshold_lies_between_neighbours():
    said, labels = torch.tensor([[0.1], [0.2], [0.3], [0.9]]), torch.tensor([[0], [0], [1], [1]])
    assert best_thresholds(said, labels).item() == pytest.approx(0.25)
    assert scores(said.tolist(), labels.tolist(), best_thresholds(said, labels))["mA"] == 1


def test_thresholds_of_each_attribute():
    result = scores(SAID, LABELS, threshold=torch.tensor([0.65, 0.5, 0.55, 0.25]))
    said = np.array(SAID) > np.array([0.65, 0.5, 0.55, 0.25])
    both = (said & np.array(LABELS, bool)).sum(1)
    assert result["precision"] == pytest.approx(np.mean(both / said.sum(1)))


def test_order_batches_and_repeats_do_not_matter():
    probability, labels = random(0)
    loss = torch.arange(200.0)
    whole = AttributeMetric()
    whole.update(probability, labels, torch.arange(200), loss)
    metric = AttributeMetric()
    order = torch.from_numpy(np.random.default_rng(0).permutation(200))
    for rows in (*order.split(7), order[:9]):
        metric.update(probability[rows], labels[rows], rows, loss[rows])
    assert metric.compute() == whole.compute()
    assert metric.compute()["loss"] == pytest.approx(99.5)


@pytest.mark.parametrize("value", [float("nan"), 1.5, -0.1])
def test_what_is_no_probability_is_named(value):
    with pytest.raises(
        HapError, match="1 images have answers that are no probabilities, the first is number 2"
    ):
        scores([[0.1], [0.2], [value]], [[0], [0], [1]])


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_evaluated():
    with pytest.raises(HapError, match="no images to evaluate"):
        AttributeMetric().compute()


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    probability, labels = random(1, images=51)
    rows = torch.arange(rank, 52, 2) % 51  # padded with the first
    metric = AttributeMetric()
    metric.update(probability[rows], labels[rows], rows)
    torch.save(metric.compute(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    torch.multiprocessing.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    probability, labels = random(1, images=51)
    metric = AttributeMetric()
    metric.update(probability, labels, torch.arange(51))
    assert torch.load(tmp_path / "0.pt") == torch.load(tmp_path / "1.pt") == metric.compute()


def test_curve_over_thresholds():
    curve = threshold_curve(torch.tensor(SAID), torch.tensor(LABELS))
    assert curve.shape == (101, 3)
    assert curve[50].tolist() == pytest.approx([0.5, 0.529167, 0.749630], abs=1e-6)
    assert curve[100, 2] == 0


def test_confident_mistakes():
    """The worst first, not all of one attribute."""
    said = torch.tensor([[0.99, 0.1], [0.98, 0.4], [0.97, 0.2], [0.2, 0.9]])
    labels = torch.tensor([[0, 0], [0, 1], [0, -1], [0, 1]])
    assert confident_mistakes(said, labels).tolist() == [[0, 0], [1, 0], [1, 1]]
    assert confident_mistakes(said, labels, most=1).tolist() == [[0, 0]]
    assert confident_mistakes(said[3:], labels[3:]).tolist() == []
