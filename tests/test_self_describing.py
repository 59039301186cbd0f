"""A checkpoint is enough: what it is, its sizes and its classes are in the file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_PRETRAIN, config
from omegaconf import DictConfig, OmegaConf

import hap.bench
import hap.runner
from hap.cli import quote_paths
from hap.config import check_config
from hap.description import KEPT, add_experiment, describe_run, read_description
from hap.errors import HapError
from hap.models.weight_names import DRAWN
from hap.runner import run


def composed(program: str, *arguments: str) -> DictConfig:
    """As on the command line."""
    return config(program, *add_experiment(quote_paths(list(arguments))))


HERE = ("trainer=cpu", "data.num_workers=0", "callbacks.progress=null", "trainer.enable_progress_bar=false")


@pytest.fixture(scope="module")
def market(drawn) -> Path:
    return drawn("market1501", 160)


REID = (
    "experiment=reid_market1501",
    *TINY,
    "data.plan.images_per_identity=2",
    "total_batch_size=8",
    "epochs=1",
)
REID = (*REID, "callbacks.pictures=null", "trainer.check_val_every_n_epoch=1", "task.top_k=3")
PRETRAIN = ("experiment=pretrain_hap", *TINY_PRETRAIN, "epochs=1", "callbacks.pictures=null")


@pytest.fixture(scope="module")
def trained(market, tmp_path_factory) -> tuple[Path, dict]:
    """A checkpoint of a short run, and the run's last results."""
    folder = tmp_path_factory.mktemp("described") / "run"
    results = run("train", config("train", *REID, f"data.root={market}"), folder)
    return (folder / "checkpoints/last.ckpt").resolve(), results


@pytest.fixture(scope="module")
def pretrained(luperson, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("described") / "pretraining"
    results = run("train", config("train", *PRETRAIN, f"data.root={luperson}"), folder)
    return (folder / "checkpoints/last.ckpt").resolve(), results


def save_described(path: Path, *overrides: str) -> Path:
    """A file without weights, as the training with these overrides would describe it."""
    torch.save({"state_dict": {}, "hap": describe_run(config("train", *overrides), {})}, path)
    return path


def kept(cfg: DictConfig) -> dict:
    """What is in a checkpoint, as it is on this machine."""
    return {key: OmegaConf.to_container(cfg, resolve=True)[key] for key in KEPT}


@pytest.mark.parametrize(
    "experiment", ["pretrain_hap", "pretrain_mae", "demo", "reid_msmt17_lem_384", "demo_reid"]
)
def test_configuration_comes_back(tmp_path, experiment, monkeypatch):
    """From another machine: its trainer, workers and folders are not those of the training."""
    machine = ["trainer=ddp", "data.num_workers=16", "logger=wandb", "run_dir=/x", "compile=true"]
    path = save_described(tmp_path / "x.ckpt", f"experiment={experiment}", *machine)
    monkeypatch.setenv("HAP_DATA", "/elsewhere")
    plain, again = config("eval", f"experiment={experiment}"), composed("eval", f"ckpt_path={path}")
    plain.data.num_workers = None  # of the demos, for small machines
    assert kept(again) == kept(plain)
    assert again.trainer.strategy == "auto"
    assert not again.compile
    assert again.run_dir.startswith("runs/")
    check_config(again)


def test_experiment_of_a_folder_that_is_gone(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_DATA", "/mine")
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults: [pretrain_hap, _self_]\nname: mine\ndata:\n  root: ${oc.env:MY_DATA}/x\n"
    (tmp_path / "experiment/mine.yaml").write_text(text)
    overrides = "experiment=mine", f"hydra.searchpath=[file://{tmp_path}]"
    path = save_described(tmp_path / "x.ckpt", *overrides)
    (tmp_path / "experiment/mine.yaml").unlink()
    monkeypatch.delenv("MY_DATA")
    cfg = composed("eval", f"ckpt_path={path}")
    assert (cfg.name, cfg.data.root, cfg.masking.ratio) == ("mine", "/mine/x", 0.5)


def test_drawn_people_of_the_training_are_not_those_that_are_named(tmp_path):
    path = save_described(tmp_path / "x.ckpt", "experiment=demo_reid")
    assert composed("eval", f"ckpt_path={path}").synthetic
    for data in ("data.root=/data/people", "data=people"):
        assert not composed("eval", f"ckpt_path={path}", data).synthetic
    assert composed("eval", f"ckpt_path={path}", "data=market1501", "synthetic=true").synthetic


def test_pretraining_is_evaluated_and_predicts_the_same_without_its_overrides(pretrained, luperson, tmp_path):
    path, results = pretrained
    where = (f"ckpt_path={path}", f"data.root={luperson}")
    scores = run("eval", composed("eval", f"ckpt_path={path}", *HERE), tmp_path / "eval")
    same = run("eval", composed("eval", *PRETRAIN, *where), tmp_path / "same")
    assert scores["test/loss"] == same["test/loss"] == pytest.approx(results["val/loss"], rel=1e-6)
    images = f"input={luperson}/LUPerson-data"
    run("predict", composed("predict", f"ckpt_path={path}", *HERE, images), tmp_path / "predict")
    run("predict", composed("predict", *PRETRAIN, *where, images), tmp_path / "predict_same")
    one, other = (np.load(tmp_path / name / "predictions.npz") for name in ("predict", "predict_same"))
    assert np.array_equal(one["feature"], other["feature"])
    # How much is hidden is no part of the network.
    masks = ["masking=random", "masking.ratio=0.75", "task.model.grad_checkpointing=true"]
    assert (
        run("eval", composed("eval", *where, *HERE, *masks), tmp_path / "random")["test/loss"]
        != same["test/loss"]
    )


def test_programs_need_the_file_alone(trained, market, tmp_path):
    """From another folder, on two processes, each of which reads its own command line."""

    def program(name: str, *arguments: str) -> None:
        command = [sys.executable, "-m", f"hap.{name}", f"ckpt_path={trained[0]}", *arguments]
        subprocess.run(command, check=True, cwd=tmp_path, env=os.environ | {"PYTHONWARNINGS": "ignore"})

    program("eval", "trainer=ddp_cpu", "run_dir=eval")
    scores = json.loads((tmp_path / "eval/results.json").read_text())
    assert scores["test/mAP"] == pytest.approx(trained[1]["val/mAP"], abs=1e-6)
    images = f"query={market}/query", f"gallery={market}/query"
    alone = add_experiment([f"ckpt_path={trained[0]}", "trainer=cpu", *images])
    run("predict", config("predict", *alone), tmp_path / "predict")
    run("predict", composed("predict", *REID, f"ckpt_path={trained[0]}", *images), tmp_path / "same")
    one, other = (np.load(tmp_path / name / "features.npz") for name in ("predict", "same"))
    assert np.allclose(one["features"], other["features"], atol=1e-5)


def test_names_of_the_classes_are_known_after_loading(trained, market, tmp_path, monkeypatch):
    tasks = []

    def build(node, where, **kwargs):
        built = original(node, where, **kwargs)
        tasks.extend([built] if where == "task" else [])
        return built

    original = hap.runner.build
    monkeypatch.setattr(hap.runner, "build", build)
    run("eval", composed("eval", f"ckpt_path={trained[0]}", *HERE), tmp_path / "eval")
    people = sorted({file.name[:4] for file in market.rglob("bounding_box_train/*.jpg")})
    assert tasks[0].labels == {"people": people}


def test_number_of_people_comes_from_the_data(trained, market):
    path, _ = trained
    people = sorted({file.name[:4] for file in market.rglob("bounding_box_train/*.jpg")})
    content = torch.load(path, weights_only=True)  # plain data, nothing executed
    assert content["hap"]["labels"] == {"people": people}
    assert len(content["state_dict"]["model.head.weight"]) == len(people)
    assert content["hap"]["config"]["task"]["model"]["num_classes"] == len(people)
    assert f"num_classes: {len(people)}" in (path.parents[1] / "config.yaml").read_text()
    assert not {"trainer", "logger", "callbacks", "run_dir"} & content["hap"]["config"].keys()


def test_evaluation_needs_the_file_alone(trained, tmp_path, caplog):
    path, results = trained
    with caplog.at_level("INFO"):
        scores = run("eval", composed("eval", f"ckpt_path={path}", *HERE), tmp_path / "eval")
    assert scores["test/mAP"] == pytest.approx(results["val/mAP"], abs=1e-6)
    assert "another: data.root=FOLDER" in caplog.text


def test_other_data_and_options_still_apply(trained, drawn, tmp_path):
    path, _ = trained
    others = drawn("market1501", 200)
    more = ["data=market1501", f"data.root={others}", "task.metric.distance=euclidean", "data.num_workers=0"]
    cfg = composed("eval", f"ckpt_path={path}", "trainer=cpu", *more)
    assert (cfg.data.root, cfg.task.metric.distance, cfg.img_size) == (str(others), "euclidean", [64, 32])
    assert cfg.data.plan.images_per_identity == 8  # the group replaces that of the file
    run("eval", cfg, tmp_path / "eval")


def test_prediction_needs_no_data_set(trained, market, tmp_path):
    path, _ = trained
    images = f"query={market}/query", f"gallery={market}/query"
    run("predict", composed("predict", f"ckpt_path={path}", *images, *HERE), tmp_path / "predict")
    with np.load(tmp_path / "predict/features.npz") as file:
        assert file["features"].shape[1] == 32


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.depth=3", "model.depth: 3 here, 2 in the checkpoint"),
        ("img_size=[128,64]", r"img_size: \[128, 64\] here, \[64, 32\] in the checkpoint"),
        ("task.model.num_classes=9", r"task\.model\.num_classes: 9 here, \d+ in the checkpoint"),
        ("task=reid_lem", "hap.models.heads.ReidLem here, hap.models.heads.ReidViT in the checkpoint"),
        ("model=vit_small", "model.embed_dim: 384 here, 32 in the checkpoint"),
        ("weights=drawn", "has all weights of its model: leave weights= out"),
        (
            "experiment=pretrain_hap",
            "hap.tasks.pretrain.Pretrain here, hap.tasks.reid.Reid in the checkpoint",
        ),
    ],
)
def test_contradiction_is_said_with_both_values(trained, override, message, tmp_path):
    with pytest.raises(HapError, match=message):
        run("eval", composed("eval", f"ckpt_path={trained[0]}", override, *HERE), tmp_path / "eval")


def test_experiment_beside_it_that_agrees(trained, market, tmp_path):
    overrides = ["experiment=reid_market1501", *TINY, f"data.root={market}", f"ckpt_path={trained[0]}"]
    run("eval", composed("eval", *overrides), tmp_path / "eval")


def test_file_of_an_earlier_release(trained, market, tmp_path):
    """It says nothing of itself: an experiment does, and the number of classes is that of the weights."""
    content = torch.load(trained[0], weights_only=True)
    del content["hap"]
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(HapError, match="add experiment=NAME"):
        composed("eval", f"ckpt_path={tmp_path}/old.ckpt")
    images = f"query={market}/query", f"gallery={market}/query"
    cfg = composed("predict", "experiment=reid_market1501", *TINY, *images, f"ckpt_path={tmp_path}/old.ckpt")
    run("predict", cfg, tmp_path / "predict")
    assert cfg.task.model.num_classes == len(content["state_dict"]["model.head.weight"])


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("text", "that hap did not write"),
        ({"format": 99, "version": "9.0"}, "hap 9.0, which is newer"),
        ({"format": 1, "config": {"name": "x"}}, "that hap did not write"),
    ],
)
def test_foreign_description_is_refused(description, message, tmp_path):
    torch.save({"state_dict": {}, "hap": description}, tmp_path / "x.ckpt")
    with pytest.raises(HapError, match=message):
        read_description(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../x"}, "no separators"),
        ({"task": "text"}, "that hap did not write"),
        ({"data": {}}, "that hap did not write"),
        ({"hydra": {}}, "there is no key hydra"),
        ({"defaults": ["reid_msmt17"]}, "there is no key defaults"),
        ({"name": "${oc.env:HOME}"}, r"calls \$\{oc\.env:"),
        ({"data": {"_target_": "x", "root": "${run_folder:/tmp/x,${now:}}"}}, r"calls \$\{run_folder:"),
        ({"data": {"_target_": "x", "root": "${oc.env:HAP_DATA,${oc.env:HOME}}"}}, r"calls \$\{oc\.env:"),
        ({"name": "${"}, "cannot be read"),
    ],
)
def test_changed_description_is_refused(trained, change, message, tmp_path):
    content = torch.load(trained[0], weights_only=True)
    content["hap"]["config"] |= change
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(HapError, match=message):
        composed("eval", f"ckpt_path={tmp_path}/x.ckpt")


def test_description_calls_nothing_else(trained, tmp_path):
    content = torch.load(trained[0], weights_only=True)
    content["hap"]["config"]["data"]["reader"]["_target_"] = "os.system"
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(HapError, match=r"'os\.system' is not allowed"):
        run("eval", composed("eval", f"ckpt_path={tmp_path}/x.ckpt", *HERE), tmp_path / "eval")


def test_damaged_and_missing_files(trained, tmp_path):
    (tmp_path / "cut.ckpt").write_bytes(trained[0].read_bytes()[:5000])
    for name, message in (("cut.ckpt", "damaged"), ("none.ckpt", "checkpoint not found")):
        with pytest.raises(HapError, match=message):
            composed("eval", f"ckpt_path={tmp_path}/{name}")


def test_files_for_weights_are_told_so(tmp_path):
    torch.save({"model": {}}, tmp_path / "official.pth")
    for path in (tmp_path / "official.pth", DRAWN):
        with pytest.raises(HapError, match=f"{path} is not a checkpoint of hap.*; weights=FILE reads other"):
            composed("eval", f"ckpt_path={path}")


def test_what_does_not_say_it(trained, tmp_path):
    with pytest.raises(HapError, match="add experiment=NAME"):
        composed("eval", "-m", f"ckpt_path={trained[0]},{trained[0]}")
    images = f"query={tmp_path}", f"gallery={tmp_path}"
    with pytest.raises(HapError, match=r"give task\.model\.num_classes=N"):
        run("predict", composed("predict", *REID, f"weights={trained[0]}", *images), tmp_path / "predict")


def test_benchmark_counts_the_people(market, tmp_path):
    few = [
        "benchmark.batch_sizes=[4]",
        "benchmark.repeats=1",
        "benchmark.compiled=[false]",
        "benchmark.parts=[]",
    ]
    where = ["synthetic=false", f"data.root={market}", "benchmark.shards=null", f"out={tmp_path}"]
    hap.bench.body(config("bench", "benchmark=pretrain", *REID[:5], *few, *where), tmp_path)
    (path,) = tmp_path.glob("pretrain_*.json")
    people = {file.name[:4] for file in market.rglob("bounding_box_train/*.jpg")}
    assert json.loads(path.read_text())["config"]["task"]["model"]["num_classes"] == len(people)
