"""Where the record of a benchmark is."""

import re
from pathlib import Path


def record_path(folder: Path, benchmark: str, device: str) -> Path:
    """`pretrain_nvidia-h200.json`; the tables lie beside it, as `.md`."""
    return folder / f"{benchmark}_{re.sub('[^a-z0-9]+', '-', device.lower())}.json"
