"""What the demonstrations share: quiet runs of the programs with one seed, side by side, and a table at the end.

Every demonstration names the start that it uses, next to the same from nothing, on the same people and budget. Another
seed draws other people."""

import argparse
import logging
import multiprocessing
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from hap.config import CONF_DIR, register
from hap.console import print_table
from hap.runner import run


def prepare() -> None:
    """Of each process: one thread, as the matrices are too small to share, and little to read."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Sets that are not the published ones, encoders that were not fine-tuned, hints.
    for name in ("hap.data", "hap.runner", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)


class Demo:
    """Runs of one experiment with one seed below one folder, and the table that they make.

    Args:
        experiment: of all runs; its folder below runs/ is where they go.
        description: for --help.
        columns: of the table, after the name of a row: the name of a score, and its title.
        factor: of the scores in the table.
    """

    def __init__(self, experiment: str, description: str, columns: Mapping[str, str], factor: float = 100):
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--seed", type=int, default=0, help="of people and training")
        folder = Path("runs") / experiment / time.strftime("%Y-%m-%d_%H-%M-%S")
        parser.add_argument("--out", type=Path, default=folder, help=f"default: {folder}")
        options = parser.parse_args()
        self.experiment, self.columns, self.factor = experiment, columns, factor
        self.rows: list[list[str]] = []
        self.pictures: list[Path] = []
        self.out, self.seed, self.start = options.out.absolute(), options.seed, time.perf_counter()
        self.out.mkdir(parents=True)
        prepare()

    def say(self, what: str) -> None:
        print(f"{time.perf_counter() - self.start:4.0f} s  {what}", flush=True)

    def config(self, program: str, *overrides: str) -> DictConfig:
        """As the command line composes it, without a progress bar."""
        register()
        quiet = ("callbacks.progress=null", "trainer.enable_progress_bar=false")
        root = f"data.draw.root=${{oc.env:HAP_DATA,data}}/synthetic/seed_{self.seed}/${{name}}"
        people = (f"seed={self.seed}", f"data.draw.seed={self.seed}", root)
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            return compose(program, [f"experiment={self.experiment}", *quiet, *people, *overrides])

    def run(self, program: str, folder: str, *overrides: str) -> dict[str, float]:
        """One run in the folder of this name; its results."""
        return run(program, self.config(program, *overrides), self.out / folder)

    def train(self, **runs: tuple[str, ...]) -> dict[str, dict[str, float]]:
        """Trainings side by side, two at a time, folder=overrides; their results. What they left is in the folders."""
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), prepare) as pool:
            started = {
                name: pool.submit(self.run, "train", name, *overrides) for name, overrides in runs.items()
            }
            return {name: one.result() for name, one in started.items()}

    def checkpoint(self, folder: str) -> Path:
        return self.out / folder / "checkpoints" / "last.ckpt"

    def picture(self, name: str, picture: np.ndarray) -> None:
        """RGB (H, W, 3) uint8, to be named at the end."""
        self.pictures.append(self.out / f"{name}.png")
        cv2.imwrite(str(self.pictures[-1]), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def row(self, name: str, *values: str) -> None:
        self.rows.append([name, *values])

    def scores(self, name: str, found: Mapping[str, float]) -> None:
        """A row of scores. Their names may stand behind that of a split, `val/AP`."""
        values = {key.rpartition("/")[2]: value for key, value in found.items()}
        self.row(name, *(f"{self.factor * values[key]:.1f}" for key in self.columns))

    def finetune(self, epochs: int, test: bool = False) -> None:
        """Fine-tune from nothing and from the shipped weights, all else alike: two rows, and the pictures of the
        latter. `test`: validation has people of its own, and the rows are of the test's."""
        self.say(f"fine-tuning both alike, {epochs} epochs, side by side")
        results = self.train(finetuned_nothing=(), finetuned_drawn=("weights=drawn",))
        folder = "test_drawn" if test else "finetuned_drawn"
        if test:
            for name in results:
                checkpoint = f"ckpt_path={self.checkpoint(name)}"
                results[name] = self.run("eval", name.replace("finetuned", "test"), checkpoint)
        self.scores("fine-tuned from nothing", results["finetuned_nothing"])
        self.scores("fine-tuned from weights=drawn", results["finetuned_drawn"])
        self.pictures += sorted((self.out / folder / "pictures").glob("*.png"))

    def finish(self, title: str) -> None:
        """The table, and where the pictures are."""
        self.say("done")
        print(f"\n{title}")
        print_table(["", *self.columns.values()], self.rows)
        print("\n".join(["pictures:", *map(str, self.pictures)]))


def colour_histogram(image: np.ndarray) -> np.ndarray:
    """Square roots of the shares of 8 x 8 x 4 hues, saturations and values in each sixth of the height."""
    parts = np.array_split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), 6)
    bins = [cv2.calcHist([part], [0, 1, 2], None, [8, 8, 4], [0, 180, 0, 256, 0, 256]) for part in parts]
    return np.sqrt(np.concatenate(bins).ravel() / image[..., 0].size)
