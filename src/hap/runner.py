"""The one body of train, eval and predict: check, build, run, write down the results."""

import logging
import time
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from hap.building import (
    Stage,
    build,
    build_trainer,
    classes_of,
    count_classes,
    load_whole,
    unknown_numbers,
    weights_options,
)
from hap.checkpointing import CheckpointFiles, newest_intact, read_checkpoint
from hap.config import check_config
from hap.data.base import DataModule
from hap.data.files import user_path
from hap.data.kept import Kept
from hap.description import check_same, checked, describe_run, describe_weights
from hap.errors import HapError
from hap.loggers import begin_wandb, close_wandb, set_step
from hap.models.checkpoint import ENCODER, LoadReport, load_weights
from hap.people import find_people
from hap.plan import check_numbers, plan_batches
from hap.plots import write_picture
from hap.probe import evaluate_encoders
from hap.ranks import Ranks
from hap.record import (
    changed_keys,
    git_revision,
    recorded,
    results_before,
    write_results,
    write_start,
)
from hap.reports.page import write_report
from hap.run_folder import hold
from hap.schema import Root
from hap.tasks.base import Task

log = logging.getLogger(__name__)


def run(stage: Stage, cfg: DictConfig, run_dir: Path) -> dict[str, float]:
    """Train, evaluate or predict with a composed configuration.

    Args:
        cfg: from conf/train.yaml, conf/eval.yaml or conf/predict.yaml.
        run_dir: where everything that the run leaves goes. Never an earlier run's, unless resume=auto.

    Returns:
        the last value of every logged metric; also written to `run_dir/results.json`.

    Raises:
        HapError: the configuration, the data or the checkpoint is wrong.
    """
    # Of several processes the first holds the folder for all.
    if getattr(rank_zero_only, "rank", 0) > 0 or cfg.dry_run:
        return _run(stage, cfg, run_dir)
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    with hold(run_dir, cfg.resume == "auto"):
        try:
            with recorded(run_dir, stage, overrides, changed_keys(cfg)):
                return _run(stage, cfg, run_dir)
        finally:
            _report(run_dir)
            close_wandb(run_dir)


def _report(run_dir: Path) -> None:
    """What a run has left is put together however it ended, and its end does not depend on it."""
    try:
        log.info("report in %s", write_report(run_dir))
    except Exception as error:
        log.warning("no report was written: %s", error)


def _run(stage: Stage, cfg: DictConfig, run_dir: Path) -> dict[str, float]:
    check_config(cfg)
    check_numbers(cfg)
    _check_stage(stage, cfg)
    if cfg.task is None:
        return evaluate_encoders(cfg, build_trainer(cfg, run_dir), weights_options(cfg), run_dir)
    ckpt_path = _checkpoint(stage, cfg, run_dir)
    L.seed_everything(cfg.seed, verbose=False)

    trainer = build_trainer(cfg, run_dir)
    datamodule: DataModule = build(cfg.data, "data")
    datamodule.report_dir = run_dir
    if cfg.predictions is not None:
        return _score(cfg, trainer, datamodule, run_dir)
    checkpoint = read_checkpoint(ckpt_path) if stage != "train" and ckpt_path is not None else None
    labels: dict[str, list[str]] = {}
    if checkpoint is not None and ckpt_path is not None:
        labels = classes_of(stage, cfg, ckpt_path, checkpoint)
    elif cfg.zero_shot:
        cfg.task.model.update(dict.fromkeys(unknown_numbers(cfg), 1))  # the encoder alone is scored
    elif stage != "predict":
        labels = count_classes(cfg, datamodule)
    elif unknown := unknown_numbers(cfg):
        raise HapError(
            f"give {' '.join(f'task.model.{argument}=N' for argument in unknown)}, that of the model of weights=FILE, "
            "or ckpt_path=FILE of a checkpoint of hap, which knows it"
        )
    task: Task = build(cfg.task, "task")
    run_name = "/".join(run_dir.parts[-2:])
    task.labels = labels
    task.description = describe_run(cfg, labels) | {"run": run_name, "revision": git_revision()}
    if cfg.zero_shot and not task.zero_shot:
        raise HapError("zero_shot=true is for re-identification; this task has no score without training")
    report = None
    if cfg.weights is not None and ckpt_path is None:  # what a run goes on from has all of its weights
        report = load_weights(task.model, cfg.weights, **weights_options(cfg))
        task.description["weights"] = describe_weights(str(cfg.weights), report)
        rank_zero_only(log.info)("%s", report)
        if stage != "train":
            _check_trained(task, report)
    if stage == "train":
        plan_batches(cfg, trainer, datamodule, task)
        if ckpt_path is not None:
            trainer.strategy.checkpoint_io = _resume(ckpt_path, cfg, datamodule, task)
        if cfg.dry_run:
            return {}
    people: Any = None
    if stage == "predict":
        people = find_people(cfg, run_dir, task)
        datamodule.splits = {"predict": people}
    if checkpoint is not None and ckpt_path is not None:
        load_whole(task, ckpt_path, checkpoint)
        set_step(trainer, checkpoint.get("global_step", 0))
    if stage == "eval" and labels:
        datamodule.setup()
        datamodule.splits = task.arranged(datamodule.splits, labels)

    rank_zero_only(write_start)(cfg, run_dir, report)
    begin_wandb(trainer, cfg, ckpt_path)
    start = time.perf_counter()
    try:
        if stage == "train":
            trainer.fit(task, datamodule, ckpt_path=ckpt_path)
        elif stage == "eval":
            if task.needs_validation:
                trainer.validate(task, datamodule, verbose=False)
            trainer.test(task, datamodule, verbose=False)
        elif isinstance(people, Kept):
            task.search(people, run_dir)
        else:
            trainer.predict(task, datamodule, return_predictions=False)
    except Exception as error:
        cause = next(c.cause for c in trainer.callbacks if isinstance(c, Ranks))  # type: ignore[attr-defined]
        if cause is None and not isinstance(error, OSError):  # the logger's, on a full disk
            raise
        go_on = "; once that is mended, go on with resume=auto" if stage != "eval" else ""
        where = "" if cause or getattr(error, "filename", None) else f" (run folder: {run_dir})"
        raise HapError(f"{cause or error}{where}{go_on}") from error
    seconds = time.perf_counter() - start
    results = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
    if stage == "train" and not results:  # resumed at its end
        return results_before(run_dir, trainer.global_step)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        results |= getattr(callback, "best", {})
    results |= {"steps": trainer.global_step, "seconds": round(seconds, 1)}
    if trainer.is_global_zero:
        protocol = _protocol(stage, task, datamodule)
        if protocol and stage == "eval" and ckpt_path is None:
            protocol["weights"] = str(cfg.weights)
        write_results(results, protocol, run_dir, show=stage == "eval")
    return results


def _score(cfg: DictConfig, trainer: L.Trainer, datamodule: DataModule, run_dir: Path) -> dict[str, float]:
    """Evaluate a table of somebody's predictions on the test split, without a model."""
    split = datamodule.test_split
    labels = count_classes(cfg, datamodule)
    write_start(cfg, run_dir, None)
    # For the task to be built; nothing is computed with it.
    cfg.model.update(embed_dim=8, depth=1, num_heads=1)
    task: Task = build(cfg.task, "task")
    task.labels = labels
    begin_wandb(trainer, cfg, None)
    start = time.perf_counter()
    task.read_predictions(user_path(cfg.predictions), datamodule.records(split))
    assert task.metric is not None
    results = {f"test/{name}": value for name, value in task.metric.compute().items()}
    for name, picture in task.report(run_dir, datamodule.dataset(split)).items():
        write_picture(run_dir / "pictures" / f"{name}.png", picture)
    for logger in trainer.loggers:
        logger.log_metrics(results, 0)
        logger.save()
    results["seconds"] = round(time.perf_counter() - start, 1)
    protocol = _protocol("eval", task, datamodule) | {"weights": f"none: {cfg.predictions}"}
    write_results(results, protocol, run_dir, show=True)
    return results


def _protocol(stage: Stage, task: Task, datamodule: DataModule) -> dict[str, Any]:
    """How the scores were measured, where a task has any."""
    if stage == "predict" or not (protocol := task.protocol()):
        return {}
    split = datamodule.test_split if stage == "eval" else datamodule.val_split
    records = datamodule.records(split)
    return {"split": split, "data": getattr(records, "protocol", str(datamodule.root)), **protocol}


def _check_stage(stage: Stage, cfg: DictConfig) -> None:
    if cfg.resume not in (None, "auto"):
        raise HapError(
            f"resume={cfg.resume}: the only value is resume=auto; a certain checkpoint is ckpt_path=FILE"
        )
    if cfg.task is None and (stage != "eval" or cfg.ckpt_path is not None or cfg.predictions is not None):
        raise HapError(
            f"experiment={cfg.name} measures encoders as they are: hap eval experiment={cfg.name} weights=FILE, of a "
            "checkpoint, too, or weights=[FILE,none]"
        )
    if OmegaConf.is_list(cfg.weights) and (cfg.task is not None or not len(cfg.weights)):
        raise HapError("weights=[FILE,FILE] is for hap eval experiment=probe; a model starts from one file")
    if cfg.predictions is not None:
        if stage != "eval" or cfg.ckpt_path is not None or cfg.weights is not None:
            raise HapError("predictions=FILE is for hap eval, in place of ckpt_path= and weights=")
        return
    if stage != "train" and cfg.ckpt_path is None and cfg.weights is None:
        raise HapError(
            f"{stage} needs a model: ckpt_path=FILE for a checkpoint of this task, weights=FILE for an encoder"
        )
    if stage != "train" and cfg.ckpt_path is not None and cfg.weights is not None:
        raise HapError("ckpt_path=FILE has all weights of its model: leave weights= out, or ckpt_path=")
    if cfg.synthetic and cfg.body is not None and "synthetic" not in cfg.body._target_:
        raise HapError("synthetic=true is of drawn people: add body=drawn")
    if cfg.weights is None and weights_options(cfg) != weights_options(OmegaConf.structured(Root)):
        raise HapError("the keys weights_... say how to read weights=FILE, which is missing")
    if cfg.zero_shot and (stage == "train" or cfg.weights is None or cfg.ckpt_path is not None):
        raise HapError(
            "zero_shot=true scores an encoder as it is: hap eval ... weights=FILE, without ckpt_path"
        )


def _check_trained(task: Task, report: LoadReport) -> None:
    """A pre-training file alone makes no model for another task, unless its encoder is all that is scored."""
    fixed = {name for name, parameter in task.model.named_parameters() if not parameter.requires_grad}
    untrained = [
        name
        for name in report.missing
        if name not in fixed and (not task.zero_shot or name.startswith(ENCODER))
    ]
    if untrained:
        raise HapError(
            f"weights of {report.origin} lack {len(untrained)} parameters of this model "
            f"({', '.join(untrained[:4])}{', ...' if untrained[4:] else ''}): the file was not trained for this task. "
            "Fine-tune it (hap train ... weights=FILE), or give ckpt_path=FILE of a model that was; "
            "re-identification can score the encoder alone: zero_shot=true"
        )
    if task.zero_shot:
        rank_zero_only(log.warning)(
            "zero_shot: an encoder without fine-tuning; scores are far below a trained one's"
        )


def _checkpoint(stage: Stage, cfg: DictConfig, run_dir: Path) -> Path | None:
    """The file to resume from or to load. One that was asked for and is not there is an error."""
    if cfg.ckpt_path is not None:
        path = Path(cfg.ckpt_path).expanduser()
        if not path.is_file():
            raise HapError(f"checkpoint not found: {path} (ckpt_path=FILE)")
        return path
    if stage == "train" and cfg.resume == "auto":
        newest = newest_intact(run_dir / "checkpoints")
        rank_zero_only(log.info)("resuming from %s", newest or f"nothing: no checkpoint in {run_dir} yet")
        return newest
    return None


def _resume(path: Path, cfg: DictConfig, datamodule: DataModule, task: Task) -> CheckpointFiles:
    """Whether the run of a checkpoint can go on, before anything is started; reads the file once."""
    checkpoint = read_checkpoint(path, verified=cfg.ckpt_path is None)
    if "loops" not in checkpoint:
        raise HapError(f"{path} holds weights only: start a new run with weights={path}")
    if "hap" in checkpoint:
        description = checked(checkpoint["hap"], path)
        check_same(cfg, description, path)
        if task.description is not None and "weights" in description:
            task.description["weights"] = description["weights"]
    load_whole(task, path, checkpoint)
    loaders = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    datamodule.train_dataloader().load_state_dict(loaders[0])
    optimizers = checkpoint["optimizer_states"][0], task.configure_optimizers()["optimizer"].state_dict()
    saved, new = ([len(group["params"]) for group in state["param_groups"]] for state in optimizers)
    if saved != new:
        raise HapError(
            f"{path} has optimiser states for groups of {saved} parameters, this run has {new}: layer_decay must "
            "stay, and weight_decay cannot become or leave 0"
        )
    return CheckpointFiles(path, checkpoint)
