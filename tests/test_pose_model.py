"""The pose networks, their loss and recipes, against numbers of the official implementation.

tests/data/pose2d_*: golden files of the official code, heat maps cut to the first images.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hap.errors import HapError
from hap.losses import HeatmapLoss
from hap.models.checkpoint import resize_pos_embed
from hap.models.pose import HeatmapHead, PoseViT, split_experts
from hap.models.weight_file import WeightFile
from hap.models.weight_state import find_state
from hap.optim import StepRecipe
from hap.pose.codecs import UDP, Classic
from hap.pose.skeletons import AIC, COCO, MPII

DATA = Path(__file__).parent / "data"
TINY = {"patch_size": 16, "embed_dim": 48, "depth": 3, "num_heads": 4, "head_dim": 24}
BASE = {"img_size": (256, 192), "patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}


def ours(state: dict) -> dict[str, torch.Tensor]:
    """In our names, by the reader of such files."""
    return find_state(WeightFile("pytorch", {"state_dict": state, "meta": {}}, {}), "auto", None, "")[0]


def load(file: str) -> dict[str, torch.Tensor]:
    with np.load(DATA / file) as content:
        return {key: torch.from_numpy(content[key]) for key in content.files if key != "config"}


def part(values: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return ours({k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)})


def check_gradients(model: PoseViT, values: dict[str, torch.Tensor]) -> None:
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters()}
    expected = {name: value.item() for name, value in part(values, "gradnorm/").items()}
    assert norms == pytest.approx(expected, rel=1e-4, abs=1e-9)
    total = math.sqrt(sum(norm**2 for norm in norms.values()))
    assert total == pytest.approx(values["gradnorm_total"].item(), rel=1e-5)
    state = model.state_dict()
    for name, value in part(values, "after_train/").items():
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)


def flip_test(model: PoseViT, images: torch.Tensor, source: int, codec, skeleton) -> torch.Tensor:
    (heatmaps,), (mirrored,) = model(images, source), model(images.flip(3), source)
    return (heatmaps + codec.flip_back(mirrored, skeleton.flip_index)) / 2


def test_one_data_set_agrees_with_the_official_code():
    values, targets = load("pose2d_net_tiny.npz"), load("pose2d_targets_single.npz")
    model = PoseViT(num_joints=17, img_size=(128, 96), **TINY)
    model.load_state_dict(part(values, "state/"))
    images = values["images"]
    torch.testing.assert_close(model.feature_map(images, 0), values["feature"], rtol=1e-5, atol=1e-5)
    (heatmaps,) = model(images, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(heatmaps[:1], values["heatmap_train"], rtol=1e-5, atol=1e-6)
    loss = HeatmapLoss()(heatmaps, targets["target"], targets["target_weight"][..., 0])
    assert loss.item() == pytest.approx(values["loss"].item(), rel=1e-6)
    loss.backward()
    check_gradients(model, values)

    model.load_state_dict(part(values, "state/"))
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images[:1], 0)[0], values["heatmap_eval"], rtol=1e-5, atol=1e-6)
        for codec, name in ((UDP, "heatmap_flip"), (Classic, "heatmap_flip_shift")):
            found = flip_test(model, images[:1], 0, codec((128, 96)), COCO)
            torch.testing.assert_close(found, values[name], rtol=1e-5, atol=1e-6)


def test_three_data_sets_agree_with_the_official_code():
    values, targets = load("pose2d_multi_tiny.npz"), load("pose2d_targets_multi.npz")
    model = PoseViT(num_joints=17, num_sources=3, img_size=(64, 48), **TINY)
    model.load_state_dict(part(values, "state/"))
    images, source = values["images"], values["source"]
    torch.testing.assert_close(model.feature_map(images, source), values["feature"], rtol=1e-5, atol=1e-5)
    heads = model(images, source)
    losses = []
    for i, heatmaps in enumerate(heads):
        torch.testing.assert_close(heatmaps[:2], values[f"heatmap_train_head{i}"], rtol=1e-5, atol=1e-6)
        weight = targets["target_weight"][..., 0] * (source == i)[:, None]
        losses.append(HeatmapLoss()(heatmaps, targets["target"], weight))
    torch.testing.assert_close(torch.stack(losses).double(), values["loss_heads"].double(), rtol=1e-6, atol=0)
    sum(losses).backward()
    check_gradients(model, values)

    model.load_state_dict(part(values, "state/"))
    model.eval()
    with torch.no_grad():
        for i in range(3):
            (found,) = model(images[:2], i)
            torch.testing.assert_close(found, values[f"heatmap_eval_source{i}"], rtol=1e-5, atol=1e-6)
        found = flip_test(model, images[:2], 0, UDP((64, 48)), COCO)
        torch.testing.assert_close(found, values["heatmap_flip_source0"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "name", "codec", "skeleton"),
    [(0, "coco", UDP, COCO), (1, "aic", Classic, AIC), (2, "mpii", UDP, MPII)],
)
def test_a_part_split_off_is_the_same_network(source, name, codec, skeleton):
    values, joints = load("pose2d_multi_tiny.npz"), len(skeleton.joints)
    multi = PoseViT(num_joints=17, num_sources=3, img_size=(64, 48), **TINY).eval()
    multi.load_state_dict(part(values, "state/"))
    plain = PoseViT(num_joints=joints, img_size=(64, 48), **TINY).eval()
    state = split_experts(multi.state_dict(), source, joints)
    plain.load_state_dict(state)
    for key, value in part(values, f"split_{name}_state/").items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=0)
    images = values["images"][:2]
    with torch.no_grad():
        torch.testing.assert_close(
            plain(images, 0)[0], multi(images, source)[0][:, :joints], rtol=0, atol=1e-6
        )
        found = flip_test(plain, images, 0, codec((64, 48)), skeleton)
    torch.testing.assert_close(found, values[f"split_{name}_heatmap_flip"], rtol=1e-5, atol=1e-6)


# Of the formula in the name: mean and std of the features and corners, then of the heat maps.
BY_FORMULA = {
    None: (
        *(0.00065442, 1.00334544, -1.80238246, -1.78300180, -0.0179905008, 0.0115023261),
        *(-0.0285824574, -0.0261449120, -0.0091541071),
    ),
    0: (
        *(0.00041042, 0.99742609, -1.68866021, 1.82778230, 0.0151689179, 0.0212602505),
        *(-0.0057535217, -0.0095849703, 0.0391185336),
    ),
    1: (
        *(0.00040720, 0.99735202, -1.67839983, 0.53754168, 0.0151654374, 0.0215173471),
        *(-0.0057635789, -0.0099104404, 0.0391294401),
    ),
    2: (
        *(0.00030755, 0.99734089, -1.69482197, 0.77933960, 0.0151683040, 0.0213481878),
        *(-0.0057608820, -0.0097030250, 0.0391242693),
    ),
}


@pytest.mark.parametrize("experts", [False, True])
def test_a_network_by_formula(experts):
    """ViT-B with tensors 0.02 sin(0.01 i + rank of the official name), gains one more."""
    model = PoseViT(num_joints=17, num_sources=3 if experts else 1, **BASE).eval()
    names = {}
    for name, parameter in model.named_parameters():
        if name.startswith("heads."):
            if name.startswith("heads.0."):
                names["keypoint_head." + name.removeprefix("heads.0.")] = parameter
        else:
            names[f"backbone.{name}"] = parameter
    assert len(names) == (229 if experts else 157)
    with torch.no_grad():
        for rank, name in enumerate(sorted(names)):
            parameter = names[name]
            values = 0.02 * torch.sin(0.01 * torch.arange(parameter.numel(), dtype=torch.float64) + rank)
            gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(values.view_as(parameter) + gain)
        rows, columns, channels = torch.arange(256), torch.arange(192), torch.arange(3)
        image = torch.sin(0.05 * rows[:, None] + 0.03 * columns + channels[:, None, None].double()).float()[
            None
        ]
        for source, expected in BY_FORMULA.items():
            if (source is None) == experts:
                continue
            feature = model.feature_map(image, source or 0)
            y, feature = model.heads[0](feature), feature[0]
            found = [
                *(feature.mean(), feature.std(correction=0), feature[0, 0, 0], feature[767, 15, 11]),
                *(y.mean(), y.std(correction=0), y[0, 0, 0, 0], y[0, 5, 20, 30], y[0, 16, 63, 47]),
            ]
            np.testing.assert_allclose([value.item() for value in found], expected, atol=2e-6)


def test_patches_begin_outside_the_image():
    model = PoseViT(num_joints=17, **BASE | {"depth": 1, "embed_dim": 12})
    with torch.no_grad():
        model.patch_embed.proj.weight.fill_(1 / 3)
        model.patch_embed.proj.bias.zero_()
        out = model.patch_embed(torch.ones(1, 3, 256, 192))[0, :, 0].view(16, 12)
        assert out[0, 0].item() == pytest.approx(196, rel=1e-5)
        assert out[0, 1:].unique().tolist() == pytest.approx([224], rel=1e-5)
        assert out.sum().item() == pytest.approx(48260, rel=1e-5)
        edge = torch.zeros(1, 3, 256, 192)
        edge[..., 254:, :], edge[..., 190:] = 1, 1
        assert not model.patch_embed(edge).any()


def test_positions_of_another_grid():
    grid = torch.arange(16)[:, None] + 0.1 * torch.arange(8)
    pos = torch.cat([torch.zeros(1), grid.flatten()])[None, :, None]
    small = resize_pos_embed(pos, (16, 8), (16, 12))[0, 1:, 0].view(16, 12)
    row = [-0.008681, 0.040625, 0.121296, 0.178704, 0.25, 0.321296, 0.378704, 0.45, 0.521296, 0.578704]
    np.testing.assert_allclose(small[0], [*row, 0.659375, 0.708681], atol=1e-5)
    assert small[5, 7].item() == pytest.approx(5.45, abs=1e-5)
    assert small.sum().item() == pytest.approx(1507.2, abs=1e-2)
    large = resize_pos_embed(pos, (16, 8), (24, 18))[0, 1:, 0].view(24, 18)
    assert large[0, 0].item() == pytest.approx(-0.097672, abs=1e-5)
    assert large[5, 7].item() == pytest.approx(3.491667, abs=1e-5)
    assert large.sum().item() == pytest.approx(3391.2007, abs=1e-2)


@pytest.mark.parametrize(
    ("size", "sources", "joints", "encoder", "total"),
    [
        ((256, 192), 1, 17, 85_794_816, 89_994_513),
        ((256, 192), 1, 16, 85_794_816, 89_994_256),
        ((256, 192), 1, 14, 85_794_816, 89_993_742),
        ((384, 288), 1, 17, 85_979_136, 90_178_833),
        ((256, 192), 3, 17, 99_955_200, 112_554_291),
        ((384, 288), 3, 17, 100_139_520, 112_738_611),
    ],
)
def test_parameter_counts(size, sources, joints, encoder, total):
    with torch.device("meta"):
        model = PoseViT(num_joints=joints, num_sources=sources, **BASE | {"img_size": size})
    assert sum(p.numel() for p in model.parameters()) == total
    assert total - sum(p.numel() for p in model.heads.parameters()) == encoder


def test_drop_path_of_the_blocks():
    expected = json.loads((DATA / "pose2d_base_param_groups_coco.json").read_text())["drop_path"]
    with torch.device("meta"):
        model = PoseViT(num_joints=17, drop_path=0.29, **BASE)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx(expected, abs=1e-6)


def test_heads_reach_a_quarter_of_the_image_from_other_patches():
    head = HeatmapHead(16, 5, 8, patch_size=8)
    assert head(torch.rand(2, 16, 6, 4)).shape == (2, 5, 12, 8)
    assert head.final_layer.weight.std().item() < 0.003
    with pytest.raises(HapError, match="patch_size=14"):
        PoseViT(num_joints=5, img_size=(56, 42), patch_size=14, embed_dim=12, depth=1, num_heads=2)


def test_checkpointing_changes_nothing():
    torch.manual_seed(0)
    for sources in (1, 3):
        model = PoseViT(num_joints=5, num_sources=sources, img_size=(64, 48), grad_checkpointing=True, **TINY)
        images, source = torch.rand(2, 3, 64, 48), torch.tensor([0, sources - 1])
        found = []
        for checkpointed in (True, False):
            model.set_grad_checkpointing(checkpointed)
            model.zero_grad()
            sum(head.sum() for head in model(images, source)).backward()
            found.append(model.blocks[0].mlp.fc1.weight.grad.clone())
        torch.testing.assert_close(*found)


def test_loss_by_hand():
    out = torch.tensor([[[[1.0, 2], [3, 4]], [[0.5, 0.5], [0.5, 0.5]]], [[[0, 0], [0, 1]], [[1, 1], [1, 1]]]])
    target = torch.zeros_like(out)
    target[0, 0, 1, 1] = 1
    assert HeatmapLoss()(out, target, torch.tensor([[1.0, 0], [1, 1]])).item() == pytest.approx(1.75)
    maps, zeros = torch.full((3, 17, 64, 48), 0.1), torch.zeros(3, 17, 64, 48)
    weight = (torch.arange(17) < torch.tensor([17, 14, 16])[:, None]).float()
    losses = [HeatmapLoss()(maps, zeros, weight * torch.eye(3)[i][:, None]).item() for i in range(3)]
    assert losses == pytest.approx([0.00333333, 0.00274510, 0.00313725], abs=1e-8)


def test_learning_rate_of_every_step():
    recipe = StepRecipe(epochs=210, lr=1.0, milestones=(170, 200), warmup_steps=500)
    model = torch.nn.Linear(2, 2)
    model.blocks = []
    factor = recipe.build(model, 512, 293)[1].lr_lambdas[0]
    steps = {0: 0.001, 1: 0.002998, 100: 0.2008, 250: 0.5005, 499: 0.998002, 500: 1}
    assert {step: factor(step) for step in steps} == pytest.approx(steps)
    epochs = {169: 1, 170: 0.1, 199: 0.1, 200: 0.01, 209: 0.01}
    assert {epoch: factor(293 * epoch) for epoch in epochs} == pytest.approx(epochs)
    in_epochs = StepRecipe(epochs=4, lr=1.0, warmup_epochs=0.5).schedule(10, 10)
    assert [in_epochs(step) for step in (0, 5, 9)] == pytest.approx([0.001, 1, 1])
    adam = StepRecipe(epochs=1, lr=1.0, optimizer="adam", weight_decay=0, warmup_steps=2).build(model, 8, 3)[
        0
    ]
    assert type(adam) is torch.optim.Adam


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "lamb"}, "adamw, adam or sgd"),
        ({"optimizer": "sgd"}, "0 with optimizer=sgd"),
        ({"optimizer": "adam", "weight_decay": 0.1}, "0 with optimizer=adam"),
        ({"warmup_steps": 5, "warmup_epochs": 1}, "either warmup_steps or warmup_epochs"),
    ],
)
def test_recipes_that_contradict_themselves(arguments, message):
    with pytest.raises(ValueError, match=message):
        StepRecipe(epochs=1, lr=1.0, **arguments)


def test_experts_that_no_sample_needs_have_a_gradient_of_zero():
    """So that every rank has one for every parameter."""
    model = PoseViT(num_joints=5, num_sources=3, img_size=(64, 48), **TINY)
    F.mse_loss(model(torch.rand(2, 3, 64, 48), torch.tensor([0, 0]))[0], torch.zeros(2, 5, 16, 12)).backward()
    assert not model.blocks[0].mlp.experts[2].weight.grad.any()
    assert model.blocks[0].mlp.experts[0].weight.grad.any()
