"""What 3D pose is trained on, put together on the device: fitted bodies become joints in the crop.

Legend: N people.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from hap.body.camera import project
from hap.body.joints import H36M, places
from hap.body.model import GenderedBody
from hap.body.rotations import about_z, to_axis_angle, to_matrix
from hap.losses import BodyTargets

UNITS = 64  # of the crop's side, and of the depth of 2 m around the root
GOOD_FIT = 0.025  # metres that a fit may be off the data set's joints
LARGEST_BETA = 3.0  # fits beyond are no people
# Joints that the fits do not know: ankles, toes, wrists, hands.
UNKNOWN = (7, 8, 10, 11, 20, 21, 22, 23)

MpiiFit = Literal["fixed", "official", "off"]
LargeBetas = Literal["fixed", "official"]


@torch.no_grad()
def body_targets(
    batch: dict[str, Tensor],
    body: GenderedBody,
    mpii_fit: MpiiFit = "fixed",
    large_betas: LargeBetas = "fixed",
) -> BodyTargets:
    """
    Args:
        batch: of `Pose3dTrain`.
        mpii_fit: fits of MPII; `official` trains on joints that are not relative to the root and not turned with the
            crop, `off` on none.
        large_betas: fits with a coefficient beyond 3; `official` trains them towards the mean shape, while their joints
            stay; else the shape is not trained on.
    """
    turn = about_z(-batch["turn"])
    pose = batch["pose"].unflatten(1, (24, 3))
    rotations = to_matrix(pose)
    vertices = body(rotations, batch["betas"], batch["trans"], batch["gender"].long())
    joints, camera = _mirrored(body.joints30 @ vertices, batch)
    root = joints[:, :1]
    relative = joints - root

    absolute = batch["absolute_fit"] > 0
    official = (absolute & (mpii_fit == "official"))[:, None, None]
    # There the camera is the picture's own, and a mirrored body is moved until its root is at the mirrored pixel.
    moved = (camera - batch["camera"])[:, None, 2:] / camera[:, None, :2] * root[..., 2:]
    fit_cam = torch.where(official, joints + F.pad(moved, (0, 1)), relative @ turn.mT)
    turned = to_axis_angle(turn @ rotations[:, 0])[:, None]
    pose = torch.cat([torch.where(official, pose[:, :1], turned), pose[:, 1:]], dim=1).flatten(1)

    xy = project(joints, camera[:, None]).nan_to_num(0, 0, 0)  # without a fit they lie in the camera
    xy = xy @ batch["to_units"][:, :, :2].mT + batch["to_units"][:, None, :, 2]
    fit_img = torch.cat([xy, (relative[..., 2:] + 1) * (UNITS / 2)], dim=2)
    fit_trunc = ((fit_img >= 0) & (fit_img < UNITS)).all(2).float()

    exact = batch["exact"][:, None] > 0  # the body's joints are the data set's
    joints3d = batch["joints3d"]
    own_img = torch.cat([batch["joints"], (joints3d[..., 2:] + 1) * (UNITS / 2)], dim=2)
    fitted = batch["fitted"]
    if body.h36m is not None:
        fitted = fitted * (_misfit(body.h36m @ vertices, joints3d, batch["checked"]) <= GOOD_FIT)
    if mpii_fit == "off":
        fitted = fitted * ~absolute

    large = (batch["betas"].abs() > LARGEST_BETA).any(1)
    known = torch.ones(24, device=pose.device)
    known[list(UNKNOWN)] = 0
    return BodyTargets(
        joint_img=torch.where(exact[..., None], fit_img, own_img),
        joint_cam=torch.where(exact[..., None], fit_cam, joints3d @ turn.mT),
        valid=torch.where(exact, 1.0, batch["valid"]),
        trunc=torch.where(exact, fit_trunc, batch["trunc"]),
        fit_img=fit_img,
        fit_cam=fit_cam,
        fit_trunc=fit_trunc,
        pose=pose,
        pose_valid=torch.where(exact, 1.0, known.repeat_interleave(3)),
        betas=batch["betas"] * ~large[:, None] if large_betas == "official" else batch["betas"],
        betas_valid=torch.ones_like(fitted) if large_betas == "official" else (~large).float(),
        fitted=fitted,
        has_3d=torch.maximum(batch["has_3d"], batch["exact"]),
    )


def _mirrored(joints: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Where pictures are mirrored: joints (N, 30, 3), whose pose is mirrored about the root, in their place; and the
    mirrored camera (N, 4), which sees each of them at the mirrored pixel."""
    flip, (fx, fy, cx, cy) = batch["flip"], batch["camera"].unbind(1)
    x = joints[..., :1] - 2 * joints[:, :1, :1] * flip[:, None, None]
    cx = cx + (batch["width"] - 1 - 2 * cx) * flip
    return torch.cat([x, joints[..., 1:]], dim=2), torch.stack([fx, fy, cx, cy], dim=1)


def _misfit(fit: Tensor, joints3d: Tensor, checked: Tensor) -> Tensor:
    """Mean distance (N,) between the joints of a fit (N, 17, 3) and the data set's (N, 30, 3) that are checked (N, 30),
    both around their means, metres; 0 where none is checked."""
    place = torch.from_numpy(places(H36M)).to(fit.device)
    checked, own = checked[:, place, None], joints3d[:, place]
    count = checked.sum(1, keepdim=True).clamp(min=1)
    apart = (fit - (fit * checked).sum(1, keepdim=True) / count) - (
        own - (own * checked).sum(1, keepdim=True) / count
    )
    return (apart.norm(dim=2, keepdim=True) * checked).sum(1).squeeze(1) / count[:, 0, 0]
