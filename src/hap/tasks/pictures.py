"""Pictures and videos with the people in them drawn over, for every task that says where people are."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from hap.data.video import write_video
from hap.errors import BadSample
from hap.plots import write_picture

NUM_PICTURES = 60  # that are drawn, of those with people, evenly spread

Picture = tuple[Any, list[int]]  # and the people in it, by their places in the records
Draw = Callable[[np.ndarray, list[int]], np.ndarray]  # over a picture (H, W, 3) its people


def by_picture(records: Sequence[Any], pictures: Sequence[Any]) -> list[Picture]:
    """Who is in each picture, also in those in which nobody is."""
    found: dict[tuple[str, int | None], Picture] = {}
    for picture in pictures:
        found.setdefault((str(picture.path), picture.frame), (picture, []))
    for i, record in enumerate(records):
        found[str(record.path), record.frame][1].append(i)
    return list(found.values())


def drawn_pictures(pictures: Sequence[Picture]) -> list[tuple[int, Picture]]:
    """The images with people that are drawn, each with its number among all such."""
    images = [(picture, people) for picture, people in pictures if picture.frame is None and people]
    chosen = np.linspace(0, len(images) - 1, min(NUM_PICTURES, len(images))).round().astype(int)
    return [(number, images[number]) for number in chosen.tolist()]


def draw_people(folder: Path, pictures: Sequence[Picture], draw: Draw) -> None:
    """`NUMBER.png` of images; of a video `NAME.mp4`, all of its frames that were given."""

    def readable(frames: Sequence[Picture]) -> Iterator[np.ndarray]:
        for picture, people in frames:
            with suppress(BadSample):  # it was named when it was read
                yield draw(picture.pixels(), people)

    for number, (picture, people) in drawn_pictures(pictures):
        write_picture(folder / f"{number:06d}.png", draw(picture.pixels(), people))
    videos: dict[str, list[Picture]] = {}
    for picture, people in pictures:
        if picture.frame is not None:
            videos.setdefault(str(picture.path), []).append((picture, people))
    taken: Counter[str] = Counter()
    for path, frames in videos.items():
        name = Path(path).name.removesuffix(Path(path).suffix)
        taken[name] += 1
        name += f"_{taken[name]}" if taken[name] > 1 else ""  # of another folder
        length = frames[-1][0].seconds - frames[0][0].seconds
        rate = (len(frames) - 1) / length if length > 0 else 25.0
        folder.mkdir(exist_ok=True)
        write_video(folder / f"{name}.mp4", rate, readable(frames))
