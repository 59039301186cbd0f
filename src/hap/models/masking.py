"""What to hide from the encoder: per-patch scores (numpy, drawn with the sample), then their ranking (torch).

A mask belongs to a sample. A strategy therefore runs where the sample is made, in the loader worker, from the
sample's own generator; the model only ranks the scores of a batch. The official code draws the masks inside
the forward pass, one image after the other, while the device waits.

Legend: N images, V views, L patches (row-major), K visible, M = L - K removed.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

Grid = tuple[int, int]

# Bones of the six body parts as pairs of COCO key points (HAP, section 3.2).
PARTS = {
    "head": ((0, 1), (0, 2), (1, 2), (1, 3), (2, 4)),
    "left arm": ((5, 7), (7, 9)),
    "right arm": ((6, 8), (8, 10)),
    "left leg": ((11, 13), (13, 15)),
    "right leg": ((12, 14), (14, 16)),
    "torso": ((6, 11), (5, 12)),
}
NUM_KEYPOINTS = 17
_PART_BONES = tuple(PARTS.values())

PART_PRIORITY = 100  # of the first part; the next has 99, and so on
BLOCK_PRIORITY = 2
PART_SHARE = 0.3  # at most this share of a part's patches is masked

BLOCK_MIN_AREA = 12  # patches
BLOCK_LOG_ASPECT = math.log(1 / 0.3)
BLOCK_ATTEMPTS = 10


class Strategy(Protocol):
    """Draws the masking scores of one view of one image: the higher, the sooner a patch is removed."""

    def __call__(
        self, grid: Grid, ratio: float, keypoints: np.ndarray | None, rng: np.random.Generator
    ) -> np.ndarray:
        """
        Args:
            grid: rows and columns of patches.
            ratio: share of the patches that `rank` will remove.
            keypoints: (17, 3) x, y in pixels of the crop, and score, in COCO's order. A point with score 0,
                with a NaN or outside the crop is missing. None: all are.
            rng: the sample's generator.

        Returns:
            (L,) float32, without ties.
        """
        ...


class Random:
    """Uniform over the patches (MAE)."""

    def __call__(
        self, grid: Grid, ratio: float, keypoints: np.ndarray | None, rng: np.random.Generator
    ) -> np.ndarray:
        return _break_ties(np.zeros(grid[0] * grid[1], np.float32), rng)


class Block:
    """Rectangles first (BEiT)."""

    def __call__(
        self, grid: Grid, ratio: float, keypoints: np.ndarray | None, rng: np.random.Generator
    ) -> np.ndarray:
        return _break_ties(BLOCK_PRIORITY * draw_blocks(grid, ratio, rng), rng)


class Parts:
    """Patches of body parts first, the rest uniform."""

    def __init__(self, patch_size: int):
        self.patch_size = patch_size

    def __call__(
        self, grid: Grid, ratio: float, keypoints: np.ndarray | None, rng: np.random.Generator
    ) -> np.ndarray:
        return _break_ties(draw_parts(grid, self.patch_size, keypoints, rng), rng)


class BlockParts:
    """Patches of body parts first, then rectangles, then the rest (HAP)."""

    def __init__(self, patch_size: int):
        self.patch_size = patch_size

    def __call__(
        self, grid: Grid, ratio: float, keypoints: np.ndarray | None, rng: np.random.Generator
    ) -> np.ndarray:
        parts = draw_parts(grid, self.patch_size, keypoints, rng)
        blocks = BLOCK_PRIORITY * draw_blocks(grid, ratio, rng)
        return _break_ties(np.maximum(parts, blocks), rng)


# All of them, by the names of conf/masking/, each made for a patch size.
STRATEGIES: dict[str, Callable[[int], Strategy]] = {
    "random": lambda patch_size: Random(),
    "block": lambda patch_size: Block(),
    "parts": Parts,
    "block_parts": BlockParts,
}


def num_visible(num_patches: int, ratio: float) -> int:
    """Number of patches that stay when `ratio` of them is removed, rounded as in MAE."""
    return int(num_patches * (1 - ratio))


def draw_blocks(grid: Grid, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Rectangles until the number of patches to remove is reached or nothing fits any more.

    Whether a rectangle fits, its overlap with earlier ones counts twice. So fresh patches are preferred, and
    the last rectangle may exceed the number a little. This is inferred: it gives the shares per row and column
    and the 70 patches at most that were measured on the official code; counted once, as in BEiT, the number is
    never exceeded, and the upper and lower rows are masked too rarely.

    Returns:
        (L,) float32, 1 inside the rectangles: on 16 x 8 patches at ratio 0.5, 64 on average, 50 to 70.
    """
    rows, cols = grid
    blocks = np.zeros(grid, bool)
    remaining = rows * cols - num_visible(rows * cols, ratio)
    while remaining > 0:
        added = _add_block(blocks, remaining, rng)
        if not added:
            break
        remaining -= added
    return blocks.ravel().astype(np.float32)  # (rows, cols) -> (L,)


def _add_block(blocks: np.ndarray, remaining: int, rng: np.random.Generator) -> int:
    """Marks one more rectangle in place. Returns the number of patches it adds, 0 if no attempt fits."""
    rows, cols = blocks.shape
    for u_area, u_aspect, u_top, u_left in rng.random((BLOCK_ATTEMPTS, 4)).tolist():
        # Uniform between the bounds also where the remaining budget is the lower one.
        area = BLOCK_MIN_AREA + (remaining - BLOCK_MIN_AREA) * u_area
        aspect = math.exp(BLOCK_LOG_ASPECT * (2 * u_aspect - 1))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= rows or width >= cols:
            continue
        top, left = int(u_top * (rows - height + 1)), int(u_left * (cols - width + 1))
        block = blocks[top : top + height, left : left + width]
        size, overlap = height * width, int(np.count_nonzero(block))
        if 0 < size - 2 * overlap <= remaining:
            block[:] = True
            return size - overlap
    return 0


def draw_parts(
    grid: Grid, patch_size: int, keypoints: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """Some patches of some body parts. The number of parts is uniform in 0..6, the share of each part's
    patches uniform in 0..0.3; a part without a patch does not count.

    The official code redraws the number from the previous image's, so that it can only fall along a batch and
    0.8 % of the images get any part at all. As in the paper, every image draws its own here: about 67 % do.

    Returns:
        (L,) float32: the priority of the patches drawn, 0 elsewhere.
    """
    priorities = np.zeros(grid[0] * grid[1], np.float32)
    cells = _patch_cells(grid, patch_size, keypoints)
    wanted = int(rng.integers(len(_PART_BONES) + 1))
    priority = PART_PRIORITY
    for index in rng.permutation(len(_PART_BONES)):
        if priority == PART_PRIORITY - wanted:
            break
        patches = _part_patches(grid, cells, _PART_BONES[index])
        if not patches.size:
            continue
        count = int(patches.size * PART_SHARE * rng.random())
        priorities[rng.permutation(patches)[:count]] = priority
        priority -= 1
    return priorities


def _patch_cells(grid: Grid, patch_size: int, keypoints: np.ndarray | None) -> list[Grid | None]:
    """(row, column) of the patch that holds each key point, None where it is missing."""
    if keypoints is None:
        return [None] * NUM_KEYPOINTS
    rows, cols = grid
    height, width = rows * patch_size, cols * patch_size
    cells: list[Grid | None] = []
    for x, y, score in keypoints.tolist():
        present = score > 0 and 0 <= x < width and 0 <= y < height  # a NaN fails every comparison
        cells.append((int(y / patch_size), int(x / patch_size)) if present else None)
    return cells


def _part_patches(grid: Grid, cells: list[Grid | None], bones: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Indices of the patches in the rectangles that the part's bones span; a bone needs both its ends."""
    part = np.zeros(grid, bool)
    for start, end in bones:
        a, b = cells[start], cells[end]
        if a is not None and b is not None:
            part[min(a[0], b[0]) : max(a[0], b[0]) + 1, min(a[1], b[1]) : max(a[1], b[1]) + 1] = True
    return np.flatnonzero(part)


def _break_ties(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Orders patches of equal (whole) score at random. The official code leaves them to the sort's order,
    which masks the upper rows more often."""
    return scores + rng.random(scores.size, dtype=np.float32)


class Masking(NamedTuple):
    """Which patches the encoder sees, in the order in which it sees them. Any leading dimensions."""

    ids_shuffle: Tensor  # (..., L) int64: visible patches, then removed ones
    num_visible: int  # K

    @property
    def ids_keep(self) -> Tensor:
        """(..., K): the visible patches."""
        return self.ids_shuffle[..., : self.num_visible]

    @property
    def ids_removed(self) -> Tensor:
        """(..., M): the removed patches."""
        return self.ids_shuffle[..., self.num_visible :]

    @property
    def ids_restore(self) -> Tensor:
        """(..., L): place of each patch in `ids_shuffle`."""
        return self.ids_shuffle.argsort(dim=-1)

    @property
    def mask(self) -> Tensor:
        """(..., L) float: 1 where the patch is removed, 0 where it is visible."""
        return (self.ids_restore >= self.num_visible).float()


def rank(scores: Tensor, ratio: float) -> Masking:
    """Removes the share `ratio` of the patches, those with the highest of the (..., L) scores."""
    return Masking(scores.argsort(dim=-1), num_visible(scores.shape[-1], ratio))
