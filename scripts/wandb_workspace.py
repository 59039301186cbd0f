"""Save a workspace for a W&B project: curves, pictures, throughput, and for a sweep what it swept.

    python scripts/wandb_workspace.py FOLDER [--project hap] [--entity NAME] [--name hap] [--dry-run]

FOLDER is that of a run or of a sweep: the panels are of what was logged there. `--dry-run` prints them, without W&B's
service. Needs pip install "hap[workspace]".
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hap.errors import HapError, printable
from hap.loggers import STEP, summary_kind
from hap.reports.run import Run, read_run
from hap.reports.sweep import Sweep, is_sweep, read_sweep

STAGES = ("train", "val", "test", "probe")


def build(folder: Path, entity: str, project: str, name: str) -> Any:
    """A `wandb_workspaces.workspaces.Workspace`, not saved yet."""
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise HapError('W&B workspaces are of an extra: pip install "hap[workspace]"') from error
    sweep = read_sweep(folder) if is_sweep(folder) else None
    runs = [read_run(job.folder) for job in sweep.jobs] if sweep else [read_run(folder)]
    sections = {
        "Scores and losses": [
            wr.LinePlot(title=title, x=STEP, y=metrics) for title, metrics in curves(runs, sweep).items()
        ],
        "Pictures": [
            wr.MediaBrowser(
                title=picture, media_keys=[f"pictures/{picture}"], mode="gallery", gallery_axis="step"
            )
            for picture in dict.fromkeys(picture for run in runs for picture in run.pictures)
        ],
        "Throughput": [
            wr.LinePlot(title=metric, x=STEP, y=[metric])
            for metric in logged(runs)
            if metric.startswith("perf/")
        ],
        "Sweep": sweep_panels(wr, sweep) if sweep else [],
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(name=s, panels=panels, is_open=True) for s, panels in sections.items() if panels
        ],
    )


def logged(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.metrics))


def curves(runs: Sequence[Run], sweep: Sweep | None) -> dict[str, list[str]]:
    """{score: its names in all stages}, so that training and validation are in one chart; the objective first."""
    charts: dict[str, list[str]] = {}
    names = sorted(logged(runs), key=lambda name: (sweep is None or name != sweep.objective, name))
    for name in names:
        stage, _, score = name.partition("/")
        if stage in STAGES and score:
            charts.setdefault(score, []).append(name)
    return charts


def sweep_panels(wr: Any, sweep: Sweep) -> list[Any]:
    """What was swept against the objective, and how the runs differ."""
    panels = [wr.RunComparer(diff_only="split")]
    if sweep.objective is None:
        return panels
    kind = summary_kind(sweep.objective)
    score = f"{sweep.objective}.{kind}" if kind else sweep.objective
    columns = [
        wr.ParallelCoordinatesPlotColumn(
            wr.Config(f"overrides.{key.replace('.', '/')}"), display_name=sweep.short[key]
        )
        for key in sweep.keys
    ]
    columns.append(wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(score), display_name=sweep.objective))
    importance = wr.ParameterImportancePlot(with_respect_to=score)
    return [wr.ParallelCoordinatesPlot(columns=columns), importance, *panels]


def outline(workspace: Any) -> str:
    lines = [f"{workspace.name}, of {workspace.entity or 'your own entity'}/{workspace.project}"]
    for section in workspace.sections:
        lines.append(f"  {section.name}")
        for panel in section.panels:
            what = getattr(panel, "y", None) or getattr(panel, "media_keys", None) or []
            what = [*what, *(column.display_name for column in getattr(panel, "columns", []))]
            lines.append(
                f"    {type(panel).__name__:24} {', '.join(map(printable, map(str, what)))}".rstrip()
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--project", default="hap")
    parser.add_argument("--entity", default="", help="a user or team; by default that of the login")
    parser.add_argument("--name", default="hap")
    parser.add_argument("--dry-run", action="store_true", help="print what would be saved")
    options = parser.parse_args(arguments)
    try:
        workspace = build(options.folder, options.entity, options.project, options.name)
        print(outline(workspace))
        if not options.dry_run:
            save(workspace)
    except HapError as error:
        print(f"wandb_workspace: {error}", file=sys.stderr)
        sys.exit(2)


def save(workspace: Any) -> None:
    import wandb

    try:
        workspace.entity = workspace.entity or wandb.Api().default_entity
        workspace.save()
    except Exception as error:  # of the network, of the account, of either package
        raise HapError(f"W&B does not take it: {error}\n--dry-run needs no account") from error


if __name__ == "__main__":
    main()
