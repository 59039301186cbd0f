"""Child processes are real and really killed: none is left, and what happened to them is told in one message."""

import atexit
import gc
import importlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import rich
from rich.console import Console
from test_resume import CONTEXT

import hap.progress
from hap.cli import describe
from hap.data.base import BadSampleLog, Dataset, Loader
from hap.data.samplers import BatchPlan, EvalBatches, TrainBatches, permutation
from hap.errors import HapError
from hap.processes import prepare_worker
from hap.progress import progress
from hap.synthetic.datasets import synthesize


class Numbers(Dataset):
    """Samples 0, 1, ...; `fault` is called with each index, in the process that loads it."""

    def __init__(self, count: int, fault=lambda index: None):
        super().__init__(range(count), lambda *_: {})
        self.fault = fault

    def read(self, index):
        self.fault(index)
        return np.zeros((1, 1, 3), np.uint8), {}


def loader(dataset, workers: int, persistent: bool = False) -> Loader:
    batches = EvalBatches(len(dataset), 2)
    if persistent:
        batches = TrainBatches(permutation(dataset.records, 2, 0), BatchPlan.divide(2, None, 1))
    options = {"persistent_workers": persistent} if workers else {}
    return Loader(
        dataset,
        batches,
        BadSampleLog(dataset, None, 0.0),
        num_workers=workers,
        worker_init_fn=prepare_worker,
        **options,
    )


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def dies(index: int) -> None:
    if index == 13:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory is short


@pytest.mark.parametrize("persistent", [False, True])
def test_a_killed_loader_process_is_one_message_that_says_how_to_go_on(persistent):
    batches = loader(Numbers(40, dies), 2, persistent)
    with pytest.raises(HapError, match=r"memory ran out: lower data\.num_workers.*resume=auto"):
        list(batches)
    batches.close()
    assert multiprocessing.active_children() == []


def refuses(index: int) -> None:
    if index == 5:
        raise HapError("x.npy is damaged:\nmake it again")


def fails(index: int) -> None:
    if index == 5:
        raise KeyError("a bug")


def test_an_error_in_a_loader_process_arrives_as_if_there_were_none():
    for workers in (0, 1):
        with pytest.raises(HapError) as error:
            list(loader(Numbers(8, refuses), workers))
        assert str(error.value) == "x.npy is damaged:\nmake it again"
    with pytest.raises(HapError) as error:
        list(loader(Numbers(8, fails), 1))
    assert str(error.value) == "KeyError in a loader process: 'a bug' (HYDRA_FULL_ERROR=1 shows where)"


def test_signals_to_the_whole_job_leave_the_loader_processes_at_work():
    batches = iter(loader(Numbers(400), 2))
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            os.kill(worker.pid, number)
    assert sum(len(batch["index"]) for batch in batches) == 398


def _main(program: str, options: list[str], output: Path, prepare) -> None:
    os.setsid()  # a group of its own, as under a shell
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell ignores it for what runs in its background
    multiprocessing.set_start_method("fork", force=True)
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    prepare()
    sys.argv = [program, *options]
    status = 0
    try:
        importlib.import_module(f"hap.{program}").main()
    except SystemExit as end:
        status = end.code
    atexit._run_exitfuncs()
    os._exit(status)


def nothing() -> None:
    """Prepares a program for what it can do as it is."""


def start(program: str, options: list[str], output: Path, prepare=nothing):
    """`hap PROGRAM` as a process that need not import everything again; `output` is its standard error."""
    process = CONTEXT.Process(target=_main, args=(program, options, output, prepare))
    process.start()
    return process


def end(process, seconds: float = 60) -> int:
    process.join(seconds)
    assert process.exitcode is not None, "it is still running"
    return process.exitcode


UNFORESEEN = f"""
import multiprocessing, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_processes import Numbers, loader
kept = loader(Numbers(400), 2, persistent=True)
next(iter(kept))
print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
raise OSError("unforeseen")
"""


def test_a_program_that_fails_does_not_wait_for_its_loader_processes():
    program = subprocess.run([sys.executable, "-c", UNFORESEEN], capture_output=True, text=True, timeout=100)
    assert program.returncode == 1
    assert program.stderr.endswith("OSError: unforeseen\n")
    workers = [int(pid) for pid in program.stdout.split()]
    assert len(workers) == 2
    assert not any(is_running(pid) for pid in workers)


def _load_for_ever(pipe) -> None:
    multiprocessing.set_start_method("fork", force=True)
    batches = iter(loader(Numbers(400), 2, persistent=True))
    next(batches)
    pipe.send([worker.pid for worker in multiprocessing.active_children()])
    time.sleep(600)


def test_a_killed_program_takes_its_loader_processes_with_it():
    ours, theirs = CONTEXT.Pipe()
    program = CONTEXT.Process(target=_load_for_ever, args=(theirs,))
    program.start()
    workers = ours.recv()
    assert [is_running(pid) for pid in workers] == [True, True]
    program.kill()
    program.join()
    wait_until(lambda: not any(is_running(pid) for pid in workers), 10)


def test_what_is_repeated_leaves_no_file_and_no_process():
    def used() -> int:
        return len(os.listdir("/proc/self/fd"))

    def partly(batches) -> None:
        next(iter(batches))

    for use in (list, partly):
        for _ in range(3):  # what is opened once for all is open by then
            use(loader(Numbers(8), 2))
        before = used()
        for _ in range(20):
            use(loader(Numbers(8), 2))
        gc.collect()
        wait_until(lambda most=before: used() <= most)  # what has ended is closed a little later
        assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_drawing_ends_with_its_processes_and_can_begin_again(tmp_path, number, status):
    out = tmp_path / "drawn" / "people"
    options = ["dataset=luperson", "num_images=3000", f"out={out}", "num_workers=2"]
    program = start("synthesize", options, tmp_path / "stderr")
    wait_until(lambda: len(list(tmp_path.rglob("*.jpg"))) > 10)
    drawing = children(program.pid)
    assert len(drawing) >= 2
    os.kill(program.pid, number)
    assert end(program) == status
    wait_until(lambda: not any(is_running(pid) for pid in drawing), 10)
    if number != signal.SIGKILL:
        assert (
            tmp_path / "stderr"
        ).read_text() == "hap: stopped, nothing is left behind; the same command begins again\n"
        assert [path.name for path in out.parent.iterdir()] == [".people.lock"]
    synthesize("luperson", out, num_images=4)
    assert sorted(path.name for path in out.parent.iterdir()) == [".people.lock", "people"]
    assert len(list(out.rglob("*.jpg"))) == 4


def _die(job) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _full(job) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("fault", "message"),
    [pytest.param(_die, "memory ran out", marks=pytest.mark.slow), (_full, "cannot write .*No space left")],
)
def test_what_befalls_a_drawing_process_is_one_message(tmp_path, monkeypatch, fault, message):
    from hap.synthetic import datasets

    monkeypatch.setitem(datasets.WRITERS, "faulty", lambda out, count, seed, run: run(fault, range(count)))
    with pytest.raises(HapError, match=message):
        synthesize("faulty", tmp_path / "x", num_images=4, num_workers=1)
    assert [path.name for path in tmp_path.iterdir()] == [".x.lock"]


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "hap.progress")
    screen = StringIO()
    monkeypatch.setattr(rich, "_console", Console(file=screen, force_terminal=True))
    with progress("packing", 2000, 500) as advance:
        advance(1500)
    assert "packing" in screen.getvalue()
    assert "2000/2000" in screen.getvalue()
    assert not caplog.messages

    monkeypatch.setattr(rich, "_console", Console(file=StringIO()))
    with progress("packing", 2000, 500) as advance:
        advance(10)  # too early for a line
        monkeypatch.setattr(hap.progress, "SECONDS", 0)
        advance(1490)
    (line,) = (record.getMessage() for record in caplog.records if record.name == "hap.progress")
    assert line.startswith("packing: 2,000 of 2,000, ")
    assert line.endswith("0:00:00 left")


def test_a_key_of_another_program_is_answered_with_its_own(monkeypatch):
    from conftest import config

    for key, own in (("data.reader.require_pose", "require_pose"), ("num_worker", "num_workers")):
        with pytest.raises(Exception, match=r"Could not override|not in") as error:
            config("pack", f"{key}=false")
        assert f"did you mean '{own}'?" in describe(error.value, "pack")
