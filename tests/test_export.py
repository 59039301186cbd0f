"""Encoders for other programs: every format is opened without hap, from another folder, on an image of our own."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_PRETRAIN, as_another_user, config
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import hap.exporting.check
import hap.exporting.formats
from hap.checkpointing import read_checkpoint
from hap.data.transforms import PIXEL_MEAN, PIXEL_STD, ReidEval
from hap.errors import HapError
from hap.exporting.check import drawn_people
from hap.exporting.run import export
from hap.models.checkpoint import load_weights
from hap.models.vit import ViT, create_encoder
from hap.runner import run

LICENCE = "CC BY-NC 4.0 (no commercial use)"
ALONE = "import sys; sys.modules['hap'] = None\n"


def exported(out: Path, *overrides: str) -> dict[str, float]:
    return export(config("export", *overrides, f"out={out}"))


def moved(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """With weights of which every one matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value += 0.02 * torch.randn(value.shape, generator=generator)
    return model.eval()


def program(code: str, cwd: Path, **files: Path) -> None:
    """Run Python without hap, in a folder that is not the export's."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    arguments = [f"{name}={path}" for name, path in files.items()]
    code = ALONE + "given = dict(a.split('=', 1) for a in sys.argv[1:])\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A ViT-Ti for 256x128 with a licence."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    model = moved(create_encoder("vit_tiny"))
    save_file(dict(model.state_dict()), path, {"grid": "16x8", "licence": LICENCE})
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "own image #1.png"
    Image.fromarray(drawn_people((301, 140), 1)[0]).save(path)
    return path


def features(name: str, weights: Path | str, size: tuple[int, int], picture: Path) -> np.ndarray:
    """All tokens of the picture by hap."""
    model = create_encoder(name, size, weights).eval()
    image = ReidEval(size)(np.asarray(Image.open(picture)), {}, np.random.default_rng())["image"]
    with torch.no_grad():
        x = (image[None] - torch.tensor(PIXEL_MEAN).view(3, 1, 1)) / torch.tensor(PIXEL_STD).view(3, 1, 1)
        return model.features(x).numpy()


@pytest.fixture(scope="module")
def folders(file, picture, tmp_path_factory) -> dict[str, Path]:
    """Weights in every format that holds no more; beside them the tokens that they are to give."""
    base = tmp_path_factory.mktemp("exports")
    found = {}
    for kind, size in {"timm": (384, 128), "safetensors": (256, 192), "hap": (256, 128)}.items():
        found[kind] = base / f"{kind} model"
        given = "{}x{}".format(*size)
        exported(found[kind], f"weights={file}", "model=vit_tiny", f"format={kind}", f"size={given}")
        np.save(found[kind] / "tokens.npy", features("vit_tiny", file, size, picture))
    return found


GRAPH = ("weights=drawn", "model=vit_micro", "size=128x64")


@pytest.fixture(scope="module")
def onnx(picture, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """What the program leaves, and says."""
    folder = tmp_path_factory.mktemp("program")
    command = [sys.executable, "-m", "hap.export", "format=onnx", *GRAPH, "out=my model"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if not done.returncode:
        np.save(folder / "my model/tokens.npy", features("vit_micro", "drawn", (128, 64), picture))
    return folder / "my model", done


TORCH = """
import numpy as np, timm, torch
from PIL import Image
image = Image.open(given['picture']).convert('RGB')

def check(model, folder, x):
    with torch.no_grad():
        tokens = model.forward_features(x)
        feature = model(x)
    wanted = torch.from_numpy(np.load(folder + '/tokens.npy'))
    assert (tokens - wanted).abs().max() < 1e-4, (tokens - wanted).abs().max()
    assert (feature - wanted[:, 0]).abs().max() < 1e-4

model = timm.create_model('local-dir:' + given['timm'], pretrained=True).eval()
data = timm.data.resolve_model_data_config(model)
assert data['input_size'] == (3, 384, 128) and data['crop_pct'] == 1.0 and data['interpolation'] == 'bicubic'
assert tuple(data['mean']) == (0.485, 0.456, 0.406) and tuple(data['std']) == (0.229, 0.224, 0.225)
transform = timm.data.create_transform(**data)
check(model, given['timm'], transform(image)[None])

def strict(path, size):
    return timm.create_model('vit_tiny_patch16_224', img_size=size, num_classes=0, checkpoint_path=path).eval()

check(strict(given['timm'] + '/model.safetensors', (384, 128)), given['timm'], transform(image)[None])
x = timm.data.create_transform((3, 256, 192), mean=data['mean'], std=data['std'], crop_pct=1.0, crop_mode='squash',
                               interpolation='bicubic')(image)[None]
check(strict(given['safetensors'] + '/model.safetensors', (256, 192)), given['safetensors'], x)

program = torch.export.load(given['graph'] + '/model.pt2').module()
pixels = torch.from_numpy(np.asarray(image.resize((64, 128), Image.Resampling.BICUBIC)).copy()).permute(2, 0, 1)
wanted = torch.from_numpy(np.load(given['graph'] + '/tokens.npy'))
for n in (1, 2, 7):
    tokens = program(pixels.expand(n, -1, -1, -1).contiguous())['tokens']
    assert len(tokens) == n and (tokens - wanted).abs().max() < 1e-4

# As the official fine-tuning code reads its file: names cut, positions of 16 x 8, not strict.
content = torch.load(given['hap'] + '/hap.pth', weights_only=True)
assert content['arch'] == 'pose_mae_vit_tiny_patch16'
state = {k[4:] if k.startswith('mae') else k: v for k, v in content['model'].items()}
model = timm.create_model('vit_tiny_patch16_224', img_size=(384, 128), num_classes=0).eval()
patches = state['pos_embed'][:, 1:].reshape(1, 16, 8, -1).permute(0, 3, 1, 2)
patches = torch.nn.functional.interpolate(patches, size=(24, 8), mode='bicubic', align_corners=False)
state['pos_embed'] = torch.cat([state['pos_embed'][:, :1], patches.flatten(2).transpose(1, 2)], 1)
left = model.load_state_dict(state, strict=False)
assert not left.missing_keys and not left.unexpected_keys
check(model, given['timm'], transform(image)[None])
"""

RUNTIME = """
for name in ('torch', 'timm', 'onnx', 'onnxscript'):
    sys.modules[name] = None
import json
import numpy as np, onnxruntime
from PIL import Image
image = Image.open(given['picture']).convert('RGB').resize((64, 128), Image.Resampling.BICUBIC)
session = onnxruntime.InferenceSession(given['onnx'] + '/model.onnx')
(image_input,) = session.get_inputs()
assert image_input.name == 'image' and image_input.type == 'tensor(uint8)'
assert isinstance(image_input.shape[0], str) and image_input.shape[1:] == [3, 128, 64]
pixels = np.asarray(image).transpose(2, 0, 1)[None]
wanted = np.load(given['onnx'] + '/tokens.npy')
for n in (1, 2, 7):
    (tokens,) = session.run(['tokens'], {'image': np.repeat(pixels, n, 0)})
    assert len(tokens) == n and np.abs(tokens - wanted).max() < 1e-4
about = session.get_modelmeta().custom_metadata_map
assert about['size'] == '128x64' and about['licence'] == 'Apache-2.0'
"""


def test_timm_torch_and_the_official_code_open_them_without_hap(folders, picture, tmp_path):
    graph = tmp_path / "graph"
    exported(graph, *GRAPH, "format=torch_export")
    np.save(graph / "tokens.npy", features("vit_micro", "drawn", (128, 64), picture))
    program(TORCH, tmp_path, picture=picture, graph=graph, **folders)


def test_onnxruntime_alone_runs_it(onnx, picture, tmp_path):
    program(RUNTIME, tmp_path, picture=picture, onnx=onnx[0])


def test_the_program_says_little(onnx):
    """The exporter's own affairs are not told."""
    folder, done = onnx
    assert (done.returncode, done.stderr) == (0, "")
    assert "largest difference" in done.stdout
    assert "licence of these weights: Apache-2.0" in done.stdout
    assert "README.md, model.onnx (5.3 MB)" in done.stdout
    assert len(done.stdout.splitlines()) < 13, done.stdout
    assert [path.name for path in folder.parent.iterdir()] == ["my model"]


def test_what_is_in_the_files(folders, file):
    with safe_open(folders["timm"] / "model.safetensors", "pt") as content:
        names, about = set(content.keys()), content.metadata()
        assert all(content.get_slice(name).get_dtype() == "F32" for name in names)
    assert len(names) == 150
    assert (about["grid"], about["size"], about["licence"]) == ("24x8", "384x128", LICENCE)
    config = json.loads((folders["timm"] / "config.json").read_text())
    assert config["architecture"] == "vit_tiny_patch16_224"
    assert config["model_args"] == {"img_size": [384, 128]}
    assert config["pretrained_cfg"]["license"] == "cc-by-nc-4.0"
    for kind, folder in folders.items():
        card = (folder / "README.md").read_text()
        assert card.startswith("---\nlicense: cc-by-nc-4.0\n")
        assert f"`format={kind}`" in card
        assert "tiny.safetensors" in card
        assert str(file.parent) not in card  # no folder of this machine
        assert "largest difference to the model, drawn images" in card


def test_they_load_here_again(folders, file, tmp_path):
    """Their grid is recorded: 24 x 8 comes back as it was."""
    model = ViT(img_size=(256, 128), patch_size=16, embed_dim=192, depth=12, num_heads=3)
    report = load_weights(model, folders["timm"] / "model.safetensors")
    assert report.resized == ("pos_embed",)
    assert report.licence == LICENCE
    assert load_weights(model, folders["hap"] / "hap.pth").licence == LICENCE
    assert load_weights(model, folders["hap"] / "hap.pth").resized == ()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["format=tim", "weights=drawn"], "did you mean 'timm'"),
        (["format=timm"], "give ckpt_path=FILE, a checkpoint of hap, or weights=FILE"),
        (["format=timm", "weights=drawn", "ckpt_path=x.ckpt"], "give ckpt_path=FILE"),
        (["format=timm", "ckpt_path=x.ckpt"], "checkpoint not found: x.ckpt"),
        (["format=timm", "weights=nowhere.pth"], "no such weight file"),
        (["format=timm", "weights=drawn", "size=256"], "height x width in pixels"),
        (["format=timm", "weights=drawn", "size=250x128"], "not a multiple of patch size"),
        (["format=timm", "weights=drawn"], "its encoder is of another kind: it has 6 blocks"),
        (["format=timm", "weights=drawn", "half=true"], "half=true is for format=onnx"),
        (["format=timm", "weights=drawn", "encoder=true"], "has nothing but the encoder"),
        (["format=hap", "weights=drawn", "model=vit_micro", "size=256x128"], "add size=128x64"),
        (["format=timm", "weights=drawn", "model=vit_micro", "input=nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_message_and_leave_nothing(tmp_path, overrides, message):
    with pytest.raises(HapError, match=message):
        exported(tmp_path / "out", *overrides)
    assert not any(tmp_path.iterdir())


DRAWN = (*GRAPH, "format=safetensors")


def test_what_differs_is_not_left(tmp_path, monkeypatch):
    for tolerance in (-1.0, float("nan")):
        monkeypatch.setattr(hap.exporting.check, "TOLERANCE", tolerance)
        with pytest.raises(HapError, match=r"on random images and .* on drawn images, more than"):
            exported(tmp_path / "out", *DRAWN)
    assert not any(tmp_path.iterdir())


def test_what_is_not_finite_differs(tmp_path, monkeypatch):
    def write(folder, source, network):
        return lambda inputs: {"tokens": torch.full((len(inputs["image"]), 129, 128), torch.nan)}

    monkeypatch.setitem(hap.exporting.formats.FORMATS, "safetensors", write)
    with pytest.raises(HapError, match="by up to inf on random images"):
        exported(tmp_path / "out", *DRAWN)


def test_folders_that_are_there_or_closed(tmp_path):
    (tmp_path / "empty").mkdir()
    exported(tmp_path / "empty", *DRAWN)
    with pytest.raises(HapError, match="is there already"):
        exported(tmp_path / "empty", *DRAWN)
    with pytest.raises(HapError, match="is there already"):
        exported(tmp_path / "empty" / "README.md", *DRAWN)
    with pytest.raises(HapError, match=r"cannot write to .*: Not a directory"):
        exported(tmp_path / "empty" / "README.md" / "x", *DRAWN)
    tmp_path.chmod(0o555)
    with as_another_user(), pytest.raises(HapError, match=r"cannot write to .*: Permission denied"):
        exported(tmp_path / "new", *DRAWN)
    tmp_path.chmod(0o755)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for kind in ("safetensors", "hap"):
        with pytest.raises(HapError, match=r"cannot write to .*: No space left on device"):
            exported(tmp_path / "out", *GRAPH, f"format={kind}")
    assert not any(tmp_path.iterdir())


def test_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(hap.exporting.formats, "find_spec", lambda name: None)
    with pytest.raises(HapError, match=r'onnx, onnxscript, onnxruntime: pip install "hap\[export\]"'):
        exported(tmp_path / "out", *GRAPH, "format=onnx")


def test_on_photographs(tmp_path, picture):
    """More names than images, one in a folder; one that is none."""
    differences = exported(tmp_path / "out", *DRAWN, f"input='{picture.parent}'")
    assert set(differences) == {"random", "photographs"}
    (tmp_path / "photo.jpg").write_bytes(b"no photograph")
    with pytest.raises(HapError, match=r"photo\.jpg"):
        exported(tmp_path / "again", *DRAWN, f"input='{tmp_path / 'photo.jpg'}'")


def test_a_run_remembers_what_it_began_with(luperson, tmp_path, caplog):
    """Its checkpoint, one that it resumed from, and what is trained from that have the licence of the first weights."""
    sizes = {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 4}
    state = dict(ViT(img_size=(64, 32), **sizes).state_dict())
    save_file(state, tmp_path / "begin.safetensors", {"grid": "4x2", "licence": LICENCE})
    options = ("experiment=pretrain_hap", *TINY_PRETRAIN, f"data.root={luperson}", "callbacks.pictures=null")
    options = (*options, "trainer.limit_train_batches=1", "trainer.limit_val_batches=1")
    weights = f"weights={tmp_path}/begin.safetensors"
    run("train", config("train", *options, weights, "epochs=1"), tmp_path / "runs/first")
    last = tmp_path / "runs/first/checkpoints/last.ckpt"
    resumed = (f"ckpt_path={last}", "epochs=2", "task.recipe.epochs=1")
    run("train", config("train", *options, *resumed), tmp_path / "runs/second")
    last = tmp_path / "runs/second/checkpoints/last.ckpt"
    content = read_checkpoint(last)
    assert content["licence"] == content["hap"]["weights"]["licence"] == LICENCE
    assert content["hap"]["weights"]["name"] == "begin.safetensors"
    assert content["hap"]["run"] == "runs/second"

    exported(tmp_path / "out", f"ckpt_path={last}", "format=hap", "size=256x128")
    state = torch.load(tmp_path / "out/hap.pth", weights_only=True)["model"]
    assert set(state) == {n.removeprefix("model.") for n in content["state_dict"] if n.startswith("model.")}
    assert state["decoder_pos_embed"].shape == (1, 129, 32)
    card = (tmp_path / "out/README.md").read_text()
    assert "| training began with | begin.safetensors |" in card
    assert "| experiment | pretrain\\_hap |" in card
    assert f"| run | runs/second |\n| revision | {content['hap']['revision']} |" in card
    exported(tmp_path / "plain", f"ckpt_path={last}", "format=timm")
    with safe_open(tmp_path / "plain/model.safetensors", "pt") as file:
        assert len(file.keys()) == 4 + 2 * 12 + 2  # no mask token, no decoder
        assert torch.equal(file.get_tensor("norm.bias"), content["state_dict"]["model.norm.bias"])


def test_logging_is_as_before(tmp_path):
    exported(tmp_path / "out", *DRAWN)
    assert logging.root.manager.disable == 0
