"""Text-to-image ReID, its parts alone: losses, scores, learning rates, encoders, what a feature depends on."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import TINY, config
from hydra.utils import instantiate
from torch.nn import functional as F

from hap.data.transforms import ReidEval, TextTrain
from hap.errors import HapError
from hap.losses import RankingLoss, SDMLoss
from hap.metrics.text_retrieval import TextRetrieval
from hap.models.text import text_encoder
from hap.models.text_reid import TextReidOutput, TextReidViT

BERT_BASE = {
    "vocab_size": 30_522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3_072,
    "max_position_embeddings": 512,
}
TINY_BERT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
}


def small(sizes: dict[str, int] | None = None, **options: Any) -> TextReidViT:
    torch.manual_seed(0)
    text = options.pop("text", {})
    return TextReidViT(
        text=lambda vocabulary: text_encoder(vocabulary, sizes, **text),
        **{"vocabulary": 40, "num_classes": 5, "embedding": 8} | options,
        img_size=(32, 16),
        patch_size=16,
        embed_dim=16,
        depth=1,
        num_heads=2,
    )


def count(module: torch.nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad) if module else 0


def test_numbers_of_parameters_at_full_size():
    """Spec 10.1; nothing is allocated."""
    with torch.device("meta"):
        model = TextReidViT(
            text=lambda vocabulary: text_encoder(vocabulary, BERT_BASE),
            vocabulary=30_522,
            num_classes=11_000,
            img_size=(384, 128),
            patch_size=16,
            embed_dim=768,
            depth=12,
            num_heads=12,
            drop_path=0.1,
        )
    assert sum(p.numel() for p in model.text.parameters()) == 108_891_648
    assert count(model.text) == 0
    assert count(model.lstm) == 9_437_184
    assert count(model.projection) == 294_912
    assert count(model.classifier) == 4_235_000
    assert count(model) == 95_526_144 + 4_235_000
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])
    assert model.classifier(torch.empty(1, 384, device="meta")).shape == (1, 11_000)


def test_what_the_image_embedding_is_made_of():
    """Spec 10.2: the patch tokens before the final norm, without the class token."""
    model = small().eval()
    images = torch.randn(2, 3, 32, 16)
    tokens = model.patch_embed(images)
    tokens = torch.cat([model.cls_token.expand(2, -1, -1), tokens], 1) + model.pos_embed
    for block in model.blocks:
        tokens = block(tokens)
    expected = tokens[:, 1:].max(1).values @ model.projection.weight.T
    torch.testing.assert_close(model.image_embedding(images), expected, atol=1e-6, rtol=1e-5)
    before = model.image_embedding(images)
    with torch.no_grad():
        model.norm.weight += 1
        model.norm.bias += 1
    assert torch.equal(model.image_embedding(images), before)


def test_projection_by_hand():
    """Spec 10.5."""
    projection = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        projection.weight.copy_(torch.tensor([[1, 1], [0.5, -1]]))
    tokens = torch.tensor([[1.0, -2], [3, -5]])
    assert projection(tokens.amax(0)).tolist() == [1, 3.5]
    model = small()
    assert model.text_projection is None  # one for both
    assert small(lstm=False).text_projection is not None


def test_identity_loss_by_hand():
    """Spec 10.6, through the task."""
    task = instantiate(config("train", *options()).task)
    weight = torch.tensor([[1, 0], [0, 1], [-1, -1.0]])
    bias = torch.tensor([0.1, 0, -0.1])
    image, text = torch.tensor([[1, 2], [0.5, -1]]), torch.tensor([[0.0, 1], [2, 0]])
    outputs = TextReidOutput(image, text, image @ weight.T + bias, text @ weight.T + bias)
    losses = task.train().losses(outputs, {"identity": torch.tensor([1, 0])})
    assert losses["identity"].item() == pytest.approx(0.801154, abs=1e-5)
    assert losses["loss"].item() == pytest.approx((losses["identity"] + losses["matching"]).item())
    assert task.eval().losses(outputs, {}) == {}


def options(*more: str, experiment: str = "text_reid_cuhk") -> list[str]:
    return [
        f"experiment={experiment}",
        *TINY,
        "text_encoder=words",
        "task.model.embedding=16",
        "task.model.num_classes=4",
        "task.model.vocabulary=20",
        *more,
    ]


S = torch.tensor(
    [[0.80, 0.70, 0.10, 0.75], [0.30, 0.60, 0.55, 0.45], [0.20, 0.90, 0.50, 0.35], [0.78, 0.05, 0.40, 0.90]]
)
LABELS = torch.tensor([5, 6, 7, 5])


def test_ranking_loss_by_hand():
    """Spec 10.7."""
    loss = RankingLoss(0.2)
    side = {(i, j) for i, j in loss.candidates(S, LABELS).nonzero().tolist()}
    assert side == {(0, 1), (1, 2), (1, 3), (2, 3)}
    assert loss.candidates(S.T, LABELS).nonzero().tolist() == [[2, 3]]
    values = []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        drawn = [loss.triplets(cosine, LABELS, generator) for cosine in (S, S.T)]
        values.append(round(loss.of_triplets(S, *drawn).item(), 5))
    assert set(values) == {0.4, 0.3}
    assert np.mean(values) == pytest.approx(0.35, abs=0.015)


@pytest.mark.parametrize(
    ("cosine", "expected"),
    [
        ([[0.9, 0.1, 0.2], [0, 0.8, 0.1], [0.3, 0.2, 0.7]], 0),
        ([[0.1, 0.9, 0.8], [0.7, 0.2, 0.95], [0.9, 0.85, 0.3]], 1.5),
    ],
)
def test_ranking_loss_without_candidates(cosine, expected):
    loss, labels = RankingLoss(0.2), torch.arange(3)
    matrix = torch.tensor(cosine)
    drawn = [loss.triplets(side, labels, torch.Generator()) for side in (matrix, matrix.T)]
    assert loss.of_triplets(matrix, *drawn).item() == pytest.approx(expected, abs=1e-6)


def pairs(n: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images, texts = torch.randn(2, n, 6, generator=generator)
    return images, texts, torch.arange(n) // 2


@pytest.mark.parametrize("make", [RankingLoss, SDMLoss])
def test_matching_losses_in_any_case(make):
    """All of one person, a pair alone, half precision around, and the same step again."""
    images, texts, people = pairs()
    loss = make()
    value = loss(images, texts, people)
    assert value.isfinite()
    assert torch.equal(loss(images, texts, people), value)
    assert loss(images, texts, torch.zeros(8, dtype=torch.long)).isfinite()
    assert loss(images[:1], texts[:1], people[:1]).item() == pytest.approx(0, abs=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(images, texts, people), value)
    if make is RankingLoss:
        assert loss(images, texts, torch.zeros(8, dtype=torch.long)).item() == 0
        loss.step = 7
        assert len({RankingLoss.forward(loss, images, texts, people).item() for loss.step in range(9)}) > 1


def test_the_sum_of_another_batch_is_brought_to_64_pairs():
    images, texts, people = pairs()
    small, large = RankingLoss(batch_size=8)(images, texts, people), RankingLoss()(images, texts, people)
    assert large.item() == pytest.approx(8 * small.item(), rel=1e-5)


def test_another_caption_of_the_same_image_in_the_batch():
    """Neither pushed nor pulled by triplets; pulled by SDM (an image is never its own negative)."""
    people = torch.tensor([0, 0, 1, 2])
    for seed in range(20):
        cosine = torch.rand(4, 4, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        loss = RankingLoss(0.5)
        drawn = [loss.triplets(side, people, torch.Generator()) for side in (cosine, cosine.T)]
        loss.of_triplets(cosine, *drawn).backward()
        assert cosine.grad[0, 1] == cosine.grad[1, 0] == 0
    images = torch.full((4, 4), 0.5).requires_grad_()  # as far from each text as from the others
    SDMLoss(1)(images, torch.eye(4), people).backward()
    assert images.grad[0, 0] < 0
    assert images.grad[0, 1] < 0 < images.grad[0, 2]


def _both_losses(images: torch.Tensor, texts: torch.Tensor, people: torch.Tensor) -> torch.Tensor:
    return RankingLoss(seed=3)(images, texts, people) + SDMLoss(10)(images, texts, people)


def _process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    part = slice(4 * rank, 4 * rank + 4)
    images, texts, people = (value[part] for value in pairs())
    images.requires_grad_(), texts.requires_grad_()
    value = _both_losses(images, texts, people)
    value.backward()
    torch.save((value.detach(), images.grad / 2, texts.grad / 2), f"{folder}/{rank}.pt")  # DDP's mean
    dist.destroy_process_group()


@pytest.mark.slow
def test_losses_of_two_processes_are_those_of_one(tmp_path):
    torch.multiprocessing.spawn(_process, args=(str(tmp_path),), nprocs=2)
    images, texts, people = pairs()
    images.requires_grad_(), texts.requires_grad_()
    value = _both_losses(images, texts, people)
    value.backward()
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for part in found:
        torch.testing.assert_close(part[0], value.detach())
    for number, gradient in ((1, images.grad), (2, texts.grad)):
        torch.testing.assert_close(torch.cat([part[number] for part in found]), gradient)


def score(
    similarity: torch.Tensor, people: list[int], gallery: list[int], own: list[int]
) -> dict[str, float]:
    """The metric of a given similarity: images are the axes of a space."""
    metric = TextRetrieval()
    queries, images = similarity.shape
    metric.update(
        similarity, torch.tensor(people), torch.tensor(own), torch.ones(queries), torch.arange(queries)
    )
    number = torch.arange(images)
    metric.update(torch.eye(images), torch.tensor(gallery), number, torch.zeros(images), number)
    return metric.compute()


def test_scores_by_hand():
    """Spec 10.10."""
    similarity = torch.tensor(
        [[((7 * i + 9 * j * j + 13 * i * j + 31 * j) % 997) / 1000 for j in range(12)] for i in range(5)]
    )
    gallery = [3, 1, 2, 1, 4, 2, 5, 3, 2, 6, 4, 7]
    values = score(similarity, [1, 2, 3, 4, 7], gallery, own=[1, 2, 7, 4, 11])
    expected = {
        "rank1": 0.4,
        "rank5": 0.6,
        "rank10": 0.8,
        "mAP": 0.339015,
        "mAP_trapz": 0.288683,
        "mINP": 0.218182,
        "other_rank1": 0.25,
        "other_rank5": 0.5,
        "other_rank10": 0.75,
        "other_mAP_trapz": 0.223864,
        "num_valid": 5,
        "num_skipped": 0,
        "num_gallery": 12,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    place = order.argsort()
    again = score(
        7 * similarity[:, order],
        [1, 2, 3, 4, 7],
        [gallery[i] for i in order],
        own=[int(place[i]) for i in (1, 2, 7, 4, 11)],
    )
    assert again == pytest.approx(values)


@pytest.mark.parametrize(
    ("hits", "trapezoid", "usual"),
    [
        ({0}, 1, 1),
        ({1}, 0.25, 0.5),
        ({0, 1}, 1, 1),
        ({0, 2}, 0.791667, 0.833333),
        ({1, 3}, 0.333333, 0.5),
        ({4}, 0.1, 0.2),
    ],
)
def test_the_two_average_precisions(hits, trapezoid, usual):
    similarity = torch.arange(6.0, 0, -1)[None]
    gallery = [int(i in hits) for i in range(6)]
    values = score(similarity, [1], gallery, own=[min(hits)])
    assert values["mAP_trapz"] == pytest.approx(trapezoid, abs=1e-6)
    assert values["mAP"] == pytest.approx(usual, abs=1e-6)
    assert ("other_mAP" in values) == (len(hits) > 1)


def test_queries_without_a_match_and_features_that_say_nothing(caplog):
    values = score(torch.rand(3, 4) + 0.1, [0, 1, 9], [0, 1, 2, 3], own=[0, 1, 0])
    assert (values["num_valid"], values["num_skipped"]) == (2, 1)
    assert "1 of 3 queries have no match in the gallery" in caplog.text
    with pytest.raises(HapError):
        score(torch.rand(1, 4), [9], [0, 1, 2, 3], own=[0])
    people = list(range(20))
    values = score(torch.ones(20, 20), people, people, own=people)  # all alike
    assert values["rank1"] == pytest.approx(1 / 20)
    assert values["mAP"] == pytest.approx(sum(1 / r for r in range(1, 21)) / 20)


@pytest.mark.parametrize("experiment", ["text_reid_cuhk", "text_reid_icfg", "text_reid_rstp"])
def test_learning_rates_of_the_recipe(experiment):
    """Spec 10.8, by epoch from 1; every parameter that learns is in one group."""
    task = instantiate(config("train", *options(experiment=experiment)).task)
    steps = 3
    task.steps_per_epoch = task.schedule_steps = steps
    optimizer, scheduler = task._optimizer()
    names = {id(p): name for name, p in task.model.named_parameters() if p.requires_grad}
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(names)
    assert all(group["weight_decay"] == 0 for group in optimizer.param_groups)
    assert type(optimizer) is torch.optim.Adam
    found = {}
    for epoch, step in itertools.product(range(1, 61), range(steps)):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = names[id(parameter)]
                encoder = name.startswith(("patch_embed", "cls_token", "pos_embed", "blocks"))
                found.setdefault((encoder, epoch), set()).add(group["lr"])
        optimizer.step()
        scheduler.step()
        assert step < steps
    for epoch, lr in (
        (1, 1e-4),
        (19, 1e-4),
        (20, 1e-5),
        (39, 1e-5),
        (40, 1e-6),
        (49, 1e-6),
        (50, 1e-7),
        (60, 1e-7),
    ):
        for encoder in (True, False):
            (value,) = found[encoder, epoch]
            assert value == pytest.approx(lr if encoder else 10 * lr)


def test_learning_rates_of_a_text_encoder_that_learns(tmp_path):
    cfg = config("train", *options(experiment="text_reid_cuhk_sdm"))
    task = instantiate(cfg.task)
    optimizer, _ = task._optimizer()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    model = task.model
    assert rates[id(model.text.word_embeddings.weight)] == pytest.approx(1e-5)
    assert rates[id(model.text_projection.weight)] == pytest.approx(1e-3)
    assert rates[id(model.blocks[0].attn.qkv.weight)] == pytest.approx(1e-4)


@pytest.mark.parametrize("dropout", ["off", "official"])
def test_a_frozen_bert(dropout):
    """Spec 7.1: official: no dropout in the first epoch, dropout in all others."""
    model = small(TINY_BERT, text={"dropout": dropout}).train()
    assert not any(p.requires_grad for p in model.text.parameters())
    tokens, lengths = torch.randint(5, 40, (3, 9)), torch.tensor([9, 5, 9])

    def varies() -> bool:
        return not torch.equal(model.text(tokens, lengths), model.text(tokens, lengths))

    assert not varies()
    for epoch in (1, 2):
        model.text.epoch = epoch
        model.train()
        assert varies() == (dropout == "official")
        model.eval()
        assert not varies()
    assert not model.text(tokens, lengths).requires_grad


def test_a_bert_that_learns():
    model = small(TINY_BERT, text={"frozen": False}, lstm=False, pooling="masked").train()
    tokens, lengths = torch.randint(5, 40, (3, 9)), torch.tensor([9, 5, 9])
    model.text_embedding(tokens, lengths, lengths.max().expand(3)).sum().backward()
    gradients = {n: p.grad for n, p in model.text.named_parameters()}
    assert all(g is not None and g.isfinite().all() for n, g in gradients.items() if "token_type" not in n)


def test_wrong_options():
    for make, message in (
        (lambda: small(pooling="zeros"), "choose zero, batch_zero or masked"),
        (lambda: small(TINY_BERT, text={"dropout": "on"}), "choose off or official"),
        (lambda: small(TINY_BERT, vocabulary=41), "the vocabulary has 41 entries, BERT 40"),
    ):
        with pytest.raises(HapError, match=message):
            make()


def bert_file(path: Path, **changes: Callable[[torch.Tensor], torch.Tensor] | None) -> Path:
    """Weights as Hugging Face keeps them, with changes of some."""
    state = {f"bert.{n}": v.clone() for n, v in small(TINY_BERT).text.bert.state_dict().items()}
    for end, change in changes.items():
        name = next(n for n in state if n.replace(".", "_").endswith(end))
        value = state.pop(name)
        if change is not None:
            state[name] = change(value)
    torch.save(state, path)
    return path


def test_weights_of_bert_are_read_strictly(tmp_path):
    whole = small(TINY_BERT).text
    torch.manual_seed(5)
    again = text_encoder(40, TINY_BERT, weights=str(bert_file(tmp_path / "bert.bin")))
    released = {"cls.predictions.bias": torch.zeros(40)}  # as bert-base-uncased, with heads and other names
    for name, value in torch.load(tmp_path / "bert.bin", weights_only=True).items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        released[name] = value
    torch.save(released, tmp_path / "first.bin")
    first = text_encoder(40, TINY_BERT, weights=str(tmp_path / "first.bin"))
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
        assert torch.equal(first.state_dict()[name], value), name
    for changes, message in (
        ({"word_embeddings_weight": None}, "it has no embeddings.word_embeddings.weight: it is no BERT"),
        (
            {"position_embeddings_weight": lambda v: v[:64]},
            r"is \(64, 16\), its config.json says \(128, 16\)",
        ),
    ):
        with pytest.raises(HapError, match=message):
            text_encoder(40, TINY_BERT, weights=str(bert_file(tmp_path / "bert.bin", **changes)))
    absent = text_encoder(40, TINY_BERT, weights=str(tmp_path / "nowhere.bin"))
    with pytest.raises(HapError, match=r"no file of BERT's weights: .*nowhere.bin"):
        absent.check()
    absent.load_state_dict(whole.state_dict())
    absent.check()


@pytest.mark.parametrize("mode", ["zero", "masked", "batch_zero"])
@pytest.mark.parametrize("sizes", [None, TINY_BERT])
def test_a_feature_does_not_depend_on_its_neighbours(mode, sizes):
    model = small(sizes, pooling=mode).eval()
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 20, (64,), generator=generator)
    tokens = torch.randint(1, 40, (64, 100), generator=generator)
    tokens[torch.arange(100) >= lengths[:, None]] = 0
    longest = lengths.max().expand(64)
    with torch.no_grad():
        whole = model.text_embedding(tokens, lengths, longest)
        cut = model.text_embedding(tokens[:, : lengths.max()], lengths, longest)
        order = torch.randperm(64, generator=generator)
        shuffled = model.text_embedding(tokens[order], lengths[order], longest)[order.argsort()]
        alone = torch.cat(
            [
                model.text_embedding(t[None, :n], n[None], n[None])
                for t, n in zip(tokens, lengths, strict=True)
            ]
        )
    for other in (cut, shuffled):
        torch.testing.assert_close(other, whole, atol=1e-5, rtol=0)
    same = (alone - whole).abs().max().item()
    assert same > 1e-3 if mode == "batch_zero" else same < 1e-5


def test_half_precision_around_the_model():
    model = small(TINY_BERT).train()
    torch.manual_seed(2)
    images, people = torch.randn(8, 3, 32, 16), torch.arange(8) % 5
    tokens, lengths = torch.randint(1, 40, (8, 9)), torch.randint(2, 10, (8,))

    def loss() -> torch.Tensor:
        out = model(images, tokens, lengths, lengths.max().expand(8))
        assert out.image.dtype == out.text.dtype == out.text_logits.dtype == torch.float32
        identity = F.cross_entropy(out.image_logits, people) + F.cross_entropy(out.text_logits, people)
        return identity + SDMLoss(10)(out.image, out.text, people)

    exact = loss().item()
    assert math.isfinite(exact)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss().item() == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("flip_sides", [True, False])
def test_left_and_right(flip_sides):
    """An image is mirrored half of the time; one whose caption names a side only where that is asked for."""
    image = np.zeros((20, 10, 3), np.uint8)
    image[:, :5] = 200
    transform = TextTrain((20, 10), padding=0, flip_sides=flip_sides)

    def mirrored(side: bool) -> float:
        found = [
            transform(image, {"names_side": side, "identity": 1}, np.random.default_rng(seed))
            for seed in range(60)
        ]
        assert all(sample.keys() == {"image", "identity"} for sample in found)
        return float(np.mean([sample["image"][0, 10, 1].item() < 100 for sample in found]))

    assert 0.3 < mirrored(False) < 0.7
    assert mirrored(True) == (mirrored(False) if flip_sides else 0)


def test_pixels_as_the_official_code_has_them():
    """Spec 10.12: Pillow's bicubic filter, and the normalisation."""
    k = np.arange(16).reshape(4, 4)
    image = np.stack([16 * k, 255 - 16 * k, 255 * (k % 2)], -1).astype(np.uint8)
    found = ReidEval((384, 128))(image, {}, np.random.default_rng(0))["image"]
    for (row, column), rgb in {
        (0, 0): (0, 255, 0),
        (100, 40): (42, 213, 220),
        (200, 64): (126, 129, 122),
        (383, 127): (250, 5, 255),
    }.items():
        np.testing.assert_allclose(found[:, row, column], rgb, atol=1)
    np.testing.assert_allclose(found.float().mean((1, 2)), (120.1647, 134.8353, 127.5), atol=1)
    normalised = instantiate(config("train", *options()).task).normalize(found)
    np.testing.assert_allclose(normalised[:, 100, 40], (-1.398664, 1.693277, 2.029978), atol=0.02)


def test_shifts_over_black():
    """Spec 10.12: padded by 10, cropped back; no other pixels than the image's and black."""
    image = np.full((384, 128, 3), 255, np.uint8)
    transform = TextTrain((384, 128))
    shifts = set()
    for seed in range(40):
        sample = transform(image, {"names_side": False}, np.random.default_rng(seed))["image"][0]
        assert sample.shape == (384, 128)
        rows, columns = (sample > 0).any(1), (sample > 0).any(0)
        assert (sample[rows][:, columns] == 255).all()
        shifts.add((384 - int(rows.sum()), 128 - int(columns.sum())))
    assert max(max(pair) for pair in shifts) <= 10
    assert len(shifts) > 20
