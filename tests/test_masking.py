"""Masking strategies against the method's distributions and a literal description of the body parts."""

import itertools
import math

import numpy as np
import pytest
import torch

from hap.models.masking import (
    PARTS,
    Block,
    BlockParts,
    Parts,
    Random,
    draw_blocks,
    draw_parts,
    num_visible,
    rank,
)

GRID = (16, 8)
DRAWS = 3000
STRATEGIES = [Random(), Block(), Parts(16), BlockParts(16)]

# A person who stands in a 256x128 crop: x, y in pixels, COCO order.
STANDING = np.array(
    [
        (64, 46), (66, 43), (62, 43), (70, 46), (58, 46),  # head
        (76, 69), (52, 69), (81, 97), (47, 97), (83, 125), (45, 125),  # arms
        (72, 126), (56, 126), (73, 174), (55, 174), (74, 220), (54, 220),  # legs
    ],
    dtype=np.float32,
)  # fmt: skip
STANDING = np.concatenate([STANDING, np.ones((17, 1), np.float32)], axis=1)


def draws(strategy, keypoints=STANDING, count=DRAWS) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([strategy(GRID, 0.5, keypoints, rng) for _ in range(count)])


def literal_part(keypoints: np.ndarray, bones) -> set[int]:
    """Patches of one part, by walking over every patch of the grid."""
    patches = set()
    for start, end in bones:
        (x0, y0), (x1, y1) = keypoints[start, :2], keypoints[end, :2]
        for row, col in itertools.product(range(16), range(8)):
            if min(int(y0 / 16), int(y1 / 16)) <= row <= max(int(y0 / 16), int(y1 / 16)) and min(
                int(x0 / 16), int(x1 / 16)
            ) <= col <= max(int(x0 / 16), int(x1 / 16)):
                patches.add(row * 8 + col)
    return patches


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_exactly_the_share_is_removed_and_the_generator_decides_all(strategy):
    scores = draws(strategy, count=50)
    assert scores.shape == (50, 128)
    assert scores.dtype == np.float32
    assert all(len(np.unique(row)) == 128 for row in scores)
    assert rank(torch.from_numpy(scores), 0.5).mask.sum(1).tolist() == [64] * 50
    np.testing.assert_array_equal(draws(strategy, count=50), scores)
    other = strategy(GRID, 0.5, STANDING, np.random.default_rng(1))
    assert (other != scores[0]).any()


def test_ranking_keeps_the_lowest_scores():
    scores = torch.tensor([[0.3, 5.0, 0.1, 2.0, 0.2, 9.0], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
    masking = rank(scores, 0.5)
    assert masking.ids_keep.tolist() == [[2, 4, 0], [5, 4, 3]]
    assert masking.ids_removed.tolist() == [[3, 1, 5], [2, 1, 0]]
    assert masking.mask.tolist() == [[0, 1, 0, 1, 0, 1], [1, 1, 1, 0, 0, 0]]
    assert masking.ids_shuffle.gather(1, masking.ids_restore).tolist() == [list(range(6))] * 2


@pytest.mark.parametrize(("ratio", "visible"), [(0.5, 64), (0.75, 32), (0.6, 51), (0.9, 12)])
def test_the_visible_number_is_rounded_down(ratio, visible):
    assert num_visible(128, ratio) == visible
    assert rank(torch.rand(2, 3, 128), ratio).ids_keep.shape == (2, 3, visible)


def test_random_is_uniform():
    mask = rank(torch.from_numpy(draws(Random())), 0.5).mask
    assert (mask.mean(0) - 0.5).abs().max() < 0.045  # 5 standard errors


def test_blocks_have_the_method_s_distribution():
    rng = np.random.default_rng(0)
    blocks = np.stack([draw_blocks(GRID, 0.5, rng).reshape(GRID) for _ in range(DRAWS)])
    counts = blocks.sum(axis=(1, 2))
    assert counts.mean() == pytest.approx(63.9, abs=0.3)
    assert 68 <= counts.max() <= 72
    assert (counts < 50).mean() < 0.01
    by_row = [0.19, 0.35, 0.46, 0.53, 0.58, 0.62, 0.63, 0.65, 0.64, 0.63, 0.61, 0.58, 0.53, 0.46, 0.34, 0.18]
    by_column = [0.26, 0.48, 0.60, 0.66, 0.66, 0.60, 0.48, 0.27]
    assert blocks.mean(axis=(0, 2)) == pytest.approx(by_row, abs=0.02)
    assert blocks.mean(axis=(0, 1)) == pytest.approx(by_column, abs=0.02)


@pytest.mark.parametrize("grid", [(4, 2), (24, 8), (12, 12), (1, 1)])
def test_blocks_fit_any_grid(grid):
    rng = np.random.default_rng(0)
    for _ in range(20):
        blocks = draw_blocks(grid, 0.6, rng)
        assert blocks.shape == (math.prod(grid),)
        assert blocks.mean() <= 0.8


def test_parts_are_the_rectangles_between_their_ends():
    parts = [literal_part(STANDING, bones) for bones in PARTS.values()]
    allowed = set().union(*(part for part in parts if len(part) > 3))  # int(3 * 0.3) = 0
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(DRAWS):
        seen |= set(np.flatnonzero(draw_parts(GRID, 16, STANDING, rng)))
    assert seen == allowed


@pytest.mark.parametrize("part", PARTS)
def test_a_part_alone_gives_up_to_three_tenths_of_its_patches(part):
    bones = PARTS[part]
    keypoints = STANDING.copy()
    keypoints[~np.isin(np.arange(17), bones), 2] = 0
    patches = literal_part(STANDING, bones)
    rng = np.random.default_rng(0)
    drawn = [set(np.flatnonzero(draw_parts(GRID, 16, keypoints, rng))) for _ in range(500)]
    assert set().union(*drawn) <= patches
    assert max(map(len, drawn)) == math.ceil(0.3 * len(patches)) - 1  # int(n * U(0, 0.3))
    expected = 6 / 7 * max(0.0, 1 - 1 / (0.3 * len(patches)))  # any number of parts but 0, at least one patch
    assert np.mean([len(patches) > 0 for patches in drawn]) == pytest.approx(expected, abs=0.08)


def test_every_image_draws_its_own_number_of_parts():
    """The share of images with a part-guided patch is the one that the method implies. The official code's
    number of parts can only fall along a batch, which leaves 0.8 %."""
    sizes = [len(literal_part(STANDING, bones)) for bones in PARTS.values()]
    nothing = [min(1.0, 1 / (0.3 * size)) for size in sizes]  # int(n * U(0, 0.3)) = 0
    without = np.mean(
        [
            np.mean([math.prod(chosen) for chosen in itertools.combinations(nothing, number)])
            for number in range(7)
        ]
    )
    rng = np.random.default_rng(0)
    drawn = np.stack([draw_parts(GRID, 16, STANDING, rng) for _ in range(DRAWS)])
    share = (drawn > 0).any(axis=1).mean()
    assert share == pytest.approx(1 - without, abs=0.03)
    assert share == pytest.approx(0.67, abs=0.05)
    first, second = drawn[: DRAWS // 2], drawn[DRAWS // 2 :]  # no drift
    assert (first > 0).any(1).mean() == pytest.approx((second > 0).any(1).mean(), abs=0.05)


def test_parts_have_falling_priorities():
    rng = np.random.default_rng(0)
    drawn = np.stack([draw_parts(GRID, 16, STANDING, rng) for _ in range(DRAWS)])
    assert set(np.unique(drawn)) == {0, 95, 96, 97, 98, 99, 100}


def test_parts_go_first_then_blocks_then_the_rest():
    """Removed patches, by what they were drawn for."""
    scores = draws(BlockParts(16))
    removed = np.take_along_axis(scores, rank(torch.from_numpy(scores), 0.5).ids_removed.numpy(), axis=1)
    assert ((scores >= 95).sum(1) == (removed >= 95).sum(1)).all()
    kept_blocks = ((scores >= 2) & (scores < 95)).sum(1) - ((removed >= 2) & (removed < 95)).sum(1)
    filled = (removed < 2).sum(1)
    assert ((kept_blocks == 0) | (filled == 0)).all()
    assert (scores[scores < 95] < 3).all()


def test_ties_do_not_favour_the_upper_rows():
    rows = rank(torch.from_numpy(draws(Block())), 0.5).mask.reshape(-1, 16, 8).mean((0, 2))
    assert rows[0].item() == pytest.approx(0.194, abs=0.012)  # by the sort's order 0.216
    assert rows[:8].sum().item() == pytest.approx(rows[8:].sum().item(), abs=0.12)


def absent(column: int, value: float) -> np.ndarray:
    keypoints = STANDING.copy()
    keypoints[:, column] = value
    return keypoints


@pytest.mark.parametrize(
    "keypoints",
    [
        None,
        absent(2, 0.0),
        absent(2, np.nan),
        absent(0, np.nan),
        absent(1, np.inf),
        absent(0, -1e4),
        absent(1, 256),
    ],
    ids=["none", "score 0", "score nan", "x nan", "y inf", "left of the crop", "below the crop"],
)
def test_missing_keypoints_leave_the_blocks(keypoints):
    rng = np.random.default_rng(0)
    assert not any(draw_parts(GRID, 16, keypoints, rng).any() for _ in range(200))
    scores = draws(BlockParts(16), keypoints, count=100)
    assert ((scores >= 2).sum(1) >= 44).all()
    assert (scores < 3).all()


def test_a_bone_needs_both_its_ends():
    keypoints = STANDING.copy()
    keypoints[:, 2] = 0
    keypoints[[5, 9], 2] = 1  # shoulder and wrist without the elbow
    rng = np.random.default_rng(0)
    assert not any(draw_parts(GRID, 16, keypoints, rng).any() for _ in range(200))
