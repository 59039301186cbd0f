"""The attribute network, its loss, recipe and transforms, against numbers of the official implementation."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import config
from PIL import Image
from timm.utils import ModelEmaV3

from hap.building import build
from hap.data.transforms import BILINEAR, PIXEL_MEAN, PIXEL_STD, AttributeTrain, resize
from hap.losses import WeightedBCE
from hap.models.checkpoint import load_weights, resize_pos_embed
from hap.models.heads import AttributeViT
from hap.optim import parameter_groups

DATA = Path(__file__).parent / "data"
TINY = {"img_size": (256, 192), "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 4}
NAMES = {"backbone.": "", "classifier.logits.0.": "head."}


def ours(name: str) -> str:
    for theirs, our in NAMES.items():
        name = name.replace(theirs, our)
    return name


def part(values: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {ours(k.removeprefix(prefix)): v for k, v in values.items() if k.startswith(prefix)}


@pytest.fixture
def golden() -> tuple[AttributeViT, dict[str, torch.Tensor]]:
    """Tiny model with the official weights, and the official numbers."""
    with np.load(DATA / "attribute_vit_tiny.npz") as file:
        values = {key: torch.from_numpy(file[key]) for key in file.files if key != "config"}
    model = AttributeViT(num_attributes=13, **TINY)
    model.load_state_dict(part(values, "state/"))
    return model, values


def inputs(values: dict[str, torch.Tensor]) -> torch.Tensor:
    levels = values["images_uint8"].permute(0, 3, 1, 2)
    mean, std = (torch.from_numpy(x).view(3, 1, 1) for x in (PIXEL_MEAN, PIXEL_STD))
    return (levels - mean) / std


def test_forward_and_gradients_agree_with_the_official_model(golden):
    model, expected = golden
    images = inputs(expected)
    torch.testing.assert_close(images[0, :, ::32, ::32], expected["input_first"], rtol=0, atol=1e-5)
    labels, ratio = expected["labels"], expected["ratio"].float()
    logits = model(images)
    torch.testing.assert_close(logits, expected["train_logits"], rtol=1e-5, atol=1e-5)
    tokens = model.forward_features(images)[:, 1:]
    torch.testing.assert_close(tokens[0], expected["patch_tokens_first"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens.mean(1), expected["pooled"], rtol=1e-5, atol=1e-5)

    loss = WeightedBCE()(logits, labels, ratio)
    assert loss.item() == pytest.approx(expected["loss"].item(), rel=1e-6)
    elements = expected["loss_elements"].sum(1)
    torch.testing.assert_close(WeightedBCE().per_image(logits, labels, ratio), elements, rtol=1e-5, atol=0)
    unweighted = WeightedBCE(weighted=False)(logits, labels, ratio)
    assert unweighted.item() == pytest.approx(expected["loss_unweighted"].item(), rel=1e-6)
    loss.backward()
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters()}
    assert norms == pytest.approx({k: v.item() for k, v in part(expected, "gradnorm/").items()}, rel=1e-4)
    total = math.sqrt(sum(norm**2 for norm in norms.values()))
    assert total == pytest.approx(expected["gradnorm_total"].item(), rel=1e-5)

    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images).sigmoid(), expected["eval_prob"], rtol=1e-5, atol=1e-6)


def test_three_steps_agree_with_the_official_training(golden):
    """AdamW that decays everything, clipping to 10, and an average of the weights with decay 0.9."""
    model, expected = golden
    recipe = build(config("train", "experiment=attribute_pa100k").task.recipe, "recipe")
    optimizer, schedule = recipe.build(model, 64, steps_per_epoch=1406)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-4])
    ema, before = ModelEmaV3(model, decay=0.9), {k: v.clone() for k, v in model.state_dict().items()}
    images, labels, ratio = inputs(expected), expected["labels"], expected["ratio"].float()
    for step, rows in enumerate((slice(0, 2), slice(2, 4), slice(4, 6))):
        loss = WeightedBCE()(model(images[rows]), labels[rows], ratio)
        assert loss.item() == pytest.approx(expected["train3/loss"][step].item(), rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        assert norm.item() == pytest.approx(expected["train3/gradnorm_before_clip"][step].item(), rel=1e-4)
        optimizer.step()
        schedule.step()
        ema.update(model)
    moved = {k: (v - before[k]).norm().item() for k, v in model.state_dict().items()}
    for name, norm in part(expected, "train3/update_norm/").items():
        assert moved[name] == pytest.approx(norm.item(), rel=1e-3), name
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected["train3/logits"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ema(images), expected["train3/ema_logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decay", ["0.9998", "0.9"])
def test_average_of_weights(golden, decay):
    expected = golden[1]
    model = torch.nn.Linear(5, 3)

    def state(prefix: str) -> dict[str, torch.Tensor]:
        return {k: expected[f"ema/{prefix}/logits.0.{k}"] for k in ("weight", "bias")}

    model.load_state_dict(state("w0"))
    ema = ModelEmaV3(model, decay=float(decay))
    for weights in ("w1", "w2", "w3"):
        model.load_state_dict(state(weights))
        ema.update(model)
    for name, value in state(decay).items():
        torch.testing.assert_close(ema.module.state_dict()[name], value, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["pa100k", "rap", "peta"])
def test_learning_rates_and_decay(name):
    """Constant within an epoch; the same decay for all parameters."""
    with (DATA / "attribute_lr.json").open() as file:
        expected = json.load(file)[name]
    cfg = config("train", f"experiment=attribute_{name}")
    recipe = build(cfg.task.recipe, "recipe")
    assert cfg.epochs == expected["epochs"]
    model = torch.nn.Linear(2, 2)
    optimizer, schedule = recipe.build(model, 64, steps_per_epoch=3)
    for lr in expected["lr_per_epoch"]:
        for _ in range(3):
            assert optimizer.param_groups[0]["lr"] == pytest.approx(lr, rel=1e-9)
            optimizer.step()
            schedule.step()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4]


@pytest.mark.parametrize(("attributes", "head"), [(26, 19_994), (51, 39_219), (35, 26_915)])
def test_base_model(attributes, head):
    with torch.device("meta"):
        model = AttributeViT(
            num_attributes=attributes, **TINY | {"embed_dim": 768, "depth": 12, "num_heads": 12}
        )
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert len(sizes) == 152
    assert sum(n for name, n in sizes.items() if name.startswith("head.")) == head
    assert sum(sizes.values()) - head == 85_795_584
    (group,) = parameter_groups(model, 5e-4, decay_all=True)
    assert set(group["names"]) == set(sizes)


def test_head_keeps_pytorch_s_initialisation():
    head = AttributeViT(num_attributes=200, **TINY).head
    bound = 1 / math.sqrt(32)
    for values in (head.weight, head.bias):
        assert 0.95 * bound < values.abs().max() <= bound


def formula(shape: torch.Size, phase: float) -> torch.Tensor:
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return (0.1 * torch.sin(0.37 * k + phase)).view(shape)


def test_a_network_by_formula_in_double_precision():
    """Values worked out by hand of the description: image 64x48, grid 4x3, width 8, 2 blocks."""
    model = AttributeViT(
        num_attributes=3, img_size=(64, 48), patch_size=16, embed_dim=8, depth=2, num_heads=2
    ).double()
    names = [name for name in model.state_dict() if not name.startswith("head.")]
    assert len(names) == 30
    state = {}
    for t, name in enumerate(names):
        is_gain = "norm" in name and name.endswith("weight")
        state[name] = formula(model.state_dict()[name].shape, t) + is_gain
    state["head.weight"] = formula(torch.Size([3, 8]), 100)
    state["head.bias"] = formula(torch.Size([3]), 101)
    model.load_state_dict(state)
    k = torch.arange(2 * 3 * 64 * 48, dtype=torch.float64)
    images = torch.sin(0.013 * k).view(2, 3, 64, 48)
    model.eval()
    with torch.no_grad():
        tokens = model.forward_features(images)[:, 1:]
        logits = model.head(tokens.mean(1))
    first = [
        1.35197539,
        0.72569616,
        1.00322430,
        0.05071366,
        -0.64157118,
        -1.58056812,
        -0.74003815,
        -0.35972587,
    ]
    assert tokens[0, 0].tolist() == pytest.approx(first, abs=1e-7)
    expected = [[-0.33798113, 0.50103102, -0.36252117], [-0.33580354, 0.49852921, -0.35977741]]
    for row, values in zip(logits.tolist(), expected, strict=True):
        assert row == pytest.approx(values, abs=1e-7)
    labels = torch.tensor([[1, 0, 1], [0, 1, 0]])
    loss = WeightedBCE()(logits, labels, torch.tensor([0.1, 0.5, 0.9]))
    assert loss.item() == pytest.approx(3.71373075, abs=1e-6)


def test_loss_by_hand():
    logits = torch.tensor([[2.0, -1, 0.5], [0, 3, -2]], requires_grad=True)
    labels, ratio = torch.tensor([[1, 0, 1], [0, 1, 0]]), torch.tensor([0.1, 0.5, 0.9])
    loss = WeightedBCE()(logits, labels, ratio)
    assert loss.item() == pytest.approx(1.255478, abs=1e-6)
    assert WeightedBCE(weighted=False)(logits, labels, ratio).item() == pytest.approx(0.891465, abs=1e-6)
    loss.backward()
    expected = [-0.146596, 0.221705, -0.208623, 0.276293, -0.039096, 0.146596]
    assert logits.grad.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_unknown_labels_cost_nothing():
    logits = torch.tensor([[2.0, -1, 0.5], [0, 3, -2]], requires_grad=True)
    labels, ratio = torch.tensor([[1, -1, 1], [0, -1, 0]]), torch.tensor([0.1, 0.5, 0.9])
    loss = WeightedBCE()(logits, labels, ratio)
    assert loss.item() == pytest.approx((0.312193 + 0.523936 + 0.766046 + 0.312193) / 2, abs=1e-6)
    loss.backward()
    assert (logits.grad[:, 1] == 0).all()


def test_an_attribute_that_nobody_has_gives_a_finite_loss():
    """Its weights are e for yes and 1 for no."""
    logits, ratio = torch.zeros(2, 1), torch.zeros(1)
    yes, no = (
        WeightedBCE().per_image(logits, torch.full((2, 1), label), ratio)[0].item() for label in (1, 0)
    )
    assert (yes, no) == pytest.approx((math.e * math.log(2), math.log(2)))


def test_positions_grow_from_16x8_to_16x12(golden):
    _, expected = golden
    positions = resize_pos_embed(expected["checkpoint_pos_embed"], (16, 8), (16, 12))
    torch.testing.assert_close(positions, expected["state/backbone.pos_embed"], rtol=1e-5, atol=1e-6)
    columns = torch.arange(8.0).repeat(16)
    table = torch.cat([torch.tensor([7.0]), columns]).view(1, 129, 1)
    row = resize_pos_embed(table, (16, 8), (16, 12))[0, 1:13, 0].tolist()
    assert row[:5] == pytest.approx([-0.086806, 0.406250, 1.212963, 1.787037, 2.5], abs=1e-5)
    assert row[5:] == pytest.approx(
        [3.212963, 3.787037, 4.5, 5.212963, 5.787037, 6.593750, 7.086806], abs=1e-5
    )


def test_an_officially_fine_tuned_file_is_taken_whole(golden, tmp_path):
    """Names with `module.`; what it calls an average is the same weights once more."""
    model, expected = golden
    raw = {f"module.{k.removeprefix('state/')}": v for k, v in expected.items() if k.startswith("state/")}
    file = tmp_path / "attributes.pth"
    average = {name.removeprefix("module."): value for name, value in raw.items()}
    torch.save({"state_dicts": raw, "state_dict_ema": average, "epoch": "7", "metric": 0.86}, file)
    other = AttributeViT(num_attributes=13, **TINY)
    report = load_weights(other, file)
    assert report.missing == report.unexpected == report.resized == ()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())


def test_resize_is_pillow_s_bilinear():
    stripes = np.zeros((768, 576, 3), np.uint8)
    stripes[:, ::3] = 255
    assert (resize(stripes, (256, 192), BILINEAR)[:, 1:-1] == 85).all()  # OpenCV's gives 0
    stripes = np.zeros((512, 384, 3), np.uint8)
    stripes[:, ::4] = 255
    inner = resize(stripes, (256, 192), BILINEAR)[0, 2:-2, 0]
    assert set(inner.tolist()) == {32, 96}

    def ramp(height: int, width: int) -> np.ndarray:
        values = (7919 * np.arange(height * width) % 256).astype(np.uint8).reshape(height, width)
        return np.asarray(Image.fromarray(values).convert("RGB"))

    shrunk = resize(ramp(640, 400), (256, 192), BILINEAR)[..., 0]
    assert shrunk[0, :6].tolist() == [136, 138, 109, 145, 148, 112]
    assert shrunk[1, :6].tolist() == [125, 111, 143, 152, 121, 102]
    assert shrunk.sum(dtype=int) == 6_267_197
    grown = resize(ramp(100, 50), (256, 192), BILINEAR)[..., 0]
    assert grown[0, :6].tolist() == [0, 0, 36, 98, 161, 223]
    assert grown.sum(dtype=int) == 6_261_379


def test_training_shifts_by_up_to_10_pixels_over_black_and_flips():
    image = np.full((256, 192, 3), 255, np.uint8)
    image[:, 96:] = 100
    transform, labels = AttributeTrain((256, 192)), np.array([1, 0, -1], np.int8)
    offsets, flipped = set(), 0
    for seed in range(400):
        sample = transform(image, {"labels": labels}, np.random.default_rng(seed))
        assert sample["image"].shape == (3, 256, 192)
        assert (sample["labels"] == labels).all()
        rows = np.flatnonzero(sample["image"][0].numpy().any(1))
        offsets.add(10 - int(rows[0]) if rows[0] else 265 - int(rows[-1]))
        line = sample["image"][0, 128]
        flipped += int(line[line > 0][0] == 100)
    assert offsets == set(range(21))
    assert 150 < flipped < 250
