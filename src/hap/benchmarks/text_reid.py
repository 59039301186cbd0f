"""Text-to-image ReID: sentences to ids and to embeddings, and the ranking at the size of the released test sets, each
beside the official code's way."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from hap.benchmarks.reid_eval import Samples, Sizes, both_ways, features_of, name_of
from hap.benchmarks.timing import compare, median_seconds, one_core
from hap.metrics.text_retrieval import TextRetrieval
from hap.synthetic.person import COLOURS
from hap.text.tokens import MAX_LENGTH, Tokenizer

BATCH = 64  # captions, as in the official evaluation
SETS = {  # captions, images, people of the test
    "CUHK-PEDES": (6_156, 3_074, 1_000),
    "ICFG-PEDES": (19_848, 19_848, 1_000),
    "RSTPReid": (2_000, 1_000, 200),
}
Row = dict[str, Any]


def run(
    task: Any,
    tokenizer: Tokenizer,
    num_texts: int = 512,
    repeats: int = 3,
    sets: tuple[str, ...] = tuple(SETS),
    shrink: int = 1,
    numpy_queries: int = 1024,
    block_size: int = 512,
    device: str = "cpu",
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Measure; each row is yielded with those before it.

    Args:
        task: a `TextReid`.
        tokenizer: for its vocabulary.
        num_texts: made-up captions, as long as those of CUHK-PEDES: 29 ids in the mean.
        repeats: of each comparison; the two take turns, the median counts.
        sets: names of the test sets that are ranked.
        shrink: divides their sizes, for a toy.
        numpy_queries: captions that the official way of ranking is timed on, to be scaled up.
        block_size: of the ranking, captions at a time.
        device: of the embeddings and of the ranking; tokens and the official ranking are on the CPU.
        seed: of captions and features.

    Yields:
        `device`; `tokens`: captions/s of one core; `texts`: embeddings/s, beside always 100 ids for each; `ranking`:
        all scores, both protocols, seconds and GB, beside a loop over the captions.
    """
    texts = captions(num_texts, seed)
    results: dict[str, Any] = {"device": name_of(device)}
    with one_core():
        seconds = median_seconds(partial(tokenizer, texts), repeats)
    rows = tokenizer(texts)
    results["tokens"] = [
        {"captions_per_s": num_texts / seconds, "mean_length": sum(map(len, rows)) / num_texts}
    ]
    yield results
    results["texts"] = [embedding(task.to(device).eval().model, rows, repeats)]
    yield results
    results["ranking"] = []
    for name in sets:
        num_texts, num_images, people = (max(2, number // shrink) for number in SETS[name])
        sizes = Sizes(num_texts, num_images, task.model.projection.out_features, people)
        timed = min(numpy_queries, num_texts)
        made = partial(_described, sizes, seed)
        ways = both_ways(made, _scores, _plain_scores, num_texts, timed, block_size, device)
        results["ranking"].append({"set": name, "captions": num_texts, "images": num_images, **ways})
        yield results


def captions(number: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    things = ("shirt", "jacket", "pair of trousers", "backpack", "hat", "scarf", "pair of shoes")
    colours = list(COLOURS)

    def seen() -> str:
        return f"a {colours[rng.integers(len(colours))]} {things[rng.integers(len(things))]}"

    return [
        f"The person is wearing {', '.join(seen() for _ in range(2 + rng.poisson(2)))} and walks away."
        for _ in range(number)
    ]


@torch.no_grad()
def embedding(model: Any, rows: list[np.ndarray], repeats: int) -> Row:
    """Batches of 64 captions in their order."""
    device = model.pos_embed.device
    batches = []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        tokens = torch.zeros(len(part), MAX_LENGTH, dtype=torch.long)
        for row, ids in zip(tokens, part, strict=True):
            row[: len(ids)] = torch.from_numpy(ids)
        batches.append((tokens.to(device), torch.tensor([len(ids) for ids in part], device=device)))

    def embed(cut: bool) -> torch.Tensor:
        return torch.cat(
            [
                model.text_embedding(ids[:, : lengths.max()] if cut else ids, lengths, lengths)
                for ids, lengths in batches
            ]
        )

    seconds, ratio = compare(partial(embed, False), partial(embed, True), repeats)
    return {
        "texts_per_s": len(rows) / seconds,
        "plain_texts_per_s": len(rows) / seconds / ratio,
        "ratio": ratio,
        "largest_difference": (embed(True) - embed(False)).abs().max().item(),
    }


def _described(sizes: Sizes, seed: int) -> tuple[Samples, Samples]:
    """Captions and images; the third part is the image, its own or that of the caption."""
    torch.manual_seed(seed)
    centres = torch.randn(sizes.num_ids, sizes.dim)
    person, image = torch.randint(sizes.num_ids, (sizes.num_gallery,)), torch.arange(sizes.num_gallery)
    own = torch.arange(sizes.num_query) * sizes.num_gallery // sizes.num_query
    return [*features_of(centres, person[own]), own], [*features_of(centres, person), image]


def _scores(texts: Samples, images: Samples, block_size: int) -> np.ndarray:
    metric = TextRetrieval(block_size=block_size)
    for is_query, (features, person, image) in ((True, texts), (False, images)):
        index = torch.arange(len(image), device=image.device)
        metric.update(features, person, image, torch.full_like(index, is_query, dtype=torch.bool), index)
    metric.compute()
    return metric.ranking().ap.numpy()


def _plain_scores(texts: Samples, images: Samples, block_size: int) -> np.ndarray:
    """A caption after the other: all images by their cosine, hits, both average precisions, and the same without the
    caption's own image."""
    features, person, own = (values.numpy() for values in texts)
    gallery, people, _ = (values.numpy() for values in images)
    usual = np.full(len(person), np.nan)
    for start in range(0, len(person), block_size):
        for i, row in enumerate(features[start : start + block_size] @ gallery.T, start):
            order = np.argsort(row)[::-1]
            for kept in (order, order[order != own[i]]):
                hits = (people[kept] == person[i]).nonzero()[0]  # from 0
                if len(hits) == 0:
                    continue
                precision = np.arange(1, len(hits) + 1) / (hits + 1)
                before = np.where(hits > 0, np.arange(len(hits)) / np.maximum(hits, 1), 1)
                if kept is order:
                    usual[i] = precision.mean()
                ((before + precision) / 2).mean()
    return usual
