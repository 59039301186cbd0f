"""2D pose end to end on drawn people: what is trained, kept, evaluated and predicted."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_PRETRAIN, config

from hap.building import build
from hap.description import add_experiment
from hap.errors import HapError
from hap.pose.codecs import UDP, Classic
from hap.runner import run

SMALL = (
    *TINY[1:],
    "img_size=[64,48]",
    "task.model.head_dim=8",
    "task.recipe.warmup_steps=2",
    "task.recipe.lr=1e-3",
    "trainer.check_val_every_n_epoch=1",
    "epochs=2",
    "total_batch_size=8",
)
COCO = ("experiment=pose2d_coco", *SMALL)


@pytest.fixture(scope="module")
def coco(drawn) -> Path:
    return drawn("coco", 16)


def train(root: Path, folder: Path, *overrides: str) -> dict[str, float]:
    return run("train", config("train", *overrides, f"data.root={root}"), folder)


def evaluate(root: Path, folder: Path, *overrides: str) -> dict[str, float]:
    return run("eval", config("eval", *overrides, f"data.root={root}"), folder)


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def trained(coco, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(coco, folder, *COCO)
    return folder


def test_the_file_is_the_number(coco, trained, tmp_path):
    """What an evaluation of the checkpoint gives is what training logged, and its results say how it was measured."""
    again = evaluate(coco, tmp_path / "eval", *COCO, f"ckpt_path={trained}/checkpoints/last.ckpt")
    logged = results(trained)
    scores = {name.removeprefix("test/") for name in again if name.startswith("test/")}
    assert {"AP", "AP50", "AR"} <= scores
    for name in scores:
        assert again[f"test/{name}"] == pytest.approx(logged[f"val/{name}"], abs=1e-6, nan_ok=True), name
    assert "best_val/AP" not in logged  # it would be chosen on what is reported
    said = results(tmp_path / "eval")["protocol"]
    assert said["codec"] == "UDP"
    assert said["flip_test"] is True
    assert "detect" in said["data"]


def test_what_an_evaluation_leaves_scores_the_same_without_a_model(coco, trained, tmp_path):
    expected = evaluate(coco, tmp_path / "eval", *COCO, f"ckpt_path={trained}/checkpoints/last.ckpt")
    for name in (
        "result_keypoints.json",
        "per_joint.csv",
        "pictures/best_people.png",
        "pictures/worst_people.png",
    ):
        assert (tmp_path / "eval" / name).stat().st_size, name
    file = tmp_path / "eval/result_keypoints.json"
    scored = evaluate(coco, tmp_path / "scored", *COCO, f"predictions={file}")
    for name in ("AP", "AP50", "AP75", "AR", "AR50"):
        assert scored[f"test/{name}"] == pytest.approx(expected[f"test/{name}"], abs=1e-6), name
    with (tmp_path / "scored/per_joint.csv").open() as table:
        assert [row["joint"] for row in csv.DictReader(table)][:2] == ["nose", "left_eye"]


@pytest.mark.slow
def test_two_processes_evaluate_as_one(coco, trained, tmp_path):
    options = (*COCO, f"ckpt_path={trained}/checkpoints/last.ckpt", "data.eval_batch_size=3")
    one = evaluate(coco, tmp_path / "one", *options)
    command = [sys.executable, "-m", "hap.eval", *options, f"data.root={coco}", "trainer=ddp_cpu"]
    subprocess.run([*command, f"run_dir={tmp_path}/two"], check=True, cwd=tmp_path)
    two = results(tmp_path / "two")
    for name, value in one.items():
        if name.startswith("test/"):
            assert two[name] == pytest.approx(value, abs=1e-5, nan_ok=True), name
    files = [(tmp_path / name / "per_joint.csv").read_text() for name in ("one", "two")]
    assert files[0] == files[1]


@pytest.mark.parametrize("stop", [3, 4])
def test_a_stopped_run_goes_on(coco, trained, tmp_path, stop):
    train(coco, tmp_path / "run", *COCO, f"trainer.max_steps={stop}")
    train(coco, tmp_path / "run", *COCO, "resume=auto")
    states = [
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for folder in (trained, tmp_path / "run")
    ]
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "score", "codec", "joints"), [("mpii", "PCKh", "UDP", 16), ("aic", "AP", "Classic", 14)]
)
def test_other_sets(drawn, tmp_path, name, score, codec, joints):
    root = drawn(name, 12)
    logged = train(root, tmp_path / "run", f"experiment=pose2d_{name}", *SMALL, "epochs=1")
    assert 0 <= logged[f"val/{score}"] <= 100
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert len(checkpoint["hap"]["labels"]["joints"]) == joints
    assert results(tmp_path / "run")["protocol"]["codec"] == codec


def test_targets_are_those_of_each_person_s_own_set(drawn):
    cfg = config("train", "experiment=pose2d_multi", *SMALL)
    task = build(cfg.task, "task")
    joints = torch.rand(4, 17, 3) * torch.tensor([48, 64, 1]).float()
    joints[..., 2] = 1
    source = torch.tensor([1, 0, 2, 1])
    target, weight = task.targets(joints, source)
    for i, codec in enumerate((Classic, UDP, UDP, Classic)):
        alone = codec([64, 48]).encode(joints[i : i + 1])
        assert torch.equal(target[i : i + 1], alone[0])
        assert torch.equal(weight[i : i + 1], alone[1])


def test_three_sets_train_one_encoder_with_a_head_each(drawn, tmp_path):
    """The loss is the sum over the heads; a batch without people of a set leaves that head without a loss."""
    root = drawn("pose_multi", 12)
    logged = train(root, tmp_path / "run", "experiment=pose2d_multi", *SMALL, "epochs=1")
    heads = [logged[f"train/head_{i}"] for i in range(3)]
    assert logged["train/loss"] == pytest.approx(sum(heads), rel=1e-5)
    again = evaluate(
        root,
        tmp_path / "eval",
        "experiment=pose2d_multi",
        *SMALL,
        f"ckpt_path={tmp_path}/run/checkpoints/last.ckpt",
    )
    assert again["test/AP"] == pytest.approx(logged["val/AP"], abs=1e-6)


@pytest.mark.slow
def test_two_processes_train_three_sets(drawn, tmp_path):
    """Every parameter has a gradient on both, also where one of them has nobody of a set."""
    root = drawn("pose_multi", 12)
    options = ("experiment=pose2d_multi", *SMALL, "epochs=1", f"data.root={root}", "trainer=ddp_cpu")
    command = [sys.executable, "-m", "hap.train", *options, f"run_dir={tmp_path}/two"]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert np.isfinite(results(tmp_path / "two")["train/loss"])


def own_set(coco: Path, root: Path, names: list[str]) -> Path:
    """The drawn people with their hips alone, under other names."""
    for split in ("train", "val"):
        content = json.loads((coco / f"annotations/person_keypoints_{split}2017.json").read_text())
        content["categories"][0].update(keypoints=names, skeleton=[[1, 2]])
        for person in content["annotations"]:
            person["keypoints"] = person["keypoints"][33:39]
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / f"annotations/{split}.json").write_text(json.dumps(content))
        (root / split).symlink_to(coco / f"{split}2017")
    return root


@pytest.mark.parametrize(
    ("sigmas", "score"), [("", "PCK_box@0.05"), ("data.reader.sigmas=[0.08,0.08]", "AP")]
)
def test_joints_of_one_s_own(coco, tmp_path, sigmas, score):
    """Two joints of the drawn people, in COCO's format: scored by what can be, and the best epoch is kept."""
    root = own_set(coco, tmp_path / "own", ["left_hip", "right_hip"])
    options = ["experiment=pose2d_own", *SMALL, "task.recipe.warmup_epochs=0", *([sigmas] if sigmas else [])]
    logged = train(root, tmp_path / "run", *options)
    assert logged[f"best_val/{score}"] >= logged[f"val/{score}"]
    assert ("val/AP" in logged) == bool(sigmas)
    checkpoint = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["hap"]["labels"]["mirrored"] == ["right_hip", "left_hip"]


def test_sides_without_a_partner_stop_training(coco, tmp_path):
    root = own_set(coco, tmp_path / "own", ["left_hip", "right_foot"])
    options = ["experiment=pose2d_own", *SMALL, "task.recipe.warmup_epochs=0", "epochs=1"]
    with pytest.raises(HapError, match="left_hip, right_foot have a side in their names and no partner"):
        train(root, tmp_path / "run", *options)
    off = ("task.flip_test=false", "data.transforms.train.flip_prob=0")
    train(root, tmp_path / "off", *options, *off)
    pairs = "data.reader.flip_pairs=[[left_hip,right_foot]]"
    train(root, tmp_path / "pairs", *options, pairs)


def test_joints_in_another_order_score_the_same(coco, trained, tmp_path):
    """An evaluation goes by the names in the annotations, whatever their order."""
    other = tmp_path / "other"
    other.mkdir()
    for name in ("train2017", "val2017", "person_detection_results"):
        (other / name).symlink_to(coco / name)
    (other / "annotations").mkdir()
    order = np.random.default_rng(0).permutation(17).tolist()
    for file in (coco / "annotations").glob("*.json"):
        content = json.loads(file.read_text())
        category = content["categories"][0]
        category["keypoints"] = [category["keypoints"][i] for i in order]
        for person in content["annotations"]:
            person["keypoints"] = np.reshape(person["keypoints"], (17, 3))[order].ravel().tolist()
        (other / "annotations" / file.name).write_text(json.dumps(content))
    options = (*COCO, f"ckpt_path={trained}/checkpoints/last.ckpt")
    assert (
        evaluate(other, tmp_path / "a", *options)["test/AP"]
        == evaluate(coco, tmp_path / "b", *options)["test/AP"]
    )


def test_codecs_and_heads_go_together(coco, tmp_path):
    with pytest.raises(HapError, match="1 for 3 heads"):
        train(coco, tmp_path / "run", *COCO, "+task.model.num_sources=3")


def test_a_model_of_other_joints_is_told(drawn, trained, tmp_path):
    with pytest.raises(HapError, match=r"missing .*left_eye"):
        evaluate(
            drawn("mpii", 12),
            tmp_path / "eval",
            *("experiment=pose2d_mpii", *SMALL, "task.model.num_joints=17", "task.model.drop_path=0.29"),
            f"ckpt_path={trained}/checkpoints/last.ckpt",
        )


def test_from_one_s_own_crops_to_pre_training(luperson, trained, tmp_path):
    """Crops -> keypoints by a pose model -> pre-training with part masks."""
    options = add_experiment([f"ckpt_path={trained}/checkpoints/last.ckpt"])
    quiet = (
        "trainer=cpu",
        "callbacks.progress=null",
        "trainer.enable_progress_bar=false",
        "data.num_workers=0",
    )
    crops = luperson / "LUPerson-data"
    run(
        "predict",
        config("predict", *options, *quiet, f"input={crops}", "output=luperson"),
        tmp_path / "predict",
    )
    cfg = config(
        "train",
        "experiment=pretrain_hap",
        *TINY_PRETRAIN,
        "epochs=1",
        f"data.root={tmp_path}/predict/luperson",
    )
    found = run("train", cfg, tmp_path / "pretrain")
    assert np.isfinite(found["train/loss"])
