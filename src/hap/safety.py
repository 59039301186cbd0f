"""Checkpoints during training, and what ends it early: a signal, a loss that is not finite, an exception."""

import logging
import os
import signal
import subprocess
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from hap.checkpointing import checkpoints_in, is_intact, point_to_last, read_checkpoint, set_aside
from hap.errors import HapError, printable

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
SKIPPED_STEPS = 3  # losses in a row that are not finite, under fp16: its scaler leaves such steps out


class Checkpoints(L.Callback):
    """Writes checkpoints, and stops all ranks together: on a loss that is not finite, or after saving on SIGTERM,
    Ctrl-C, a closed terminal (SIGHUP) and SIGUSR2 (SLURM before the time is up; there it also asks for the job to
    be queued again). A signal before the first step, and a second Ctrl-C, end the run at once. On an exception the
    last whole step is saved.

    The ranks agree by one small all-reduce per step, read one step later: the device is never waited for.

    Args:
        every_n_steps, every_n_epochs, every_n_minutes: when to write; None for never. The end of training
            always writes.
        keep: how many of the newest stay, damaged ones not counted; None keeps all. `last.ckpt` points to the
            newest.

    Where validation has data of its own, `best.ckpt` is the epoch with the highest score by `Task.best_of`, the first
    of equals. Where it is the test data that epoch is a number in the results, `best_test/...`: of what was chosen on
    the test no file is kept.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = 1,
        every_n_minutes: float | None = None,
        keep: int | None = 3,
    ):
        self.every_n_steps, self.every_n_epochs, self.every_n_minutes = (
            every_n_steps,
            every_n_epochs,
            every_n_minutes,
        )
        self.keep = keep
        self._signal = 0
        self._pending: tuple[torch.Tensor, torch.cuda.Event | None, int, torch.Tensor] | None = None
        self._not_finite = 0  # such losses in a row
        # Where the run is after the last whole step: the step, and Lightning's counters with the loader's place.
        self._position: tuple[int, dict[str, Any]] | None = None
        self._can_save = (
            False  # not before a whole step, nor once the loss was not finite or the writing failed
        )
        self._saved_step = -1
        self._saved_at = time.monotonic()
        self.best: dict[str, float] = {}  # for the results
        self._intact: set[Path] = set()  # written or verified by this process
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Any, task: Any) -> None:
        # Lightning asks all ranks for a SIGTERM before every step and waits for the answer; `_agree` does not wait.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        # After Lightning has installed its own handlers: those communicate from inside the handler.
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves SIGHUP
                self._handlers[number] = signal.signal(number, self._on_signal)
        self._saved_at = time.monotonic()
        self._find_best(trainer)
        if trainer.received_sigterm:  # since then
            self._on_signal(signal.SIGTERM, None)
        if trainer.is_global_zero:
            origin = Path(trainer.ckpt_path) if trainer.ckpt_path else None
            set_aside(_folder(trainer), trainer.global_step, origin)
            self._intact |= {origin} if origin else set()

    def on_train_end(self, trainer: Any, task: Any) -> None:
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # a second Ctrl-C ends at once
        self._signal = number
        if self._position is None:
            raise SystemExit(128 + number)

    def on_train_batch_end(
        self,
        trainer: Any,
        task: Any,
        outputs: Any,
        batch: dict[str, torch.Tensor],
        batch_idx: int,
    ) -> None:
        stop, minutes_up = self._agree(trainer, batch["index"], outputs["loss"])
        if trainer.fit_loop.epoch_loop._should_accumulate():
            self._signal = self._signal or stop  # in the middle of a step: stop after it
            return
        self._position, self._can_save = (trainer.global_step, _loops(trainer)), True
        step, epoch_done = trainer.global_step, trainer.is_last_batch
        due = (
            stop
            or minutes_up
            or (self.every_n_steps and step % self.every_n_steps == 0)
            or (epoch_done and self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0)
            or (epoch_done and trainer.current_epoch + 1 == trainer.max_epochs)
            or step == trainer.max_steps
        )
        if due:
            self._save(trainer, task)
        if stop:
            self._leave(trainer, stop)

    def on_validation_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Any, *where: Any) -> None:
        """A stop does not wait for the end of a validation within training."""
        if self._position is None:
            return
        stop, _ = self._agree(trainer, batch["index"])
        if stop:
            if self._saved_step != trainer.global_step:
                self._save(trainer, task)
            self._leave(trainer, stop)

    def on_validation_end(self, trainer: Any, task: Any) -> None:
        """By now the scores of the validation are there."""
        if self._position is None:
            return
        if task.learns_from_validation and self._saved_step == trainer.global_step:
            self._save(trainer, task)
        if task.best_of is None:
            return
        best = f"best_{trainer.datamodule.val_split}"
        value = float(trainer.callback_metrics[f"val/{task.best_of}"])
        before, sign = self.best.get(f"{best}/{task.best_of}"), -1 if task.lowest_is_best else 1
        if before is None or sign * value > sign * before:
            self.best = {f"{best}/{task.best_of}": value, f"{best}/epoch": trainer.current_epoch}
            if best == "best_val":
                self._write(trainer, _folder(trainer) / "best.ckpt")

    def _find_best(self, trainer: Any) -> None:
        """The checkpoint at the end of an epoch is written before its validation: what was the best by then, the best
        one knows itself."""
        path = _folder(trainer) / "best.ckpt"
        if trainer.ckpt_path and is_intact(path):
            kept = read_checkpoint(path, verified=True)
            if kept["global_step"] <= trainer.global_step:
                self.best = kept["callbacks"][self.state_key]["best"]

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]

    def _agree(self, trainer: Any, index: torch.Tensor, loss: torch.Tensor | None = None) -> tuple[int, bool]:
        """Exchange this step's flags and return those of the step before (of this one on a CPU): number of the
        signal or 0, whether it is time to save. Raises HapError where the loss was not finite."""
        minutes = (time.monotonic() - self._saved_at) / 60
        minutes_up = self.every_n_minutes is not None and minutes >= self.every_n_minutes
        local = torch.tensor([0, self._signal, minutes_up], dtype=torch.float32)
        flags = local.to(index.device, non_blocking=True)
        if loss is not None:
            flags[0] = ~torch.isfinite(loss.detach())
        if trainer.world_size > 1:
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        event = None
        if flags.is_cuda:
            flags = flags.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        current = (flags, event, trainer.global_step, index)
        ready, self._pending = (self._pending, current) if event else (current, None)
        if ready is None:
            return 0, False
        flags, event, step, index = ready
        if event:
            event.synchronize()
        not_finite, stop, save = flags.tolist()
        self._not_finite = self._not_finite + 1 if not_finite else 0
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if self._not_finite >= (1 if scaler is None else SKIPPED_STEPS):
            self._can_save = False
            self._report_not_finite(trainer, step, index.tolist())
        return int(stop), bool(save)

    def _report_not_finite(self, trainer: Any, step: int, indices: list[int]) -> None:
        records = trainer.train_dataloader.dataset.records
        names = [printable(records[i].name) for i in indices]
        path = Path(trainer.default_root_dir) / f"not_finite_rank{trainer.global_rank}.txt"
        path.write_text("\n".join(names) + "\n")
        more = f", ... all {len(names)} of this rank in {path}"
        raise HapError(
            f"the loss is not finite at step {step}; its samples: {', '.join(names[:8])}{more if names[8:] else ''}. "
            "The last good checkpoint stays: go on from it with resume=auto and trainer.precision=32-true, or start "
            "a new run with weights= that checkpoint and a lower learning rate"
        )

    def _save(self, trainer: Any, task: Any) -> None:
        """Write the state after the last whole step."""
        self._can_save = False
        norms = torch._foreach_norm([p.detach() for p in task.parameters()])
        if not torch.isfinite(torch.stack(norms).sum()):
            raise HapError(
                f"weights are not finite after step {trainer.global_step}; no checkpoint of them is written"
            )
        path = _folder(trainer) / f"step-{trainer.global_step:09d}.ckpt"
        self._write(trainer, path)
        self._can_save, self._saved_step, self._saved_at = True, trainer.global_step, time.monotonic()
        if trainer.is_global_zero:
            self._intact.add(path)
            point_to_last(path.parent)
            self._prune(path.parent)

    def _write(self, trainer: Any, path: Path) -> None:
        """Trainer.save_checkpoint without the barrier at its end: after an exception the other ranks are not there."""
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        trainer.strategy.save_checkpoint(checkpoint, path)

    def on_save_checkpoint(self, trainer: Any, task: Any, checkpoint: dict[str, Any]) -> None:
        if self._position is not None:
            checkpoint["loops"] = self._position[1]

    def _prune(self, folder: Path) -> None:
        intact = 0
        for path in checkpoints_in(folder) if self.keep else []:
            if intact == self.keep:
                path.unlink()
            elif path in self._intact or is_intact(path):
                self._intact.add(path)
                intact += 1

    def _leave(self, trainer: Any, number: int) -> None:
        rank_zero_only(log.warning)(
            "stopped by %s after step %d, which is saved; go on with resume=auto",
            signal.Signals(number).name,
            trainer.global_step,
        )
        if trainer.is_global_zero:
            _requeue(number)
        raise SystemExit(0)  # not only this run: a sweep in the same process, too

    def on_exception(self, trainer: Any, task: Any, exception: BaseException) -> None:
        self._restore_handlers()
        if isinstance(exception, SystemExit):
            if self._position is None and self._signal:
                name = signal.Signals(self._signal).name
                rank_zero_only(log.warning)("stopped by %s before the first step: nothing to save", name)
                if trainer.is_global_zero:
                    _requeue(self._signal)
            return
        step = trainer.global_step
        whole = self._position is not None and self._position[0] == step  # not within the optimiser's step
        if not (self._can_save and whole and trainer.is_global_zero) or isinstance(
            exception, KeyboardInterrupt
        ):
            return
        try:
            if self._saved_step != step:
                self._save(trainer, task)
            log.error("step %d is saved: once the cause is mended, go on with resume=auto", step)
        except Exception as error:
            log.error("step %d could not be saved: %s", step, error)


def _folder(trainer: Any) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints"


def _loops(trainer: Any) -> dict[str, Any]:
    """Lightning's counters and the loader's place, as a checkpoint of this moment holds them."""
    loops = trainer._checkpoint_connector._get_loops_state_dict()
    # In a run that was resumed at the end of an epoch, Lightning's count of epochs begun stays one behind; a second
    # resume would then repeat an epoch. This is within an epoch: that is the count.
    epoch = trainer.current_epoch
    for counts in loops["fit_loop"]["epoch_progress"].values():
        counts.update(ready=epoch + 1, started=epoch + 1, processed=epoch, completed=epoch)
    return loops


def _requeue(number: int) -> None:
    """Ask SLURM to queue this job again, of an array this task alone."""
    if number != signal.SIGUSR2 or "SLURM_JOB_ID" not in os.environ:
        return
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("job %s could not be queued again: %s", job, error)
