"""`python -m hap.bench BENCHMARK [key=value ...]`: figures measured on this machine, as JSON and as tables."""

import json
import logging
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from hap.benchmarks.records import record_path
from hap.building import build, count_classes, unknown_numbers
from hap.cli import run_with_hydra
from hap.config import check_config
from hap.record import environment
from hap.schema import Root

log = logging.getLogger(__name__)


@dataclass
class BenchRoot(Root):
    """The root keys of training, and two more."""

    benchmark: Any = MISSING  # conf/benchmark/*.yaml
    out: str = MISSING


ConfigStore.instance().store(name="bench_schema", node=BenchRoot)


def body(cfg: DictConfig, _: Path) -> None:
    check_config(cfg)
    if unknown_numbers(cfg):
        count_classes(cfg, build(cfg.data, "data"))
    name = cfg.benchmark._target_.split(".")[-2]
    record = {
        "benchmark": name,
        "environment": environment() | {"command": ["hap", "bench", *sys.argv[1:]], "hardware": hardware()},
        "config": OmegaConf.to_container(cfg.benchmark, resolve=True),
    }
    out = Path(cfg.out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    for results in build(
        cfg.benchmark, "benchmark"
    ):  # after each row: a run that is stopped leaves its figures
        record["results"] = results
        path = record_path(out, name, results["device"])
        path.write_text(json.dumps(record, indent=1) + "\n")
        path.with_suffix(".md").write_text(report(record))
    log.info("%s\nresults in %s", report(record), path)


def hardware() -> dict[str, Any]:
    """What the figures depend on: processor, its vector instructions as PyTorch sees them, cores, GPU."""
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "cpu": cpu_name(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu and gpu.name,
        "gpu_memory_gb": gpu and round(gpu.total_memory / 1e9, 1),
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.is_file() else []
    return names[0].strip() if names else platform.processor()


def report(record: dict[str, Any]) -> str:
    """Markdown: single values as a list, each list of rows as a table under its name."""
    environment, results = record["environment"], record["results"]
    values = environment["hardware"] | {"torch": environment["packages"]["torch"], "git": environment["git"]}
    values |= {name: value for name, value in results.items() if not isinstance(value, list)}
    lines = [f"# {record['benchmark']}", "", f"`{' '.join(environment['command'])}`", ""]
    lines += [f"- {name.replace('_', ' ')}: {cell(value)}" for name, value in values.items()]
    for name, rows in results.items():
        if isinstance(rows, list) and rows:
            lines += ["", f"## {name.replace('_', ' ')}", "", "| " + " | ".join(rows[0]) + " |"]
            lines += ["|" + " --- |" * len(rows[0])]
            lines += ["| " + " | ".join(map(cell, row.values())) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def cell(value: Any) -> str:
    """Four significant digits; nothing for what was not measured."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "" if value is None else str(value)


def main() -> None:
    # A bare word is the benchmark: `hap bench pretrain` is `hap bench benchmark=pretrain`.
    sys.argv[1:2] = [a if "=" in a or a.startswith("-") else f"benchmark={a}" for a in sys.argv[1:2]]
    run_with_hydra("bench", body)


if __name__ == "__main__":
    main()
