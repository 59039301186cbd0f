"""What the W&B logger keeps of a run, read from its offline files by a reader of this test's own."""

import base64
import csv
import hashlib
import json
import os
import runpy
import shutil
import signal
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import pytest
import wandb
from conftest import TINY_PRETRAIN, config
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from wandb.proto import wandb_internal_pb2 as protocol

from hap import safety
from hap.config import CONF_DIR
from hap.errors import HapError
from hap.loggers import run_labels, typed
from hap.runner import run
from hap.wandb_file import cut_to_whole_records

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style")  # of wandb-workspaces
WORKSPACE = runpy.run_path(str(Path(__file__).parents[1] / "scripts/wandb_workspace.py"))
STEPS = 11  # of an epoch of 88 people
STOP = 15


def records(folder: Path, keep: int | None = None) -> Iterator[Any]:
    """Records of an offline run, of the first `keep` bytes of its file: blocks of 32 KiB, after a header of 7 bytes,
    hold pieces with their CRC-32, length, and kind (whole, first, middle, last). What is not whole ends them."""
    (path,) = folder.glob("*.wandb")
    data = path.read_bytes()[:keep]
    assert data[:4] == b":W&B"
    at, parts = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        checksum, length, kind = struct.unpack("<IHB", data[at : at + 7])
        piece = data[at + 7 : at + 7 + length]
        if len(piece) < length or zlib.crc32(bytes([kind]) + piece) != checksum:
            return
        at += 7 + length
        parts = piece if kind in (1, 2) else parts + piece
        if kind in (1, 4):
            yield protocol.Record.FromString(parts)


class Part:
    """One offline folder: `rows` by step, `summary`, `metrics`, `config`, `artifacts`, `run`, `exit_code`."""

    def __init__(self, folder: Path, keep: int | None = None):
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}
        self.artifacts: dict[str, Any] = {}
        self.exit_code: int | None = None
        for record in records(folder, keep):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                self.rows.append({_key(i): json.loads(i.value_json) for i in record.history.item})
            elif kind == "summary":
                self.summary |= {_key(i): json.loads(i.value_json) for i in record.summary.update}
            elif kind == "metric":
                self.metrics[record.metric.name or record.metric.glob_name] = record.metric
            elif kind == "artifact":
                self.artifacts[record.artifact.type] = record.artifact
            elif kind == "exit":
                self.exit_code = record.exit.exit_code
            elif kind == "run":
                self.run = record.run
                self.config = {i.key: json.loads(i.value_json) for i in record.run.config.update}

    def points(self, name: str) -> list[tuple[int, float]]:
        assert all(row["step"] == row["_step"] for row in self.rows)
        return [(row["step"], row[name]) for row in self.rows if name in row]


def _key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def parts(folder: Path) -> list[Part]:
    """In order. W&B's own process writes the last of it a moment after it has said that all is done."""
    for _ in range(200):
        found = [Part(path) for path in (folder / "wandb").glob("offline-run-*")]
        if all(part.exit_code is not None for part in found):
            break
        time.sleep(0.05)
    return sorted(found, key=lambda part: part.run.start_time.ToNanoseconds())


def logged(folder: Path, version: int, name: str) -> list[tuple[int, float]]:
    """Of the CSV logger."""
    with (folder / f"logs/version_{version}/metrics.csv").open() as file:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]


def options(root: Path, *more: str) -> list[str]:
    return ["experiment=pretrain_hap", *TINY_PRETRAIN, f"data.root={root}", "logger=wandb", *more]


@contextmanager
def at_step(step: int, happens: Callable[[], object]) -> Iterator[None]:
    agree = safety.Checkpoints._agree

    def with_it(self, trainer, *rest):
        if trainer.global_step == step and not trainer.validating:
            happens()
        return agree(self, trainer, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safety.Checkpoints, "_agree", with_it)
        yield


def evaluate(people: Path, resumed: Path, folder: Path, *more: str) -> dict[str, float]:
    file = f"ckpt_path={resumed}/checkpoints/last.ckpt"
    return run("eval", config("eval", *options(people), file, *more), folder)


@pytest.fixture(scope="module")
def people(drawn) -> Path:
    return drawn("luperson", 100)


@pytest.fixture(scope="module")
def resumed(people, tmp_path_factory) -> Path:
    """The folder of a run that was stopped by SIGTERM in the middle of its second epoch, and has gone on."""
    folder = tmp_path_factory.mktemp("resumed") / "run"
    with at_step(STOP, lambda: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(SystemExit):
        run("train", config("train", *options(people)), folder)
    assert wandb.run is None
    run("train", config("train", *options(people), "resume=auto"), folder)
    assert wandb.run is None
    return folder


def test_a_resumed_run_is_one_run_on_one_axis(resumed):
    first, second = parts(resumed)
    assert first.run.run_id == second.run.run_id == (resumed / "wandb/id.txt").read_text().strip()
    assert (first.exit_code, second.exit_code) == (1, 0)
    losses = first.points("train/loss"), second.points("train/loss")
    assert [step for step, _ in losses[0]] == list(range(1, STOP))  # a stop comes before the log of its step
    assert [step for step, _ in losses[1]] == list(range(STOP + 1, 2 * STEPS + 1))
    # Lightning counts from 0.
    for version, points in enumerate(losses):
        assert [(step - 1, pytest.approx(v)) for step, v in points] == logged(resumed, version, "train/loss")
    scores = first.points("val/loss") + second.points("val/loss")
    assert [step for step, _ in scores] == [STEPS, 2 * STEPS]
    assert second.config["environment"]["command"]
    assert second.config["total_batch_size"] == 8


def test_the_summary_has_the_best_and_the_last(resumed):
    first, second = parts(resumed)
    values = [value for _, value in first.points("val/loss") + second.points("val/loss")]
    for part in (first, second):
        metric = part.metrics["val/loss"]
        assert metric.step_metric == part.metrics["*"].step_metric == "step"
        assert (metric.summary.min, metric.summary.max, metric.summary.last) == (True, False, True)
    assert second.summary["val/loss"] == {"min": min(values), "last": values[-1]}
    assert isinstance(second.summary["train/loss"], float)


def test_pictures_are_in_the_media_folder_and_in_a_table_over_the_steps(resumed):
    first, second = parts(resumed)
    name = "masks_and_reconstructions"
    for part, steps in (first, (0, STEPS)), (second, (STOP, 2 * STEPS)):
        rows = [row for row in part.rows if f"pictures/{name}._type" in row]
        assert [row["step"] for row in rows] == list(steps)
        for row in rows:
            (file,) = row[f"pictures/{name}.filenames"]
            drawn = cv2.imread(str(resumed / f"pictures/{name}_step{row['step']:07d}.png"))
            assert (cv2.imread(str(part.folder / "files" / file)) == drawn).all()
    files = {file.path: file.local_path for file in second.artifacts["run_table"].manifest.contents}
    table = json.loads(Path(files["pictures/over_steps.table.json"]).read_text())
    assert [row[0] for row in table["data"]] == [0, STEPS, STOP, 2 * STEPS]
    assert table["columns"] == ["step", "attention", "masking_strategies", name]
    for step, *cells in table["data"]:
        for column, cell in zip(table["columns"][1:], cells, strict=True):
            drawn = resumed / f"pictures/{column}_step{step:07d}.png"
            assert drawn.exists() == (cell is not None)
            assert cell is None or Path(files[cell["path"]]).read_bytes() == drawn.read_bytes()


def test_report_and_checkpoint(resumed):
    part = parts(resumed)[-1]
    (file,) = part.artifacts["report"].manifest.contents
    page = (resumed / "report.html").read_bytes()
    assert (file.path, file.digest) == ("report.html", base64.b64encode(hashlib.md5(page).digest()).decode())
    assert file.local_path.startswith(f"{resumed}/")  # and not in the home folder
    checkpoint = resumed / f"checkpoints/step-{2 * STEPS:09d}.ckpt"
    facts = part.summary["checkpoint"]
    assert (facts["path"], facts["step"]) == (str(checkpoint), 2 * STEPS)
    assert facts["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert facts["scores"]["val/loss"] == part.points("val/loss")[-1][1]
    assert "model" not in part.artifacts


def test_a_run_that_was_killed_can_be_read_to_where_it_is_whole(resumed):
    folder = parts(resumed)[0].folder
    size = next(folder.glob("*.wandb")).stat().st_size
    read = [len(Part(folder, keep).rows) for keep in range(size // 2, size, size // 50)]
    assert read == sorted(read)
    assert 0 < read[0] < read[-1] == STOP + 1


def test_the_half_record_of_a_kill_is_cut_off(resumed, tmp_path):
    (source,) = parts(resumed)[0].folder.glob("*.wandb")
    data, path = source.read_bytes(), tmp_path / "run.wandb"
    for keep in (len(data), len(data) - 1, len(data) - 8, len(data) // 2, 7, 3):
        path.write_bytes(data[:keep])
        cut_to_whole_records(path)
        assert data.startswith(left := path.read_bytes())
        if keep > 7:  # not one byte more than the records need
            whole = len(list(records(source.parent, keep)))
            assert len(list(records(tmp_path))) == whole
            assert len(list(records(tmp_path, len(left) - 1))) == whole - 1
    path.write_bytes(b"something else")
    cut_to_whole_records(path)
    assert path.read_bytes() == b"something else"


def test_an_evaluation_is_at_the_step_of_its_checkpoint(people, resumed, tmp_path, monkeypatch):
    """As a job of a multirun, with names that are not UTF-8 and too long for a tag."""
    long = f"task.recipe.base_lr=0.1{'0' * 70}"
    file = f"ckpt_path={resumed}/checkpoints/last.ckpt"
    more = ("trainer.benchmark=false", "masking=random", long, "+name='x\udcff'", file)
    cfg = config("eval", *options(people), *more[:3], more[4], hydra=True)
    cfg.hydra.mode = "MULTIRUN"
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    HydraConfig.instance().set_config(cfg)
    cfg = config("eval", *options(people), *more[:3], more[4])
    cfg.name = "x\udcff"
    folder = tmp_path / "sweep_today/3"
    killed = folder / "wandb/offline-run-20261128_000000-before/run-before.wandb"
    killed.parent.mkdir(parents=True)
    (folder / "wandb/id.txt").write_text("before")
    whole = next(parts(resumed)[0].folder.glob("*.wandb")).read_bytes()
    killed.write_bytes(whole[:-3])
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        results = run("eval", cfg, folder)
    assert results["steps"] == 2 * STEPS
    assert len(killed.read_bytes()) < len(whole) - 3
    shutil.rmtree(killed.parent)
    (part,) = parts(folder)
    assert part.run.run_id == "before"
    assert part.points("test/loss") == [(2 * STEPS, pytest.approx(results["test/loss"]))]
    assert logged(folder, 0, "test/loss")[0][0] == 2 * STEPS
    assert part.config["overrides"]["masking"] == "random"
    assert part.config["checkpoint"] == {"path": file.removeprefix("ckpt_path="), "step": 2 * STEPS}
    assert (part.run.run_group, part.run.job_type) == ("x\\xff sweep_today", "eval")
    assert "masking=random" in part.run.tags
    assert not any(len(tag) > 64 for tag in part.run.tags)
    assert part.run.display_name.startswith("x\\xff 3 ")
    assert "masking=random" in part.run.display_name  # what comes last of what there is room for
    assert len(part.run.display_name) <= 128


def test_a_failed_run_is_closed_as_one(people, tmp_path):
    with pytest.raises(HapError, match="not finite"):
        run("train", config("train", *options(people), "task.recipe.base_lr=1e30"), tmp_path / "run")
    assert wandb.run is None
    (part,) = parts(tmp_path / "run")
    assert part.exit_code == 1
    assert part.artifacts["report"]


def test_w_and_b_that_dies_does_not_end_a_training(people, resumed, tmp_path, caplog):
    def die():
        own = [
            p for p in Path("/proc").glob("[0-9]*") if _parent(p) == os.getpid() and _name(p) == "wandb-core"
        ]
        assert own
        for process in own:
            os.kill(int(process.name), signal.SIGKILL)

    with at_step(3, die):
        results = run("train", config("train", *options(people), "epochs=1"), tmp_path / "run")
    assert results["steps"] == STEPS
    assert caplog.text.count("W&B fails and gets no more of this run") == 1
    assert len(logged(tmp_path / "run", 0, "train/loss")) == STEPS
    evaluate(people, resumed, tmp_path / "next")  # in the same process
    assert parts(tmp_path / "next")[0].exit_code == 0


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _name(process: Path) -> str:
    return (process / "comm").read_text().strip()


@pytest.mark.parametrize("project", ["no/slashes", "x" * 200])
def test_w_and_b_that_does_not_start_does_not_end_a_run(people, resumed, tmp_path, caplog, project):
    results = evaluate(people, resumed, tmp_path / "run", f"logger.wandb.project={project}")
    assert results["test/loss"] > 0
    assert caplog.text.count("W&B does not start, the run goes on without it") == 1


def test_switched_off_in_the_environment(people, resumed, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    evaluate(people, resumed, tmp_path / "run")
    assert not (tmp_path / "run/wandb").exists()
    assert os.environ["WANDB_MODE"] == "disabled"
    assert "WANDB_DATA_DIR" not in os.environ


def test_names_of_runs():
    assert run_labels(["experiment=demo", "masking.ratio=0.5", "seed=1"]) == ["ratio=0.5", "seed=1"]
    assert run_labels(["trainer=ddp", "trainer.devices=2", "data.root=/x", "logger=wandb", "run_dir=y"]) == []
    assert run_labels(["a.lr=1", "b.lr=2", "+c.d=3"]) == ["a.lr=1", "b.lr=2", "d=3"]
    assert run_labels(["weights=/home/me/mae.pth", "~callbacks.probe", "name=x\n"]) == [
        "weights=mae.pth",
        "name=x\\n",
    ]


def panels(workspace: Any) -> list[dict[str, Any]]:
    spec = json.loads(workspace._to_model().model_dump_json(by_alias=True))["spec"]
    return [
        panel for section in spec["section"]["panelBankConfig"]["sections"] for panel in section["panels"]
    ]


def test_the_workspace_shows_what_was_logged(resumed, capsys):
    part = parts(resumed)[-1]
    found = panels(WORKSPACE["build"](resumed, "me", "hap", "hap"))
    lines = [panel["config"] for panel in found if panel["viewType"] == "Run History Line Plot"]
    assert {line["xAxis"] for line in lines} == {"step"}
    shown = {name for line in lines for name in line["metrics"]}
    assert shown == {
        name for name in part.rows[-1].keys() | part.rows[0].keys() if "/" in name and name[:4] != "pict"
    }
    assert ["train/loss", "val/loss"] in [line["metrics"] for line in lines]
    media = [key for p in found if p["viewType"] == "Media Browser" for key in p["config"]["mediaKeys"]]
    names = ("attention", "masking_strategies", "masks_and_reconstructions")
    assert media == [f"pictures/{name}" for name in names]
    WORKSPACE["main"]([str(resumed), "--dry-run"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*shown, *media])


def test_the_workspace_of_a_sweep(tmp_path):
    for number, ratio in enumerate((0.25, 0.5)):
        (folder := tmp_path / str(number)).mkdir()
        overrides = ["experiment=demo", f"masking.ratio={ratio}"]
        (folder / "status.json").write_text(json.dumps({"state": "finished", "overrides": overrides}))
        (folder / "results.json").write_text(json.dumps({"val/loss": ratio}))
    (plot,) = [
        panel["config"]
        for panel in panels(WORKSPACE["build"](tmp_path, "me", "hap", "hap"))
        if panel["viewType"] == "Parallel Coordinates Plot"
    ]
    assert [column["accessor"] for column in plot["columns"]] == [
        "config:overrides.value.masking/ratio",
        "summary:val/loss.min",
    ]
    assert typed(["+masking.ratio=0.25", "masking=block"]) == {"masking/ratio": 0.25, "masking": "block"}


def test_the_workspace_of_no_run_is_one_message(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        WORKSPACE["main"]([str(tmp_path / "nothing"), "--dry-run"])
    assert ended.value.code == 2
    assert "nothing" in capsys.readouterr().err
