"""The table, the schedule and the learning rate are those of the steps that really run."""

from pathlib import Path

import pytest
import torch
from conftest import TINY_PRETRAIN, config

from hap.checkpointing import read_checkpoint
from hap.errors import HapError
from hap.runner import run


def options(root: Path, *more: str) -> list[str]:
    quick = ["callbacks.pictures=null", "trainer.limit_val_batches=0", "task.recipe.base_lr=0.01"]
    return ["experiment=pretrain_hap", *TINY_PRETRAIN, *quick, f"data.root={root}", *more]


@pytest.mark.parametrize(
    ("limit", "steps"), [("0.5", 6), ("4", 4), ("1.0", 12), ("1", 1), ("100", 12)]
)  # of 12 steps of 8 images
def test_limited_epochs_have_the_whole_schedule(limit, steps, luperson, tmp_path, caplog):
    overrides = options(luperson, f"trainer.limit_train_batches={limit}", "data.reader.num_val=1", "epochs=3")
    with caplog.at_level("INFO"):
        results = run("train", config("train", *overrides), tmp_path / "run")
    assert results["steps"] == 3 * steps
    assert f"{steps} per epoch x 3 epochs = {3 * steps} ({3 * steps * 8} images)" in caplog.text
    checkpoint = read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    assert checkpoint["lr_schedulers"][0]["_last_lr"] == pytest.approx([0, 0], abs=1e-12)  # all the way down
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["initial_lr"] > 1e-4


def test_limited_epochs_are_resumed_where_they_ended(luperson, tmp_path):
    """At the end of a shortened epoch the next one follows, not the rest of the same."""
    more = ["trainer.limit_train_batches=3", "epochs=3", "callbacks.checkpoint.every_n_epochs=1"]
    run("train", config("train", *options(luperson, *more)), tmp_path / "whole")
    run("train", config("train", *options(luperson, *more, "trainer.max_steps=3")), tmp_path / "parts")
    run("train", config("train", *options(luperson, *more, "resume=auto")), tmp_path / "parts")
    whole, parts = (read_checkpoint(tmp_path / f / "checkpoints/last.ckpt") for f in ("whole", "parts"))
    assert whole["global_step"] == parts["global_step"] == 9
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(parts["state_dict"][name], value, rtol=0, atol=0)


def test_run_that_stops_early_keeps_its_schedule(luperson, tmp_path, caplog):
    with caplog.at_level("INFO"):
        run("train", config("train", *options(luperson, "trainer.max_steps=5")), tmp_path / "run")
    assert "= 22 (40 images) stops after 5; the schedule is of 22" in caplog.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_epochs=1", "set epochs"),
        ("+trainer.accumulate_grad_batches=4", "set micro_batch_size"),
        ("+trainer.overfit_batches=2", r"limit_train_batches=N.*data\.root"),
        ("+trainer.min_epochs=9", "set epochs"),
        ("+trainer.min_steps=9", "set epochs"),
        ("+trainer.max_time='00:00:01:00'", "timeout 2h"),
        ("+trainer.fast_dev_run=true", "debug=fast"),
        ("+trainer.reload_dataloaders_every_n_epochs=1", "order of its own"),
        ("trainer.use_distributed_sampler=true", "any number of devices"),
        ("trainer.max_steps=0", "dry_run=true"),
        ("trainer.limit_train_batches=0", "leaves none of the 11 steps"),
        ("trainer.limit_train_batches=0.01", "leaves none of the 11 steps"),
        ("trainer.precision=bf16-true", "bf16-mixed"),
        ("epochs=0", "epochs=0: at least 1"),
        ("epochs=-1", "epochs=-1: at least 1"),
        ("total_batch_size=0", "total_batch_size=0: at least 1"),
        ("micro_batch_size=0", "micro_batch_size=0: at least 1"),
        ("img_size=[64]", r"img_size=\[64\]: \[height, width\]"),
        ("img_size=[64,-32]", r"\[height, width\]"),
        ("seed=-1", "seed=-1: from 0 to 4294967295"),
        ("data.num_workers=-1", "data.num_workers=-1, .*at least 0 processes"),
        ("data.eval_batch_size=0", "data.eval_batch_size=0, .*at least 1 image"),
        ("data.max_bad_fraction=1.5", "data.max_bad_fraction=1.5: .*from 0 to 1"),
        ("task.recipe.warmup_epochs=-1", "task.recipe.warmup_epochs=-1: 0 or more"),
        ("task.recipe.base_lr=-1", "task.recipe.base_lr=-1: 0 or more"),
    ],
)
def test_other_steps_than_planned_are_refused(override, message, luperson, tmp_path):
    with pytest.raises(HapError, match=message):
        run("train", config("train", *options(luperson, override)), tmp_path / "run")
    assert not (tmp_path / "run/config.yaml").exists()


def test_more_devices_than_images(luperson, tmp_path):
    more = ["trainer=ddp_cpu", "total_batch_size=1"]
    with pytest.raises(HapError, match="total_batch_size=1 leaves some of the 2 devices without an image"):
        run("train", config("train", *options(luperson, *more)), tmp_path / "run")


def test_limit_within_a_step(luperson, tmp_path):
    more = ["micro_batch_size=4", "task.negatives=micro_batch", "trainer.limit_train_batches=3"]
    with pytest.raises(HapError, match="a multiple of 2"):
        run("train", config("train", *options(luperson, *more)), tmp_path / "run")


@pytest.mark.parametrize(("warmup", "warned"), [(40, True), (2, True), (0.2, False)])
def test_warm_up_that_never_ends(warmup, warned, luperson, tmp_path, caplog):
    more = [f"task.recipe.warmup_epochs={warmup}", "epochs=2", "dry_run=true"]
    run("train", config("train", *options(luperson, *more)), tmp_path / "run")
    assert ("task.recipe.warmup_epochs=0.2" in caplog.text) is warned


def test_no_validation_is_said(luperson, tmp_path, caplog):
    more = ["trainer.check_val_every_n_epoch=10", "trainer.limit_val_batches=1.0", "dry_run=true"]
    run("train", config("train", *options(luperson, *more)), tmp_path / "run")
    assert "no validation in 2 epochs" in caplog.text


def test_deterministic_leaves_no_kernel_to_chance():
    for deterministic in (True, False):
        cfg = config("train", "experiment=pretrain_hap", f"trainer.deterministic={deterministic}")
        assert cfg.trainer.benchmark is not deterministic
