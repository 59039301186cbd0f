"""The network and losses of text-to-image ReID against the official code (tests/data/text_reid_tiny.npz)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hap.losses import RankingLoss, SDMLoss
from hap.models.checkpoint import load_weights, resize_pos_embed
from hap.models.text import BiLSTM, pool, text_encoder
from hap.models.text_reid import TextReidViT

GOLDEN = Path(__file__).parent / "data/text_reid_tiny.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files if file[name].dtype.kind != "U"}


def ours(name: str) -> str | None:
    """The name of an official parameter in our model; None for what is not used."""
    for official, own in (
        ("ImageExtract.model.fc.", None),
        ("TextExtract.text_embed.pooler.", None),
        ("ImageExtract.model.", ""),
        ("TextExtract.text_embed.", "text.bert."),
        ("TextExtract.lstm.", "lstm."),
        ("conv_1X1_2.block.0.", "projection."),
        ("id_loss.W.block.", "classifier."),
        ("W.block.", "classifier."),
    ):
        if name.startswith(official):
            name = name.removeprefix(official)
            if own == "lstm.":
                own, name = f"lstm.{'back' if 'reverse' in name else 'forth'}.", name.removesuffix("_reverse")
            return None if own is None else own + name
    raise AssertionError(name)


@pytest.fixture(scope="module")
def snapshot(golden, tmp_path_factory) -> Path:
    """As the official code saves its best epoch."""
    parts: dict[str, dict[str, torch.Tensor]] = {"state": {}, "state_id_loss": {}}
    for key, value in golden.items():
        kind, _, name = key.partition("/")
        if kind in parts:
            parts[kind][name] = value
    path = tmp_path_factory.mktemp("official") / "best.pth.tar"
    others = {"optimizer": {"state": {}, "param_groups": []}, "epoch": 3, "test_best": 0.5}
    torch.save({"network": parts["state"], "W": parts["state_id_loss"], **others}, path)
    return path


def build(snapshot, pooling="batch_zero") -> TextReidViT:
    with np.load(GOLDEN) as file:
        config = json.loads(str(file["config"]))
    sizes = {
        "vocab_size": config["bert_vocab_size"],
        "hidden_size": config["bert_hidden_size"],
        "num_hidden_layers": config["bert_layers"],
        "num_attention_heads": config["bert_heads"],
        "intermediate_size": config["bert_intermediate_size"],
        "max_position_embeddings": config["bert_max_position_embeddings"],
    }
    model = TextReidViT(
        text=lambda vocabulary: text_encoder(vocabulary, sizes),
        vocabulary=config["bert_vocab_size"],
        num_classes=config["num_classes"],
        embedding=config["embedding_dim"],
        pooling=pooling,
        img_size=config["image_size"],
        patch_size=config["patch_size"],
        embed_dim=config["vit_dim"],
        depth=config["vit_depth"],
        num_heads=config["vit_heads"],
    )
    report = load_weights(model, snapshot)
    assert "source text_reid, by its entries" in report.origin
    assert not report.missing
    assert {name.split(".")[0] for name in report.unexpected} == {"fc", "text"}  # BERT's pooler
    return model.train()


def captions(ids: torch.Tensor, batch: int | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    lengths = (ids != 0).sum(1)
    parts = lengths.split(batch or len(ids))
    return ids, lengths, torch.cat([part.max().expand(len(part)) for part in parts])


def test_forward_losses_and_gradients(golden, snapshot):
    model = build(snapshot)
    out = model(golden["images"], *captions(golden["caption_ids"]))
    states = model.text(*captions(golden["caption_ids"])[:2])
    real = golden["caption_mask"].bool()
    torch.testing.assert_close(states[real], golden["bert_states"][real], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.image, golden["image_embedding"], atol=3e-5, rtol=0)
    torch.testing.assert_close(out.text, golden["text_embedding"], atol=3e-5, rtol=0)
    labels = golden["labels"].long()
    identity = F.cross_entropy(out.image_logits, labels) + F.cross_entropy(out.text_logits, labels)
    torch.testing.assert_close(identity, golden["id_loss"], atol=5e-6, rtol=0, check_dtype=False)
    cosine = F.normalize(out.image) @ F.normalize(out.text).T
    torch.testing.assert_close(cosine, golden["similarity"], atol=5e-6, rtol=0)
    loss = RankingLoss()
    for side, name in ((cosine, "image"), (cosine.T, "text")):
        assert torch.equal(loss.candidates(side, labels), golden[f"{name}_candidates"].bool())
    triplets = [golden[f"{name}_triplets"][:, [0, 2]].long() for name in ("image", "text")]
    ranking = loss.of_triplets(cosine, *triplets)
    torch.testing.assert_close(ranking, golden["ranking_loss"], atol=5e-6, rtol=0, check_dtype=False)
    (identity + ranking).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    wanted = {ours(k.partition("/")[2]): v for k, v in golden.items() if k.startswith("gradnorm/")}
    assert gradients.keys() == wanted.keys()
    for name, norm in wanted.items():
        if not name.endswith("qkv.bias"):
            torch.testing.assert_close(gradients[name].norm(), norm, atol=1e-6, rtol=2e-5, check_dtype=False)


@pytest.mark.parametrize("case", ["ranking_b", "ranking_c"])
def test_ranking_loss_alone(golden, case):
    g = {k.partition("/")[2]: v for k, v in golden.items() if k.startswith(case)}
    cosine = g["similarity"].clone().requires_grad_()
    loss = RankingLoss()
    for side, name in ((cosine, "image"), (cosine.T, "text")):
        assert torch.equal(loss.candidates(side, g["labels"]), g[f"{name}_candidates"].bool())
        if case == "ranking_c":  # no candidate: the last with the first of another person
            drawn = loss.triplets(side, g["labels"], torch.Generator())
            assert torch.equal(drawn, g[f"{name}_triplets"][:, [0, 2]].long())
    value = loss.of_triplets(cosine, *(g[f"{n}_triplets"][:, [0, 2]].long() for n in ("image", "text")))
    torch.testing.assert_close(value, g["ranking_loss"], atol=1e-5, rtol=0, check_dtype=False)
    value.backward()
    torch.testing.assert_close(cosine.grad, g["grad_similarity"], atol=1e-6, rtol=0, check_dtype=False)


@pytest.mark.parametrize("mode", ["batch_zero", "masked", "zero"])
def test_features_of_the_evaluation(golden, snapshot, mode):
    model = build(snapshot, mode).eval()
    with torch.no_grad():
        text = model.text_embedding(*captions(golden["eval/query_caption_ids"], 8))
        image = model.image_embedding(golden["eval/gallery_images"])
    name = "eval/text_embedding" + ("" if mode == "batch_zero" else f"_{mode}")
    torch.testing.assert_close(text, golden[name], atol=3e-5, rtol=0)
    torch.testing.assert_close(image, golden["eval/image_embedding"], atol=3e-5, rtol=0)


def test_the_official_padding_follows_longest_whatever_the_batch(golden, snapshot):
    model = build(snapshot, "batch_zero").eval()
    ids, lengths, longest = captions(golden["eval/query_caption_ids"], 8)
    with torch.no_grad():
        alone = [
            model.text_embedding(ids[i : i + 1], lengths[i : i + 1], longest[i : i + 1])
            for i in range(len(ids))
        ]
    torch.testing.assert_close(torch.cat(alone), golden["eval/text_embedding"], atol=3e-5, rtol=0)


def test_bilstm_and_pooling_by_hand():
    """Spec 10.4."""
    layer = BiLSTM(2, 2)
    for parameter in layer.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    a, b = [[-1, -0.5], [-0.5, -1], [-2, -1], [-1, -1]], [[-1, -0.5], [-0.5, -1], [0, 0], [0, 0]]
    lengths = torch.tensor([4, 2])
    states = layer(torch.tensor([a, b]), lengths)
    expected = [[-0.048583, -0.057870, -0.070222, -0.057656], [-0.039617, -0.039617, 0, 0]]
    torch.testing.assert_close(states, torch.tensor(expected)[..., None].expand(2, 4, 2), atol=1e-6, rtol=0)
    longest = lengths.max().expand(2)
    for mode, (first, second) in {
        "batch_zero": (-0.048583, 0),
        "masked": (-0.048583, -0.039617),
        "zero": (0, 0),
    }.items():
        found = pool(states, lengths, longest, mode)[:, 0]  # type: ignore[arg-type]
        torch.testing.assert_close(found, torch.tensor([float(first), float(second)]), atol=1e-6, rtol=0)


def test_positions_are_resized_bilinearly(golden, snapshot, tmp_path):
    """The official code of this task, and it alone (spec 10.3)."""
    found = resize_pos_embed(golden["pos_embed_128"], (16, 8), (24, 8), TextReidViT.resize_mode)
    torch.testing.assert_close(found, golden["pos_embed_192"], atol=1e-5, rtol=0)
    rows = torch.arange(16.0)[:, None, None].square().expand(16, 8, 1)
    grid = torch.cat([torch.zeros(1, 1, 1), rows.reshape(1, 128, 1)], 1)
    column = resize_pos_embed(grid, (16, 8), (24, 8), "bilinear")[0, 1:, 0].reshape(24, 8)[:, 3]
    torch.testing.assert_close(column[:6], torch.tensor([0, 0.5, 1.5, 3.5, 6.5, 10.1667]), atol=1e-4, rtol=0)
    model = build(snapshot)
    encoder = {
        name: value
        for name, value in model.state_dict().items()
        if name.startswith(("blocks", "cls", "patch", "norm"))
    }
    torch.save(
        {"model": encoder | {"pos_embed": golden["checkpoint_pos_embed"]}, "epoch": 1}, tmp_path / "hap.pth"
    )
    load_weights(model, tmp_path / "hap.pth", "hap")
    torch.testing.assert_close(model.pos_embed, golden["checkpoint_pos_embed_resized"], atol=1e-5, rtol=0)


def test_sdm_by_hand():
    """Spec 10.13."""
    images = torch.tensor([[1, 0], [0.6, 0.8], [0, 1]])
    texts = torch.tensor([[0.8, 0.6], [0.6, 0.8], [-0.6, 0.8]])
    for scale, expected in ((1, 11.046106), (10, 4.065734), (50, 3.640399)):
        assert SDMLoss(scale)(images, texts, torch.tensor([1, 1, 2])).item() == pytest.approx(
            expected, abs=1e-5
        )
