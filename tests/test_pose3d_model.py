"""The networks of 3D pose and their losses, against numbers of the official implementation and numbers by hand.

tests/data/pose3d_net_tiny.npz, pose3d_net_base.npz, pose3d_losses.npz: golden files of the official code.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hap.body.arrays import Bodies, BodyArrays
from hap.body.camera import project, to_full
from hap.body.joints import GRAPH15, places
from hap.body.rotations import from_6d, to_axis_angle, to_matrix
from hap.errors import HapError
from hap.losses import BodyPrediction, BodyTargets, CrowdNetLoss
from hap.models.checkpoint import load_weights
from hap.models.crowdnet import DEPTH, EDGES, CrowdNet, GraphBlock, adjacency, joint_maps
from hap.models.hmr2 import Hmr2
from hap.models.pose3d import BodyOutput
from hap.optim import StepRecipe, parameter_groups
from hap.tasks.pose3d import CROP_CAMERA, Pose3d

DATA = Path(__file__).parent / "data"
IMAGE = {"img_size": (256, 256), "patch_size": 16}
TINY = IMAGE | {"embed_dim": 32, "depth": 3, "num_heads": 4, "feature_dim": 48, "graph_dim": 16}
BASE = IMAGE | {"embed_dim": 768, "depth": 12, "num_heads": 12}
NEAR = {"rtol": 1e-5, "atol": 1e-5}
# Places of joints are sampled at, and so rounding grows: the golden numbers are as far from those of float64 as ours.
HEADS = {"rtol": 1e-4, "atol": 1e-4}


def golden(name: str) -> dict[str, torch.Tensor]:
    with np.load(DATA / f"pose3d_{name}.npz") as file:
        return {k: torch.from_numpy(file[k]) for k in file.files if file[k].dtype.kind != "U"}


def part(values: dict, prefix: str) -> dict:
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


def body_of(values: dict) -> Bodies:
    arrays = {k: v.numpy() for k, v in part(values, "body/").items()}
    extra = np.zeros((9, len(arrays["v_template"])), np.float32)
    extra[3] = arrays.pop("head_top_row")
    face = tuple(arrays.pop("face_vertices").tolist())
    return Bodies("golden", BodyArrays(**arrays, faces=np.array([[0, 1, 2]]), face_vertices=face), extra)


def task_of(model: nn.Module | None, bodies: Bodies, **options) -> Pose3d:
    model = nn.Module() if model is None else model
    return Pose3d(
        model, StepRecipe(epochs=1, lr=1.0), None, bodies=bodies, **{"loss": CrowdNetLoss()} | options
    )


def snapshot(state: dict, path: Path, prefix: str = "module.", without: str = "nothing") -> Path:
    """As the official code saves an epoch, with the body model and the half of VPoser that nobody needs."""
    others = {
        "human_model_layer.th_betas": torch.zeros(1, 10),
        "human_model_layer.th_faces": torch.zeros(5, 3, dtype=torch.long),
        "vposer.vposer.bodyprior_enc_fc1.weight": torch.zeros(8, 63),
        "vposer.vposer.bodyprior_enc_bn1.num_batches_tracked": torch.tensor(3),
    }
    norms = [name for name in state if name.endswith("running_var")]
    others |= {name.replace("running_var", "num_batches_tracked"): torch.tensor(3) for name in norms}
    network = {prefix + name: value for name, value in (state | others).items() if without not in name}
    torch.save({"epoch": 10, "network": network, "optimizer": {"state": {}, "param_groups": []}}, path)
    return path


@pytest.fixture
def tiny(tmp_path) -> tuple[CrowdNet, dict[str, torch.Tensor]]:
    """The network of the golden file, its weights read as users read them; and the file."""
    values = golden("net_tiny")
    model = CrowdNet(vposer="nowhere.pt", vposer_neurons=64, **TINY)
    report = load_weights(model, snapshot(part(values, "state/"), tmp_path / "snapshot_10.pth.tar"))
    assert not report.missing
    assert not report.unexpected
    assert "source crowdnet, by its entries" in report.origin
    return model, values


def inputs(values: dict) -> tuple[torch.Tensor, ...]:
    return values["images"] / 255, values["joints"], values["joints_mask"][..., 0]


def targets_of(values: dict) -> BodyTargets:
    target, mask = part(values, "target/"), part(values, "mask/")
    return BodyTargets(
        joint_img=target["orig_joint_img"],
        joint_cam=target["orig_joint_cam"],
        valid=mask["orig_joint_valid"][..., 0],
        trunc=mask["orig_joint_trunc"][..., 0],
        fit_img=target["fit_joint_img"],
        fit_cam=target["fit_joint_cam"],
        fit_trunc=mask["fit_joint_trunc"][..., 0],
        pose=target["pose_param"],
        pose_valid=mask["fit_param_valid"],
        betas=target["shape_param"],
        betas_valid=torch.ones(len(target["shape_param"])),
        fitted=mask["is_valid_fit"],
        has_3d=mask["is_3D"],
    )


def check_outputs(task: Pose3d, outputs: BodyOutput, wanted: dict) -> BodyPrediction:
    """Heads, mesh and joints."""
    said = task.prediction(outputs)
    mesh = task.body.neutral(outputs.rotations, outputs.betas, outputs.translation).vertices
    root = (task.body.joints30 @ mesh)[:, :1]
    assert_close(outputs.joint_coord, wanted["joint_coord"], **NEAR)
    assert_close(outputs.joint_score, wanted["joint_score"], **NEAR)
    assert_close(outputs.rotations[:, 0], from_6d(wanted["root_6d"], "columns_interleaved"), **HEADS)
    assert_close(to_axis_angle(outputs.rotations).flatten(1), wanted["pose"], **HEADS)
    assert_close(outputs.betas, wanted["betas"], **HEADS)
    assert_close(outputs.translation, wanted["camera_translation"], **HEADS)
    assert_close(mesh - root, wanted["vertices"], **HEADS)
    assert_close(said.joints, wanted["joints_3d"], **HEADS)
    assert_close(said.joints_2d, wanted["joints_2d"], rtol=1e-4, atol=2e-2)
    return said


# CrowdNet ---------------------------------------------------------------------------------------------------


def test_evaluation_agrees_with_the_official_code(tiny):
    model, values = tiny
    seen: dict[str, torch.Tensor] = {}

    def keep(module: nn.Module, given: tuple, result: torch.Tensor) -> None:
        name = next(n for n, m in model.named_modules() if m is module)
        seen[name], seen[f"{name} in"] = result, given[0]

    for layer in (model.pose2feat, model.last_norm, model.adapter, model.pose_decoder.latent):
        layer.register_forward_hook(keep)
    wanted = part(values, "eval/")
    with torch.no_grad():
        outputs = model.eval()(*inputs(values))
    assert_close(seen["pose2feat in"][:, :32], wanted["early"], **NEAR)
    assert_close(seen["pose2feat in"][:, 32:], values["joint_maps_16"], rtol=0, atol=1e-6)
    assert_close(seen["pose2feat"], wanted["fused"], **NEAR)
    assert_close(model.to_map(seen["last_norm"]), wanted["late"], **NEAR)
    assert_close(seen["adapter"], wanted["feature"], **NEAR)
    assert_close(seen["pose_decoder.latent"], wanted["latent"], **HEADS)
    said = check_outputs(task_of(model, body_of(values)), outputs, wanted)
    assert_close(said.joint_img, wanted["joint_img"], rtol=1e-5, atol=1e-4)


def in_official_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters, gradients or statistics of ours, those of the 15 joints apart, by the names of the official code."""
    found = {}
    for name, value in tensors.items():
        block = re.fullmatch(r"rotation_net\.(first|pairs\.(\d)\.(\d))\.(norm\.)?(\w+)", name)
        if block:
            _, pair, half, norm, kind = block.groups()
            layer = "0" if pair is None else f"{int(pair) + 1}.graph_block{int(half) + 1}"
            for j, row in enumerate(value.unflatten(0, (15, -1)) if norm else value):
                found[f"rotation_net.graph_block.{layer}.fcbn_list.{j}.{int(bool(norm))}.{kind}"] = row
            continue
        if name.startswith("adapter."):
            name = name.replace("adapter", "vit_conv_layer")
        elif name.startswith("pose2feat."):
            name = name.replace("pose2feat", "pose2feat.conv")
        elif name.startswith("position_net."):
            name = name.replace("position_net", "position_net.conv.0")
        elif name.startswith("pose_decoder.latent."):
            name = name.replace("pose_decoder.latent", "rotation_net.pose_out.0")
        elif name.startswith("rotation_net."):
            name = re.sub(r"_out\.", "_out.0.", name)
        else:
            name = f"backbone.{name}"
        found[name] = value
    return found


def test_a_training_step_agrees_with_the_official_code(tiny):
    """Batch statistics, seven terms, the norm of every gradient, running statistics after."""
    model, values = tiny
    outputs = model.train()(*inputs(values))
    said = check_outputs(task_of(model, body_of(values)), outputs, part(values, "train/"))
    losses = CrowdNetLoss()(said, targets_of(values))
    wanted = {("loss" if k == "total" else k): v.item() for k, v in part(values, "loss/").items()}
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(wanted, rel=2e-5)

    losses["loss"].backward()
    grads = {n: p.grad for n, p in model.named_parameters() if not n.startswith("pose_decoder.dec_")}
    norms = {name: grad.norm().item() for name, grad in in_official_names(grads).items()}
    assert all(p.grad is None for p in model.pose_decoder.dec_out.parameters())
    official = {name: value.item() for name, value in part(values, "gradnorm/").items()}
    assert norms.keys() == official.keys()
    for (
        name,
        norm,
    ) in official.items():  # to 3e-3: the input of one ReLU is 4e-5, and on either side by rounding
        before_norm = name == "pose2feat.conv.0.bias" or re.search(r"fcbn_list\.\d+\.0\.bias", name)
        assert norms[name] == pytest.approx(norm, rel=3e-3, abs=1e-4 if before_norm else 1e-7), name

    state = in_official_names({name: b for name, b in model.named_buffers() if ".running_" in name})
    for name, value in part(values, "after_train/").items():
        assert_close(state[name], value, **NEAR)


def test_weights_are_not_spent_on_what_is_frozen(tiny):
    """The official optimiser has no adapter and no VPoser; a repaired one has the adapter."""
    frozen = CrowdNet(adapter_trainable=False, vposer="nowhere.pt", vposer_neurons=64, **TINY)
    for model, learns in ((frozen, False), (tiny[0], True)):
        names = {name for group in parameter_groups(model, 0.1) for name in group["names"]}
        assert not any(name.startswith("pose_decoder.dec_") for name in names)
        assert ("adapter.weight" in names) is learns


def test_another_number_of_people_changes_nobody(tiny):
    """Three, for which the official code's cross product runs over the people."""
    model, values = tiny
    images, joints, mask = inputs(values)
    with torch.no_grad():
        three = model.eval()(images[:3], joints[:3], mask[:3])
    assert_close(three.rotations, to_matrix(values["eval/pose"][:3].unflatten(1, (24, 3))), **HEADS)


def by_formula(name: str, shape: tuple[int, ...], rank: int, seed: int) -> np.ndarray:
    x = np.random.RandomState(seed + rank).standard_normal(int(np.prod(shape))).reshape(shape)
    if name.endswith("running_var"):
        return 1 + 0.25 * np.abs(x)
    if name.endswith("running_mean") or name == "backbone.pos_embed":
        return 0.1 * x
    if len(shape) < 2:
        value = 1 + 0.1 * x if name.endswith(".weight") else 0.1 * x
    else:
        gains = {
            "position_net": 6, r"patch_embed\.proj": 4, r"attn\.proj|mlp\.fc2": 0.3,
            r"rotation_net\.graph_block\.0\.fcbn_list\.\d+\.0\.": 3, r"root_pose_out": 0.5,
            r"(pose|shape|cam)_out\.0": 1.5, "bodyprior_dec_out": 0.5,
        }  # fmt: skip
        gain = next((g for pattern, g in gains.items() if re.search(pattern, name)), 1)
        value = x * gain / np.sqrt(x.size / shape[0])
    if name == "rotation_net.root_pose_out.0.bias":
        value += (1, 0, 0, -0.5, 0, 0.85)
    if name.endswith("bodyprior_dec_out.bias"):
        value += np.tile((1, 0, 0, 1, 0, 0), 21)
    return value


def body_by_formula(seed: int) -> Bodies:
    rng = np.random.RandomState(seed)

    def rows(count: int, columns: int, each: int, low: float) -> np.ndarray:
        place, weight = rng.randint(0, columns, (count, each)), rng.uniform(low, 1, (count, each))
        result = np.zeros((count, columns))
        np.add.at(result, (np.arange(count)[:, None], place), weight / weight.sum(1, keepdims=True))
        return result.astype(np.float32)

    arrays = {
        "v_template": (rng.standard_normal((6890, 3)) * (0.3, 0.5, 0.15)).astype(np.float32),
        "shapedirs": (0.03 * rng.standard_normal((6890, 3, 10))).astype(np.float32),
        "posedirs": (0.01 * rng.standard_normal((6890, 3, 207))).astype(np.float32),
        "J_regressor": rows(24, 6890, 6, 0.2),
    }
    extra = np.zeros((9, 6890), np.float32)
    extra[3] = rows(1, 6890, 6, 0.2)
    arrays["weights"] = rows(6890, 24, 4, 0.1)
    return Bodies("formula", BodyArrays(**arrays, faces=np.array([[0, 1, 2]])), extra)


def meta_model(cls: type, **options) -> nn.Module:
    with torch.device("meta"):
        return cls(**options)


@pytest.mark.slow
def test_the_network_at_its_real_sizes(tmp_path):
    """ViT-B and 6,890 vertices by formula. The shapes come from the model, so a name that is not the official one
    would also have other numbers."""
    values, names = golden("net_base"), str(np.load(DATA / "pose3d_net_base.npz")["names"])
    model = meta_model(CrowdNet, vposer="nowhere.pt", adapter_trainable=False, **BASE)
    tensors = {n: t for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    decoder = {n: t for n, t in tensors.items() if n.startswith("pose_decoder.dec_")}
    shapes = {
        n: tuple(t.shape)
        for n, t in in_official_names({n: t for n, t in tensors.items() if n not in decoder}).items()
    }
    for name, tensor in decoder.items():
        shapes[f"vposer.vposer.bodyprior_{name.removeprefix('pose_decoder.')}"] = tuple(tensor.shape)
    assert sorted(shapes) == sorted(re.findall(r'"([^"]+)"', names))
    assert len(shapes) == 983
    seed = int(values["seed_weights"])
    network = {
        f"module.{name}": torch.from_numpy(by_formula(name, shapes[name], rank, seed).astype(np.float32))
        for rank, name in enumerate(sorted(shapes))
    }
    state, _ = model.adapted(
        {re.sub(r"^module\.(backbone\.|vposer\.(?=vposer))?", "", n): t for n, t in network.items()}, False
    )
    model.load_state_dict(state, strict=False, assign=True)
    for module in model.modules():
        if isinstance(module, GraphBlock):
            module.adjacency = adjacency()
    images, joints, mask = inputs(values)
    seen = []
    for layer in (model.last_norm, model.adapter):
        layer.register_forward_hook(lambda module, given, result: seen.append(result))
    with torch.no_grad():
        outputs = model.eval()(images, joints, mask)
    late, feature = seen
    assert_close(late.mean(1), values["late_mean"], rtol=0, atol=2e-5)
    assert_close(late.std(1, correction=0), values["late_std"], rtol=0, atol=2e-5)
    assert_close(feature[:, ::64], values["feature_corner"], rtol=0, atol=2e-5)
    task = task_of(model, body_by_formula(int(values["seed_body"])))
    said = task.prediction(outputs)
    mesh = task.body.neutral(outputs.rotations, outputs.betas, outputs.translation).vertices
    for found, name, atol in (
        (outputs.joint_coord, "joint_coord", 2e-5),
        (outputs.joint_score, "joint_score", 2e-5),
        (outputs.betas, "betas", 2e-5),
        (to_axis_angle(outputs.rotations).flatten(1), "pose", 2e-5),
        (outputs.translation, "camera_translation", 3e-5),
        (said.joint_img, "joint_img", 2e-4),
        (said.joints, "joints_3d", 3e-5),
        (said.joints_2d, "joints_2d", 4e-4),
        ((mesh - (task.body.joints30 @ mesh)[:, :1])[:, ::10], "vertices", 3e-5),
    ):
        assert_close(found, values[name], rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def count(module: nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts():
    model = meta_model(CrowdNet, vposer="nowhere.pt", adapter_trainable=False, **BASE)
    assert count(model.patch_embed) == 590_592
    assert model.pos_embed.numel() == 197_376
    assert [count(block) for block in model.blocks] == [7_087_872] * 12
    encoder = sum(map(count, (model.patch_embed, *model.blocks, model.last_norm))) + model.pos_embed.numel()
    assert encoder == 85_843_968
    assert count(model.pose2feat) == 5_518_080
    assert count(model.position_net) == 245_880
    net, latent = model.rotation_net, model.pose_decoder.latent
    assert count(net.first) == 3_945_600
    assert count(net.pairs) == 2_012_160
    assert [count(m) for m in (net.root_pose_out, latent, net.shape_out, net.cam_out)] == [
        11_526,
        61_472,
        19_210,
        5_763,
    ]
    assert count(net) + count(latent) == 6_055_731
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 97_663_659
    assert count(model.adapter) == 1_574_912
    assert count(model.pose_decoder) - count(latent) == 344_190
    assert count(meta_model(CrowdNet, **BASE).pose_decoder) == 242_046


def test_patches_and_positions():
    """The last two rows and columns of a picture are never seen; 16 x 12 positions become 16 x 16 as officially."""
    wide, narrow = (meta_model(CrowdNet, **TINY), meta_model(Hmr2, **BASE | {"img_size": (256, 192)}))
    assert (wide.grid, narrow.grid) == ((16, 16), (16, 12))
    assert wide.patch_embed(torch.empty(1, 3, 256, 256, device="meta")).shape == (1, 256, 32)
    assert narrow.patch_embed(torch.empty(1, 3, 256, 192, device="meta")).shape == (1, 192, 768)


# Maps, graph, camera -----------------------------------------------------------------------------------------


def test_joint_maps_by_hand():
    joints, mask = torch.tensor([[[10.5, 20.0]]]), torch.ones(1, 1)
    full = joint_maps(joints, mask, (64, 64))[0, 0]
    assert full[20, 10].item() == pytest.approx(0.980198673)
    u = v = np.arange(64)
    literal = np.exp(-(((u[None, :] - 10.5) / 2.5) ** 2) / 2 - ((v[:, None] - 20) / 2.5) ** 2 / 2)
    np.testing.assert_allclose(full, literal, atol=1e-7)
    small = joint_maps(joints, mask, (16, 16))[0, 0]
    assert torch.equal(small, full[::4, ::4])
    assert [small[5, 2].item(), small[5, 3].item(), small[4, 2].item()] == pytest.approx(
        [0.606530660, 0.835270211, 0.168638147]
    )
    assert not joint_maps(joints, 0 * mask, (16, 16)).any()
    far = joint_maps(torch.tensor([[[1e6, -1e6]]]), mask, (16, 16))
    assert not far.any()


@pytest.fixture(scope="module")
def volume() -> CrowdNet:
    """A network whose features are the logits of its volume."""
    model = CrowdNet(**TINY)
    model.position_net = nn.Identity()
    return model


def test_soft_argmax_by_hand(volume):
    coord, score = volume.positions(torch.zeros(1, 120, 8, 8))
    assert_close(coord, torch.full((1, 15, 3), 3.5), rtol=0, atol=1e-5)
    assert_close(score, torch.full((1, 15, 1), 0.001953125), rtol=0, atol=1e-8)
    logits = torch.zeros(1, 15, 8, 8, 8)
    logits[:, :, 2, 5, 7] = 10  # z, y, x
    coord, score = volume.positions(logits.flatten(1, 2))
    assert_close(coord[0, 0], torch.tensor([6.9204836, 4.9659209, 2.0340755]), rtol=0, atol=1e-4)
    assert logits[0, 0].flatten().softmax(0).max().item() == pytest.approx(0.9773262, abs=1e-4)
    assert score[0, 0].item() == pytest.approx(0.8393510, abs=1e-4)


def test_cells_begin_at_their_corner_or_middle():
    ends = torch.tensor([0.0, 7])
    assert CrowdNet(**TINY).to_units(ends).tolist() == [0, 56]
    assert CrowdNet(cell_centres=True, **TINY).to_units(ends).tolist() == [4, 60]


def test_graph_by_hand():
    a = adjacency().double()
    degrees = torch.bincount(torch.tensor(EDGES).flatten(), minlength=15) + 1
    assert degrees.tolist() == [4, 4, 4, 4, 4, 3, 3, 5, 2, 4, 4, 4, 4, 3, 3]
    row0, row7 = torch.zeros(2, 15).double()
    row0[[0, 1, 2]], row0[7] = 0.25, 0.223606798
    row7[[0, 9, 10]], row7[7], row7[8] = 0.223606798, 0.2, 0.316227766
    assert_close(a[0], row0, rtol=0, atol=1e-7)
    assert_close(a[7], row7, rtol=0, atol=1e-7)
    assert a.sum().item() == pytest.approx(14.900164062, abs=1e-5)
    spread = [
        2.3152476, 1.5, 1.75, 3.4433757, 3.9820508, 4.5326921, 4.8213672, 8.1783513, 6.2135944, 9.0652476, 9.3152476,
        11.7527767, 12.2914519, 12.1754265, 12.4641016,
    ]  # fmt: skip
    assert_close(a @ torch.arange(15).double(), torch.tensor(spread).double(), rtol=0, atol=1e-5)


def test_joints_of_the_graph_are_of_the_body():
    assert places(GRAPH15).tolist() == [0, 1, 2, 4, 5, 7, 8, 12, 29, 16, 17, 18, 19, 20, 21]


@pytest.mark.parametrize(("third", "depth"), [(0.0, 24.4140625), (-2.0, 5.820455177), (2.0, 43.007669823)])
def test_the_place_that_crowdnet_gives(third, depth):
    assert DEPTH == 48.828125
    model = CrowdNet(**TINY).eval()
    with torch.no_grad():
        model.rotation_net.cam_out.weight.zero_()
        model.rotation_net.cam_out.bias.copy_(torch.tensor([0.1, -0.2, third]))
        found = model(torch.rand(1, 3, 256, 256), torch.zeros(1, 30, 2), torch.zeros(1, 30)).translation
    assert_close(found, torch.tensor([[0.1, -0.2, depth]]), rtol=1e-6, atol=0)


def test_camera_by_hand():
    camera = torch.tensor(CROP_CAMERA, dtype=torch.float64)
    points = torch.tensor([[0, 0, 0], [0.3, -0.5, 0.2]]).double() + torch.tensor([0.1, -0.2, 24.4140625])
    found = project(points, camera, eps=CrowdNet.depth_eps)
    wanted = torch.tensor([[148.479916, 87.040168], [209.254034, -14.194560]]).double()
    assert_close(found, wanted, rtol=0, atol=1e-4)
    assert_close(
        found / 4, torch.tensor([[37.119979, 21.760042], [52.313509, -3.548640]]).double(), rtol=0, atol=1e-4
    )
    picture = torch.tensor([[5000.0, 5000, 500, 400]])
    full = to_full(
        torch.tensor([[0, 0, DEPTH]]), torch.tensor([[500.0, 400]]), torch.tensor([250.0]), picture
    )
    assert_close(full, torch.tensor([[0.0, 0, 50]]))


# HMR 2.0 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "heads", "total"), [(768, 12, 36_401_309), (1280, 16, 39_547_037)])
def test_parameters_of_the_decoder(width, heads, total):
    model = meta_model(
        Hmr2, **BASE | {"img_size": (256, 192), "embed_dim": width, "num_heads": heads, "depth": 1}
    )
    assert count(model.decoder) == total
    assert (
        sum(p.numel() for p in model.decoder.layers.parameters()) / 6
        == 6_039_552 + 2 * 1024 * (width - 768) / 2
    )


def small_hmr2(**options) -> Hmr2:
    sizes = {"img_size": (64, 48), "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
    return Hmr2(decoder_dim=32, decoder_depth=2, decoder_heads=2, **sizes | options)


def test_the_decoder_literally():
    """As HMR 2.0 writes it, with the attention of one query by hand."""
    torch.manual_seed(0)
    model = small_hmr2().double().eval()
    context = torch.randn(3, 12, 32).double()
    d = model.decoder
    x = d.token.bias + d.position[0, 0]
    x = x.expand(3, 32)
    for layer in d.layers:
        _, v = layer.own.kv(layer.own.norm(x)).chunk(
            2, dim=-1
        )  # a token that looks at itself sees itself alone
        x = x + layer.own.out(v)
        q = layer.other.q(layer.other.norm(x)).reshape(3, 2, 64)
        k, v = (t.reshape(3, 12, 2, 64) for t in layer.other.kv(context).chunk(2, dim=-1))
        weight = (torch.einsum("nhc,nlhc->nhl", q, k) * 64**-0.5).softmax(2)
        x = x + layer.other.out(torch.einsum("nhl,nlhc->nhc", weight, v).reshape(3, 128))
        x = x + layer.mlp[3](torch.nn.functional.gelu(layer.mlp[1](layer.mlp[0](x))))
    for found, head in zip(d(context), (d.pose, d.betas, d.camera), strict=True):
        assert_close(found, head(x).float(), rtol=1e-5, atol=1e-6)


def test_hmr2_begins_with_somebody_who_faces_the_camera():
    """s = 0.9 is 43.40 m; only the middle columns of the crop are looked at."""
    torch.manual_seed(0)
    model = small_hmr2().eval()
    images, nothing = torch.rand(2, 3, 64, 64), torch.empty(2, 0)
    with torch.no_grad():
        for layer in (model.decoder.pose, model.decoder.betas, model.decoder.camera):
            layer.weight.zero_()
        outputs = model(images, nothing, nothing)
        assert_close(outputs.rotations[:, 0], torch.diag(torch.tensor([1.0, -1, -1])).expand(2, 3, 3))
        assert_close(outputs.rotations[:, 1:], torch.eye(3).expand(2, 23, 3, 3))
        assert_close(outputs.translation, torch.tensor([[0, 0, 43.402777776]]).expand(2, 3))
        assert not outputs.betas.any()
        nn.init.normal_(model.decoder.pose.weight)
        nn.init.normal_(model.decoder.layers[0].other.out.weight)
        edges = images.clone()
        edges[..., :8], edges[..., 56:] = 0, 1
        first, second = model(images, nothing, nothing), model(edges, nothing, nothing)
        assert torch.equal(first.rotations, second.rotations)
        edges[..., 8:20] = 0
        assert not torch.allclose(first.rotations, model(edges, nothing, nothing).rotations)


def test_the_body_is_float32_under_autocast(tiny):
    """Half precision knows depths of 24 m to 16 mm, or worse."""
    model, values = tiny
    task = task_of(model, body_of(values))
    images, joints, mask = inputs(values)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model.eval()(images, joints, mask)
    assert {t.dtype for t in outputs} == {torch.float32}
    at = torch.tensor([[0, 0, 24.41]]).expand(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        mesh = [
            task.body.neutral(outputs.rotations, outputs.betas, t).joints
            for t in (at, at + torch.tensor([0, 0, 1e-4]))
        ]
    apart = (mesh[1] - mesh[0])[..., 2]
    assert_close(apart, torch.full_like(apart, 1e-4), rtol=0.1, atol=0)


def test_another_grid_is_refused():
    with pytest.raises(HapError, match="16 x 12 patches, the network is made for 16 x 16"):
        CrowdNet(**TINY | {"img_size": (256, 192)})
