"""The page and the figure of a sweep, read back."""

import base64
import itertools
import re
import shutil
from html.parser import HTMLParser
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from test_sweep import write_job

from hap.data.decoding import decode_image
from hap.plots import write_picture
from hap.reports.sweep import read_sweep
from hap.reports.sweep_page import figure, write_sweep_report


class Page(HTMLParser):
    """What is in a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.pictures, self.texts, self.tags, self.charts = [], [], [], set(), []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.add(tag)
        self.links += [given["href"]] if tag == "a" else []
        self.pictures += [given["src"]] if tag == "img" else []
        self.charts += [given["aria-label"]] if tag == "svg" else []

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_of_a_sweep_shows_its_jobs(tmp_path):
    folder = tmp_path / "a <b>#'1"
    for number, (ratio, seed) in enumerate(itertools.product((0.5, 0.25), (0, 1))):
        overrides = ["experiment=demo", f"masking.ratio={ratio}", f"seed={seed}"]
        job = write_job(folder, number, overrides, {"val/loss": ratio + seed / 100})
        (job / "pictures").mkdir()
        for step in (10, 200):
            write_picture(job / f"pictures/val_step{step:07d}.png", np.full((8, 8, 3), step, np.uint8))
        (job / "report.html").write_text("a page")
    (folder / "3/pictures/val_step0000200.png").write_bytes(b"half-written")
    write_job(
        folder,
        4,
        ["experiment=demo", "masking.ratio=0.25", "seed=2"],
        state="failed",
        error="<script>alert(1)</script>",
    )
    page = Page(write_sweep_report(folder))
    text = " ".join(page.texts)
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in text
    assert not any(link.startswith(("http", "/")) for link in page.links)
    assert all((folder / unquote(link)).is_file() for link in page.links)
    assert len([link for link in page.links if link.endswith("report.html")]) == 4
    assert len(page.pictures) == 3
    assert all(
        decode_image(base64.b64decode(src.partition(",")[2])).mean() == pytest.approx(200, abs=2)
        for src in page.pictures
    )
    assert page.charts == ["val/loss against ratio"]
    assert "experiment=demo" in text
    ElementTree.parse(folder / "sweep.svg")  # a file of its own


def points_of(svg, label):
    """{x: y as printed} of a line, from the tooltips of its points."""
    found = re.findall(rf"<title>{re.escape(label)}, (.*?): (.*?)</title>", svg)
    return {x: float(y) for x, y in found}


def test_the_figure_has_a_line_for_each_second_key_by_mean_over_seeds(tmp_path):
    value = {
        ("0.5", "random"): [1, 3],
        ("0.25", "random"): [5, 5],
        ("0.5", "block"): [2, 8],
        ("0.25", "block"): [1],
    }
    jobs = [(ratio, kind, seed, v) for (ratio, kind), vs in value.items() for seed, v in enumerate(vs)]
    for number, (ratio, kind, seed, v) in enumerate(jobs):
        overrides = [f"masking.ratio={ratio}", f"masking={kind}", f"seed={seed}"]
        write_job(tmp_path, number, overrides, {"val/mAP": v})
    sweep = read_sweep(tmp_path)
    svg = figure(sweep)
    assert points_of(svg, "masking=random") == {"0.25": 5, "0.5": 2}
    assert points_of(svg, "masking=block") == {"0.25": 1, "0.5": 5}
    assert svg.count("<polygon") == 2  # the bands, where seeds differ
    assert sweep.best.results == {"val/mAP": 8}


def test_values_that_are_magnitudes_apart_or_no_numbers_have_places_of_their_own(tmp_path):
    for number, rate in enumerate(["1e-2", "1e-4", "1e-3"]):
        write_job(tmp_path, number, [f"task.recipe.lr={rate}"], {"val/loss": number})
    assert points_of(figure(read_sweep(tmp_path)), "") == {"1e-4": 1, "1e-3": 2, "1e-2": 0}
    for number in range(3):
        shutil.rmtree(tmp_path / str(number))
        scale = f"data.transforms.train.scale=[0.{number},1.0]"
        write_job(tmp_path, number, [scale], {"val/loss": number})
    assert points_of(figure(read_sweep(tmp_path)), "") == {"[0.0,1.0]": 0, "[0.1,1.0]": 1, "[0.2,1.0]": 2}


def test_nothing_swept_or_measured_has_no_figure(tmp_path):
    write_job(tmp_path, 0, ["seed=0"], {"val/loss": 1})
    assert figure(read_sweep(tmp_path)) == ""
    write_sweep_report(tmp_path)
    assert not (tmp_path / "sweep.svg").exists()
