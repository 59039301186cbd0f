"""Weights fit the model or are refused, and every message names the key that helps."""

import argparse
import collections
import pathlib

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from test_checkpoint import assert_loaded, autoencoder, encoder, save

from hap.errors import HapError
from hap.models.checkpoint import load_weights, resize_pos_embed
from hap.models.heads import ReidViT

SIZES = {"img_size": (256, 128), "patch_size": 16, "embed_dim": 32, "num_heads": 4}


def timms(**changes) -> dict[str, torch.Tensor]:
    """timm's own model with something that the plain ViT has not."""
    torch.manual_seed(3)
    return timm.models.VisionTransformer(**{**SIZES, "depth": 2, "num_classes": 0, **changes}).state_dict()


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


# --- encoders of another kind ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (timms(depth=1), r"it has 1 blocks, the model 2; only the model has blocks\.1\.norm1\.weight"),
        (timms(depth=4), r"it has 4 blocks, the model 2; only it has blocks\.2\.norm1\.weight"),
        (timms(init_values=1e-5), r"only it has blocks\.0\.ls1\.gamma"),
        (timms(pre_norm=True), r"only it has norm_pre\.weight.*only the model has patch_embed\.proj\.bias"),
        (timms(qk_norm=True), r"only it has blocks\.0\.attn\.q_norm\.weight"),
        (timms(qkv_bias=False), r"only the model has blocks\.0\.attn\.qkv\.bias"),
        (timms(pos_embed="none"), "only the model has pos_embed"),
        (timms(reg_tokens=4, no_embed_class=True), "only it has reg_token"),
        (timms(class_token=False, global_pool="avg", final_norm=True), "only the model has cls_token"),
        (timms(final_norm=False), r"only the model has norm\.weight"),
        (
            timms(global_pool="avg", fc_norm=True),
            r"only the model has norm\.weight.*its fc_norm is of averaged",
        ),
        ({**timms(), "sie_embed": torch.zeros(6, 1, 32)}, "only it has sie_embed"),
        ({**timms(), "dist_token": torch.zeros(1, 1, 32)}, "only it has dist_token"),
    ],
)
def test_an_encoder_of_another_kind_needs_consent(tmp_path, state, message):
    path = save(tmp_path / "other.pth", {"model": state})
    model = encoder()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        HapError, match=f"other.pth: its encoder is of another kind: .*{message}.*weights_partial"
    ):
        load_weights(model, path)
    assert_loaded(model, before, before)

    if "reg_token" in state or "cls_token" not in state:
        return  # their positions are of other tokens
    report = load_weights(model, path, partial=True)
    assert set(report.matched) == state.keys() & before.keys()
    assert set(report.missing) == before.keys() - state.keys()
    assert set(report.unexpected) == state.keys() - before.keys()
    assert_loaded(model, state, report.matched)
    assert_loaded(model, before, report.missing)
    assert "an encoder of another kind, with weights_partial=true" in str(report)


def test_heads_decoders_and_their_norms_are_free(tmp_path):
    free = (
        "head.weight",
        "head_dist.bias",
        "fc_norm.weight",
        "pre_logits.fc.weight",
        "mask_token",
        "decoder_x",
    )
    state = timms() | {name: torch.zeros(3) for name in (*free, "bottleneck.weight", "b1.0.norm1.weight")}
    model = ReidViT(**SIZES, depth=2, num_classes=7)
    report = load_weights(model, save(tmp_path / "heads.pth", state))
    assert report.missing == ("head.weight", "head.bias")
    assert len(report.unexpected) == 8
    assert_loaded(model, state, timms())


# --- where in the file the encoder is --------------------------------------------------------------------


def test_dino_files_name_their_keys(tmp_path):
    teacher, student = timms(), {name: value + 1 for name, value in timms().items()}
    path = save(
        tmp_path / "dino.pth",
        {
            "student": prefixed("module.backbone.", student) | {"module.head.mlp.0.weight": torch.zeros(2)},
            "teacher": prefixed("backbone.", teacher) | {"head.mlp.0.weight": torch.zeros(2)},
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
            "epoch": 100,
            "args": argparse.Namespace(arch="vit_small", output_dir=pathlib.PosixPath("/runs")),
            "dino_loss": collections.OrderedDict(center=torch.zeros(1, 5)),
        },
    )
    keys = "weights_entry=student weights_prefix=module.backbone. or weights_entry=teacher weights_prefix=backbone."
    for source in ("auto", "timm", "hap", "lightning"):
        with pytest.raises(HapError, match=f"dino.pth: .*set {keys}"):
            load_weights(encoder(), path, source)
    with pytest.raises(
        HapError, match=r"none of its parameters.*set weights_entry=student weights_prefix=module"
    ):
        load_weights(encoder(), path, entry="teacher")
    model = encoder()
    report = load_weights(model, path, entry="teacher", prefix="backbone.")
    assert_loaded(model, teacher, teacher)
    assert report.missing == report.unexpected == ()
    assert "not taken from the same file: weights_entry=student weights_prefix=module.backbone." in str(
        report
    )
    with pytest.raises(HapError, match=r"no parameter begins with 'base\.'; there are backbone\.cls_token"):
        load_weights(model, path, entry="teacher", prefix="base.")
    with pytest.raises(HapError, match=f"there is no entry 'ema' of weights: set {keys}"):
        load_weights(model, path, entry="ema")
    with pytest.raises(HapError, match="leave weights_source=auto"):
        load_weights(model, path, "timm", entry="teacher")


def test_averages_beside_the_weights_are_named(tmp_path):
    state, average = timms(), {name: value + 1 for name, value in timms().items()}
    path = save(tmp_path / "ema.pth", {"state_dict": state, "state_dict_ema": average, "epoch": 3})
    model = encoder()
    report = load_weights(model, path)
    assert_loaded(model, state, state)
    assert "not taken from the same file: weights_entry=state_dict_ema" in str(report)
    assert "weights_entry=state_dict)" not in str(report)
    load_weights(model, path, entry="state_dict_ema")
    assert_loaded(model, average, average)


@pytest.mark.parametrize("entry", ["ema.module", "ema"])
def test_dots_lead_into_an_entry(tmp_path, entry):
    content: dict = {"epoch": 1}
    content[entry.partition(".")[0]] = {"module": timms()} if "." in entry else timms()
    path = save(tmp_path / "deep.pth", content)
    with pytest.raises(HapError, match=rf"not a known kind .*: set weights_entry={entry}$"):
        load_weights(encoder(), path)
    model = encoder()
    load_weights(model, path, entry=entry)
    assert_loaded(model, timms(), timms())


@pytest.mark.parametrize(
    "prefix", ["backbone.", "module.", "base.", "_orig_mod.", "module.student.backbone."]
)
@pytest.mark.parametrize("container", [None, "state_dict", "model"])
def test_a_prefix_is_suggested_and_stripped(tmp_path, prefix, container):
    state = prefixed(prefix, timms()) | {"classifier.weight": torch.zeros(5, 32)}
    path = save(tmp_path / "prefix.pth", {container: state} if container else state)
    with pytest.raises(HapError, match=f"none of its parameters.*: set .*weights_prefix={prefix}"):
        load_weights(encoder(), path)
    model = encoder()
    assert load_weights(model, path, prefix=prefix).missing == ()
    assert_loaded(model, timms(), timms())
    save_file(state, tmp_path / "prefix.safetensors")
    assert load_weights(model, tmp_path / "prefix.safetensors", prefix=prefix).missing == ()


def test_transreid_with_overlapping_patches(tmp_path):
    """Stride 12 gives 21 x 10 positions; the patch convolution itself is the same."""
    state = timms() | {"pos_embed": torch.randn(1, 211, 32)}
    path = save(tmp_path / "transreid.pth", prefixed("base.", state) | {"b1.0.norm1.weight": torch.zeros(3)})
    with pytest.raises(HapError, match=r"210 patches, of a grid that nothing records.*weights_grid=21x10"):
        load_weights(encoder(), path, prefix="base.")
    model = encoder()
    load_weights(model, path, prefix="base.", grid="21x10")
    assert model.pos_embed.equal(resize_pos_embed(state["pos_embed"], (21, 10), (16, 8)))


def test_pass_keeps_the_position_of_the_class_token_apart(tmp_path):
    state = timms()
    parts = {f"part_token{i}": torch.randn(1, 1, 32) for i in (1, 2, 3)}
    parts |= {f"part{i}_pos": torch.randn(1, 1, 32) for i in (1, 2, 3)}
    cls, patches = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    content = state | parts | {"cls_pos": cls.clone(), "pos_embed": patches.clone()}
    path = save(tmp_path / "pass.pth", {"teacher": prefixed("backbone.", content), "student": {}, "epoch": 9})
    where = {"entry": "teacher", "prefix": "backbone."}
    with pytest.raises(HapError, match=r"only it has part_token1.*weights_partial=true takes what fits"):
        load_weights(encoder(), path, **where)
    model = encoder()
    report = load_weights(model, path, partial=True, **where)
    assert_loaded(model, state, state)
    assert set(report.unexpected) == parts.keys()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["patch_embed.proj.weight", "layers.0.blocks.0.attn.qkv.weight"], "looks like a Swin Transformer"),
        (
            ["vit.encoder.layer.0.attention.output.dense.weight"],
            "names of the library transformers.*weights=timm:",
        ),
        (["visual.transformer.resblocks.0.attn.in_proj_weight"], "looks like CLIP's encoder"),
        (["layer1.0.conv1.weight"], "looks like a ResNet"),
    ],
)
def test_other_networks_are_recognised(tmp_path, names, message):
    state = {f"backbone.{name}": torch.zeros(2, 3) for name in names}
    content = {"teacher": state, "student": state, "epoch": 10}  # SOLIDER's container
    path = save(tmp_path / "other.pth", content)
    with pytest.raises(HapError, match=message):
        load_weights(encoder(), path)
    with pytest.raises(HapError, match=message):
        load_weights(encoder(), path, entry="teacher", prefix="backbone.")


# --- what lies beside the weights ------------------------------------------------------------------------


def test_plain_data_beside_the_weights_is_no_code(tmp_path):
    content = {
        "state_dict": timms(),
        "epoch": np.int64(60),
        "rank1": np.float32(0.91),
        "ranks": np.arange(6).reshape(2, 3),
        "names": np.array(["a", "bc"]),
        "order": np.arange(6).reshape(2, 3)[:, ::-1],
        "args": argparse.Namespace(output=pathlib.PosixPath("/runs/x"), data=pathlib.PureWindowsPath("C:/x")),
        "history": collections.defaultdict(list, loss=[1.0, 2.0]),
        "counts": collections.Counter("aab"),
        "rng": torch.get_rng_state(),
        "numpy_rng": np.random.get_state(),
        "version": torch.__version__,
        "device": torch.device("cuda:0"),
        "set": {1, 2},
        "bytes": b"\x00\xff",
        "text": "§",
        "big": 2**80,
        "complex": 1 + 2j,
    }
    for protocol in (2, 4, 5):
        for zipped in (True, False):
            torch.save(
                content,
                tmp_path / "data.pth",
                pickle_protocol=protocol,
                _use_new_zipfile_serialization=zipped,
            )
            model = encoder()
            assert load_weights(model, tmp_path / "data.pth").missing == ()
            assert_loaded(model, timms(), timms())


def test_names_of_numpy_1_and_2_are_the_same_data(tmp_path):
    path = save(tmp_path / "numpy.pth", {"state_dict": timms(), "rank1": np.float32(0.91)})
    other = path.with_name("other.pth")
    import zipfile

    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for part in old.infolist():
            data = old.read(part)
            if part.filename.endswith("data.pkl"):
                assert data.count(b"numpy._core.multiarray") + data.count(b"numpy.core.multiarray") == 1
                swapped = data.replace(b"cnumpy._core.multi", b"cnumpy.core.multi")
                data = swapped if swapped != data else data.replace(b"cnumpy.core.", b"cnumpy._core.")
            new.writestr(part, data)
    for file in (path, other):
        assert load_weights(encoder(), file).missing == ()


def test_a_program_in_the_configuration_is_refused_with_a_way_out(tmp_path):
    from omegaconf import OmegaConf

    content = {"state_dict": timms(), "hyper_parameters": OmegaConf.create({"lr": 1.0})}
    path = save(tmp_path / "lightning.ckpt", content)
    with pytest.raises(HapError, match=r"refused: contains code \(omegaconf\.\w+\.\w+\)") as error:
        load_weights(encoder(), path)
    code = str(error.value).partition('python -c "')[2].rstrip('"')
    assert "only if you trust" in str(error.value)
    exec(code.replace("plain.pth", str(tmp_path / "plain.pth")))  # what the message says to type
    model = encoder()
    load_weights(model, tmp_path / "plain.pth")
    assert_loaded(model, timms(), timms())


def test_half_of_a_name_is_not_an_encoder(tmp_path):
    """A checkpoint of the pre-training model goes on in one with another decoder, the encoder whole."""
    source, model = autoencoder(), autoencoder(decoder_depth=2)
    report = load_weights(model, save(tmp_path / "mae.pth", {"model": source.state_dict()}))
    assert all(name.startswith("decoder_blocks.1.") for name in report.missing)
    assert report.notes == ()
