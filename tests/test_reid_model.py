"""ReID models and the triplet loss, against numbers of the official implementation."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from hap.losses import SoftTripletLoss
from hap.models.checkpoint import load_weights
from hap.models.heads import ReidLem, ReidViT
from hap.models.mim import MaskedAutoencoder
from hap.optim import parameter_groups

DATA = Path(__file__).parent / "data"
TINY = {"img_size": (96, 64), "patch_size": 16, "embed_dim": 64, "depth": 3, "num_heads": 4, "num_classes": 6}
BASE = {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}
NO_DECAY = frozenset({"cls_token", "pos_embed"})


def golden(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Tiny model with the official weights, and the official numbers."""
    model = {"vit": ReidViT, "lem": ReidLem}[name](**TINY)
    with np.load(DATA / f"reid_{name}_tiny.npz") as file:
        values = {key: torch.from_numpy(file[key]) for key in file.files}
    model.load_state_dict({k.removeprefix("state/"): v for k, v in values.items() if k.startswith("state/")})
    return model, values


@pytest.mark.parametrize("name", ["vit", "lem"])
def test_training_agrees_with_the_official_model(name):
    model, expected = golden(name)
    model.train()
    output = model(expected["images"])
    for i, (feature, logits) in enumerate(zip(*output, strict=True)):
        torch.testing.assert_close(feature, expected[f"train_feat{i}"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logits, expected[f"train_logit{i}"], rtol=1e-5, atol=1e-5)
    identity = torch.stack([F.cross_entropy(x, expected["pid"]) for x in output.logits]).mean()
    triplet = torch.stack([SoftTripletLoss()(x, expected["pid"]) for x in output.features]).mean()
    assert identity.item() == pytest.approx(expected["id_loss"].item(), abs=1e-5)
    assert triplet.item() == pytest.approx(expected["triplet_loss"].item(), abs=1e-5)
    (identity + triplet).backward()
    norms = {k.removeprefix("gradnorm/"): v.item() for k, v in expected.items() if k.startswith("gradnorm/")}
    assert norms == pytest.approx(
        {k: p.grad.norm().item() for k, p in model.named_parameters() if p.requires_grad}, rel=1e-4, abs=1e-5
    )


@pytest.mark.parametrize("name", ["vit", "lem"])
def test_evaluation_agrees_with_the_official_model(name):
    model, expected = golden(name)
    model.eval()
    with torch.no_grad():
        embedding = model(expected["images"]).embedding
    torch.testing.assert_close(embedding, expected["eval_feature"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        F.normalize(embedding), expected["eval_feature_normalised"], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(("model", "initialised"), [(ReidViT, 2), (ReidLem, 76)])
def test_what_a_pretraining_checkpoint_fills(tmp_path, model, initialised):
    sizes = {"img_size": (64, 32), "patch_size": 16, "embed_dim": 16, "depth": 12, "num_heads": 2}
    mae = MaskedAutoencoder(**sizes, decoder_embed_dim=16, decoder_depth=8, decoder_num_heads=2)
    torch.save(
        {"model": {f"mae.{k}": v for k, v in mae.state_dict().items()}, "arch": "hap"}, tmp_path / "hap.pth"
    )
    net = model(num_classes=3, **sizes)
    report = load_weights(net, tmp_path / "hap.pth", source="hap")
    assert (len(report.matched), len(report.unexpected)) == (150, 104)
    assert len(report.missing) == initialised
    assert torch.equal(net.norm.weight, mae.norm.weight)


@pytest.mark.parametrize(
    ("model", "height", "classes", "total", "trainable", "tensors"),
    [
        (ReidViT, 256, 751, 86_323_951, 86_323_951, 152),
        (ReidViT, 256, 1041, 86_546_961, 86_546_961, 152),
        (ReidViT, 384, 1041, 86_596_113, 86_596_113, 152),
        (ReidLem, 256, 751, 95_907_806, 95_905_502, 226),
        (ReidLem, 384, 751, 95_956_958, 95_954_654, 226),
        (ReidLem, 384, 1041, 96_625_698, 96_623_394, 226),
    ],
)
def test_sizes(model, height, classes, total, trainable, tensors):
    with torch.device("meta"):
        net = model(img_size=(height, 128), num_classes=classes, **BASE)
    assert sum(p.numel() for p in net.parameters()) == total
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == trainable
    assert len(net.state_dict()) == tensors


@pytest.mark.parametrize("height", [256, 384])
def test_shapes(height):
    with torch.device("meta"):
        net = ReidLem(img_size=(height, 128), num_classes=751, **BASE)
        maps = []
        net.conv_head.register_forward_hook(lambda module, inputs, output: maps.append(output.shape))
        output = net(torch.empty(2, 3, height, 128))
    assert [tuple(x.shape) for x in output.features] == [(2, 768), (2, 1536)]
    assert [tuple(x.shape) for x in output.logits] == [(2, 751)] * 2
    assert output.embedding.shape == (2, 2304)
    assert maps == [(2, 1536, height // 32, 4)]


def test_parameter_groups_are_the_official_ones():
    with torch.device("meta"):
        net = ReidLem(img_size=(256, 128), num_classes=1041, **BASE)
    groups = parameter_groups(net, weight_decay=0.05, no_decay=NO_DECAY, layer_decay=0.75)
    expected = json.loads((DATA / "reid_lem_base_param_groups.json").read_text())
    assert len(groups) == len(expected) == 28
    for group, official in zip(groups, expected, strict=True):
        assert group["lr_scale"] == pytest.approx(official["lr_scale"], rel=1e-9)
        assert group["weight_decay"] == official["weight_decay"]
        assert sorted(group["names"]) == sorted(official["params"])
    scales = {g["lr_scale"] for g in parameter_groups(net, 0.05, NO_DECAY, layer_decay=0.4)}
    assert sorted(scales)[::13] == pytest.approx([6.7108864e-06, 1.0])


def test_drop_path_grows_to_its_rate():
    net = ReidViT(
        img_size=(32, 32), patch_size=16, embed_dim=8, depth=12, num_heads=1, num_classes=2, drop_path=0.1
    )
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in net.blocks]
    assert rates == pytest.approx([i / 110 for i in range(12)])


def test_initialisation():
    torch.manual_seed(0)
    net = ReidLem(**TINY | {"num_classes": 500})
    assert net.head.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert not net.head.bias.any()
    bound = 1 / math.sqrt(128)
    assert net.conv_fc.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert 0.9 * bound < net.conv_fc.bias.abs().max() <= bound
    assert all((block.bn3.weight == 1).all() for block in net.conv_head)


def test_necks_have_no_bias_and_no_part_in_the_test_feature():
    model, expected = golden("lem")
    optimizer = torch.optim.SGD(parameter_groups(model, 0.05), lr=0.1)
    for _ in range(2):
        output = model(expected["images"])
        sum(F.cross_entropy(x, expected["pid"]) for x in output.logits).backward()
        optimizer.step()
    assert not model.bn.bias.any()
    assert not model.conv_bn.bias.any()
    model.eval()
    with torch.no_grad():
        before = model(expected["images"]).embedding
        for part in (model.bn, model.conv_bn, model.head, model.conv_fc):
            for value in part.state_dict().values():
                value.add_(1)
        assert torch.equal(model(expected["images"]).embedding, before)
        model.conv_head[2].bn3.running_var.mul_(2)
        assert not torch.equal(model(expected["images"]).embedding, before)


# ---- the triplet loss


FOUR = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 5.0], [6.0, 8.0]])


def reference(features: torch.Tensor, identity: torch.Tensor) -> float:
    losses = []
    for i, a in enumerate(features.double()):
        distance = [math.dist(a, b) for b in features.double()]
        positive = max(d for j, d in enumerate(distance) if identity[j] == identity[i])
        negative = min(d for j, d in enumerate(distance) if identity[j] != identity[i])
        losses.append(math.log1p(math.exp(positive - negative)))
    return sum(losses) / len(losses)


def test_triplet_by_hand():
    features = FOUR.clone().requires_grad_()
    loss = SoftTripletLoss()(features, torch.tensor([0, 0, 1, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(2.031917, abs=1e-6)
    gradient = [[-0.2044, -0.1475], [-0.1037, 0.5869], [0.0285, -0.4734], [0.2797, 0.0340]]
    torch.testing.assert_close(features.grad, torch.tensor(gradient), rtol=0, atol=1e-4)


@pytest.mark.parametrize("identity", [[0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 0, 1, 1, 1, 7, 7, 7, 7]])
def test_triplet_against_a_literal_reference(identity):
    features = torch.randn(9, 768, generator=torch.Generator().manual_seed(0)).mul_(1.5).requires_grad_()
    identity = torch.tensor(identity)
    loss = SoftTripletLoss()(features, identity)
    assert loss.item() == pytest.approx(reference(features.detach(), identity), rel=1e-5)


def test_triplet_edge_cases():
    loss = SoftTripletLoss()
    equal = torch.full((4, 3), 2.0, requires_grad=True)
    value = loss(equal, torch.tensor([0, 0, 1, 1]))
    value.backward()
    assert value.item() == pytest.approx(math.log(2))
    assert not equal.grad.any()
    far = torch.tensor([[0.0], [100.0], [0.0], [100.0]])  # p - n = 100, where exp overflows float32
    assert loss(far, torch.tensor([0, 0, 1, 1])).item() == 100.0
    assert loss(FOUR, torch.zeros(4, dtype=torch.long)).item() == 0  # nobody to be told apart from


def test_triplet_leaves_autocast():
    features = 20 * torch.randn(16, 768, generator=torch.Generator().manual_seed(0))
    identity = torch.arange(16) // 4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = SoftTripletLoss()(features, identity)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, SoftTripletLoss()(features, identity))


def _train_step(rank: int, world: int, file: str, results: str) -> None:
    """Gradients of one step on this rank's half of the batch, with DDP; and the loss of that half alone."""
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    model, expected = golden("vit")
    model = nn.parallel.DistributedDataParallel(model)
    part = slice(4 * rank, 4 * rank + 4)
    output = model(expected["images"][part])
    pid = expected["pid"][part]
    (F.cross_entropy(output.logits[0], pid) + SoftTripletLoss()(output.features[0], pid)).backward()
    if rank == 0:
        torch.save({k: p.grad for k, p in model.module.named_parameters()}, results)
    features, two = output.features[0].detach(), torch.tensor([0, 0, 1, 1])
    local = SoftTripletLoss(global_batch=False)(features, two)
    assert local.item() == pytest.approx(reference(features, two), rel=1e-5)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    results = tmp_path / "gradients.pt"
    torch.multiprocessing.spawn(_train_step, args=(2, str(tmp_path / "init"), str(results)), nprocs=2)
    model, expected = golden("vit")
    output = model(expected["images"])
    pid = expected["pid"]
    (F.cross_entropy(output.logits[0], pid) + SoftTripletLoss()(output.features[0], pid)).backward()
    gradients = torch.load(results, weights_only=True)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-5, atol=1e-5)
