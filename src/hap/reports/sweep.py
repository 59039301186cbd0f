"""Results of several runs side by side."""

import csv
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from hap.console import print_table
from hap.record import read_results


class SweepTable(Callback):
    """At the end of a multirun: one row per job, its overrides and its results; all of them in `sweep.csv`."""

    def __init__(self) -> None:
        self.jobs: list[tuple[list[str], Path]] = []

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        hydra = config.hydra if "hydra" in config else job_return.hydra_cfg.hydra
        self.jobs.append((list(job_return.overrides or []), Path(hydra.runtime.output_dir)))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        rows = []
        for overrides, folder in self.jobs:
            rows.append((overrides, read_results(folder)))
        if not any(results for _, results in rows):
            return
        common = set.intersection(*(set(overrides) for overrides, _ in rows)) if len(rows) > 1 else set()
        columns = sorted({name for _, results in rows for name in results})
        table = Path(config.hydra.sweep.dir) / "sweep.csv"
        with table.open("w", newline="") as output:
            writer = csv.writer(output)
            writer.writerow(["folder", "overrides", *columns])
            for (overrides, folder), (_, results) in zip(self.jobs, rows, strict=True):
                writer.writerow([folder, " ".join(overrides), *(results.get(c, "") for c in columns)])
        # On the console, the measured ones: a line has no room for all.
        columns = [c for c in columns if c.startswith(("val/", "test/"))] or ["train/loss"]
        print_table(
            ["run", *columns],
            [
                [" ".join(o for o in overrides if o not in common), *(_cell(results.get(c)) for c in columns)]
                for overrides, results in rows
            ],
        )
        print(f"all results: {table}")


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
