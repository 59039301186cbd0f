"""Ranking, re-ranking and the retrieval metric against golden numbers, a hand-made case and literal loops."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from hap.benchmarks import reid_eval
from hap.errors import HapError
from hap.metrics.ranking import (
    evaluate_both,
    evaluate_distances,
    evaluate_ranking,
    feature_distances,
    top_matches,
)
from hap.metrics.rerank import k_reciprocal_rerank
from hap.metrics.retrieval import RetrievalMetric

DATA = Path(__file__).parent / "data"


def load(name: str) -> dict[str, torch.Tensor]:
    with np.load(DATA / name) as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file}


def literal_ranked(distance, query_id, gallery_ids, query_cam, gallery_cams):
    """Gallery indices of one query: sorted by (distance, index), same identity and camera removed."""
    order = sorted(range(len(distance)), key=lambda j: (distance[j], j))
    return [j for j in order if not (gallery_ids[j] == query_id and gallery_cams[j] == query_cam)]


def literal_scores(distances, query_ids, gallery_ids, query_cams, gallery_cams):
    """(AP, INP, first hit) of every query, one entry at a time; None for skipped queries."""
    scores = []
    for i, row in enumerate(distances):
        ranked = literal_ranked(row, query_ids[i], gallery_ids, query_cams[i], gallery_cams)
        ranks = [rank for rank, j in enumerate(ranked, 1) if gallery_ids[j] == query_ids[i]]
        precisions = [hit / rank for hit, rank in enumerate(ranks, 1)]
        scores.append((sum(precisions) / len(ranks), precisions[-1], ranks[0]) if ranks else None)
    return scores


def random_case(num_query: int, num_gallery: int, seed: int, dim: int = 3):
    """Small integer features: float32 products are exact and many distances are equal."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, high: int, low: int = 0) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    query, gallery = draw(num_query, dim, low=-2, high=3), draw(num_gallery, dim, low=-2, high=3)
    ids = draw(num_query, high=9), draw(num_gallery, high=7)
    cams = draw(num_query, high=3), draw(num_gallery, high=3)
    return query.float(), gallery.float(), (*ids, *cams)


@pytest.mark.parametrize("block_size", [1, 7, 40])
@pytest.mark.parametrize("shuffle", [False, True])
def test_golden_ranking(block_size: int, shuffle: bool) -> None:
    golden = load("reid_eval.npz")
    distances, ids, cams = golden["distmat"], golden["g_pids"], golden["g_camids"]
    if shuffle:
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
        distances, ids, cams = distances[:, order], ids[order], cams[order]
    given = distances.clone()
    ranking = evaluate_distances(
        distances, golden["q_pids"], ids, golden["q_camids"], cams, block_size=block_size
    )
    assert ranking.mAP == pytest.approx(golden["mAP"].item(), abs=1e-8)
    assert ranking.mINP == pytest.approx(0.01964619, abs=1e-8)
    torch.testing.assert_close(ranking.cmc, golden["cmc"].double(), atol=1e-6, rtol=0)
    assert (ranking.num_valid, ranking.num_skipped) == (36, 4)
    assert torch.equal(distances, given)


def test_golden_text_to_image() -> None:
    """No cameras; the trapezoid AP; then, with the file as camera, the caption's own image removed."""
    golden = load("text_reid_ranking.npz")
    distances, ids = 1 - golden["similarity"], (golden["query_labels"], golden["gallery_labels"])
    ranking = evaluate_distances(distances, *ids, max_rank=20)
    torch.testing.assert_close(ranking.ap, golden["ap"])
    torch.testing.assert_close(ranking.ap_trapezoid, golden["ap_trapz"])
    torch.testing.assert_close(ranking.cmc, golden["cmc"])
    assert ranking.mINP == pytest.approx(golden["mINP"].item())
    other = evaluate_distances(distances, *ids, golden["query_own_image"], torch.arange(20), max_rank=19)
    assert other.mAP_trapezoid == pytest.approx(golden["wm_mAP_trapz"].item())
    assert other.num_skipped == 2
    torch.testing.assert_close(other.cmc, golden["wm_cmc"])


GALLERY_IDS, GALLERY_CAMS = torch.tensor([1, 1, 2, 0, 1, 2, 3, 2]), torch.tensor([0, 1, 0, 2, 2, 1, 0, 3])
QUERY_IDS, QUERY_CAMS = torch.tensor([1, 2, 9, 3]), torch.tensor([0, 1, 0, 0])
BY_HAND = torch.tensor(
    [
        [0.05, 0.30, 0.20, 0.10, 0.60, 0.40, 0.50, 0.70],  # g0 removed, hits at 3 and 6
        [0.90, 0.80, 0.10, 0.35, 0.70, 0.05, 0.20, 0.30],  # g5 removed, hits at 1 and 3
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],  # identity not in the gallery
        [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1],  # its only match is of the same camera
    ]
)


def test_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ranking = evaluate_distances(BY_HAND, QUERY_IDS, GALLERY_IDS, QUERY_CAMS, GALLERY_CAMS, max_rank=12)
    torch.testing.assert_close(
        ranking.ap, torch.tensor([1 / 3, 5 / 6, torch.nan, torch.nan]).double(), equal_nan=True
    )
    torch.testing.assert_close(
        ranking.inp, torch.tensor([2 / 6, 2 / 3, torch.nan, torch.nan]).double(), equal_nan=True
    )
    assert ranking.first_hit.tolist() == [3, 1, 0, 0]
    assert ranking.mAP == pytest.approx(7 / 12)
    assert ranking.mINP == pytest.approx(0.5)
    assert ranking.cmc.tolist() == [0.5, 0.5] + [1.0] * 10  # longer than the gallery
    assert (ranking.num_valid, ranking.num_skipped) == (2, 2)
    assert "2 of 4 queries" in caplog.text
    assert "1 because of the camera rule" in caplog.text

    no_cameras = evaluate_distances(BY_HAND, QUERY_IDS, GALLERY_IDS)
    assert no_cameras.mAP == pytest.approx(0.686508, abs=1e-6)
    assert no_cameras.rank(1) == pytest.approx(2 / 3)
    assert no_cameras.num_valid == 3


def test_tie_goes_to_the_lower_index() -> None:
    tie = torch.tensor([[0.5, 0.5]])
    assert evaluate_distances(tie, torch.tensor([1]), torch.tensor([0, 1])).mAP == 0.5
    assert evaluate_distances(tie, torch.tensor([1]), torch.tensor([1, 0])).mAP == 1.0


def test_distances_of_two_features() -> None:
    q, g = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    assert feature_distances(q, g).block(slice(0, 1)).item() == pytest.approx(0.04)
    assert feature_distances(q, g, distance="euclidean").block(slice(0, 1)).item() == pytest.approx(2)
    unit = feature_distances(F.normalize(q), F.normalize(g), distance="euclidean")
    assert unit.block(slice(0, 1)).item() == pytest.approx(0.08)


@pytest.mark.parametrize("block_size", [1, 8, 64])
@pytest.mark.parametrize("seed", range(3))
def test_many_ties_against_literal_loops(block_size: int, seed: int) -> None:
    query, gallery, labels = random_case(40, 60, seed)
    ranking = evaluate_ranking(query, gallery, *labels, distance="euclidean", block_size=block_size)
    distances = (query[:, None] - gallery).square().sum(dim=2)
    scores = literal_scores(distances.tolist(), *(values.tolist() for values in labels))
    assert len(distances.unique()) < 60
    for ap, inp, first_hit, score in zip(ranking.ap, ranking.inp, ranking.first_hit, scores, strict=True):
        if score is None:
            assert torch.stack([ap, inp]).isnan().all()
            assert first_hit == 0
        else:
            assert (ap.item(), inp.item(), first_hit.item()) == pytest.approx(score, abs=1e-12)
    valid = [score for score in scores if score is not None]
    assert 0 < len(valid) < 40
    assert ranking.mAP == pytest.approx(np.mean([score[0] for score in valid]))
    assert ranking.cmc.tolist() == pytest.approx(
        [np.mean([score[2] <= k for score in valid]) for k in range(1, 51)]
    )


@pytest.mark.parametrize("block_size", [3, 64])
def test_top_matches_against_literal_loops(block_size: int) -> None:
    query, gallery, labels = random_case(20, 45, seed=5)
    k = 50  # longer than the gallery
    index, distance = top_matches(query, gallery, *labels, k=k, distance="euclidean", block_size=block_size)
    expected = (query[:, None] - gallery).square().sum(dim=2)
    query_ids, gallery_ids, query_cams, gallery_cams = (values.tolist() for values in labels)
    for i, row in enumerate(expected.tolist()):
        ranked = literal_ranked(row, query_ids[i], gallery_ids, query_cams[i], gallery_cams)
        padding = k - len(ranked)
        assert index[i].tolist() == ranked + [-1] * padding
        assert distance[i].tolist() == [row[j] for j in ranked] + [torch.inf] * padding
    first, _ = top_matches(query, gallery, k=3, distance="euclidean")
    assert torch.equal(first, expected.argsort(dim=1, stable=True)[:, :3])


def test_top_matches_sorts_negative_distances() -> None:
    """1 - cos of a feature with itself can be a little below 0 by rounding."""
    features = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    index, distance = top_matches(features, torch.cat([features, features]), k=128)
    assert (distance[:, :2] < 0).any()
    assert (distance.diff(dim=1) >= 0).all()
    assert torch.equal(index.sort(dim=1).values, torch.arange(128).expand(64, -1))


def test_half_precision_features_are_compared_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    query, gallery = torch.randn(10, 64, generator=generator), torch.randn(50, 64, generator=generator)
    ids = torch.arange(10), torch.arange(50) % 10
    half = evaluate_ranking(query.half(), gallery.half(), *ids)
    assert torch.equal(half.ap, evaluate_ranking(query.half().float(), gallery.half().float(), *ids).ap)


def test_bad_input_is_explained() -> None:
    features, ids, cams = torch.eye(3), torch.arange(3), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(HapError, match=r"3 of 3 queries .* 3 because of the camera rule"):
        evaluate_ranking(features, features, ids, ids, cams, cams)
    with pytest.raises(HapError, match="3 because it lacks their identity"):
        evaluate_ranking(features, features, ids, ids + 3)
    with pytest.raises(HapError, match="queries 1 to 1 are not finite"):
        evaluate_ranking(
            features.index_fill(0, torch.tensor([1]), torch.nan), features, ids, ids, block_size=1
        )
    with pytest.raises(HapError, match="both queries and gallery"):
        evaluate_ranking(features, features, ids, ids, cams)
    with pytest.raises(HapError, match="2 query and 3 gallery cameras"):
        evaluate_ranking(features, features, ids, ids, cams[:2], cams)
    with pytest.raises(HapError, match=r"\(3, 3\), but identities of \(2, 3\)"):
        evaluate_ranking(features, features, ids[:2], ids)
    with pytest.raises(HapError, match="3 queries, 0 gallery entries"):
        evaluate_ranking(features, features[:0], ids, ids[:0])
    with pytest.raises(HapError, match="must be"):
        evaluate_ranking(features, features[:, :2], ids, ids)
    with pytest.raises(HapError, match="'cosine' or 'euclidean'"):
        evaluate_ranking(features, features, ids, ids, distance="l1")
    with pytest.raises(HapError, match="matrix"):
        evaluate_distances(torch.zeros(3), ids, ids)


# --- re-ranking ---------------------------------------------------------------------------------------------


def dense_rerank(query: np.ndarray, gallery: np.ndarray, k1: int, k2: int, lambda_value: float) -> np.ndarray:
    """Zhong et al. 2017 set by set, with the conventions that `k_reciprocal_rerank` states."""
    x = np.concatenate([query, gallery]).astype(np.float64)
    n = len(x)
    d = ((x[:, None] - x) ** 2).sum(axis=2)
    d /= d.max(axis=1, keepdims=True)

    def nearest(i: int, k: int) -> list[int]:
        return sorted(range(n), key=lambda j: (j != i, d[i, j], j))[:k]

    def mutual(i: int, k: int) -> set[int]:
        return {j for j in nearest(i, k + 1) if i in nearest(j, k + 1)}

    v = np.zeros((n, n))
    for i in range(n):
        expanded = mutual(i, k1)
        for j in mutual(i, k1):
            half = mutual(j, round(k1 / 2))
            if len(half & mutual(i, k1)) > 2 / 3 * len(half):
                expanded |= half
        for j in expanded:
            v[i, j] = np.exp(-d[i, j])
    v /= v.sum(axis=1, keepdims=True)
    v = np.stack([v[nearest(i, k2)].mean(axis=0) for i in range(n)])
    jaccard = np.empty((len(query), len(gallery)))
    for i in range(len(query)):
        for j in range(len(gallery)):
            a, b = v[i], v[len(query) + j]
            jaccard[i, j] = 1 - np.minimum(a, b).sum() / np.maximum(a, b).sum()
    return (1 - lambda_value) * jaccard + lambda_value * d[: len(query), len(query) :]


def clustered(num_query: int, num_gallery: int, num_ids: int = 6, noise: float = 1.2):
    """Normalised features around a centre per identity: query, gallery, their identities."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(num_ids, (num_query + num_gallery,), generator=generator)
    features = torch.randn(num_ids, 16, generator=generator)[ids]
    features = F.normalize(features + noise * torch.randn(features.shape, generator=generator))
    return *features.split([num_query, num_gallery]), *ids.split([num_query, num_gallery])


@pytest.mark.parametrize(
    ("k1", "k2", "lambda_value", "num_gallery"), [(10, 4, 0.3, 50), (7, 1, 0.0, 50), (20, 6, 0.3, 9)]
)
def test_rerank_equals_dense_reference(k1: int, k2: int, lambda_value: float, num_gallery: int) -> None:
    query, gallery, _, _ = clustered(8, num_gallery)
    reranked = k_reciprocal_rerank(query, gallery, k1=k1, k2=k2, lambda_value=lambda_value, block_size=16)
    expected = dense_rerank(query.numpy(), gallery.numpy(), k1, k2, lambda_value)
    assert reranked.shape == expected.shape
    blocks = torch.cat([reranked.block(slice(0, 5)), reranked.block(slice(5, 8))])
    np.testing.assert_allclose(blocks.numpy(), expected, atol=2e-6)


# --- the metric ---------------------------------------------------------------------------------------------


def metric_case():
    """Features, identities, cameras, is_query of 150 samples."""
    query, gallery, query_ids, gallery_ids = clustered(30, 120, num_ids=12)
    features, ids = torch.cat([query, gallery]), torch.cat([query_ids, gallery_ids])
    return features, ids, torch.arange(150) % 4, torch.arange(150) < 30


def filled_metric(indices: list[int], **options) -> RetrievalMetric:
    """The metric after batches of 7 of the samples with these indices."""
    features, ids, cams, is_query = metric_case()
    metric = RetrievalMetric(**options)
    for index in torch.tensor(indices).split(7):
        metric.update(features[index], ids[index], cams[index], is_query[index], index)
    return metric


def test_metric_drops_repeats_and_order() -> None:
    features, ids, cams, _ = metric_case()
    ranking = evaluate_ranking(
        features[:30], features[30:], ids[:30], ids[30:], cams[:30], cams[30:], block_size=16
    )
    metric = filled_metric([*reversed(range(150)), 0, 31, 31, 149])
    values = metric.compute()
    assert all(type(value) is float for value in values.values())
    assert values == {
        "mAP": ranking.mAP, "mINP": ranking.mINP, "rank1": ranking.rank(1), "rank5": ranking.rank(5),
        "rank10": ranking.rank(10), "num_valid": 30, "num_skipped": 0, "num_gallery": 120,
    }  # fmt: skip
    assert torch.equal(metric.ranking().ap, ranking.ap)
    metric.reset()
    with pytest.raises(RuntimeError):
        metric.ranking()


def test_metric_lists_the_worst_queries() -> None:
    features, ids, cams, _ = metric_case()
    metric = filled_metric(list(range(150)))
    metric.compute()
    lists = metric.ranked_lists(4, k=130)
    assert torch.equal(lists.ap, metric.ranking().ap.sort().values[:4])
    for i, query in enumerate(lists.query.tolist()):
        distance = (1 - F.normalize(features[30:]) @ F.normalize(features[query], dim=0)).tolist()
        ranked = literal_ranked(distance, ids[query], ids[30:], cams[query], cams[30:])
        kept = len(ranked)
        assert lists.gallery[i, :kept].tolist() == [30 + j for j in ranked]
        assert lists.match[i, :kept].tolist() == [bool(ids[30 + j] == ids[query]) for j in ranked]
        assert (lists.gallery[i, kept:] == -1).all()
        assert not lists.match[i, kept:].any()
        torch.testing.assert_close(lists.distance[i, :kept], torch.tensor([distance[j] for j in ranked]))


def test_metric_without_cameras_and_with_separate_indices() -> None:
    features, ids, _, is_query = metric_case()
    metric = RetrievalMetric()
    index = torch.cat([torch.arange(30), torch.arange(120)])
    metric.update(features, ids, None, is_query, index)
    ranking = evaluate_ranking(features[:30], features[30:], ids[:30], ids[30:])
    assert metric.compute()["mAP"] == ranking.mAP


def test_metric_reranks() -> None:
    features, ids, cams, _ = metric_case()
    values = filled_metric(list(range(150)), rerank=True).compute()
    distances = k_reciprocal_rerank(F.normalize(features[:30]), F.normalize(features[30:]))
    expected = evaluate_distances(distances, ids[:30], ids[30:], cams[:30], cams[30:])
    assert values["rerank_mAP"] == expected.mAP > values["mAP"]


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_metric_without_samples_is_explained() -> None:
    with pytest.raises(HapError, match="no features"):
        RetrievalMetric().compute()
    with pytest.raises(HapError, match="0 queries, 20 gallery"):
        filled_metric(list(range(100, 120))).compute()


def _two_processes(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        indices = [i % 150 for i in range(rank, 153 + rank, 2)]  # 77 samples each, 4 of them repeats
        metric = filled_metric(indices)
        values = metric.compute()
        torch.save((values, metric.ranking().ap, metric.ranked_lists(3).gallery), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    metric = filled_metric(list(range(150)))
    values = metric.compute()
    torch.multiprocessing.spawn(_two_processes, (str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        theirs, ap, gallery = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert theirs == values
        assert torch.equal(ap, metric.ranking().ap)
        assert torch.equal(gallery, metric.ranked_lists(3).gallery)


# --- speed and memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_with_and_without_the_camera_rule_in_one_pass(seed):
    """Also among ties, and with several entries of a query's camera."""
    generator = torch.Generator().manual_seed(seed)
    query, gallery = (torch.randint(-1, 2, (n, 3), generator=generator).float() + 0.1 for n in (40, 60))
    ids, cams = ((torch.randint(high, (n,), generator=generator) for n in (40, 60)) for high in (6, 3))
    labels = (*ids, *cams)
    for found, expected in zip(
        evaluate_both(query, gallery, *labels, block_size=7),
        (evaluate_ranking(query, gallery, *labels[:2]), evaluate_ranking(query, gallery, *labels)),
        strict=True,
    ):
        for name in ("ap", "ap_trapezoid", "inp", "first_hit"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), equal_nan=True)


def test_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    *_, result = reid_eval.run(num_query=60, num_gallery=500, dim=32, num_ids=40, numpy_queries=30)
    assert result["mAP"] == pytest.approx(result["numpy_mAP"], abs=1e-5)
    assert "scaled from 30 queries" in capsys.readouterr().out


@pytest.mark.slow
def test_memory_is_bounded() -> None:
    *_, result = reid_eval.run(num_query=2000, num_gallery=80000, dim=768, numpy_queries=16)
    assert result["memory_gb"] < 1


@pytest.mark.gpu
def test_gpu_equals_cpu_whatever_the_precision_settings() -> None:
    query, gallery, query_ids, gallery_ids = clustered(200, 3000, num_ids=40)
    expected = evaluate_ranking(query, gallery, query_ids, gallery_ids)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            ranking = evaluate_ranking(query.cuda(), gallery.cuda(), query_ids, gallery_ids)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(precision)
    assert ranking.mAP == pytest.approx(expected.mAP, abs=1e-5)
    integers, others, labels = random_case(40, 60, seed=0)
    on_gpu = evaluate_ranking(integers.cuda(), others.cuda(), *labels, distance="euclidean")
    torch.testing.assert_close(
        on_gpu.ap, evaluate_ranking(integers, others, *labels, distance="euclidean").ap, equal_nan=True
    )
