"""Whole models in ONNX and torch.export: what onnxruntime says of people is what the task says."""

import copy
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import TINY, config
from safetensors import safe_open
from safetensors.torch import load_file
from test_export import moved

from hap.building import build
from hap.checkpointing import CheckpointFiles
from hap.description import describe_run
from hap.errors import HapError
from hap.exporting.check import drawn_people
from hap.exporting.run import export
from hap.tasks.base import Task

PEOPLE = {"people": [f"0{i}" for i in range(6)]}
ATTRIBUTES = {"attributes": ["hat", "bag: <b>|`red`\n", "Größe"]}
JOINTS = ["nose", "left_eye", "right_eye", "left_foot", "right_foot"]
BODY = ("body=drawn", *TINY, "img_size=[128,128]")
# experiment and overrides -> labels
TASKS = {
    "reid": (("experiment=reid_market1501", *TINY, "task.model.num_classes=6"), PEOPLE),
    "lem": (
        ("experiment=reid_market1501_lem", *TINY, "img_size=[128,64]", "task.model.num_classes=6"),
        PEOPLE,
    ),
    "text_reid": (
        (
            *("experiment=text_reid_cuhk", *TINY, "text_encoder=words", "task.model.embedding=16"),
            *("task.model.num_classes=6", "task.model.vocabulary=3"),
        ),
        {**PEOPLE, "vocabulary": ["[PAD]", "red", "coat"]},
    ),
    "attribute": (
        ("experiment=attribute_pa100k", *TINY, "task.model.num_attributes=3", "task.threshold=val"),
        ATTRIBUTES,
    ),
    "pose2d": (
        (
            "experiment=pose2d_own",
            *TINY,
            "task.model.num_joints=5",
            "task.flip_test=false",
            "task.model.head_dim=16",
        ),
        {"joints": JOINTS},
    ),
    "hmr2": (("experiment=pose3d_hmr2", *BODY, "img_size=[128,96]", "task.model.decoder_dim=32"), {}),
    "crowdnet": (
        ("experiment=pose3d_3dpw_fixed", *BODY, "model.patch_size=8", "task.model.feature_dim=32"),
        {},
    ),
    "pretrain": (("experiment=pretrain_hap", *TINY), {}),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(name): a task with weights as of a training, and its checkpoint."""
    made: dict[str, tuple[Task, Path]] = {}

    def get(name: str) -> tuple[Task, Path]:
        if name not in made:
            overrides, labels = TASKS[name]
            cfg = config("train", *overrides)
            torch.manual_seed(0)
            task: Task = build(cfg.task, "task")
            moved(task.model)
            if name == "attribute":
                task.ema.module.load_state_dict(moved(copy.deepcopy(task.model), 1).state_dict())
                task.thresholds.copy_(torch.tensor([0.25, 0.5, 0.125]))
            task.labels = labels
            weights = {"name": "x|<script>\nalert(1)</script>", "licence": "MIT", "sha256": "00"}
            task.description = describe_run(cfg, labels) | {
                "weights": weights,
                "run": "runs/a",
                "revision": "b",
            }
            content = {"pytorch-lightning_version": "2", "global_step": 7, "state_dict": task.state_dict()}
            task.on_save_checkpoint(content)
            path = tmp_path_factory.mktemp(name) / "step-000000007.ckpt"
            CheckpointFiles().save_checkpoint(content, path)
            made[name] = task.eval(), path
        return made[name]

    return get


def people(size: tuple[int, int], number: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.stack(drawn_people(size, number))).movedim(3, 1).contiguous()


def exported(path: Path, out: Path, *overrides: str) -> dict[str, float]:
    return export(config("export", f"ckpt_path='{path}'", f"out='{out}'", *overrides))


def run(folder: Path, **inputs: torch.Tensor) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Outputs and metadata."""
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert all(isinstance(given.shape[0], str) for given in session.get_inputs())
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, {name: value.numpy() for name, value in inputs.items()})
    return dict(zip(names, values, strict=True)), session.get_modelmeta().custom_metadata_map


@torch.no_grad()
def said(task: Task, image: torch.Tensor, **more: torch.Tensor):
    return task({"image": image, **more})


def test_embedding_of_people(trained, tmp_path):
    task, path = trained("reid")
    exported(path, tmp_path / "out", "format=onnx")
    image = people((64, 32))
    found, about = run(tmp_path / "out", image=image)
    wanted = task.predictions(said(task, image), {})["feature"].numpy()
    np.testing.assert_allclose(np.linalg.norm(wanted, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found["embedding"], wanted, atol=1e-5)
    assert "people" not in about  # whom it was trained on
    assert (about["experiment"], about["licence"]) == ("reid_market1501", "MIT")
    card = (tmp_path / "out/README.md").read_text()
    assert "<script>" not in card.replace("\\<script\\>", "")
    assert "x\\|\\<script\\>\\\\nalert(1)\\</script\\>" in card


def test_images_for_sentences(trained, tmp_path):
    task, path = trained("text_reid")
    exported(path, tmp_path / "out", "format=onnx")
    image = people((64, 32))
    found, about = run(tmp_path / "out", image=image)
    wanted = task.predictions(said(task, image), {})["feature"].numpy()
    np.testing.assert_allclose(found["embedding"], wanted, atol=1e-5)
    assert "vocabulary" not in about
    exported(path, tmp_path / "encoder", "format=safetensors")
    card = (tmp_path / "encoder/README.md").read_text()
    assert "| final norm | that of the weights which training began with" in card
    names = load_file(tmp_path / "encoder/model.safetensors")
    assert {name.split(".")[0] for name in names} == {
        "cls_token",
        "pos_embed",
        "patch_embed",
        "blocks",
        "norm",
    }


@pytest.mark.slow
def test_embedding_with_a_local_branch_at_another_size(trained, tmp_path):
    task, path = trained("lem")
    exported(path, tmp_path / "out", "format=onnx")
    image = people((128, 64))
    found, _ = run(tmp_path / "out", image=image)
    assert found["embedding"].shape == (3, 96)
    np.testing.assert_allclose(
        found["embedding"], task.predictions(said(task, image), {})["feature"], atol=1e-5
    )
    exported(path, tmp_path / "large", "format=onnx", "size=192x96")
    assert run(tmp_path / "large", image=people((192, 96)))[0]["embedding"].shape == (3, 96)


def test_attributes_of_the_average_with_their_names(trained, tmp_path):
    task, path = trained("attribute")
    exported(path, tmp_path / "out", "format=onnx")
    image = people((64, 32))
    found, about = run(tmp_path / "out", image=image)
    wanted = said(task, image).sigmoid().numpy()
    raw = task.model(task.normalize(image)).sigmoid().detach().numpy()
    assert np.abs(wanted - raw).max() > 1e-3
    np.testing.assert_allclose(found["probability"], wanted, atol=1e-5)
    assert json.loads(about["attributes"]) == ATTRIBUTES["attributes"]
    assert json.loads(about["thresholds"]) == [0.25, 0.5, 0.125]
    assert about["average of the weights"] == "yes"


def test_encoder_of_attributes_in_timm(trained, tmp_path):
    """Its feature is the mean of the patches behind the norm, and the average of the weights is what is taken."""
    import timm

    task, path = trained("attribute")
    exported(path, tmp_path / "out", "format=timm")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(model)
    assert (data["input_size"], data["interpolation"]) == ((3, 64, 32), "bilinear")
    image = task.normalize(people((64, 32)))
    with torch.no_grad():
        wanted = task.ema.module.forward_features(image)[:, 1:].mean(1)
        torch.testing.assert_close(model(image), wanted, atol=1e-5, rtol=0)
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        assert not any(name.startswith("head") for name in file.keys())  # noqa: SIM118


def test_heat_maps(trained, tmp_path):
    task, path = trained("pose2d")
    size = task.model.patch_embed.img_size
    exported(path, tmp_path / "out", "format=onnx")
    image = people(size)
    found, about = run(tmp_path / "out", image=image)
    assert found["heatmaps"].shape == (3, 5, size[0] // 4, size[1] // 4)
    np.testing.assert_allclose(found["heatmaps"], said(task, image), atol=1e-5)
    assert json.loads(about["joints"]) == JOINTS
    with pytest.raises(HapError, match="begins outside the image and has no class token"):
        exported(path, tmp_path / "timm", "format=timm")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hmr2", "crowdnet"])
def test_bodies(trained, tmp_path, name):
    task, path = trained(name)
    for kind in ("onnx", "torch_export"):
        exported(path, tmp_path / kind, f"format={kind}")
    image = people((128, 128))
    joints, mask = torch.rand(3, 30, 2) * 64, (torch.rand(3, 30) > 0.3).float()
    inputs = {"joints": joints, "mask": mask} if name == "crowdnet" else {}
    found, _ = run(tmp_path / "onnx", image=image, **inputs)
    wanted = said(task, image, input_joints=joints, input_mask=mask)
    for what in ("rotations", "betas", "translation"):
        np.testing.assert_allclose(found[what], getattr(wanted, what), atol=1e-4)
    with pytest.raises(HapError, match="leave size= out"):
        exported(path, tmp_path / "size", "format=onnx", "size=256x256")
    with pytest.raises(HapError, match="need more than 11 bits"):
        exported(path, tmp_path / "half", "format=onnx", "half=true")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["onnx", "torch_export"]


def test_half_precision_is_run(trained, tmp_path):
    task, path = trained("reid")
    differences = exported(path, tmp_path / "out", "format=onnx", "half=true")
    assert 0 < max(differences.values()) < 0.01
    image = people((64, 32))
    found, _ = run(tmp_path / "out", image=image)
    assert found["embedding"].dtype == np.float32
    wanted = task.predictions(said(task, image), {})["feature"].numpy()
    assert (found["embedding"] * wanted).sum(1).min() > 0.9999
    assert "16 bits; the last layers float32" in (tmp_path / "out/README.md").read_text()


def test_an_encoder_of_a_task(trained, tmp_path):
    _, path = trained("reid")
    exported(path, tmp_path / "out", "format=torch_export", "encoder=true", "size=96x32")
    program = torch.export.load(tmp_path / "out/model.pt2").module()
    assert program(people((96, 32), 7))["tokens"].shape == (7, 1 + 12, 32)


def test_a_checkpoint_that_is_damaged_or_says_nothing(trained, tmp_path):
    _, path = trained("pretrain")
    (tmp_path / "cut.ckpt").write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(HapError, match="damaged"):
        exported(tmp_path / "cut.ckpt", tmp_path / "out", "format=timm")
    content = torch.load(path, weights_only=True)
    del content["hap"]
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(HapError, match="does not say what it is"):
        exported(tmp_path / "old.ckpt", tmp_path / "out", "format=timm")
    content = torch.load(path, weights_only=True)
    content["hap"]["config"]["task"]["model"]["_target_"] = "os.system"
    torch.save(content, tmp_path / "hostile.ckpt")
    with pytest.raises(HapError, match=r"'os\.system' is not allowed"):
        exported(tmp_path / "hostile.ckpt", tmp_path / "out", "format=timm")
    assert not (tmp_path / "out").exists()
