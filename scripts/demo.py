"""`make demo`: what masked image modelling of people learns, on drawn people and a CPU, in minutes.

Half of each person is hidden by HAP's masks and rebuilt from the other half: by plain image processing, by the
weights that come with hap (`weights=drawn`), by these after a minute of further training, and by the same model
after a minute of training from nothing. Nobody shown was trained on. What the encoder has learnt is also seen without
the decoder: images that look alike are near each other, by the place more than by the person, as nobody told it who is
who (`make demo-reid` does)."""

from collections.abc import Callable

import cv2
import numpy as np
import torch
from demo_base import Demo
from torch.nn import functional as F
from torch.utils.data import DataLoader, default_collate

from hap.building import build
from hap.data.base import Dataset
from hap.models.checkpoint import load_weights
from hap.models.masking import Block, BlockParts, Parts, Random, rank
from hap.plots import QUERY, UNKNOWN, Tile, draw_pose, hide_patches, mosaic, tile_rows
from hap.tasks.pretrain import Pretrain

SHOWN, NEIGHBOURS = 8, 8  # people in a picture, and neighbours of each
FURTHER = (
    "weights=drawn",
    "task.recipe.base_lr=4e-3",
)  # a quarter of the rate that suits training from nothing


def main() -> None:
    demo = Demo("demo", str(__doc__).splitlines()[0], {"error": "squared error", "share": "of Telea's"})
    demo.say("drawing 1,280 people whom the shipped weights have never seen")
    cfg = demo.config("train")
    datamodule = build(cfg.data, "data")
    people, others = datamodule.dataset("val"), datamodule.dataset("train")
    batch = default_collate([people[0, i] for i in range(len(people))])

    demo.say(
        f"training on {len(others):,} of them, twice, side by side: from nothing, and on from weights=drawn"
    )
    demo.train(nothing=(), drawn=FURTHER)
    starts = {
        "from nothing, a minute": demo.checkpoint("nothing"),
        "weights=drawn": "drawn",
        "weights=drawn, a minute more": demo.checkpoint("drawn"),
    }

    demo.say(f"rebuilding the hidden half of the {len(people)} others")
    images = batch["image"].movedim(1, -1).numpy()  # (N, H, W, 3)
    rebuilt = {}
    for name, weights in starts.items():
        task: Pretrain = build(cfg.task, "task").eval()
        load_weights(task.model, weights)
        rebuilt[name], patches = task.rebuild(batch)
    patch = np.ones((task.model.patch_size,) * 2, bool)
    hidden = np.kron(patches, patch)  # (V, N, rows, columns) -> (V, N, H, W)
    by_hand = {name: fill_all(fill, images, hidden) for name, fill in BY_HAND.items()}
    rebuilt = by_hand | rebuilt
    errors = {name: squared_error(result, images, hidden) for name, result in rebuilt.items()}
    for name, error in errors.items():
        demo.row(name, f"{error:,.0f}", f"{error / errors[TELEA]:.2f}")
    rows = [images, [hide_patches(i, m, len(patch)) for i, m in zip(images, patches[0], strict=True)]]
    rows += [result[0] for name, result in rebuilt.items() if name != MEAN]
    titles = ["original", "what is seen", *(name for name in rebuilt if name != MEAN)]
    demo.picture("rebuilt", mosaic([[row[n] for row in rows] for n in range(SHOWN)], titles))

    demo.say("nearest neighbours of some by the encoder's class token")
    demo.picture("neighbours", neighbours(task, people, Dataset(others.records, people.transform)))
    demo.say("the masks: random, blocks, parts of the body, and HAP's parts before blocks")
    demo.picture("masks", masks(batch, task))

    demo.finish(
        f"{len(people)} people whom no model was trained on; error of the hidden pixels, in squared levels:"
    )


def mean_of_the_seen(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    return np.where(hidden[..., None], image[~hidden].mean(0).round().astype(np.uint8), image)


def telea(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    return cv2.inpaint(image, hidden.astype(np.uint8), 3, cv2.INPAINT_TELEA)


MEAN, TELEA = "mean of what is seen", "Telea's inpainting"
BY_HAND = {MEAN: mean_of_the_seen, TELEA: telea}


def fill_all(
    fill: Callable[[np.ndarray, np.ndarray], np.ndarray], images: np.ndarray, hidden: np.ndarray
) -> np.ndarray:
    """(N, H, W, 3) images, (V, N, H, W) hidden pixels of V views -> (V, N, H, W, 3)."""
    return np.array(
        [[fill(image, mask) for image, mask in zip(images, view, strict=True)] for view in hidden]
    )


def squared_error(rebuilt: np.ndarray, images: np.ndarray, hidden: np.ndarray) -> float:
    """Mean over the hidden pixels; rebuilt (V, N, H, W, 3), images (N, H, W, 3), hidden (V, N, H, W)."""
    return float(((rebuilt.astype(np.float32) - images)[hidden] ** 2).mean())


@torch.no_grad()
def neighbours(task: Pretrain, queries: Dataset, gallery: Dataset) -> np.ndarray:
    """The gallery images whose class tokens have the largest cosine with a query's."""

    def features(dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
        loader = DataLoader(dataset, sampler=[(0, i) for i in range(len(dataset))], batch_size=64)
        images = [batch["image"] for batch in loader]
        tokens = [task.model.features(task.normalize(part))[:, 0] for part in images]
        return torch.cat(images), F.normalize(torch.cat(tokens))

    (query, q), (image, g) = features(queries), features(gallery)
    cosine, index = (q[:SHOWN] @ g.T).topk(NEIGHBOURS)

    def tile(picture: torch.Tensor, colour: tuple[int, int, int], text: str) -> Tile:
        return Tile(picture.movedim(0, -1).numpy(), colour, (text,))

    strips = []
    for n in range(SHOWN):
        found = zip(image[index[n]], cosine[n].tolist(), strict=True)
        strips.append([tile(query[n], QUERY, "query"), *(tile(i, UNKNOWN, f"{c:.2f}") for i, c in found)])
    return tile_rows(strips)


def masks(batch: dict[str, torch.Tensor], task: Pretrain) -> np.ndarray:
    """What each strategy leaves of the same people."""
    model, rng = task.model, np.random.default_rng(0)
    strategies = {
        "random (MAE)": Random(),
        "blocks (BEiT)": Block(),
        "parts": Parts(model.patch_size),
        "parts, blocks (HAP)": BlockParts(model.patch_size),
    }
    columns = []
    for image, points in zip(batch["image"][:SHOWN], batch["keypoints"].numpy(), strict=False):
        image = image.movedim(0, -1).numpy()
        column = [draw_pose(image, points)]
        for strategy in strategies.values():
            scores = torch.from_numpy(strategy(model.grid, model.mask_ratio, points, rng))
            mask = rank(scores, model.mask_ratio).mask.unflatten(0, model.grid).numpy()
            column.append(hide_patches(image, mask, model.patch_size))
        columns.append(column)
    return mosaic(columns, ["with its pose", *strategies])


if __name__ == "__main__":
    main()
