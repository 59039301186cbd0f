"""`make demo-pose3d`: does pre-training help to find bodies? On drawn people and a CPU, in minutes.

The weights that come with hap (`weights=drawn`) are fine-tuned to the bodies of drawn people whom they have never seen.
So is the same encoder from nothing, with the same seed, steps and settings. Two rows of the table say how far one gets
without looking: with the mean pose and shape of the training people for everybody, and with the mean shape in the true
pose, which no network is told. Each run's folder holds its record, tables and pictures."""

import numpy as np
import torch
from demo_base import Demo

from hap.body.model import GenderedBody
from hap.body.rotations import to_axis_angle, to_matrix
from hap.data.pose3d import BodyRecords
from hap.metrics.pose3d import BodyMetric
from hap.runner import build

COLUMNS = {"PA-MPJPE": "PA-MPJPE (mm)", "MPJPE": "MPJPE (mm)", "MPVPE": "MPVPE (mm)"}


def main() -> None:
    demo = Demo("demo_pose3d", str(__doc__).splitlines()[0], COLUMNS, factor=1)
    demo.say("drawing people whom the shipped weights have never seen")
    cfg = demo.config("train")
    datamodule = build(cfg.data, "data")
    train, test = datamodule.records("train"), datamodule.records("val")
    body = GenderedBody(build(cfg.body, "body"))
    betas = np.broadcast_to(train.betas.mean(0), test.betas.shape)
    demo.scores("mean pose and shape", scores(body, test, np.tile(mean_pose(train), (len(test), 1)), betas))
    demo.scores("mean shape in the true pose", scores(body, test, test.pose, betas))
    demo.finetune(cfg.epochs)
    demo.finish(f"bodies of {len(test)} people not seen in training:")


def mean_pose(people: BodyRecords) -> np.ndarray:
    """(72,): of each joint the rotation nearest to the mean of the matrices."""
    mean = to_matrix(torch.from_numpy(people.pose).unflatten(1, (24, 3))).mean(0)
    u, _, vh = torch.linalg.svd(mean)
    u[..., -1] *= torch.det(u @ vh)[:, None]
    return to_axis_angle(u @ vh).flatten().numpy()


def scores(body: GenderedBody, people: BodyRecords, pose: np.ndarray, betas: np.ndarray) -> dict[str, float]:
    """Of the neutral body with these parameters, (N, 72) and (N, 10)."""
    metric = BodyMetric()
    metric.use(body.joints30, body.h36m)
    said, true = (to_matrix(torch.from_numpy(np.array(p)).unflatten(1, (24, 3))) for p in (pose, people.pose))
    columns = (torch.from_numpy(np.array(c)) for c in (people.betas, people.trans, people.gender))
    predicted = body.neutral(said, torch.from_numpy(np.array(betas))).vertices
    metric.update(predicted, body(true, *columns), torch.arange(len(people)))
    return metric.compute()


if __name__ == "__main__":
    main()
