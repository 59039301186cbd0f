"""A checkpoint is enough: what it is, its sizes and its classes are in the file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, config

from hap.cli import quote_paths
from hap.description import add_experiment, read_description
from hap.errors import HapError
from hap.runner import run


def composed(program: str, *arguments: str):
    """As on the command line."""
    return config(program, *add_experiment(quote_paths(list(arguments))))


HERE = ("trainer=cpu", "data.num_workers=0", "callbacks.progress=null", "trainer.enable_progress_bar=false")


@pytest.fixture(scope="module")
def market(drawn) -> Path:
    return drawn("market1501", 160)


@pytest.fixture(scope="module")
def trained(market, tmp_path_factory) -> tuple[Path, dict]:
    """A checkpoint of a short run, and the run's last results."""
    folder = tmp_path_factory.mktemp("described") / "run"
    more = ["data.plan.images_per_identity=2", "total_batch_size=8", "epochs=1", "callbacks.pictures=null"]
    overrides = [*TINY, *more, "trainer.check_val_every_n_epoch=1", "task.top_k=3", f"data.root={market}"]
    results = run("train", config("train", "experiment=reid_market1501", *overrides), folder)
    return (folder / "checkpoints/last.ckpt").resolve(), results


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
        ({"format": 1, "config": {"name": "../x", "task": {}, "data": {}}}, "no separators"),
        (
            {"format": 1, "config": {"name": "x", "task": {}, "data": {}, "hydra": {}}},
            "that hap did not write",
        ),
    ],
)
def test_foreign_description_is_refused(description, message, tmp_path):
    torch.save({"state_dict": {}, "hap": description}, tmp_path / "x.ckpt")
    with pytest.raises(HapError, match=message):
        read_description(tmp_path / "x.ckpt")


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
