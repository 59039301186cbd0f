"""`make demo-attribute`: does pre-training help to tell what people look like? On drawn people and a CPU, in minutes.

The weights that come with hap (`weights=drawn`) are fine-tuned to PA-100K's 26 attributes on drawn people whom they
have never seen. So is the same encoder from nothing, with the same seed, steps and settings. The first rows of the
table say how far one gets without a network. Each run's folder holds its record and pictures."""

import numpy as np
import torch
from demo_base import Demo, colour_histogram
from torch import nn

from hap.building import build
from hap.data.attribute import AttributeRecords
from hap.losses import WeightedBCE
from hap.metrics.attributes import AttributeMetric
from hap.tasks.attribute import share_of_yes

COLUMNS = {"mA": "mA (%)", "F1": "F1 (%)", "AP": "AP (%)"}
DECAY = 1e-5  # of the linear classifier


def main() -> None:
    demo = Demo("demo_attribute", str(__doc__).splitlines()[0], COLUMNS)
    demo.say("drawing people whom the shipped weights have never seen")
    cfg = demo.config("train")
    datamodule = build(cfg.data, "data")
    train, test = datamodule.records("train"), datamodule.records("test")

    constant = torch.from_numpy(share_of_yes(train.labels)).float().expand(len(test), -1)
    demo.scores("what most people have", score(test, constant))
    demo.scores("linear, on colour histograms", score(test, linear_on_colours(train, test)))

    demo.finetune(cfg.epochs)
    demo.finish(f"{len(test.attributes)} attributes of {len(test)} people not seen in training:")


def linear_on_colours(train: AttributeRecords, test: AttributeRecords) -> torch.Tensor:
    """Probabilities (N, A) of a logistic regression with the loss of the networks; its settings were chosen on the
    same people as theirs."""
    features = [
        torch.from_numpy(np.stack([colour_histogram(r.pixels()) for r in part])) for part in (train, test)
    ]
    labels, ratio = torch.from_numpy(train.labels), torch.from_numpy(share_of_yes(train.labels)).float()
    model, loss = nn.Linear(features[0].shape[1], labels.shape[1]), WeightedBCE()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(model(features[0]), labels, ratio) + DECAY * model.weight.square().sum()
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[arg-type]
    with torch.no_grad():
        return model(features[1]).sigmoid()


def score(records: AttributeRecords, probability: torch.Tensor) -> dict[str, float]:
    metric = AttributeMetric()
    metric.update(probability, torch.from_numpy(records.labels), torch.arange(len(records)))
    return metric.compute()


if __name__ == "__main__":
    main()
