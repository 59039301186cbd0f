"""What accompanies a run: checkpoints and safety, throughput, progress, pictures, predictions."""

import logging
import os
import signal
import subprocess
import time
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import lightning as L
import numpy as np
import rich
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import default_collate

from hap.checkpointing import step_of
from hap.errors import HapError
from hap.flops import device_peak

log = logging.getLogger(__name__)


class Checkpoints(L.Callback):
    """Writes checkpoints, and stops all ranks together: on a non-finite loss, or on SIGTERM and SIGUSR2 (SLURM
    before the time is up) after saving. Under SLURM the latter also asks for the job to be queued again.

    The ranks agree by one small all-reduce per step, read one step later: the device is never waited for.

    Args:
        every_n_steps, every_n_epochs, every_n_minutes: when to write; None for never. The end of training
            always writes.
        keep: how many of the newest stay; None keeps all. `last.ckpt` points to the newest.
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
        self._saved_at = time.monotonic()
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Any, task: Any) -> None:
        # Lightning asks all ranks for a SIGTERM before every step and waits for the answer; `_agree` does not wait.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        # After Lightning has installed its own handlers: those communicate from inside the handler.
        for number in (signal.SIGTERM, signal.SIGUSR2):
            self._handlers[number] = signal.signal(number, self._on_signal)
        self._saved_at = time.monotonic()

    def on_train_end(self, trainer: Any, task: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._signal = number

    def on_train_batch_end(
        self,
        trainer: Any,
        task: Any,
        outputs: Any,
        batch: dict[str, torch.Tensor],
        batch_idx: int,
    ) -> None:
        not_finite, stop, minutes_up = self._agree(trainer, outputs["loss"], batch["index"])
        if not_finite:
            self._report_not_finite(trainer, not_finite)
        if trainer.fit_loop.epoch_loop._should_accumulate():
            self._signal = self._signal or stop  # in the middle of a step: stop after it
            return
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
            trainer.should_stop = True
            rank_zero_only(log.warning)(
                "stopped by signal %d after step %d, which is saved; go on with resume=auto", stop, step
            )
            if stop == signal.SIGUSR2 and "SLURM_JOB_ID" in os.environ and trainer.is_global_zero:
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)

    def _agree(self, trainer: Any, loss: torch.Tensor, index: torch.Tensor) -> tuple[Any, int, bool]:
        """Exchange this step's flags and return those of the step before (of this one on a CPU):
        ((step, indices) of a non-finite loss or None, number of the signal or 0, whether it is time to save)."""
        minutes = (time.monotonic() - self._saved_at) / 60
        minutes_up = self.every_n_minutes is not None and minutes >= self.every_n_minutes
        local = torch.tensor([0, self._signal, minutes_up], dtype=torch.float32)
        flags = local.to(loss.device, non_blocking=True)
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
            return None, 0, False
        flags, event, step, index = ready
        if event:
            event.synchronize()
        not_finite, stop, minutes_up = flags.tolist()
        return (step, index.tolist()) if not_finite else None, int(stop), bool(minutes_up)

    def _report_not_finite(self, trainer: Any, where: tuple[int, list[int]]) -> None:
        step, indices = where
        records = trainer.train_dataloader.dataset.records
        names = [records[i].name for i in indices]
        path = Path(trainer.default_root_dir) / f"not_finite_rank{trainer.global_rank}.txt"
        path.write_text("\n".join(names) + "\n")
        more = f", ... all {len(names)} of this rank in {path}"
        raise HapError(
            f"the loss is not finite at step {step}; its samples: {', '.join(names[:8])}{more if names[8:] else ''}. "
            "The last good checkpoint stays: go on from it with resume=auto and trainer.precision=32-true, or start "
            "a new run with weights= that checkpoint and a lower learning rate"
        )

    def _save(self, trainer: Any, task: Any) -> None:
        norms = torch._foreach_norm([p.detach() for p in task.parameters()])
        if not torch.isfinite(torch.stack(norms).sum()):
            raise HapError(
                f"weights are not finite after step {trainer.global_step}; no checkpoint of them is written"
            )
        folder = Path(trainer.default_root_dir) / "checkpoints"
        path = folder / f"step-{trainer.global_step:09d}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        self._saved_at = time.monotonic()
        if trainer.is_global_zero:
            link = folder / ".last.tmp"
            link.unlink(missing_ok=True)
            link.symlink_to(path.name)
            link.replace(folder / "last.ckpt")
            for old in sorted(folder.glob("step-*.ckpt"), key=step_of)[: -self.keep if self.keep else 0]:
                old.unlink()


class Throughput(L.Callback):
    """Logs `perf/`: images/s over all devices, TFLOP/s and share of the data-sheet peak per device, share of the
    time spent waiting for data; measured over `log_every_n_steps` steps, without waiting for the device."""

    def __init__(self) -> None:
        self._mark: tuple[float, int, float] | None = None
        self.images_per_second = float("nan")

    def on_train_epoch_start(self, trainer: Any, task: Any) -> None:
        self._mark = None  # validation lies between epochs

    def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        waited = trainer.train_dataloader.wait_seconds
        now, step = time.perf_counter(), trainer.global_step
        if self._mark is None:
            self._mark = now, step, waited
        start, first, waited_before = self._mark
        if step == first or (step - first < trainer.log_every_n_steps and not trainer.is_last_batch):
            return
        self._mark = now, step, waited
        seconds = now - start
        self.images_per_second = (step - first) * task.batch_plan.total / seconds
        tflops = self.images_per_second * task.flops_per_image / trainer.world_size / 1e12
        values = {
            "perf/images_per_s": self.images_per_second,
            "perf/tflops": tflops,
            "perf/data_wait": (waited - waited_before) / seconds,
            "train/lr": trainer.optimizers[0].param_groups[-1]["lr"],
        }
        if (peak := device_peak()) is not None:
            values["perf/peak_share"] = tflops / peak
        # As tensors on the CPU: Lightning would copy plain numbers to the device and wait for it.
        task.log_dict({name: torch.tensor(value) for name, value in values.items()})


class Progress(RichProgressBar):
    """Lightning's progress bar with the time left of the whole run, on a terminal. Elsewhere (a log file, a batch
    job) a line every `seconds`. In both, one line per epoch.

    What is shown is read from the device once a second at most: each reading waits for all that is queued there.

    Args:
        seconds: between two lines where there is no terminal.
    """

    def __init__(self, seconds: float = 30):
        self.terminal = rich.get_console().is_terminal
        super().__init__(refresh_rate=5 if self.terminal else 0)  # 0: no bar
        self.seconds = seconds
        self._start = (0.0, 0)
        self._shown_at = 0.0

    def on_train_start(self, trainer: Any, task: Any) -> None:
        super().on_train_start(trainer, task)
        self._start = time.monotonic(), trainer.global_step
        self._shown_at = time.monotonic()

    def time_left(self, trainer: Any) -> str:
        start, first = self._start
        done = trainer.global_step - first
        total = trainer.num_training_batches * (trainer.max_epochs or 0) / trainer.accumulate_grad_batches
        if done < 1:
            return "?"
        seconds = int((time.monotonic() - start) / done * (total - trainer.global_step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"

    def get_metrics(self, trainer: Any, task: Any) -> dict[str, Any]:
        shown = ("train/loss", "perf/images_per_s")
        values = {name: float(v) for name, v in trainer.callback_metrics.items() if name in shown}
        return {**values, "left": self.time_left(trainer)}

    def _update_metrics(self, trainer: Any, task: Any) -> None:
        if self._due(1):
            super()._update_metrics(trainer, task)

    def _due(self, seconds: float) -> bool:
        now = time.monotonic()
        if now - self._shown_at < seconds:
            return False
        self._shown_at = now
        return True

    def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, task, outputs, batch, batch_idx)
        if not self.terminal and trainer.is_global_zero and self._due(self.seconds):
            values = self.get_metrics(trainer, task)
            left = values.pop("left")
            log.info(
                "epoch %d/%d, pass %d/%d: %s (%s left)",
                *(trainer.current_epoch + 1, trainer.max_epochs),
                *(batch_idx + 1, trainer.num_training_batches, _text(values), left),
            )

    def on_train_epoch_end(self, trainer: Any, task: Any) -> None:
        super().on_train_epoch_end(trainer, task)
        values = {
            k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(("train/", "val/"))
        }
        rank_zero_only(log.info)(
            "epoch %d/%d: %s (%s left)",
            *(trainer.current_epoch + 1, trainer.max_epochs, _text(values), self.time_left(trainer)),
        )


def _text(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


class Pictures(L.Callback):
    """Before training and after each validation, the task's pictures of the same few validation samples; after a
    test, its report. PNG files in `pictures/`, and W&B or TensorBoard where they log."""

    def __init__(self, num_samples: int = 8):
        self.num_samples = num_samples

    @rank_zero_only
    def on_train_start(self, trainer: Any, task: Any) -> None:
        self.draw(trainer, task)

    @rank_zero_only
    def on_validation_end(self, trainer: Any, task: Any) -> None:
        self.draw(trainer, task)

    @rank_zero_only
    def on_train_end(self, trainer: Any, task: Any) -> None:
        files = sorted((Path(trainer.default_root_dir) / "pictures").glob("*.png"))
        if files:
            log.info("%s", "\n".join(["pictures, from before training to its end:", *map(str, files)]))

    @rank_zero_only
    def on_test_end(self, trainer: Any, task: Any) -> None:
        for name, picture in task.report(Path(trainer.default_root_dir)).items():
            save_picture(trainer, name, picture)

    def draw(self, trainer: Any, task: Any) -> None:
        dataset = trainer.datamodule.dataset("val")
        count = min(self.num_samples, len(dataset))
        batch = default_collate([dataset[0, i] for i in range(count)])
        batch = {name: value.to(task.device) for name, value in batch.items()}
        training = task.training
        task.eval()
        eager = torch.compiler.set_stance("force_eager")  # no further compilation for another batch size
        with torch.no_grad(), eager, trainer.precision_plugin.forward_context():
            pictures = task.pictures(batch)
        task.train(training)
        for name, picture in pictures.items():
            save_picture(trainer, name, picture)


def save_picture(trainer: Any, name: str, picture: np.ndarray) -> None:
    """Write an RGB picture (H, W, 3) uint8 to the run folder and hand it to the loggers."""
    file = f"{name}.png" if trainer.testing else f"{name}_step{trainer.global_step:07d}.png"
    path = Path(trainer.default_root_dir) / "pictures" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture, trainer.global_step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [picture], step=trainer.global_step)


class Predictions(L.Callback):
    """Collects `predict_step`'s rows from all ranks, in the order of the records, for the task to write."""

    def __init__(self) -> None:
        self._batches: list[dict[str, torch.Tensor]] = []

    def on_predict_batch_end(
        self,
        trainer: Any,
        task: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._batches.append({name: value.cpu() for name, value in outputs.items()})

    def on_predict_epoch_end(self, trainer: Any, task: Any) -> None:
        batches = self._batches
        if trainer.world_size > 1:
            gathered: Any = [None] * trainer.world_size if trainer.is_global_zero else None
            torch.distributed.gather_object(batches, gathered)
            batches = [batch for rank in gathered or [] for batch in rank]
        if trainer.is_global_zero:
            rows = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
            index, first = np.unique(rows.pop("index").numpy(), return_index=True)  # duplicates of padding go
            records = trainer.predict_dataloaders.dataset.records
            rows = {name: value[torch.from_numpy(first)] for name, value in rows.items()}
            task.write_predictions(rows, [records[i] for i in index], Path(trainer.default_root_dir))
