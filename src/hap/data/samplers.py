"""Which sample goes into which batch: a pure function of (seed, epoch), the same for any number of ranks.

A *plan* maps an epoch to an index array (steps, total batch), one row per optimiser step. Each row is cut into
accumulation parts and ranks, so one position, counted in samples of all ranks, says where a run is.
"""

import hashlib
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from hap.errors import HapError

log = logging.getLogger(__name__)

Plan = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class BatchPlan:
    """How the images of one optimiser step are spread: `total = micro * world * accumulate`."""

    total: int
    micro: int
    world: int = 1
    accumulate: int = 1

    @classmethod
    def divide(cls, total: int, micro: int | None, world: int) -> "BatchPlan":
        """Work out the accumulation. Raises HapError when the total batch is not divisible."""
        if micro is None:
            micro = total // world
        if micro < 1 or total % (micro * world):
            raise HapError(
                f"total_batch_size={total} is not a multiple of micro_batch_size={micro} x {world} device(s); "
                f"change one of them, or the devices"
            )
        return cls(total, micro, world, total // (micro * world))


def permutation(records: Sequence[Any], total: int, seed: int) -> Plan:
    """Every sample once per epoch in random order; the last, incomplete step is left out (as the official code
    does), so up to total - 1 samples, other ones each epoch, are not seen."""
    steps = len(records) // total
    if steps == 0:
        raise HapError(
            f"the training split has {len(records)} samples, fewer than total_batch_size={total}; lower it"
        )

    def plan(epoch: int) -> np.ndarray:
        order = np.random.default_rng((seed, epoch)).permutation(len(records))
        return order[: steps * total].reshape(steps, total)

    return plan


def mixture(
    records: Any, total: int, seed: int, pools: Sequence[Sequence[str]], shares: Sequence[float] | None = None
) -> Plan:
    """Data sets in pools, each of which gives a share of an epoch, whatever its size; within a pool they lie in a row.
    An epoch is as long as to show the pool that has most for its share once; another is shown over and over, as often
    as it is whole, and what is left of its share is drawn. All in random order; the last, incomplete step is left out.

    Args:
        records: with `parts`, the data sets by name, and `starts`, see `PeopleInARow`.
        pools: names of data sets. Those that are not there are left out, and with them pools that have none.
        shares: of an epoch, of each pool; None: all alike.

    Raises:
        HapError: a data set is in no pool, or the shares are not of the pools.
    """
    if shares is not None and (len(shares) != len(pools) or min(shares) <= 0):
        raise HapError(f"data.plan: {len(pools)} pools need as many shares above 0, not {list(shares)}")
    if lost := [name for name in records.parts if not any(name in pool for pool in pools)]:
        raise HapError(f"data.plan.pools: {', '.join(lost)} is in no pool of {[list(p) for p in pools]}")
    spans = dict(zip(records.parts, pairwise(records.starts.tolist()), strict=True))
    members = [
        np.array([i for name in pool if name in spans for i in range(*spans[name])], int) for pool in pools
    ]
    weights = [1.0] * len(pools) if shares is None else list(shares)
    used = [(pool, weight) for pool, weight in zip(members, weights, strict=True) if len(pool)]
    longest = max(len(pool) / weight for pool, weight in used)
    counts = [round(longest * weight) for _, weight in used]
    steps = sum(counts) // total
    if steps == 0:
        raise HapError(f"an epoch has {sum(counts)} samples, fewer than total_batch_size={total}; lower it")

    def plan(epoch: int) -> np.ndarray:
        rng = np.random.default_rng((seed, epoch))
        parts = []
        for (pool, _), count in zip(used, counts, strict=True):
            whole, rest = divmod(count, len(pool))
            parts += [np.tile(pool, whole), pool[rng.integers(len(pool), size=rest)]]
        return rng.permutation(np.concatenate(parts))[: steps * total].reshape(steps, total)

    return plan


def fingerprint(records: Sequence[Any]) -> dict[str, Any]:
    """What tells one training split from another: the number of images, a checksum of their names in order, and
    where images have an identity (`ReidRecord`), the number of classes and a checksum of their numbering; where
    they have attributes (`AttributeRecords`), the number of these and checksums of their names and of the labels; where
    records offer `checksums()` (`PoseRecords`, `Boxes`), these.

    Millions of records may offer their `names` without being made.
    """
    names = hashlib.sha256()
    for name in getattr(records, "names", None) or (record.name for record in records):
        names.update(os.fsencode(name) + b"\0")
    found = {"images": len(records), "names_of_images": names.hexdigest()[:12]}
    if (attributes := getattr(records, "attributes", None)) is not None:
        found |= {
            "attributes": len(attributes),
            "names_of_attributes": f"{zlib.crc32(chr(0).join(attributes).encode('utf-8', 'surrogateescape')):08x}",
            "labels_of_images": f"{zlib.crc32(np.ascontiguousarray(records.labels).tobytes()):08x}",  # type: ignore[attr-defined]
        }
    if hasattr(records, "checksums"):
        found |= records.checksums()
    if hasattr(records[0], "identity"):
        classes = np.array([record.identity for record in records], "<i8")
        found |= {
            "classes": len(np.unique(classes)),
            "class_of_each_image": f"{zlib.crc32(classes.tobytes()):08x}",
        }
    return found


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """This rank's micro-batches of (epoch, index) keys, resumable at any optimiser step.

    `next_pass` opens a pass: the next epoch if the current one was started, else the current one from its
    position. The position moves with `advance`, when a batch is handed to training, not when a worker
    prefetches it.

    Args:
        plan: epoch -> indices of its steps.
        batch: how a step is divided.
        rank: of this process.
        origin: further values (`fingerprint`, the seed) that a run must share to go on from another's state.
        steps: of an epoch, which is cut to so many; None for those of the plan.
    """

    def __init__(
        self,
        plan: Plan,
        batch: BatchPlan,
        rank: int = 0,
        origin: Mapping[str, Any] | None = None,
        steps: int | None = None,
    ):
        self.plan, self.batch, self.rank = plan, batch, rank
        first = plan(0)[:steps]
        self.steps = len(first)
        self.origin = {
            "total_batch_size": batch.total,
            **(origin or {}),
            "steps_per_epoch": self.steps,
            "steps_per_epoch_of_the_schedule": getattr(plan, "schedule_steps", self.steps),
            "order_of_images": f"{zlib.crc32(first.astype('<i8').tobytes()):08x}",
        }
        self.epoch, self.position, self._started = 0, 0, False

    def __len__(self) -> int:
        return self.steps * self.batch.accumulate

    def next_pass(self) -> None:
        if self._started:
            self.epoch, self.position, self._started = self.epoch + 1, 0, False

    def advance(self) -> None:
        self._started = True
        self.position += self.batch.micro * self.batch.world

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        b = self.batch
        parts = self.plan(self.epoch)[: self.steps].reshape(
            -1, b.world, b.micro
        )  # (steps * accumulate, world, micro)
        for part in parts[self.position // (b.world * b.micro) :, self.rank]:
            yield [(self.epoch, index) for index in part.tolist()]

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "samples": self.position, "origin": self.origin}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state. Raises HapError where it is another run's, with everything that differs."""
        before = state.get("origin")
        if before is None:  # of an earlier release
            before = {"total_batch_size": state["total_batch_size"]}
            log.warning(
                "the checkpoint does not record its data and seed: that they are the same is up to you"
            )
        differences = [
            f"  {key.replace('_', ' ')}: {self.origin[key]}, the checkpoint's run had {before[key]}"
            for key in self.origin
            if key in before and self.origin[key] != before[key]
        ]
        if differences:
            raise HapError(
                "this is not the run that the checkpoint is of:\n" + "\n".join(differences) + "\n"
                "resume with the same data and settings, or start a new run from it with weights=CHECKPOINT"
            )
        self.epoch, self.position, self._started = state["epoch"], state["samples"], False
        if self.position >= self.steps * self.batch.total:
            self.epoch, self.position = self.epoch + 1, 0


class Pieces(Sampler[list[tuple[int, int]]]):
    """Each batch cut into `count` pieces of nearly the same size, so that several workers make it together."""

    def __init__(self, batches: "TrainBatches | EvalBatches", count: int):
        self.batches, self.count = batches, count

    def __len__(self) -> int:
        return len(self.batches) * self.count

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for keys in self.batches:
            bounds = [len(keys) * i // self.count for i in range(self.count + 1)]
            yield from (keys[start:end] for start, end in pairwise(bounds))


class EvalBatches(Sampler[list[tuple[int, int]]]):
    """Every sample once, in order, dealt to the ranks in turn. Ranks that come out one short repeat their first
    sample, so that all make the same number of steps; metrics drop the duplicate by its index.

    Args:
        done: indices that are left out. Of all the last one stays: Lightning passes over an empty loader, and with it
            what comes at the end.
    """

    def __init__(
        self, size: int, batch_size: int, rank: int = 0, world: int = 1, done: np.ndarray | None = None
    ):
        left = np.arange(size)
        if done is not None and len(done):
            left = np.setdiff1d(left, done) if len(done) < size else left[-1:]
        per_rank = -(-len(left) // world)
        mine = np.resize(left[rank if rank < len(left) else 0 :: world], per_rank)
        self.batches = [mine[i : i + batch_size].tolist() for i in range(0, per_rank, batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(0, index) for index in batch] for batch in self.batches)

    def next_pass(self) -> None: ...

    def advance(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class IdentityPlan:
    """P identities x K images in every step, for losses that compare images within a batch.

    One pass shuffles the images of every identity, cuts them into chunks of K (an incomplete last chunk is
    left out, other images each time; an identity with fewer than K images gives one chunk, drawn with
    replacement), and deals: P different identities of those with chunks left, the next chunk of each, until
    fewer than P have any. That is the sampler of the official code (as in TransReID). How many steps a pass
    makes is a matter of luck (443 to 449 on MSMT17), but a Trainer needs to know it: an epoch here is as long
    as the chunks would allow, floor(chunks / P) (454 on MSMT17), and the steps that a pass falls short come
    from a further pass.

    Args:
        records: the training images, with `identity` (int).
        total: images per step, P x K; a row holds the K images of an identity side by side.
        seed: of the plan; it depends on nothing else but the epoch.
        images_per_identity: K.

    Attributes:
        steps: steps per epoch.
        schedule_steps: steps per epoch as the official learning-rate schedule counts them, leftover chunks
            included: ceil(chunks * K / total) (455 on MSMT17, 177 on Market-1501).

    Raises:
        HapError: `total` is no multiple of K, or makes fewer than two identities or more than there are.
    """

    def __init__(self, records: Sequence[Any], total: int, seed: int, images_per_identity: int = 8):
        identity = np.array([record.identity for record in records])
        order = np.argsort(identity, kind="stable")
        self.members = np.split(order, np.flatnonzero(np.diff(identity[order])) + 1)
        self.seed, self.images_per_identity = seed, images_per_identity
        self.identities = total // images_per_identity
        if total % images_per_identity or not 2 <= self.identities <= len(self.members):
            raise HapError(
                f"total_batch_size={total} has to be P x {images_per_identity} images per identity, P from 2 "
                f"to the {len(self.members)} identities of the training split; change one of the numbers"
            )
        self.chunks = np.array([max(1, len(own) // images_per_identity) for own in self.members])
        self.steps = int(self.chunks.sum()) // self.identities
        self.schedule_steps = -(-int(self.chunks.sum()) // self.identities)

    def __call__(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, epoch))
        rows: list[np.ndarray] = []
        while len(rows) < self.steps:
            rows += self.one_pass(rng)
        return np.stack(rows[: self.steps])  # (steps, P * K)

    def one_pass(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Rows (P * K,) of indices until fewer than P identities have a chunk left."""
        size = self.images_per_identity
        images = [
            rng.permutation(own)[: n * size] if len(own) >= size else rng.choice(own, size)
            for own, n in zip(self.members, self.chunks, strict=True)
        ]
        rows, dealt = [], np.zeros_like(self.chunks)
        while len(pool := np.flatnonzero(dealt < self.chunks)) >= self.identities:
            drawn = rng.choice(pool, self.identities, replace=False)
            rows.append(np.concatenate([images[i][dealt[i] * size :][:size] for i in drawn]))
            dealt[drawn] += 1
        return rows
