"""What ReID is used for: evaluations with pictures, rankings of any images, encoders scored as they are, bad input."""

import csv
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import TINY, TINY_PRETRAIN, config
from hydra.utils import instantiate

from hap.data.reid import identity_in_name, read_market1501
from hap.data.transforms import BICUBIC, resize
from hap.errors import HapError
from hap.metrics.ranking import evaluate_ranking
from hap.metrics.retrieval import RetrievalMetric
from hap.models.checkpoint import load_weights
from hap.models.vit import ViT
from hap.plots import OTHER, QUERY, SAME, UNKNOWN
from hap.runner import run

PEOPLE = 7  # of the training split


@pytest.fixture(scope="module")
def market(drawn) -> Path:
    return drawn("market1501", 130, images_per_identity=8, num_cameras=4)


def options(*more: str, experiment: str = "reid_market1501") -> list[str]:
    return [
        f"experiment={experiment}",
        *TINY,
        "data.plan.images_per_identity=4",
        "total_batch_size=24",
        "epochs=1",
        f"task.model.num_classes={PEOPLE}",
        "task.recipe.warmup_epochs=0.5",
        *more,
    ]


@pytest.fixture(scope="module")
def checkpoint(market, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run("train", config("train", *options(f"data.root={market}")), folder)
    return folder / "checkpoints/last.ckpt"


def evaluate(root: Path, folder: Path, *more: str) -> dict[str, float]:
    return run("eval", config("eval", *options(f"data.root={root}", *more)), folder)


def predict(query: Path, gallery: Path, folder: Path, *more: str) -> list[dict[str, str]]:
    run("predict", config("predict", *options(f"query={query}", f"gallery={gallery}", *more)), folder)
    with (folder / "rankings.csv").open() as file:
        return list(csv.DictReader(file))


def test_an_evaluation_leaves_scores_curve_and_pictures(market, checkpoint, tmp_path):
    results = evaluate(market, tmp_path / "eval", f"ckpt_path={checkpoint}", "logger=all")
    written = json.loads((tmp_path / "eval/results.json").read_text())
    assert written["test/mAP"] == results["test/mAP"]
    assert {"test/mINP", "test/rank1", "test/rank5", "test/rank10", "test/num_skipped"} <= set(written)
    with (tmp_path / "eval/cmc.csv").open() as file:
        curve = {int(row["rank"]): float(row["share"]) for row in csv.DictReader(file)}
    assert list(curve) == list(range(1, 51))
    for k in (1, 5, 10):
        assert curve[k] == pytest.approx(written[f"test/rank{k}"], abs=1e-6)
    for name in ("cmc", "best_queries", "worst_queries"):
        picture = cv2.imread(str(tmp_path / f"eval/pictures/{name}.png"))
        assert picture.std() > 10
        assert list((tmp_path / "eval/wandb").rglob(f"media/images/pictures/{name}_*.png"))
    best, worst = (cv2.imread(str(tmp_path / f"eval/pictures/{n}_queries.png")) for n in ("best", "worst"))
    assert share(best, SAME) > share(worst, SAME)
    assert share(worst, OTHER) > share(worst, SAME)


def test_runs_of_one_process_are_runs_of_their_own_in_wandb(market, checkpoint, tmp_path):
    """As the jobs of a sweep are."""
    for name in ("first", "second"):
        evaluate(market, tmp_path / name, f"ckpt_path={checkpoint}", "logger=wandb")
        assert len(list((tmp_path / name / "wandb").glob("offline-run-*"))) == 1


def share(picture: np.ndarray, colour: tuple[int, int, int]) -> float:
    """Of the pixels that have an RGB colour, in a picture as OpenCV reads it."""
    return (picture[..., ::-1] == colour).all(2).mean()


@pytest.mark.slow
def test_two_processes_evaluate_to_the_same(market, checkpoint, tmp_path):
    """51 images in shares of 26: one is seen twice and counted once."""
    one = evaluate(market, tmp_path / "one", f"ckpt_path={checkpoint}", "task.metric.rerank=true")
    arguments = options(f"data.root={market}", f"ckpt_path={checkpoint}", "task.metric.rerank=true")
    command = [sys.executable, "-m", "hap.eval", *arguments, "trainer=ddp_cpu", f"run_dir={tmp_path}/two"]
    subprocess.run(command, check=True)
    two = json.loads((tmp_path / "two/results.json").read_text())
    for name in ("mAP", "mINP", "rank1", "rerank_mAP", "num_valid", "num_gallery"):
        assert two[f"test/{name}"] == pytest.approx(one[f"test/{name}"], abs=1e-6)


def test_predict_ranks_like_the_evaluation(market, checkpoint, tmp_path):
    where = market / "query", market / "bounding_box_test"
    rows = predict(*where, tmp_path / "out", f"ckpt_path={checkpoint}", "task.top_k=20")
    with np.load(tmp_path / "out/features.npz") as file:
        names, features, is_query = file["names"], file["features"], file["is_query"]
    files = [str(p) for folder in where for p in sorted(folder.glob("*.jpg"))]
    assert names.tolist() == files
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    people = [identity_in_name(Path(name).name) for name in names]
    expected = []
    for q in np.flatnonzero(is_query):
        kept = [g for g in np.flatnonzero(~is_query) if people[g] is None or people[g] != people[q]]
        order = sorted(kept, key=lambda g: 1 - float(features[q] @ features[g]))[:20]
        for rank, g in enumerate(order, start=1):
            same = "" if people[g] is None else str(people[g][0] == people[q][0]).lower()
            expected.append((names[q], str(rank), names[g], same))
    assert [(r["query"], r["rank"], r["gallery"], r["same_person"]) for r in rows] == expected
    assert {r["same_person"] for r in rows} == {"true", "false", ""}  # junk is nobody in particular
    first = names.tolist().index(rows[0]["gallery"])
    assert float(rows[0]["distance"]) == pytest.approx(1 - features[0] @ features[first], abs=1e-5)

    picture = cv2.cvtColor(cv2.imread(str(tmp_path / "out/ranked_gallery.png")), cv2.COLOR_BGR2RGB)
    frames = {"true": SAME, "false": OTHER, "": UNKNOWN}
    height, width = 64 + 10 + 2 * 13 + 6, 32 + 10 + 6  # of a tile with text and gap
    for strip, query in enumerate(names[:8]):
        colours = [QUERY, *(frames[r["same_person"]] for r in rows if r["query"] == query)][:11]
        for place, colour in enumerate(colours):
            assert tuple(picture[8 + strip * height, 8 + place * width]) == colour


def test_predict_takes_any_images_and_leaves_out_only_the_file_itself(market, checkpoint, tmp_path):
    """One folder for both: each image looks for the others. A corrupt one is named and left out."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for i, path in enumerate(sorted((market / "query").glob("*.jpg"))[:9]):
        shutil.copy(path, folder / ("below" if i % 2 else ".") / f"photo {i}, copy.jpg")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    rows = predict(folder, folder, tmp_path / "out", f"ckpt_path={checkpoint}")
    names = {str(p) for p in folder.rglob("photo*.jpg")}
    assert {r["same_person"] for r in rows} == {""}
    for query in names:
        assert {r["gallery"] for r in rows if r["query"] == query} == names - {query}
    assert len(rows) == 9 * 8
    assert "broken.jpg" in (tmp_path / "out/bad_samples_predict_rank0.txt").read_text()


def test_predict_finds_people_in_videos(market, checkpoint, tmp_path):
    """Each frame is an image of its own: one that does not find itself, but the same picture in another video."""
    people = [cv2.resize(cv2.imread(str(path)), (64, 128)) for path in sorted((market / "query").iterdir())]
    for name, frames in (("walk.avi", people[:6]), ("0007_c1.avi", people[5::-1])):
        writer = cv2.VideoWriter(str(tmp_path / name), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 128))
        for image in frames:
            writer.write(image)
        writer.release()
    rows = predict(tmp_path / "walk.avi", f"{tmp_path}/*.avi", tmp_path / "out", f"ckpt_path={checkpoint}")
    first = {Path(r["query"]).name: Path(r["gallery"]).name for r in rows if r["rank"] == "1"}
    assert first == {f"walk.avi#{k}": f"0007_c1.avi#{5 - k}" for k in range(6)}
    assert len(rows) == 6 * 11
    assert {r["same_person"] for r in rows} == {""}


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("0002_c1s1_000451_03.jpg", (2, 0)),
        ("0000_c12_0033.jpg", (0, 11)),
        ("0012_050_12_0303morning_0008_0_ex.jpg", (12, 11)),
        ("-1_c3s2_017721_02.jpg", None),
        ("2024_12_24_holiday.jpg", None),
        ("cat.jpg", None),
    ],
)
def test_identity_in_name(name, known):
    assert identity_in_name(name) == known


@pytest.fixture(scope="module")
def pretrained(luperson, tmp_path_factory) -> tuple[Path, dict[str, float]]:
    """Two epochs of pre-training, and what it logged."""
    return pretrain(luperson, tmp_path_factory.mktemp("pretrained") / "run")


def pretrain(luperson: Path, folder: Path, *more: str) -> tuple[Path, dict[str, float]]:
    overrides = ["experiment=pretrain_hap", *TINY_PRETRAIN, f"data.root={luperson}", *more]
    results = run("train", config("train", *overrides), folder)
    return folder / "checkpoints/last.ckpt", results


@pytest.mark.parametrize("experiment", ["reid_market1501", "reid_market1501_lem"])
def test_a_pretrained_encoder_is_scored_as_it_is(market, pretrained, tmp_path, caplog, experiment):
    weights, _ = pretrained
    overrides = options(f"data.root={market}", f"weights={weights}", experiment=experiment)
    with pytest.raises(HapError, match=r"not trained for this task.*zero_shot=true"):
        run("eval", config("eval", *overrides), tmp_path / "refused")
    results = run("eval", config("eval", *overrides, "zero_shot=true"), tmp_path / "eval")
    assert "without fine-tuning" in caplog.text

    encoder = ViT((64, 32), 16, 32, 2, 4).eval()
    load_weights(encoder, weights)
    records = read_market1501(market)["test"]
    images = np.stack([resize(r.pixels(), (64, 32), BICUBIC) for r in records])
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images = torch.from_numpy((images / 255 - mean) / std).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        features = encoder(images)[:, 0]
    query = sum(r.is_query for r in records)
    ids, cams = (torch.tensor([getattr(r, name) for r in records]) for name in ("identity", "camera"))
    ranking = evaluate_ranking(
        *(features[:query], features[query:], ids[:query], ids[query:], cams[:query], cams[query:])
    )
    assert results["test/mAP"] == pytest.approx(ranking.mAP, abs=2e-3)


@pytest.mark.parametrize(
    ("program", "overrides", "message"),
    [
        ("train", options("synthetic=true"), "zero_shot=true scores an encoder as it is"),
        ("eval", options("ckpt_path={file}"), "zero_shot=true scores an encoder as it is"),
        ("eval", ["experiment=pretrain_hap", *TINY_PRETRAIN, "weights={file}"], "is for re-identification"),
    ],
)
def test_zero_shot_where_it_makes_no_sense(pretrained, tmp_path, program, overrides, message):
    overrides = [o.format(file=pretrained[0]) for o in overrides]
    with pytest.raises(HapError, match=message):
        run(program, config(program, *overrides, "zero_shot=true"), tmp_path / "run")


def test_euclidean_distance_and_best_queries(market):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 8, generator=generator) * torch.rand(60, 1, generator=generator)
    ids, cams = torch.arange(60) % 6, torch.arange(60) % 7
    is_query = torch.arange(60) < 20
    task = instantiate(config("train", *options("task.metric.distance=euclidean")).task)
    metric = task.metric
    metric.update(features, ids, cams, is_query, torch.arange(60))
    parts = [x[part] for x in (features, ids, cams) for part in (is_query, ~is_query)]
    ranking = evaluate_ranking(*parts, distance="euclidean")
    assert metric.compute()["mAP"] == ranking.mAP != evaluate_ranking(*parts).mAP
    lists = metric.ranked_lists(5, best=True)
    assert torch.equal(lists.ap, ranking.ap.sort(descending=True).values[:5])
    exact = (features[lists.query[:, None]] - features[lists.gallery]).square().sum(2)
    torch.testing.assert_close(lists.distance, exact)
    outputs = task.model.eval()(torch.rand(2, 3, 64, 32))
    assert torch.equal(task.predictions(outputs, {})["feature"], outputs.embedding)  # not normalised
    with pytest.raises(HapError, match="'cosine' or 'euclidean', got 'l2'"):
        RetrievalMetric(distance="l2")


# Bad input --------------------------------------------------------------------------------------------------


def copied(market: Path, root: Path, keep=lambda folder, person, camera: True) -> Path:
    """A copy of the images that `keep` wants."""
    for path in market.rglob("*.jpg"):
        known = identity_in_name(path.name)
        if known and keep(path.parent.name, *known):
            target = root / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return root


def test_people_of_one_camera_are_skipped_and_counted(market, checkpoint, tmp_path, caplog):
    """Two test people seen by one camera only: their queries have nothing to find, the others are scored."""
    people = sorted({identity_in_name(p.name)[0] for p in (market / "query").iterdir()})
    queries = [identity_in_name(p.name) for p in sorted((market / "query").iterdir())]
    one_camera = {person: next(c for p, c in queries if p == person) for person in people[:2]}

    def keep(folder: str, person: int, camera: int) -> bool:
        return person not in one_camera or camera == one_camera[person]

    with caplog.at_level(logging.WARNING):
        results = evaluate(
            copied(market, tmp_path / "data", keep), tmp_path / "eval", f"ckpt_path={checkpoint}"
        )
    assert results["test/num_skipped"] == 2
    assert "0 because it lacks their identity, 2 because of the camera rule" in caplog.text

    def only(folder: str, person: int, camera: int) -> bool:
        return folder == "bounding_box_train" or (person in one_camera and camera == one_camera[person])

    with pytest.raises(HapError, match=r"2 of 2 queries have no match.*camera rule"):
        evaluate(copied(market, tmp_path / "two", only), tmp_path / "none", f"ckpt_path={checkpoint}")


def test_gallery_without_a_match(market, checkpoint, tmp_path):
    people = {identity_in_name(p.name)[0] for p in (market / "query").iterdir()}

    def keep(folder: str, person: int, camera: int) -> bool:
        return folder != "bounding_box_test" or person not in people

    count = len(list((market / "query").iterdir()))
    with pytest.raises(HapError, match=f"{count} of {count} queries have no match.*{count} because it lacks"):
        evaluate(copied(market, tmp_path / "data", keep), tmp_path / "eval", f"ckpt_path={checkpoint}")


def test_an_identity_with_one_image_is_trained_with_repeats(market, tmp_path):
    root = copied(market, tmp_path / "data")
    train = sorted((root / "bounding_box_train").iterdir())
    person = identity_in_name(train[0].name)[0]
    for path in train[1:]:
        if identity_in_name(path.name)[0] == person:
            path.unlink()
    results = run("train", config("train", *options(f"data.root={root}")), tmp_path / "run")
    assert np.isfinite(results["train/loss"])


def test_corrupt_images_and_foreign_names(market, checkpoint, tmp_path, caplog):
    root = copied(market, tmp_path / "data")
    gallery = sorted((root / "bounding_box_test").iterdir())
    gallery[0].write_bytes(gallery[0].read_bytes()[:300])
    shutil.copy(gallery[1], root / "bounding_box_test" / "somebody.jpg")
    with caplog.at_level(logging.WARNING):
        results = evaluate(root, tmp_path / "eval", f"ckpt_path={checkpoint}")
    assert results["test/num_gallery"] == len(gallery) - 1
    assert "somebody.jpg: not an image named PERSON_cCAMERA" in caplog.text
    named = (tmp_path / "eval/bad_samples_test_rank0.txt").read_text()
    assert named == f"bounding_box_test/{gallery[0].name}: the image file is truncated\n"
    with pytest.raises(HapError, match="1 samples cannot be used"):
        evaluate(root, tmp_path / "strict", f"ckpt_path={checkpoint}", "data.max_bad_fraction=0.001")


@pytest.mark.parametrize(
    ("query", "message"), [("empty", r"query: no images \(.*\) in"), ("none", "query: not found")]
)
def test_predict_without_queries(market, checkpoint, tmp_path, query, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(HapError, match=message):
        predict(tmp_path / query, market / "query", tmp_path / "out", f"ckpt_path={checkpoint}")
    with pytest.raises(HapError, match="predict needs query=FOLDER gallery=FOLDER"):
        run("predict", config("predict", *options(f"ckpt_path={checkpoint}")), tmp_path / "out2")


def test_all_queries_corrupt(market, checkpoint, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(HapError, match="0 queries"):
        predict(folder, market / "query", tmp_path / "out", f"ckpt_path={checkpoint}")
