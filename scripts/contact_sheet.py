"""Draws the synthetic people of the README: `python scripts/contact_sheet.py [FILE] [--seed N]`."""

import argparse
from pathlib import Path

import cv2
import numpy as np

from hap.synthetic.person import identity
from hap.synthetic.pose import sample_pose
from hap.synthetic.render import render
from hap.synthetic.scene import camera

ROWS, COLUMNS, CELL, GAP = 4, 16, (104, 208), 4  # cell: width, height


def sheet(seed: int) -> np.ndarray:
    """64 people, 4 rows of 16, uint8 RGB."""
    width, height = CELL
    page = np.full((ROWS * (height + GAP) + GAP, COLUMNS * (width + GAP) + GAP, 3), 255, np.uint8)
    for i in range(ROWS * COLUMNS):
        rng = np.random.default_rng([seed, i])
        drawn = render(identity(seed, i), sample_pose(rng), camera(seed, i % 24), rng, size=CELL)
        y, x = (GAP + k * (side + GAP) for k, side in zip(divmod(i, COLUMNS), (height, width), strict=True))
        page[y : y + height, x : x + width] = drawn.image
    return page


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=Path("docs/images/people.jpg"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(args.file), sheet(args.seed)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
    print(f"{args.file}: {args.file.stat().st_size / 1000:.0f} kB")
