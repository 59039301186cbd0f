"""The smallest inputs, awkward names and one file under several names, in predictions and evaluations of ReID."""

import csv
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import TINY, config
from PIL import Image

from hap.data.reid import read_market1501
from hap.data.sources import read_inputs
from hap.errors import HapError
from hap.runner import run
from hap.tasks.reid import people_in_names


@pytest.fixture(scope="module")
def market(drawn) -> Path:
    return drawn("market1501", 130, images_per_identity=8, num_cameras=4)


def options(*more: str) -> list[str]:
    plan = ["data.plan.images_per_identity=4", "total_batch_size=24", "task.model.num_classes=7"]
    return ["experiment=reid_market1501", *TINY, *plan, "epochs=1", "task.recipe.warmup_epochs=0.5", *more]


@pytest.fixture(scope="module")
def checkpoint(market, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run("train", config("train", *options(f"data.root={market}", "trainer.max_steps=1")), folder)
    return folder / "checkpoints/last.ckpt"


@pytest.fixture
def predict(checkpoint, tmp_path):
    def rows(query: Path, gallery: Path, *more: str, out: str = "out") -> list[dict[str, str]]:
        overrides = options(f"ckpt_path={checkpoint}", "query=''", "gallery=''", *more)
        cfg = config("predict", *overrides)
        cfg.query, cfg.gallery = str(query), str(gallery)
        run("predict", cfg, tmp_path / out)
        assert cv2.imread(str(tmp_path / out / "ranked_gallery.png")) is not None
        with (tmp_path / out / "rankings.csv").open(
            newline="", encoding="utf-8", errors="surrogateescape"
        ) as file:
            return list(csv.DictReader(file))

    return rows


def copied(market: Path, folder: Path, *names: str) -> Path:
    """Drawn images under other names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in zip(names, sorted((market / "query").glob("*.jpg")), strict=False):
        shutil.copy(source, folder / name)
    return folder


@pytest.mark.parametrize("top_k", [1, 2, 50])
def test_one_query_and_few_others(market, predict, tmp_path, top_k):
    query = copied(market, tmp_path / "query", "a.jpg")
    gallery = copied(market, tmp_path / "gallery", "b.jpg", "c.jpg")
    rows = predict(query, gallery, f"task.top_k={top_k}")
    assert [row["rank"] for row in rows] == ["1", "2"][:top_k]
    assert rows[0]["gallery"] == str(gallery / "b.jpg")  # the same pixels, in another file
    assert float(rows[0]["distance"]) == pytest.approx(0, abs=1e-5)
    rows = predict(query, copied(market, tmp_path / "one", "b.jpg"), f"task.top_k={top_k}", out="one_out")
    assert len(rows) == 1


def test_one_image_looks_for_itself_and_finds_nothing(market, predict, tmp_path):
    folder = copied(market, tmp_path / "query", "a.jpg")
    assert predict(folder, folder) == []


def test_top_k_below_one_is_refused(market, predict, tmp_path):
    folder = copied(market, tmp_path / "query", "a.jpg", "b.jpg")
    with pytest.raises(HapError, match=r"top_k=0"):
        predict(folder, folder, "task.top_k=0")


AWKWARD = [b"2024", b"a=b.jpg", b"~.jpg", b"c,'\"d.jpg", b"e\nf\t.jpg", b"\x1b[31m.jpg", b"\xc7\xe9.jpg"]


def test_names_come_back_as_the_file_system_has_them(market, predict, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("~nobody=2024")
    copied(market, folder / "2024", "1.jpg")
    for number, name in enumerate(AWKWARD[1:]):
        shutil.copy(folder / "2024/1.jpg", Path(os.fsdecode(os.fsencode(folder) + b"/" + name)))
        if number % 2:
            shutil.copy(folder / "2024/1.jpg", folder / "2024" / f"1234567890123456789012345_c{number}.jpg")
    files = {str(path) for path in folder.rglob("*.jpg")}
    rows = predict(folder, folder)
    for query in files:
        assert {row["gallery"] for row in rows if row["query"] == query} == files - {query}
    with np.load(tmp_path / "out/features.npz") as file:
        assert set(file["names"].tolist()) == files


def test_no_image_finds_itself_under_another_name(market, predict, tmp_path):
    query = copied(market, tmp_path / "query", "a.jpg", "0101_c1s1_0.jpg", "0102_c1s1_0.jpg")
    gallery = copied(market, tmp_path / "gallery", "x.jpg")
    os.link(query / "a.jpg", gallery / "hard.jpg")
    (gallery / "0103_c1s1_0.jpg").symlink_to(query / "a.jpg")
    os.link(query / "0101_c1s1_0.jpg", gallery / "copy.jpg")
    os.link(query / "0102_c1s1_0.jpg", gallery / "0999_c2s1_0.jpg")  # its names contradict each other
    rows = predict(query, gallery)

    def found(name: str) -> dict[str, str]:
        rest = (row for row in rows if Path(row["query"]).name == name)
        return {Path(row["gallery"]).name: row["same_person"] for row in rest}

    assert set(found("a.jpg")) == {"x.jpg", "copy.jpg", "0999_c2s1_0.jpg"}
    assert found("0101_c1s1_0.jpg") == {
        "x.jpg": "",
        "hard.jpg": "false",  # 0103, as another name of the file says
        "0103_c1s1_0.jpg": "false",
        "0999_c2s1_0.jpg": "",
    }
    assert set(found("0102_c1s1_0.jpg")) == {"x.jpg", "hard.jpg", "0103_c1s1_0.jpg", "copy.jpg"}


def test_distractors_are_nobodys_match(market, tmp_path, predict):
    names = [
        "0000_c1s1_000001_00.jpg",
        "0000_c1s1_000002_00.jpg",
        "0000_c2s1_000001_00.jpg",
        "0007_c1s1_0_00.jpg",
    ]
    folder = copied(market, tmp_path / "photos", *names)
    rows = predict(folder, folder)
    assert len(rows) == 4 * 3
    assert {row["same_person"] for row in rows} == {"false"}


def test_numbers_too_large_for_people_are_other_names(tmp_path):
    for name in ("99999999999999999999_c1.jpg", "1_c99999999999999999999.jpg", "12_c3.jpg"):
        (tmp_path / name).touch()
    who, told = people_in_names(read_inputs({"query": str(tmp_path)}))
    assert who[told].tolist() == [[12, 2]]


def test_people_stand_upright_in_predictions_only(market, tmp_path, predict):
    """A photograph and the same one turned, with the orientation that turns it back, are the same people."""
    upright, turned = tmp_path / "upright", tmp_path / "turned"
    copied(market, upright, "a.png")
    turned.mkdir()
    image = cv2.imread(str(upright / "a.png"))
    cv2.imwrite(str(upright / "a.png"), image)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.ascontiguousarray(np.rot90(image[..., ::-1]))
    Image.fromarray(stored).save(turned / "b.png", exif=exif)
    assert float(predict(upright, turned)[0]["distance"]) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("rerank", ["false", "true"])
def test_an_evaluation_of_one_query_and_one_gallery_image(market, checkpoint, tmp_path, rerank):
    root = tmp_path / "data"
    shutil.copytree(market / "bounding_box_train", root / "bounding_box_train")
    for folder, camera in (("query", 1), ("bounding_box_test", 2)):
        copied(market, root / folder, f"0900_c{camera}s1_000001_00.jpg")
    overrides = options(f"data.root={root}", f"ckpt_path={checkpoint}", f"task.metric.rerank={rerank}")
    results = run("eval", config("eval", *overrides), tmp_path / "eval")
    assert results["test/mAP"] == results["test/rank1"] == 1
    (root / "bounding_box_test/0900_c2s1_000001_00.jpg").unlink()
    os.link(root / "query/0900_c1s1_000001_00.jpg", root / "bounding_box_test/0900_c2s1_000001_00.jpg")
    with pytest.raises(HapError, match="1 images are one file in query and gallery"):
        read_market1501(root)
    with pytest.raises(HapError, match="1 images are one file in query and gallery"):
        run("eval", config("eval", *overrides), tmp_path / "second")


def test_the_same_file_with_the_same_person_and_camera_is_left_out(market, checkpoint, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(market / "bounding_box_train", root / "bounding_box_train")
    names = [f"0900_c{camera}s1_000001_00.jpg" for camera in (1, 2, 3)]
    copied(market, root / "query", names[0])
    copied(market, root / "bounding_box_test", *names[1:])
    os.link(root / "query" / names[0], root / "bounding_box_test" / names[0])
    overrides = options(f"data.root={root}", f"ckpt_path={checkpoint}")
    results = run("eval", config("eval", *overrides), tmp_path / "eval")
    assert results["test/num_gallery"] == 3
    assert torch.tensor(results["test/mAP"]).item() == 1
