"""Losses against literal references, and on two processes against one."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from hap.losses import AlignmentLoss, ReconstructionLoss
from hap.metrics.losses import SplitLosses
from hap.models.mim import MaskedAutoencoder


def literal_reconstruction(pred: Tensor, target: Tensor, norm_target: bool) -> float:
    """Patch by patch, value by value."""
    errors = []
    for p, t in zip(pred.flatten(0, -2).tolist(), target.flatten(0, -2).tolist(), strict=True):
        if norm_target:
            mean = sum(t) / len(t)
            var = sum((x - mean) ** 2 for x in t) / (len(t) - 1)
            t = [(x - mean) / math.sqrt(var + 1e-6) for x in t]
        errors.append(sum((a - b) ** 2 for a, b in zip(p, t, strict=True)) / len(p))
    return sum(errors) / len(errors)


def literal_alignment(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Row by row of both directions; the other view is a constant."""

    def one_direction(queries: Tensor, keys: Tensor) -> Tensor:
        total = queries.new_zeros(())
        for i, query in enumerate(queries):
            logits = torch.stack([(query / query.norm()) @ (key / key.norm()) / temperature for key in keys])
            total = total + torch.log(logits.exp().sum()) - logits[i]
        return 2 * temperature * total / len(queries)

    return one_direction(a, b.detach()) + one_direction(b, a.detach())


@pytest.mark.parametrize("norm_target", [True, False])
def test_reconstruction_is_the_literal_one(norm_target):
    torch.manual_seed(0)
    pred, target = torch.randn(2, 3, 4, 12), 3 * torch.randn(2, 3, 4, 12) + 1
    loss = ReconstructionLoss(norm_target)
    assert loss(pred, target).item() == pytest.approx(
        literal_reconstruction(pred, target, norm_target), rel=1e-5
    )
    views = (loss(pred[0], target[0]) + loss(pred[1], target[1])) / 2
    assert loss(pred, target).item() == pytest.approx(views.item(), rel=1e-6)


def test_reconstruction_of_a_flat_patch_is_finite():
    pred = torch.zeros(1, 1, 12, requires_grad=True)
    loss = ReconstructionLoss()(pred, torch.full((1, 1, 12), 0.7))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-3)
    assert pred.grad.isfinite().all()


@pytest.mark.parametrize("norm_target", [True, False])
def test_a_perfect_prediction_gives_the_pixels_back(norm_target):
    torch.manual_seed(0)
    target = 3 * torch.randn(2, 3, 4, 12) + 1
    loss = ReconstructionLoss(norm_target)
    perfect = target
    if norm_target:
        perfect = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    assert loss(perfect, target).item() == pytest.approx(0, abs=1e-10)
    torch.testing.assert_close(loss.to_pixels(perfect, target), target)


@pytest.mark.parametrize("temperature", [0.2, 0.07])
def test_alignment_is_the_literal_one(temperature):
    torch.manual_seed(0)
    views = [torch.randn(5, 8, requires_grad=True) for _ in range(2)]
    loss, expected = AlignmentLoss(temperature)(*views), literal_alignment(*views, temperature)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for gradient, reference in zip(
        torch.autograd.grad(loss, views), torch.autograd.grad(expected, views), strict=True
    ):
        torch.testing.assert_close(gradient, reference)


def test_alignment_of_chance_and_of_equal_views():
    same = torch.ones(16, 8)
    assert AlignmentLoss(0.2)(same, same).item() == pytest.approx(0.8 * math.log(16), rel=1e-6)
    axes = torch.eye(16)
    assert AlignmentLoss(0.05)(axes, axes).item() == pytest.approx(0, abs=1e-5)
    assert AlignmentLoss(0.2)(axes, axes).item() < AlignmentLoss(0.2)(axes, axes.roll(1, 0)).item()


def test_losses_leave_autocast():
    torch.manual_seed(0)
    pred, target = torch.randn(2, 2, 3, 4, 12).bfloat16()
    a, b = torch.randn(2, 6, 8).bfloat16()
    for loss, inputs in ((ReconstructionLoss(), (pred, target)), (AlignmentLoss(), (a, b))):
        exact = loss(*(x.float() for x in inputs))
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(*inputs)
        assert value.dtype == torch.float32
        assert value.item() == exact.item()


def test_losses_of_a_split_do_not_depend_on_its_batches():
    """Images in any order, some twice; 10 in groups of 4: the last two are compared with nobody."""
    torch.manual_seed(0)
    tokens, losses = torch.randn(2, 10, 8), torch.rand(10)
    alignment = AlignmentLoss().eval()
    expected = torch.stack([alignment(*tokens[:, i : i + 4]) for i in (0, 4)]).mean()
    for batches in ([list(range(10))], [[9, 1, 3], [0, 2, 4, 5, 6], [7, 8, 1, 9]]):
        metric = SplitLosses(alignment, weight=0.05, group=4)
        for batch in batches:
            metric.update(torch.tensor(batch), losses[batch], tokens[:, batch])
        values = metric.compute()
        assert values["reconstruction"] == pytest.approx(losses.mean().item())
        assert values["alignment"] == pytest.approx(expected.item())
        assert values["loss"] == pytest.approx(losses.mean().item() + 0.05 * expected.item())


def test_reconstruction_of_each_image():
    torch.manual_seed(0)
    pred, target = torch.randn(2, 2, 3, 4, 12)
    each = ReconstructionLoss().per_image(pred, target)
    assert each.shape == (3,)
    assert each.mean().item() == pytest.approx(ReconstructionLoss()(pred, target).item(), rel=1e-6)


# --- two processes ---------------------------------------------------------------------------------------


def pretraining(rank: int, world_size: int, path: str) -> None:
    """One step on this rank's share of 6 images; writes the mean loss and rank 0's gradients."""
    if world_size > 1:
        dist.init_process_group("gloo", f"file://{path}.init", rank=rank, world_size=world_size)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = MaskedAutoencoder(
        (64, 32), 16, 32, 2, 4, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2
    )
    images, scores = torch.randn(6, 3, 64, 32), torch.rand(6, 2, 8)
    share = slice(rank * 6 // world_size, (rank + 1) * 6 // world_size)
    network = DistributedDataParallel(model) if world_size > 1 else model
    output = network(images[share], scores[share])
    loss = ReconstructionLoss()(output.pred, output.target) + AlignmentLoss()(*output.cls)
    loss.backward()
    loss = loss.detach()
    if world_size > 1:
        dist.all_reduce(loss)
    if rank == 0:
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        torch.save({"loss": loss / world_size, **gradients}, f"{path}.{world_size}")
    if world_size > 1:
        dist.destroy_process_group()


def test_two_processes_are_one_with_the_double_batch(tmp_path):
    path = str(tmp_path / "step")
    pretraining(0, 1, path)
    mp.spawn(pretraining, (2, path), nprocs=2)
    one, two = torch.load(f"{path}.1"), torch.load(f"{path}.2")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(
            two[name], one[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
