"""The weights that come with the package: what their card says, and what the demonstration promises of them."""

import re
from pathlib import Path

import cv2
import numpy as np
import torch
from conftest import config
from torch.utils.data import default_collate

import hap
from hap import create_encoder
from hap.building import build
from hap.data.base import Dataset
from hap.models.checkpoint import load_weights

FILE = Path(hap.__file__).parent / "weights" / "hap_drawn.safetensors"


def test_small_with_a_card():
    assert FILE.stat().st_size <= 3e6
    card = FILE.with_suffix(".md").read_text()
    assert "python -m hap.train experiment=pretrain_drawn" in card
    assert re.search(r"revision \| `[0-9a-f]{40}`", card)
    for fact in ("seed", "hours", "losses", "licence | Apache-2.0"):
        assert fact in card


def test_encoder_from_the_package():
    encoder = create_encoder("vit_micro", img_size=(128, 64), weights="drawn")
    nothing = create_encoder("vit_micro", img_size=(128, 64))
    images = torch.randn(2, 3, 128, 64)
    assert encoder(images).shape == (2, 129, 128)
    assert not torch.allclose(encoder(images), nothing(images))


def test_hidden_pixels_of_unseen_people_are_rebuilt_better_than_by_inpainting(drawn):
    """At most 0.8 of the squared error of Telea's inpainting, on people of a seed that nothing was chosen on."""
    root = drawn("luperson", 40, seed=77)
    cfg = config("train", "experiment=demo", f"data.root={root}", "synthetic=false")
    task, data = build(cfg.task, "task").eval(), build(cfg.data, "data")
    load_weights(task.model, "drawn")
    people = Dataset(data.records("train"), data.transforms["val"])
    batch = default_collate([people[0, i] for i in range(len(people))])
    rebuilt, patches = task.rebuild(batch)  # (V, N, H, W, 3), (V, N, rows, columns)
    images = batch["image"].movedim(1, -1).numpy()
    hidden = patches.repeat(8, axis=2).repeat(8, axis=3)
    assert hidden.mean() == 0.5
    views = range(len(hidden))
    np.testing.assert_array_equal(
        *(np.stack([x[v][~hidden[v]] for v in views]) for x in (rebuilt, [images] * 2))
    )

    def error(filled: np.ndarray) -> float:
        return float(((filled.astype(float) - images)[hidden] ** 2).mean())

    inpainted = [
        [cv2.inpaint(images[n], view[n].astype(np.uint8), 3, cv2.INPAINT_TELEA) for n in range(len(images))]
        for view in hidden
    ]
    assert error(rebuilt) <= 0.8 * error(np.array(inpainted))
