"""`make demo-pose2d`: does pre-training help to find joints? On drawn people and a CPU, in minutes.

The weights that come with hap (`weights=drawn`) are fine-tuned to COCO's 17 joints on drawn people whom they have never
seen. So is the same encoder from nothing, with the same seed, steps and settings. The first row of the table says how
far one gets without looking: the mean pose of the training people, put into each box. Boxes are the true ones. Each
run's folder holds its record, tables and pictures."""

import numpy as np
import torch
from demo_base import Demo

from hap.building import build
from hap.data.pose import PoseRecords
from hap.metrics.pose import PoseMetric

COLUMNS = {"AP": "AP (%)", "AP50": "AP50 (%)", "PCK_box@0.05": "PCK@0.05 (%)"}


def main() -> None:
    demo = Demo("demo_pose2d", str(__doc__).splitlines()[0], COLUMNS)
    demo.say("drawing people whom the shipped weights have never seen")
    cfg = demo.config("train")
    datamodule = build(cfg.data, "data")
    train, test = datamodule.records("train"), datamodule.records("test")

    metric = PoseMetric()
    metric.records = test
    metric.update(torch.from_numpy(mean_pose(train, test)), torch.arange(len(test)))
    demo.scores("mean pose in each box", metric.compute())

    demo.finetune(cfg.epochs)
    demo.finish(f"joints of {len(test)} people not seen in training:")


def mean_pose(train: PoseRecords, test: PoseRecords) -> np.ndarray:
    """Keypoints (N, K, 3): the mean over the training people of where a joint lies in the region, and how often it is
    labelled."""
    labelled = train.joints[..., 2:]
    place = (train.joints[..., :2] - train.center[:, None]) / train.scale[:, None]
    mean = (labelled * place).sum(0) / labelled.sum(0)
    xy = test.center[:, None] + mean * test.scale[:, None]
    score = np.broadcast_to(labelled.mean(0), (*xy.shape[:2], 1))
    return np.concatenate([xy, score], axis=2).astype(np.float32)


if __name__ == "__main__":
    main()
