"""`python -m hap.report FOLDER [FOLDER ...]`: `report.html` of runs that are over, running or killed."""

import argparse
import sys
from pathlib import Path

from hap.errors import HapError
from hap.reports.page import write_report


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="hap report",
        description="Put what a run has left together in one file, report.html, in its folder.",
    )
    parser.add_argument(
        "folder", nargs="+", type=Path, help="of a run, also one that is running or was killed"
    )
    failed = False
    for folder in parser.parse_args().folder:
        try:
            print(write_report(folder))
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
