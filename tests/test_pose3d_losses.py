"""Losses of 3D pose against those of the official code and numbers by hand; recipes and the order of the data sets."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_pose3d_model import NEAR, TINY, body_of, golden, meta_model, part, targets_of, task_of
from torch.testing import assert_close

from hap.body.rotations import from_6d, to_matrix
from hap.data.samplers import mixture
from hap.errors import HapError
from hap.losses import BodyPrediction, BodyTargets, CrowdNetLoss, Hmr2Loss
from hap.models.crowdnet import DEPTH, CrowdNet
from hap.models.pose3d import BodyOutput
from hap.optim import StepRecipe


def golden_prediction(values: dict) -> tuple[BodyPrediction, dict[str, torch.Tensor]]:
    """By the parts of the task from given outputs of the heads, and these, with gradients to come."""
    heads = {name: value.requires_grad_() for name, value in part(values, "pred/").items()}
    root = from_6d(heads["root_6d"], "columns_interleaved")
    body = to_matrix(heads["body_pose"].unflatten(1, (23, 3)))
    camera = heads["camera"]
    translation = torch.cat([camera[:, :2], DEPTH * camera[:, 2:].sigmoid()], dim=1)
    model = meta_model(CrowdNet, **TINY)
    rotations = torch.cat([root[:, None], body], dim=1)
    outputs = BodyOutput(rotations, heads["betas"], translation, heads["joint_coord"])
    return task_of(model, body_of(values)).prediction(outputs), heads


def test_losses_and_their_gradients_are_the_official_ones():
    values = golden("losses")
    said, heads = golden_prediction(values)
    assert_close(said.joints, values["derived/joints_3d"], **NEAR)
    assert_close(said.joints_2d, values["derived/joints_2d"], rtol=1e-5, atol=1e-4)
    targets = targets_of(values)
    losses = CrowdNetLoss()(said, targets)
    wanted = {("loss" if k == "total" else k): v.item() for k, v in part(values, "loss/").items()}
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(wanted, rel=1e-6)
    for name, errors in CrowdNetLoss().errors(said, targets).items():
        assert_close(errors.flatten(1).mean(1), values[f"loss_per_sample/{name}"], rtol=2e-6, atol=1e-7)
    losses["loss"].backward()
    for name, leaf in heads.items():
        assert_close(leaf.grad, values[f"grad/{name}"], rtol=1e-4, atol=2e-6)


def one_person(**changed) -> tuple[BodyPrediction, BodyTargets]:
    """At rest, whose targets are all that she is; and what is changed of either."""
    ones = torch.ones(1, 30)
    joints = torch.zeros(1, 30, 3)
    said = BodyPrediction(
        torch.eye(3).expand(1, 24, 3, 3), torch.zeros(1, 10), joints, joints[..., :2], joints[:, :15]
    )
    target = BodyTargets(
        joints, joints, ones, ones, joints, joints, ones, torch.zeros(1, 72), torch.ones(1, 72), torch.zeros(1, 10),
        torch.ones(1), torch.ones(1), torch.ones(1),
    )  # fmt: skip
    own = {
        name: value for name, value in changed.items() if name in BodyPrediction._fields and name != "betas"
    }
    return said._replace(**own), target._replace(**{k: v for k, v in changed.items() if k not in own})


def test_a_mean_over_what_is_masked_too():
    """By hand: |(1,2,3) - 0| with mask 1 and |0 - (1,1,1)| with mask 0.5 are 7.5 / 6; without depth 4 / 6."""
    joints, img = torch.zeros(1, 30, 3), torch.zeros(1, 15, 3)
    img[0, 0], joints[0, 1] = torch.tensor([1.0, 2, 3]), 1
    trunc = torch.zeros(1, 30)
    trunc[0, 0], trunc[0, 1] = 1, 0.5
    for has_3d, total in ((1.0, 7.5), (0.0, 4.0)):
        said, target = one_person(joint_img=img, trunc=trunc, has_3d=torch.tensor([has_3d]))
        target = target._replace(joint_img=joints)
        found = CrowdNetLoss()(said, target)["body_joint_img"].item()
        assert found == pytest.approx(total / 45 / 8)


@pytest.mark.parametrize("loss", [CrowdNetLoss(), Hmr2Loss()])
def test_losses_at_the_truth(loss):
    """Nothing, and a gradient that is a number though all rotations are the identity."""
    numbers = torch.tensor([1.0, 0, 0, 1, 0, 0]).repeat(1, 24, 1).requires_grad_()
    said, target = one_person()
    said = said._replace(rotations=from_6d(numbers, "columns_interleaved"))
    losses = loss(said, target)
    assert losses["loss"].item() == 0
    losses["loss"].backward()
    assert numbers.grad.isfinite().all()


def test_hmr2_sums_over_a_person():
    """Each term by hand, whatever the batch: the sum over 48 people of HMR 2.0's release."""
    turned = torch.eye(3).repeat(1, 24, 1, 1)
    turned[0, 0], turned[0, 5], turned[0, 7] = to_matrix(torch.tensor([[0, 0, torch.pi / 2]] * 3))
    joints_2d = torch.zeros(1, 30, 2)
    joints_2d[0, 3], joints_2d[0, 4] = 32, 64
    joints, valid, known = torch.zeros(1, 30, 3), torch.ones(1, 30), torch.ones(1, 72)
    joints[0, 2], joints[0, 4] = 0.5, 9
    valid[0, 4], known[0, 21:24] = 0, 0
    said, target = one_person(
        rotations=turned,
        joints_2d=joints_2d,
        joints=joints,
        valid=valid,
        pose_valid=known,
        betas=torch.full((1, 10), 2.0),
    )
    wanted = {
        "joints_2d": 0.01 * 1,
        "joints_3d": 0.05 * 1.5,
        "root": 0.001 * 4,
        "body": 0.001 * 4,
        "betas": 0.0005 * 40,
    }
    wanted = {name: 48 * value for name, value in wanted.items()}
    found = {name: value.item() for name, value in Hmr2Loss()(said, target).items()}
    assert found == pytest.approx(wanted | {"loss": sum(wanted.values())}, rel=1e-5)
    twice = [type(x)(*(None if t is None else torch.cat([t, t]) for t in x)) for x in (said, target)]
    assert Hmr2Loss()(*twice)["loss"].item() == pytest.approx(found["loss"])
    unfitted = Hmr2Loss()(said, target._replace(fitted=torch.zeros(1), has_3d=torch.zeros(1)))
    assert unfitted["loss"].item() == pytest.approx(wanted["joints_2d"])


def test_recipes_of_the_official_code_and_of_ours():
    """Ten epochs of 1e-3 and one of 1e-4 for every parameter; the encoder's own peak where one is given."""
    model = CrowdNet(**TINY)
    recipe = StepRecipe(epochs=11, lr=1e-3, optimizer="sgd", weight_decay=0, milestones=(10,))
    optimizer, schedule = recipe.build(model, 1536, 7)
    assert type(optimizer) is torch.optim.SGD
    assert {(g["lr"], g["weight_decay"], g["momentum"]) for g in optimizer.param_groups} == {(1e-3, 0, 0)}
    factor = schedule.lr_lambdas[0]
    assert [1e-3 * factor(7 * epoch + step) for epoch in range(11) for step in (0, 6)] == pytest.approx(
        20 * [1e-3] + 2 * [1e-4]
    )
    own = StepRecipe(epochs=11, lr=1e-4, encoder_lr=2e-5, milestones=(10,), weight_decay=0.05)
    groups = own.build(model, 1536, 7)[0].param_groups
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        encoder = name.startswith(("pos_embed", "patch_embed", "blocks", "last_norm"))
        assert rates[id(parameter)] == pytest.approx(2e-5 if encoder else 1e-4), name


# Pools of data sets ------------------------------------------------------------------------------------------


def sets(**sizes: int) -> SimpleNamespace:
    starts = np.cumsum([0, *sizes.values()])
    return SimpleNamespace(parts={name: range(size) for name, size in sizes.items()}, starts=starts)


def test_two_pools_share_an_epoch():
    """10 and 4 people: the first once each, the others twice and two more at random; another order each epoch."""
    plan = mixture(sets(a=10, b=4), 4, 0, pools=[["a"], ["b"]])
    extra = set()
    for epoch in range(30):
        rows = plan(epoch)
        assert rows.shape == (5, 4)
        counts = np.bincount(rows.ravel(), minlength=14)
        assert (counts[:10] == 1).all()
        assert counts[10:].sum() == 10
        assert (counts[10:] >= 2).all()
        extra |= {tuple(counts[10:])}
        assert np.array_equal(rows, plan(epoch))
    assert len(extra) > 3
    assert not np.array_equal(plan(0), plan(1))
    assert not np.array_equal(plan(0), mixture(sets(a=10, b=4), 4, 1, pools=[["a"], ["b"]])(0))


def test_sets_of_a_pool_are_one_and_need_not_lie_together():
    plan = mixture(sets(h36m=3, coco=2, muco=4, mpii=3), 2, 0, pools=[["h36m", "muco"], ["coco", "mpii"]])
    counts = np.bincount(plan(0).ravel(), minlength=12)
    assert counts.sum() == 14
    assert (counts[[0, 1, 2, 5, 6, 7, 8]] == 1).all()
    assert (counts[[3, 4, 9, 10, 11]] >= 1).all()


def test_shares_of_an_epoch_and_what_is_left_of_it():
    """Three quarters of one and a quarter of the other; the last, incomplete step is left out."""
    plan = mixture(sets(a=9, b=9), 5, 0, pools=[["a"], ["b"]], shares=[3, 1])
    rows = plan(0)
    assert rows.shape == (7, 5)  # 27 and 9
    few = mixture(sets(a=9), 4, 0, pools=[["a"], ["b"]], shares=[0.25, 0.75])(0)
    assert few.shape == (2, 4)
    assert len(np.unique(few)) == 8


@pytest.mark.parametrize(
    ("arguments", "total", "message"),
    [
        ({"pools": [["a"]]}, 2, "b is in no pool"),
        ({"pools": [["a"], ["b"]], "shares": [1]}, 2, "2 pools need as many shares above 0"),
        ({"pools": [["a"], ["b"]], "shares": [1, 0]}, 2, "2 pools need as many shares above 0"),
        ({"pools": [["a"], ["b"]]}, 21, "an epoch has 20 samples, fewer than total_batch_size=21"),
    ],
)
def test_pools_that_do_not_fit(arguments, total, message):
    with pytest.raises(HapError, match=message):
        mixture(sets(a=10, b=4), total, 0, **arguments)
