"""What is read off frozen features, against the rules written out; while training, which it must not touch; of files
side by side."""

import csv
import json
import math
import re

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_PRETRAIN, config
from hydra.utils import instantiate

from hap.config import CONF_DIR
from hap.console import print_table
from hap.data.attribute import read_peta
from hap.data.reid import read_market1501
from hap.data.transforms import BICUBIC, BILINEAR, resize
from hap.errors import HapError
from hap.metrics.frozen import answerable, knn_probability, linear_probability, map_2d, standardised
from hap.metrics.ranking import evaluate_ranking
from hap.models.checkpoint import load_weights
from hap.models.masking import STRATEGIES
from hap.models.mim import MaskedAutoencoder
from hap.models.vit import ViT
from hap.plots import Cloud, bars, clouds, draw_attention
from hap.probe import Probe
from hap.runner import run


@pytest.fixture(scope="module")
def problem():
    """80 features to learn from, 30 others, five attributes of which some labels are unknown; one is rare."""
    rng = np.random.default_rng(0)
    features, others = rng.normal(size=(80, 6)), rng.normal(size=(30, 6))
    truth = np.concatenate([features, others]) @ rng.normal(size=(6, 5)) + rng.normal(size=(110, 5))
    labels = (truth > [0, 0.5, -1, 3.5, 0]).astype(int)
    labels[rng.random(labels.shape) < 0.1] = -1
    return features, labels[:80], others


def test_neighbours_vote_as_written_out(problem):
    features, labels, others = problem
    k, temperature = 7, 0.1
    expected = np.zeros((len(others), 5))
    for i, other in enumerate(others):
        cosine = [f @ other / np.linalg.norm(f) / np.linalg.norm(other) for f in features]
        nearest = sorted(range(80), key=lambda j: -cosine[j])[:k]
        for a in range(5):
            counts = [(labels[:, a] == answer).sum() for answer in (0, 1)]
            votes = [0.0, 0.0]
            for j in nearest:
                if labels[j, a] >= 0:
                    votes[labels[j, a]] += math.exp(cosine[j] / temperature) / counts[labels[j, a]]
            expected[i, a] = votes[1] / sum(votes)
    found = knn_probability(*map(torch.from_numpy, (features, labels, others)), k, temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_neighbours_who_are_unknown_or_fewer_than_k():
    features, labels = torch.eye(3), torch.tensor([[1], [0], [-1]])
    found = knn_probability(features, labels, torch.eye(3), k=1)
    assert found.flatten().tolist() == [1, 0, 0.5]
    assert knn_probability(features, labels, torch.ones(1, 3), k=20).item() == pytest.approx(0.5)


def newton(x: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    """Weights and bias of one balanced logistic regression, by Newton's method."""
    weight = np.where(y == 1, 0.5 / (y == 1).sum(), 0.5 / (y == 0).sum())
    x = np.column_stack([x, np.ones(len(x))])
    ridge = penalty * np.diag([1.0] * (x.shape[1] - 1) + [0.0])
    w = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ w))
        gradient = x.T @ (weight * (p - y)) + ridge @ w
        w -= np.linalg.solve((x.T * (weight * p * (1 - p))) @ x + ridge, gradient)
    return w


def test_linear_layer_is_the_minimum_that_newton_finds(problem):
    features, labels, others = problem
    learnt, told = standardised(*map(torch.from_numpy, (features, others)))
    found = linear_probability(learnt, torch.from_numpy(labels), told)
    for a in range(5):
        known = labels[:, a] >= 0
        w = newton(learnt.numpy()[known], labels[known, a], 0.03)
        np.testing.assert_allclose(found[:, a], 1 / (1 + np.exp(-(told.numpy() @ w[:-1] + w[-1]))), atol=1e-5)
    assert torch.equal(found, linear_probability(learnt, torch.from_numpy(labels), told))


def test_linear_layer_with_nothing_to_go_by():
    """However rare yes is: the loss weighs both answers the same."""
    labels = torch.tensor([[1]] + [[0]] * 9)
    (x,) = standardised(torch.full((10, 4), 1 / 3))
    assert not x.any()
    torch.testing.assert_close(linear_probability(x, labels, x), torch.full((10, 1), 0.5))


def test_features_are_standardised_and_finite():
    x, y = torch.randn(50, 3) * torch.tensor([1, 9, 0]) + 5, torch.randn(4, 3)
    a, b = standardised(x, y)
    np.testing.assert_allclose(a[:, :2].numpy().std(0), 1)
    np.testing.assert_allclose(a.mean(0), 0, atol=1e-12)
    first = x[:, 0].double()
    np.testing.assert_allclose(b[:, 0], (y[:, 0].double() - first.mean()) / first.std(correction=0))
    assert not b[:, 2].any()
    with pytest.raises(HapError, match="not finite"):
        standardised(x, y.log())


def test_answerable():
    labels = torch.tensor([[1, 1, 0, -1, -1], [0, 1, 0, 1, -1], [-1, -1, 0, 0, -1]])
    assert answerable(labels).tolist() == [True, False, False, True, False]


def test_map_is_the_two_principal_components_the_right_way_round():
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(1)) * torch.tensor([3.0, 1, 2, 0.5, 0.1])
    values, vectors = np.linalg.eigh(np.cov(x.numpy().T.astype(float)))
    for column, axis in enumerate(vectors[:, np.argsort(-values)[:2]].T):
        axis = axis * np.sign(axis[np.abs(axis).argmax()])
        np.testing.assert_allclose(map_2d(x)[:, column], (x - x.mean(0)).numpy() @ axis, atol=1e-5)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.parametrize("kind", [ViT, MaskedAutoencoder])
def test_attention_is_softmax_of_query_times_key(kind):
    torch.manual_seed(0)
    options = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}
    model = kind((64, 32), 16, 32, 2, 4, **(options if kind is MaskedAutoencoder else {})).eval()
    images = torch.randn(3, 3, 64, 32)
    seen = []
    last = model.blocks[-1].attn
    handle = last.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        model.features(images)
        handle.remove()
        found = model.class_attention(images).numpy()
    weight, bias = (p.detach().double().numpy() for p in (last.qkv.weight, last.qkv.bias))
    for n, tokens in enumerate(seen[0].double().numpy()):  # (1 + L, D)
        query, key, _ = (tokens @ weight.T + bias).reshape(9, 3, 4, 8).transpose(1, 2, 0, 3)
        shares = [softmax(q[0] @ k.T / math.sqrt(8)) for q, k in zip(query, key, strict=True)]
        np.testing.assert_allclose(found[n], np.mean(shares, 0)[1:], atol=1e-5)


def test_pictures_of_scores_maps_and_attention():
    """Names come from data: neither formulas nor letters without a glyph are a problem."""
    names = ["$\\frac{", "帽子", "_x", "a" * 90]
    points, colour = torch.randn(20, 2), torch.arange(20) % 11 - 1
    picture = clouds({name: Cloud(points, colour) for name in names}, 3)
    assert picture.std() > 10
    assert clouds({"nobody": Cloud(points, colour * 0 - 1)}, 1).std() > 5
    assert bars({name: {"mAP": 0.3, "rank1": 1.0} for name in names}).std() > 10
    image = np.full((64, 32, 3), 200, np.uint8)
    attention = np.zeros((4, 2), np.float32)
    attention[3, 1] = 0.5
    drawn = draw_attention(image, attention).astype(int).sum(2)
    assert drawn[56, 24] == drawn.max() > drawn[8, 8] + 100
    assert draw_attention(image, np.full((4, 2), 1e-3)).std() < 60


def test_a_table_shows_brackets(capsys):
    print_table(["weights", "mAP"], [["runs/[a]/x.ckpt", "0.1"], ["[bold]", "0.2"]])
    out = capsys.readouterr().out
    assert "runs/[a]/x.ckpt" in out
    assert "[bold]" in out


def test_strategies_are_those_of_the_configuration():
    files = {path.stem: config("train", "experiment=pretrain_hap", f"masking={path.stem}").masking.strategy
             for path in (CONF_DIR / "masking").glob("*.yaml")}  # fmt: skip
    built = {name: type(instantiate(node)) for name, node in files.items()}
    assert built == {name: type(build(16)) for name, build in STRATEGIES.items()}


# In runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(drawn) -> list[str]:
    """Overrides: small data to measure on."""
    roots = {
        "attributes": drawn("peta", 60),
        "people": drawn("market1501", 130, images_per_identity=8, num_cameras=4),
    }
    where = [f"callbacks.probe.{name}.root={root}" for name, root in roots.items()]
    return [*where, *(f"callbacks.probe.{name}.synthetic=false" for name in roots)]


def pretrain(luperson, folder, *more: str) -> dict[str, float]:
    options = [o for o in TINY_PRETRAIN if o != "callbacks.probe=null"]
    given = [*options, f"data.root={luperson}", "epochs=3", "data.reader.num_val=8", *more]
    return run("train", config("train", "experiment=pretrain_hap", *given), folder)


@pytest.fixture(scope="module")
def trained(luperson, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("probed") / "run"
    return folder, pretrain(luperson, folder, "callbacks.probe.every_n_epochs=2", *data)


def evaluate(folder, data, *more: str, weights) -> dict[str, float]:
    size = ("img_size=[64,32]", "model.embed_dim=32", "model.depth=2", "model.num_heads=4", "trainer=cpu")
    given = f"weights={weights}" if weights else "seed=0"
    return run("eval", config("eval", "experiment=probe", *size, *data, given, *more), folder)


def test_probed_training_is_bit_identical_and_is_measured_every_other_epoch_and_at_the_end(
    luperson, data, trained, tmp_path
):
    probed, results = trained
    plain = pretrain(luperson, tmp_path / "plain", "callbacks.probe=null", "callbacks.pictures=null")
    assert not [name for name in plain if name.startswith("probe")]
    assert {name for name in results if name.startswith("probe")} == {
        f"probe/{score}" for score in ("knn_mA", "linear_mA", "mAP", "rank1")
    }
    one, two = (
        torch.load(f / "checkpoints/last.ckpt", weights_only=True) for f in (probed, tmp_path / "plain")
    )
    for name, value in two["state_dict"].items():
        assert torch.equal(value, one["state_dict"][name]), name
    with next(probed.rglob("metrics.csv")).open() as file:
        assert [row["epoch"] for row in csv.DictReader(file) if row["probe/mAP"]] == ["1", "2"]
    pictures = sorted(path.name for path in (probed / "pictures").iterdir())
    for name, count in (
        ("map_identities", 2),
        ("map_attributes", 2),
        ("attention", 4),
        ("masking_strategies", 1),
    ):
        found = [p for p in pictures if re.fullmatch(rf"{name}_step\d{{7}}\.png", p)]
        assert len(found) == count, pictures
        assert cv2.imread(str(probed / "pictures" / found[-1])).std() > 10


def test_measure_leaves_mode_and_generators_alone(trained, data):
    encoder = ViT((64, 32), 16, 32, 2, 4).train()
    probe = instantiate(
        config("eval", "experiment=probe", "img_size=[64,32]", *data).callbacks.probe, _convert_="all"
    )
    torch.manual_seed(5)
    np.random.seed(5)
    before, numbers = torch.get_rng_state(), np.random.get_state()[1]
    probe.measure(encoder)
    assert torch.equal(before, torch.get_rng_state())
    assert (numbers == np.random.get_state()[1]).all()
    assert all(module.training for module in encoder.modules())
    assert all(p.grad is None for p in encoder.parameters())


def test_files_side_by_side_are_measured_as_in_training(trained, data, tmp_path, capsys):
    weights = trained[0] / "checkpoints/last.ckpt"
    results = evaluate(tmp_path / "two", data, weights=f"[none,'{weights}']")
    for score in ("knn_mA", "linear_mA", "mAP", "rank1"):
        assert results[f"probe/{score}/{weights}"] == pytest.approx(trained[1][f"probe/{score}"], abs=1e-6)
    written = json.loads((tmp_path / "two/results.json").read_text())
    assert written["probe/mAP/none"] == results["probe/mAP/none"] != results[f"probe/mAP/{weights}"]
    assert written["protocol"]["feature"] == "patches, standardised"
    with (tmp_path / "two/probe.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["weights"] for row in rows] == ["none", str(weights)]
    assert float(rows[1]["linear_mA"]) == pytest.approx(trained[1]["probe/linear_mA"], abs=1e-4)
    assert "linear_mA" in capsys.readouterr().out
    for name in ("probe_scores", "map_identities", "map_attributes", "attention"):
        assert cv2.imread(str(tmp_path / f"two/pictures/{name}.png")).std() > 10


def read(encoder: ViT, records, resample) -> torch.Tensor:
    """Mean of the patch tokens (N, D), image by image."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    rows = []
    for record in records:
        image = (resize(record.pixels(), (64, 32), resample) / 255 - mean) / std
        with torch.no_grad():
            rows.append(encoder(torch.from_numpy(image.transpose(2, 0, 1)).float()[None])[0, 1:].mean(0))
    return torch.stack(rows)


def test_scores_are_those_of_the_whole_way_written_out(trained, data, tmp_path):
    weights = trained[0] / "checkpoints/last.ckpt"
    results = evaluate(tmp_path / "one", data, weights=weights)
    assert set(results) == {"probe/knn_mA", "probe/linear_mA", "probe/mAP", "probe/rank1", "seconds"}
    assert json.loads((tmp_path / "one/weights.json").read_text())["sha256"]
    encoder = ViT((64, 32), 16, 32, 2, 4).eval()
    load_weights(encoder, weights)
    roots = dict(override.rsplit("=", 1) for override in data)
    splits = read_peta(roots["callbacks.probe.attributes.root"], split="zero_shot")
    learnt, told = (read(encoder, splits[split], BILINEAR) for split in ("train", "test"))
    learnt, told = (
        ((x - learnt.mean(0)) / learnt.std(0, correction=0)).numpy().astype(float) for x in (learnt, told)
    )
    labels, truth = splits["train"].labels, splits["test"].labels
    recalls = []
    for a in range(labels.shape[1]):
        if {0, 1} <= set(labels[:, a]) and {0, 1} <= set(truth[:, a]):
            w = newton(learnt, labels[:, a], 0.03)
            said = told @ w[:-1] + w[-1] > 0
            recalls.append(((said[truth[:, a] == 1]).mean() + (~said[truth[:, a] == 0]).mean()) / 2)
    assert len(recalls) > 3
    assert results["probe/linear_mA"] == pytest.approx(np.mean(recalls), abs=0.02)

    records = read_market1501(roots["callbacks.probe.people.root"])["test"]
    feature = read(encoder, records, BICUBIC)
    feature = (feature - feature.mean(0)) / feature.std(0, correction=0)
    query = sum(r.is_query for r in records)
    ids, cams = (torch.tensor([getattr(r, name) for r in records]) for name in ("identity", "camera"))
    ranking = evaluate_ranking(
        *(F.normalize(x) for x in (feature[:query], feature[query:])),
        ids[:query],
        ids[query:],
        cams[:query],
        cams[query:],
    )
    assert results["probe/mAP"] == pytest.approx(ranking.mAP, abs=2e-3)


@pytest.mark.parametrize(
    ("program", "overrides", "message"),
    [
        ("eval", ["weights=drawn"], "another kind: it has 6 blocks, the model 12.*of model=vit_micro"),
        ("eval", ["weights=drawn", "model=vit_micro", "model.embed_dim=64"], "size .the file is of model=vit_micro"),
        ("eval", ["weights=[]"], "a model starts from one file"),
        ("eval", [], "needs a model"),
        ("eval", ["ckpt_path=x.ckpt"], "hap eval experiment=probe weights=FILE"),
        ("train", ["weights=none"], "hap eval experiment=probe weights=FILE"),
        ("eval", ["weights=none", "callbacks.probe=null"], "only callbacks=probe"),
        ("eval", ["weights=none", "callbacks.probe.people=null", "callbacks.probe.attributes=null"], "nothing is left"),
        ("eval", ["weights=none", "callbacks.probe.feature=mean"], "patches or class_token"),
        ("eval", ["weights=none", "callbacks.probe.people.synthetic=false", "callbacks.probe.attributes=null"],
         r"callbacks\.probe\.people: data folder not found"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured(tmp_path, program, overrides, message):
    cfg = config(program, "experiment=probe", "trainer=cpu", *overrides)
    with pytest.raises(HapError, match=f"(?s){message}"):
        run(program, cfg, tmp_path / "run")


def test_a_model_is_trained_from_one_file(tmp_path):
    with pytest.raises(HapError, match="a model starts from one file"):
        run(
            "train",
            config("train", "experiment=pretrain_hap", "weights=[a,b]", "trainer=cpu"),
            tmp_path / "run",
        )


def test_data_of_the_wrong_kind(data, drawn):
    nodes = config("eval", "experiment=probe", "img_size=[64,32]", *data).callbacks.probe
    people, attributes = (instantiate(nodes[name], _convert_="all") for name in ("people", "attributes"))
    with pytest.raises(HapError, match=r"callbacks\.probe\.attributes: .* has no attributes"):
        Probe(attributes=people).prepare()
    with pytest.raises(HapError, match=r"callbacks\.probe\.people: .* has no identities"):
        Probe(people=attributes).prepare()
    assert set(Probe(people=people, feature="class_token").measure(ViT((64, 32), 16, 32, 2, 4)).scores) == {
        "mAP",
        "rank1",
    }
