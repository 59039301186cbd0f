"""`make demo-text`: does pre-training help to find people by a sentence? On drawn people and a CPU, in minutes.

The weights that come with hap (`weights=drawn`) are fine-tuned on drawn people with captions whom they have never seen.
So is the same encoder from nothing, with the same seed, steps and settings; the words begin at random in both. The
first rows of the table say how far one gets without a network. Each run's folder holds its record and pictures."""

import re
from collections.abc import Iterable

import cv2
import numpy as np
import torch
from demo_base import Demo

from hap.building import build
from hap.data.text_reid import TextRecords
from hap.metrics.ranking import evaluate_ranking
from hap.synthetic.person import COLOURS

COLUMNS = {"mAP": "mAP (%)", "rank1": "rank 1 (%)"}
NAMES = list(COLOURS)
# "dark red" is not red.
WORD = re.compile(r"\b(" + "|".join(sorted(COLOURS, key=len, reverse=True)) + r")\b")


def main() -> None:
    demo = Demo("demo_text", str(__doc__).splitlines()[0], COLUMNS)
    demo.say("drawing people whom the shipped weights have never seen")
    cfg = demo.config("train")
    datamodule = build(cfg.data, "data")
    train, test = datamodule.records("train"), datamodule.records("test")
    rng = np.random.default_rng(demo.seed)

    random = (rng.standard_normal((count, 512)) for count in (len(test.texts), len(test)))
    demo.scores("random order", score(test, *random))
    demo.scores("colour words, colours of pixels", score(test, *by_colours(train, test)))

    demo.finetune(cfg.epochs, test=True)
    shown = f"{len(test.texts)} captions, {len(test)} images of {len(test.people)} people"
    demo.finish(f"{shown} not seen in training:")


def by_colours(train: TextRecords, test: TextRecords) -> Iterable[np.ndarray]:
    """How often a caption names each colour, (K, 17), and how many pixels of an image have it, (N, 17), in standard
    deviations from the mean of the training people: what all have tells nobody apart."""
    for of in (colour_words, colours_of_pixels):
        known, found = of(train), of(test)
        yield (found - known.mean(0)) / known.std(0).clip(min=1e-6)


def colour_words(records: TextRecords) -> np.ndarray:
    rows = [[WORD.findall(text).count(name) for name in NAMES] for text in records.texts]
    return np.array(rows, float)


def colours_of_pixels(records: TextRecords) -> np.ndarray:
    """Square roots of the shares of pixels, in the middle half of the width, by the nearest of the colours."""
    palette = lab(np.array([list(COLOURS.values())], np.uint8))[0]
    rows = []
    for record in records:
        image = cv2.resize(record.pixels(), (32, 64), interpolation=cv2.INTER_AREA)[:, 8:24]
        distance = np.linalg.norm(lab(image)[:, :, None] - palette, axis=-1)
        rows.append(np.bincount(distance.argmin(-1).ravel(), minlength=len(palette)) / distance[..., 0].size)
    return np.sqrt(rows)


def lab(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def score(records: TextRecords, texts: np.ndarray, images: np.ndarray) -> dict[str, float]:
    """mAP and rank 1 by features of all captions (K, D) and images (N, D)."""
    person = torch.tensor([record.identity for record in records])
    caption = person.repeat_interleave(torch.tensor([len(record.captions) for record in records]))
    ranking = evaluate_ranking(torch.from_numpy(texts), torch.from_numpy(images), caption, person)
    return {"mAP": ranking.mAP, "rank1": ranking.rank(1)}


if __name__ == "__main__":
    main()
