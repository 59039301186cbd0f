"""`make demo-text`: the shipped weights fit its network; colours without a network are read as they are written."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import config

from hap.building import build
from hap.models.checkpoint import load_weights
from hap.synthetic.person import COLOURS

SCRIPTS = Path(__file__).parents[1] / "scripts"
HEAD, UPPER, LOWER, FEET, BAG = range(5)


@pytest.fixture(scope="module")
def demo():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield runpy.run_path(str(SCRIPTS / "demo_text.py"))
    sys.modules.pop("demo_base", None)


def test_the_shipped_weights_fit():
    sizes = ("task.model.num_classes=5", "task.model.vocabulary=9")
    cfg = config("train", "experiment=demo_text", "weights=drawn", *sizes)
    report = load_weights(build(cfg.task, "task").model, cfg.weights)
    assert "blocks.0.attn.qkv.weight" in report.matched
    assert report.resized == ()


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A man with short dark brown hair is standing.", {(HEAD, "dark brown")}),
        (
            "She wears a dark red and white striped long-sleeved t-shirt, navy jeans and a grey sun hat.",
            {(UPPER, "dark red"), (UPPER, "white"), (LOWER, "navy"), (HEAD, "grey")},
        ),
        (
            "the boy wears a green jacket with a black print open over a pink top, olive trousers with orange side "
            "stripes, brown boots and carries a red shoulder bag and a blue backpack.",
            {
                *((UPPER, name) for name in ("green", "black", "pink")),
                *((LOWER, name) for name in ("olive", "orange")),
                *((FEET, "brown"), (BAG, "red"), (BAG, "blue")),
            },
        ),
        ("A coloured redhead is seen from behind.", set()),
    ],
)
def test_colour_words(demo, caption, expected):
    (row,) = demo["colour_words"]([caption])
    assert {(part, demo["NAMES"][colour]) for part, colour in np.argwhere(row)} == expected
    assert row.sum() == len(expected)


def test_colours_of_pixels(demo):
    """A person in four colours, before a wall that only the outer quarters show."""
    image = np.full((128, 64, 3), COLOURS["orange"], np.uint8)
    for name, rows in (("black", (0, 21)), ("red", (21, 65)), ("blue", (65, 110)), ("white", (110, 128))):
        image[slice(*rows), 16:48] = COLOURS[name]
    (row,) = demo["colours_of_pixels"]([SimpleNamespace(pixels=lambda: image)]) ** 2
    np.testing.assert_allclose(row.sum(1), 1)
    main = [demo["NAMES"][colour] for colour in row.argmax(1)]
    assert main[:4] == ["black", "red", "blue", "white"]
    whole = {name: row[BAG, demo["NAMES"].index(name)] for name in COLOURS}
    assert whole["orange"] == 0
    assert whole["blue"] == pytest.approx(45 / 128, abs=0.02)


def test_same_colours_find_each_other(demo):
    people = np.repeat(np.arange(4), 2)
    records = [SimpleNamespace(identity=who, captions=("",)) for who in people]
    colours = np.eye(4)[people]
    features = demo["standard"](colours, colours)
    assert demo["score"](records, features, features) == {"mAP": 1.0, "rank1": 1.0}
