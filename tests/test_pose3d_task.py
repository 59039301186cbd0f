"""3D pose end to end on drawn people: what is trained, kept and evaluated, and what is refused."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import TINY, config

from hap.body.joints import EVALUATED, H36M
from hap.building import build
from hap.errors import HapError
from hap.runner import run
from hap.synthetic.smpl import FILES, write_bodies

SMALL = (
    *TINY[1:],
    "body=drawn",
    "trainer.check_val_every_n_epoch=1",
    "epochs=2",
    "total_batch_size=8",
    "data.eval_batch_size=8",
)
HMR2_MODEL = ("task.model.decoder_dim=32", "task.model.decoder_depth=1", "task.model.decoder_heads=2")
NETWORKS = {
    "crowdnet": (
        *("experiment=pose3d_3dpw_fixed", *SMALL, "task.model.feature_dim=16", "task.model.graph_dim=8"),
        *("task.recipe.warmup_steps=2", "task.recipe.milestones=[]", "task.recipe.lr=1e-3"),
    ),
    "hmr2": ("experiment=pose3d_hmr2", *SMALL, *HMR2_MODEL, "task.recipe.lr=1e-3"),
}
OWN = ("experiment=pose3d_own", *SMALL, *HMR2_MODEL, "task.recipe.lr=1e-3", "task.recipe.milestones=[]")


def train(root: Path, folder: Path, *overrides: str) -> dict[str, float]:
    return run("train", config("train", *overrides, f"data.root={root}"), folder)


def evaluate(root: Path, folder: Path, *overrides: str) -> dict[str, float]:
    return run("eval", config("eval", *overrides, f"data.root={root}"), folder)


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def sets(drawn) -> Path:
    return drawn("pose3d_multi", 20)


@pytest.fixture(scope="module")
def trained(sets, tmp_path_factory):
    """trained(network): the folder of its run."""
    folders = {}

    def of(network: str) -> Path:
        if network not in folders:
            folders[network] = tmp_path_factory.mktemp(network) / "run"
            train(sets, folders[network], *NETWORKS[network])
        return folders[network]

    return of


@pytest.mark.parametrize("network", NETWORKS)
def test_the_file_is_the_number(sets, trained, tmp_path, network):
    """What an evaluation of the checkpoint gives is what training logged, and its results say how it was measured."""
    options = (*NETWORKS[network], f"ckpt_path={trained(network)}/checkpoints/last.ckpt")
    again = evaluate(sets, tmp_path / "eval", *options)
    logged = results(trained(network))
    scores = {name.removeprefix("test/") for name in again if name.startswith("test/")}
    assert scores == {"MPJPE", "PA-MPJPE", "MPVPE", "MPJPE_17", "MPJPE_hips", "MPJPE_centred", "people"}
    for name in scores:
        assert again[f"test/{name}"] == pytest.approx(logged[f"val/{name}"], rel=1e-6), name
    assert "best_val/PA-MPJPE" not in logged  # it would be chosen on what is reported
    said = results(tmp_path / "eval")["protocol"]
    assert said["split"] == "test"
    assert said["body"] == "drawn"
    assert said["joints"] == [H36M[k] for k in EVALUATED]
    assert "J_regressor_h36m_correct" in said["regressor"]
    assert "MPJPE: Pelvis" in said["root"]
    assert said["true_bodies"] == f"female ({again['test/people']:.0f})"
    assert "gendered" in said["data"]


def test_what_an_evaluation_leaves(sets, trained, tmp_path):
    options = (*NETWORKS["crowdnet"], f"ckpt_path={trained('crowdnet')}/checkpoints/last.ckpt")
    scores = evaluate(sets, tmp_path, *options)
    joints, sequences = table(tmp_path / "per_joint.csv"), table(tmp_path / "per_sequence.csv")
    assert [row["joint"] for row in joints] == [H36M[k] for k in EVALUATED]
    people = np.array([int(row["people"]) for row in sequences])
    assert people.sum() == scores["test/people"]
    for name in ("MPJPE", "PA-MPJPE"):
        each = [float(row[name]) for row in joints]
        assert np.mean(each) == pytest.approx(scores[f"test/{name}"], rel=1e-5)
        each = [float(row[name]) for row in sequences]
        assert people @ each / people.sum() == pytest.approx(scores[f"test/{name}"], rel=1e-5)
    for name in ("best_people", "worst_people"):
        picture = cv2.imread(str(tmp_path / f"pictures/{name}.png"))
        assert picture.shape[1] > 3 * 192  # the input, what is predicted, the truth
        assert picture.std() > 10


@pytest.mark.parametrize(("network", "stop"), [("crowdnet", 3), ("hmr2", 5)])
def test_a_stopped_run_goes_on(sets, trained, tmp_path, network, stop):
    """Within an epoch, and at its end."""
    train(sets, tmp_path / "run", *NETWORKS[network], f"trainer.max_steps={stop}")
    train(sets, tmp_path / "run", *NETWORKS[network], "resume=auto")
    states = [
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for folder in (trained(network), tmp_path / "run")
    ]
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_two_processes_evaluate_as_one(sets, trained, tmp_path, network):
    options = (*NETWORKS[network], f"ckpt_path={trained(network)}/checkpoints/last.ckpt")
    options = (*options, "data.eval_batch_size=1")  # an odd number of people: one process has more
    one = evaluate(sets, tmp_path / "one", *options)
    assert one["test/people"] % 2
    command = [sys.executable, "-m", "hap.eval", *options, f"data.root={sets}", "trainer=ddp_cpu"]
    subprocess.run([*command, f"run_dir={tmp_path}/two"], check=True, cwd=tmp_path)
    two = results(tmp_path / "two")
    for name, value in one.items():
        if name.startswith("test/"):
            assert two[name] == pytest.approx(value, rel=1e-6), name
    for name in ("per_joint.csv", "per_sequence.csv"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_two_processes_train(sets, tmp_path, network):
    """Every parameter that learns has a gradient on both."""
    options = (*NETWORKS[network], "epochs=1", f"data.root={sets}", "trainer=ddp_cpu")
    command = [sys.executable, "-m", "hap.train", *options, f"run_dir={tmp_path}/two"]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert np.isfinite(results(tmp_path / "two")["train/loss"])


def test_the_official_recipe_leaves_its_adapter_as_it_was(sets, trained, tmp_path):
    options = ("experiment=pose3d_3dpw", *NETWORKS["crowdnet"][1:], "task.recipe.warmup_steps=null")
    train(sets, tmp_path, *options, "trainer.max_steps=2")
    torch.manual_seed(0)
    begun = build(config("train", *options).task, "task").state_dict()
    official, repaired = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for folder in (tmp_path, trained("crowdnet"))
    )
    name = "model.adapter.weight"
    assert torch.equal(official[name], begun[name])
    assert not torch.equal(repaired[name], begun[name])
    name = "model.position_net.weight"
    assert not torch.equal(official[name], begun[name])


def test_truth_of_neutral_bodies_is_another_number_and_says_so(sets, trained, tmp_path):
    options = (*NETWORKS["hmr2"], f"ckpt_path={trained('hmr2')}/checkpoints/last.ckpt")
    gendered = evaluate(sets, tmp_path / "gendered", *options)
    neutral = evaluate(sets, tmp_path / "neutral", *options, "data.reader.gt_body=neutral")
    assert abs(neutral["test/MPVPE"] - gendered["test/MPVPE"]) > 0.5
    said = results(tmp_path / "neutral")["protocol"]
    assert said["true_bodies"].startswith("neutral")
    assert "neutral" in said["data"]


def test_a_short_run_is_told_where_its_learning_rate_would_fall(drawn, tmp_path, caplog):
    root = drawn("bodies3d", 24)
    options = (*OWN, "epochs=21", "task.recipe.milestones=[40]", "dry_run=true")
    train(root, tmp_path / "run", *options)
    assert "at epochs [40], after the last of 21: task.recipe.milestones=[20]" in caplog.text


def test_people_of_one_s_own(drawn, tmp_path):
    """The loss falls, and the epoch of the lowest error is kept."""
    root = drawn("bodies3d", 24)
    logged = train(root, tmp_path, *OWN, "epochs=5")
    rows = table(tmp_path / "logs/version_0/metrics.csv")
    errors = [float(row["val/PA-MPJPE"]) for row in rows if row["val/PA-MPJPE"]]
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert logged["best_val/PA-MPJPE"] == pytest.approx(min(errors[-5:]), rel=1e-5)
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    best = evaluate(root, tmp_path / "best", *OWN, f"ckpt_path={tmp_path}/checkpoints/best.ckpt")
    assert best["test/PA-MPJPE"] == pytest.approx(logged["best_val/PA-MPJPE"], rel=1e-5)
    said = results(tmp_path / "best")["protocol"]
    assert said["split"] == "val"
    assert not (tmp_path / "best/per_sequence.csv").exists()
    assert "neutral" in said["true_bodies"]
    assert "male" in said["true_bodies"]


def test_an_evaluation_needs_no_training_set(sets, trained, tmp_path):
    (tmp_path / "PW3D").symlink_to(sets / "PW3D")
    options = (*NETWORKS["hmr2"], f"ckpt_path={trained('hmr2')}/checkpoints/last.ckpt")
    with pytest.raises(HapError, match=r"Human36M_subject1_data.json .*data\.reader\.sets=\[\]"):
        evaluate(tmp_path, tmp_path / "all", *options)
    alone = evaluate(tmp_path, tmp_path / "alone", *options, "data.reader.sets=[]")
    assert alone["test/MPJPE"] == pytest.approx(results(trained("hmr2"))["val/MPJPE"], rel=1e-6)


def test_a_checkpoint_knows_its_body(sets, trained, tmp_path):
    """The same arrays in a file of SMPL's are the same body; others are not."""
    write_bodies(tmp_path / "smpl")
    options = (*NETWORKS["hmr2"], f"ckpt_path={trained('hmr2')}/checkpoints/last.ckpt", "body=smpl")
    of_files = evaluate(sets, tmp_path / "files", *options, f"body.folder={tmp_path}/smpl")
    assert of_files["test/MPVPE"] == pytest.approx(results(trained("hmr2"))["val/MPVPE"], abs=1e-3)
    assert results(tmp_path / "files")["protocol"]["body"].startswith(f"{FILES[0]}, sha256 ")

    write_bodies(tmp_path / "other")
    with np.load(tmp_path / "other" / FILES[0]) as file:
        arrays = dict(file) | {"shapedirs": -file["shapedirs"]}
    np.savez(tmp_path / "other" / FILES[0], **arrays)
    message = r"last\.ckpt was trained with the body drawn, here it is basicModel_neutral"
    with pytest.raises(HapError, match=message):
        evaluate(sets, tmp_path / "eval", *options, f"body.folder={tmp_path}/other")
    with pytest.raises(HapError, match=message):
        train(sets, tmp_path / "train", *options, f"body.folder={tmp_path}/other", "epochs=3")
    weights = (*options[:-2], f"weights={trained('hmr2')}/checkpoints/last.ckpt", "body=smpl")
    train(sets, tmp_path / "new", *weights, f"body.folder={tmp_path}/other", "epochs=1")  # learns it


def test_without_files_of_a_body_it_is_said_where_they_are_to_be_had(sets, tmp_path):
    options = [option for option in NETWORKS["hmr2"] if option != "body=drawn"]
    with pytest.raises(HapError, match=r"https://smpl\.is\.tue\.mpg\.de.*body\.folder=FOLDER.*body=drawn"):
        train(sets, tmp_path / "run", *options, f"body.folder={tmp_path}/smpl")
    (tmp_path / "smpl").mkdir()
    with pytest.raises(HapError, match=r"no neutral body model in .*https://smplify\.is\.tue\.mpg\.de"):
        train(sets, tmp_path / "run", *options, f"body.folder={tmp_path}/smpl")
    with pytest.raises(HapError, match=r"synthetic=true is of drawn people: add body=drawn"):
        train(sets, tmp_path / "run", *options, "synthetic=true")


def test_a_model_of_another_network_is_told(sets, trained, tmp_path):
    with pytest.raises(HapError, match=r"is of another model:\n"):
        evaluate(
            sets,
            tmp_path,
            *NETWORKS["hmr2"],
            f"ckpt_path={trained('crowdnet')}/checkpoints/last.ckpt",
        )
