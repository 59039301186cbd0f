"""Writers of pedestrian attribute data: PA-100K, with labels that are true of the drawing.

Everybody is drawn whole, with nobody and nothing in front, so that what is labelled can be seen. The annotations are
MATLAB 5 files with cells nested as in the published ones.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from hap.errors import HapError
from hap.synthetic.person import ATTRIBUTES, Person, identity, pick
from hap.synthetic.pose import Pose, sample_pose
from hap.synthetic.render import Rendering, render
from hap.synthetic.scene import camera
from hap.synthetic.writing import Run, save_image

_ACTIVITIES = {"walking": 0.56, "standing": 0.22, "phoning": 0.07, "texting": 0.07, "carrying": 0.08}

# The columns of PA-100K's file.
_PA100K = (
    "Female", "AgeOver60", "Age18-60", "AgeLess18", "Front", "Side", "Back", "Hat", "Glasses", "HandBag",
    "ShoulderBag", "Backpack", "HoldObjectsInFront", "ShortSleeve", "LongSleeve", "UpperStride", "UpperLogo",
    "UpperPlaid", "UpperSplice", "LowerStripe", "LowerPattern", "LongCoat", "Trousers", "Shorts", "Skirt&Dress",
    "boots",
)  # fmt: skip


@dataclass(frozen=True)
class _Shown:
    """One image: who is drawn, how, and what came of it."""

    person: Person
    pose: Pose
    drawn: Rendering

    @property
    def facing(self) -> tuple[float, float]:
        """Where the chest points: cosine to the camera (1 faces it), sine to the right of the image."""
        left, right = self.drawn.joints3d[16], self.drawn.joints3d[17]
        across = (left - right)[[0, 2]] / np.hypot(*(left - right)[[0, 2]])
        view = self.drawn.camera
        sight = (-view.rotation.T @ view.translation - self.drawn.joints3d[0])[[0, 2]]
        sight = sight / np.hypot(*sight)  # from the person to the camera, on the ground
        ahead = np.array([-across[1], across[0]])  # left x up
        return float(ahead @ sight), float(ahead[0] * sight[1] - ahead[1] * sight[0])

    def pa100k(self) -> dict[str, bool]:
        """The 26 attributes by name. A print is claimed where the chest can be seen, shorts where no coat covers
        them."""
        facts = dict(zip(ATTRIBUTES, self.drawn.attributes.tolist(), strict=True))
        facts["UpperLogo"] &= self.facing[0] > 0.35 and not self.pose.holding
        facts["Shorts"] &= not facts["LongCoat"]
        return facts


def _draw(seed: int, number: int, who: int, place: int, heights: tuple[int, int]) -> _Shown:
    """Image `number` of the data set: person `who`, seen by camera `place`; `heights`: least and greatest."""
    rng = np.random.default_rng([seed, 41, number])
    height = int(rng.integers(heights[0], heights[1] + 1))
    size = round(height * rng.uniform(0.42, 0.54)), height
    person = identity(seed, who)
    pose = sample_pose(rng, pick(rng, _ACTIVITIES, list(_ACTIVITIES.values())))
    return _Shown(person, pose, render(person, pose, camera(seed, place), rng, size=size, whole=True))


def _parts(num_images: int, shares: tuple[float, ...], most: int) -> list[int]:
    """How many images each part holds. Raises HapError where one would be empty, or the layout has no room."""
    parts = [round(share * num_images) for share in shares]
    parts.append(num_images - sum(parts))
    if min(parts) < 1 or num_images > most:
        raise HapError(f"{num_images} images: from 10 to {most} are needed")
    return parts


def _cells(values: Any) -> np.ndarray:
    """A column of cells."""
    cells = np.empty((len(values), 1), object)
    cells[:, 0] = values
    return cells


def _save_mat(path: Path, variables: dict[str, Any]) -> None:
    """A MATLAB 5 file without the time of day in it: the same data are the same bytes."""
    file = io.BytesIO()
    savemat(file, variables, do_compression=True)
    header = b"MATLAB 5.0 MAT-file, drawn people".ljust(116)
    path.write_bytes(header + file.getvalue()[len(header) :])


def pa100k(out: Path, num_images: int, seed: int, run: Run) -> None:
    """PA-100K: `annotation.mat` and `data/000001.jpg` ...; the first 80 % of the images are for training, the next
    10 % for validation, the others for the test. Everyone is somebody else."""
    train, val, _ = _parts(num_images, (0.8, 0.1), 999_999)
    (out / "data").mkdir()
    labels = np.array(run(_pa100k_image, [(out, seed, number) for number in range(num_images)]), np.uint8)
    names = [f"{number + 1:06d}.jpg" for number in range(num_images)]
    parts = {"train": slice(train), "val": slice(train, train + val), "test": slice(train + val, None)}
    variables: dict[str, Any] = {"attributes": _cells(_PA100K)}
    for split, part in parts.items():
        variables[f"{split}_images_name"] = _cells(names[part])
        variables[f"{split}_label"] = labels[part]
    _save_mat(out / "annotation.mat", variables)


def _pa100k_image(job: tuple[Path, int, int]) -> list[bool]:
    """Draws one image; returns its labels."""
    out, seed, number = job
    shown = _draw(seed, number, number, number % 24, (150, 200))
    save_image(out / "data" / f"{number + 1:06d}.jpg", shown.drawn.image, camera(seed, number % 24).quality)
    facts = shown.pa100k()
    return [facts[name] for name in _PA100K]
