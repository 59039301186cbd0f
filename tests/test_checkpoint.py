"""Weights from files of every source, the resize of positions, and files that must not be trusted."""

import argparse
import io
import os
import pickle
import warnings
from pathlib import Path

import lightning
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from hap.errors import HapError
from hap.models.checkpoint import load_weights, resize_pos_embed
from hap.models.mim import MaskedAutoencoder
from hap.models.vit import ViT, create_encoder

DATA = Path(__file__).parent / "data"
SIZES = {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 4}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}


def encoder(img_size=(256, 128), **changes) -> ViT:
    torch.manual_seed(1)
    return ViT(img_size, **{**SIZES, **changes})


def autoencoder(img_size=(256, 128), **changes) -> MaskedAutoencoder:
    torch.manual_seed(2)
    return MaskedAutoencoder(img_size, **{**SIZES, **DECODER, **changes})


def save(path: Path, content) -> Path:
    torch.save(content, path)
    return path


def hap_file(path: Path, model: nn.Module) -> Path:
    """Like the official pre-training checkpoint."""
    optimizer = torch.optim.AdamW(model.parameters())
    return save(
        path,
        {
            "epoch": 399,
            "arch": "pose_mae_vit_base_patch16",
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": {"scale": 65536.0, "growth_factor": 2.0},
        },
    )


def assert_loaded(model: nn.Module, source: dict[str, torch.Tensor], names) -> None:
    state = model.state_dict()
    for name in names:
        assert state[name].equal(source[name]), name


# --- positions -------------------------------------------------------------------------------------------


def test_resize_agrees_with_the_official_one():
    with np.load(DATA / "pos_embed_interp_14x14_to_16x8.npz") as file:
        source, expected = torch.from_numpy(file["src"]), torch.from_numpy(file["dst"])
    resized = resize_pos_embed(source, (14, 14), (16, 8))
    torch.testing.assert_close(resized, expected, rtol=1e-5, atol=1e-6)
    assert resized[:, 0].equal(source[:, 0])
    assert resize_pos_embed(source, (14, 14), (14, 14)).equal(source)


def resize_map(values: torch.Tensor) -> torch.Tensor:
    """A (16, 8) map -> (24, 8)."""
    pos_embed = torch.cat([torch.zeros(1), values.flatten()])[None, :, None]
    return resize_pos_embed(pos_embed, (16, 8), (24, 8))[0, 1:, 0].reshape(24, 8)


def test_resize_is_bicubic_without_antialias():
    ramp = resize_map(torch.arange(16.0)[:, None].expand(16, 8))
    expected = [-0.086806, 0.40625, 1.212963, 1.787037, 2.5, 3.212963, 3.787037, 4.5]
    assert ramp[:8, 3].tolist() == pytest.approx(expected, abs=1e-5)
    assert ramp[-3:, 7].tolist() == pytest.approx([13.787037, 14.59375, 15.086806], abs=1e-5)

    impulse = torch.zeros(16, 8)
    impulse[8, 5] = 1
    resized = resize_map(impulse)
    expected = [-0.09375, 0.160880, 0.943287, 0.59375, -0.086806, -0.017361]
    assert resized[10:16, 5].tolist() == pytest.approx(expected, abs=1e-5)
    resized[10:16, 5] = 0
    assert not resized.any()


# --- sources ---------------------------------------------------------------------------------------------


def test_the_official_file_initialises_an_encoder(tmp_path):
    source, model = autoencoder(), encoder()
    nn.init.normal_(source.pos_embed)
    report = load_weights(model, hap_file(tmp_path / "hap.pth", source))
    assert_loaded(model, source.state_dict(), model.state_dict())
    assert len(report.matched) == len(model.state_dict()) == 30
    assert report.missing == report.resized == ()
    assert len(report.unexpected) == len(source.state_dict()) - 30
    assert all(name.startswith(("decoder_", "mask_token")) for name in report.unexpected)
    text = str(report)
    assert "hap.pth (source hap, by its entries 'model' and 'arch'): 30 matched" in text
    assert "20 unexpected: " in text
    assert "16 more" in text


def test_the_official_file_goes_on_pretraining(tmp_path):
    source, model = autoencoder(), MaskedAutoencoder((256, 128), **SIZES, **DECODER)
    report = load_weights(model, hap_file(tmp_path / "hap.pth", source), source="hap")
    assert_loaded(model, source.state_dict(), model.state_dict())
    assert report.missing == report.unexpected == ()


def test_names_inside_the_official_wrapper(tmp_path):
    source, model = autoencoder(), encoder()
    state = {f"mae.{name}": value for name, value in source.state_dict().items()}
    load_weights(model, save(tmp_path / "hap.pth", {"arch": "x", "model": state}))
    assert_loaded(model, source.state_dict(), model.state_dict())


@pytest.mark.parametrize("img_size", [(256, 128), (384, 128), (128, 256)])
def test_hap_positions_fit_every_grid(tmp_path, img_size):
    source, model = autoencoder(), encoder(img_size)
    report = load_weights(model, hap_file(tmp_path / "hap.pth", source))
    expected = resize_pos_embed(source.pos_embed, (16, 8), model.grid)
    assert model.pos_embed.equal(expected)
    assert report.resized == (() if img_size == (256, 128) else ("pos_embed",))


def test_mae_encoder(tmp_path):
    source, model = encoder((224, 224)), autoencoder()
    report = load_weights(model, save(tmp_path / "mae.pth", {"model": source.state_dict()}))
    assert "source mae" in str(report)
    assert report.resized == ("pos_embed",)
    assert model.pos_embed.equal(resize_pos_embed(source.pos_embed, (14, 14), (16, 8)))
    assert not model.pos_embed.requires_grad
    assert_loaded(model, source.state_dict(), set(report.matched) - {"pos_embed"})
    assert all(name.startswith(("decoder_", "mask_token")) for name in report.missing)


def test_mae_with_decoder_and_command_line(tmp_path):
    source, model = autoencoder((224, 224)), autoencoder()
    content = {
        "model": source.state_dict(),
        "optimizer": {},
        "epoch": 1599,
        "scaler": {},
        "args": argparse.Namespace(batch_size=64, model="mae_vit_base_patch16", blr=1.5e-4, resume=""),
    }
    report = load_weights(model, save(tmp_path / "mae.pth", content))
    assert report.missing == report.unexpected == ()
    assert set(report.resized) == {"pos_embed", "decoder_pos_embed"}


def test_timm_model(tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", num_classes=5)
    model = create_encoder("vit_tiny")
    state = source.state_dict()
    save_file(state, tmp_path / "vit.safetensors")
    for path in (tmp_path / "vit.safetensors", save(tmp_path / "vit.pth", state)):
        report = load_weights(model, path)
        assert "source timm" in str(report)
        assert report.missing == ()
        assert set(report.unexpected) == {"head.weight", "head.bias"}
        assert_loaded(model, state, set(report.matched) - {"pos_embed"})
    by_name = create_encoder("vit_tiny", weights=tmp_path / "vit.safetensors")
    assert_loaded(by_name, model.state_dict(), model.state_dict())
    report = load_weights(model, save(tmp_path / "wrapped.pth", {"state_dict": state, "epoch": 3}))
    assert "by its entry 'state_dict'" in str(report)


def test_lightning_checkpoint(tmp_path):
    class Task(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = autoencoder()
            self.other = nn.Linear(2, 2)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning, about this machine
        trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        task = Task()
        trainer.strategy.connect(task)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
    model = encoder()
    report = load_weights(model, tmp_path / "last.ckpt")
    assert "source lightning" in str(report)
    assert_loaded(model, task.model.state_dict(), model.state_dict())


def test_files_in_the_format_before_zip(tmp_path):
    source, model = autoencoder(), encoder()
    path = tmp_path / "old.pth"
    torch.save({"arch": "x", "model": source.state_dict()}, path, _use_new_zipfile_serialization=False)
    load_weights(model, path)
    assert_loaded(model, source.state_dict(), model.state_dict())


def test_half_precision_weights_are_widened(tmp_path):
    source, model = encoder(), encoder()
    state = {name: value.bfloat16() for name, value in source.state_dict().items()}
    load_weights(model, save(tmp_path / "half.pth", state))
    assert model.norm.weight.dtype == torch.float32
    assert_loaded(model, {name: value.float() for name, value in state.items()}, state)


# --- the grid of the positions ---------------------------------------------------------------------------


def test_the_source_grid_can_be_given(tmp_path):
    source, model = encoder((384, 128)), encoder()
    path = save(tmp_path / "wide.pth", source.state_dict())
    with pytest.raises(HapError, match=r"192 patches, of a grid that nothing records.*weights_grid=24x8 or"):
        load_weights(model, path)
    for grid in ((24, 8), [24, 8], "24x8"):
        report = load_weights(model, path, grid=grid)
        assert report.resized == ("pos_embed",)
        assert report.notes == ()
        assert model.pos_embed.equal(resize_pos_embed(source.pos_embed, (24, 8), (16, 8)))
    with pytest.raises(HapError, match=r"192 patches, the grid 12x12 has 144.*weights_grid=24x8"):
        load_weights(model, path, grid=(12, 12))
    with pytest.raises(HapError, match="weights_grid is '24-8' instead of rows x columns"):
        load_weights(model, path, grid="24-8")


@pytest.mark.parametrize("img_size", [(384, 128), (256, 192), (192, 64), (128, 256), (224, 224), (48, 304)])
def test_as_many_patches_as_the_model_has_are_taken_as_they_are(tmp_path, img_size):
    source, model = encoder(img_size), encoder(img_size)
    nn.init.normal_(source.pos_embed)
    report = load_weights(model, save(tmp_path / "same.pth", source.state_dict()))
    assert model.pos_embed.equal(source.pos_embed)
    assert report.resized == ()


def test_as_many_patches_in_another_shape_are_named(tmp_path):
    """144 patches are 16 x 9 of the model, or 12 x 12 of the file."""
    source, model = encoder((192, 192)), encoder((256, 144))
    path = save(tmp_path / "square.pth", source.state_dict())
    report = load_weights(model, path)
    assert model.pos_embed.equal(source.pos_embed)
    assert "pos_embed is taken as it is, on the model's grid; weights_grid=12x12 if" in str(report)
    assert load_weights(model, path, grid=(12, 12)).resized == ("pos_embed",)
    assert model.pos_embed.equal(resize_pos_embed(source.pos_embed, (12, 12), (16, 9)))
    recorded = save(tmp_path / "recorded.pth", {"state_dict": source.state_dict(), "grid": "12x12"})
    assert load_weights(model, recorded).resized == ("pos_embed",)


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_the_source_grid_can_be_recorded(tmp_path, suffix):
    source, model = encoder((384, 128)), encoder()
    path = tmp_path / f"recorded.{suffix}"
    if suffix == "safetensors":
        save_file(source.state_dict(), path, metadata={"grid": "24x8"})
    else:
        state = {f"model.{name}": value for name, value in source.state_dict().items()}
        save(path, {"pytorch-lightning_version": "2.6", "state_dict": state, "grid": "24x8"})
    report = load_weights(model, path)
    assert report.unexpected == ()
    assert model.pos_embed.equal(resize_pos_embed(source.pos_embed, (24, 8), (16, 8)))


def test_a_square_is_assumed_last(tmp_path):
    source, model = encoder((128, 128)), encoder()
    report = load_weights(model, save(tmp_path / "square.pth", source.state_dict()))
    assert model.pos_embed.equal(resize_pos_embed(source.pos_embed, (8, 8), (16, 8)))
    assert "pos_embed is taken to be of 8x8 patches; weights_grid says otherwise" in str(report)
    recorded = {"state_dict": source.state_dict(), "grid": "sixteen"}
    with pytest.raises(HapError, match="'sixteen' instead of rows x columns, something like '16x8'"):
        load_weights(model, save(tmp_path / "odd.pth", recorded))


# --- what does not fit -----------------------------------------------------------------------------------


def test_a_decoder_or_head_of_another_size_stays_as_it_is(tmp_path):
    source, model = autoencoder(), autoencoder(decoder_embed_dim=8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_weights(model, hap_file(tmp_path / "hap.pth", source))
    assert "decoder_embed.weight" in report.missing
    assert "decoder_embed.weight" in report.unexpected
    assert_loaded(model, before, report.missing)
    assert_loaded(model, source.state_dict(), encoder().state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 64}, r"cls_token has shape \(1, 1, 64\), the model's has \(1, 1, 32\)"),
        ({"patch_size": 32}, r"patch_embed.proj.weight has shape \(32, 3, 32, 32\)"),
        ({"mlp_ratio": 2.0}, "blocks.0.mlp.fc1.weight has shape"),
    ],
)
def test_an_encoder_of_another_size_is_refused(tmp_path, changes, message):
    path = save(tmp_path / "other.pth", encoder((256, 256), **changes).state_dict())
    with pytest.raises(HapError, match=message):
        load_weights(encoder(), path)


def test_no_common_name_is_refused(tmp_path):
    path = save(tmp_path / "resnet.pth", {"conv1.weight": torch.zeros(2), "fc.bias": torch.zeros(2)})
    before = encoder().state_dict()
    model = encoder()
    with pytest.raises(HapError, match=r"none of its parameters \(conv1.weight, fc.bias\).*cls_token"):
        load_weights(model, path)
    assert_loaded(model, before, before)


@pytest.mark.parametrize(
    ("content", "source", "message"),
    [
        (
            {"weights": {"a": 1}, "step": 3},
            "auto",
            r"not a known kind of checkpoint \(entries weights, step\)",
        ),
        (
            {"model": {"a": torch.zeros(1)}},
            "mim",
            "no weight source 'mim': choose auto, hap, mae, timm, lightning",
        ),
        (
            {"state_dict": {"a": torch.zeros(1)}},
            "hap",
            "read as source hap, given, it has no weights where they should be: set weights_entry=state_dict",
        ),
        ({"model": "vit", "arch": "vit"}, "auto", "read as source hap, .*holds no dict of tensors"),
        ([torch.zeros(1)], "auto", "holds a list, not a dict"),
        (torch.zeros(1), "auto", "holds a Tensor, not a dict"),
        ({0: torch.zeros(1)}, "auto", "holds a dict, not a dict of named weights"),
        ({**encoder().state_dict(), "pos_embed": torch.zeros(3)}, "auto", r"pos_embed is \(3,\) instead of"),
        (
            {**encoder().state_dict(), "pos_embed": torch.zeros(1, 1, 32)},
            "auto",
            r"instead of \(1, 1 \+ patches",
        ),
    ],
)
def test_other_contents_are_refused(tmp_path, content, source, message):
    with pytest.raises(HapError, match=message):
        load_weights(encoder(), save(tmp_path / "file.pth", content), source)


# --- files that must not be trusted ----------------------------------------------------------------------


class Hostile:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["zip", "before zip", "pickle", "new pickle", "safetensors"])
def test_code_is_refused_and_not_executed(tmp_path, kind):
    trap = tmp_path / "trap"
    content = {"model": {**encoder().state_dict(), "evil": Hostile(trap)}}
    path = tmp_path / ("file.safetensors" if kind == "safetensors" else "file.pth")
    if "pickle" in kind:
        path.write_bytes(pickle.dumps({"model": Hostile(trap)}, protocol=4 if kind == "new pickle" else 2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind != "before zip")
    with pytest.raises(
        HapError, match=r"refused: contains code \(posix.mkdir\), not executed; only if you trust"
    ):
        load_weights(encoder(), path)
    assert not trap.exists()

    pickle.loads(pickle.dumps(Hostile(trap)))  # the trap works
    assert trap.exists()


def test_an_unknown_class_is_refused(tmp_path):
    with pytest.raises(HapError, match="refused: contains code"):
        load_weights(encoder(), save(tmp_path / "file.pth", {"model": {"a": io.BytesIO()}}))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_files_are_named(tmp_path, suffix, legacy):
    whole = tmp_path / f"whole.{suffix}"
    if suffix == "safetensors":
        save_file(encoder().state_dict(), whole)
    else:
        torch.save(encoder().state_dict(), whole, _use_new_zipfile_serialization=not legacy)
    data = whole.read_bytes()
    rng = np.random.default_rng(0)
    damaged = {
        "empty": b"",
        "short": data[: len(data) // 2],
        "almost": data[:-30],
        "start": data[:10],
        "noise": rng.bytes(5000),
        "text": b"<!DOCTYPE html><html>Not found</html>",
        "zeros": bytes(4000),
    }
    for name, content in damaged.items():
        path = tmp_path / f"{name}.{suffix}"
        path.write_bytes(content)
        with pytest.raises(HapError, match=f"{name}.{suffix}: not a weight file, or a damaged one"):
            load_weights(encoder(), path)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(HapError, match=r"nothing\.pth: no such weight file"):
        load_weights(encoder(), tmp_path / "nothing.pth")
    with pytest.raises(HapError, match="a folder, not a weight file"):
        load_weights(encoder(), tmp_path)
