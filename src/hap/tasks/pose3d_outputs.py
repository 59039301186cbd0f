"""What `hap predict` leaves of bodies: their parameters, meshes for other programs, pictures.

Legend: N people.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hap.body.camera import CROP_FOCAL, CROP_SIZE, to_full
from hap.body.drawing import draw_meshes, turntable, write_obj
from hap.body.model import GenderedBody
from hap.body.rotations import to_matrix
from hap.data.sources import source_columns
from hap.plots import write_picture
from hap.tasks.pictures import by_picture, draw_people, drawn_pictures

log = logging.getLogger(__name__)


def full_camera(picture: Tensor, focal: float | None) -> Tensor:
    """fx, fy, cx, cy (N, 4) in pixels of pictures (N, 2), width and height. Without a focal length the one of the
    crop's camera is taken, as if the longer side of the picture were a crop: people are then as flat as in training."""
    longer = picture.max(dim=1).values
    length = longer * (CROP_FOCAL / CROP_SIZE) if focal is None else torch.full_like(longer, focal)
    return torch.cat([length[:, None].expand(-1, 2), (picture - 1) / 2], dim=1)


def in_picture(rows: dict[str, Tensor], focal: float | None) -> tuple[Tensor, Tensor]:
    """The cameras of the pictures (N, 4), and where people are in them (N, 3); arguments as of `write_bodies`."""
    camera = full_camera(rows["picture"], focal)
    return camera, to_full(rows["translation"].float(), rows["center"], rows["side"], camera)


def write_bodies(
    folder: Path,
    records: Sequence[Any],
    rows: dict[str, Tensor],
    body: GenderedBody,
    pictures: Sequence[Any],
    focal: float | None,
    axes: Literal["camera", "y_up"],
) -> None:
    """
    `bodies.npz`, a row for each person: where it is from (`image`, `frame`, `seconds`, `box`, ... as of other tables),
    `pose` (N, 72), axis-angle vectors in the camera of the picture, `betas` (N, 10), `trans` (N, 3) metres, `focal`
    (N, 2) and `center` (N, 2), the camera in pixels, and `metric_depth`, whether its focal length was given: without,
    people are in the right order and of the right size in the picture, but nobody knows how far away.

    `pictures/`: everybody in a picture together; `meshes/` and `turntable/`: each person of the images among them, and
    of the first frame of videos, as `.obj` and from four sides.

    Args:
        records: of people; their pictures with `frame`, `box` and so on, see `hap.data.sources`, `hap.data.boxes`.
        rows: what `Pose3d.predictions` says of them.
        pictures: all that were given, also those in which nobody is.
    """
    camera, trans = in_picture(rows, focal)
    columns = {name: np.array(list(map(str, values))) for name, values in source_columns(records).items()}
    arrays = {
        "pose": rows["pose"].float().numpy(),
        "betas": rows["betas"].float().numpy(),
        "trans": trans.numpy(),
        "focal": camera[:, :2].numpy(),
        "center": camera[:, 2:].numpy(),
    }
    everything: dict[str, Any] = {**columns, **arrays, "metric_depth": np.array(focal is not None)}
    np.savez(folder / "bodies.npz", **everything)
    if focal is None:
        log.info(
            "focal= is not given: depths are not metric (pictures show people as they are seen, distances are not)"
        )
    faces = body.bodies.neutral.faces

    @torch.no_grad()
    def mesh(i: int) -> np.ndarray:
        rotations = to_matrix(rows["pose"][i : i + 1].float().unflatten(1, (24, 3))).to(body.joints30.device)
        moved = body.neutral(rotations, *(t[i : i + 1].to(rotations) for t in (rows["betas"], trans)))
        return moved.vertices[0].cpu().numpy()

    def draw(image: np.ndarray, people: list[int]) -> np.ndarray:
        if not people:
            return image
        return draw_meshes(image, [mesh(i) for i in people], faces, camera[people[0]].numpy())

    found = by_picture(records, pictures)
    draw_people(folder / "pictures", found, draw)
    shown = [(f"{number:06d}", people) for number, (_, people) in drawn_pictures(found)]
    videos: dict[str, list[int]] = {}
    for picture, people in found:
        if picture.frame is not None and people:
            videos.setdefault(str(picture.path), people)
    shown += [(f"video{number}", people) for number, people in enumerate(videos.values())]
    for name, people in shown:
        for k, i in enumerate(people):
            write_obj(
                folder / "meshes" / f"{name}_{k}.obj",
                mesh(i),
                faces,
                axes,
                f"{records[i].name!a}, body {body.bodies.name}",
            )
            write_picture(folder / "turntable" / f"{name}_{k}.png", turntable(mesh(i), faces))
    log.info("parameters of %s people in %s", f"{len(records):,}", folder / "bodies.npz")
