"""Encoder and masked autoencoder against the official implementation's numbers and a literal forward pass."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hap.errors import HapError
from hap.losses import AlignmentLoss, ReconstructionLoss
from hap.models.mim import MaskedAutoencoder, MIMOutput, take_patches
from hap.models.vit import ViT, create_encoder

DATA = Path(__file__).parent / "data"
TINY = {"img_size": (64, 32), "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 4}
TINY_DECODER = {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 4}
BASE = {"img_size": (256, 128), "patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}
ENCODER_NAMES = ["vit_base", "vit_huge", "vit_large", "vit_small", "vit_tiny"]


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(DATA / "pretrain_tiny.npz") as file:
        return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}


@pytest.fixture
def tiny(golden) -> MaskedAutoencoder:
    model = MaskedAutoencoder(**TINY, **TINY_DECODER)
    model.load_state_dict(
        {name.removeprefix("state/"): value for name, value in golden.items() if name.startswith("state/")}
    )
    return model


@pytest.fixture
def scores(golden) -> Tensor:
    return torch.stack([golden["noise_view1"], golden["noise_view2"]], dim=1)  # (N, V, L)


def pretraining_loss(output: MIMOutput) -> Tensor:
    return ReconstructionLoss()(output.pred, output.target) + 0.05 * AlignmentLoss()(*output.cls)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_all_close(actual: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            actual[name], expected[name], **tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


# --- the official implementation's numbers ---------------------------------------------------------------


def test_masks_and_outputs_agree_with_the_official_ones(golden, tiny, scores):
    output = tiny(golden["images"], scores)
    patches = tiny.patchify(golden["images"])
    torch.testing.assert_close(patches, golden["patchify"], rtol=0, atol=0)
    latent = tiny.encode(golden["images"], output.masking)
    every_token = tiny.decoder_pred(tiny.decoder_norm(tiny.decode(latent, output.masking)[:, :, 1:]))
    for view in (0, 1):
        ids_restore = golden[f"ids_restore_view{view + 1}"]
        assert output.masking.ids_restore[view].equal(ids_restore)
        assert output.masking.mask[view].equal(golden[f"mask_view{view + 1}"])
        torch.testing.assert_close(latent[view], golden[f"latent_view{view + 1}"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(output.cls[view], latent[view, :, 0], rtol=0, atol=0)

        pred = golden[f"pred_view{view + 1}"]  # in the patches' order
        unshuffled = every_token[view].gather(1, ids_restore[..., None].expand_as(pred))
        torch.testing.assert_close(unshuffled, pred, rtol=1e-5, atol=1e-5)
        removed = take_patches(pred, output.masking.ids_removed[view : view + 1])[0]
        torch.testing.assert_close(output.pred[view], removed, rtol=1e-5, atol=1e-5)
        removed = take_patches(patches, output.masking.ids_removed[view : view + 1])[0]
        torch.testing.assert_close(output.target[view], removed, rtol=0, atol=0)


def test_losses_and_gradients_agree_with_the_official_ones(golden, tiny, scores):
    output = tiny(golden["images"], scores)
    reconstruction, alignment = ReconstructionLoss(), AlignmentLoss()
    for view in (0, 1):
        loss = reconstruction(output.pred[view], output.target[view])
        assert loss.item() == pytest.approx(golden[f"loss_rec_view{view + 1}"].item(), rel=1e-5)
    assert alignment(*output.cls).item() == pytest.approx(golden["loss_align"].item(), rel=1e-5)
    loss = pretraining_loss(output)
    assert loss.item() == pytest.approx(golden["loss"].item(), rel=1e-5)

    loss.backward()
    norms = {f"gradnorm/{name}": grad.norm().item() for name, grad in gradients(tiny).items()}
    assert norms.keys() == {name for name in golden if name.startswith("gradnorm/")}
    for name, norm in norms.items():
        assert norm == pytest.approx(golden[name].item(), rel=1e-4), name


def test_fixed_positions_are_the_official_ones(golden):
    model = MaskedAutoencoder(**TINY, **TINY_DECODER)
    for name in ("pos_embed", "decoder_pos_embed"):
        pos_embed = getattr(model, name)
        assert not pos_embed.requires_grad
        torch.testing.assert_close(pos_embed.detach(), golden[name], rtol=0, atol=1e-6)


def test_base_model_has_the_official_parameters():
    facts = json.loads((DATA / "pretrain_base_keys.json").read_text())
    with torch.device("meta"):
        model = MaskedAutoencoder(**BASE)
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert shapes == facts["state_dict"]
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in model.parameters()) == facts["params_total"] == 111_820_800
    assert sum(p.numel() for p in trained.values()) == facts["params_trainable"] == 111_655_680
    decayed = {n for n, p in trained.items() if p.ndim > 1 and n not in model.no_weight_decay()}
    assert decayed == set(facts["weight_decay_groups"]["decay"])
    assert trained.keys() - decayed == set(facts["weight_decay_groups"]["no_decay"])


# --- a literal forward pass ------------------------------------------------------------------------------


def literal_block(x: Tensor, state: dict[str, Tensor], prefix: str, heads: int) -> Tensor:
    """Pre-norm block with explicit softmax attention, one head at a time."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{prefix}{name}.weight"].T + state[f"{prefix}{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
        return x * state[f"{prefix}{name}.weight"] + state[f"{prefix}{name}.bias"]

    width = x.shape[-1] // heads
    q, k, v = linear(norm(x, "norm1"), "attn.qkv").chunk(3, dim=-1)
    out = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        attention = (q[..., part] @ k[..., part].mT / math.sqrt(width)).softmax(-1)
        out.append(attention @ v[..., part])
    x = x + linear(torch.cat(out, -1), "attn.proj")
    hidden = linear(norm(x, "norm2"), "mlp.fc1")
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + linear(hidden, "mlp.fc2")


def test_vit_is_the_textbook_transformer():
    torch.manual_seed(0)
    model = ViT((48, 80), 16, embed_dim=32, depth=3, num_heads=4).eval()
    for parameter in model.parameters():  # norms and biases that matter
        nn.init.normal_(parameter, std=0.1)
    images = torch.randn(2, 3, 48, 80)
    state = dict(model.named_parameters())

    patches = [
        images[:, :, row : row + 16, col : col + 16].flatten(1)
        for row in (0, 16, 32)
        for col in range(0, 80, 16)
    ]
    kernel = state["patch_embed.proj.weight"].flatten(1)
    x = torch.stack([patch @ kernel.T + state["patch_embed.proj.bias"] for patch in patches], dim=1)
    x = torch.cat([state["cls_token"].expand(2, -1, -1), x], dim=1) + state["pos_embed"]
    for block in range(3):
        x = literal_block(x, state, f"blocks.{block}.", heads=4)
    x = F.layer_norm(x, (32,), state["norm.weight"], state["norm.bias"], eps=1e-6)

    assert model.grid == (3, 5)
    torch.testing.assert_close(model(images), x, rtol=1e-5, atol=1e-5)


def test_views_and_images_do_not_influence_each_other(golden, tiny, scores):
    together = tiny(golden["images"], scores)
    for view in (0, 1):
        alone = tiny(golden["images"][2:3], scores[2:3, view : view + 1])
        torch.testing.assert_close(together.cls[view, 2], alone.cls[0, 0])
        torch.testing.assert_close(together.pred[view, 2], alone.pred[0, 0])


def test_removed_pixels_do_not_reach_the_encoder(golden, tiny, scores):
    output = tiny(golden["images"], scores[:, :1])
    noise = torch.randn_like(output.target)
    images = tiny.paste(golden["images"], noise, output.masking)[0]
    changed = tiny(images, scores[:, :1])
    torch.testing.assert_close(changed.pred, output.pred, rtol=0, atol=0)
    torch.testing.assert_close(changed.target, noise, rtol=0, atol=0)


# --- pictures <-> patches --------------------------------------------------------------------------------


def test_patches_are_rows_of_row_column_channel(tiny):
    images = torch.randn(2, 3, 64, 32)
    patches = tiny.patchify(images)
    assert patches.shape == (2, 8, 768)
    assert (
        patches[1, 5, (7 * 16 + 9) * 3 + 2] == images[1, 2, 2 * 16 + 7, 16 + 9]
    )  # patch 5 = row 2, column 1
    torch.testing.assert_close(tiny.unpatchify(patches), images, rtol=0, atol=0)


def test_paste_replaces_the_removed_patches_only(golden, tiny, scores):
    output = tiny(golden["images"], scores)
    pictures = tiny.paste(golden["images"], torch.full_like(output.target, 7.0), output.masking)
    assert pictures.shape == (2, 4, 3, 64, 32)
    mask = output.masking.mask.reshape(2, 4, 1, 4, 2).repeat_interleave(16, -2).repeat_interleave(16, -1)
    expected = torch.where(mask.bool(), 7.0, golden["images"])
    torch.testing.assert_close(pictures, expected, rtol=0, atol=0)


# --- ways to run -----------------------------------------------------------------------------------------


def test_gradient_checkpointing_changes_nothing(golden, scores, tiny):
    results = []
    for enabled in (False, True):
        tiny.set_grad_checkpointing(enabled)
        tiny.zero_grad()
        loss = pretraining_loss(tiny(golden["images"], scores))
        loss.backward()
        results.append({"loss": loss.detach(), **gradients(tiny)})
    assert_all_close(results[1], results[0], rtol=0, atol=0)


def test_gradient_checkpointing_repeats_the_drop_path():
    results = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = ViT(**TINY, drop_path=0.5, grad_checkpointing=enabled)
        output = model(torch.randn(8, 3, 64, 32))
        output.square().mean().backward()
        results.append({"output": output.detach(), **gradients(model)})
    assert_all_close(results[1], results[0], rtol=0, atol=0)


def test_bf16_autocast_stays_close_and_keeps_the_losses_in_float32(golden, tiny, scores):
    exact = tiny(golden["images"], scores)
    with torch.autocast("cpu", torch.bfloat16):
        output = tiny(golden["images"], scores)
        loss = pretraining_loss(output)
    loss.backward()
    assert output.pred.dtype == torch.bfloat16
    assert output.cls.dtype == output.target.dtype == loss.dtype == torch.float32
    assert loss.item() == pytest.approx(golden["loss"].item(), rel=2e-2)
    torch.testing.assert_close(output.cls, exact.cls, rtol=0.1, atol=0.1)
    assert all(grad.isfinite().all() for grad in gradients(tiny).values())


def test_the_model_is_one_graph_for_the_compiler(golden, tiny, scores):
    expected = tiny(golden["images"], scores)
    output = torch.compile(tiny, backend="eager", fullgraph=True)(golden["images"], scores)
    torch.testing.assert_close(output.pred, expected.pred)
    torch.testing.assert_close(output.cls, expected.cls)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_equals_eager(golden, tiny, scores, checkpointing):
    pretraining_loss(tiny(golden["images"], scores)).backward()
    expected = gradients(tiny)
    tiny.zero_grad()
    tiny.set_grad_checkpointing(checkpointing)
    tiny.compile(fullgraph=True)
    loss = pretraining_loss(tiny(golden["images"], scores))
    loss.backward()
    assert loss.item() == pytest.approx(golden["loss"].item(), rel=1e-5)
    assert_all_close(gradients(tiny), expected, rtol=1e-4, atol=1e-6)


# --- construction ----------------------------------------------------------------------------------------


def test_pretraining_starts_from_the_official_distributions():
    torch.manual_seed(0)
    model = MaskedAutoencoder((256, 128), 16, embed_dim=256, depth=1, num_heads=4, decoder_depth=1)
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.15)
    assert model.mask_token.std().item() == pytest.approx(0.02, rel=0.15)
    for weight in (model.blocks[0].attn.qkv.weight, model.decoder_pred.weight, model.patch_embed.proj.weight):
        matrix = weight.detach().flatten(1)
        bound = math.sqrt(6 / sum(matrix.shape))
        assert 0.99 * bound < matrix.abs().max() <= bound
        assert matrix.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not model.blocks[0].mlp.fc1.bias.any()
    assert not model.decoder_embed.bias.any()


def test_an_encoder_starts_from_the_official_distributions():
    torch.manual_seed(0)
    model = ViT((256, 128), 16, embed_dim=256, depth=1, num_heads=4)
    for weight in (model.cls_token, model.pos_embed, model.blocks[0].mlp.fc2.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert model.pos_embed.requires_grad
    assert not model.blocks[0].attn.qkv.bias.any()
    bound = 1 / math.sqrt(3 * 16 * 16)  # PyTorch's default for a convolution
    assert 0.99 * bound < model.patch_embed.proj.weight.abs().max() <= bound


def test_drop_path_grows_linearly():
    model = ViT((64, 32), 16, embed_dim=24, depth=12, num_heads=2, drop_path=0.1)
    rates = [getattr(block.drop_path2, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])


def test_layers_and_weight_decay_of_the_encoder():
    model = ViT(**TINY)
    layers = {name: model.layer_id(name) for name, _ in model.named_parameters()}
    assert {layers[name] for name in ("cls_token", "pos_embed", "patch_embed.proj.weight")} == {0}
    assert layers["blocks.0.norm1.weight"] == 1
    assert layers["blocks.1.mlp.fc2.bias"] == 2
    assert layers["norm.weight"] == model.layer_id("head.weight") == 3
    assert {"cls_token", "pos_embed"} <= model.no_weight_decay()


@pytest.mark.parametrize(("img_size", "values"), [((256, 128), 85_746_432), ((384, 128), 85_795_584)])
def test_base_encoder_has_the_official_size(img_size, values):
    with torch.device("meta"):
        model = create_encoder("vit_base", img_size)
    assert sum(p.numel() for p in model.parameters()) == values


@pytest.mark.parametrize("name", ENCODER_NAMES)
def test_every_encoder_fits_the_standard_crop(name):
    with torch.device("meta"):
        model = create_encoder(name)
        tokens = model(torch.empty(1, 3, 256, 128))
    assert model.grid == (16, 8)
    assert tokens.shape == (1, 129, model.embed_dim)


def test_an_unknown_encoder_is_named_with_the_known_ones():
    names = sorted([*ENCODER_NAMES, "vit_micro"])  # which has patches of 8 pixels
    with pytest.raises(HapError, match=r"vit_giant.*" + ", ".join(names)):
        create_encoder("vit_giant")


def test_the_pretrained_encoder_is_a_plain_vit(golden, tiny):
    encoder = ViT(**TINY)
    encoder.load_state_dict(tiny.encoder_state_dict())
    torch.testing.assert_close(encoder(golden["images"]), tiny.features(golden["images"]), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_size": (250, 128)}, "250x128 is not a multiple of patch size 16"),
        ({"num_heads": 5}, "embed_dim 64 is not a multiple of num_heads 5"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(HapError, match=message):
        ViT(**{**TINY, **change})


def test_pretraining_sizes_that_do_not_fit_are_refused(golden, tiny):
    with pytest.raises(HapError, match="mask_ratio 1"):
        MaskedAutoencoder(**TINY, mask_ratio=1.0)
    with pytest.raises(HapError, match="multiple of 4"):
        MaskedAutoencoder(**TINY, decoder_embed_dim=6, decoder_num_heads=1)
    with pytest.raises(HapError, match=r"scores for 128 patches.*\(4, 2\)"):
        tiny(golden["images"], torch.rand(4, 2, 128))
