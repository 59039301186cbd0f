"""Writers of pedestrian attribute data: PA-100K, RAP and PETA, with labels that are true of the drawing.

Everybody is drawn whole, with nobody and nothing in front, so that what is labelled can be seen. The annotations are
MATLAB 5 files with structures and cells nested as in the published ones.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hap.errors import HapError
from hap.synthetic import labels
from hap.synthetic.labels import UNTOLD, Shown
from hap.synthetic.person import identity, pick
from hap.synthetic.pose import sample_pose
from hap.synthetic.render import render
from hap.synthetic.scene import camera
from hap.synthetic.writing import Run, save_image, save_mat

_ACTIVITIES = {"walking": 0.56, "standing": 0.22, "phoning": 0.07, "texting": 0.07, "carrying": 0.08}


def draw_shown(seed: int, number: int, who: int, place: int, heights: tuple[int, int]) -> Shown:
    """Image `number` of the data set: person `who`, seen by camera `place`; `heights`: least and greatest."""
    rng = np.random.default_rng([seed, 41, number])
    height = int(rng.integers(heights[0], heights[1] + 1))
    size = round(height * rng.uniform(0.42, 0.54)), height
    person = identity(seed, who)
    pose = sample_pose(rng, pick(rng, _ACTIVITIES, list(_ACTIVITIES.values())))
    return Shown(person, pose, render(person, pose, camera(seed, place), rng, size=size, whole=True))


def _parts(num_images: int, shares: tuple[float, ...], most: int) -> list[int]:
    """How many images each part holds. Raises HapError where one might be empty, or the layout has no room."""
    if not 10 <= num_images <= most:
        raise HapError(f"num_images is {num_images}: from 10 to {most} images are needed")
    parts = [round(share * num_images) for share in shares]
    return [*parts, num_images - sum(parts)]


def _cells(values: Any) -> np.ndarray:
    """A column of cells."""
    cells = np.empty((len(values), 1), object)
    cells[:, 0] = values
    return cells


def _row(facts: dict[str, bool], names: tuple[str, ...]) -> list[int]:
    """Labels in the order of the names."""
    return [int(name not in UNTOLD and facts[name]) for name in names]


# Images are numbered from 0; a job is (folder of the images, seed, number).
_Job = tuple[Path, int, int]


def pa100k(out: Path, num_images: int, seed: int, run: Run) -> None:
    """PA-100K: `annotation.mat` and `data/000001.jpg` ...; the first 80 % of the images are for training, the next
    10 % for validation, the others for the test. Everyone is somebody else."""
    train, val, _ = _parts(num_images, (0.8, 0.1), 999_999)
    (out / "data").mkdir()
    rows = np.array(run(_pa100k_image, [(out / "data", seed, n) for n in range(num_images)]), np.uint8)
    names = [f"{number + 1:06d}.jpg" for number in range(num_images)]
    parts = {"train": slice(train), "val": slice(train, train + val), "test": slice(train + val, None)}
    variables: dict[str, Any] = {"attributes": _cells(labels.PA100K)}
    for split, part in parts.items():
        variables[f"{split}_images_name"] = _cells(names[part])
        variables[f"{split}_label"] = rows[part]
    save_mat(out / "annotation.mat", variables)


def _pa100k_image(job: _Job) -> list[int]:
    """Draws one image; returns its labels."""
    folder, seed, number = job
    place = number % 24
    shown = draw_shown(seed, number, number, place, (150, 200))
    save_image(folder / f"{number + 1:06d}.jpg", shown.drawn.image, camera(seed, place).quality)
    return _row(labels.pa100k(shown), labels.PA100K)


# Of eight images in a row, the first three show one person, the next two another: random parts of them share people.
_SHOWN_AGAIN = (0, 0, 0, 1, 1, 2, 3, 4)


def _who(number: int) -> int:
    """The person in an image."""
    return number // 8 * 5 + _SHOWN_AGAIN[number % 8]


def _partitions(num_images: int, seed: int, shares: tuple[float, ...]) -> list[list[np.ndarray]]:
    """Five times: images from 1, shuffled and dealt out, uint16."""
    ends = np.cumsum(_parts(num_images, shares, 65_535))[:-1]
    orders = (np.random.default_rng([seed, 43, k]).permutation(num_images) for k in range(5))
    return [np.split((order + 1).astype(np.uint16), ends) for order in orders]


def _save_zero_shot(
    out: Path, names: Sequence[str], rows: np.ndarray, attributes: Sequence[str], evaluated: int
) -> None:
    """`dataset_zs_run0.pkl`: one split into about 60, 20 and 20 % of the images, nobody in two parts."""
    who = np.array([_who(number) for number in range(len(names))])
    ends = [int(np.searchsorted(who, who[round(share * len(who)) - 1], "right")) for share in (0.6, 0.8)]
    train, val, test = np.split(np.arange(len(who)), ends)
    content = {
        "image_name": list(names),
        "label": rows,
        "attr_name": list(attributes),
        "label_idx": {"eval": list(range(evaluated))},
        "partition": {"train": train, "val": val, "trainval": np.concatenate([train, val]), "test": test},
    }
    (out / "dataset_zs_run0.pkl").write_bytes(pickle.dumps(content, protocol=4))


def rap(out: Path, num_images: int, seed: int, run: Run) -> None:
    """RAP: `RAP_annotation/RAP_annotation.mat` and `RAP_dataset/CAM..._line1.png`, 23 cameras, five partitions with
    80 % of the images in trainval. `identity` numbers the people who are seen more than once, -1 is everybody else;
    `attribute_chinese` and `attribute_exp` hold the English names. Female is 2, unsure, for the smallest who have short
    hair and are seen from behind."""
    partitions = _partitions(num_images, seed, (0.8,))
    (out / "RAP_dataset").mkdir()
    (out / "RAP_annotation").mkdir()
    drawn = run(_rap_image, [(out / "RAP_dataset", seed, n) for n in range(num_images)])
    names, rows, boxes = zip(*drawn, strict=True)
    who = [_who(number) for number in range(num_images)]
    _, where, count = np.unique(who, return_inverse=True, return_counts=True)
    numbers = np.where(count > 1, np.cumsum(count > 1), -1)
    known = 1 + np.arange((count > 1).sum(), dtype=np.int16)
    annotation = {
        "partion": _cells([{"train_index": t[None], "test_index": e[None]} for t, e in partitions]),
        "label": np.array(rows, np.int32),
        "attribute_chinese": _cells(labels.RAP),
        "attribute_eng": _cells(labels.RAP),
        "position": np.array(boxes, np.int32),
        "imagesname": _cells(names),
        "attribute_exp": _cells(labels.RAP[:51]),
        "identity": numbers[where].astype(np.int16)[:, None],
        "reid_partion": {"train_identity": known[0::2][None], "test_identity": known[1::2][None]},
    }
    save_mat(out / "RAP_annotation" / "RAP_annotation.mat", {"RAP_annotation": annotation})
    _save_zero_shot(out, names, np.array(rows, np.int32), labels.RAP, 51)


def _rap_image(job: _Job) -> tuple[str, list[int], list[int]]:
    """Draws one image; returns its name, its labels (92) and four boxes (16)."""
    folder, seed, number = job
    who, place = _who(number), 7 * number % 23
    shown = draw_shown(seed, number, who, place, (160, 220))
    day, hour = 1 + number // 7 % 28, 8 + number % 12
    date = f"201403{day:02d}{hour:02d}"
    name = (
        f"CAM{place + 1:02d}_2014-03-{day:02d}_{date}0000-{date}5959_tarid{who}_frame{100 + number}_line1.png"
    )
    save_image(folder / name, shown.drawn.image)
    row = _row(labels.rap(shown), labels.RAP)
    height = len(shown.drawn.image)
    if height < 165 and shown.view == "Back" and shown.person.hair == "short":
        row[0] = 2
    x, y, w, h = shown.drawn.box.round().astype(int).tolist()
    neck, waist = (round(float(shown.drawn.keypoints[k : k + 2, 1].mean())) for k in (5, 11))
    boxes = [x, y, w, h, x, y, w, neck - y, x, neck, w, waist - neck, x, waist, w, y + h - waist]
    return name, row, boxes


def peta(out: Path, num_images: int, seed: int, run: Run) -> None:
    """PETA: `PETA.mat` and `images/00001.png` ..., ten sources (one camera each), five partitions into 50 % train,
    10 % val, 40 % test."""
    partitions = _partitions(num_images, seed, (0.5, 0.1))
    (out / "images").mkdir()
    rows = np.array(run(_peta_image, [(out / "images", seed, n) for n in range(num_images)]))
    number, who = np.arange(num_images), np.array([_who(n) for n in range(num_images)])
    about = np.stack([number + 1, who + 1, who % 10 + 1, number + 1], 1)
    splits = [dict(zip(("train", "val", "test"), [p[:, None] for p in k], strict=True)) for k in partitions]
    annotation = {
        "data": np.concatenate([about, rows], 1).astype(np.uint16),
        "attribute": _cells(labels.PETA),
        "selected_attribute": np.arange(5, 40, dtype=np.uint8)[None],  # columns of `data`, from 1
        "partion_attribute": _cells(splits),
    }
    save_mat(out / "PETA.mat", {"peta": annotation})
    names = [f"{n + 1:05d}.png" for n in range(num_images)]
    _save_zero_shot(out, names, annotation["data"][:, about.shape[1] :], labels.PETA, 35)


def _peta_image(job: _Job) -> list[int]:
    """Draws one image; returns its labels (105)."""
    folder, seed, number = job
    who = _who(number)
    shown = draw_shown(seed, number, who, who % 10, (120, 180))
    save_image(folder / f"{number + 1:05d}.png", shown.drawn.image)
    return _row(labels.peta(shown), labels.PETA)
