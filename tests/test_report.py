"""What a run leaves on one page: read back, and opened in a browser."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_PRETRAIN, config

from hap.reports.page import write_report
from hap.reports.run import read_run
from hap.runner import run

NASTY = """a "b" 'c' <script>alert(1)</script> #1 &amp; ü"""


class Page(HTMLParser):
    """Text, tags with their attributes, and whether all that is opened is closed."""

    VOID = frozenset({"meta", "link", "img", "input", "br"})

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += f"{data}\n"

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def trained(luperson, tmp_path_factory) -> Path:
    """A finished pre-training with a report, in a folder with a bad name."""
    folder = tmp_path_factory.mktemp("runs") / NASTY.replace("/", "")
    options = (*TINY_PRETRAIN, f"data.root={luperson}", "data.reader.num_val=8")
    run("train", config("train", "experiment=pretrain_hap", *options), folder)
    return folder


def test_a_run_has_a_page_at_its_end(trained):
    page = Page(trained / "report.html")
    assert "finished" in page.text
    results = json.loads((trained / "results.json").read_text())
    assert f"{results['val/loss']:.4g}" in page.text
    assert len(page.named("svg")) > 3
    assert len(page.named("img")) == len(list((trained / "pictures").glob("*.png"))) > 1
    assert "http" not in page.source
    assert "<script>alert" not in page.source


def test_a_run_is_read_as_it_was_logged(trained):
    found = read_run(trained)
    assert (found.name, found.program, found.status["state"]) == ("pretrain_hap", "train", "finished")
    steps, values = found.metrics["val/loss"]
    assert steps.tolist() == sorted(steps.tolist())
    assert values[-1] == pytest.approx(found.results["val/loss"])
    assert [step for step, _ in found.pictures["masks_and_reconstructions"]] == [0, *np.add(steps, 1)]
    assert found.results["steps"] == json.loads((trained / "results.json").read_text())["steps"]


def test_a_folder_that_is_none_of_a_run(tmp_path):
    from hap.errors import HapError

    with pytest.raises(HapError, match="nothing of a run"):
        write_report(tmp_path)
    with pytest.raises(HapError, match="no folder"):
        write_report(tmp_path / "none")
