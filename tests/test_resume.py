"""Runs that are killed, stopped and continued. Each training runs in a process of its own, and is really killed."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY_PRETRAIN, config

from hap.checkpointing import CheckpointFiles, newest_intact, read_checkpoint
from hap.errors import HapError
from hap.runner import run

# Forked from a server that has imported everything and computed nothing: a second instead of ten per process.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["conftest", "hap.runner", "hap.tasks.pretrain", "hap.callbacks", "hap.models.mim"]
)


def overrides(data: Path, *more: str) -> list[str]:
    return [
        "experiment=pretrain_hap",
        *TINY_PRETRAIN,
        f"data.root={data}",
        "callbacks.pictures=null",
        "callbacks.checkpoint.every_n_steps=2",
        "resume=auto",
        *more,
    ]


def _train(options: list[str], run_dir: Path) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of loader workers, as in a program started by hand
    torch.set_num_threads(1)
    run("train", config("train", *options), run_dir)


def start(options: list[str], run_dir: Path) -> multiprocessing.process.BaseProcess:
    process = CONTEXT.Process(target=_train, args=(options, run_dir))
    process.start()
    return process


def train(options: list[str], run_dir: Path) -> dict:
    """Train to the end; the last checkpoint."""
    process = start(options, run_dir)
    process.join()
    assert process.exitcode == 0
    return read_checkpoint(newest_intact(run_dir / "checkpoints"))


def train_with_kills(options: list[str], run_dir: Path, kills: int, rng: random.Random) -> tuple[dict, int]:
    """Kill -9 at random moments from the first step on, `kills` times, then train to the end."""
    killed = 0
    while killed < kills:
        process = start(options, run_dir)
        before = newest_intact(run_dir / "checkpoints") if run_dir.exists() else None
        deadline = time.monotonic() + 60
        while process.is_alive() and time.monotonic() < deadline:
            if any((run_dir / "checkpoints").glob("*")) and _newest(run_dir) != before:
                break
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.15))  # within the next steps, or within the writing of a checkpoint
        if not process.is_alive():
            break
        process.kill()
        process.join()
        killed += 1
    return train(options, run_dir), killed


def _newest(run_dir: Path) -> Path | None:
    return max((run_dir / "checkpoints").glob("step-*.ckpt"), default=None)


def assert_same_training(a: dict, b: dict) -> None:
    """Equal weights, moments and step, bit for bit."""
    assert a["global_step"] == b["global_step"]
    for name, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][name]), name
    moments_a, moments_b = (x["optimizer_states"][0]["state"] for x in (a, b))
    for key in moments_a:
        assert torch.equal(moments_a[key]["exp_avg_sq"], moments_b[key]["exp_avg_sq"])


@pytest.fixture(scope="module")
def uninterrupted(luperson, tmp_path_factory) -> dict:
    return train(overrides(luperson), tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_killed_run_ends_bit_identical(luperson, uninterrupted, tmp_path, workers):
    options = overrides(luperson, f"data.num_workers={workers}")
    result, killed = train_with_kills(options, tmp_path / "run", kills=2, rng=random.Random(workers))
    assert killed == 2
    assert_same_training(result, uninterrupted)


def test_resumed_at_the_end_of_an_epoch_and_again(luperson, tmp_path):
    """Each resume must leave a state that the next can start from."""
    options = overrides(
        luperson, "epochs=4", "callbacks.checkpoint.every_n_steps=1", "callbacks.checkpoint.keep=null"
    )
    whole = train(options, tmp_path / "whole")
    folder = tmp_path / "run/checkpoints"
    folder.mkdir(parents=True)
    last = 11  # steps of an epoch
    (folder / f"step-{last:09d}.ckpt").write_bytes(
        (tmp_path / f"whole/checkpoints/step-{last:09d}.ckpt").read_bytes()
    )
    for stop in (15, 22, 33):
        train(options, tmp_path / "run")
        for path in folder.glob("step-*.ckpt"):
            if int(path.stem[5:]) > stop:
                path.unlink()
    assert_same_training(train(options, tmp_path / "run"), whole)


@pytest.mark.slow
def test_killed_run_with_accumulation_ends_bit_identical(luperson, tmp_path):
    options = overrides(luperson, "micro_batch_size=2", "task.negatives=micro_batch")
    whole = train(options, tmp_path / "whole")
    result, killed = train_with_kills(options, tmp_path / "run", kills=2, rng=random.Random(7))
    assert killed == 2
    assert_same_training(result, whole)


@pytest.mark.slow
def test_fifty_kills(luperson, tmp_path):
    """Long enough for fifty kills, at moments that fall into steps, validation and checkpoint writes."""
    options = overrides(luperson, "epochs=30", "callbacks.checkpoint.every_n_steps=1", "data.num_workers=1")
    whole = train(options, tmp_path / "whole")
    result, killed = train_with_kills(options, tmp_path / "run", kills=50, rng=random.Random(0))
    print(f"{killed} kills")
    assert killed == 50
    assert_same_training(result, whole)


def test_sigterm_saves_and_exits_cleanly(luperson, uninterrupted, tmp_path):
    options = overrides(
        luperson, "callbacks.checkpoint.every_n_steps=null", "callbacks.checkpoint.every_n_epochs=null"
    )
    process = start(options, tmp_path / "run")
    while not list((tmp_path / "run").glob("logs/*/metrics.csv")):  # written at the first step
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 0
    stopped = read_checkpoint(newest_intact(tmp_path / "run/checkpoints"))
    assert 0 < stopped["global_step"] < uninterrupted["global_step"]
    assert_same_training(train(options, tmp_path / "run"), uninterrupted)


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "hap.train", *options]


@pytest.mark.slow
def test_two_processes_stopped_and_continued_with_one(luperson, tmp_path):
    """The effective batch and the samples of each step stay, so one process ends where two would have."""
    distributed = overrides(
        luperson, "trainer=ddp_cpu", "trainer.enable_progress_bar=false", "micro_batch_size=4"
    )
    two = tmp_path / "two"
    subprocess.run(command(*distributed, f"run_dir={two}", "callbacks.checkpoint.keep=null"), check=True)
    halfway = two / "checkpoints/step-000000006.ckpt"  # in the middle of the first of two epochs
    one = tmp_path / "one"
    (one / "checkpoints").mkdir(parents=True)
    halfway.rename(one / "checkpoints" / halfway.name)
    for negatives in ("total_batch", "micro_batch"):
        continued = train(overrides(luperson, "micro_batch_size=4", f"task.negatives={negatives}"), one)
        whole = read_checkpoint(newest_intact(two / "checkpoints"))
        assert continued["global_step"] == whole["global_step"]
        if negatives == "total_batch":  # the other one has fewer negatives from here on
            for name, value in whole["state_dict"].items():
                torch.testing.assert_close(continued["state_dict"][name], value, rtol=1e-4, atol=1e-5)
        for path in (one / "checkpoints").glob("step-*.ckpt"):
            if path.name != halfway.name:
                path.unlink()


def test_damaged_checkpoints_are_passed_over(luperson, uninterrupted, tmp_path):
    options = overrides(luperson, "callbacks.checkpoint.keep=null")
    train(options, tmp_path / "run")
    files = sorted((tmp_path / "run/checkpoints").glob("step-*.ckpt"))
    data = bytearray(files[-1].read_bytes())
    data[len(data) // 2] ^= 1  # one flipped bit
    files[-1].write_bytes(data)
    files[-2].write_bytes(files[-2].read_bytes()[:1000])  # truncated
    assert newest_intact(files[0].parent) == files[-3]
    assert_same_training(train(options, tmp_path / "run"), uninterrupted)


def test_run_folder_is_never_overwritten(luperson, tmp_path):
    options = overrides(luperson, "epochs=1", "trainer.limit_train_batches=1")
    train(options, tmp_path / "run")
    before = (tmp_path / "run/config.yaml").read_bytes()
    with pytest.raises(HapError, match="holds a run already"):
        run("train", config("train", *options, "resume=null"), tmp_path / "run")
    assert (tmp_path / "run/config.yaml").read_bytes() == before


def test_a_changed_recipe_holds_from_the_resume_on(luperson, tmp_path):
    def recipe(file: Path) -> tuple[float, float]:
        group = read_checkpoint(file)["optimizer_states"][0]["param_groups"][0]
        return group["lr"], group["weight_decay"]

    options = overrides(luperson, "callbacks.checkpoint.keep=null", "task.recipe.base_lr=1e-3")
    train(options, tmp_path / "run")
    later = sorted((tmp_path / "run/checkpoints").glob("step-*.ckpt"))[4:]
    before = {file: recipe(file) for file in later}
    for file in later:
        file.unlink()
    train([*options, "task.recipe.base_lr=2e-3", "task.recipe.weight_decay=0.3"], tmp_path / "run")
    for file in later:
        lr, decay = recipe(file)
        assert lr == pytest.approx(2 * before[file][0])
        assert (before[file][1], decay) == (0.05, 0.3)


def test_checkpoint_that_is_not_there_is_an_error(luperson, tmp_path):
    with pytest.raises(HapError, match="checkpoint not found"):
        run("train", config("train", *overrides(luperson), f"ckpt_path={tmp_path}/x.ckpt"), tmp_path / "run")


def test_keeps_the_newest_and_a_link_to_the_last(luperson, tmp_path):
    train(overrides(luperson, "callbacks.checkpoint.keep=2"), tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == [
        "last.ckpt",
        "step-000000020.ckpt",
        "step-000000022.ckpt",
    ]
    assert (folder / "last.ckpt").resolve() == folder / "step-000000022.ckpt"


def test_minutes_between_checkpoints(luperson, tmp_path):
    options = ["callbacks.checkpoint.every_n_steps=null", "callbacks.checkpoint.every_n_minutes=0"]
    train(overrides(luperson, "callbacks.checkpoint.keep=null", *options), tmp_path / "run")
    assert len(list((tmp_path / "run/checkpoints").glob("step-*.ckpt"))) == 22


class FullDisk(bytes):
    """Stands for a tensor whose writing fails half way."""

    def __reduce__(self):
        raise OSError(28, "No space left on device")


def test_full_disk_leaves_the_earlier_checkpoints(tmp_path):
    files = CheckpointFiles()
    files.save_checkpoint({"state_dict": {}}, tmp_path / "step-1.ckpt")
    before = (tmp_path / "step-1.ckpt").read_bytes()
    with pytest.raises(HapError, match="No space left on device"):
        files.save_checkpoint({"state_dict": FullDisk()}, tmp_path / "step-1.ckpt")
    assert (tmp_path / "step-1.ckpt").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["step-1.ckpt"]


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HapError, match="cannot write the checkpoint"):
        CheckpointFiles().save_checkpoint({"state_dict": {}}, tmp_path / "file/step-1.ckpt")
