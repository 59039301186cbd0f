"""`python -m hap.doctor [data=FOLDER ...] [NAME=FOLDER ...]`: what this machine has and lacks, and what to type."""

import argparse
import difflib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hap.checkup import machine
from hap.checkup.findings import Clock, Finding, guarded, lines
from hap.checkup.folders import look_for, look_in
from hap.checkup.sets import DATA_SETS
from hap.checkup.weights import weights
from hap.data.files import user_path
from hap.errors import HapError

SECONDS = 4.0  # for everything, counting of files included
BY_NAME = {dataset.name: dataset for dataset in DATA_SETS}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="hap doctor",
        description="Look at this machine, at weights and data sets, without network. Status 1: something stops a run.",
        epilog=f"NAME is one of {', '.join(BY_NAME)}.",
    )
    parser.add_argument(
        "where",
        nargs="*",
        metavar="data=FOLDER | NAME=FOLDER",
        help="the folder of all data sets (else $HAP_DATA, else data/), or that of a certain one",
    )
    given = parser.parse_args().where
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of names and signs that the terminal cannot show
    try:
        stops = show(*places(given))
        sys.stdout.flush()
    except BrokenPipeError:  # `hap doctor | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except HapError as error:
        print(f"hap: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(1 if stops else 0)


def places(arguments: Sequence[str]) -> tuple[list[Path], dict[str, Path]]:
    """Folders of all data, and those of certain data sets, from the command line. Raises HapError."""
    bases: list[Path] = []
    certain: dict[str, Path] = {}
    for argument in arguments:
        name, sign, folder = argument.partition("=")
        if not sign or not folder or "\0" in folder:
            raise HapError(f"{argument!r}: data=FOLDER for the folder of all data, or NAME=FOLDER of one set")
        if name in ("data", "data.root"):
            bases.append(user_path(folder))
        elif name in BY_NAME:
            certain[name] = user_path(folder)
        else:
            near = difflib.get_close_matches(name, BY_NAME, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise HapError(
                f"there is no data set {name!r}{hint} (data=FOLDER, or one of {', '.join(BY_NAME)})"
            )
    return bases, certain


def show(bases: Sequence[Path], certain: dict[str, Path]) -> int:
    """Print what is found, and return how much of it stops a run."""
    clock = Clock(SECONDS)
    torch, driver = (
        machine.Asked((sys.executable, "-c", machine.ASK_TORCH)),
        machine.Asked(machine.ASK_DRIVER),
    )
    try:
        default = user_path(os.environ.get("HAP_DATA") or "data")
        data: list[tuple[str, list[Finding]]] = [
            (f"{BY_NAME[name].title} in {folder}", _looked_in(name, folder, clock))
            for name, folder in certain.items()
        ]
        for base in bases or ([] if certain else [default]):
            data.append((f"data in {base}", _base(base, bool(bases), clock)))
        here = [
            *guarded("software", machine.software),
            *guarded("PyTorch", lambda: machine.gpu(torch, driver, clock)),
            *guarded("memory", machine.memory),
            *guarded("disk", lambda: machine.disk(Path("runs"), "runs", "run_dir=FOLDER on another disk")),
            *guarded("W&B", machine.wandb),
        ]
    finally:
        torch.end()
        driver.end()
    found = guarded("weights", lambda: weights((bases or [default])[0], clock))
    sections = [("this machine", here), ("weights", found), *data]
    for title, findings in sections:
        print(f"{title}\n" + "\n".join(lines(findings)) + "\n")
    stops = sum(finding.level == "stop" for _, findings in sections for finding in findings)
    count = f"{stops} finding{'s' * (stops > 1)}"
    print(f"{count} above would stop a run" if stops else "nothing stops a run")
    return stops


def _looked_in(name: str, folder: Path, clock: Clock) -> list[Finding]:
    return guarded(BY_NAME[name].title, lambda: look_in(BY_NAME[name], folder, clock))


def _base(base: Path, given: bool, clock: Clock) -> list[Finding]:
    """All data sets in a folder: what is there first."""
    if not base.is_dir():
        reason = (
            "a link to nowhere" if base.is_symlink() else "not there" if not base.exists() else "no folder"
        )
        todo = (
            "export HAP_DATA=FOLDER, or hap doctor data=FOLDER",
            "without data: synthetic=true draws people",
        )
        return [
            Finding("stop" if given else "note", "folder", f"{base} is {reason}", todo),
            *([] if given else _sets(base, clock)),
        ]
    return _sets(base, clock)


def _sets(base: Path, clock: Clock) -> list[Finding]:
    looked = [guarded(dataset.title, lambda d=dataset: look_for(d, base, clock)) for dataset in DATA_SETS]  # type: ignore[misc]
    looked.sort(key=lambda findings: findings[0].text.startswith("not there"))
    return [finding for findings in looked for finding in findings]


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
