"""What ends a training early: signals, exceptions, a rank that dies. Each in processes of its own, really stopped."""

import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import config
from test_resume import CONTEXT, assert_same_training, overrides, train

import hap.tasks.pretrain
from hap.checkpointing import checkpoints_in, newest_intact
from hap.errors import HapError
from hap.runner import run

AT = 5  # the step in which it happens


def _signal(number: int, run_dir: Path) -> None:
    os.kill(os.getpid(), number)


def _ignored(number: int, run_dir: Path) -> None:
    os.kill(os.getpid(), number)


def _twice(number: int, run_dir: Path) -> None:
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)


def _under_slurm(environment: dict[str, str], number: int, run_dir: Path) -> None:
    os.environ |= environment
    os.kill(os.getpid(), number)


def _limit_files(number: int, run_dir: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def _note_use(number: int, run_dir: Path) -> None:
    """Open files, megabytes of this process, megabytes of the largest loader process."""
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
    here, *loaders = (page * os.sysconf("SC_PAGE_SIZE") / 2**20 for page in pages)
    with (run_dir.parent / "use.txt").open("a") as file:
        print(len(os.listdir("/proc/self/fd")), here, max(loaders), file=file)


def _remove_logs(number: int, run_dir: Path) -> None:
    shutil.rmtree(run_dir / "logs")


def _remove_everything(number: int, run_dir: Path) -> None:
    shutil.rmtree(run_dir)


def _train_and(what: Callable, number: int, method: str, options: list[str], run_dir: Path) -> None:
    """Train; at the beginning of a step of training or validation something happens."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if what is _ignored:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    step = getattr(hap.tasks.pretrain.Pretrain, method)

    def with_event(task: torch.nn.Module, batch: dict, batch_idx: int) -> object:
        if batch_idx == (0 if method == "validation_step" else AT):
            what(number, run_dir)
        return step(task, batch, batch_idx)

    def at_once(task: torch.nn.Module) -> None:
        what(number, run_dir)

    setattr(hap.tasks.pretrain.Pretrain, method, with_event if method.endswith("step") else at_once)
    try:
        run("train", config("train", *options), run_dir)
    except Exception as error:
        (run_dir.parent / "error.txt").write_text(f"{type(error).__name__}: {error}")
        sys.exit(2)


def happens(
    what: Callable,
    options: list[str],
    run_dir: Path,
    number: int = 0,
    method: str = "training_step",
    within: float = 60,
) -> int:
    """The status of a training in which that happens. It ends within so many seconds."""
    process = CONTEXT.Process(target=_train_and, args=(what, number, method, options, run_dir))
    process.start()
    process.join(within)
    status = process.exitcode
    process.kill()
    assert status is not None
    return status


@pytest.fixture(scope="module")
def options(luperson) -> list[str]:
    """Checkpoints at the end alone."""
    more = "callbacks.checkpoint.every_n_steps=null", "callbacks.checkpoint.every_n_minutes=null"
    return overrides(
        luperson, *more, "callbacks.checkpoint.every_n_epochs=null", "trainer.check_val_every_n_epoch=1"
    )


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory) -> dict:
    return train(options, tmp_path_factory.mktemp("whole") / "run")


def steps(run_dir: Path) -> list[int]:
    return [int(path.stem[5:]) for path in reversed(checkpoints_in(run_dir / "checkpoints"))]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_saves_after_the_step(options, whole, tmp_path, number):
    assert happens(_signal, options, tmp_path / "run", number) == 0
    assert steps(tmp_path / "run") == [AT + 1]
    if number == signal.SIGINT:
        assert_same_training(train(options, tmp_path / "run"), whole)


def test_a_second_ctrl_c_ends_at_once(options, tmp_path):
    assert happens(_twice, options, tmp_path / "run", signal.SIGINT) == -signal.SIGINT
    assert steps(tmp_path / "run") == []


def test_a_signal_during_validation_saves_the_step_before(options, whole, tmp_path):
    assert happens(_signal, options, tmp_path / "run", signal.SIGTERM, "validation_step") == 0
    assert steps(tmp_path / "run") == [11]  # the last of the first epoch
    rows = next((tmp_path / "run").glob("logs/*/metrics.csv")).read_text()
    assert "val/loss" not in rows
    assert_same_training(train(options, tmp_path / "run"), whole)


@pytest.mark.parametrize(
    ("array", "job"), [({}, "4321"), ({"SLURM_ARRAY_JOB_ID": "4321", "SLURM_ARRAY_TASK_ID": "7"}, "4321_7")]
)
def test_slurm_queues_this_job_again_and_no_other(options, tmp_path, array, job):
    """A stand-in for scontrol notes what it is called with."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called.txt\n')
    scontrol.chmod(0o755)
    slurm = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "4321"} | array
    assert happens(partial(_under_slurm, slurm), options, tmp_path / "run", signal.SIGUSR2) == 0
    assert (tmp_path / "called.txt").read_text() == f"requeue {job}\n"
    assert steps(tmp_path / "run") == [AT + 1]


@pytest.mark.parametrize("what", [_remove_logs, _remove_everything])
def test_a_logger_that_cannot_write_costs_no_step(options, whole, tmp_path, what):
    assert happens(what, options, tmp_path / "run") == 2
    assert "metrics.csv" in (tmp_path / "error.txt").read_text()
    assert steps(tmp_path / "run") == [AT + 1]
    assert_same_training(train(options, tmp_path / "run"), whole)


def test_a_full_disk_is_named_with_what_was_needed(options, tmp_path):
    """A limit of 100 kB per file stands for the disk; a checkpoint needs more."""
    more = [*options, "callbacks.checkpoint.every_n_steps=2"]
    assert happens(_limit_files, more, tmp_path / "run") == 2
    assert re.search(
        r"File too large \([1-9]\d*\.\d MB are needed, .* are free\)", (tmp_path / "error.txt").read_text()
    )
    assert steps(tmp_path / "run") == [2, 4]
    assert newest_intact(tmp_path / "run/checkpoints").stem == "step-000000004"
    assert not list((tmp_path / "run/checkpoints").glob(".*.tmp"))


@pytest.mark.slow
def test_memory_and_open_files_stay_level(options, tmp_path):
    """440 steps, 40 validations and 220 checkpoints, with two loader processes."""
    more = "epochs=40", "data.num_workers=2", "callbacks.checkpoint.every_n_steps=2"
    assert happens(_note_use, [*options, *more], tmp_path / "run", within=600) == 0
    use = np.loadtxt(tmp_path / "use.txt")
    assert use.shape == (40, 3)
    early, late = use[5:15].mean(0), use[-10:].mean(0)
    assert late[0] == pytest.approx(early[0], abs=1)
    assert (late[1:] < early[1:] + 10).all()


# Lightning starts the other rank with the same script and arguments.
DRIVER = """
import os, signal
from functools import partial
from hap.cli import run_with_hydra
from hap.errors import HapError
from hap.runner import run
from hap.tasks.pretrain import Pretrain

step = Pretrain.training_step

def with_fault(task, batch, batch_idx):
    if batch_idx == 0:
        open(f"pid{task.global_rank}", "w").write(str(os.getpid()))
    if batch_idx == 3 and task.global_rank == int(os.environ["FAULT_IN_RANK"]):
        if os.environ["FAULT"] == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        raise HapError("no more images")
    return step(task, batch, batch_idx)

Pretrain.training_step = with_fault
run_with_hydra("train", partial(run, "train"))
"""


def is_there(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.parametrize(
    ("rank", "fault", "status", "said"),
    [
        (1, "SIGKILL", 2, "was killed by SIGKILL"),
        pytest.param(0, "HapError", 2, "hap: no more images", marks=pytest.mark.slow),
        pytest.param(1, "HapError", 2, "hap: no more images", marks=pytest.mark.slow),
        pytest.param(0, "SIGKILL", -9, "", marks=pytest.mark.slow),
    ],
)
def test_the_other_rank_ends_too(options, tmp_path, rank, fault, status, said):
    (tmp_path / "driver.py").write_text(DRIVER)
    command = [sys.executable, "driver.py", *options, "trainer=ddp_cpu", f"run_dir={tmp_path}/run"]
    environment = os.environ | {"FAULT_IN_RANK": str(rank), "FAULT": fault}
    with (tmp_path / "out.txt").open("w") as out:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
        assert process.wait(120) == status
    text = (tmp_path / "out.txt").read_text()
    assert said in text
    if (rank, fault) != (0, "SIGKILL"):
        assert f"rank {rank} " in text
        assert steps(tmp_path / "run") == [3]  # rank 0 could save
    pids = [int((tmp_path / f"pid{n}").read_text()) for n in (0, 1)]
    end = time.monotonic() + 60
    while any(map(is_there, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(is_there, pids))


def test_a_signal_before_the_first_step_ends_at_once(options, tmp_path):
    """While the first batch is read, for example; there is nothing new to save."""
    assert happens(_signal, options, tmp_path / "run", signal.SIGTERM, "on_train_epoch_start") == 128 + 15
    assert steps(tmp_path / "run") == []


def test_a_signal_that_is_ignored_stays_ignored(options, tmp_path):
    """As nohup does with SIGHUP."""
    assert happens(_ignored, [*options, "trainer.max_steps=8"], tmp_path / "run", signal.SIGHUP) == 0
    assert steps(tmp_path / "run") == [8]


SCALED = "[{_target_: lightning.pytorch.plugins.MixedPrecision, precision: 16-mixed, device: cpu}]"


@pytest.mark.parametrize(("infinite", "ends"), [((3, 4, 6, 7), False), ((3, 4, 5), True)])
def test_the_scaler_of_fp16_may_skip_two_steps_in_a_row(options, tmp_path, monkeypatch, infinite, ends):
    step = hap.tasks.pretrain.Pretrain.training_step

    def infinite_at_times(task: torch.nn.Module, batch: dict, batch_idx: int) -> torch.Tensor:
        return step(task, batch, batch_idx) * (float("inf") if batch_idx in infinite else 1)

    monkeypatch.setattr(hap.tasks.pretrain.Pretrain, "training_step", infinite_at_times)
    scaled = [*options, "epochs=1", "trainer.precision=null", f"+trainer.plugins={SCALED}"]
    if ends:
        with pytest.raises(HapError, match="not finite at step 6"):
            run("train", config("train", *scaled), tmp_path / "run")
        assert steps(tmp_path / "run") == []
    else:
        run("train", config("train", *scaled), tmp_path / "run")
        assert steps(tmp_path / "run") == [11]
