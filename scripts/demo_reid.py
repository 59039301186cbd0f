"""`make demo-reid`: does pre-training help to find people again? On drawn people and a CPU, in minutes.

The weights that come with hap (`weights=drawn`) are fine-tuned to re-identify drawn people whom they have never seen.
So is the same encoder from nothing, with the same seed, steps and settings. The first rows of the table say how far
one gets without training. Each run's folder holds its record and pictures."""

from collections.abc import Callable

import numpy as np
import torch
from demo_base import Demo, colour_histogram
from safetensors.torch import save_file

from hap.building import build
from hap.data.reid import ReidRecord
from hap.metrics.ranking import evaluate_ranking
from hap.models.vit import create_encoder

COLUMNS = {"mAP": "mAP (%)", "rank1": "rank 1 (%)"}


def main() -> None:
    demo = Demo("demo_reid", str(__doc__).splitlines()[0], COLUMNS)
    demo.say("drawing people whom the shipped weights have never seen")
    cfg = demo.config("train")
    records = build(cfg.data, "data").records("test")
    rng = np.random.default_rng(demo.seed)

    demo.scores("random order", score(records, lambda _: rng.standard_normal(512)))
    demo.scores("colour histogram", score(records, colour_histogram))

    demo.say("scoring the encoder as it is: random, and weights=drawn")
    torch.manual_seed(demo.seed)
    untrained = demo.out / "random.safetensors"
    save_file(create_encoder("vit_micro", tuple(cfg.img_size)).state_dict(), untrained, {"grid": "16x8"})
    demo.scores("encoder, random", demo.run("eval", "random", f"weights={untrained}", "zero_shot=true"))
    demo.scores("encoder, weights=drawn", demo.run("eval", "drawn", "weights=drawn", "zero_shot=true"))

    demo.finetune(cfg.epochs)
    queries = sum(record.is_query for record in records)
    demo.finish(f"{queries} queries, {len(records) - queries} gallery images, people not seen in training:")


def score(records: list[ReidRecord], feature: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    """mAP and rank 1 by a feature of the image (H, W, 3) uint8."""
    features = torch.from_numpy(np.stack([feature(record.pixels()) for record in records]))
    ids, cams = (
        torch.tensor([getattr(record, name) for record in records]) for name in ("identity", "camera")
    )
    query = torch.tensor([record.is_query for record in records])
    parts = [values[part] for values in (features, ids, cams) for part in (query, ~query)]
    ranking = evaluate_ranking(*parts)
    return {"mAP": ranking.mAP, "rank1": ranking.rank(1)}


if __name__ == "__main__":
    main()
