"""Jobs of a multirun: each is a run of its own, and the others go on whatever becomes of it."""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from hap import ranks
from hap.config import did_you_mean
from hap.console import print_table
from hap.errors import HapError
from hap.record import STATUS, recorded
from hap.reports.sweep import is_sweep, read_sweep, table
from hap.reports.sweep_page import write_sweep_report

log = logging.getLogger(__name__)

# What Lightning sets for the processes that it starts. Left to the next job, it would wait for them in vain.
_OF_RANKS = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


def is_multirun() -> bool:
    """Whether this is within a job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


@contextmanager
def job_of_sweep(program: str, command: list[str], told: Callable[[Exception], str | None]) -> Iterator[None]:
    """A job, in Hydra's frame of it. What it raises is told at once, in its own log too, and is then Hydra's, which
    goes on with the next job and in the end raises the first failure. The other ranks of a distributed job are started
    for this job alone.

    Args:
        program: its name, for the record of a job that fails before it has one.
        command: the command line without overrides: what is run, and options such as `--config-dir DIR`.
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
        folder = Path(hydra.runtime.output_dir)
        if not (folder / STATUS).exists():
            with suppress(Exception), recorded(folder, program, hydra.overrides.task):
                raise
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


class SweepTable(Callback):
    """Hydra's callback: notes where the jobs of a multirun are."""

    folder: ClassVar[Path | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        SweepTable.folder = Path(config.hydra.sweep.dir).absolute()


@contextmanager
def sweep_told() -> Iterator[None]:
    """At the end of a multirun in this block, whichever way it ends: its tables, in its folder and on the console."""
    SweepTable.folder = None
    try:
        yield
    except ValueError as error:
        if SweepTable.folder is None or "No trials are completed" not in str(error):
            raise
        raise HapError("no trial of the search has finished; the table has what became of each") from error
    finally:
        if SweepTable.folder is not None:
            _tell(SweepTable.folder)


def _tell(folder: Path) -> None:
    if not is_sweep(folder):
        return  # nothing has run
    sweep = read_sweep(folder)
    print_table(*table(sweep, sweep.measured[:2]))  # a line has no room for all
    print("\n".join([*sweep.errors, sweep.summary]))
    try:
        print(f"all results and figures: {write_sweep_report(folder)}")
    except HapError as error:
        log.warning("%s", error)
