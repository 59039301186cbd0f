"""The recipes of 2D pose: rates, decay and sizes of every experiment."""

import json
from pathlib import Path

import pytest
import torch
from conftest import config

from hap.building import build
from hap.models.checkpoint import load_weights
from hap.models.pose import PoseViT
from hap.models.weight_file import WeightFile
from hap.models.weight_state import find_state
from hap.optim import parameter_groups

DATA = Path(__file__).parent / "data"
BASE = {"img_size": (256, 192), "patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}


def test_learning_rates_and_decay_of_every_parameter():
    expected = json.loads((DATA / "pose2d_base_param_groups_coco.json").read_text())
    cfg = config("train", "experiment=pose2d_coco").task.recipe
    with torch.device("meta"):
        model = PoseViT(num_joints=17, **BASE)
    groups = parameter_groups(model, cfg.weight_decay, frozenset({"pos_embed"}), cfg.layer_decay)
    found = {name: (group["lr_scale"], group["weight_decay"]) for group in groups for name in group["names"]}
    assert len(groups) == expected["num_groups"] == 28
    assert len(found) == len(expected["params"])
    content = {"state_dict": {name: torch.zeros(1) for name in expected["params"]}, "meta": {}}
    names = find_state(WeightFile("pytorch", content, {}), "auto", None, "")[0]
    for name, official in zip(names, expected["params"].values(), strict=True):
        assert found[name] == pytest.approx((official["lr_scale"], official["weight_decay"])), name
    assert cfg.lr == expected["optimizer"]["lr"]
    assert cfg.clip_norm == expected["gradient_clip_norm"]


@pytest.mark.parametrize(
    ("experiment", "optimizer", "lr", "lowest", "decay", "clip", "drop_path"),
    [
        ("pose2d_coco", "adamw", 2e-4, 1.099511628e-5, 0.1, 1.0, 0.29),
        ("pose2d_coco_384", "adamw", 2e-4, 1.099511628e-5, 0.1, 1.0, 0.29),
        ("pose2d_mpii", "adam", 1e-4, 1e-4, 0, None, 0.3),
        ("pose2d_mpii_384", "adam", 1e-4, 1e-4, 0, None, 0.3),
        ("pose2d_aic", "adam", 5e-4, 5e-4, 0, None, 0.3),
        ("pose2d_aic_384", "adam", 5e-4, 5e-4, 0, None, 0.3),
        ("pose2d_multi", "adamw", 1.1e-3, 3.679358558e-5, 0.1, 1.0, 0.3),
        ("pose2d_multi_384", "adamw", 5e-4, 1.187863201e-5, 0.1, 1.0, 0.3),
    ],
)
def test_recipes(experiment, optimizer, lr, lowest, decay, clip, drop_path):
    cfg = config("train", f"experiment={experiment}")
    recipe, batch = cfg.task.recipe, 1024 if experiment == "pose2d_multi" else 512
    assert (cfg.epochs, cfg.total_batch_size) == (210, batch)
    assert list(cfg.img_size) == ([384, 288] if experiment.endswith("384") else [256, 192])
    assert (recipe.optimizer, recipe.lr, recipe.weight_decay) == (optimizer, lr, decay)
    assert (recipe.clip_norm, cfg.task.model.drop_path) == (clip, drop_path)
    assert lr * (recipe.layer_decay or 1) ** 13 == pytest.approx(lowest)
    assert (list(recipe.milestones), recipe.warmup_steps) == ([170, 200], 500)
    codecs = [codec._target_.rsplit(".", 1)[1] for codec in cfg.task.codecs]
    expected = {"aic": ["Classic"], "multi": ["UDP", "Classic", "UDP"]}
    assert codecs == expected.get(experiment.split("_")[1], ["UDP"])


def test_the_shipped_weights_fit_the_demonstration():
    cfg = config("train", "experiment=demo_pose2d", "weights=drawn", "task.model.num_joints=17")
    task = build(cfg.task, "task")
    report = load_weights(task.model, cfg.weights)
    assert "blocks.0.attn.qkv.weight" in report.matched
    assert report.resized == ("pos_embed",)
