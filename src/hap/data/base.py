"""Records, the Dataset, the loader that can be resumed, and the DataModule: the same for every task.

A reader turns a root folder into `{split: records}`. A record is small and frozen; it reads its own bytes
when asked. The Dataset decodes, transforms and never dies of one broken file. Everything random about a
sample derives from (seed, epoch, index): not from worker, rank or batch.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from hap.data.files import user_path
from hap.data.samplers import BatchPlan, EvalBatches, Pieces, TrainBatches, fingerprint, permutation
from hap.data.text_reid import cut_padding
from hap.errors import BadSample, HapError, Unwanted, printable
from hap.processes import from_workers, prepare_worker

log = logging.getLogger(__name__)

PIECE = 128  # images that a worker hands over at once, at most


class Record(Protocol):
    """One image with what is known about it. `name` identifies it in messages and reports."""

    @property
    def name(self) -> str: ...

    def pixels(self) -> np.ndarray:
        """The decoded image, (H, W, 3) uint8 RGB; see `decoding.Encoded`. Raises BadSample or OSError."""

    def annotations(self) -> dict[str, Any]:
        """What the transform and the task need besides the image. Raises BadSample or OSError."""


Splits = Mapping[str, Sequence[Record]]
ATTEMPTS = 32  # unusable samples in a row that the Dataset replaces
MAX_WAIT = 16.0  # s; the last of the waits for data that cannot be read, each twice as long as the one before
Transform = Callable[[np.ndarray, dict[str, Any], np.random.Generator], dict[str, Any]]


class Dataset(torch.utils.data.Dataset):
    """record -> image -> transform -> dict of tensors, for every task.

    Keys are `(epoch, index)`. A sample carries `index` (int, its position in `records`: look names up there)
    and `bad` (int, -1, or the index of an unusable sample that this one replaces). The replacement is drawn
    from (seed, epoch, index) too, so it is the same on every run; metrics drop it as a duplicate index.

    Args:
        leave_out: an unusable sample is an empty image with the index -1: for results that are listed by image.
    """

    def __init__(
        self, records: Sequence[Record], transform: Transform, seed: int = 0, leave_out: bool = False
    ):
        self.records, self.transform, self.seed, self.leave_out = records, transform, seed, leave_out

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        wait = 0.5
        while True:
            try:
                return self._sample(*key)
            except OSError as error:  # many records in a row: a file system that is away, perhaps for seconds
                if wait > MAX_WAIT:
                    raise HapError(
                        f"the data cannot be read: {ATTEMPTS} samples in a row failed, again and again for "
                        f"{2 * MAX_WAIT - 0.5:.0f} s, the first is {printable(self.records[key[1]].name)}: {error}"
                    ) from None
            log.warning("the data cannot be read, next attempt in %.1f s", wait)
            time.sleep(wait)
            wait *= 2

    def _sample(self, epoch: int, index: int) -> dict[str, Any]:
        """The sample, or its replacement. Raises OSError if no file of many can be read, HapError if all that
        can be are unusable."""
        rng = np.random.default_rng((self.seed, epoch, index))
        bad, first, unreachable = -1, None, True
        for _ in range(ATTEMPTS):
            try:
                image, annotations = self.read(index)
                break
            except (BadSample, OSError) as error:
                first = first or error
                unreachable &= isinstance(error, OSError)
                bad = index if bad < 0 else bad
                if self.leave_out and not unreachable:
                    image, annotations = np.zeros((16, 16, 3), np.uint8), self.records[bad].annotations()
                    break
                index = int(rng.integers(len(self.records)))
        else:
            if unreachable and isinstance(first, OSError):
                raise first
            raise HapError(
                f"{ATTEMPTS} samples in a row cannot be used, "
                f"the first is {printable(self.records[bad].name)}: {first}"
            )
        index = -1 if self.leave_out and bad >= 0 else index
        return self.transform(image, annotations, rng) | {"index": index, "bad": bad}

    def read(self, index: int) -> tuple[np.ndarray, dict[str, Any]]:
        """The decoded image, (H, W, 3) uint8 RGB, and the annotations of one record, before any transform."""
        record = self.records[index]
        return record.pixels(), record.annotations()

    def problem(self, index: int) -> Exception | None:
        """Read one record again for what makes it unusable; None if it can be read now."""
        try:
            self.read(index)
        except (BadSample, OSError) as error:
            return error
        return None


class BadSampleLog:
    """Counts the samples that could not be used, names each once in a file, and stops the run above a share.

    The share is distinct damaged samples over the samples of the data set, per rank: each rank may name its own
    part of what is allowed. Samples without what was asked for (`Unwanted`) are no damage.
    """

    def __init__(self, dataset: Dataset, path: Path | None, max_fraction: float, world_size: int = 1):
        self.dataset, self.path = dataset, path
        self.max_fraction = max_fraction
        self.limit = max_fraction * len(dataset) / world_size
        self.seen: set[int] = set()
        self.damaged: list[str] = []

    def __call__(self, bad: torch.Tensor) -> None:
        """Note the `bad` column (N,) of a batch."""
        for index in bad[bad >= 0].tolist():
            if index in self.seen:
                continue
            self.seen.add(index)
            problem = self.dataset.problem(index)
            reason = printable(str(problem or "readable at the second attempt"))
            line = f"{printable(self.dataset.records[index].name)}: {reason}"
            if not isinstance(problem, Unwanted):
                self.damaged.append(line)
            log.warning("bad sample %s: %s", "left out" if self.dataset.leave_out else "replaced", line)
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
        if len(self.damaged) > self.limit:
            more = f"\n  ... all of them in {self.path}" if len(self.damaged) > 20 and self.path else ""
            raise HapError(
                f"{len(self.damaged)} samples cannot be used, above data.max_bad_fraction={self.max_fraction:g} of "
                f"{len(self.dataset):,} (repair them, or raise the limit):\n  "
                + "\n  ".join(self.damaged[:20])
                + more
            )


_GO_ON = "lower data.num_workers, then go on: training with resume=auto, all else with the same command"


class Loader(DataLoader):
    """A DataLoader whose position is part of a checkpoint.

    Its state is two integers, the epoch and the samples of the epoch that all ranks together have seen, and the
    values by which a run is known again (see `TrainBatches`). Order
    and augmentation follow from (seed, epoch, index), so a resumed run sees exactly what the uninterrupted one
    would have, with any number of workers and ranks. Each new iteration after a started one is the next epoch.

    A large batch is made in pieces by all workers together, and stays in pieces until it is on the device.

    Args:
        pieces: of each batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        batches: TrainBatches | EvalBatches,
        report: BadSampleLog,
        pieces: int = 1,
        **options: Any,
    ):
        super().__init__(dataset, batch_sampler=Pieces(batches, pieces), **options)
        self.batches, self.pieces, self.report = batches, pieces, report
        self.wait_seconds = 0.0  # time that the training loop has waited for data, since the start

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Batches; those in more than one piece as lists of tensors, see `DataModule.on_after_batch_transfer`."""
        self.batches.next_pass()
        with closing(from_workers(super().__iter__, _GO_ON)) as iterator:
            while True:
                start = time.perf_counter()
                parts = list(islice(iterator, self.pieces))
                self.wait_seconds += time.perf_counter() - start
                if not parts:
                    return
                self.report(torch.cat([part.pop("bad") for part in parts]))
                self.batches.advance()
                whole = len(parts) == 1
                yield parts[0] if whole else {name: [part[name] for part in parts] for name in parts[0]}

    def close(self) -> None:
        """End processes that wait for a next epoch."""
        if self._iterator is not None:
            self._iterator._shutdown_workers()  # type: ignore[attr-defined]
            self._iterator = None

    def state_dict(self) -> dict[str, Any]:
        return self.batches.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches.load_state_dict(state)


class PlainIterable:
    """A loader that Lightning takes as it is: for prediction it would rebuild a DataLoader around its own sampler."""

    def __init__(self, loader: Loader):
        self.loader, self.dataset, self.report = loader, loader.dataset, loader.report

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return iter(self.loader)


class DataModule(L.LightningDataModule):
    """Splits, batches and loaders of any data set.

    Args:
        root: the data set's folder.
        reader: root -> {split name: records}.
        transforms: split name -> transform; a split without one of its own uses that of "val".
        num_workers: loader processes per device; None takes the cores of this process shared among the devices
            of the node, at most 16.
        plan: epoch -> (steps, total batch) array of indices, given (records, total batch, seed); None shuffles.
        eval_batch_size: images per device and step in validation, test and prediction.
        max_bad_fraction: share of a split's samples that may be unusable before the run stops. A prediction goes on
            without them.
        seed: of order and augmentation.
        synthetic: use drawn people in place of `root`.
        draw: draws them on first use and returns their folder.
    """

    def __init__(
        self,
        root: str,
        reader: Callable[[Path], Splits],
        transforms: Mapping[str, Transform],
        num_workers: int | None = None,
        plan: Callable[[Sequence[Record], int, int], Any] = permutation,
        eval_batch_size: int = 256,
        max_bad_fraction: float = 0.001,
        seed: int = 0,
        synthetic: bool = False,
        draw: Callable[[], Path] | None = None,
    ):
        super().__init__()
        if eval_batch_size < 1 or (num_workers or 0) < 0 or not 0 <= max_bad_fraction <= 1:
            raise HapError(
                f"data.eval_batch_size={eval_batch_size}, data.num_workers={num_workers}, data.max_bad_fraction="
                f"{max_bad_fraction:g}: at least 1 image, at least 0 processes, a share from 0 to 1"
            )
        self.synthetic, self.draw = synthetic, draw
        self.root, self.reader, self.transforms = user_path(root), reader, transforms
        self.num_workers, self.plan = num_workers, plan
        self.eval_batch_size, self.max_bad_fraction, self.seed = eval_batch_size, max_bad_fraction, seed
        self.batch_plan = BatchPlan(total=1, micro=1)  # the runner sets it when devices are known
        self.steps_per_epoch: int | None = None  # set by the runner where an epoch is cut short
        self.report_dir: Path | None = None  # where unusable samples are named; set by the runner
        self.splits: Splits = {}
        # Indices of a prediction that are not needed again; set by a callback.
        self.done = np.zeros(0, np.int64)

    def setup(self, stage: str | None = None) -> None:
        if not self.splits:
            if self.synthetic:
                if self.draw is None:
                    raise HapError("synthetic=true is not for this data set: nobody is drawn in its place")
                self.root = self.draw()
            if not self.root.is_dir():
                raise HapError(
                    f"data folder not found: {self.root} (set data.root=FOLDER, or try synthetic=true: drawn people)"
                )
            self.splits = self.reader(self.root)
            log.info("%s: %s", self.root, ", ".join(f"{k} {len(v):,}" for k, v in self.splits.items()))

    def records(self, split: str) -> Sequence[Record]:
        self.setup()
        if split not in self.splits:
            raise HapError(f"{self.root} has no split {split!r}; it has {', '.join(self.splits)}")
        if not len(self.splits[split]):
            raise HapError(f"the split {split!r} of {self.root} is empty")
        return self.splits[split]

    @property
    def test_split(self) -> str:
        """What an evaluation is made on."""
        self.setup()
        return "test" if "test" in self.splits else "val"

    @property
    def val_split(self) -> str:
        """What validation during training is made on, by its true name: data sets without a validation part have
        the test part in its place."""
        self.setup()
        return "test" if self.splits.get("test") is self.splits.get("val") else "val"

    def dataset(self, split: str, train: bool = True) -> Dataset:
        """`train=False`: a training split as the others are evaluated."""
        augmented = train or split != "train"
        transform = (self.transforms.get(split) if augmented else None) or self.transforms["val"]
        return Dataset(self.records(split), transform, self.seed, leave_out=split == "predict")

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Of the training split."""
        return fingerprint(self.records("train"))

    def _loader(self, split: str, train: bool) -> Loader:
        dataset = self.dataset(split, train)
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches: TrainBatches | EvalBatches
        if train:
            plan = self.plan(dataset.records, self.batch_plan.total, self.seed)
            batches = TrainBatches(
                *(plan, self.batch_plan, rank, {**self.fingerprint, "seed": self.seed}), self.steps_per_epoch
            )
        else:
            done = self.done if split == "predict" else None
            batches = EvalBatches(len(dataset), self.eval_batch_size, rank, world, done)
        pieces = -(-self.batch_plan.micro // PIECE) if train else 1
        path = self.report_dir / f"bad_samples_{split}_rank{rank}.txt" if self.report_dir else None
        workers = self.num_workers if self.num_workers is not None else default_workers(self.trainer)
        return Loader(
            dataset,
            batches,
            BadSampleLog(dataset, path, math.inf if dataset.leave_out else self.max_bad_fraction, world),
            pieces=pieces,
            num_workers=workers,
            prefetch_factor=max(2, -(-pieces // workers)) if workers else None,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=train and workers > 0,
            worker_init_fn=prepare_worker,
        )

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        return cut_padding(batch)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, torch.Tensor]:
        """Join the pieces of a batch, on the device: there it takes no time."""
        return {k: torch.cat(v) if isinstance(v, list) else v for k, v in batch.items()}

    def train_dataloader(self) -> Loader:
        return self._loader("train", train=True)

    def eval_dataloader(self, split: str) -> Loader:
        """All images of a split in their order, as they are evaluated: a training split, too."""
        return self._loader(split, train=False)

    def val_dataloader(self) -> Loader:
        return self.eval_dataloader("val")

    def test_dataloader(self) -> Loader:
        return self.eval_dataloader(self.test_split)

    def predict_dataloader(self) -> "PlainIterable":
        return PlainIterable(self._loader("predict", train=False))

    def on_exception(self, exception: BaseException) -> None:
        """Lightning asks us first: what else it tidies up can fail too, and its own end of the processes with it."""
        loader = self.trainer.train_dataloader if self.trainer else None
        if isinstance(loader, Loader):
            loader.close()


def default_workers(trainer: Any) -> int:
    """The cores of one device; one is left to the training loop. SLURM says how many a task has, and may bind it
    to them; elsewhere the node's devices share those that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if "SLURM_CPUS_PER_TASK" in os.environ:
        cores = min(cores, int(os.environ["SLURM_CPUS_PER_TASK"]))
    elif trainer is not None:
        cores //= trainer.num_devices
    return max(1, min(16, cores - 1))
