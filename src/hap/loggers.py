"""Weights & Biases: a run on a dashboard. What goes wrong with that is told once, and never ends the run."""

import hashlib
import json
import logging
import netrc
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import lightning as L
import numpy as np
import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import DummyExperiment, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from hap.checkpointing import step_of
from hap.errors import printable
from hap.metrics.direction import lower_is_better
from hap.multirun import is_multirun
from hap.record import read_status
from hap.reports.run import read_run
from hap.wandb_file import cut_to_whole_records

log = logging.getLogger(__name__)

STEP = "step"  # the one axis: optimiser steps
TABLE_ROWS = 50  # of pictures
_MEASURED = ("val/", "test/", "probe/")
# Overrides of the machine and the place, which do not tell one run from another.
_ELSEWHERE = re.compile(
    r"(experiment|run_dir|resume|dry_run|compile|micro_batch_size|input|query|gallery|ckpt_path|debug|data\.root|"
    r"data\.num_workers|(hydra|trainer|logger|callbacks)\b.*)"
)


class WandbRun(WandbLogger):
    """One W&B run for one run folder, however often it is resumed: its id is kept in the folder.

    Training, validation, probe and evaluation share one axis, `step`: the optimiser steps that made the weights which
    are measured. Of what is measured, the summary has the best and the last. Name and tags are those overrides that
    tell a run from another, the jobs of a multirun are a group; what `WANDB_NAME` and the like say comes first.

    Args:
        save_dir: the run folder.
        project: W&B's project.
        upload_checkpoint: at the end, the newest checkpoint too, and not only what it is.
        **options: of Lightning's logger and of `wandb.init`.
    """

    current: ClassVar["WandbRun | None"] = None  # the one that logs, for `close_wandb`

    def __init__(self, save_dir: str, project: str = "hap", upload_checkpoint: bool = False, **options: Any):
        super().__init__(save_dir=save_dir, project=project, **options)
        self.upload_checkpoint = upload_checkpoint
        self.folder = Path(save_dir)
        self._trainer: Any = None
        self._defined: set[str] = set()

    def begin(self, trainer: Any, cfg: DictConfig, ckpt_path: Path | None) -> None:
        """What is known of a run before it starts. W&B itself is started by the first use of `experiment`.

        Args:
            trainer: whose `global_step` everything is logged at.
            cfg: of the run.
            ckpt_path: the checkpoint that is evaluated or gone on with.
        """
        status = read_status(self.folder)
        overrides = status.get("overrides", [])
        name, labels = printable(cfg.name), run_labels(overrides)
        known = {
            "id": self._kept_id(),
            "name": _fitting([f"{name} {self.folder.name}" if is_multirun() else name, *labels]),
            "tags": [tag for tag in dict.fromkeys([name, *labels]) if len(tag) <= 64],  # W&B's limits
            "group": printable(f"{cfg.name} {self.folder.parent.name}") if is_multirun() else None,
            "job_type": status.get("program"),
        }
        variables = {"group": "WANDB_RUN_GROUP", "id": "WANDB_RUN_ID"}
        for name, value in known.items():
            if (
                not self._wandb_init.get(name)
                and variables.get(name, f"WANDB_{name.upper()}") not in os.environ
            ):
                self._wandb_init[name] = value
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        with suppress(OSError, ValueError):
            config["environment"] = json.loads((self.folder / "environment.json").read_text())
        config |= {"run_dir": str(self.folder), "overrides": typed(overrides)}
        if ckpt_path is not None and status.get("program") != "train":
            config["checkpoint"] = {"path": str(ckpt_path), "step": trainer.global_step}
        self._wandb_init["config"] = _shown(config)
        self._trainer, WandbRun.current = trainer, self

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = self._start()
            self._try(self._prepare)
        return self._experiment

    def _start(self) -> Any:
        """A run; offline, where the service cannot be reached; at worst one that takes everything and keeps nothing."""
        options = {name: value for name, value in self._wandb_init.items() if name != "anonymous"}
        # Copies of pictures and reports until they are sent: in the run folder, not in the home folder.
        os.environ.setdefault("WANDB_DATA_DIR", str(self.folder / "wandb"))
        for path in self.folder.glob(f"wandb/offline-run-*-{options['id']}/*.wandb"):
            with suppress(OSError):
                cut_to_whole_records(path)
        try:
            mode: Any = "offline" if self._offline else _mode()
            if mode == "disabled":
                return DummyExperiment()
            try:
                return wandb.init(**options, mode=mode)
            except Exception as error:
                if mode != "online":
                    raise
                log.warning("W&B cannot be reached and logs offline, for `wandb sync` to send: %s", error)
                _forget()
                return wandb.init(**options, mode="offline")
        except Exception as error:
            log.warning("W&B does not start, the run goes on without it: %s", error)
            _forget()
            return DummyExperiment()

    def _prepare(self, run: Any) -> None:
        (self.folder / "wandb/id.txt").write_text(f"{run.id}\n")
        run.define_metric(STEP, hidden=True)
        run.define_metric("*", step_metric=STEP)

    def _kept_id(self) -> str | None:
        with suppress(OSError, UnicodeError):
            text = (self.folder / "wandb/id.txt").read_text().strip()
            return text if re.fullmatch(r"[\w-]{1,64}", text, re.A) else None
        return None

    def _try(self, call: Callable[[Any], object]) -> None:
        """Call with the run. If that fails, the rest of the run is not logged."""
        run = self.experiment
        if isinstance(run, DummyExperiment):
            return
        try:
            call(run)
        except Exception as error:
            where = self.folder / "wandb"
            log.warning(
                "W&B fails and gets no more of this run (so far: %s): %s", where, error or repr(error)
            )
            self._experiment: Any = DummyExperiment()
            _forget()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log at the Trainer's step: Lightning's own count is one behind in training and 0 in an evaluation."""
        self._try(lambda run: self._log(run, metrics))

    @rank_zero_only
    def log_image(self, key: str, images: list[np.ndarray], step: int | None = None, **kwargs: Any) -> None:
        """Log RGB pictures (H, W, 3) uint8 at the Trainer's step, as `pictures/KEY`."""
        self._try(lambda run: self._log(run, {f"pictures/{key}": [wandb.Image(image) for image in images]}))

    def _log(self, run: Any, metrics: Mapping[str, Any]) -> None:
        step = self._trainer.global_step
        if step < run.step:
            return  # of a resumed run, whose first part has sent this step; the same values
        for name in metrics:
            if name not in self._defined and (kind := summary_kind(name)):
                self._defined.add(name)
                run.define_metric(name, step_metric=STEP, summary=f"{kind},last")
        run.log({**metrics, STEP: step}, step=step)

    def complete(self) -> None:
        """At the end: the run folder's pictures as one table over the steps, its report, and what its newest
        checkpoint is."""
        if self._experiment is not None:
            self._try(self._complete)

    def _complete(self, run: Any) -> None:
        left = read_run(self.folder)
        if left.pictures:
            self._log(run, {"pictures/over_steps": self._table(left.pictures)})
        run.log({}, commit=True)  # what is logged of this step changes the summary, too
        run.summary.update(self._best(left.metrics))
        if left.protocol:
            run.summary["protocol"] = left.protocol
        if (self.folder / "report.html").is_file():
            report = wandb.Artifact(f"report-{run.id}", type="report")
            report.add_file(str(self.folder / "report.html"))
            run.log_artifact(report)
        if (newest := self.folder / "checkpoints/last.ckpt").exists():
            facts = checkpoint_facts(newest) | {"scores": self._scores()}
            run.summary["checkpoint"] = facts
            if self.upload_checkpoint:
                model = wandb.Artifact(f"checkpoint-{run.id}", type="model", metadata=facts)
                model.add_file(str(newest), name="last.ckpt")
                run.log_artifact(model)

    def _scores(self) -> dict[str, float]:
        """Of the last validation, and of the best."""
        logged = self._trainer.callback_metrics.items()
        scores = {name: float(value) for name, value in logged if name.startswith("val/")}
        for callback in self._trainer.callbacks:
            scores |= getattr(callback, "best", {})
        return scores

    def _table(self, pictures: Mapping[str, list[tuple[int | None, Path]]]) -> wandb.Table:
        """A row for each step, a column for each of a task's pictures."""
        files: dict[int, dict[str, Path]] = {}
        for name, steps in pictures.items():
            for step, path in steps:
                files.setdefault(self._trainer.global_step if step is None else step, {})[name] = path
        chosen = sorted(files)
        if len(chosen) > TABLE_ROWS:
            chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, TABLE_ROWS).round().astype(int)]
        rows = [[files[step].get(name) for name in pictures] for step in chosen]
        images = [[path and wandb.Image(str(path)) for path in row] for row in rows]
        return wandb.Table(
            [STEP, *pictures], [[step, *row] for step, row in zip(chosen, images, strict=True)]
        )

    def _best(self, metrics: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, dict[str, float]]:
        """Best and last of what is measured, of all parts of a resumed run: W&B itself knows of the last."""
        best = {}
        for name, (_, values) in metrics.items():
            values = values[np.isfinite(values)]
            if len(values) and (kind := summary_kind(name)):
                best[name] = {kind: float(getattr(values, kind)()), "last": float(values[-1])}
        return best


def begin_wandb(trainer: L.Trainer, cfg: DictConfig, ckpt_path: Path | None) -> None:
    """Tell the W&B logger of a Trainer, if it has one, what runs."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbRun):
            logger.begin(trainer, cfg, ckpt_path)


def set_step(trainer: L.Trainer, step: int) -> None:
    """What is measured of a checkpoint is logged, by all loggers, at its step."""
    loop = trainer.fit_loop.epoch_loop
    loop.automatic_optimization.optim_progress.optimizer.step.total.completed = step
    loop._batches_that_stepped = step


def close_wandb(folder: Path) -> None:
    """End the W&B run of a run folder, if there is one, with what the folder holds by then. Else the next run of the
    process would log into it."""
    logger, WandbRun.current = WandbRun.current, None
    if logger is not None:
        logger.complete()
        if os.environ.get("WANDB_DATA_DIR") == str(logger.folder / "wandb"):
            del os.environ["WANDB_DATA_DIR"]
    if wandb.run is not None:
        try:
            wandb.finish(exit_code=int(read_status(folder).get("state") != "finished"))
        except Exception as error:
            log.warning("W&B does not end as it should: %s", error or repr(error))
            _forget()


def _forget() -> None:
    """What a failed W&B has left: without it, the next run of the process starts W&B anew."""
    with suppress(Exception):
        wandb.teardown()


def _mode() -> str:
    """What the environment or `wandb offline` says. Online only where somebody has logged in: a run must not stop to
    ask for an account."""
    settings = wandb.setup().settings
    mode = os.environ.get("WANDB_MODE") or settings.mode
    if mode != "online" or settings.api_key or settings.identity_token_file:
        return mode
    hosts = (urlsplit(settings.base_url).hostname, "api.wandb.ai")  # the second: where older versions log in
    try:
        known = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        known = {}
    if any(host in known for host in hosts):
        return "online"
    if os.environ.get("WANDB_MODE"):
        log.warning("WANDB_MODE=online, but nobody has logged in (wandb login): W&B logs offline")
    return "offline"


def summary_kind(name: str) -> str | None:
    """Which value of what is measured is the best. For a W&B sweep, whose server reads a plain value, the last is."""
    if not name.startswith(_MEASURED) or "WANDB_SWEEP_ID" in os.environ:
        return None
    return "min" if lower_is_better(name) else "max"


def typed(overrides: list[str]) -> dict[str, float | str]:
    """{key: value}, numbers as such, by which runs can be compared. Keys are `masking/ratio`: a dot leads W&B into a
    deeper level."""
    pairs = [override.lstrip("+").partition("=") for override in overrides]
    values: dict[str, float | str] = {}
    for key, _, value in pairs:
        try:
            values[key.replace(".", "/")] = float(value)
        except ValueError:
            values[key.replace(".", "/")] = value
    return values


def _fitting(words: list[str]) -> str:
    """A name of W&B's 128 characters at most. What is swept comes last on a command line, so the first ones go."""
    while len(words) > 2 and len(" ".join(words)) > 128:
        del words[1]
    return " ".join(words)[:128]


def run_labels(overrides: list[str]) -> list[str]:
    """Overrides that tell one run from another, short: `task.recipe.base_lr=0.1` is `base_lr=0.1`."""
    parts = [o.lstrip("+").partition("=") for o in overrides]
    parts = [part for part in parts if not _ELSEWHERE.fullmatch(part[0].lstrip("~"))]
    short = [key.rpartition(".")[2] for key, _, _ in parts]
    return [
        printable(f"{s if short.count(s) == 1 else key}{sign}{value.rpartition('/')[2]}")
        for s, (key, sign, value) in zip(short, parts, strict=True)
    ]


def checkpoint_facts(path: Path) -> dict[str, Any]:
    """Where a checkpoint of a run is, the steps that it is after, and its SHA-256."""
    path = path.resolve()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": printable(str(path)), "step": step_of(path), "sha256": digest}


def _shown(node: Any) -> Any:
    """W&B refuses names of other bytes than UTF-8's."""
    if isinstance(node, dict):
        return {_shown(key): _shown(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_shown(value) for value in node]
    return printable(node) if isinstance(node, str) else node
