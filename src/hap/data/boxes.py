"""People in full pictures: boxes that a detector has found, each cut out as an image of its own."""

import json
import logging
import math
import os
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from hap.data.decoding import image_size
from hap.data.files import first_lines, read_json
from hap.data.sources import FrameRecord, ImageRecord
from hap.data.tables import read_table
from hap.errors import BadSample, HapError, printable

log = logging.getLogger(__name__)

Source = ImageRecord | FrameRecord
LOOKED_AT = 256  # pictures, evenly spread, whose boxes are compared with their sizes
FAR = 0.05  # of the side of a picture, by which detectors seldom go beyond it
FEW = 8  # boxes; that so many have their middle in the picture and still leave it by far is no chance
MANY = 0.25  # share of the boxes that is suspect; of corners taken for x, y, w, h about half go so far


class Box(NamedTuple):
    """Pixels of the upright picture: the top left corner and the size; the detector's score, if it gave one.

    `number` is the place in the file, from 0."""

    number: int
    x: float
    y: float
    w: float
    h: float
    score: float | None


class Detection(NamedTuple):
    """What a file says: the picture's name or number, and the box."""

    image: str | int
    box: Box


@dataclass(frozen=True, slots=True)
class BoxRecord:
    """What is in a box of an image or a frame; `name` is `a.jpg, box 7`."""

    source: Source
    box: Box
    pictures: "Boxes" = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.source.name}, box {self.box.number}"

    @property
    def file(self) -> str:
        return self.source.file

    @property
    def path(self) -> Path:
        return self.source.path

    @property
    def part(self) -> str:
        return self.source.part

    @property
    def frame(self) -> int | None:
        return self.source.frame

    @property
    def seconds(self) -> float | None:
        return self.source.seconds

    def pixels(self) -> np.ndarray:
        """All pixels of the picture that the box touches; where pictures are wanted whole, all. Raises BadSample where
        it touches none."""
        picture = self.pictures.picture(self.source)
        height, width = picture.shape[:2]
        _, x, y, w, h, _ = self.box
        left, top = max(math.floor(x), 0), max(math.floor(y), 0)
        right, bottom = min(math.ceil(x + w), width), min(math.ceil(y + h), height)
        if w <= 0 or h <= 0 or left >= right or top >= bottom:
            raise BadSample(
                f"the box x {x:g}, y {y:g}, w {w:g}, h {h:g} is empty in {width} x {height} pixels"
            )
        return picture if self.pictures.whole else np.ascontiguousarray(picture[top:bottom, left:right])

    def annotations(self) -> dict[str, Any]:
        """And `box` (4,), x, y, w, h in pixels of the picture; where the file has them, `joints`, the person's row."""
        known: dict[str, Any] = {"box": np.array(self.box[1:5], np.float32)}
        if self.pictures.joints is not None:
            known["joints"] = self.pictures.joints[self.box.number]
        return self.source.annotations() | known


class Boxes(Sequence[BoxRecord]):
    """Boxes in the order of their file, and in which of the sources each lies (N); `joints` by their number in the
    file, if it has any."""

    def __init__(
        self,
        sources: Sequence[Source],
        boxes: Sequence[Box],
        of: Sequence[int],
        whole: bool = False,
        joints: np.ndarray | None = None,
    ):
        self.sources, self.boxes, self.of, self.whole, self.joints = sources, boxes, of, whole, joints
        self._last: tuple[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Any) -> Any:
        return BoxRecord(self.sources[self.of[index]], self.boxes[index], self)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_last": None}

    @property
    def num_images(self) -> int:
        """Pictures and frames that have a box."""
        return len(set(self.of))

    def checksums(self) -> dict[str, str]:
        """What tells these boxes from others of the same pictures."""
        boxes = np.array([box[1:5] for box in self.boxes]).tobytes()
        joints = b"" if self.joints is None else self.joints.tobytes()
        return {"boxes": f"{zlib.crc32(joints, zlib.crc32(boxes)):08x}"}

    def picture(self, source: Source) -> np.ndarray:
        """The whole picture. The last one is kept: boxes of one picture mostly follow each other."""
        if self._last is None or self._last[0] != source.name:
            self._last = source.name, source.pixels()
        return self._last[1]


def read_boxes(path: Path, sources: Sequence[Source], whole: bool = False) -> Boxes:
    """The boxes of a file as records.

    A CSV table has the columns `image,x,y,w,h` and, if known, `score`; a `.json` file is a list of detections in
    COCO's format: `image_id`, `bbox` [x, y, w, h], `score`. Of several categories 1 is taken, COCO's people. A picture
    is known by its path or the end of it, by the name of its file, or by a number, which is that of the frame or the
    digits at the end of the file's name.

    Args:
        whole: records have the pixels of their whole picture.

    Raises:
        HapError: the file does not fit the sources, is of another format, or looks like corners (x1, y1, x2, y2); says
            how many boxes, and which are the first.
    """
    if not path.is_file():
        raise HapError(f"boxes: file not found: {path}")
    found = _detections(path) if path.suffix.lower() == ".json" else _rows(path)
    return find_boxes(path, found, sources, whole)


def find_boxes(
    path: Path,
    found: Sequence[Detection],
    sources: Sequence[Source],
    whole: bool,
    joints: np.ndarray | None = None,
) -> Boxes:
    """What a file says, as records; `joints` by the number of the box. Raises HapError as `read_boxes`."""
    if not found:
        raise HapError(f"{path} has no boxes")
    where = _matched(path, [detection.image for detection in found], sources)
    pairs = [(index, detection.box) for detection in found for index in where[detection.image]]
    boxes = Boxes(sources, [box for _, box in pairs], [index for index, _ in pairs], whole, joints)
    _check_order(path, boxes)
    _check_format(path, boxes)
    images, scores = Counter(boxes.of), [box.score for box in boxes.boxes if box.score is not None]
    log.info(
        "%s: %s boxes in %s images, at most %d in one%s",
        *(path, f"{len(boxes):,}", f"{len(images):,}", max(images.values())),
        f", scores from {min(scores):.3g} to {max(scores):.3g}" if scores else "",
    )
    if without := len(sources) - len(images):
        log.warning("%s: %s of %s images have no box", path, f"{without:,}", f"{len(sources):,}")
    return boxes


def _rows(path: Path) -> list[Detection]:
    found, wrong = [], []
    for number, row in enumerate(read_table(path, ("image", *"xywh"), errors="surrogateescape").rows):
        box = parse_box(number, [row.cells[column] for column in "xywh"], row.cells.get("score") or None)
        if box is None or row.too_long or not row.cells["image"]:
            cells = [f"{name} {printable(row.cells.get(name, ''))!r}" for name in ("image", *"xywh", "score")]
            wrong.append(f"line {row.line}: {', '.join(cells)}")
        else:
            found.append(Detection(row.cells["image"], box))
    if wrong:
        raise HapError(f"{path}: {len(wrong)} lines are no image with four numbers{first_lines(wrong)}")
    return found


def _detections(path: Path) -> list[Detection]:
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise HapError(
            f"{path} is no list of detections, each with image_id, bbox [x, y, w, h] and score, as COCO's results are"
        )
    found, wrong = defaultdict(list), []
    for number, item in enumerate(content):
        image, bbox = item.get("image_id"), item.get("bbox")
        box = parse_box(number, bbox, item.get("score")) if isinstance(bbox, list) else None
        if box is None or not isinstance(image, str | int):
            wrong.append(f"detection {number}: {printable(json.dumps(item)[:100])}")
        else:
            found[repr(item.get("category_id"))].append(Detection(image, box))
    if wrong:
        raise HapError(
            f"{path}: {len(wrong)} detections are no image_id with a bbox of four numbers{first_lines(wrong)}"
        )
    if len(found) > 1:
        if "1" not in found:
            raise HapError(f"{path} has boxes of categories {', '.join(found)}: leave those of people in it")
        others = sum(map(len, found.values())) - len(found["1"])
        log.warning("%s: %s boxes of other categories than 1, people, are left out", path, f"{others:,}")
        return found["1"]
    return [detection for detections in found.values() for detection in detections]


def parse_box(number: int, values: Sequence[Any], score: Any) -> Box | None:
    """None where they are no numbers, or not four."""
    numbers = [_number(value) for value in (*values, 1 if score is None else score)]
    if len(numbers) != 5 or None in numbers:
        return None
    return Box._make((number, *numbers[:4], None if score is None else numbers[4]))


def _number(value: Any) -> float | None:
    try:
        number = float(value.replace(",", ".").replace("_", " ") if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _matched(
    path: Path, images: Sequence[str | int], sources: Sequence[Source]
) -> dict[str | int, list[int]]:
    """The sources that each image of the file is; two where one is given as query and as gallery."""
    find = _Finder(sources)
    where = {image: find(image) for image in dict.fromkeys(images)}
    counts = Counter(images)
    if foreign := [image for image in where if not where[image]]:
        total = sum(counts[image] for image in foreign)
        raise HapError(
            f"{path}: {total:,} of {len(images):,} boxes belong to no image of the input; their images"
            + first_lines([f"{printable(str(image))}: {counts[image]:,} boxes" for image in foreign])
        )
    names: dict[int, list[str]] = defaultdict(list)
    unclear = []
    for image, found in where.items():
        parts = Counter(sources[index].part for index in found)
        if max(parts.values()) > 1:
            several = ", ".join(printable(sources[index].name) for index in found[:3])
            unclear.append(f"{printable(str(image))} may be {several}")
        for index in found:
            names[index].append(printable(str(image)))
    unclear += [
        f"{', '.join(given)} would all be {printable(sources[index].name)}"
        for index, given in names.items()
        if len(given) > 1
    ]
    if unclear:
        raise HapError(f"{path}: which images these are is not clear; give their paths{first_lines(unclear)}")
    return where


class _Finder:
    """Looks images up by what a file calls them."""

    def __init__(self, sources: Sequence[Source]):
        self.whole, self.ends, self.stems = (defaultdict[Any, list[int]](list) for _ in range(3))
        self.numbers: dict[int, list[int]] = defaultdict(list)
        for index, source in enumerate(sources):
            parts = _parts(source.name)
            self.whole[parts].append(index)
            for start in range(len(parts)):
                self.ends[parts[start:]].append(index)
            stem = PurePath(parts[-1]).stem
            if source.frame is None:
                self.stems[stem].append(index)
            digits = re.search(r"(\d{1,18})$", stem) if source.frame is None else None
            if source.frame is not None or digits is not None:
                self.numbers[source.frame if digits is None else int(digits[1])].append(index)  # type: ignore[index]

    def __call__(self, image: str | int) -> list[int]:
        if isinstance(image, int):
            return self.numbers.get(image, [])
        parts = _parts(image)
        candidates = [
            self.whole.get(parts),
            self.ends.get(parts),
            *(self.whole.get(parts[start:]) for start in range(1, len(parts))),
            self.ends.get(parts[-1:]),
            self.stems.get(image),
            self.numbers.get(int(image)) if re.fullmatch(r"[0-9]{1,18}", image) else None,
        ]
        return next(filter(None, candidates), [])


def _parts(name: str) -> tuple[str, ...]:
    return PurePath(os.path.normpath(name.replace("\\", "/"))).parts or ("",)


def _check_order(path: Path, boxes: Boxes) -> None:
    """Videos are read forward: each step back would decode it from the start."""
    last: dict[tuple[str, str], int] = {}
    for index, box in zip(boxes.of, boxes.boxes, strict=True):
        source = boxes.sources[index]
        if source.frame is None:
            continue
        if source.frame < last.get((source.part, source.file), 0):
            raise HapError(
                f"{path}: box {box.number} is of a frame before the last one: sort the file by frames"
            )
        last[source.part, source.file] = source.frame


def _check_format(path: Path, boxes: Boxes) -> None:
    """Whether boxes lie in their pictures, as x, y, w, h. Raises HapError with what they look like."""
    images = sorted(set(boxes.of))
    chosen = {images[i] for i in np.linspace(0, len(images) - 1, LOOKED_AT).astype(int)}
    sizes = {}
    for index in chosen:
        try:
            sizes[index] = picture_size(boxes.sources[index])
        except (BadSample, OSError):  # named when its boxes are read
            continue
    looked = [(b, *sizes[of]) for b, of in zip(boxes.boxes, boxes.of, strict=True) if of in sizes]
    if not looked:
        return
    far = [
        (box, height, width)
        for box, height, width in looked
        if box.x + box.w > (1 + FAR) * width
        or box.y + box.h > (1 + FAR) * height
        or box.x < -FAR * width
        or box.y < -FAR * height
    ]
    corners = _mostly(
        -FAR * width <= b.x < b.w <= (1 + FAR) * width and -FAR * height <= b.y < b.h <= (1 + FAR) * height
        for b, height, width in looked
    )
    swapped = _mostly(
        min(b.x / height, b.y / width) >= -FAR and max((b.x + b.w) / height, (b.y + b.h) / width) <= 1 + FAR
        for b, height, width in looked
    )
    outside = any(
        not (0 < b.x + b.w / 2 < width and 0 < b.y + b.h / 2 < height) for b, height, width in looked
    )
    told = outside or len(looked) >= FEW
    if all(max(box.x, box.y, box.w, box.h) <= 1 for box, _, _ in looked):
        looks = "like shares of the picture: multiply by its width and height"
    elif corners and len(far) > MANY * len(looked):
        looks = "like x1 y1 x2 y2: subtract to get x, y, w, h"
    elif told and swapped and len(far) > MANY * len(looked):
        looks = "like y x h w, or like those of pictures that were not turned upright"
    elif told and len(far) > len(looked) / 2:
        looks = "like those of other pictures, of another size, or of pictures that were not turned upright"
    else:
        return
    examples = [
        f"box {box.number}: x {box.x:g}, y {box.y:g}, w {box.w:g}, h {box.h:g} in {width} x {height} pixels"
        for box, height, width in far or looked
    ]
    raise HapError(
        f"{path} looks {looks}; {len(far):,} of {len(looked):,} boxes leave their picture by far"
        + first_lines(examples, 3)
    )


def _mostly(fits: Iterable[bool]) -> bool:
    return float(np.mean(list(fits))) >= 0.95


def picture_size(source: Source) -> tuple[int, int]:
    """Height and width of the upright picture, without decoding it. Raises BadSample or OSError."""
    if isinstance(source, FrameRecord):
        if source.video.size == (0, 0):
            raise BadSample("its video cannot be read")
        return source.video.size
    return image_size(source.encoded(), upright=True)
