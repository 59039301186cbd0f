"""A model for three data sets and the three checkpoints that scripts/split_pose2d.py makes of it."""

import runpy
from pathlib import Path

import pytest
import torch
from conftest import TINY, config
from test_pose_weights import released

import hap
from hap.building import build
from hap.checkpointing import read_checkpoint
from hap.description import add_experiment, describe_run, read_description
from hap.errors import HapError
from hap.models.checkpoint import load_weights
from hap.models.pose import PoseViT
from hap.pose.codecs import UDP, Classic
from hap.pose.skeletons import AIC, COCO, MPII
from hap.runner import run

split = runpy.run_path(str(Path(__file__).parents[1] / "scripts/split_pose2d.py"))["split"]
SIZES = ("img_size=[64,48]", "model.embed_dim=32", "model.depth=2", "model.num_heads=4")
SMALL = (*SIZES, "task.model.head_dim=8")
MULTI = ("experiment=pose2d_multi", *SMALL)
EXPECTED = {"coco": (COCO, UDP), "aic": (AIC, Classic), "mpii": (MPII, UDP)}


@pytest.fixture
def model() -> PoseViT:
    """With experts, heads and batch norms that differ."""
    torch.manual_seed(0)
    model = build(config("train", *MULTI).task.model, "task.model")
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(value + 0.1 * torch.rand_like(value))
    return model.eval()


def trained(model: PoseViT, path: Path, *overrides: str) -> Path:
    """As a run leaves it."""
    content = {
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
        "hap": describe_run(config("train", *MULTI, *overrides), COCO.labels()),
        "pytorch-lightning_version": "2",
    }
    torch.save(content, path)
    return path


def check(model: PoseViT, files: list[Path]) -> None:
    """Each file is enough, loads strictly, and computes what the whole does with that expert."""
    assert [file.name for file in files] == ["coco.ckpt", "aic.ckpt", "mpii.ckpt"]
    images = torch.randn(2, 3, 64, 48)
    for source, (file, (skeleton, codec)) in enumerate(zip(files, EXPECTED.values(), strict=True)):
        task = hap.load(file).task
        assert task.skeleton == skeleton
        assert [type(own) for own in task.codecs] == [codec]
        assert task.codecs[0].heatmap_size == (16, 12)
        assert task.model.num_sources == 1
        with torch.no_grad():
            (found,), (expected,) = task.model(images, 0), model(images, source)
        torch.testing.assert_close(found, expected[:, : len(skeleton.joints)], rtol=0, atol=1e-6)


def test_a_run_is_split_into_files_that_need_nothing_else(model, tmp_path):
    changed = (
        "total_batch_size=96",
        "task.flip_test=false",
        "data.root=/data",
        "data.reader.folders={mpii: M}",
    )
    path = trained(model, tmp_path / "last.ckpt", *changed)
    files = split(path, tmp_path / "parts")
    check(model, files)
    for file, folder in zip(files, ("coco", "aic", "M"), strict=True):
        described = read_description(file)["config"]
        assert described["name"] == f"pose2d_{file.stem}"
        assert described["data"]["reader"]["_target_"].endswith(f".read_{file.stem}")
        assert described["data"]["root"] == f"/data/{folder}"
        assert described["total_batch_size"] == 96
        assert described["task"]["flip_test"] is False
    with pytest.raises(HapError, match=r"coco\.ckpt.* there already; --out FOLDER"):
        split(path, tmp_path / "parts")


def test_parts_of_a_run_are_evaluated_each_on_its_set(drawn, tmp_path):
    """That of COCO gives what the training logged."""
    root = drawn("pose_multi", 12)
    few = ("task.model.head_dim=8", "epochs=1", "total_batch_size=8", "trainer.check_val_every_n_epoch=1")
    cfg = config("train", "experiment=pose2d_multi", *TINY[1:], "img_size=[64,48]", *few, f"data.root={root}")
    logged = run("train", cfg, tmp_path / "run")
    for file in split(tmp_path / "run/checkpoints/last.ckpt", tmp_path / "parts"):
        composed = config("eval", *add_experiment([f"ckpt_path={file}", "trainer=cpu", "data.num_workers=0"]))
        scores = run("eval", composed, tmp_path / file.stem)
        if file.stem == "coco":
            same = {
                name: logged[name.replace("test/", "val/")] for name in scores if name.startswith("test/")
            }
            assert {n: scores[n] for n in same} == pytest.approx(same, abs=1e-6, nan_ok=True)
            assert "test/PCK_box@0.2" in same
        else:
            assert {"aic": "test/AIC_score", "mpii": "test/PCKh"}[file.stem] in scores


def test_the_experiment_of_the_set_beside_a_part_agrees(model, tmp_path):
    path = split(trained(model, tmp_path / "last.ckpt"), tmp_path)[1]
    assert hap.load(path, "experiment=pose2d_aic", *SMALL).names["joints"] == tuple(AIC.joints)
    with pytest.raises(HapError, match=r"task\.model\.num_joints: 16 here, 14 in the checkpoint"):
        hap.load(path, "experiment=pose2d_mpii", *SMALL)


def test_a_part_begins_another_training(model, tmp_path):
    path = split(trained(model, tmp_path / "last.ckpt"), tmp_path)[2]
    plain = build(config("train", "experiment=pose2d_mpii", *SMALL).task.model, "task.model")
    report = load_weights(plain, path)
    assert (report.missing, report.unexpected, report.resized) == ((), (), ())
    assert "source lightning" in report.origin
    assert "loops" not in read_checkpoint(path)  # a run cannot go on from it, which is said


def test_a_released_file_is_split(model, tmp_path):
    path = released(model, tmp_path / "released.pth", "module.")
    with pytest.raises(HapError, match=r"released file: experiment=pose2d_multi or pose2d_multi_384"):
        split(path, tmp_path / "parts")
    files = split(path, tmp_path / "parts", MULTI)
    check(model, files)
    assert read_description(files[1])["config"]["data"]["root"] == "${oc.env:HAP_DATA,data}/aic"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("experiment=pose2d_coco", *SMALL), r"is of pose2d_coco, which is no model for COCO, AIC and MPII"),
        (
            (*MULTI, "img_size=[128,96]"),
            r"12 patches.*\n.*images of 128 x 96: experiment=pose2d_multi_384 or",
        ),
        ((*MULTI, "img_size=[128,96]", "weights_grid=4x3"), "of another size than 128 x 96: add img_size="),
        ((*MULTI, "model.depth=3"), r"it has 2 blocks, the model 3"),
    ],
)
def test_what_does_not_fit_is_refused(model, tmp_path, overrides, message):
    path = released(model, tmp_path / "released.pth")
    with pytest.raises(HapError, match=message):
        split(path, tmp_path / "parts", overrides)
    assert not (tmp_path / "parts").exists()


def test_a_plain_model_has_no_parts(tmp_path):
    plain = build(config("train", "experiment=pose2d_coco", *SMALL).task.model, "task.model")
    path = released(plain, tmp_path / "coco.pth")
    with pytest.raises(HapError, match=r"lacks \d+ parameters of a model for 3 data sets: heads\.1\."):
        split(path, tmp_path / "parts", MULTI)
    with pytest.raises(HapError, match="file not found"):
        split(tmp_path / "none.ckpt", tmp_path)
