"""`report.html`: one file, which opens without a network, of what a run has left."""

import base64
import csv
import json
import os
import shlex
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hap.data.decoding import decode_image
from hap.errors import BadSample, HapError, printable
from hap.progress import clock
from hap.reports.charts import line_chart, number
from hap.reports.run import UNREAD, Run, is_run, read_run

REPORT = "report.html"
STEPS = 12  # of each picture: the first, the last and some in between
PICTURES = 24  # of a run that draws more, such as one for each image
ROWS, COLUMNS, CELL = 8, 40, 200  # of a table; letters in a cell
WIDEST = 1280  # pixels
_CONFIG_LETTERS = 100_000


def render(template: str, **values: Any) -> str:
    """A page from `templates/`. What the values say is shown by `printable` and escaped; only `Markup` is not."""
    return _ENVIRONMENT.get_template(template).render(values)


def data_uri(path: Path, widest: int = WIDEST) -> str:
    """A picture as JPEG inside of a page, at most `widest` pixels wide.

    Raises HapError if it cannot be read: it may be half-written."""
    try:
        image = decode_image(path.read_bytes())
    except (OSError, BadSample) as error:
        raise HapError(f"{printable(str(path))}: {error}") from error
    height, width = image.shape[:2]
    if width > widest:
        size = widest, max(1, round(height * widest / width))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    done, content = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    if not done:
        raise HapError(f"{printable(str(path))}: {width} x {height} pixels are not for a page")
    return f"data:image/jpeg;base64,{base64.b64encode(content.tobytes()).decode()}"


def write_report(folder: Path) -> Path:
    """Write `report.html` into the folder of a run and return its path.

    Raises HapError if the folder is none of a run, or cannot be written to.
    """
    try:
        if not folder.is_dir():
            raise HapError(f"there is no folder {printable(str(folder))}")
        if not is_run(folder):
            raise HapError(
                f"{printable(str(folder))} has nothing of a run in it: hap report FOLDER takes the folder of a run"
            )
        return write_page(folder / REPORT, render("run.html", **_contents(read_run(folder))))
    except OSError as error:  # no permission to look into it
        raise HapError(f"{printable(str(folder))}: {error.strerror}") from error


def write_page(path: Path, page: str) -> Path:
    """Whole or not at all. Raises HapError."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(page, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise HapError(f"cannot write {printable(str(path))}: {error.strerror}") from error
    return path


def _contents(run: Run) -> dict[str, Any]:
    """What `templates/run.html` shows."""
    unread = list(run.troubles.get(UNREAD, []))
    figures = _figures(run, unread)
    tables = [table for path in run.tables if (table := _table(path, unread))]
    results = run.results or {name: float(values[-1]) for name, (_, values) in run.metrics.items()}
    ordered = sorted(results, key=_importance)
    files = (path.name for path in run.folder.iterdir() if path.is_file() and path.name[0] != ".")
    return {
        "run": run,
        "state": str(run.status["state"]),
        "error": str(run.status.get("error", "")),
        "facts": _facts(run),
        "changed": {key: (_value(before), _value(now)) for key, (before, now) in run.changed.items()},
        "charts": _charts(run),
        "figures": figures,
        "hidden_figures": max(0, len(run.pictures) - PICTURES),
        "results": {name: number(results[name]) for name in ordered},
        "protocol": {key: _value(value) for key, value in run.protocol.items()},
        "tables": tables,
        "troubles": run.troubles | ({UNREAD: unread} if unread else {}),
        "config": _config(run.folder),
        "files": [(name, link(name)) for name in sorted(files) if name != REPORT],
    }


def _facts(run: Run) -> dict[str, list[str]]:
    """{what: lines}; those of which nothing is known are left out."""
    about, weights = run.environment, run.weights
    command = f"hap {run.program or '...'} {' '.join(map(_argument, run.overrides))}"
    last = " of the last part" if run.parts > 1 else ""
    packages = about.get("packages")
    versions = packages if isinstance(packages, dict) else {}
    devices = about.get("devices")
    took = run.results.get("seconds")
    facts: dict[str, list[Any]] = {
        "command": [command] if run.program or run.overrides else [],
        "parts": [f"{run.parts}, as it was resumed" if run.parts > 1 else None],
        f"start{last}": [run.status.get("started")],
        f"end{last}": [run.status.get("ended")],
        f"time{last}": [f"{clock(int(took))} (h:mm:ss)" if took is not None and 0 <= took < 1e9 else None],
        "machine": [run.status.get("host"), about.get("host")],
        "devices": list(devices) if isinstance(devices, list) and devices else ["no GPU"] if about else [],
        "revision": [about.get("git")],
        "versions": [
            " · ".join(f"{name} {v}" for name, v in {"python": about.get("python"), **versions}.items() if v)
        ],
        "weights": [weights.get("origin")],
        "licence of the weights": [weights.get("licence") or "not known"] if weights else [],
        "of the weights": [
            ", ".join(
                f"{weights[kind]} {kind}" for kind in ("matched", "missing", "unexpected") if kind in weights
            )
        ],
    }
    shown = {what: [_value(line) for line in lines if line] for what, lines in facts.items()}
    return {what: lines for what, lines in shown.items() if lines}


def _importance(name: str) -> tuple[int, bool]:
    """What was measured comes before how it was trained, a loss before its parts."""
    stages = ("test", "best_val", "best_test", "val", "probe", "train", "perf")
    stage = name.partition("/")[0]
    return (stages.index(stage) if stage in stages else len(stages)), not name.endswith("/loss")


# Of what a training logs, that which is no loss.
_SCHEDULE = ("lr", "grad_norm", "clipped")


def _charts(run: Run) -> dict[str, list[str]]:
    """{heading: charts}: what training, validation and probe call by one name is in one of them."""
    groups: dict[tuple[str, str], dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for name, series in sorted(run.metrics.items(), key=lambda item: not item[0].endswith("/loss")):
        stage, _, quantity = name.rpartition("/")
        speed = stage == "perf" or quantity in _SCHEDULE
        groups.setdefault(("perf" if speed else "", quantity), {})[stage or name] = series
    charts: dict[str, list[str]] = {"losses": [], "scores": [], "schedule and speed": []}
    for (kind, quantity), lines in groups.items():
        if all(len(steps) < 2 for steps, _ in lines.values()):
            continue  # of an evaluation, which has no course
        heading = "schedule and speed" if kind else "losses" if "train" in lines else "scores"
        charts[heading].append(line_chart(lines, "step", quantity, marks=run.resumed))
    return {heading: drawn for heading, drawn in charts.items() if drawn}


def _figures(run: Run, unread: list[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(name, [(caption, data URI)]) of the pictures, by step."""
    figures = []
    for name, files in islice(run.pictures.items(), PICTURES):
        chosen = np.unique(np.linspace(0, len(files) - 1, STEPS).round().astype(int)).tolist()
        shown = []
        for step, path in (files[i] for i in chosen):
            try:
                shown.append((f"step {step:,}" if step is not None else "", data_uri(path)))
            except HapError as error:
                unread.append(str(error))
        if shown:
            figures.append((name, shown))
    return figures


def _table(path: Path, unread: list[str]) -> dict[str, Any] | None:
    """The first rows of a CSV file; how many there are of a large one is not counted."""
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(islice(csv.reader(file), ROWS + 2))
    except (OSError, csv.Error) as error:
        unread.append(f"{path.name}: {error}")
        return None
    cut = [[cell if len(cell) <= CELL else f"{cell[:CELL]}…" for cell in row[:COLUMNS]] for row in rows]
    more = len(rows) > ROWS + 1 or any(len(row) > COLUMNS for row in rows)
    return (
        {"name": path.name, "link": link(path.name), "rows": cut[: ROWS + 1], "more": more} if cut else None
    )


def _config(folder: Path) -> str:
    try:
        with (folder / "config.yaml").open(encoding="utf-8", errors="replace") as file:
            return file.read(_CONFIG_LETTERS)
    except OSError:
        return ""


def link(name: str) -> str:
    """Of a file beside the report, whatever its name is made of."""
    return f"./{quote(os.fsencode(name))}"


def _argument(text: str) -> str:
    """As one types it in a shell; Hydra's own quotes stay readable."""
    return f'"{text}"' if "'" in text and not set(text) & set('"$`\\\\!') else shlex.quote(text)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _lines(text: str) -> Markup:
    """Several lines, the breaks between them kept."""
    return Markup("\n").join(map(printable, text.splitlines()))


def _shown(value: Any) -> Any:
    return value if isinstance(value, Markup) else printable(str(value))


_ENVIRONMENT = Environment(
    loader=PackageLoader("hap.reports"),
    autoescape=True,
    finalize=_shown,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["lines"] = _lines
