"""Weights of encoders and of pose models, as they are released, in the pose networks."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hap.errors import HapError
from hap.models.checkpoint import load_weights
from hap.models.pose import PoseViT
from hap.models.vit import ViT

DATA = Path(__file__).parent / "data"
SIZES = {"patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 4}
TINY = {"img_size": (256, 192), "head_dim": 4, **SIZES}


def source(prefix: str = "source/") -> dict[str, torch.Tensor]:
    with np.load(DATA / "pose2d_load_tiny.npz") as file:
        return {k.removeprefix(prefix): torch.from_numpy(file[k]) for k in file.files if k.startswith(prefix)}


@pytest.mark.parametrize(("kind", "sources"), [("plain", 1), ("multi", 3)])
def test_pre_training_begins_a_pose_model_as_officially(tmp_path, kind, sources):
    file = tmp_path / "hap.pth"
    torch.save({"model": source(), "arch": "x"}, file)
    model = PoseViT(num_joints=17, num_sources=sources, **TINY)
    report = load_weights(model, file)
    state = model.state_dict()
    for name, value in source(f"{kind}/").items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-6)
    assert {name.split(".")[0] for name in report.missing} == {"last_norm", "heads"}
    assert any("final norm is not taken" in note for note in report.notes)


def test_the_final_norm_can_be_taken(tmp_path):
    torch.save({"model": source(), "arch": "x"}, tmp_path / "hap.pth")
    model = PoseViT(num_joints=17, load_final_norm=True, **TINY)
    load_weights(model, tmp_path / "hap.pth")
    torch.testing.assert_close(model.last_norm.weight, source()["norm.weight"])


def test_a_square_grid_of_another_encoder(tmp_path):
    encoder = ViT(img_size=(224, 224), **SIZES)
    torch.save({"model": encoder.state_dict()}, tmp_path / "mae.pth")
    report = load_weights(PoseViT(num_joints=5, **TINY), tmp_path / "mae.pth")
    assert report.resized == ("pos_embed",)


def test_our_own_pre_training_begins_a_pose_model(tmp_path):
    """Its positions are those of 16 x 8 patches, as the checkpoint says; tokens and decoder stay behind."""
    encoder = source()
    state = {f"model.{name}": value for name, value in encoder.items()}
    content = {"pytorch-lightning_version": "2", "state_dict": state, "grid": "16x8"}
    torch.save(content, tmp_path / "last.ckpt")
    model = PoseViT(num_joints=17, **TINY)
    report = load_weights(model, tmp_path / "last.ckpt")
    assert report.resized == ("pos_embed",)
    for name, value in source("plain/").items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=1e-6)


def test_an_encoder_of_another_kind_is_refused(tmp_path):
    deeper = ViT(img_size=(256, 128), **SIZES | {"depth": 3})
    torch.save({"model": deeper.state_dict(), "arch": "x"}, tmp_path / "deep.pth")
    with pytest.raises(HapError, match="it has 3 blocks, the model 2"):
        load_weights(PoseViT(num_joints=5, **TINY), tmp_path / "deep.pth")


def released(model: PoseViT, path: Path, prefix: str = "", extra: dict | None = None) -> Path:
    """As ViTPose and the official code save a model."""
    state = {}
    for name, value in model.state_dict().items():
        _, number, rest = name.split(".", 2) if name.startswith("heads.") else (None, None, None)
        if number is None:
            state[f"{prefix}backbone.{name}"] = value
        elif number == "0":
            state[f"{prefix}keypoint_head.{rest}"] = value
        else:
            state[f"{prefix}associate_keypoint_heads.{int(number) - 1}.{rest}"] = value
    torch.save({"meta": {"epoch": 210}, "state_dict": state | (extra or {}), "optimizer": {}}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("sources", [1, 3])
def test_released_pose_models(tmp_path, sources, prefix):
    given = PoseViT(num_joints=17, num_sources=sources, **TINY)
    model = PoseViT(num_joints=17, num_sources=sources, **TINY)
    report = load_weights(model, released(given, tmp_path / "pose.pth", prefix))
    torch.testing.assert_close(model.state_dict(), given.state_dict())
    assert not report.missing
    assert not report.unexpected
    assert "source vitpose" in report.origin


def test_left_over_experts_of_a_split_file(tmp_path):
    """The official splitter leaves six parameters a block, and COCO's file the heads of the others."""
    given = PoseViT(num_joints=17, **TINY)
    extra = {
        f"backbone.blocks.{i}.mlp.experts.{e}.{part}": torch.zeros(4, *shape)
        for i in range(2)
        for e in range(3)
        for part, shape in (("weight", (64,)), ("bias", ()))
    }
    extra |= {"associate_keypoint_heads.0.final_layer.bias": torch.zeros(17)}
    model = PoseViT(num_joints=17, **TINY)
    report = load_weights(model, released(given, tmp_path / "coco.pth", extra=extra))
    torch.testing.assert_close(model.state_dict(), given.state_dict())
    assert any("12 parameters of experts" in note for note in report.notes)


def test_a_head_of_other_joints_is_refused(tmp_path):
    file = released(PoseViT(num_joints=17, **TINY), tmp_path / "coco.pth")
    model = PoseViT(num_joints=16, **TINY)
    with pytest.raises(HapError, match=r"puts out 17 joints, the model 16: weights_partial=true"):
        load_weights(model, file)
    report = load_weights(model, file, partial=True)
    assert report.missing == ("heads.0.final_layer.weight", "heads.0.final_layer.bias")


def test_a_model_for_several_sets_is_split_first(tmp_path):
    file = released(PoseViT(num_joints=17, num_sources=3, **TINY), tmp_path / "multi.pth")
    with pytest.raises(HapError, match=r"split it first"):
        load_weights(PoseViT(num_joints=17, **TINY), file)


def test_a_pose_model_begins_one_for_several_sets(tmp_path):
    given = PoseViT(num_joints=17, **TINY)
    model = PoseViT(num_joints=17, num_sources=3, **TINY)
    load_weights(model, released(given, tmp_path / "coco.pth"))
    rows = given.blocks[0].mlp.fc2.weight
    torch.testing.assert_close(model.blocks[0].mlp.fc2.weight, rows[:12])
    for expert in model.blocks[0].mlp.experts:
        torch.testing.assert_close(expert.weight, rows[12:])
