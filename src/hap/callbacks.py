"""What accompanies a run: throughput, progress, pictures, predictions. (Checkpoints are in hap.safety.)"""

import json
import logging
import shutil
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import rich
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import default_collate

from hap.data.files import first_lines
from hap.data.samplers import fingerprint
from hap.errors import HapError
from hap.flops import device_peak
from hap.loggers import WandbRun
from hap.plots import write_picture
from hap.progress import clock, progress
from hap.spool import Spool, begun, checksum

log = logging.getLogger(__name__)


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
    job) a line every `seconds`. In both, one line per epoch. Evaluation and prediction have a bar of their own, which
    counts images.

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
        self._bar = ExitStack()
        self._advance: Callable[[int], None] = lambda count: None

    def setup(self, trainer: Any, task: Any, stage: str) -> None:
        super().setup(trainer, task, stage)
        if stage != "fit":
            self.disable()

    def _show(self, trainer: Any, what: str, loader: Any, done: int = 0) -> None:
        if trainer.is_global_zero:
            records = loader.dataset.records
            bar = progress(what, len(records), done, sum_up=True, units=_units(records))
            self._advance = self._bar.enter_context(bar)

    def on_validation_start(self, trainer: Any, task: Any) -> None:
        super().on_validation_start(trainer, task)
        if trainer.state.fn == "validate":
            self._show(trainer, "validation", trainer.val_dataloaders)

    def on_test_start(self, trainer: Any, task: Any) -> None:
        self._show(trainer, "evaluation", trainer.test_dataloaders)

    def on_predict_start(self, trainer: Any, task: Any) -> None:
        self._show(trainer, "prediction", trainer.predict_dataloaders, len(trainer.datamodule.done))

    def on_validation_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Any, *place: int) -> None:
        super().on_validation_batch_end(trainer, task, outputs, batch, *place)
        self._advance(len(batch["index"]) * trainer.world_size)

    def on_test_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Any, *place: int) -> None:
        self._advance(len(batch["index"]) * trainer.world_size)

    def on_predict_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Any, *place: int) -> None:
        self._advance(len(batch["index"]) * trainer.world_size)

    def on_validation_epoch_end(self, trainer: Any, task: Any) -> None:
        super().on_validation_epoch_end(trainer, task)
        self._bar.close()

    def on_test_epoch_end(self, trainer: Any, task: Any) -> None:
        self._bar.close()

    def on_predict_epoch_end(self, trainer: Any, task: Any) -> None:
        self._bar.close()

    def on_exception(self, trainer: Any, task: Any, exception: BaseException) -> None:
        self._bar.close()
        super().on_exception(trainer, task, exception)

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
        return clock(seconds)

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


def _units(records: Any) -> Mapping[str, float]:
    """What a record is: an image, or one of the people in images (`num_images`)."""
    images = getattr(records, "num_images", None)
    return {"images": 1} if images is None else {"people": 1, "images": images / len(records)}


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
        dataset = trainer.test_dataloaders.dataset
        for name, picture in task.report(Path(trainer.default_root_dir), dataset).items():
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
    write_picture(path, picture)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture, trainer.global_step, dataformats="HWC")
        elif isinstance(logger, WandbRun):
            logger.log_image(name, [picture])


class Predictions(L.Callback):
    """Spools `predict_step`'s rows, and hands those of all ranks to the task to write, in the order of the records.
    Images that could not be read have none; if that is all of them, it is an error.

    A prediction that was stopped goes on in its run folder, which all ranks share: images that have rows there are not
    read again, those that could not be read are. The rows go when the results are written.
    """

    def __init__(self) -> None:
        self._spool: Spool | None = None

    def setup(self, trainer: Any, task: Any, stage: str) -> None:
        if stage != "predict":
            return
        config = task.description["config"]
        made_by = {key: config[key] for key in ("task", "model", "img_size")} | {
            "transforms": config["data"]["transforms"]
        }
        origin = {
            **fingerprint(trainer.datamodule.records("predict")),
            "weights": checksum(task.state_dict()),
            "settings_of_the_task": f"{zlib.crc32(json.dumps(made_by).encode()):08x}",
            "precision": trainer.precision,
        }
        run, rank = Path(trainer.default_root_dir), trainer.global_rank
        files = trainer.strategy.broadcast(begun(run / "spool", origin) if rank == 0 else [])
        self._spool = Spool(run / "spool", rank, files)
        trainer.datamodule.done = self._spool.done
        if rank == 0:
            if len(self._spool.done):
                log.info("%s of the predictions are there already", f"{len(self._spool.done):,}")
            for path in run.glob("bad_samples_predict_*.txt"):
                path.unlink()  # of images that are read again

    def on_predict_batch_end(
        self,
        trainer: Any,
        task: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self._spool is not None
        self._spool.add(outputs)
        if trainer.received_sigterm:  # Lightning itself would go on
            raise SIGTERMException

    def on_exception(self, trainer: Any, task: Any, exception: BaseException) -> None:
        if self._spool is not None:
            with suppress(HapError):  # what has come before it is the news
                self._spool.flush()

    def on_predict_epoch_end(self, trainer: Any, task: Any) -> None:
        assert self._spool is not None
        self._spool.flush()
        files = [self._spool.files]
        if trainer.world_size > 1:
            files *= trainer.world_size
            torch.distributed.all_gather_object(files, self._spool.files)
        if trainer.is_global_zero:
            index, rows = self._spool.rows(chain.from_iterable(files))
            loader, folder = trainer.predict_dataloaders, Path(trainer.default_root_dir)
            records = loader.dataset.records
            if not len(index):
                reasons = first_lines(loader.report.damaged)
                raise HapError(f"none of the {len(records):,} images can be read{reasons}")
            task.write_predictions(rows, [records[i] for i in index.tolist()], folder)
            if len(index) < len(records):
                log.warning(
                    "%s of %s images could not be read and are left out: %s",
                    *(f"{len(records) - len(index):,}", f"{len(records):,}"),
                    folder / "bad_samples_predict_*.txt",
                )
            shutil.rmtree(self._spool.folder)
        self._spool = None
