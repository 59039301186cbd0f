"""All that a card has to show, in order: each part a program of its own with a time limit, so that one that fails
or hangs takes nothing else along. What is done is kept: started again, only the missing parts run."""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hap.benchmarks.records import record_path
from hap.config import CONF_DIR
from hap.errors import HapError
from hap.record import git_revision

log = logging.getLogger(__name__)

# part: (limit in minutes, `hap bench` arguments). 39 minutes at most.
PARTS: dict[str, tuple[float, list[str]]] = {
    "gpu tests": (4, []),
    "step": (4, ["pretrain", "benchmark.compiled=[false]"]),
    "profile": (2, ["pretrain", "benchmark.batch_sizes=[512]", "benchmark.parts=[profile]"]),
    "reader and training": (
        5,
        ["pretrain", "benchmark.batch_sizes=[512]", "benchmark.parts=[reader,training]"],
    ),
    "compiled": (6, ["pretrain", "benchmark.batch_sizes=[256,512,1024]", "benchmark.compiled=[true]"]),
    "4096 negatives": (3, ["pretrain", "benchmark.batch_sizes=[4096]", "benchmark.passes=8"]),
    "options": (5, ["pretrain", "benchmark.batch_sizes=[512]", "benchmark.parts=[options]"]),
    "ViT-L": (2, ["pretrain", "model=vit_large", "benchmark.batch_sizes=[256]"]),
    "ViT-H": (2, ["pretrain", "model=vit_huge", "benchmark.batch_sizes=[128]"]),
    "ViT-lem": (3, ["pretrain", "experiment=reid_msmt17_lem_384", "benchmark.batch_sizes=[64]"]),
    "ranking": (3, ["reid_eval", "benchmark.device=cuda"]),
}
EAGER = ["benchmark.compiled=[false]", "benchmark.parts=[]"]  # unless a part says otherwise

# On a CPU: the same parts with a toy, to try the program itself.
NOT_FOR_A_TOY = ("gpu tests", "compiled")
TOY_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
TOY = {
    "pretrain": [
        "trainer=cpu",
        "img_size=[64,32]",
        "model.embed_dim=32",
        "model.depth=2",
        "model.num_heads=4",
        "data.num_workers=0",
        "data.draw.num_images=100",
        "benchmark.batch_sizes=[8]",
        "benchmark.repeats=1",
        "benchmark.max_step_seconds=0",
        "benchmark.reader_images=64",
        "benchmark.train_seconds=0.2",
    ],
    "reid_eval": [f"benchmark.{o}" for o in ("num_query=20", "num_gallery=200", "num_ids=10", "device=cpu")],
}


def run(out: str, device: str = "cuda", anew: bool = False) -> Iterator[dict[str, Any]]:
    """
    Args:
        out: folder of the record.
        device: "cuda"; "cpu" makes the same parts with a toy, in minutes.
        anew: measure again what the record already has.

    Yields:
        after each part: the device, a row for each part (state, seconds, command), the tables of each part by
        `PART: TABLE`, and what docs/performance.md aims at.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise HapError(
            "no GPU is to be seen here; benchmark.device=cpu (make gpu DEVICE=cpu) tries the program itself"
        )
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    results = {} if anew else earlier(record_path(Path(out).expanduser(), "all", name))
    results |= {"device": name, "revision": git_revision()}
    parts = {row["part"]: row for row in results.pop("parts", []) if row["state"] == "done"}
    for part, (minutes, arguments) in PARTS.items():
        if part not in parts:
            log.info("%s (at most %g minutes)", part, minutes)
            parts[part], tables = measure(part, arguments, minutes, device)
            results = {k: v for k, v in results.items() if not k.startswith(f"{part}: ")}
            for table, values in tables.items():
                if isinstance(values, list) and (table != "matrix_product" or part == "step"):
                    results[f"{part}: {table}"] = values
        rows = [parts[name] for name in PARTS if name in parts]
        yield results | {"parts": rows, "aims": aims(results)}


def earlier(path: Path) -> dict[str, Any]:
    """The results of a run that was stopped; those of another revision of the code do not count."""
    if not path.is_file():
        return {}
    results = json.loads(path.read_text())["results"]
    if results["revision"] != git_revision():
        return {}
    log.info("going on with %s (benchmark.anew=true starts again)", path)
    return results


def measure(
    part: str, arguments: list[str], minutes: float, device: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run one part; its row and its tables, those it had before it failed included."""
    if device == "cpu" and part in NOT_FOR_A_TOY:
        return row(part, "done", 0, "left out: it needs a GPU"), {}
    with tempfile.TemporaryDirectory() as folder:
        if arguments:
            command = [sys.executable, "-m", "hap.bench", *complete(arguments, device), f"out={folder}"]
        else:
            pytest = "-m pytest -q -m gpu -p no:cacheprovider"
            command = [sys.executable, *pytest.split(), str(CONF_DIR.parent / "tests")]
        start = time.monotonic()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ if device == "cuda" else os.environ | TOY_ENVIRONMENT,
            start_new_session=True,  # so that its own processes end with it
        )
        try:
            output, _ = process.communicate(timeout=60 * minutes)
            state = "done" if process.returncode == 0 else f"failed with status {process.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            state, (output, _) = f"stopped after {minutes:g} minutes", process.communicate()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if state != "done":
            log.warning("%s %s\n%s", part, state, output[-2000:])
        tables: dict[str, Any] = {}
        for file in Path(folder).glob("*.json"):
            tables = json.loads(file.read_text())["results"]
        last = (output.strip().splitlines() or [""])[-1] if state != "done" or not arguments else ""
        return row(part, state, time.monotonic() - start, last or " ".join(arguments)), tables


def row(part: str, state: str, seconds: float, remark: str) -> dict[str, Any]:
    return {"part": part, "state": state, "seconds": round(seconds, 1), "remark": remark.replace("|", "/")}


def complete(arguments: list[str], device: str) -> list[str]:
    """The arguments of a part with its defaults in front, and the toy's behind."""
    program, *own = arguments
    defaults = EAGER if program == "pretrain" else []
    if any("reid" in argument for argument in own):
        defaults = [*defaults, "data.draw.root=${oc.env:HAP_DATA,data}/synthetic/msmt17_2000"]
    toy = TOY[program] if device == "cpu" else []
    if toy and program == "pretrain":
        dataset = "msmt17" if len(defaults) > len(EAGER) else "luperson"
        toy = [*toy, f"data.draw.root=${{oc.env:HAP_DATA,data}}/synthetic/{dataset}_100"]
        if dataset == "luperson":
            toy += [f"task.model.decoder_{size}" for size in ("embed_dim=32", "depth=1", "num_heads=4")]
    return [program, *defaults, *own, *toy]


def aims(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What docs/performance.md wants of one H200, and what came out."""
    steps = [row for part in ("step", "compiled") for row in results.get(f"{part}: step", [])]
    training = (results.get("reader and training: training_with_the_reader") or [{}])[0]
    reader = [row["images_per_s"] for row in results.get("reader and training: reader", [])]
    best = max((row["images_per_s"] for row in steps), default=None)
    alone = training.get("step_alone_images_per_s")
    return [
        {"aim": "ViT-B, images/s of the step", "wanted": "4000 (5000)", "measured": best},
        {"aim": "reader / step", "wanted": "2", "measured": max(reader) / best if reader and best else None},
        {"aim": "data wait", "wanted": "below 0.02", "measured": training.get("data_wait")},
        {
            "aim": "training with the reader / step",
            "wanted": "0.98",
            "measured": training["images_per_s"] / alone if alone else None,
        },
    ]
