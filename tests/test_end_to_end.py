"""Programs as a user runs them, on drawn people in the official layouts."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import TINY_PRETRAIN, config

from hap import create_encoder
from hap.errors import HapError
from hap.runner import run

SAMPLES = os.environ.get("HAP_SAMPLES")


@pytest.fixture(scope="module")
def trained(luperson, tmp_path_factory) -> Path:
    """The folder of a short run with all loggers and pictures."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    results = run("train", config("train", *options(luperson), "epochs=8", "logger=all"), folder)
    assert results["steps"] == 8 * 11
    return folder


def options(root: Path) -> list[str]:
    return ["experiment=pretrain_hap", *TINY_PRETRAIN, f"data.root={root}", "task.recipe.base_lr=0.03"]


def test_run_folder_holds_the_record(trained):
    results = json.loads((trained / "results.json").read_text())
    assert {"train/loss", "val/loss", "val/reconstruction", "val/alignment", "perf/images_per_s"} <= set(
        results
    )
    assert "resolved" not in (trained / "config.yaml").read_text()
    assert "total_batch_size: 8" in (trained / "config.yaml").read_text()
    environment = json.loads((trained / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert (trained / "logs/version_0/metrics.csv").is_file()
    assert list((trained / "tensorboard").rglob("events.*"))
    assert list((trained / "wandb").glob("offline-run-*"))
    assert (trained / "checkpoints/last.ckpt").is_file()


def test_loss_falls_and_pictures_get_better(trained):
    with (trained / "logs/version_0/metrics.csv").open() as file:
        losses = [
            float(row["val/reconstruction"]) for row in csv.DictReader(file) if row["val/reconstruction"]
        ]
    assert losses[-1] < 0.95 * losses[0]
    pictures = sorted((trained / "pictures").glob("masks_and_reconstructions_*.png"))
    assert len(pictures) == 9  # before training, and after each epoch
    first, last = (cv2.imread(str(p)).astype(float) for p in (pictures[0], pictures[-1]))
    assert first.shape == last.shape
    # Row 0 is the original, row 2 the first reconstruction, four times as large.
    top, height = 4, 256
    original, row = slice(top, top + height), slice(top + 2 * (height + 4), top + 2 * (height + 4) + height)

    def error(picture: np.ndarray) -> float:
        return np.abs(picture[row] - picture[original]).mean()

    assert error(last) < error(first)


def test_evaluation_agrees_with_the_last_validation(trained, luperson, tmp_path, caplog):
    results = json.loads((trained / "results.json").read_text())
    checkpoint = trained / "checkpoints/last.ckpt"
    with caplog.at_level("INFO"):
        cfg = config("eval", *options(luperson), f"ckpt_path={checkpoint}")
        evaluated = run("eval", cfg, tmp_path / "eval")
    for part in ("loss", "reconstruction", "alignment"):
        assert evaluated[f"test/{part}"] == pytest.approx(results[f"val/{part}"], rel=1e-5)
        assert f"test/{part}  {evaluated[f'test/{part}']:.4g}" in caplog.text


@pytest.mark.slow
def test_two_processes_give_what_one_does(trained, luperson, tmp_path):
    """Losses of 5 held-out images, whose negatives lie on both ranks; features of 7 images, gathered by the first."""
    rng, images = np.random.default_rng(0), tmp_path / "images"
    images.mkdir()
    for number in range(7):
        cv2.imwrite(str(images / f"{number}.png"), rng.integers(0, 256, (64, 32, 3), np.uint8))
    checkpoint = f"ckpt_path={trained}/checkpoints/last.ckpt"
    run("predict", config("predict", *options(luperson), checkpoint, f"input={images}"), tmp_path / "one")
    for program, *what in (("eval",), ("predict", f"input={images}")):
        command = [sys.executable, "-m", f"hap.{program}", *options(luperson), checkpoint, *what]
        subprocess.run([*command, "trainer=ddp_cpu", f"run_dir={tmp_path}/{program}"], check=True)
    one, two = (json.loads((f / "results.json").read_text()) for f in (trained, tmp_path / "eval"))
    for part in ("loss", "reconstruction", "alignment"):
        assert two[f"test/{part}"] == pytest.approx(one[f"val/{part}"], rel=1e-5)
    with np.load(tmp_path / "one/predictions.npz") as a, np.load(tmp_path / "predict/predictions.npz") as b:
        assert a["names"].tolist() == b["names"].tolist()
        np.testing.assert_allclose(a["feature"], b["feature"], atol=1e-5)


def test_predict_writes_features_of_any_images(trained, luperson, tmp_path):
    checkpoint = trained / "checkpoints/last.ckpt"
    folder = tmp_path / "predict"
    run(
        "predict",
        config("predict", *options(luperson), f"ckpt_path={checkpoint}", f"input={luperson}"),
        folder,
    )
    with np.load(folder / "predictions.npz") as file:
        assert file["names"].shape == (100,)
        assert list(file["names"]) == sorted(file["names"])
        features = file["feature"]
    assert features.shape == (100, 32)
    assert np.isfinite(features).all()
    assert features.std(0).min() > 0


def test_public_encoder_gives_the_features_of_the_module(trained):
    from hap.building import build

    state = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    task = build(config("train", "experiment=pretrain_hap", *TINY_PRETRAIN).task, "task").eval()
    task.load_state_dict(state)
    from hap.models.checkpoint import load_weights
    from hap.models.vit import ViT

    encoder = ViT((64, 32), 16, 32, 2, 4).eval()
    load_weights(encoder, trained / "checkpoints/last.ckpt")
    images = torch.rand(2, 3, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), task.model.features(images), rtol=1e-5, atol=1e-5)
    with pytest.raises(HapError, match="vit_base"):
        create_encoder("vit_bas")


def test_weights_initialise_and_are_reported(trained, luperson, tmp_path, caplog):
    checkpoint = trained / "checkpoints/last.ckpt"
    with caplog.at_level("INFO"):
        run(
            "train",
            config("train", *options(luperson), "epochs=1", f"weights={checkpoint}"),
            tmp_path / "run",
        )
    assert "matched" in caplog.text


@pytest.mark.parametrize(
    ("program", "extra", "message"),
    [
        ("eval", [], "ckpt_path="),
        ("predict", ["ckpt_path={last}"], "predict needs input=FOLDER"),
        ("predict", ["ckpt_path={last}", "input=nowhere"], "input: not found: nowhere"),
        ("train", ["weights=nothing.pth"], "nothing.pth"),
        ("train", ["total_batch_size=9", "micro_batch_size=2"], "not a multiple"),
        ("train", ["total_batch_size=512"], "fewer than total_batch_size=512"),
        ("train", ["img_size=[60,32]"], "not a multiple of patch size"),
        ("train", ["masking.ratio=1.0"], "mask_ratio 1.0"),
        ("train", ["resume=always"], "resume=auto"),
        ("train", ["trainer.precision=int8"], "precision"),
    ],
)
def test_bad_input_is_one_message(trained, luperson, tmp_path, program, extra, message):
    last = trained / "checkpoints/last.ckpt"
    overrides = [*options(luperson), *(e.format(last=last) for e in extra)]
    with pytest.raises(HapError, match=message):
        run(program, config(program, *overrides), tmp_path / "run")
    assert not (tmp_path / "run/config.yaml").exists()  # the folder is still free


def test_non_finite_loss_stops_with_the_names(luperson, tmp_path):
    overrides = [*options(luperson), "task.recipe.base_lr=1e12", "task.recipe.warmup_epochs=0", "epochs=4"]
    with pytest.raises(HapError, match=r"not finite (at|after) step"):
        run("train", config("train", *overrides), tmp_path / "run")


def test_dry_run_says_the_cost_and_trains_nothing(luperson, tmp_path, caplog):
    with caplog.at_level("INFO"):
        run("train", config("train", *options(luperson), "dry_run=true"), tmp_path / "run")
    assert "GFLOP per image" in caplog.text
    assert not (tmp_path / "run/checkpoints").exists()


def test_profile_tells_where_the_time_goes(luperson, tmp_path):
    cfg = config("train", *options(luperson), "debug=profile", f"run_dir={tmp_path}/run")
    run("train", cfg, tmp_path / "run")
    assert "run_training_batch" in (tmp_path / "run/fit-profile.txt").read_text()


@pytest.mark.skipif(not SAMPLES, reason="HAP_SAMPLES names no folder of real photographs")
def test_real_photographs_through_the_converter(tmp_path):
    script = Path(__file__).parents[1] / "scripts/coco_to_luperson.py"
    coco = Path(SAMPLES or "") / "coco"
    command = [sys.executable, script, "--images", coco / "val2017", "--out", tmp_path / "people"]
    command += ["--annotations", coco / "annotations/person_keypoints_val2017.json"]
    subprocess.run(command, check=True)
    overrides = [*options(tmp_path / "people"), "total_batch_size=4", "epochs=2", "data.reader.num_val=2"]
    results = run("train", config("train", *overrides), tmp_path / "run")
    assert np.isfinite(results["train/loss"])
    assert list((tmp_path / "run/pictures").glob("*.png"))
