"""Writers of people with descriptions: CUHK-PEDES, ICFG-PEDES, RSTPReid, and one's own JSON lines.

Everybody is somebody else, in clothes of their own, drawn whole and seen by several cameras. Each image has sentences
of its own, which say what it shows.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hap.errors import HapError
from hap.synthetic.attributes import draw_shown
from hap.synthetic.caption import describe
from hap.synthetic.scene import camera
from hap.synthetic.writing import Run, save_image, write_json


class _Shot(NamedTuple):
    """One image: who, in which split, by which camera, the how manieth of the person."""

    split: str
    who: int
    place: int
    turn: int


def _plan(
    num_images: int, seed: int, images_per_identity: int, shares: dict[str, float], num_cameras: int = 12
) -> list[_Shot]:
    """People in the order of the splits; the last one has what the shares of the others leave."""
    people = num_images // images_per_identity
    *first, last = shares
    if images_per_identity < 2 or people < len(shares) + 2:
        raise HapError(
            f"{num_images} images, {images_per_identity} per identity: at least {len(shares) + 2} people with two "
            "images each are needed"
        )
    counts = {split: max(1, round(shares[split] * people)) for split in first}
    counts["train"] -= max(0, 2 - (people - sum(counts.values())))  # a gallery of two people, at the least
    counts[last] = people - sum(counts.values())
    splits = [split for split, count in counts.items() for _ in range(count)]
    shots = []
    for who, split in enumerate(splits):
        places = np.random.default_rng([seed, 83, who]).permutation(num_cameras)
        shots += [_Shot(split, who, int(places[i % num_cameras]), i) for i in range(images_per_identity)]
    return shots


# File, seed, number of the image, what it shows, how many sentences.
_Job = tuple[Path, int, int, _Shot, int]


def _image(job: _Job) -> list[str]:
    """Draws one image; returns its sentences."""
    path, seed, number, shot, sentences = job
    shown = draw_shown(seed, number, shot.who, shot.place, (150, 220))
    path.parent.mkdir(parents=True, exist_ok=True)
    quality = None if path.suffix == ".png" else camera(seed, shot.place).quality
    save_image(path, shown.drawn.image, quality)
    rng = np.random.default_rng([seed, 89, number])
    return [describe(shown.person, shown.pose.activity, shown.view, rng) for _ in range(sentences)]


def _draw(
    root: Path, shots: list[_Shot], seed: int, run: Run, name: Callable[[int, _Shot], str], sentences: int
) -> list[tuple[str, list[str]]]:
    """Draws all images; their names and sentences."""
    names = [name(number, shot) for number, shot in enumerate(shots)]
    jobs = [(root / names[n], seed, n, shot, sentences) for n, shot in enumerate(shots)]
    return list(zip(names, run(_image, jobs), strict=True))


def cuhk_pedes(out: Path, num_images: int, seed: int, run: Run, *, images_per_identity: int = 4) -> None:
    """CUHK-PEDES: `CUHK-PEDES/reid_raw.json`, images of two sentences below `imgs` in folders by where they come
    from, some of them PNG; people from 1, those of training first, then validation and test."""
    root = out / "CUHK-PEDES"
    shots = _plan(num_images, seed, images_per_identity, {"train": 0.7, "val": 0.1, "test": 0.2})
    sources = ("cam_a", "CUHK01", "CUHK03", "Market", "test_query", "train_query")

    def name(number: int, shot: _Shot) -> str:
        source = sources[shot.who % len(sources)]
        return f"{source}/p{shot.who + 1}_s{number}.{'png' if source == 'CUHK01' else 'jpg'}"

    records = [
        {
            "split": shot.split,
            "captions": captions,
            "file_path": file,
            "processed_tokens": [caption.lower().rstrip(".").split() for caption in captions],
            "id": shot.who + 1,
        }
        for shot, (file, captions) in zip(shots, _draw(root / "imgs", shots, seed, run, name, 2), strict=True)
    ]
    write_json(root / "reid_raw.json", records)


def icfg_pedes(out: Path, num_images: int, seed: int, run: Run, *, images_per_identity: int = 4) -> None:
    """ICFG-PEDES: `ICFG-PEDES/ICFG-PEDES.json`, images of one sentence below `imgs/{train,test}/PERSON`; people from 0,
    no validation part, and tokens nested deeper in the test part."""
    root = out / "ICFG-PEDES"
    shots = _plan(num_images, seed, images_per_identity, {"train": 0.75, "test": 0.25})

    def name(number: int, shot: _Shot) -> str:
        # The folders are those of MSMT17, which are not the split.
        return f"{'train' if shot.who % 3 else 'test'}/{shot.who:04d}/{shot.who:04d}_{shot.turn:03d}_{number}.jpg"

    records = []
    for shot, (file, captions) in zip(shots, _draw(root / "imgs", shots, seed, run, name, 1), strict=True):
        tokens = [caption.lower().rstrip(".").split() for caption in captions]
        nested = [tokens] if shot.split == "test" else tokens
        records.append(
            {
                "split": shot.split,
                "captions": captions,
                "file_path": file,
                "processed_tokens": nested,
                "id": shot.who,
            }
        )
    write_json(root / "ICFG-PEDES.json", records)


def rstpreid(out: Path, num_images: int, seed: int, run: Run, *, images_per_identity: int = 5) -> None:
    """RSTPReid: `RSTPReid/data_captions.json`, images of two sentences in `imgs`, named `PPPP_cCC_NNNN.jpg`; people
    from 0."""
    root = out / "RSTPReid"
    shots = _plan(num_images, seed, images_per_identity, {"train": 0.7, "val": 0.1, "test": 0.2})

    def name(number: int, shot: _Shot) -> str:
        return f"{shot.who:04d}_c{shot.place + 1}_{shot.turn:04d}.jpg"

    records = [
        {"id": shot.who, "img_path": file, "captions": captions, "split": shot.split}
        for shot, (file, captions) in zip(shots, _draw(root / "imgs", shots, seed, run, name, 2), strict=True)
    ]
    write_json(root / "data_captions.json", records)


def described(out: Path, num_images: int, seed: int, run: Run, *, images_per_identity: int = 4) -> None:
    """One's own people: `captions.jsonl`, images of two sentences in `images`."""
    shots = _plan(num_images, seed, images_per_identity, {"train": 0.7, "val": 0.1, "test": 0.2})
    drawn = _draw(out, shots, seed, run, lambda number, _: f"images/{number:06d}.jpg", 2)
    lines = [
        json.dumps(
            {"image": file, "identity": f"person {shot.who}", "split": shot.split, "captions": captions}
        )
        for shot, (file, captions) in zip(shots, drawn, strict=True)
    ]
    (out / "captions.jsonl").write_text("\n".join(lines) + "\n")
