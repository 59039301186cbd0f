"""The pre-training task: loss of the whole step, schedule, cost, pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_PRETRAIN, config
from torch.utils.data import default_collate

from hap.building import build
from hap.data.base import Dataset
from hap.flops import training_flops
from hap.optim import Recipe

DATA = Path(__file__).parent / "data"


def task_of(*overrides: str):
    torch.manual_seed(0)
    return build(config("train", "experiment=pretrain_hap", *overrides).task, "task")


@pytest.fixture(scope="module")
def batch(luperson):
    data = build(
        config("train", "experiment=pretrain_hap", *TINY_PRETRAIN, f"data.root={luperson}").data, "data"
    )
    dataset: Dataset = data.dataset("train")
    return default_collate([dataset[0, i] for i in range(24)])


def gradients(task, batch):
    task.zero_grad()
    losses = task.losses(task(batch), batch)
    losses["loss"].backward()
    return losses, {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("micro", [4, 6, 24])
def test_all_negatives_in_pieces_are_the_undivided_batch(batch, micro):
    task = task_of(*TINY_PRETRAIN)
    whole, expected = gradients(task, batch)
    task.micro_batch_size = micro
    pieces, actual = gradients(task, batch)
    for name, value in whole.items():
        torch.testing.assert_close(pieces[name], value, rtol=1e-5, atol=1e-6)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-5, atol=1e-6)


def test_micro_batches_alone_have_another_alignment_loss(batch):
    """What the exact mode is for: the mean over micro-batches compares with fewer images."""
    task = task_of(*TINY_PRETRAIN)
    whole, _ = gradients(task, batch)
    parts = [{k: v[i : i + 6] for k, v in batch.items()} for i in range(0, 24, 6)]
    alone = torch.stack([gradients(task, part)[0]["alignment"] for part in parts]).mean()
    assert whole["alignment"] > alone + 0.3
    expected = 0.4 * 2 * np.log(24 / 6)  # 2 x (2 tau) x the logarithm of the number of candidates
    assert abs(whole["alignment"] - alone - expected) < 0.15


def test_total_is_reconstruction_plus_weighted_alignment(batch):
    losses, _ = gradients(task_of(*TINY_PRETRAIN), batch)
    total = losses["reconstruction"] + 0.05 * losses["alignment"]
    torch.testing.assert_close(losses["loss"], total)


def test_plain_mae_has_one_view_and_no_alignment(luperson):
    overrides = [
        "experiment=pretrain_mae",
        *TINY_PRETRAIN[:-3],
        f"data.root={luperson}",
        "total_batch_size=8",
    ]
    cfg = config("train", *overrides)
    dataset = build(cfg.data, "data").dataset("train")
    task = build(cfg.task, "task")
    batch = default_collate([dataset[0, 0]])
    assert batch["scores"].shape == (1, 1, 8)
    assert set(task.losses(task(batch), batch)) == {"loss", "reconstruction"}
    assert task.model.mask_ratio == 0.75


def test_learning_rate_of_every_step():
    golden = json.loads((DATA / "pretrain_lr.json").read_text())
    cfg = config("train", "experiment=pretrain_hap")
    recipe: Recipe = build(cfg.task.recipe, "recipe")
    assert recipe.peak_lr(cfg.total_batch_size) == pytest.approx(golden["base_lr"])
    model = torch.nn.Linear(2, 2)
    for epoch, lr in golden["lr_at_epoch_fraction"].items():
        step = round(float(epoch) * 1000)
        optimizer, scheduler = recipe.build(model, 4096, 1000)
        scheduler.last_epoch = step - 1
        optimizer.step()
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(
            golden["base_lr"] * recipe.factor(step / 1000), rel=1e-9, abs=1e-18
        )
        assert golden["base_lr"] * recipe.factor(float(epoch)) == pytest.approx(lr, rel=1e-9, abs=1e-18)


def test_weight_decay_groups_are_the_official_ones():
    golden = json.loads((DATA / "pretrain_base_keys.json").read_text())["weight_decay_groups"]
    task = task_of("trainer=cpu")
    from hap.optim import parameter_groups

    groups = {group["weight_decay"]: set(group["names"]) for group in parameter_groups(task.model, 0.05)}
    assert groups == {0.0: set(golden["no_decay"]), 0.05: set(golden["decay"])}


def test_cost_of_the_paper_model_is_the_closed_form():
    """12 n D^2 + 2 n^2 D multiply-adds a block; patch embedding, decoder embedding, pixel head on removed patches."""

    def blocks(depth: int, tokens: int, width: int) -> int:
        return depth * (12 * tokens * width**2 + 2 * tokens**2 * width)

    view = blocks(12, 65, 768) + 65 * 768 * 512 + blocks(8, 129, 512) + 64 * 512 * 768
    expected = 6 * (2 * view + 128 * 768 * 768)  # two FLOPs, forward and twice that backward
    sample = {"image": torch.zeros(3, 256, 128, dtype=torch.uint8), "scores": torch.rand(2, 128)}
    assert training_flops(task_of("trainer=cpu"), sample) == pytest.approx(expected, rel=0.005)
    assert expected == pytest.approx(109.6e9, rel=0.01)


def test_pictures_show_what_was_removed(batch):
    task = task_of(*TINY_PRETRAIN).eval()
    with torch.no_grad():
        picture = task.pictures({k: v[:3] for k, v in batch.items()})["masks_and_reconstructions"]
    assert picture.dtype == np.uint8
    assert picture.shape[0] == 5 * (256 + 4) + 4  # four times as large
    grey = (picture == 128).all(-1).sum()
    inner = (4 * 16 - 4) ** 2  # of a patch, without the pixels at its edges, which the enlarging mixes
    assert grey >= 3 * 2 * 4 * inner  # half of 8 patches, two views, three images
