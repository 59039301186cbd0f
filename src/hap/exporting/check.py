"""What an export is compared with: the model that it was made of, on the same images."""

import math

import numpy as np
import torch
from PIL.Image import Resampling

from hap.data.sources import read_inputs
from hap.data.transforms import resize
from hap.errors import BadSample, HapError, printable
from hap.exporting.formats import Run
from hap.exporting.networks import Network
from hap.exporting.source import Size
from hap.synthetic.person import identity
from hap.synthetic.pose import sample_pose
from hap.synthetic.render import render
from hap.synthetic.scene import camera

BATCHES = (1, 2, 7)  # images at a time
TOLERANCE = 1e-4
HALF_TOLERANCE = 0.01  # of 16 bits: as a share of the largest value of each output


def drawn_people(size: Size, number: int) -> list[np.ndarray]:
    """(H, W, 3) uint8 each."""
    people = []
    for i in range(number):
        rng = np.random.default_rng([i])
        people.append(render(identity(0, i), sample_pose(rng), camera(0, i), rng, size=size[::-1]).image)
    return people


def photographs(given: str, size: Size, number: int) -> list[np.ndarray]:
    """The first images of a folder, pattern or list, resized: (H, W, 3) uint8 each.

    Raises:
        HapError: there is none, or one cannot be read.
    """
    records = read_inputs({"input": given})
    found = []
    for index in range(min(number, len(records))):
        try:
            found.append(resize(records[index].pixels(), size, Resampling.BICUBIC))
        except (BadSample, OSError) as error:
            raise HapError(f"input={given}: {printable(records[index].name)}: {error}") from error
    return found


def compare(network: Network, run: Run, given: str | None, half: bool) -> dict[str, float]:
    """The largest absolute differences between a network and what was exported of it, over all outputs, in batches of
    1, 2 and 7: {"random": of uniform noise, "drawn" or "photographs": of people}. With `half`, relative to
    the largest value of an output.

    Raises:
        HapError: an output is missing, of another shape, not finite, or too far off.
    """
    number = max(BATCHES)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (number, 3, *network.size), dtype=torch.uint8, generator=generator)
    people = drawn_people(network.size, number) if given is None else photographs(given, network.size, number)
    images = {"random": noise, "drawn" if given is None else "photographs": _stacked(people)}
    found = {}
    for name, batch in images.items():
        found[name] = max(_difference(network, run, batch[:n], half) for n in BATCHES)
    allowed = HALF_TOLERANCE if half else TOLERANCE
    if too_far := [f"{value:.3g} on {name} images" for name, value in found.items() if not value <= allowed]:
        raise HapError(
            f"what was exported differs from the model by up to {' and '.join(too_far)}, more than {allowed:g}: "
            "nothing was written"
        )
    return found


def _stacked(images: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).movedim(3, 1).contiguous()  # (N, 3, H, W)


@torch.no_grad()
def _difference(network: Network, run: Run, images: torch.Tensor, half: bool) -> float:
    inputs = network.inputs(images)
    wanted, found = network(**inputs), run(inputs)
    worst = 0.0
    for name, value in wanted.items():
        other = torch.as_tensor(found[name])
        if other.shape != value.shape or other.dtype != value.dtype:
            raise HapError(
                f"{name} is {other.dtype} {tuple(other.shape)} in place of {value.dtype} {tuple(value.shape)}"
            )
        difference = float((other.double() - value.double()).abs().max())
        if half:
            difference /= float(value.abs().max())
        worst = max(worst, difference if math.isfinite(difference) else math.inf)
    return worst
