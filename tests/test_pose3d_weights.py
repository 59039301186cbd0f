"""What the networks of 3D pose begin with: 2D-pose models, encoders, the official code's snapshots, VPoser, a mean
person."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import config
from safetensors.torch import save_file
from test_pose3d_model import TINY, golden, part, small_hmr2, snapshot
from test_pose_weights import released
from torch.testing import assert_close

from hap.body.rotations import to_matrix
from hap.errors import HapError
from hap.models.checkpoint import load_weights, resize_pos_embed
from hap.models.crowdnet import CrowdNet
from hap.models.hmr2 import Hmr2
from hap.models.pose import PoseViT
from hap.models.pose3d import VPoser, read_mean_parameters
from hap.models.vit import ViT
from hap.runner import run

ENCODER = {"patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 4}
DECODER = {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2}


# 2D-pose models and encoders ----------------------------------------------------------------------------------


def pose2d(path: Path, kind: str) -> tuple[Path, torch.Tensor]:
    """A model of 256 x 192 pixels whose positions are the golden ones, as we or the official code save it."""
    model = PoseViT(num_joints=17, head_dim=4, img_size=(256, 192), **ENCODER)
    model.pos_embed.data = golden("net_tiny")["load/pos_embed_2d"]
    model.last_norm.weight.data.uniform_(1, 2)
    if kind == "official":
        return released(model, path, "module."), model.last_norm.weight
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"pytorch-lightning_version": "2", "state_dict": state, "grid": "16x12"}, path)
    return path, model.last_norm.weight


@pytest.mark.parametrize("kind", ["ours", "official"])
def test_a_2d_pose_model_begins_both_networks(tmp_path, kind):
    """With its norm; its 16 x 12 positions become 16 x 16 as in the official code, whoever saved them."""
    values = golden("net_tiny")
    path, norm = pose2d(tmp_path / "pose2d.pth", kind)
    for model in (CrowdNet(**TINY), Hmr2(img_size=(256, 192), **ENCODER, **DECODER)):
        report = load_weights(model, path)
        assert not report.unexpected
        assert not any(
            name.startswith(("blocks", "last_norm", "patch_embed", "pos_embed")) for name in report.missing
        )
        wanted = values["load/pos_embed_3d" if isinstance(model, CrowdNet) else "load/pos_embed_2d"]
        assert_close(model.pos_embed.data, wanted, rtol=0, atol=1e-5)
        assert_close(model.last_norm.weight, norm)


def test_positions_of_a_ramp():
    """Bicubic without antialiasing, from 12 columns to 16."""
    ramp = torch.arange(12.0).expand(16, 12).flatten()
    wanted = [
        -0.0718, 0.5298, 1.4043, 2.1660, 2.8340, 3.5957, 4.4043, 5.1660, 5.8340, 6.5957, 7.4043, 8.1660, 8.8340, 9.5957,
        10.4702, 11.0718,
    ]  # fmt: skip
    found = resize_pos_embed(torch.cat([torch.zeros(1), ramp])[None, :, None], (16, 12), (16, 16))
    assert_close(found[0, 1:, 0].view(16, 16), torch.tensor(wanted).expand(16, 16), rtol=0, atol=1e-3)


@pytest.mark.parametrize("network", [CrowdNet, Hmr2])
@pytest.mark.parametrize("take", [True, False])
def test_pre_training_begins_both_networks(tmp_path, network, take):
    """Our own checkpoint of 16 x 8 patches, decoder and all; its final norm where it is wanted."""
    encoder = ViT(img_size=(256, 128), **ENCODER)
    encoder.norm.weight.data.uniform_(1, 2)
    state = {f"model.{name}": value for name, value in encoder.state_dict().items()}
    state["model.decoder_blocks.0.norm1.weight"] = torch.zeros(8)
    torch.save(
        {"pytorch-lightning_version": "2", "state_dict": state, "grid": "16x8"}, tmp_path / "last.ckpt"
    )
    sizes = TINY if network is CrowdNet else {"img_size": (256, 192), **ENCODER, **DECODER}
    model = network(load_final_norm=take, **sizes)
    report = load_weights(model, tmp_path / "last.ckpt")
    assert report.resized == ("pos_embed",)
    assert_close(model.blocks[2].mlp.fc2.weight, encoder.blocks[2].mlp.fc2.weight)
    assert torch.equal(model.last_norm.weight, encoder.norm.weight) is take


def test_another_encoder_is_refused(tmp_path):
    other = PoseViT(num_joints=5, head_dim=4, img_size=(256, 192), **ENCODER | {"depth": 2})
    path = released(other, tmp_path / "pose2d.pth")
    for model in (CrowdNet(**TINY), Hmr2(img_size=(256, 192), **ENCODER, **DECODER)):
        with pytest.raises(HapError, match="it has 2 blocks, the model 3"):
            load_weights(model, path)


# Official snapshots -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def people(drawn) -> Path:
    return drawn("pose3d_multi", 12)


NETWORK = (
    *("experiment=pose3d_3dpw", "body=drawn", "trainer=cpu", "data.num_workers=0", "data.eval_batch_size=4"),
    *("model.embed_dim=32", "model.depth=3", "model.num_heads=4", "task.model.feature_dim=48"),
    *("task.model.graph_dim=16", "task.model.vposer=nowhere.pt", "+task.model.vposer_neurons=64"),
    *("callbacks.progress=null", "trainer.enable_progress_bar=false", "total_batch_size=4"),
)


def official(path: Path, **options: str) -> Path:
    return snapshot(part(golden("net_tiny"), "state/"), path, **options)


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_an_official_snapshot_is_evaluated(people, tmp_path, prefix):
    """With what it holds besides, which is nobody's to pass on: it is left out."""
    file = official(tmp_path / "snapshot_10.pth.tar", prefix=prefix)
    found = run("eval", config("eval", *NETWORK, f"data.root={people}", f"weights={file}"), tmp_path / "run")
    assert 0 < found["test/PA-MPJPE"] < found["test/MPJPE"] < 5000


def test_it_begins_a_network_without_vposer(tmp_path):
    model = CrowdNet(**TINY)
    report = load_weights(model, official(tmp_path / "snapshot_10.pth.tar"))
    assert report.missing == ("pose_decoder.out.weight", "pose_decoder.out.bias")
    assert {name.split(".")[1] for name in report.unexpected} == {"latent", "dec_fc1", "dec_fc2", "dec_out"}
    assert not any("human" in name or "enc" in name for name in report.unexpected)


@pytest.mark.parametrize("kind", ["several sizes", "sparse"])
def test_a_snapshot_whose_layers_are_odd_is_refused(tmp_path, kind):
    state = part(golden("net_tiny"), "state/")
    name = "rotation_net.graph_block.0.fcbn_list.7.0.weight"
    state[name] = state[name].to_sparse() if kind == "sparse" else torch.zeros(16, 51)
    path = snapshot(state, tmp_path / "odd.pth.tar")
    with pytest.raises(HapError, match=rf"graph_block\.0\.fcbn_list .*{kind}"):
        load_weights(CrowdNet(**TINY), path)


# VPoser -------------------------------------------------------------------------------------------------------


def vposer(neurons: int = 512) -> dict[str, torch.Tensor]:
    """Names and shapes of v1, with the encoder."""
    sizes = {
        "enc_fc1": (neurons, 63),
        "dec_fc1": (neurons, 32),
        "dec_fc2": (neurons, neurons),
        "dec_out": (126, neurons),
    }
    state = {}
    for name, shape in sizes.items():
        state[f"bodyprior_{name}.weight"] = torch.randn(shape) / shape[1] ** 0.5
        state[f"bodyprior_{name}.bias"] = torch.randn(shape[0])
    return state


@pytest.mark.parametrize("kind", ["plain", "state_dict", "module", "safetensors"])
def test_vposer_by_its_own_names(tmp_path, kind):
    state, path = vposer(), tmp_path / "TR00_E096.pt"
    if kind == "safetensors":
        save_file({k: v for k, v in state.items() if "_dec_" in k}, path)
    else:
        saved = {f"module.{k}": v for k, v in state.items()} if kind == "module" else state
        torch.save({"state_dict": saved} if kind == "state_dict" else saved, path)
    decoder = VPoser(40, str(path))
    decoder.check()
    assert not any(p.requires_grad for n, p in decoder.named_parameters() if not n.startswith("latent"))
    z = torch.randn(5, 32)
    x = torch.nn.functional.leaky_relu(
        z @ state["bodyprior_dec_fc1.weight"].T + state["bodyprior_dec_fc1.bias"], 0.2
    )
    x = torch.nn.functional.leaky_relu(
        x @ state["bodyprior_dec_fc2.weight"].T + state["bodyprior_dec_fc2.bias"], 0.2
    )
    x = (x @ state["bodyprior_dec_out.weight"].T + state["bodyprior_dec_out.bias"]).view(5, 21, 3, 2)
    found = decoder.decode(z)
    assert_close(found[..., 0], x[..., 0] / x[..., 0].norm(dim=-1, keepdim=True), rtol=0, atol=1e-5)
    assert_close(found.det(), torch.ones(5, 21), rtol=0, atol=1e-5)
    assert torch.equal(decoder.decode(z), found)
    loose = VPoser(40, str(path), dropout=0.5)
    assert not torch.equal(loose.decode(z), found)  # in training; a latent still gets its gradient
    assert_close(loose.eval().decode(z), found)
    features = torch.randn(2, 40)
    decoder(features).sum().backward()
    assert decoder.latent.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"decoder_net.0.weight": torch.zeros(2, 2)}, r"it is of VPoser v2 \(V02_05\)"),
        ({"vp_model.decoder_net.3.weight": torch.zeros(2, 2)}, r"it is of VPoser v2 \(V02_05\)"),
        ({"bodyprior_enc_fc1.weight": torch.zeros(2, 2)}, "it has no bodyprior_dec_fc1.weight of VPoser v1"),
        (vposer(64), r"its dec_fc1.weight is \(64, 32\), not \(512, 32\) as of VPoser v1"),
        (vposer() | {"bodyprior_dec_out.bias": torch.full((126,), torch.nan)}, "dec_out.bias is not finite"),
        (vposer() | {"bodyprior_dec_out.bias": 3}, r"its dec_out.bias is \(\), not \(126,\)"),
    ],
)
def test_files_that_are_not_vposer_s(tmp_path, state, message):
    torch.save(state, tmp_path / "poser.pt")
    with pytest.raises(HapError, match=f"poser.pt: {message}"):
        VPoser(40, str(tmp_path / "poser.pt"))


MISSING = (
    r"no file of VPoser: nowhere\.pt; task\.model\.vposer=FILE is .*task\.model\.vposer=null does without"
)


def test_a_missing_vposer_is_told_before_a_training(people, tmp_path):
    with pytest.raises(HapError, match=MISSING):
        run("train", config("train", *NETWORK, f"data.root={people}"), tmp_path / "run")


def test_a_missing_vposer_is_told_before_a_test(people, tmp_path):
    file = official(tmp_path / "snapshot_10.pth.tar", without="vposer")
    with pytest.raises(HapError, match=MISSING):
        run("eval", config("eval", *NETWORK, f"data.root={people}", f"weights={file}"), tmp_path / "run")


# Mean parameters ----------------------------------------------------------------------------------------------


def mean_person(path: Path, layout: str) -> tuple[Path, torch.Tensor]:
    """Somebody who stands with hanging arms, as means of captured poses do."""
    rng = np.random.default_rng(0)
    pose = torch.from_numpy(rng.normal(0, 0.1, (24, 3)))
    pose[0] = torch.tensor([np.pi - 0.05, 0.02, 0])
    pose[16], pose[17] = torch.tensor([0, -0.3, -1.1]), torch.tensor([0, 0.3, 1.1])
    matrices = to_matrix(pose)
    two = (
        matrices[..., :2, :]
        if layout == "rows"
        else matrices[..., :2].mT
        if layout == "columns"
        else matrices[..., :2]
    )
    np.savez(path, pose=two.reshape(1, 144), shape=np.full((1, 10), 0.2), cam=[[0.9, 0.01, -0.02]])
    return path, matrices.float()


LAYOUTS = ("columns_interleaved", "columns", "rows")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mean_person_stands_in_the_layout_of_the_file_alone(tmp_path, layout, caplog):
    path, matrices = mean_person(tmp_path / "mean.npz", layout)
    with caplog.at_level("INFO"):
        model = small_hmr2(mean_params=str(path), mean_layout=layout).eval()
    assert f"mean pose read as {layout}" in caplog.text
    with torch.no_grad():
        for head in (model.decoder.pose, model.decoder.betas, model.decoder.camera):
            head.weight.zero_()
        outputs = model(torch.rand(1, 3, 64, 64), torch.empty(0), torch.empty(0))
    assert_close(outputs.rotations[0], matrices, rtol=0, atol=1e-5)
    assert_close(outputs.betas, torch.full((1, 10), 0.2))
    assert_close(outputs.translation, torch.tensor([[0.01, -0.02, 43.402777776]]))
    for other in set(LAYOUTS) - {layout}:
        with pytest.raises(
            HapError, match=rf"read as {other}.*as nobody stands.*columns_interleaved \(SPIN\)"
        ):
            read_mean_parameters(str(path), other)


def test_the_rest_pose_is_a_mean_person(tmp_path):
    np.savez(
        tmp_path / "rest.npz", pose=np.tile([1.0, 0, 0, 1, 0, 0], 24), shape=np.zeros(10), cam=[0.9, 0, 0]
    )
    read_mean_parameters(str(tmp_path / "rest.npz"), "columns_interleaved")
    with pytest.raises(HapError, match="as nobody stands"):
        read_mean_parameters(str(tmp_path / "rest.npz"), "columns")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pose": np.zeros(72), "shape": np.zeros(10), "cam": np.zeros(3)}, r"numbers|have \[72, 10, 3\]"),
        ({"pose": np.zeros(144), "shape": np.zeros(10)}, "is no .npz with pose, shape and cam"),
        ({"pose": np.array([{}], object), "shape": np.zeros(10), "cam": np.zeros(3)}, "is no .npz with pose"),
        ({"pose": np.full(144, np.nan), "shape": np.zeros(10), "cam": np.zeros(3)}, "as nobody stands"),
    ],
)
def test_files_that_are_not_mean_parameters(tmp_path, content, message):
    np.savez(tmp_path / "mean.npz", **content)
    with pytest.raises(HapError, match=message):
        read_mean_parameters(str(tmp_path / "mean.npz"), "columns_interleaved")
    with pytest.raises(HapError, match=r"none\.npz is no .npz"):
        read_mean_parameters(str(tmp_path / "none.npz"), "rows")
