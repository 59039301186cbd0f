"""What the writers of data sets share: how their jobs run, and how a picture is saved."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.io import savemat

# (function of one job, jobs) -> results, in the order of the jobs.
Run = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]


def save_image(path: Path, image: np.ndarray, quality: int | None = None) -> None:
    """RGB uint8 -> JPEG of this quality (1 to 100), or PNG without one. The folder is there."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    if quality is None:
        _, data = cv2.imencode(".png", bgr)
    else:
        _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    path.write_bytes(data.tobytes())


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def save_mat(path: Path, variables: dict[str, Any]) -> None:
    """A MATLAB 5 file without the time of day in it: the same data are the same bytes."""
    file = io.BytesIO()
    savemat(file, variables, do_compression=True)
    header = b"MATLAB 5.0 MAT-file, drawn people".ljust(116)
    path.write_bytes(header + file.getvalue()[len(header) :])
