"""Scores of predicted bodies against a literal reference, the official program and numbers worked out by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy.spatial.transform import Rotation

from hap.body.joints import EVALUATED, H36M
from hap.data.pose3d import BodyRecords, Kind
from hap.errors import HapError
from hap.metrics.pose3d import BodyMetric, similarity_align

GOLDEN = np.load(Path(__file__).parent / "data/pose3d_eval.npz")
MEASURES = {"MPJPE", "PA-MPJPE", "MPVPE", "MPJPE_17", "MPJPE_hips", "MPJPE_centred"}
# Of the public regressor of Human3.6M's joints.
ROW_SUMS = (
    0.999913, 0.999916, 0.999924, 0.999633, 0.999905, 0.999938, 0.999792, 0.999862, 0.999958, 1.000049, 0.999955,
    0.999984, 0.999986, 0.999851, 0.999952, 0.999955, 0.999772,
)  # fmt: skip


# --- the reference: one person after the other, as the evaluation is described --------------------------------


def align(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    mean_a, mean_b = a.mean(0), b.mean(0)
    u, s, vt = np.linalg.svd((a - mean_a).T @ (b - mean_b) / len(a))
    rotation = vt.T @ u.T
    if np.linalg.det(rotation) < 0:
        s[-1] = -s[-1]
        vt[-1] = -vt[-1]
        rotation = vt.T @ u.T
    scale = s.sum() / a.var(0).sum()
    return np.array([scale * rotation @ point for point in a]) + mean_b - scale * rotation @ mean_a


def reference(predicted, true, joints30, h36m, center_first=False) -> dict[str, float]:
    predicted, true, joints30, h36m = (np.asarray(x, np.float64) for x in (predicted, true, joints30, h36m))
    kept = [1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 13, 14, 15, 16]
    rows: dict[str, list[float]] = {name: [] for name in MEASURES}

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([1000 * math.dist(x, y) for x, y in zip(a, b, strict=True)]))

    for mesh, target in zip(predicted, true, strict=True):
        mesh, moved = mesh - joints30[0] @ mesh, target - joints30[0] @ target
        ours, centred = h36m @ mesh, h36m @ moved
        theirs = h36m @ (moved if center_first else target)
        hips = distance((ours - (ours[1] + ours[4]) / 2)[kept], (theirs - (theirs[1] + theirs[4]) / 2)[kept])
        ours, theirs, centred = ours - ours[0], theirs - theirs[0], centred - centred[0]
        rows["MPJPE"].append(distance(ours[kept], theirs[kept]))
        rows["PA-MPJPE"].append(distance(align(ours[kept], theirs[kept]), theirs[kept]))
        rows["MPVPE"].append(distance(mesh, moved))
        rows["MPJPE_17"].append(distance(ours, theirs))
        rows["MPJPE_hips"].append(hips)
        rows["MPJPE_centred"].append(distance(ours[kept], centred[kept]))
    return {name: float(np.mean(values)) for name, values in rows.items()}


def random_meshes(count: int, vertices: int = 40, seed: int = 0):
    """Predicted and true meshes, float32, and regressors whose rows do not sum to 1."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 0.4, (count, vertices, 3)) + rng.normal((0, 0, 5), 1, (count, 1, 3))
    predicted = true + rng.normal(0, 0.05, true.shape) - true[:, :1]
    h36m = rng.dirichlet(np.ones(6), 17) * (1 + rng.normal(0, 2e-4, (17, 1)))
    joints30 = rng.dirichlet(np.ones(vertices), 30)
    spread = np.zeros((17, vertices))
    for row, values in zip(spread, h36m, strict=True):
        row[rng.choice(vertices, 6, replace=False)] = values
    return predicted.astype(np.float32), true.astype(np.float32), joints30.astype(np.float32), spread


def records(count: int, sequence=(), gender=None) -> BodyRecords:
    """People of whom only names matter here."""

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros((count, *shape), np.float32)

    return BodyRecords(
        root=Path("nowhere"),
        files=[f"{i:03}.jpg" for i in range(count)],
        sizes=np.zeros((count, 2), np.int64),
        image=np.arange(count),
        ids=list(range(count)),
        kind=Kind("drawn"),
        box=zeros(4),
        joints=zeros(30, 3),
        joints3d=zeros(30, 4),
        camera=zeros(4),
        pose=zeros(72),
        betas=zeros(10),
        trans=zeros(3),
        fitted=np.ones(count, bool),
        gender=np.zeros(count, np.int64) if gender is None else np.asarray(gender),
        near=np.zeros(count + 1, np.int64),
        near_joints=np.zeros((0, 17, 3), np.float32),
        sequence=sequence,
    )


def collected(predicted, true, joints30, h36m, batches=None, **options) -> BodyMetric:
    metric = BodyMetric(**options)
    metric.use(joints30, h36m)
    predicted, true = torch.as_tensor(predicted), torch.as_tensor(true)
    for rows in batches or [torch.arange(len(predicted))]:
        rows = torch.as_tensor(rows)
        metric.update(predicted[rows], true[rows], rows)
    return metric


def without_people(result: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in result.items() if name != "people"}


# Of 17 vertices that are the joints of Human3.6M; the body model's own pelvis is vertex 0 too.
IDENTITY = np.eye(17)
PELVIS_FIRST = np.eye(30, 17)


def a_pose(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.5, (17, 3)).astype(np.float32)


def moved(points: np.ndarray, *offset: float) -> np.ndarray:
    return points + np.array(offset)


def score(predicted, true, joints30=PELVIS_FIRST, h36m=IDENTITY, **options) -> dict[str, float]:
    """Of one person."""
    return collected(np.float32(predicted)[None], np.float32(true)[None], joints30, h36m, **options).compute()


# --- the official program --------------------------------------------------------------------------------------


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("size", [10, 3, 1])
def test_errors_of_the_official_program(planes, size):
    """In batches of 3 too, where axes are easily mistaken, and with coordinates that lie apart in memory."""
    meshes = [torch.from_numpy(GOLDEN[f"vertices_{name}"]) for name in ("pred", "true")]
    if planes:
        meshes = [mesh.mT.contiguous().mT for mesh in meshes]
    regressors = GOLDEN["joint_regressor_30"], GOLDEN["regressor_h36m"]
    metric = collected(*meshes, *regressors, batches=torch.arange(10).split(size))
    result = metric.compute()
    index, errors = metric.scored()
    assert index.tolist() == list(range(10))
    np.testing.assert_allclose(errors.joints.mean(1), GOLDEN["mpjpe"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(errors.aligned.mean(1), GOLDEN["pa_mpjpe"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(errors.vertices, GOLDEN["mpvpe"], rtol=2e-7, atol=1e-4)  # float32 there
    assert result["MPJPE"] == pytest.approx(GOLDEN["mpjpe"].mean(), abs=1e-6)
    assert result["PA-MPJPE"] == pytest.approx(GOLDEN["pa_mpjpe"].mean(), abs=1e-6)
    assert result["people"] == 10


def test_alignment_of_the_official_program():
    points, target = (torch.from_numpy(GOLDEN[f"joints_{name}"]) for name in ("pred", "true"))
    aligned = similarity_align(points, target)
    np.testing.assert_allclose(aligned, GOLDEN["joints_pred_aligned"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(scale_of(points, aligned), GOLDEN["align_scale"], rtol=1e-9)
    each = torch.cat([similarity_align(a[None], b[None]) for a, b in zip(points, target, strict=True)])
    assert torch.equal(aligned, each)


# --- alignment -------------------------------------------------------------------------------------------------


def scale_of(points: torch.Tensor, aligned: torch.Tensor) -> torch.Tensor:
    spread = [(x.double() - x.double().mean(1, keepdim=True)).square().sum((1, 2)) for x in (points, aligned)]
    return (spread[1] / spread[0]).sqrt()


def aligned_error(points, target) -> tuple[float, float]:
    """Scale, and the mean distance afterwards."""
    points, target = (torch.as_tensor(x, dtype=torch.float64)[None] for x in (points, target))
    aligned = similarity_align(points, target)
    return scale_of(points, aligned).item(), (aligned - target).norm(dim=2).mean().item()


def test_a_similarity_is_undone():
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
    quarter = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    scale, error = aligned_error(points, 2 * points @ quarter.T + (1, 2, 3))
    assert scale == pytest.approx(2)
    assert error == pytest.approx(0, abs=1e-12)


def test_a_mirror_image_stays_one():
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3.0]])
    scale, error = aligned_error(points, points * (-1, 1, 1))
    assert scale == pytest.approx(0.914162495, abs=1e-9)
    assert error == pytest.approx(0.550938183, abs=1e-9)


A = np.array([[0.1, 0, 0], [0.3, -0.4, 0.1], [-0.2, -0.5, 0], [0, 0.5, 0.2], [0.4, 0.4, -0.1]])
B = np.array([[0, 0.1, 0], [0.35, -0.3, 0.2], [-0.25, -0.45, 0.05], [0.05, 0.55, 0.1], [0.3, 0.5, 0]])


def test_numbers_worked_out_by_hand():
    scale, error = aligned_error(A, B)
    assert scale == pytest.approx(0.974112446, abs=1e-9)
    assert 1000 * error == pytest.approx(91.042261, abs=1e-6)
    assert 1000 * np.linalg.norm(A - B, axis=1).mean() == pytest.approx(134.740693, abs=1e-6)
    ours, theirs = (A - A[0])[1:], (B - B[0])[1:]
    assert 1000 * np.linalg.norm(ours - theirs, axis=1).mean() == pytest.approx(138.490743, abs=1e-6)
    assert 1000 * aligned_error(ours, theirs)[1] == pytest.approx(91.155887, abs=1e-6)


@pytest.mark.parametrize("mirrored", [1, -1])
def test_the_rotation_is_scipys(mirrored):
    """Another program's, which never mirrors either."""
    rng = np.random.default_rng(1)
    points, target = rng.normal(size=(2, 50, 14, 3))
    target = 0.6 * target + mirrored * points
    points -= points.mean(1, keepdims=True)
    aligned = similarity_align(torch.from_numpy(points), torch.from_numpy(target)).numpy()
    for a, b, ours in zip(points, target, aligned, strict=True):
        turned = Rotation.align_vectors(b - b.mean(0), a)[0].apply(a)
        scale = (turned * (b - b.mean(0))).sum() / (a**2).sum()  # the least squares of that turn
        np.testing.assert_allclose(ours, scale * turned + b.mean(0), atol=1e-9)


DEGENERATE = {
    "origin": np.zeros((14, 3)),
    "one point": np.full((14, 3), 0.1),
    "a line": np.outer(np.arange(14), (1, 2, 3)),
    "a plane": np.random.default_rng(1).normal(size=(14, 3)) * (1, 1, 0),
    "very small": 1e-170 * np.random.default_rng(1).normal(size=(14, 3)),
    "very large": 1e9 * np.random.default_rng(1).normal(size=(14, 3)),
}


@pytest.mark.parametrize("points", DEGENERATE.values(), ids=DEGENERATE)
@pytest.mark.parametrize("swap", [False, True])
def test_what_has_no_one_rotation(points, swap):
    """Nothing is worse than to lie in the middle of the target."""
    target = np.random.default_rng(0).normal(size=(14, 3))
    points, target = (target, points) if swap else (points, target)
    aligned = similarity_align(torch.from_numpy(points)[None], torch.from_numpy(target)[None])[0].numpy()
    assert np.isfinite(aligned).all()
    middle = ((target - target.mean(0)) ** 2).sum()
    assert ((aligned - target) ** 2).sum() <= middle * (1 + 1e-9) + 1e-25


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_nan_and_spoils_nobody_else(value):
    points, target = torch.randn(2, 3, 14, 3, generator=torch.Generator().manual_seed(0))
    expected = similarity_align(points, target)
    points[1, 5, 2] = value
    aligned = similarity_align(points, target)
    assert aligned[1].isnan().any()
    assert torch.equal(aligned[[0, 2]], expected[[0, 2]])
    assert not similarity_align(target, points)[1].isfinite().all()


def test_nobody_is_aligned():
    assert similarity_align(torch.zeros(0, 14, 3), torch.zeros(0, 14, 3)).shape == (0, 14, 3)


# --- the scores ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("center_first", [False, True])
def test_scores_of_a_literal_reference(center_first):
    data = random_meshes(12)
    result = collected(*data, center_first=center_first).compute()
    assert set(result) == MEASURES | {"people"}
    expected = reference(*data, center_first=center_first)
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=1e-4 if name == "MPVPE" else 1e-6), name


def test_meshes_far_away_keep_their_digits():
    """A tenth of a millimetre at 40 m."""
    predicted, true, *regressors = random_meshes(4)
    true[..., 2] += 36
    result = collected(predicted, true, *regressors).compute()
    assert without_people(result) == pytest.approx(reference(predicted, true, *regressors), abs=1e-3)


def test_where_the_prediction_is_does_not_matter():
    """Relative to its root or in the camera: the same as far as float32 holds both."""
    predicted, true, *regressors = random_meshes(6)
    moved = predicted + np.float32((0.5, -0.25, 4))
    result = collected(moved, true, *regressors).compute()
    assert result == pytest.approx(collected(predicted, true, *regressors).compute(), abs=1e-3)


def test_joints_that_are_off_by_known_distances():
    true = moved(a_pose(), 0, 0, 4)
    predicted = true.copy()
    predicted[EVALUATED[0]] += (0, 0.03, 0.04)
    predicted[EVALUATED[5]] -= (0, 0, 0.1)
    metric = collected(np.float32(predicted)[None], np.float32(true)[None], PELVIS_FIRST, IDENTITY)
    assert metric.compute()["MPJPE"] == pytest.approx(150 / 14, abs=1e-3)
    table = {row["joint"]: row for row in metric.per_joint()}
    assert list(table) == [H36M[k] for k in EVALUATED]
    assert table["R_Hip"]["MPJPE"] == pytest.approx(50, abs=1e-3)
    assert table["L_Ankle"]["MPJPE"] == pytest.approx(100, abs=1e-3)
    assert table["Neck"]["MPJPE"] == pytest.approx(0, abs=1e-3)
    assert np.mean([row["PA-MPJPE"] for row in table.values()]) == pytest.approx(metric.compute()["PA-MPJPE"])


def test_torso_and_nose_are_not_scored():
    true = a_pose()
    predicted = true.copy()
    predicted[[7, 9], 0] += 0.1
    result = score(predicted, true)
    assert result["MPJPE"] == result["MPJPE_hips"] == 0
    assert result["PA-MPJPE"] == pytest.approx(0, abs=1e-9)
    assert result["MPJPE_17"] == pytest.approx(200 / 17, abs=1e-4)


def test_each_root_has_a_score_of_its_name():
    true = a_pose()
    predicted = true.copy()
    predicted[0, 2] += 0.03
    result = score(predicted, true)
    assert result["MPJPE"] == pytest.approx(30, abs=1e-4)
    assert result["MPJPE_17"] == pytest.approx(16 / 17 * 30, abs=1e-4)
    assert result["MPJPE_hips"] == pytest.approx(0, abs=1e-4)
    assert result["PA-MPJPE"] == pytest.approx(0, abs=1e-4)


def test_truth_of_another_gender_counts():
    """One of four vertices of the female body lies 0.1 m higher."""
    neutral = np.array([[0, 1, 0], [1, 0, 0], [2, 0, 0], [2, 1, 0]])
    female = neutral + (np.arange(4) == 3)[:, None] * (0, 0.1, 0)
    regressors = np.eye(30, 4), np.tile(np.eye(4)[:3], (6, 1))[:17]  # joints are the first three vertices
    result = score(neutral, moved(female, 0, 0, 5), *regressors)
    assert result["MPVPE"] == pytest.approx(25, abs=1e-3)
    assert result["MPJPE"] == 0


def test_rows_that_do_not_sum_to_one():
    """Of a mesh that is one point at 4 m: true joints that are not where they are, which is in published numbers."""
    point, h36m = np.zeros((1, 3)), np.array(ROW_SUMS)[:, None]
    regressors = np.eye(30, 1), h36m
    metric = collected(np.float32(point)[None], np.float32(moved(point, 0, 0, 4))[None], *regressors)
    result = metric.compute()
    assert result["MPJPE"] == pytest.approx(0.275, abs=1e-3)
    assert metric.per_joint()[2]["MPJPE"] == pytest.approx(1.118, abs=3e-3)  # right ankle
    assert result["MPJPE_centred"] == result["MPVPE"] == 0
    assert score(point, moved(point, 0, 0, 6), *regressors)["MPJPE"] == pytest.approx(0.41, abs=3e-3)
    assert score(point, moved(point, 0, 0, 4), *regressors, center_first=True)["MPJPE"] == 0
    anywhere = score(moved(point, 1, 2, 3), moved(point, 0, 0, 4), *regressors)
    assert anywhere["MPJPE"] == pytest.approx(result["MPJPE"])


def test_half_precision_and_autocast():
    predicted, true, *regressors = random_meshes(6)
    half = torch.from_numpy(predicted).bfloat16()
    expected = collected(half.float(), true, *regressors).compute()
    with torch.autocast("cpu", torch.bfloat16):
        assert collected(half, true, *regressors).compute() == expected


def test_perfect_people():
    _, true, *regressors = random_meshes(5)
    result = without_people(collected(true, true, *regressors, center_first=True).compute())
    assert result == pytest.approx(dict.fromkeys(result, 0), abs=1e-9)


# --- the metric ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 64])
def test_order_batches_and_repeats_do_not_matter(size):
    data = random_meshes(90)
    expected = collected(*data)
    order = torch.from_numpy(np.random.default_rng(0).permutation(90))
    metric = collected(*data, batches=[*order.split(size), order[:9]])
    assert metric.compute() == pytest.approx(expected.compute(), rel=1e-12)
    assert metric.ranked(90, True) == [pytest.approx(row) for row in expected.ranked(90, True)]
    assert np.array_equal(metric.scored()[0], np.arange(90))
    metric.reset()
    with pytest.raises(RuntimeError):
        metric.scored()


def test_every_frame_counts_the_same():
    """90 frames of 50 mm and 10 of 100 mm, in two sequences."""
    true = np.stack([a_pose(seed) for seed in range(100)])
    predicted = true.copy()
    late = np.arange(100) >= 90
    predicted[:, 1:, 0] += np.where(late, 0.1, 0.05)[:, None]
    metric = collected(predicted, true, PELVIS_FIRST, IDENTITY, batches=torch.arange(100).split(48))
    metric.records = records(100, [("b, actor 0", "a, actor 1")[x] for x in late.astype(int)])
    assert metric.compute()["MPJPE"] == pytest.approx(55, abs=1e-4)
    first, second = metric.per_sequence()
    assert (first["sequence"], first["people"], second["sequence"], second["people"]) == (
        *("a, actor 1", 10, "b, actor 0", 90),
    )
    assert (first["MPJPE"], second["MPJPE"]) == (
        pytest.approx(100, abs=1e-4),
        pytest.approx(50, abs=1e-4),
    )
    assert set(first) == MEASURES | {"sequence", "people"}


def test_records_without_sequences_have_no_table():
    metric = collected(*random_meshes(5))
    metric.compute()
    assert metric.per_sequence() == []
    metric.records = records(5)
    assert metric.per_sequence() == []


def test_ranked_by_what_is_left_after_alignment():
    true = np.stack([a_pose()] * 4)
    predicted = true.copy()
    predicted[0] *= 2  # the worst before
    predicted[2, 3] += 0.4
    predicted[3, 3] += 0.2
    metric = collected(predicted, true, PELVIS_FIRST, IDENTITY)
    result = metric.compute()
    worst = metric.ranked(2, best=False)
    assert [index for index, *_ in worst] == [2, 3]
    assert worst[0][1] > worst[1][1] > 1
    assert {index for index, *_ in metric.ranked(2, best=True)} == {0, 1}
    table = {index: (aligned, plain) for index, aligned, plain in metric.ranked(9, best=True)}
    assert len(table) == 4
    assert max(table, key=lambda index: table[index][1]) == 0
    assert np.mean(list(table.values()), axis=0) == pytest.approx([result["PA-MPJPE"], result["MPJPE"]])


NUM_FRAMES = 35_515  # of 3DPW's test split


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1 + rank)
    try:
        results = []
        for count, shares in (
            (5, ([0, 2, 4], [1, 3, 0])),  # padded with the first
            (NUM_FRAMES, (torch.arange(20_000), torch.arange(19_990, NUM_FRAMES))),
        ):
            metric = collected(*random_meshes(count, 17), batches=torch.as_tensor(shares[rank]).split(4_096))
            results.append((metric.compute(), metric.per_joint(), metric.ranked(5, False), metric.scored()))
        torch.save(results, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow  # as of the features of re-identification
def test_two_processes_equal_one(tmp_path):
    """Also in what is asked for after `compute`."""
    torch.multiprocessing.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    assert repr(ranks[0]) == repr(ranks[1])
    for count, (scores, joints, worst, (index, errors)) in zip((5, NUM_FRAMES), ranks[0], strict=True):
        metric = collected(*random_meshes(count, 17))
        assert scores == pytest.approx(metric.compute(), rel=1e-12)
        assert scores["people"] == count
        assert [row["PA-MPJPE"] for row in joints] == pytest.approx(
            [row["PA-MPJPE"] for row in metric.per_joint()]
        )
        assert [row[0] for row in worst] == [row[0] for row in metric.ranked(5, False)]
        expected_index, expected = metric.scored()
        assert np.array_equal(index, expected_index)
        for ours, theirs in zip(errors, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_what_was_not_run_is_counted():
    metric = collected(*random_meshes(5))
    metric.records = records(8)
    result = metric.compute()
    assert (result["people"], result["missing"]) == (5, 3)


def test_the_protocol_names_what_scores_depend_on():
    metric = collected(*random_meshes(5))
    metric.records = records(5, gender=[1, 2, 2, 1, 2])
    protocol = metric.protocol()
    assert protocol["joints"][:3] == ["R_Hip", "R_Knee", "R_Ankle"]
    assert len(protocol["joints"]) == 14
    assert protocol["true_bodies"] == "male (2), female (3)"
    assert "where it is in the camera" in protocol["regressor"]
    assert set(protocol["others"]) == MEASURES - {"MPJPE", "PA-MPJPE", "MPVPE"}
    metric.records = records(2)
    assert metric.protocol()["true_bodies"] == "neutral (2)"
    assert "moved to the origin" in BodyMetric(center_first=True).protocol()["regressor"]


# --- what is wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("vertex", [0, 33])
def test_a_mesh_that_is_not_finite_is_named(value, which, vertex):
    """Also where only a vertex is wrong that no joint hangs on."""
    predicted, true, joints30, h36m = random_meshes(9)
    joints30[0, 33], h36m[:, 33] = 0, 0
    (predicted, true)[which][[4, 6], vertex, 1] = value
    metric = collected(predicted, true, joints30, h36m, batches=torch.arange(9).flip(0).split(3))
    with pytest.raises(HapError, match=r"2 people have .* not finite, the first is number 4"):
        metric.compute()
    metric = collected(predicted, true, joints30, h36m)
    metric.records = records(9)
    with pytest.raises(HapError, match=r"the first is 004\.jpg, person 4"):
        metric.compute()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_evaluated():
    metric = BodyMetric()
    metric.use(PELVIS_FIRST, IDENTITY)
    with pytest.raises(HapError, match="no people to evaluate"):
        metric.compute()


def test_regressors_of_other_meshes():
    metric = BodyMetric()
    with pytest.raises(RuntimeError, match="use"):
        metric.update(torch.zeros(1, 17, 3), torch.zeros(1, 17, 3), torch.arange(1))
    with pytest.raises(HapError, match=r"J_regressor_h36m_correct\.npy is missing"):
        metric.use(PELVIS_FIRST, None)
    for wrong in (IDENTITY[:16], np.eye(17, 18)):
        with pytest.raises(HapError, match=r"for this body model it is \(17, 17\)"):
            metric.use(PELVIS_FIRST, wrong)
    metric.use(PELVIS_FIRST, IDENTITY)
    for predicted, true, index in (
        (torch.zeros(2, 18, 3), torch.zeros(2, 17, 3), torch.arange(2)),
        (torch.zeros(2, 17, 3), torch.zeros(2, 16, 3), torch.arange(2)),
        (torch.zeros(1, 17, 3), torch.zeros(2, 17, 3), torch.arange(2)),
        (torch.zeros(2, 17, 3), torch.zeros(2, 17, 3), torch.arange(3)),
    ):
        with pytest.raises(HapError, match="take one body model for all"):
            metric.update(predicted, true, index)
