"""What readers of 3D pose share: lists of images and people as files have them, numbers, fits, neighbours, units.

Legend: N people, I images.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hap.body.arrays import NUM_BETAS
from hap.body.crops import crop_box
from hap.body.joints import COCO, places
from hap.data.files import first_lines, read_json
from hap.data.pose3d import BodyRecords, Kind
from hap.errors import HapError, printable

log = logging.getLogger(__name__)

OVERLAP = 0.1  # of boxes, from which on people are near each other
FIT = {"pose": ("pose", 72), "betas": ("shape", NUM_BETAS), "trans": ("trans", 3)}  # key and length in files
SHARE = 0.1  # of people; if so many are out of place or of scale, it is the file


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of a file in COCO's layout, and their people in the order of the images.

    Attributes:
        file: it.
        images: as they are there (I).
        people: (N).
        image: int64 (N,), each person's place in `images`, ascending.
    """

    file: Path
    images: Sequence[Mapping[str, Any]]
    people: Sequence[Mapping[str, Any]]
    image: np.ndarray

    @property
    def ids(self) -> list[int | str]:
        return [person["id"] for person in self.people]

    @cached_property
    def names(self) -> list[str]:
        """Of the people, for messages."""
        return [f"annotation {printable(str(person['id']))}" for person in self.people]

    def only(self, rows: np.ndarray) -> "Listing":
        """Those people, by place or mask, and the images that they are in."""
        rows = np.arange(len(self.people))[rows]
        used, image = np.unique(self.image[rows], return_inverse=True)
        return Listing(
            self.file,
            [self.images[i] for i in used.tolist()],
            [self.people[i] for i in rows.tolist()],
            image,
        )

    def of_people(self, key: str, count: int) -> np.ndarray:
        """(N, count) of what each person has there."""
        return numbers([person.get(key) for person in self.people], count, key, self.file, self.names)

    def of_images(self, key: str, count: int) -> np.ndarray:
        """(I, count) of what each image has there."""
        names = [f"image {printable(str(image['id']))}" for image in self.images]
        return numbers([image.get(key) for image in self.images], count, key, self.file, names)

    def sizes(self) -> np.ndarray:
        """int64 (I, 2), width and height."""
        return np.concatenate([self.of_images("width", 1), self.of_images("height", 1)], axis=1).astype(int)


def read_listing(path: Path) -> Listing:
    """Raises HapError for what is no such file, or lists what does not belong together."""
    content = read_json(path)
    images, people = _list(path, content, "images"), _list(path, content, "annotations")
    place = {image_id: i for i, image_id in enumerate(_ids(path, images, "images"))}
    if wrong := [f"image {image['id']}" for image in images if not isinstance(image.get("file_name"), str)]:
        raise HapError(f"{path}: {len(wrong):,} images have no file_name{first_lines(wrong)}")
    _ids(path, people, "annotations")
    found = [place.get(_plain(person.get("image_id")), -1) for person in people]
    image = np.array(found, int)
    if (image < 0).any():
        named = [
            f"annotation {people[i]['id']}: image_id {people[i].get('image_id')!r}"
            for i in np.flatnonzero(image < 0).tolist()
        ]
        raise HapError(
            f"{path}: {len(named):,} of {len(people):,} annotations are of images that it does not list"
            f"{first_lines(named)}"
        )
    order = np.argsort(image, kind="stable")
    return Listing(path, images, [people[i] for i in order.tolist()], image[order])


def _list(path: Path, content: Any, key: str) -> list[dict[str, Any]]:
    items = field(content, key)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise HapError(f"{path} has no list of {key}, as COCO's files have")
    return items


def _plain(value: Any) -> Any:
    """Numbers and strings; None in place of what cannot be an id."""
    return value if isinstance(value, int | str) else None


def _ids(path: Path, items: Sequence[Mapping[str, Any]], what: str) -> list[Any]:
    ids = [_plain(item.get("id")) for item in items]
    if lacking := ids.count(None):
        raise HapError(f"{path}: {lacking:,} of {len(ids):,} {what} have no id")
    if len(set(ids)) < len(ids):
        repeated = [printable(str(name)) for name, count in Counter(ids).items() if count > 1]
        raise HapError(f"{path}: {len(repeated):,} ids of {what} are there twice{first_lines(repeated)}")
    return ids


def numbers(rows: Sequence[Any], count: int, what: str, file: Path, names: Sequence[str]) -> np.ndarray:
    """Lists of numbers, also nested ones -> float64 (len(rows), count).

    Args:
        what: they are.
        file: that they are from.
        names: of the rows.

    Raises:
        HapError: names the rows that are not that many finite numbers.
    """
    if (values := _array(rows, (len(rows), count))) is not None:
        return values
    wrong = [name for name, row in zip(names, rows, strict=True) if _array([row], (1, count)) is None]
    raise HapError(
        f"{file}: {what} of {len(wrong):,} of {len(rows):,} is not {count} finite number{'s'[: count > 1]}"
        f"{first_lines(wrong)}"
    )


def _array(rows: Sequence[Any], shape: tuple[int, int]) -> np.ndarray | None:
    try:
        values = np.array(rows, np.float64).reshape(shape)
    except (TypeError, ValueError):
        return None
    return values if np.isfinite(values).all() else None


def field(entry: Any, *keys: str) -> Any:
    """What lies in dictionaries within each other; None where there is nothing of that name."""
    for key in keys:
        entry = entry.get(key) if isinstance(entry, dict) else None
    return entry


def fits(found: Sequence[Any], file: Path, names: Sequence[str]) -> dict[str, Any]:
    """Parameters of bodies of N people: `pose` (N, 72), `betas` (N, 10), `trans` (N, 3), all float64 and 0 where there
    are none, and `fitted` bool (N,).

    Args:
        found: of each person what the file has, None where it has nothing.

    Raises:
        HapError: names those whose fit is no fit.
    """
    rows = [i for i, fit in enumerate(found) if fit is not None]
    fitted = np.zeros(len(found), bool)
    fitted[rows] = True
    result = {"fitted": fitted}
    for name, (key, count) in FIT.items():
        result[name] = np.zeros((len(found), count))
        values = [field(found[i], key) for i in rows]
        result[name][rows] = numbers(values, count, key, file, [names[i] for i in rows])
    return result


def has_crop(box: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Whether boxes x, y, w, h (N, 4) can be cropped from pictures of width and height (N, 2): bool (N,). Those that
    cannot are not trained on; of area 0, or right or below of the picture."""
    return np.isfinite(crop_box(box, sizes)).all(1)


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes x, y, w, h (N, 4), pairwise: (N,)."""
    sides = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    common = sides.clip(min=0).prod(1)
    return common / (a[:, 2:].prod(1) + b[:, 2:].prod(1) - common + 1e-5)


def neighbours(box: np.ndarray, image: np.ndarray, who: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Who is near whom.

    Args:
        box: (N, 4), x, y, w, h.
        image: int64 (N,), ascending.
        who: int64 (K,), the people whose neighbours are asked for.

    Returns:
        int64 (K + 1,), where each one's neighbours begin in the second; int64 (M,), their places among the N.
    """
    first, last = np.searchsorted(image, image[who]), np.searchsorted(image, image[who], side="right")
    count = last - first
    row = np.repeat(np.arange(len(who)), count)
    other = np.arange(len(row)) + np.repeat(first - (np.cumsum(count) - count), count)
    near = (other != who[row]) & (overlap(box[who[row]], box[other]) >= OVERLAP)
    return np.concatenate([[0], np.cumsum(np.bincount(row[near], minlength=len(who)))]), other[near]


def to_coco(values: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Values (..., K, C) of named joints -> COCO's 17 (..., 17, C), 0 where a joint has no source."""
    index = places(COCO, names)
    result = np.zeros((*values.shape[:-2], len(COCO), values.shape[-1]), values.dtype)
    result[..., index >= 0, :] = values[..., index[index >= 0], :]
    return result


def project(points: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """Points (N, K, 3) of cameras fx, fy, cx, cy (N, 4) -> x, y in pixels and 1 before the camera, 0 not (N, K, 3)."""
    ahead = points[..., 2:] > 0
    xy = points[..., :2] / np.where(ahead, points[..., 2:], 1) * camera[:, None, :2] + camera[:, None, 2:]
    return np.concatenate([xy * ahead, ahead], axis=-1)


def extent(joints: np.ndarray) -> np.ndarray:
    """x, y, w, h (N, 4) of those joints (N, K, 3) that are there; 0 where none is."""
    there = joints[..., 2:] > 0
    low = np.where(there, joints[..., :2], np.inf).min(1)
    high = np.where(there, joints[..., :2], -np.inf).max(1)
    return np.where(there.any(1), np.concatenate([low, high - low], axis=1), 0)


def check_units(people: BodyRecords, fit: Path) -> None:
    """Raises HapError where nobody has a fit, or where people are of nobody's size: their joints as they are, or their
    boxes at the distance at which the fits are. Names the first, and the factor.

    Args:
        fit: the file of the fits.
    """
    rows = np.flatnonzero(people.fitted)
    if not len(rows):
        raise HapError(f"{fit} has a fit of none of the {len(people):,} people: is it of another data set?")
    if people.kind.has_3d:
        reach = np.linalg.norm(people.joints3d[..., :3], axis=2).max(1)
        _check_scale(f"{people.root}: joints in 3D", "millimetres", reach, people, np.arange(len(people)))
    seen = people.box[rows, 2:].max(1) * people.trans[rows, 2] / people.camera[rows, :2].mean(1)
    _check_scale(f"{fit}: going by their distance, fits", "metres", seen, people, rows)


def _check_scale(what: str, unit: str, metres: np.ndarray, people: BodyRecords, rows: np.ndarray) -> None:
    """Lengths of some (K,) should be about a metre; a thousand times more or less is another unit."""
    off = np.flatnonzero(~((metres > 1000**-0.5) & (metres < 1000**0.5)))
    if not len(off):
        return
    middle = float(np.median(np.abs(metres[off])))
    factor = 1000.0 ** round(np.log(max(middle, 1e-9)) / np.log(1000))
    named = [f"{printable(people[rows[i]].name)}: {metres[i]:.3g} m" for i in off[:100].tolist()]
    message = (
        f"{what} of {len(off):,} of {len(metres):,} people are of nobody's size, by a factor of about {factor:g}; "
        f"they have to be in {unit}{first_lines(named)}"
    )
    if len(off) > SHARE * len(metres):
        raise HapError(message)
    log.warning("%s", message)


def records(kind: Kind, root: Path, listing: Listing, protocol: str = "", **columns: Any) -> BodyRecords:
    """The people of a listing with the columns of `BodyRecords`, of the neutral body. Without `joints3d` and `near`
    there are none."""
    count = len(listing.people)
    columns = {
        "joints3d": np.zeros((count, 30, 4)),
        "gender": np.zeros(count, int),
        "near": np.zeros(count + 1, int),
        "near_joints": np.zeros((0, 17, 3)),
    } | columns
    return BodyRecords(
        root=root,
        files=[image["file_name"] for image in listing.images],
        sizes=listing.sizes(),
        image=listing.image,
        ids=listing.ids,
        kind=kind,
        protocol=protocol,
        **{k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in columns.items()},
    )


def compare(title: str, people: int, published: int, about: bool = False) -> None:
    """Say whether these are the published data; `about` where nobody has published the exact number."""
    if abs(people - published) <= published * (0.1 if about else 1e-4):
        log.info("%s: %s people, as published", title, f"{people:,}")
    else:
        log.warning(
            "%s differs from the published set: %s people (published: %s%s)",
            *(title, f"{people:,}", "about " if about else "", f"{published:,}"),
        )
