"""What the writers of data sets share: how their jobs run, and how a picture is saved."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

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
