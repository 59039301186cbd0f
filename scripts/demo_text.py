"""`make demo-text`: does pre-training help to find people by a sentence? On drawn people and a CPU, in minutes.

The weights that come with hap (`weights=drawn`) are fine-tuned on drawn people with captions whom they have never seen.
So is the same encoder from nothing, with the same seed, steps and settings; the words begin at random in both. The
first rows of the table say how far one gets without a network. Each run's folder holds its record and pictures."""

import re

import cv2
import numpy as np
import torch
from demo_base import Demo

from hap.building import build
from hap.data.text_reid import TextRecords
from hap.metrics.ranking import evaluate_ranking
from hap.synthetic.person import COLOURS, HAIR_COLOURS

COLUMNS = {"mAP": "mAP (%)", "rank1": "rank 1 (%)"}
ORDERS = 20  # random ones, of which the table has the mean
PALETTE = {**HAIR_COLOURS, **COLOURS}
NAMES = sorted(PALETTE, key=len, reverse=True)  # "dark red" is not red
# What has a colour in a caption, and the rows of 64 that it is looked for in; the last ones anywhere.
PARTS = {
    "hair|cap|beanie|hat": slice(0, 12),
    "t-shirt|shirt|sweater|jacket|coat|dress|top": slice(10, 34),
    "trousers|jeans|shorts|skirt": slice(30, 56),
    "sneakers|shoes|boots": slice(54, 64),
    "backpack|bag": slice(0, 64),
}
OF_THE_SAME = "print|dots|side stripes"  # of the part that was named before
WORD = re.compile("|".join(rf"\b({words})\b" for words in ("|".join(NAMES), *PARTS, OF_THE_SAME)))


def main() -> None:
    demo = Demo("demo_text", str(__doc__).splitlines()[0], COLUMNS)
    demo.say("drawing people whom the shipped weights have never seen")
    cfg = demo.config("train")
    datamodule = build(cfg.data, "data")
    train, test = datamodule.records("train"), datamodule.records("test")
    rng = np.random.default_rng(demo.seed)

    demo.say("scoring random orders and colours")
    sizes = len(test.texts), len(test)
    orders = [score(test, *(rng.standard_normal((size, 64)) for size in sizes)) for _ in range(ORDERS)]
    demo.scores("random order", {name: float(np.mean([order[name] for order in orders])) for name in COLUMNS})
    words, pixels = colour_words(train.texts), colours_of_pixels(train)
    found, seen = colour_words(test.texts), colours_of_pixels(test)
    whole = standard(found.sum(1), words.sum(1)), standard(seen[:, -1], pixels[:, -1])
    demo.scores("colour words, colours of pixels", score(test, *whole))
    parts = standard(found, words), standard(seen, pixels)
    demo.scores("the same by parts of the body", score(test, *parts))

    demo.finetune(cfg.epochs, test=True)
    shown = f"{len(test.texts)} captions, {len(test)} images of {len(test.people)} people"
    demo.finish(f"{shown} not seen in training:")


def colour_words(texts: list[str]) -> np.ndarray:
    """How often captions say that a part has a colour, (K, P, 19): that which the next noun names."""
    rows = np.zeros((len(texts), len(PARTS), len(NAMES)))
    for row, text in zip(rows, texts, strict=True):
        part, colours = 0, []
        for word in WORD.finditer(text):
            group = word.lastindex or 0
            if group == 1:
                colours.append(NAMES.index(word[0]))
                continue
            if group < WORD.groups:
                part = group - 2
            row[part, colours] += 1
            colours = []
    return rows


def colours_of_pixels(records: TextRecords) -> np.ndarray:
    """Square roots of the shares of pixels by the nearest of the colours, (N, P, 19), in the middle half of the width;
    with what is behind the person, as a network sees it, too."""
    palette = lab(np.array([[PALETTE[name] for name in NAMES]], np.uint8))[0]
    rows = []
    for record in records:
        image = cv2.resize(record.pixels(), (32, 64), interpolation=cv2.INTER_AREA)[:, 8:24]
        nearest = np.linalg.norm(lab(image)[:, :, None] - palette, axis=-1).argmin(-1)
        parts = [nearest[part] for part in PARTS.values()]
        rows.append([np.bincount(part.ravel(), minlength=len(palette)) / part.size for part in parts])
    return np.sqrt(rows)


def lab(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def standard(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Rows in deviations from the mean of the training people's: what all have tells nobody apart."""
    return ((values - known.mean(0)) / known.std(0).clip(min=1e-6)).reshape(len(values), -1)


def score(records: TextRecords, texts: np.ndarray, images: np.ndarray) -> dict[str, float]:
    """mAP and rank 1 by features of all captions (K, D) and images (N, D)."""
    person = torch.tensor([record.identity for record in records])
    caption = person.repeat_interleave(torch.tensor([len(record.captions) for record in records]))
    ranking = evaluate_ranking(torch.from_numpy(texts), torch.from_numpy(images), caption, person)
    return {"mAP": ranking.mAP, "rank1": ranking.rank(1)}


if __name__ == "__main__":
    main()
