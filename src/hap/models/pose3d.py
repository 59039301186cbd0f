"""What the networks of 3D pose and shape share: what they say of a person, and how numbers become rotations.

Legend: N people.
"""

import logging
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hap.body.rotations import Layout, from_6d, to_axis_angle
from hap.errors import HapError
from hap.models.checkpoint import dense
from hap.models.weight_file import read_weight_file
from hap.models.weight_state import State

log = logging.getLogger(__name__)

NUM_BODY = 21  # rotations of the body: all 24 but the root's and the two hands'
IDENTITY_6D = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)  # in interleaved columns
# Of people who stand, radians: how far joints are turned in the mean at most, and how far arms are raised by collars
# and shoulders of both sides together; in the rest pose they are level.
PLAUSIBLE, RAISED = 1.0, 1.0


class BodyOutput(NamedTuple):
    """
    rotations: (N, 24, 3, 3), the root's in the frame of the camera.
    betas: (N, 10).
    translation: (N, 3), metres, in the frame of the crop's camera.
    joint_coord: (N, 15, 3), places of joints that the network found on the way, x, y, z within 0..7; or None.
    joint_score: (N, 15, 1), how sure it is of these; or None.
    """

    rotations: Tensor
    betas: Tensor
    translation: Tensor
    joint_coord: Tensor | None = None
    joint_score: Tensor | None = None


class SixD(nn.Module):
    """Rotations of the body by one layer, six numbers each. Begins at the rest pose.

    Args:
        width: of the features.
    """

    def __init__(self, width: int):
        super().__init__()
        self.out = nn.Linear(width, 6 * NUM_BODY)
        nn.init.normal_(self.out.weight, std=0.01)
        with torch.no_grad():
            self.out.bias.copy_(torch.tensor(IDENTITY_6D).repeat(NUM_BODY))

    def forward(self, features: Tensor) -> Tensor:
        """(N, width) -> (N, 21, 3, 3)."""
        return from_6d(self.out(features).float().unflatten(1, (NUM_BODY, 6)), "columns_interleaved")


class VPoser(nn.Module):
    """The decoder of VPoser v1, frozen: 32 numbers are a pose that people take (Pavlakos et al., 2019).

    Its weights are not ours to give: they come with a checkpoint of the whole network, or from a file of VPoser's.

    Args:
        width: of the features.
        path: file of VPoser v1, its state dict or a .safetensors with the three layers of the decoder. If it is not
            there they have to come with the weights of the whole network; until then they are no numbers.
        num_neurons: of its hidden layers.
        dropout: of training; the official code leaves it on, though the decoder does not learn.
    """

    def __init__(self, width: int, path: str, num_neurons: int = 512, dropout: float = 0.0):
        super().__init__()
        self.latent = nn.Linear(width, 32)
        nn.init.normal_(self.latent.weight, std=0.01)
        nn.init.zeros_(self.latent.bias)
        self.dec_fc1 = nn.Linear(32, num_neurons)
        self.dec_fc2 = nn.Linear(num_neurons, num_neurons)
        self.dec_out = nn.Linear(num_neurons, 6 * NUM_BODY)
        self.path, self.dropout = Path(path).expanduser(), dropout
        for layer in (self.dec_fc1, self.dec_fc2, self.dec_out):
            for parameter in layer.parameters():
                nn.init.constant_(parameter, torch.nan).requires_grad_(False)
        if self.path.is_file():
            self._read()

    @torch.no_grad()
    def _read(self) -> None:
        entries = read_weight_file(self.path).entries
        try:
            for name, value in vposer_state(entries.get("state_dict", entries)).items():
                wanted = self.get_parameter(name)
                if (shape := tuple(getattr(value, "shape", ()))) != wanted.shape:
                    raise HapError(f"its {name} is {shape}, not {tuple(wanted.shape)} as of VPoser v1")
                wanted.copy_(dense(name, value, wanted))
        except HapError as error:
            raise HapError(f"{self.path}: {error}") from None

    def forward(self, features: Tensor) -> Tensor:
        """(N, width) -> (N, 21, 3, 3)."""
        return self.decode(self.latent(features).float())

    def decode(self, latent: Tensor) -> Tensor:
        """(N, 32) -> (N, 21, 3, 3)."""
        x = F.leaky_relu(self.dec_fc1(latent), 0.2)
        x = F.dropout(x, self.dropout, self.training)
        x = F.leaky_relu(self.dec_fc2(x), 0.2)
        return from_6d(self.dec_out(x).float().unflatten(1, (NUM_BODY, 6)), "columns_interleaved")

    def check(self) -> None:
        """Raises HapError where the weights of the decoder were not loaded."""
        if not self.dec_out.weight.isfinite().all():
            raise HapError(
                f"no file of VPoser: {self.path}; task.model.vposer=FILE is snapshots/*.pt of VPoser v1 "
                "(https://smpl-x.is.tue.mpg.de, for non-commercial use); task.model.vposer=null does without"
            )


def vposer_state(state: State) -> State:
    """The decoder's layers of a state dict of VPoser v1, in our names.

    Raises:
        HapError: it is of VPoser v2, whose latent numbers mean something else, or of something else.
    """
    if any(".decoder_net." in f".{name}" for name in state):
        raise HapError("it is of VPoser v2 (V02_05); the network was made for v1 (vposer_v1_0)")
    found = {re.sub(r"^.*bodyprior_(?=dec_)", "", name): value for name, value in state.items()}
    layers = [f"dec_{layer}.{kind}" for layer in ("fc1", "fc2", "out") for kind in ("weight", "bias")]
    if lacking := [name for name in layers if name not in found]:
        raise HapError(f"it has no bodyprior_{lacking[0]} of VPoser v1")
    return {name: found[name] for name in layers}


def read_mean_parameters(path: str, layout: Layout) -> dict[str, Tensor]:
    """`pose` (144,), `shape` (10,) and `cam` (3,) of an .npz of mean parameters, as of SPIN or HMR 2.0; the pose's six
    numbers of each joint as interleaved columns.

    Args:
        layout: of the file's six numbers. SPIN's are `columns_interleaved`.

    Raises:
        HapError: nobody stands like that: the layout is another.
    """
    try:
        with np.load(Path(path).expanduser(), allow_pickle=False) as file:
            values = {
                name: torch.tensor(file[name], dtype=torch.float32).flatten()
                for name in ("pose", "shape", "cam")
            }
    except Exception as error:  # a damaged archive fails in any way
        raise HapError(f"{path} is no .npz with pose, shape and cam: {error}") from None
    if [len(v) for v in values.values()] != [144, 10, 3]:
        raise HapError(f"{path}: pose, shape and cam have {[len(v) for v in values.values()]} numbers")
    matrices = from_6d(values["pose"].unflatten(0, (24, 6)), layout)
    whole = (matrices @ matrices.mT - torch.eye(3)).abs().amax() < 1e-3
    vectors = to_axis_angle(matrices)
    turned = vectors[1:].norm(dim=-1).mean()
    raised = (vectors[[13, 16], 2] - vectors[[14, 17], 2]).sum()  # of the inverse, arms that hung are up
    if not (whole and turned < PLAUSIBLE and raised < RAISED):
        raise HapError(
            f"{path}: read as {layout}, joints are turned by {turned:.1f} rad in the mean and arms raised by "
            f"{raised:.1f}, as nobody stands; another task.model.mean_layout: columns_interleaved (SPIN), columns, rows"
        )
    log.info("%s: mean pose read as %s, joints turned by %.2f rad in the mean", path, layout, turned)
    values["pose"] = matrices[..., :2].flatten()
    return values
