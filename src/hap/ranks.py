"""Several processes train together: when one ends before its time, the others end too, and say which it was."""

import logging
import os
import signal
import sys
import threading
import time
from typing import Any

import lightning as L
import torch

from hap.errors import HapError

log = logging.getLogger(__name__)

GRACE = 30.0  # seconds in which a process whose peers are gone may still save its state and clean up
_END = "hap-end"  # the thread that ends it then


class Ranks(L.Callback):
    """Watches the processes of this node. A rank that has raised, or lost another, may be waiting for the device,
    and the device for the other ranks (NCCL: half an hour), so each is given `GRACE` seconds for its own end.

    Under SLURM the processes of other nodes are ended by `srun --kill-on-bad-exit=1`.
    """

    def __init__(self) -> None:
        self._children: dict[int, Any] = {}  # started by Lightning in this process: local rank -> Popen
        self._done = threading.Event()
        self._ending = False
        self.cause: str | None = None  # of an exception: the rank that was lost

    def setup(self, trainer: Any, task: Any, stage: str) -> None:
        if trainer.world_size == 1:
            return
        self._check_same_start(trainer)
        launched = getattr(trainer.strategy.launcher, "procs", [])
        self._children = dict(enumerate(launched, start=1))
        for thread in threading.enumerate():
            if (
                thread.name == "child-process-observer"
            ):  # Lightning's: it kills this process at once, without a word
                thread._run = lambda: True  # type: ignore[attr-defined]
        threading.Thread(target=self._watch, args=(trainer.local_rank,), daemon=True).start()

    def teardown(self, trainer: Any, task: Any, stage: str) -> None:
        self._done.set()

    def _check_same_start(self, trainer: Any) -> None:
        """A shared file system may show the ranks different files for a moment."""
        starts: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(starts, str(trainer.ckpt_path))
        if len(set(starts)) > 1:
            raise HapError(
                f"the ranks would go on from different checkpoints ({', '.join(sorted(set(starts)))}): start again"
            )

    def _watch(self, local_rank: int) -> None:
        parent = os.getppid()
        while not self._done.wait(1):
            if self._children and (lost := self.lost()):
                self._end_within_grace(lost)
                return
            if (
                local_rank > 0 and os.getppid() != parent
            ):  # whoever started this rank started all of this node
                os._exit(2)

    def lost(self) -> str | None:
        """Which rank of this node has failed, and how."""
        for rank, process in self._children.items():
            if code := process.poll():
                how = (
                    f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
                )
                hint = (
                    "most likely because memory ran out"
                    if code == -signal.SIGKILL
                    else "see its message above"
                )
                return f"rank {rank} (pid {process.pid}) {how}, {hint}"
        return None

    def on_exception(self, trainer: Any, task: Any, exception: BaseException) -> None:
        if trainer.world_size == 1 or isinstance(exception, SystemExit):
            self._done.set()
            return
        if not isinstance(exception, HapError):  # "connection closed by peer": whose?
            patience = time.monotonic() + 10
            while self._children and not (lost := self.lost()) and time.monotonic() < patience:
                time.sleep(0.1)
            self.cause = lost if self._children else None
        self._end_within_grace(self.cause or f"rank {trainer.global_rank} stops: {exception}")

    def _end_within_grace(self, why: str) -> None:
        if self._ending:
            return
        self._ending = True
        log.error("%s; the other ranks are ended", why)
        for process in self._children.values():
            process.kill()
        end = threading.Timer(GRACE, os._exit, (2,))
        end.name, end.daemon = _END, True
        end.start()
        sys.stdout.flush()


def call_off_end() -> None:
    """This process has cleaned up after a run whose peers were lost, and has other runs before it."""
    for thread in threading.enumerate():
        if thread.name == _END and isinstance(thread, threading.Timer):
            thread.cancel()
