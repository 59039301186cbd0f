"""ReID end to end: a small set of people on disk in Market-1501's layout, trained, resumed and evaluated."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import TINY, config
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch.nn import functional as F

from hap.errors import HapError
from hap.optim import Recipe
from hap.runner import run


@pytest.fixture(scope="module")
def market(tmp_path_factory) -> Path:
    """12 people in training and 6 others in the test, 2 cameras x 6 images each, in colours of their own."""
    root = tmp_path_factory.mktemp("market")
    rng = np.random.default_rng(0)
    for person in range(1, 19):
        clothes = np.uint8(
            [[[10 * person - 10, 200, 160]], [[(70 * person) % 180, 200, 160]]]
        )  # hue, saturation
        top, bottom = cv2.cvtColor(clothes, cv2.COLOR_HSV2BGR)[:, 0].astype(float)
        for camera in (1, 2):
            for frame in range(6):
                image = rng.normal(128, 30, (64, 32, 3))
                x = rng.integers(4, 12)
                image[8:34, x : x + 16] = top * rng.uniform(0.5, 1.4)
                image[34:60, x : x + 16] = bottom * rng.uniform(0.5, 1.4)
                query = person > 12 and frame == 0
                folder = "query" if query else "bounding_box_train" if person <= 12 else "bounding_box_test"
                path = root / folder / f"{person:04d}_c{camera}s1_{frame:06d}_00.jpg"
                path.parent.mkdir(exist_ok=True)
                cv2.imwrite(str(path), image.clip(0, 255).astype(np.uint8))
    return root


def small(program: str, market: Path, *overrides: str, experiment: str = "reid_market1501") -> DictConfig:
    return config(
        program,
        f"experiment={experiment}",
        *TINY,
        f"data.root={market}",
        "data.plan.images_per_identity=4",
        "total_batch_size=24",
        "epochs=4",
        "task.model.num_classes=12",
        "task.recipe.lr=4e-3",
        "task.recipe.warmup_epochs=1",
        "task.recipe.layer_decay=0.9",
        "data.transforms.train.padding=2",
        "trainer.check_val_every_n_epoch=2",
        *overrides,
    )


@pytest.mark.parametrize("experiment", ["reid_market1501", "reid_market1501_lem"])
def test_learns_and_evaluates_again_to_the_same(market, tmp_path, experiment):
    still = small("train", market, "epochs=2", "task.recipe.lr=0", experiment=experiment)
    untrained = run("train", still, tmp_path / "untrained")
    trained = run("train", small("train", market, "epochs=12", experiment=experiment), tmp_path / "train")
    assert 1 - trained["val/mAP"] < 0.5 * (1 - untrained["val/mAP"])
    assert trained["val/num_valid"] == 12
    assert "val/loss" not in trained
    ckpt = f"ckpt_path={tmp_path}/train/checkpoints/last.ckpt"
    again = run("eval", small("eval", market, ckpt, experiment=experiment), tmp_path / "eval")
    assert again["test/mAP"] == trained["val/mAP"]
    assert again["test/mINP"] == trained["val/mINP"]


def test_validates_on_time_and_resumes_to_the_same_weights(market, tmp_path):
    def weights(name: str) -> dict[str, torch.Tensor]:
        return torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]

    whole = small("train", market, "callbacks.checkpoint.every_n_steps=5", "callbacks.checkpoint.keep=null")
    run("train", whole, tmp_path / "whole")
    with next((tmp_path / "whole").rglob("metrics.csv")).open() as file:
        assert [row["epoch"] for row in csv.DictReader(file) if row["val/mAP"]] == ["1", "3"]
    steps = sorted((tmp_path / "whole/checkpoints").glob("step-*.ckpt"))
    part = small("train", market, f"ckpt_path={steps[1]}")  # in the middle of an epoch
    run("train", part, tmp_path / "part")
    for name, value in weights("whole").items():
        assert torch.equal(value, weights("part")[name]), name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.model.num_classes=11", "set task.model.num_classes=12"),
        ("micro_batch_size=6", "6 images per device and pass split the 4 images of an identity"),
        ("micro_batch_size=4", "4 images that are compared, 4 of an identity: a triplet needs two"),
        ("total_batch_size=26", "total_batch_size=26 has to be P x 4"),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_step(market, tmp_path, override, message):
    with pytest.raises(HapError, match=message):
        run("train", small("train", market, override), tmp_path / "run")


def test_batch_norms_are_not_synchronised_on_a_cpu(market, tmp_path):
    cfg = small("train", market, "trainer=ddp_cpu", experiment="reid_market1501_lem")
    with pytest.raises(HapError, match="synchronised between GPUs only"):
        run("train", cfg, tmp_path / "run")


def test_features_are_ranked_in_fp16_whatever_the_training_precision(market):
    task = instantiate(small("train", market).task).eval()
    batch = {"image": torch.randint(0, 256, (4, 3, 64, 32), dtype=torch.uint8)}

    def error() -> float:
        return (F.normalize(task(batch).embedding) - exact).abs().max().item()

    with torch.no_grad():
        exact = F.normalize(task(batch).embedding)
        with torch.autocast("cpu", torch.bfloat16):
            assert 0 < error() < 3e-4
            task.training = True
            assert error() > 5e-4


def test_more_classes_than_people_is_allowed(market, tmp_path, caplog):
    run("train", small("train", market, "task.model.num_classes=20", "epochs=1"), tmp_path / "run")
    assert "num_classes=20, but only 12 people" in caplog.text


@pytest.mark.parametrize(
    ("epoch", "step", "msmt17", "market1501"),
    [
        (0, 0, 0, 0),
        (0, 1, 3.5164835e-06, 9.0395480e-06),
        (0, 100, 3.5164835e-04, 9.0395480e-04),
        (1, 0, 1.6e-3, 1.6e-3),
        (5, 0, 8e-3, 8e-3),
        (10, 0, 7.9454452e-3, 7.9454452e-3),
        (50, 0, 4.3303174e-3, 4.3303174e-3),
        (99, 170, 8.5809215e-07, 3.4208341e-09),
    ],
)
def test_learning_rates(epoch, step, msmt17, market1501):
    recipe = Recipe(epochs=100, warmup_epochs=5, lr=8e-3)
    for steps, expected in ((455, msmt17), (177, market1501)):
        assert 8e-3 * recipe.factor(epoch + step / steps) == pytest.approx(expected, rel=1e-6, abs=1e-15)
