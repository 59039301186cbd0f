"""Sweeps: every job is a run of its own, and what became of all of them is put together from their folders."""

import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import weakref

import pytest
import yaml
from conftest import TINY_PRETRAIN, config
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from hap.cli import describe
from hap.config import CONF_DIR, check_config, check_hydra, direction
from hap.errors import HapError
from hap.metrics.direction import lower_is_better, main_score
from hap.multirun import is_multirun, job_of_sweep, objective_of
from hap.reports.sweep import is_sweep, markdown, over_seeds, read_sweep, write_sweep


def write_job(folder, number, overrides, results=None, **status):
    """What a job leaves, as the runner writes it."""
    job = folder / str(number)
    job.mkdir(parents=True)
    content = {"overrides": overrides, "state": "finished", "pid": 1, "host": "elsewhere"} | status
    (job / "status.json").write_text(json.dumps(content))
    if results is not None:
        (job / "results.json").write_text(json.dumps(results | {"protocol": {"split": "val"}}))
    return job


def rows_of(folder):
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def multirun(folder, luperson, *overrides):
    """The end of the program in a process of its own."""
    command = [sys.executable, "-m", "hap.train", "-m", "experiment=pretrain_hap", *TINY_PRETRAIN, "epochs=1"]
    command += [f"data.root={luperson}", "callbacks.pictures=null", "data.reader.num_val=2", *overrides]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def swept(luperson, tmp_path_factory):
    """The program's end and its folder: three jobs, the second cannot run."""
    folder = tmp_path_factory.mktemp("swept")
    overrides = ["masking.ratio=0.25,1.0,0.75", "objective=val/reconstruction"]
    return multirun(folder, luperson, *overrides), folder


def test_a_job_that_fails_does_not_stop_the_others(swept):
    end, folder = swept
    assert end.returncode == 2, end.stderr
    assert "Traceback" not in end.stderr
    (sweep,) = folder.glob("runs/pretrain_hap/*")  # and no folders of single runs beside it
    rows = rows_of(sweep)
    assert [row["state"] for row in rows] == ["finished", "failed", "finished"]
    assert [row["masking.ratio"] for row in rows] == ["0.25", "1.0", "0.75"]
    assert "mask_ratio 1.0 leaves none or all" in rows[1]["error"]
    assert "mask_ratio 1.0 leaves none or all" in (sweep / "1/pretrain_hap.log").read_text()
    for row in rows[::2]:
        results = json.loads((sweep / row["folder"] / "results.json").read_text())
        assert float(row["val/reconstruction"]) == results["val/reconstruction"]
    assert "3 jobs: 2 finished, 1 failed." in end.stdout
    assert "mask_ratio 1.0 leaves none or all" in end.stderr
    # The record of a job names the command of this job.
    command = json.loads((sweep / "2/environment.json").read_text())["command"]
    assert "masking.ratio=0.75" in command
    assert "-m" not in command


def test_the_folder_of_a_sweep_is_read_wherever_it_is(swept, tmp_path):
    (sweep,) = swept[1].glob("runs/pretrain_hap/*")
    copy = tmp_path / "some where #1"
    shutil.copytree(sweep, copy)
    status = json.loads((copy / "2/status.json").read_text())
    (copy / "2/status.json").write_text(json.dumps(status | {"state": "running", "pid": 1}))
    (copy / "2/results.json").unlink()
    found = read_sweep(copy)
    assert [job.state for job in found.jobs] == ["finished", "failed", "killed"]
    assert found.objective == "val/reconstruction"  # as the sweep said
    assert found.best is found.jobs[0]
    write_sweep(found)
    assert [row["state"] for row in rows_of(copy)] == ["finished", "failed", "killed"]
    assert "job 2 killed: " in (copy / "sweep.md").read_text()


def test_all_jobs_may_have_failed(tmp_path):
    for number in range(2):
        write_job(tmp_path, number, [f"seed={number}"], state="failed", error="first\nNo space left\n")
    sweep = read_sweep(tmp_path)
    assert (sweep.objective, sweep.best) == (None, None)
    write_sweep(sweep)
    assert [row["error"] for row in rows_of(tmp_path)] == ["No space left"] * 2
    assert "2 jobs: 2 failed." in markdown(sweep)


def test_jobs_are_in_order_and_their_keys_as_short_as_can_be(tmp_path):
    for number, rate in enumerate(["1e-3", "2e-3"] * 6):
        overrides = [
            "experiment=demo",
            f"task.recipe.lr={rate}",
            f"+data.plan.lr={number}",
            f"weights='a={rate}'",
        ]
        write_job(tmp_path, number, overrides, {"val/mAP": 0.5})
    sweep = read_sweep(tmp_path)
    assert [job.name for job in sweep.jobs] == [str(number) for number in range(12)]
    assert sweep.short == {"task.recipe.lr": "recipe.lr", "data.plan.lr": "plan.lr", "weights": "weights"}
    assert sweep.jobs[1].values["weights"] == "a=2e-3"


def test_mean_and_spread_over_seeds(tmp_path):
    scores = {"0.25": [0.3, 0.5, 0.4], "0.5": [0.6, 0.7], "0.75": [0.1]}
    jobs = [(ratio, seed, v) for ratio, values in scores.items() for seed, v in enumerate(values)]
    for number, (ratio, seed, value) in enumerate(jobs):
        write_job(tmp_path, number, [f"masking.ratio={ratio}", f"seed={seed}"], {"probe/mAP": value})
    write_job(tmp_path, 99, ["masking.ratio=0.75", "seed=1"], state="failed", error="x")
    sweep = read_sweep(tmp_path)
    for group, (ratio, values) in zip(over_seeds(sweep), scores.items(), strict=True):
        assert group.values == {"masking.ratio": ratio}
        assert (group.count, group.low, group.high) == (len(values), min(values), max(values))
        assert group.mean == pytest.approx(sum(values) / len(values))
        if len(values) > 1:
            assert group.spread == pytest.approx(statistics.stdev(values))
    assert "| 0.25 | 0.4 | 0.1 | 3 |" in markdown(sweep)


@pytest.mark.parametrize(
    "content", ["", "[]", "null", '{"overrides": 3}', '{"state": "finished", "overrides": [1]}']
)
def test_what_a_broken_job_says_is_not_needed(tmp_path, content):
    write_job(tmp_path, 0, ["seed=0"], {"val/loss": 2.0})
    write_job(tmp_path, 1, ["seed=1"], {"val/loss": 1.0})
    (tmp_path / "1/status.json").write_text(content)
    (tmp_path / "1/results.json").write_text(content)
    sweep = read_sweep(tmp_path)
    assert sweep.best is sweep.jobs[0]
    write_sweep(sweep)


def test_names_from_outside_are_shown_and_nothing_more(tmp_path):
    evil = "<script>alert(1)</script>|[red]\x1b[31m\n# x"
    for number, value in enumerate(["a", evil]):
        write_job(tmp_path, number, [f"name={value}"], {"val/loss": 1.0}, state="failed", error=evil)
    text = markdown(read_sweep(tmp_path))
    assert "<script>" not in text
    assert "\x1b" not in text
    row = next(line for line in text.splitlines() if line.startswith("| 1 |"))
    assert row.replace("\\|", "").count("|") == 5


def test_no_sweep_is_one_message(tmp_path):
    assert not is_sweep(tmp_path)
    with pytest.raises(HapError, match="no folder of a sweep"):
        read_sweep(tmp_path)
    job = write_job(tmp_path, 0, ["seed=0"])
    assert is_sweep(tmp_path)
    assert not is_sweep(job)


def test_which_scores_are_errors():
    less = "val/loss val/reconstruction val/alignment train/identity train/head_0 test/PA-MPJPE val/MPVPE test/MPJPE_17"
    more = "val/mAP test/rank1 probe/rank1 test/rerank_mAP test/mA test/F1 val/AP test/AP_M test/PCKh@0.1"
    assert all(lower_is_better(name) for name in less.split())
    assert not any(lower_is_better(name) for name in more.split())
    assert main_score(["val/loss", "val/mAP", "train/loss"]) == "val/mAP"
    assert main_score(["steps"]) is None


class Big:
    """Stands for a model."""


def test_a_failed_job_leaves_nothing_to_the_next(monkeypatch):
    cfg = config("train", "experiment=pretrain_hap", "seed=1", hydra=True)
    cfg.hydra.mode = "MULTIRUN"
    cfg.hydra.job.num, cfg.hydra.runtime.output_dir = 3, "sweep/3"
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    assert not is_multirun()
    HydraConfig.instance().set_config(cfg)
    assert is_multirun()
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=1,2"])
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    seen = []

    def run() -> None:
        model = Big()
        seen.append(weakref.ref(model))
        os.environ["LOCAL_RANK"] = "0"  # as Lightning's launcher does
        assert sys.argv == ["train.py", "--config-dir", "x", "experiment=pretrain_hap", "seed=1"]
        assert HydraConfig.get().run.dir == "sweep/3"
        try:
            raise ValueError("within")
        except ValueError as error:
            raise HapError("this job is wrong") from error

    with pytest.raises(HapError) as kept, job_of_sweep("train", ["train.py", "--config-dir", "x"], str):
        run()
    assert seen[0]() is None
    assert str(kept.value) == "this job is wrong"
    assert sys.argv == ["train.py", "-m", "seed=1,2"]
    assert "LOCAL_RANK" not in os.environ


def test_the_objective_is_a_result():
    cfg = config("train", "experiment=pretrain_hap", "objective=val/los")
    with pytest.raises(HapError, match="did you mean 'val/loss'"):
        objective_of(cfg, {"val/loss": 1.0})
    cfg.objective = "val/loss"
    assert objective_of(cfg, {"val/loss": 1.0}) == 1.0
    assert objective_of(config("train", "experiment=pretrain_hap"), {}) is None


@pytest.mark.slow
def test_a_search_is_told_of_a_failed_trial_and_goes_on(luperson, tmp_path):
    overrides = [
        "sweep=optuna",
        "hydra.sweeper.n_trials=2",
        "hydra.sweeper.sampler.seed=0",
        "objective=val/loss",
    ]
    end = multirun(tmp_path, luperson, *overrides, "callbacks.probe=null", "masking.ratio=choice(0.25,1.0)")
    assert end.returncode == 0, end.stderr
    (sweep,) = tmp_path.glob("runs/pretrain_hap/*")
    found = read_sweep(sweep)
    assert {job.state for job in found.jobs} == {"finished", "failed"}
    best = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
    assert found.best.results["val/loss"] == pytest.approx(best["best_value"])  # the least: a loss
    assert min(job.results.get("val/loss", 9) for job in found.jobs) == found.best.results["val/loss"]
    assert (sweep / "report.html").read_text().count(
        "<svg"
    ) == 3  # over the trials, and by each of the two keys


SWEEPS = sorted(path.stem for path in (CONF_DIR / "sweep").glob("*.yaml"))


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_fits_its_experiments(name):
    """Each of its values, as the sweeper takes them apart."""
    cfg = config("train", "experiment=demo", f"sweep={name}", hydra=True)
    check_hydra(cfg.hydra)
    assert cfg.hydra.mode == RunMode.MULTIRUN
    assert cfg.objective == "probe/mAP"
    params = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items()]
    parsed = OverridesParser.create().parse_overrides(params)
    if name == "optuna":
        assert cfg.hydra.sweeper.direction == "maximize"
        parsed = [override for override in parsed if override.is_discrete_sweep()]
    (jobs,) = BasicSweeper.split_arguments(parsed, None)
    for experiment, job in zip(["pretrain_hap", *["demo"] * len(jobs)], jobs, strict=False):
        check_config(config("train", f"experiment={experiment}", f"sweep={name}", *job))


def test_a_search_without_optuna_says_what_to_install(monkeypatch):
    repository = ConfigStore.instance().repo["hydra"]["sweeper"]
    monkeypatch.delitem(repository, "optuna.yaml")
    with pytest.raises(ConfigCompositionException) as error:
        config("train", "experiment=demo", "sweep=optuna")
    assert 'pip install "hap[optuna]"' in describe(error.value)


def test_the_sweep_of_wandb_composes():
    content = yaml.safe_load((CONF_DIR.parent / "scripts/wandb_sweep.yaml").read_text())
    first = {name: {"value": parameter["values"][0]} for name, parameter in content["parameters"].items()}
    macros = create_sweep_command_args({"args": first}) | {
        "env": ["/usr/bin/env"],
        "program": [content["program"]],
    }
    command = [w for word in content["command"] for w in macros.get(word.strip("${}"), [word])]
    assert command[:4] == ["/usr/bin/env", "python", "-m", "hap.train"]
    check_config(config("train", *command[4:]))
    assert content["metric"]["goal"] == direction(content["metric"]["name"])


@pytest.mark.slow
def test_jobs_of_other_processes_one_of_them_killed(luperson, tmp_path):
    """The launcher that starts a process for each job; the last is killed while it trains."""
    overrides = ["hydra/launcher=submitit_local", "hydra.sweep.dir=swept", "masking.ratio=0.25,1.0,0.75"]
    command = [sys.executable, "-m", "hap.train", "-m", "experiment=pretrain_hap", *TINY_PRETRAIN]
    command += [f"data.root={luperson}", "callbacks.pictures=null", "epochs=100000", "trainer.max_steps=400"]
    program = subprocess.Popen([*command, *overrides], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    status = tmp_path / "swept/2/status.json"
    while not status.exists() or not list(tmp_path.glob("swept/2/logs/*/metrics.csv")):
        assert program.poll() is None
        time.sleep(0.2)
    os.kill(json.loads(status.read_text())["pid"], signal.SIGKILL)
    printed, _ = program.communicate()
    assert program.returncode != 0
    assert [row["state"] for row in rows_of(tmp_path / "swept")] == ["finished", "failed", "killed"]
    assert "job 2 killed: " in printed
    assert (tmp_path / "swept/2/report.html").exists()


@pytest.mark.slow
def test_a_distributed_job_that_fails_does_not_stop_the_others(luperson, tmp_path):
    """Its other ranks are its own: each job starts them anew, and none leaves folders beside the sweep."""
    overrides = [
        "trainer=ddp_cpu",
        "task.recipe.base_lr=1e-3,1e15,1e-4",
        "task.recipe.warmup_epochs=0",
        "epochs=3",
    ]
    end = multirun(tmp_path, luperson, *overrides)
    assert end.returncode == 2, end.stderr
    (sweep,) = tmp_path.glob("runs/pretrain_hap/*")
    assert [row["state"] for row in rows_of(sweep)] == ["finished", "failed", "finished"]
    assert "not finite" in rows_of(sweep)[1]["error"]
