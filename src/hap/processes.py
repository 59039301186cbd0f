"""Child processes: how they start, what they answer to, and that none outlives the program, however it ends.

Signals that are sent to a whole job (Ctrl-C, SLURM's SIGTERM) reach the loader processes too. They ignore them:
training decides, stops after the step, and still gets its last batches. In return they watch their parent and
end with it, and the program kills what is left when it ends: Python itself would send SIGTERM and wait.
"""

import atexit
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import cv2

from hap.errors import HapError

_OF_THE_JOB = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)


def prepare_worker(_: int) -> None:
    """Run in each loader process before its first sample."""
    cv2.setNumThreads(0)  # OpenCV's own threads multiply under workers and slow each other down
    for number in _OF_THE_JOB:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


@contextmanager
def held_back(*numbers: signal.Signals) -> Iterator[None]:
    """Signals that come in here are answered afterwards; processes started in here never get them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """From now on the calling process ends as soon as the one that started it has, also if that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "for processes that multiprocessing has started"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@atexit.register
def _kill_daemons() -> None:
    """Before Python asks them to end: this module is imported after multiprocessing, so it comes first."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's would call their end an error
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
            child.join()


def from_workers(start: Callable[[], Iterator[Any]], advice: str) -> Generator[Any, None, None]:
    """What the DataLoader iterator made by `start` yields, with and without processes.

    Raises HapError with one message, in place of a traceback, if a process was killed (`advice` says how to go
    on) or raised an exception. Processes that are not persistent have ended when this does.
    """
    with _one_message(advice), held_back(*_OF_THE_JOB):  # until `prepare_worker` has run
        iterator = start()
    try:
        while True:
            with _one_message(advice):
                item = next(iterator, _END)
            if item is _END:
                return
            yield item
    finally:
        if not getattr(iterator, "_persistent_workers", True):  # else an exception would keep them alive
            getattr(iterator, "_shutdown_workers", lambda: None)()


_END = object()


@contextmanager
def _one_message(advice: str) -> Iterator[None]:
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    except Exception as error:
        text = str(error)
        died = re.match(r"DataLoader worker \(pid|Pin memory thread exited", text)
        if died or isinstance(
            error, (ConnectionError, EOFError)
        ):  # the latter from the handing over of a batch
            raise HapError(f"a loader process died, most likely because memory ran out: {advice}") from error
        if raised := re.match(r"Caught (\w+) in DataLoader worker process", text):
            message = re.split(rf"(?m)^(?:[\w.]+\.)?{raised[1]}(?:: |$)", text)[-1].strip()
            if raised[1] == HapError.__name__:
                raise HapError(message) from error
            raise HapError(
                f"{raised[1]} in a loader process: {message} (HYDRA_FULL_ERROR=1 shows where)"
            ) from error
        raise
    finally:
        # PyTorch's handler raises wherever the main thread happens to be, say in the writing of a checkpoint.
        # Without it the death of a process is found where its data is missing, after at most 5 s.
        if main and handler is not None:
            signal.signal(signal.SIGCHLD, handler)
