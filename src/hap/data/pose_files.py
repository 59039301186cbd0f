"""Annotation files of people with joints, in COCO's format as many tools write it, as columns in one form."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hap.data.files import first_lines, read_json
from hap.errors import HapError, printable
from hap.pose.skeletons import Skeleton, of_names
from hap.pose.truth import CocoTruth

log = logging.getLogger(__name__)

AREA = 0.53  # of a box, where the area of the person is not known (AI Challenger's rule)
FAR = 0.05  # of the side of a picture, by which boxes seldom leave it


@dataclass(frozen=True, eq=False)
class Annotation:
    """People M in images I, as a file has them.

    Attributes:
        file: it.
        image_ids, files: of the images (I).
        sizes: int64 (I, 2), width and height; 0, 0 where the file does not say.
        image: int64 (M,), each person's image.
        person_ids: of the people (M).
        box: float64 (M, 4), x, y, w, h; nan where the file has none.
        area: float64 (M,), nan where the file has none.
        crowd: bool (M,).
        joints: float64 (M, K, 3): x, y, and 0 not labelled, 1 hidden, 2 visible.
        skeleton: names of the joints.
        category_id: of people.
    """

    file: Path
    image_ids: tuple[int | str, ...]
    files: tuple[str, ...]
    sizes: np.ndarray
    image: np.ndarray
    person_ids: tuple[int | str, ...]
    box: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    joints: np.ndarray
    skeleton: Skeleton
    category_id: int = 1

    @property
    def labelled(self) -> np.ndarray:
        """Number of labelled joints of each person, (M,): counted, as what files say of it differs."""
        return (self.joints[..., 2] > 0).sum(1)

    def truth(self, area_of_box: bool = False) -> CocoTruth:
        """To score predictions against. Areas that are missing or not above 0 become 0.53 w h of the box.

        Args:
            area_of_box: all areas by that rule, as of AI Challenger.
        """
        box, area = np.where(np.isnan(self.box), 0, self.box), self.area
        unknown = ~(area > 0) | area_of_box
        counted = unknown & (self.labelled > 0) & ~self.crowd
        if counted.any() and not area_of_box:
            log.warning(
                "%s: %s of %s people have no area above 0; %g times that of the box is taken: scores depend on it",
                *(self.file, f"{counted.sum():,}", f"{len(counted):,}", AREA),
            )
        area = np.where(unknown, np.maximum(AREA * box[:, 2] * box[:, 3], 1e-6), area)
        return CocoTruth(
            skeleton=self.skeleton,
            image_ids=self.image_ids,
            files=self.files,
            image=self.image,
            box=box,
            area=area,
            crowd=self.crowd,
            joints=self.joints,
            person_ids=self.person_ids,
            category_id=self.category_id,
        )


def read_annotation(
    path: Path,
    skeleton: Skeleton | None,
    category: str | int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Annotation:
    """A file in COCO's format.

    Args:
        skeleton: joints are arranged by name as here. None: those of the file, in its order.
        category: name or id of the one with joints, where there are several.
        options: `flip_pairs`, `sigmas` and `upper_body` of a skeleton that the file gives, see `of_names`.

    Raises:
        HapError: what is no such file, names other joints, or has people whose numbers make no sense; with the ids
            of the first.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not all(
        isinstance(content.get(k), list) for k in ("images", "annotations")
    ):
        raise HapError(f"{path} has no lists of images and annotations, as COCO's files have")
    chosen = _category(path, content.get("categories") or [], category)
    order, skeleton = _joints(path, chosen, skeleton, options or {})
    category_id = chosen.get("id", 1)

    images = content["images"]
    ids = tuple(_field(path, image, "id", f"image {i}") for i, image in enumerate(images))
    place = {image_id: i for i, image_id in enumerate(ids)}
    if len(place) < len(ids):
        repeated = [printable(str(image_id)) for image_id, n in Counter(ids).items() if n > 1]
        raise HapError(f"{path}: {len(repeated)} ids of images are there twice{first_lines(repeated)}")
    people = [a for a in content["annotations"] if "id" not in chosen or a.get("category_id") == category_id]
    if not people:
        raise HapError(f"{path} has no annotations of category {category_id}")
    person_ids = tuple(person.get("id", i) for i, person in enumerate(people))
    if foreign := [person for person in people if person.get("image_id") not in place]:
        named = [f"annotation {printable(str(p.get('id')))}: image_id {p.get('image_id')!r}" for p in foreign]
        raise HapError(
            f"{path}: {len(foreign):,} of {len(people):,} annotations are of images that it does not list"
            f"{first_lines(named)}"
        )
    annotation = Annotation(
        path,
        ids,
        tuple(
            str(_field(path, image, "file_name", f"image {i}")) for image, i in zip(images, ids, strict=True)
        ),
        np.array([[image.get("width") or 0, image.get("height") or 0] for image in images], int).reshape(
            -1, 2
        ),
        np.array([place[person["image_id"]] for person in people]),
        person_ids,
        _numbers(path, person_ids, [person.get("bbox") or [np.nan] * 4 for person in people], 4, "bbox"),
        _numbers(path, person_ids, [[_or_nan(person.get("area"))] for person in people], 1, "area")[:, 0],
        np.array([bool(person.get("iscrowd")) for person in people]),
        _keypoints(path, person_ids, [person.get("keypoints") for person in people], len(order))[:, order],
        skeleton,
        category_id,
    )
    _check_places(annotation)
    return annotation


def _category(path: Path, categories: Sequence[Any], wanted: str | int | None) -> Mapping[str, Any]:
    """The category of people: the one that has joints. Empty where the file has none at all."""
    found = [c for c in categories if isinstance(c, dict) and c.get("keypoints")]
    named = ", ".join(f"{printable(str(c.get('name')))} ({c.get('id')})" for c in found)
    if wanted is not None:
        found = [
            c for c in found if wanted in (c.get("name"), c.get("id")) or str(c.get("id")) == str(wanted)
        ]
        if not found:
            raise HapError(
                f"{path}: no category {printable(str(wanted))} has joints; these have: {named or 'none'}"
            )
    if len(found) > 1:
        raise HapError(
            f"{path}: several categories have joints, {named}: choose one with data.reader.category=NAME"
        )
    if not found and len(categories) > 1:
        raise HapError(f"{path}: none of its {len(categories)} categories names its joints (`keypoints`)")
    return found[0] if found else categories[0] if categories else {}


def _joints(
    path: Path, category: Mapping[str, Any], skeleton: Skeleton | None, options: Mapping[str, Any]
) -> tuple[np.ndarray, Skeleton]:
    """For each joint of the skeleton its place in the file."""
    names = category.get("keypoints")
    if names:
        if skeleton is not None:
            return skeleton.mapped(names, str(path)), skeleton
        links = [(a - 1, b - 1) for a, b in category.get("skeleton") or [] if a != b]
        links = [link for link in links if all(0 <= i < len(names) for i in link)]
        own = of_names(names, links=links, name=str(category.get("name", "own")), **options)
        return np.arange(len(names)), own
    if skeleton is None:
        raise HapError(
            f"{path} does not name its joints: give data.reader.skeleton={{joints: [...]}} in its order"
        )
    log.warning(
        "%s does not name its joints: they are taken to be the %d of %s, in its order",
        *(path, len(skeleton.joints), skeleton.name),
    )
    return np.arange(len(skeleton.joints)), skeleton


def _field(path: Path, item: Any, key: str, what: str) -> Any:
    if not isinstance(item, dict) or isinstance(item.get(key, []), list | dict):
        raise HapError(f"{path}: {printable(str(what))} has no {key}")
    return item[key]


def _or_nan(value: Any) -> Any:
    return np.nan if value is None else value


def _numbers(path: Path, ids: Sequence[Any], rows: Sequence[Any], length: int, what: str) -> np.ndarray:
    """(M, length) float64. Raises HapError with the ids of what is not that many numbers."""
    try:
        values = np.array(rows, np.float64)
        if values.shape == (len(rows), length):
            return values
    except (TypeError, ValueError):
        pass
    wrong = []
    for person, row in zip(ids, rows, strict=True):
        try:
            good = np.array(row, np.float64).shape == (length,)
        except (TypeError, ValueError):
            good = False
        if not good:
            count = f"{len(row)} values" if isinstance(row, list) else printable(str(row))[:40]
            wrong.append(f"annotation {printable(str(person))}: {count}")
    raise HapError(
        f"{path}: {what} of {len(wrong):,} annotations is not {length} numbers{first_lines(wrong)}"
    )


def _keypoints(path: Path, ids: Sequence[Any], rows: Sequence[Any], count: int) -> np.ndarray:
    """(M, K, 3). Somebody without keypoints has none labelled."""
    nothing = [0.0] * (3 * count)
    values = _numbers(path, ids, [row or nothing for row in rows], 3 * count, f"keypoints ({count} joints)")
    values = values.reshape(-1, count, 3)
    values[values[..., 2] == 0] = 0  # some tools write nothing that is a number there
    if not np.isin(values[..., 2], (0, 1, 2)).all() or not np.isfinite(values).all():
        bad = ~(np.isin(values[..., 2], (0, 1, 2)) & np.isfinite(values).all(2)).all(1)
        named = [f"annotation {printable(str(ids[i]))}" for i in np.flatnonzero(bad).tolist()]
        raise HapError(
            f"{path}: keypoints of {bad.sum():,} annotations are not x, y and 0 (not labelled), 1 (hidden) or 2 "
            f"(visible){first_lines(named)}"
        )
    return values


def _extent(joints: np.ndarray) -> np.ndarray:
    """x, y, w, h of the labelled joints (M, K, 3) of each person; 0 where there are none."""
    labelled = joints[..., 2:] > 0
    low = np.where(labelled, joints[..., :2], np.inf).min(1)
    high = np.where(labelled, joints[..., :2], -np.inf).max(1)
    return np.where(labelled.any(1), np.concatenate([low, high - low], axis=1), 0)


def _check_places(annotation: Annotation) -> None:
    """Raises HapError where boxes look like corners, or joints like y, x."""
    box, sizes = annotation.box, annotation.sizes[annotation.image]
    known = (sizes > 0).all(1) & ~np.isnan(box).any(1)
    far = known & (box[:, :2] + box[:, 2:] > (1 + FAR) * sizes).any(1)
    corners = (box[:, 2:] > box[:, :2]).all(1) & (box[:, 2:] <= (1 + FAR) * sizes).all(1)
    if known.any() and far.sum() > 0.25 * known.sum() and corners[known].mean() > 0.95:
        person = int(np.flatnonzero(far)[0])
        raise HapError(
            f"{annotation.file}: bbox looks like x1 y1 x2 y2: {far.sum():,} of {known.sum():,} boxes leave their "
            f"image by far as x, y, w, h, annotation {printable(str(annotation.person_ids[person]))} the first: "
            "subtract to get w and h"
        )
    labelled = (annotation.joints[..., 2] > 0) & ~np.isnan(box).any(1)[:, None]
    if not labelled.any():
        return

    def inside(xy: np.ndarray) -> float:
        place = (xy - box[:, None, :2]) / box[:, None, 2:].clip(min=1e-6)
        return float(
            (np.abs(place - 0.5).max(axis=2) <= 0.75)[labelled].mean()
        )  # a quarter of the box around it

    given, swapped = inside(annotation.joints[..., :2]), inside(annotation.joints[..., 1::-1])
    if given < 0.5 and swapped > 0.9:
        raise HapError(
            f"{annotation.file}: keypoints look like y, x: {swapped:.0%} of them lie in their box when swapped, "
            f"{given:.0%} as they are: write x first"
        )


def with_boxes(annotation: Annotation) -> Annotation:
    """People whose box is missing or of no area get the extent of their labelled joints."""
    lacking = ~(annotation.box[:, 2:] > 0).all(1) & (annotation.labelled > 1)
    if lacking.any():
        log.warning(
            "%s: %s of %s people have no box of an area; that around their joints is taken",
            *(annotation.file, f"{lacking.sum():,}", f"{len(lacking):,}"),
        )
    return replace(annotation, box=np.where(lacking[:, None], _extent(annotation.joints), annotation.box))


def clean_boxes(annotation: Annotation) -> tuple[np.ndarray, np.ndarray]:
    """Boxes clipped to their images, (M, 4) x, y, w, h, and whether something of each is left, (M,). One that was not
    clipped becomes a pixel narrower and lower, as in the official code."""
    box = annotation.box
    sizes = np.where(annotation.sizes > 0, annotation.sizes, np.inf)[annotation.image]
    low = np.maximum(0, box[:, :2])
    high = np.minimum(sizes - 1, low + np.maximum(0, box[:, 2:] - 1))
    return np.concatenate([low, high - low], axis=1), (high > low).all(1)
