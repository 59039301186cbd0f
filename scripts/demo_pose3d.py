"""`make demo-pose3d`: how much of a body do the features of an encoder know? On drawn people and a CPU, in minutes.

The encoder stays as it is: once with the weights that come with hap (`weights=drawn`), once as it was drawn at random.
From a grid of its features a linear map (ridge regression) says the rotations and the shape of people whom neither has
ever seen; the strength of the ridge is chosen on a part of the people to learn from. Two rows of the table say how far
one gets without looking: with the mean pose and shape for everybody, and with the mean shape in the true pose, which
nobody is told."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from demo_base import Demo, prepare
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from hap.body.drawing import draw_meshes
from hap.body.model import GenderedBody
from hap.body.rotations import to_matrix
from hap.building import build
from hap.data.base import Dataset
from hap.data.pose3d import BodyRecords
from hap.metrics.pose3d import BodyMetric
from hap.models.checkpoint import load_weights
from hap.plots import mosaic

COLUMNS = {"PA-MPJPE": "PA-MPJPE (mm)", "MPJPE": "MPJPE (mm)", "MPVPE": "MPVPE (mm)"}
STARTS = {"features from nothing": None, "features of weights=drawn": "drawn"}
GRID = (8, 3)  # to which the features of a person are averaged
RIDGES = (300.0, 1000.0, 3000.0, 10000.0)
HELD_OUT = 0.2  # of the people to learn from, on whom the ridge is chosen
SHOWN = 8

Bodies = tuple[Tensor, Tensor]  # rotations (N, 24, 3, 3) and betas (N, 10)


def main() -> None:
    demo = Demo("demo_pose3d", str(__doc__).splitlines()[0], COLUMNS, factor=1)
    demo.say("drawing people whom the shipped weights have never seen")
    cfg = demo.config("train")
    datamodule = build(cfg.data, "data")
    train, test = datamodule.records("train"), datamodule.records("val")
    body = GenderedBody(build(cfg.body, "body"))
    true = body_of(test)
    betas = torch.from_numpy(train.betas).mean(0).expand(len(test), 10)
    mean = nearest(body_of(train)[0].mean(0)).expand(len(test), 24, 3, 3)
    demo.scores("mean pose and shape", scores(body, test, (mean, betas)))
    demo.scores("mean shape in the true pose", scores(body, test, (true[0], betas)))

    demo.say(f"features of {len(train):,} people to learn from and of {len(test):,} others, side by side")
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), prepare) as pool:
        found = dict(zip(STARTS, pool.map(learned, [cfg] * len(STARTS), list(STARTS.values())), strict=True))
    for name, bodies in found.items():
        demo.scores(name, scores(body, test, bodies))
    demo.picture("bodies", people(datamodule.dataset("val"), body, [*found.values(), true]))
    demo.finish(f"bodies of {len(test)} people not seen before:")


def body_of(people: BodyRecords) -> Bodies:
    return to_matrix(torch.from_numpy(people.pose).unflatten(1, (24, 3))), torch.from_numpy(people.betas)


def nearest(matrices: Tensor) -> Tensor:
    """The rotations (..., 3, 3) nearest to matrices."""
    u, _, vh = torch.linalg.svd(matrices)
    sign = torch.ones_like(u[..., 0])
    sign[..., 2] = torch.det(u @ vh)
    return (u * sign[..., None, :]) @ vh


def learned(cfg: DictConfig, weights: str | None) -> Bodies:
    """What a linear map says of the test people by the features of an encoder."""
    torch.manual_seed(cfg.seed)
    datamodule, task = build(cfg.data, "data"), build(cfg.task, "task").eval()
    if weights is not None:
        load_weights(task.model, weights)
    datamodule.transforms["train"] = datamodule.transforms["val"]  # as they are
    x, y = features(task, datamodule.dataset("train")), datamodule.records("train")
    rotations, betas = body_of(y)
    wanted = torch.cat([rotations.flatten(1), betas], dim=1).double()
    part = round(len(x) * (1 - HELD_OUT))
    errors = [(ridge(x[:part], wanted[:part], r)(x[part:]) - wanted[part:]).square().mean() for r in RIDGES]
    best = RIDGES[int(torch.stack(errors).argmin())]
    said = ridge(x, wanted, best)(features(task, datamodule.dataset("val"))).float()
    return nearest(said[:, :216].unflatten(1, (24, 3, 3))), said[:, 216:]


@torch.no_grad()
def features(task: torch.nn.Module, dataset: Dataset) -> Tensor:
    """(N, D x rows x columns), float64."""
    rows = []
    for batch in batches(dataset):
        tokens = task.model.tokens(task.normalize(batch["image"]))
        rows.append(F.adaptive_avg_pool2d(task.model.to_map(tokens), GRID).flatten(1))
    return torch.cat(rows).double()


def batches(dataset: Dataset, size: int = 32) -> Iterator[dict[str, Tensor]]:
    for start in range(0, len(dataset), size):
        yield default_collate([dataset[0, i] for i in range(start, min(start + size, len(dataset)))])


def ridge(x: Tensor, y: Tensor, strength: float) -> Callable[[Tensor], Tensor]:
    """The map of least squared error with a penalty on its size, of features of mean 0 and deviation 1."""
    mean, std, middle = x.mean(0), x.std(0) + 1e-6, y.mean(0)
    a = (x - mean) / std
    w = torch.linalg.solve(a.T @ a + strength * torch.eye(a.shape[1], dtype=a.dtype), a.T @ (y - middle))
    return lambda other: (other - mean) / std @ w + middle


def scores(body: GenderedBody, people: BodyRecords, said: Bodies) -> dict[str, float]:
    metric = BodyMetric()
    metric.use(body.joints30, body.h36m)
    columns = (torch.from_numpy(np.array(c)) for c in (people.trans, people.gender))
    true = body(*body_of(people), *columns)
    metric.update(body.neutral(*said).vertices, true, torch.arange(len(people)))
    return metric.compute()


def people(dataset: Dataset, body: GenderedBody, said: Sequence[Bodies]) -> np.ndarray:
    """Of some test people the crop, and the bodies of several sources beside it, 3 m away."""
    faces, columns = body.bodies.neutral.faces, []
    for i in np.linspace(0, len(dataset) - 1, SHOWN).astype(int).tolist():
        crop = dataset[0, i]["image"].movedim(0, -1).numpy()
        side = len(crop)
        column = [crop]
        for rotations, betas in said:
            mesh, joints = body.neutral(rotations[i : i + 1], betas[i : i + 1])
            vertices = (mesh - joints[:, :1] + torch.tensor([0.0, 0.0, 3.0]))[0].numpy()
            column.append(
                draw_meshes(
                    np.full_like(crop, 255), [vertices], faces, (1.3 * side, 1.3 * side, side / 2, side / 2)
                )
            )
        columns.append(column)
    return mosaic(columns, ["person", *STARTS, "truth"])


if __name__ == "__main__":
    main()
