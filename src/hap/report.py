"""`python -m hap.report FOLDER [FOLDER ...]`: `report.html` of runs and sweeps that are over, running or killed."""

import argparse
import sys
from pathlib import Path

from hap.errors import HapError
from hap.reports.page import write_report
from hap.reports.sweep import is_sweep
from hap.reports.sweep_page import write_sweep_report


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="hap report",
        description="Put what a run or a sweep has left together in one file, report.html, in its folder.",
    )
    parser.add_argument(
        "folder", nargs="+", type=Path, help="of a run or a sweep, also one that is running or was killed"
    )
    failed = False
    for folder in parser.parse_args().folder:
        try:
            print((write_sweep_report if is_sweep(folder) else write_report)(folder))
        except HapError as error:
            print(f"hap: {error}", file=sys.stderr)
            failed = True
    if failed:
        sys.exit(2)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
