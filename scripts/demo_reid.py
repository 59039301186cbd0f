"""`make demo-reid`: does pre-training help to find people again? On drawn people and a CPU, in minutes.

A very small HAP is pre-trained on drawn people and then fine-tuned on others to re-identify them. So is the same
encoder from random weights, with the same seed, steps and settings. The first rows of the table say how far one
gets without training. Each run's folder holds its record and pictures. Another --seed draws other people."""

import argparse
import logging
import multiprocessing
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from safetensors.torch import save_file

from hap.config import CONF_DIR, register
from hap.data.base import decode_image
from hap.data.reid import ReidRecord
from hap.metrics.ranking import evaluate_ranking
from hap.report import print_table
from hap.runner import build, run


def main() -> None:
    parser = argparse.ArgumentParser(description="re-identification with and without HAP, on drawn people")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo_reid") / time.strftime("%Y-%m-%d_%H-%M-%S")
    )
    options = parser.parse_args()
    prepare()
    demo = Demo(options.out.absolute(), options.seed)

    demo.say("drawing people")
    cfg = config("train", "demo_reid", options.seed)
    records = build(cfg.data, "data").records("test")
    rng = np.random.default_rng(options.seed)
    demo.row("random order", score(records, lambda _: rng.standard_normal(512)))
    demo.row("colour histogram", score(records, colour_histogram))

    untrained = demo.out / "random.safetensors"
    model = build(cfg.task, "task").model
    save_file(model.state_dict(), untrained, metadata={"grid": "{}x{}".format(*model.grid)})
    demo.row("encoder, random weights", demo.run("eval", "random", f"weights={untrained}", "zero_shot=true"))
    demo.say("pre-training")
    demo.run("train", "pretrain", experiment="demo_reid_pretrain")
    hap = f"weights={demo.out}/pretrain/checkpoints/last.ckpt"
    demo.row("encoder, HAP", demo.run("eval", "hap", hap, "zero_shot=true"))
    demo.say("fine-tuning from random weights and from HAP")
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), prepare) as pool:
        untrained_run = pool.submit(demo.run, "train", "finetuned_random")
        hap_run = pool.submit(demo.run, "train", "finetuned_hap", hap)
        demo.row("fine-tuned from random weights", untrained_run.result())
        demo.row("fine-tuned from HAP", hap_run.result())

    demo.say(f"done; pictures of what was found in {demo.out}/finetuned_hap/pictures")
    queries = sum(record.is_query for record in records)
    print(f"\n{queries} queries, {len(records) - queries} gallery images, people not seen in training:")
    print_table(["", "mAP (%)", "rank 1 (%)"], demo.rows)


def prepare() -> None:
    """Of each process: one thread, as the matrices are too small to share, and little to read."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("hap.data.reid", "lightning.pytorch"):  # sets that are not the published ones; hints
        logging.getLogger(name).setLevel(logging.ERROR)


class Demo:
    """Runs with one seed below one folder, and the table that they make."""

    def __init__(self, out: Path, seed: int):
        self.out, self.seed, self.start = out, seed, time.perf_counter()
        self.rows: list[list[str]] = []
        out.mkdir(parents=True)

    def say(self, what: str) -> None:
        print(f"{time.perf_counter() - self.start:4.0f} s  {what}", flush=True)

    def row(self, name: str, scores: dict[str, float]) -> None:
        values = {key.rpartition("/")[2]: value for key, value in scores.items()}
        self.rows.append([name, *(f"{100 * values[key]:.1f}" for key in ("mAP", "rank1"))])

    def run(
        self, program: str, folder: str, *overrides: str, experiment: str = "demo_reid"
    ) -> dict[str, float]:
        return run(program, config(program, experiment, self.seed, *overrides), self.out / folder)


def config(program: str, experiment: str, seed: int, *overrides: str) -> DictConfig:
    """As the command line composes it, without a progress bar."""
    register()
    quiet = ("callbacks.progress=null", "trainer.enable_progress_bar=false")
    root = f"data.draw.root=${{oc.env:HAP_DATA,data}}/synthetic/seed_{seed}/${{data.draw.dataset}}"
    people = (f"seed={seed}", f"+data.draw.seed={seed}", root)
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose(program, [f"experiment={experiment}", *quiet, *people, *overrides])


def colour_histogram(image: np.ndarray) -> np.ndarray:
    """Square roots of the shares of 8 x 8 x 4 hues, saturations and values in each sixth of the height."""
    parts = np.array_split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), 6)
    bins = [cv2.calcHist([part], [0, 1, 2], None, [8, 8, 4], [0, 180, 0, 256, 0, 256]) for part in parts]
    return np.sqrt(np.concatenate(bins).ravel() / image[..., 0].size)


def score(records: list[ReidRecord], feature: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    """mAP and rank 1 by a feature of the image (H, W, 3) uint8."""
    features = torch.from_numpy(np.stack([feature(decode_image(record.encoded())) for record in records]))
    ids, cams = (
        torch.tensor([getattr(record, name) for record in records]) for name in ("identity", "camera")
    )
    query = torch.tensor([record.is_query for record in records])
    parts = [values[part] for values in (features, ids, cams) for part in (query, ~query)]
    ranking = evaluate_ranking(*parts)
    return {"mAP": ranking.mAP, "rank1": ranking.rank(1)}


if __name__ == "__main__":
    main()
