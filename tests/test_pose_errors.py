"""Drawn mistakes of a 2D pose estimator: against the rules written out, all points of all kinds first."""

import numpy as np
import pytest
from scipy.stats import ks_2samp

from hap.benchmarks import plain_errors
from hap.data import pose_errors
from hap.data.pose_errors import GOOD, INVERSION, JITTER, MISS, SWAP, chances, distances, perturb

NOSE, L_SHOULDER, L_WRIST, R_WRIST, L_HIP, L_KNEE, L_ANKLE = 0, 5, 9, 10, 11, 13, 15
# fmt: off
PERSON = np.array([
    (128, 40), (134, 36), (122, 36), (140, 38), (116, 38), (155, 70), (101, 70), (165, 110), (91, 110), (168, 145),
    (88, 145), (145, 150), (111, 150), (147, 195), (109, 195), (148, 240), (108, 240),
], float)
# fmt: on
AREA = 110 * 225
NOBODY = np.zeros((0, 17, 3))


def person(x=0.0, y=0.0, hidden=()):
    joints = np.column_stack([PERSON + np.array((x, y)), np.ones(17)])
    joints[list(hidden), 2] = 0
    return joints


def only(monkeypatch, kind):
    """Errors of one kind, and of any other only where there is none."""
    table = np.full((17, 5), 1e-9)
    table[:, kind] = 1
    monkeypatch.setattr(pose_errors, "chances", lambda *_: table)


def many(times, joints, near=NOBODY, area=AREA, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([perturb(joints, near, area, rng) for _ in range(times)])


def same(ours, theirs):
    """Whether two sets of places (T, 2) may be of one distribution, along three directions."""
    return all(ks_2samp(ours @ d, theirs @ d).pvalue > 1e-5 for d in ((1, 0), (0, 1), (1, -1)))


def test_distances_are_those_of_the_keypoint_similarity():
    reach = distances(20000)
    known = {
        NOSE: (15.7812, 8.6586, 4.1926),
        L_WRIST: (37.6322, 20.6474, 9.9978),
        L_HIP: (64.9459, 35.6333, 17.2542),
        L_ANKLE: (54.0204, 29.6389, 14.3517),
    }
    for joint, values in known.items():
        np.testing.assert_allclose(reach[joint, :3], values, atol=5e-5)
    assert not reach[:, 3].any()
    apart = distances(AREA)
    np.testing.assert_allclose(
        np.exp(-(apart[:, :3] ** 2) / (2 * AREA * (2 * plain_errors.SIGMAS[:, None]) ** 2)),
        [[0.1, 0.5, 0.85]] * 17,
    )


@pytest.mark.parametrize("overlap", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("labelled", [0, 1, 5, 6, 10, 11, 15, 16, 17])
def test_chances_are_those_of_the_tables(labelled, overlap):
    table = chances(labelled, overlap)
    np.testing.assert_allclose(
        table, [plain_errors.chances(j, labelled, overlap) for j in range(17)], atol=1e-12
    )
    assert (table > 0).all()


def test_statistics_of_one_person():
    """Shares of the published rings and mean displacements, from the official code."""
    apart = np.linalg.norm(many(3000, person())[..., :2] - PERSON, axis=2)
    reach = distances(AREA)
    shares = {
        NOSE: (0.88, 0.10, 0.02, 0.00),
        L_SHOULDER: (0.75, 0.17, 0.05, 0.03),
        L_WRIST: (0.70, 0.17, 0.09, 0.05),
        L_HIP: (0.62, 0.25, 0.13, 0.01),
        L_KNEE: (0.73, 0.12, 0.13, 0.02),
        L_ANKLE: (0.79, 0.10, 0.10, 0.01),
    }
    for (joint, expected), mean in zip(shares.items(), (3.0, 13.2, 13.5, 21.0, 16.1, 14.2), strict=True):
        ring = np.searchsorted(reach[joint, 2::-1], apart[:, joint])
        np.testing.assert_allclose(np.bincount(ring, minlength=4) / 3000, expected, atol=0.03)
        assert apart[:, joint].mean() == pytest.approx(mean, rel=0.1)


def test_a_crowd_as_by_the_rules_written_out():
    """Joints of two people who overlap lie among this one's, and some of each are not labelled."""
    joints = person(hidden=(3, R_WRIST, 12, 13))
    near = np.stack([person(14, 5, hidden=(0, 6, 14)), person(-20, 3, hidden=(9, 11))])
    rng = np.random.default_rng(1)
    theirs = np.stack([plain_errors.perturb(joints, near, AREA, rng, 100) for _ in range(150)])
    ours = many(3000, joints, near)
    assert [j for j in range(17) if not same(ours[:, j, :2], theirs[:, j, :2])] == []
    assert (ours[..., 2] == 1).all()


@pytest.mark.parametrize("kind", [JITTER, MISS, INVERSION, SWAP, GOOD])
def test_each_kind_as_by_the_rules_written_out(monkeypatch, kind):
    """Of joints whose partner has not moved yet, so that one set of points says it all."""
    joints, near = (
        person(hidden=(2, 13)),
        np.stack([person(9, -4, hidden=(5, 9)), person(-12, 30, hidden=(10,))]),
    )
    only(monkeypatch, kind)
    ours, rng = many(2000, joints, near), np.random.default_rng(2)
    for j in (NOSE, 1, 3, L_SHOULDER, 7, L_WRIST, L_HIP, L_KNEE, L_ANKLE):
        theirs = plain_errors.points(j, joints, joints, near, AREA, rng, 4000)[kind]
        assert same(ours[:, j, :2], theirs) if len(theirs) else kind == INVERSION and j in (NOSE, 1), j


def test_a_miss_is_four_times_as_often_around_the_joint_itself(monkeypatch):
    only(monkeypatch, MISS)
    joints, near = person(), np.stack([person(900), person(0, 2000)])
    place = many(2000, joints, near)[:, L_HIP, :2]  # sources: 4 x itself, its partner, four of others
    d10, d50, _, _ = distances(AREA)[L_HIP]
    others = np.concatenate([near[:, L_HIP, :2], near[:, 12, :2]])
    own = np.linalg.norm(place[:, None] - others, axis=2).min(1) > d10
    apart = np.linalg.norm(place[own] - PERSON[[L_HIP, 12]][:, None], axis=2).min(0)
    assert ((apart > d50 - 1e-9) & (apart < d10 + 1e-9)).all()
    assert own.mean() == pytest.approx(
        4.6 / 8.6, abs=0.06
    )  # near the partner's, about half of each ring is free


def test_the_right_one_sees_where_the_left_one_went(monkeypatch):
    only(monkeypatch, INVERSION)
    moved = many(300, person(), area=100)
    reach = distances(100)
    assert (np.linalg.norm(moved[:, L_WRIST, :2] - PERSON[R_WRIST], axis=1) <= reach[L_WRIST, 1]).all()
    back = np.linalg.norm(moved[:, R_WRIST, :2] - moved[:, L_WRIST, :2], axis=1)
    assert (back <= reach[R_WRIST, 1]).all()


def test_without_a_labelled_partner_there_is_no_inversion(monkeypatch):
    only(monkeypatch, INVERSION)
    moved = many(200, person(hidden=(R_WRIST,)), area=100)
    for joint in (NOSE, L_WRIST):  # one has no partner at all
        assert (np.linalg.norm(moved[:, joint, :2] - PERSON[joint], axis=1) <= distances(100)[joint, 0]).all()
    partner = np.linalg.norm(moved[:, R_WRIST, :2] - moved[:, L_WRIST, :2], axis=1)
    assert (partner <= distances(100)[R_WRIST, 1]).all()  # its own partner is labelled


@pytest.mark.parametrize("labelled", [True, False])
def test_a_swap_leaves_out_what_stands_where_the_partner_would(monkeypatch, labelled):
    """Two others have the partner's joint alone. Where the person's own partner is not labelled, that of the first
    is taken for it."""
    only(monkeypatch, SWAP)
    joints = person(hidden=() if labelled else (R_WRIST,))
    near = np.stack([person(300), person(300, 8)])
    near[:, L_WRIST, 2] = 0
    place = many(400, joints, near, area=400)[:, L_WRIST, :2]
    first, second = (np.linalg.norm(place - p[R_WRIST, :2], axis=1) for p in near)
    reach = distances(400)[L_WRIST, 1]
    assert reach < 8
    if labelled:
        assert (np.minimum(first, second) <= reach).all()
        assert 0.4 < (first < second).mean() < 0.6
    else:
        assert (second <= reach).all()
        assert (first > second).all()  # which keeps its distance


def test_a_swap_needs_others(monkeypatch):
    only(monkeypatch, SWAP)
    moved = many(100, person(), area=100)
    apart = np.linalg.norm(moved[..., :2] - PERSON, axis=2)
    assert (apart[:, NOSE] <= distances(100)[NOSE, 0]).all()
    joints, near = person(), person(500)[None]
    near[..., 2] = 0  # there, but of unknown pose
    np.testing.assert_array_less(np.linalg.norm(many(100, joints, near)[..., :2] - PERSON, axis=2), 200)


def test_nothing_is_possible():
    """Without an area all points are the places themselves, and another's are the same."""
    moved = perturb(person(), person()[None], 0.0, np.random.default_rng(0))
    assert not moved[[NOSE, *(left for left, _ in plain_errors.PAIRS)]].any()
    alone = perturb(person(hidden=range(1, 17)), NOBODY, 0.0, np.random.default_rng(0))
    np.testing.assert_array_equal(alone, person())


def test_joints_that_are_no_numbers_do_not_spread():
    joints = person()
    joints[L_KNEE, :2] = np.nan
    moved = perturb(joints, NOBODY, AREA, np.random.default_rng(0))
    assert np.isfinite(moved).all()
    assert not moved[L_KNEE].any()
    assert (np.delete(moved, (L_KNEE, L_KNEE + 1), axis=0)[:, 2] == 1).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sample_is_a_function_of_its_generator(dtype):
    joints, near = person().astype(dtype), person(20)[None].astype(dtype)
    given = joints.copy(), near.copy()
    first, second = (perturb(joints, near, AREA, np.random.default_rng(5)) for _ in range(2))
    assert first.dtype == dtype
    assert first.shape == (17, 3)
    np.testing.assert_array_equal(first, second)
    assert (first != perturb(joints, near, AREA, np.random.default_rng(6))).any()
    np.testing.assert_array_equal(joints, given[0])
    np.testing.assert_array_equal(near, given[1])


def test_joints_of_another_set_are_refused():
    with pytest.raises(ValueError, match="broadcast"):
        perturb(np.ones((30, 3)), NOBODY, AREA, np.random.default_rng(0))
