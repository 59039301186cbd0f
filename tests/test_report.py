"""What a run leaves on one page: read back, and opened in a browser."""

import json
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from conftest import TINY, TINY_PRETRAIN, as_another_user, config

from hap.cli import run_with_hydra
from hap.errors import HapError
from hap.record import changed_keys
from hap.report import main
from hap.reports.page import STEPS, write_report
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
    options = (
        *TINY_PRETRAIN,
        f"data.root={luperson}",
        "data.reader.num_val=8",
        "trainer.limit_train_batches=4",
    )
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
    with pytest.raises(HapError, match="nothing of a run"):
        write_report(tmp_path)
    with pytest.raises(HapError, match="no folder"):
        write_report(tmp_path / "none")


def test_changed_keys_are_against_the_experiments_own(tmp_path, monkeypatch):
    """As a program gives them, which Hydra has started."""
    found = {}
    overrides = ["experiment=demo", "epochs=7", "~callbacks.pictures", "+trainer.fast_dev_run=false"]
    monkeypatch.setattr("sys.argv", ["hap train", *overrides, f"run_dir={tmp_path / 'a=b, [c]'}"])
    # Signals are the test's own.
    monkeypatch.setattr("signal.signal", lambda *_: None)
    run_with_hydra("train", lambda cfg, folder: found.update(changed_keys(cfg)))
    assert found.pop("run_dir")[1] == str(tmp_path / "a=b, [c]")
    assert found == {
        "epochs": [2, 7],
        "callbacks.pictures._target_": ["hap.callbacks.Pictures", "(not set)"],
        "callbacks.pictures.num_samples": [8, "(not set)"],
        "trainer.fast_dev_run": ["(not set)", False],
    }
    assert changed_keys(config("train", "experiment=demo")) == {}


def test_a_run_that_failed_says_why(tmp_path):
    """And its own error is what ends it, where even the page cannot be written."""
    (tmp_path / "blocked" / "report.html").mkdir(parents=True)
    for name in ("failed", "blocked"):
        with pytest.raises(HapError, match="<b>nowhere"):
            run(
                "train",
                config("train", "experiment=pretrain_hap", *TINY, "data.root='/<b>nowhere'"),
                tmp_path / name,
            )
    page = Page(tmp_path / "failed/report.html")
    assert "failed" in page.text
    assert "/<b>nowhere" in page.text
    assert not page.named("b")
    assert [path.name for path in (tmp_path / "blocked").glob(".report*")] == []


@pytest.fixture
def killed(trained, tmp_path) -> Path:
    """A copy of the run as SIGKILL would have left it: in the middle of a line and of a picture."""
    folder = shutil.copytree(trained, tmp_path / "copied elsewhere")
    for name in ("results.json", "report.html"):
        (folder / name).unlink()
    status = json.loads((folder / "status.json").read_text())
    del status["ended"]
    (folder / "status.json").write_text(
        json.dumps(status | {"state": "running", "pid": 1, "host": "elsewhere"})
    )
    metrics = folder / "logs/version_0/metrics.csv"
    metrics.write_bytes(metrics.read_bytes()[:-9])
    picture = sorted(folder.glob("pictures/*.png"))[-1]
    picture.write_bytes(picture.read_bytes()[:-9])
    return folder


def test_a_killed_run_shows_what_there_is(killed, trained):
    before, after = read_run(trained), read_run(killed)
    assert after.status["state"] == "killed"
    whole = (trained / "logs/version_0/metrics.csv").read_text().count("\n")
    assert sum(len(steps) for steps, _ in after.metrics.values()) < sum(
        len(steps) for steps, _ in before.metrics.values()
    )
    assert len((killed / "logs/version_0/metrics.csv").read_text().splitlines()) == whole
    page = Page(write_report(killed))
    assert "killed" in page.text
    assert "there are no results" in page.text
    assert "the image file is truncated" in page.text
    assert len(page.named("img")) == len(list(killed.glob("pictures/*.png"))) - 1


@pytest.mark.parametrize(
    "content", [b"", b"step,train/loss\n", b"\0\xff\xfe", b"a,b\n1,2\n", b'step,a\n0,"1\n2\n']
)
def test_metrics_that_are_none(killed, content):
    (killed / "logs/version_0/metrics.csv").write_bytes(content)
    assert read_run(killed).metrics == {}
    assert "killed" in Page(write_report(killed)).text


def test_values_that_are_not_finite_survive(killed):
    (killed / "logs/version_0/metrics.csv").write_text(
        "step,train/loss\n0,1.5\n1,nan\n2,inf\n3,-inf\n4,2.5\n"
    )
    (killed / "results.json").write_text('{"train/loss": NaN, "steps": 1' + "0" * 400 + "}")
    np.testing.assert_array_equal(
        read_run(killed).metrics["train/loss"][1], [1.5, np.nan, np.inf, -np.inf, 2.5]
    )
    page = Page(write_report(killed))
    assert {"nan", "inf"} <= set(page.text.split())
    assert page.text.count("train: not a finite number") == 3


def test_parts_of_a_resumed_run_are_one(killed):
    """What the first part logged after the checkpoint was lost."""
    for part, steps, values in (
        (0, (0, 1, 2, 3), (9, 8, 7, 6)),
        (2, (2, 3, 4), (5, 4, 3)),
        (10, (4, 5), (2, 1)),
    ):
        file = killed / f"logs/version_{part}/metrics.csv"
        file.parent.mkdir(exist_ok=True)
        rows = (f"{step},{value}\n" for step, value in zip(steps, values, strict=True))
        file.write_text("step,train/loss\n" + "".join(rows))
    for second in (1, 2):
        shutil.copy(killed / "config.yaml", killed / f"config_resumed_2026-01-01_00-00-0{second}.yaml")
    found = read_run(killed)
    assert [array.tolist() for array in found.metrics["train/loss"]] == [
        [0, 1, 2, 3, 4, 5],
        [9, 8, 5, 4, 2, 1],
    ]
    assert (found.resumed, found.parts) == ([2, 4], 3)
    page = Page(write_report(killed))
    assert page.source.count('stroke-dasharray="3 3"') == 2
    assert "3, as it was resumed" in page.text


def test_of_many_steps_some_are_shown(killed):
    picture = min(killed.glob("pictures/*.png"))
    for step in range(1, 100):
        shutil.copy(picture, killed / f"pictures/many_step{step:07d}.png")
    page = Page(write_report(killed))
    shown = [image["alt"] for image in page.named("img") if image["alt"].startswith("many")]
    assert len(shown) == STEPS
    assert (shown[0], shown[-1]) == ("many, step 1", "many, step 99")


def test_an_older_release_left_no_status(killed):
    (killed / "status.json").unlink()
    about = json.loads((killed / "environment.json").read_text())
    about["command"] = ["/somewhere/hap/train.py", "experiment=demo", "-m"]
    (killed / "environment.json").write_text(json.dumps(about))
    found = read_run(killed)
    assert (found.status["state"], found.program, found.overrides) == (
        "unknown",
        "train",
        ["experiment=demo"],
    )
    assert "hap train experiment=demo" in Page(write_report(killed)).text
    for path in killed.iterdir():
        if path.is_file() and path.name != "config.yaml":
            path.unlink()
    assert "unknown" in Page(write_report(killed)).text


def test_what_comes_from_outside_is_text(killed, tmp_path):
    attack = """<img src=x onerror=alert(1)>'"&\x1b[2J"""
    secret = tmp_path / "secret.csv"
    secret.write_text("password\n")
    (killed / "link.csv").symlink_to(secret)
    os.mkfifo(killed / "pipe.csv")
    os.mkfifo(killed / "weights.json")
    name = os.fsdecode(b"caf\xe9 #1 " + attack.replace("/", "").encode())
    (killed / f"{name}.csv").write_bytes(b"</table><script>1</script>,\xff\n" + b"x" * 999 + b",=1+1\n")
    shutil.copy(min(killed.glob("pictures/*.png")), killed / f"pictures/{name}_step0000003.png")
    (killed / f"{name}.log").write_text(f"2026-01-01 00:00:00,1 WARNING hap: {attack}\n" * 3)
    (killed / f"bad_samples_{name}_rank0.txt").write_text(f"{attack}\n" * 30)
    (killed / "config.yaml").write_text(f"name: |\n  {attack[:20]}\nx: [")
    (killed / "environment.json").write_text("[" * 100_000)
    status = {"state": attack, "program": attack, "overrides": [attack, "weights=https://example.org"]}
    (killed / "status.json").write_text(
        json.dumps(status | {"error": f"{attack}\nsecond", "changed": {attack: [1]}})
    )
    page = Page(write_report(killed))
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.named("img"))
    assert len(page.named("script")) == 1
    assert page.source.count("http") == 1
    assert not {"\x1b", "\x00"} & set(page.source)
    assert "password" not in page.source
    assert "(3 times)" in page.text
    assert "and 10 more" in page.text
    assert "caf\\xe9 #1 <img" in page.text
    links = [unquote_to_bytes(link["href"]) for link in page.named("a")]
    assert all(
        (os.fsencode(killed) + b"/" + link).strip() and os.path.lexists(os.fsencode(killed) + b"/" + link)
        for link in links
    )


def test_the_program_reports_on_each_folder(killed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["hap report", str(tmp_path / "none"), str(killed)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    output = capsys.readouterr()
    assert output.out.strip() == str(killed / "report.html")
    assert output.err.startswith("hap: there is no folder")
    monkeypatch.setattr("sys.argv", ["hap report", str(killed)])
    main()


def test_a_folder_that_cannot_be_read_is_one_message(killed):
    killed.chmod(0)
    try:
        with as_another_user(), pytest.raises(HapError):
            write_report(killed)
    finally:
        killed.chmod(0o755)


# Run in the page once it is there; what it finds is read in the DOM that Chromium prints.
PROBE = """<script>
addEventListener("load", () => {
  const images = [...document.images], sliders = document.querySelectorAll("input");
  const shown = () => images.filter(image => image.offsetParent).map(image => image.alt);
  const last = shown();
  for (const slider of sliders) {
    slider.value = 0;
    slider.dispatchEvent(new Event("input"));
  }
  document.body.dataset.found = JSON.stringify({
    last, first: shown(),
    empty: images.filter(image => !image.naturalWidth).length,
    loaded: performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:")),
    background: getComputedStyle(document.body).backgroundColor,
    wide: document.documentElement.scrollWidth - innerWidth,
  });
});
</script>"""


@pytest.mark.parametrize("dark", [False, True])
def test_it_opens_in_a_browser_without_a_network(trained, dark, tmp_path):
    chromium = shutil.which("chromium")
    if chromium is None:
        assert "HAP_NEEDS_CHROMIUM" not in os.environ
        pytest.skip("there is no chromium to open it in")
    page = tmp_path / "it's a #1 page.html"
    page.write_text((trained / "report.html").read_text() + PROBE)
    quiet = ("background-networking", "component-update", "sync", "gpu", "dev-shm-usage")
    options = (
        *("--headless=new", "--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in quiet)),
        *("--enable-logging=stderr", "--dump-dom", "--window-size=420,900"),
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    )
    result = subprocess.run([chromium, *options, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in result.stderr
    (found,) = re.findall(r'data-found="([^"]*)"', result.stdout)
    found = json.loads(unescape(found))
    assert found["empty"] == 0
    assert found["loaded"] == []
    assert found["wide"] <= 0
    pictures = [[step for step, _ in steps] for steps in read_run(trained).pictures.values()]
    for place, shown in ((0, found["first"]), (-1, found["last"])):
        assert [alt.rpartition(" ")[2] for alt in shown] == [f"{steps[place]}" for steps in pictures]
    brightness = np.mean([int(level) for level in re.findall(r"\d+", found["background"])])
    assert brightness < 60 if dark else brightness > 200


def test_the_program_starts_without_what_it_does_not_need():
    code = "import hap.report, sys; print(sorted({'lightning', 'timm', 'torchmetrics', 'wandb'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
