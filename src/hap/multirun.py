"""Jobs of a multirun: each is a run of its own, and the others go on whatever becomes of it."""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from hap import ranks
from hap.config import did_you_mean
from hap.errors import HapError

log = logging.getLogger(__name__)

# What Lightning sets for the processes that it starts. Left to the next job, it would wait for them in vain.
_OF_RANKS = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


def is_multirun() -> bool:
    """Whether this is within a job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


@contextmanager
def job_of_sweep(command: list[str], told: Callable[[Exception], str | None]) -> Iterator[None]:
    """A job, in Hydra's frame of it. What it raises is told at once, in its own log too, and is then Hydra's, which
    goes on with the next job and in the end raises the first failure. The other ranks of a distributed job are started
    for this job alone.

    Args:
        command: the command line without overrides: the program, and options such as `--config-dir DIR`.
        told: the message of an error of the user's; None for any other, which is told with its traceback.
    """
    hydra = cast(DictConfig, HydraConfig.get())
    with read_write(hydra):
        # That of a single run would be made by whoever asks for its name; Lightning starts other ranks with it.
        hydra.run.dir = hydra.runtime.output_dir
    arguments, sys.argv = sys.argv, [*command, *hydra.overrides.task]
    external = (
        "LOCAL_RANK" in os.environ
    )  # another program has started the ranks, each with the whole multirun
    try:
        yield
    except Exception as error:
        message = told(error)
        log.error("job %s failed: %s", hydra.job.num, message or error, exc_info=message is None)
        _forget_frames(error)
        raise
    finally:
        sys.argv = arguments
        if not external:
            _end_ranks()


def objective_of(cfg: DictConfig, results: Any) -> float | None:
    """What a sweeper is told of a job: the one of its results that the root key `objective` names. Raises HapError
    where there is none of that name."""
    name = OmegaConf.select(cfg, "objective")
    if name is not None and name not in results:
        raise HapError(f"objective={name}: no result has this name{did_you_mean(name, results)}")
    return None if name is None else float(results[name])


def _forget_frames(error: BaseException) -> None:
    """Hydra keeps the exceptions of all jobs: without what their frames hold, the model and its data."""
    seen: list[BaseException] = []  # one that is raised from its own cause's is met again
    todo: list[BaseException | None] = [error]
    while todo:
        link = todo.pop()
        if link is None or link in seen:
            continue
        seen.append(link)
        traceback.clear_frames(link.__traceback__)
        todo += [link.__cause__, link.__context__]


def _end_ranks() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    ranks.call_off_end()
    for name in _OF_RANKS:
        os.environ.pop(name, None)
