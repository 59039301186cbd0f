"""ReID readers, the P x K plan and the transforms."""

import logging
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from hap.data.base import DataModule, Dataset
from hap.data.reid import ReidRecord, read_market1501, read_msmt17, read_people
from hap.data.samplers import BatchPlan, IdentityPlan, TrainBatches
from hap.data.transforms import PIXEL_MEAN, PIXEL_STD, ReidEval, ReidTrain, erase
from hap.errors import HapError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 16), (90, 120, 150)).save(path.with_suffix(".png"))
        path.with_suffix(".png").rename(path)
    return root


def table(records: list[ReidRecord]) -> list[tuple]:
    return [(r.name.rsplit("/", 1)[1], r.person, r.identity, r.camera, r.is_query) for r in records]


MARKET = (
    "bounding_box_train/1500_c6s3_086542_01.jpg",
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "bounding_box_test/0000_c4s6_031110_05.jpg",
    "bounding_box_test/-1_c3s2_017721_02.jpg",
    "bounding_box_test/1501_c6s4_001902_01.jpg",
    "bounding_box_test/0001_c2s1_000001_01.JPG",
    "query/0001_c1s1_001051_00.jpg",
)


@pytest.mark.parametrize("where", ["market", "exp_10_c2/x"])
def test_market1501_names(tmp_path, where):
    root = touch(tmp_path / where, *MARKET)
    splits = read_market1501(root)
    assert table(splits["train"]) == [
        ("0002_c1s1_000451_03.jpg", "0002", 0, 0, False),
        ("1500_c6s3_086542_01.jpg", "1500", 1, 5, False),
    ]
    assert table(splits["test"]) == [
        ("0001_c1s1_001051_00.jpg", "0001", 1, 0, True),
        ("0000_c4s6_031110_05.jpg", "0000", 0, 3, False),  # a distractor is ranked
        ("0001_c2s1_000001_01.JPG", "0001", 1, 1, False),
        ("1501_c6s4_001902_01.jpg", "1501", 2, 5, False),  # junk, -1, is not
    ]
    assert splits["val"] == splits["test"]
    assert splits["train"][0].encoded() == (root / MARKET[1]).read_bytes()
    assert splits["test"][0].annotations() == {"identity": 1, "camera": 0, "is_query": True}


@pytest.mark.parametrize("below", ["Market-1501-v15.09.15", "market1501/Market-1501-v15.09.15"])
def test_parent_folder_is_accepted(tmp_path, below):
    touch(tmp_path / below, *MARKET)
    assert len(read_market1501(tmp_path)["train"]) == 2


def test_two_data_sets_below_one_folder(tmp_path):
    touch(tmp_path / "MSMT17_V1", "bounding_box_train/0000_c1_0000.jpg")
    touch(tmp_path / "MSMT17_V2", "bounding_box_train/0000_c1_0000.jpg")
    with pytest.raises(HapError, match=r"MSMT17_V1.*MSMT17_V2"):
        read_msmt17(tmp_path)


def test_foreign_files_are_named_or_ignored(tmp_path, caplog):
    root = touch(tmp_path, *MARKET)
    for name in ("._0002_c1s1_000451_03.jpg", "Thumbs.db", ".DS_Store", "0003_1.jpg", "0004_c1s1_1_1.txt"):
        (root / "bounding_box_train" / name).write_bytes(b"x")
    assert len(read_market1501(root)["train"]) == 2
    left_out = next(r.message for r in caplog.records if "left out" in r.message)
    assert "bounding_box_train: 5 left out" in left_out
    assert "and 2 more: hidden" in left_out
    assert "0003_1.jpg: not an image named PERSON_cCAMERA" in left_out
    assert "0004_c1s1_1_1.txt: not .bmp, " in left_out


@pytest.mark.parametrize("name", ["0000_c1s1_000001_00.jpg", "-1_c1s1_000001_00.jpg"])
def test_market1501_query_that_matches_nobody(tmp_path, name):
    root = touch(tmp_path, *MARKET, f"query/{name}")
    with pytest.raises(HapError, match=f"{name}.*junk or distractor"):
        read_market1501(root)


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(HapError, match="bounding_box_train in"):
        read_market1501(tmp_path)
    root = touch(tmp_path, *MARKET)
    (root / MARKET[-1]).unlink()
    with pytest.raises(HapError, match="no query images"):
        read_market1501(root)
    (root / "query").rmdir()
    with pytest.raises(HapError, match=r"folder not found: .*query"):
        read_market1501(root)


def msmt17_released(root: Path, train: str = "train", test: str = "test") -> Path:
    lists = {
        "train": "0001/0001_000_01_0303morning_0015_0.jpg 1\n0000/0000_000_01_0303morning_0015_0.jpg 0\n",
        "val": "0012/0012_050_12_0303morning_0008_0_ex.jpg 12\n",
        "query": "0003/0003_001_05_0113noon_0001_1.jpg 3\n",
        "gallery": "0003/0003_002_15_0114afternoon_0002_0.jpg 3\n0000/0000_000_02_0302noon_0001_0.jpg 0\n",
    }
    root.mkdir(parents=True)
    for part, text in lists.items():
        (root / f"list_{part}.txt").write_text(text)
        folder = train if part in ("train", "val") else test
        touch(root / folder, *(line.split()[0] for line in text.splitlines()))
    return root


@pytest.mark.parametrize(
    ("train", "test", "version"), [("train", "test", "V1"), ("mask_train_v2", "mask_test_v2", "V2")]
)
def test_msmt17_as_released(tmp_path, caplog, train, test, version):
    root = msmt17_released(tmp_path / "exp_10_c2" / "msmt", train, test)
    with caplog.at_level(logging.INFO):
        splits = read_msmt17(root)
    assert table(splits["train"]) == [  # the order of the lists
        ("0001_000_01_0303morning_0015_0.jpg", "0001", 1, 0, False),
        ("0000_000_01_0303morning_0015_0.jpg", "0000", 0, 0, False),
        ("0012_050_12_0303morning_0008_0_ex.jpg", "0012", 2, 11, False),
    ]
    assert [(r.person, r.camera, r.is_query) for r in splits["test"]] == [
        ("0003", 4, True),
        ("0003", 14, False),
        ("0000", 1, False),
    ]
    assert f"MSMT17 {version}, train+val: train 3 images of 3 people, 2 cameras" in caplog.text
    assert "is not the published set, which has 32,621 images of 1,041 people, 15 cameras" in caplog.text
    assert len(read_msmt17(root, train_lists="train")["train"]) == 2


def test_msmt17_repacked(tmp_path):
    root = touch(
        tmp_path,
        "bounding_box_train/0000_c12_0033.jpg",
        "bounding_box_train/0007_c1_0000.jpg",
        "query/0000_c14_0030.jpg",  # identity 0 is a person here
        "bounding_box_test/0000_c1_0002.jpg",
    )
    splits = read_msmt17(root)
    assert table(splits["train"]) == [
        ("0000_c12_0033.jpg", "0000", 0, 11, False),
        ("0007_c1_0000.jpg", "0007", 1, 0, False),
    ]
    assert [r.camera for r in splits["test"]] == [13, 0]
    with pytest.raises(HapError, match="train_lists=train needs the list files"):
        read_msmt17(root, train_lists="train")


def test_msmt17_bad_lists(tmp_path):
    root = msmt17_released(tmp_path / "msmt")
    (root / "test/0003/0003_001_05_0113noon_0001_1.jpg").unlink()
    with pytest.raises(
        HapError, match=r"list_query.txt names 1 missing images\s+line 1: test/0003/0003_001_05"
    ):
        read_msmt17(root)
    (root / "list_val.txt").write_text("\n0012/0012_050.jpg 12\n")
    with pytest.raises(HapError, match=r"list_val.txt, line 2"):
        read_msmt17(root)
    (root / "list_val.txt").unlink()
    with pytest.raises(HapError, match=r"list not found: .*list_val.txt"):
        read_msmt17(root)


def test_people_table(tmp_path):
    touch(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg")
    (tmp_path / "people.csv").write_text(
        "path,identity,camera,split\nb/1.jpg,Zoë,door,train\na/1.jpg,anna,roof,train\n"
        "b/2.jpg,eve,door,gallery\na/2.jpg,eve,,query\n",
        encoding="utf-8",
    )
    splits = read_people(tmp_path)
    assert [(r.name, r.person, r.identity) for r in splits["train"]] == [
        ("a/1.jpg", "anna", 1),
        ("b/1.jpg", "Zoë", 0),
    ]
    query, gallery = splits["test"]
    assert query.is_query
    assert not gallery.is_query
    assert query.identity == gallery.identity == 0
    assert splits["train"][1].camera == gallery.camera != query.camera  # "door"


def test_people_table_names_every_bad_line(tmp_path):
    touch(tmp_path, "a.jpg")
    rows = [
        "a.jpg,anna,train",
        "a.jpg,anna,train",
        "b.jpg,anna,train",
        "a.jpg,,query",
        "a.jpg,x,test",
        "a.jpg,x,query,1",
    ]
    (tmp_path / "people.csv").write_text("\n".join(["path,identity,split", *rows]))
    with pytest.raises(HapError) as error:
        read_people(tmp_path)
    for problem in (
        "5 mistakes",
        "line 3: the same image as line 2",
        "line 4: image not found: 'b.jpg'",
        "line 5: no identity",
        "line 6: split 'test'",
        "line 7: more fields",
    ):
        assert problem in str(error.value)
    (tmp_path / "people.csv").write_text("file,identity,split\n")
    with pytest.raises(HapError, match="no column path; the first line has file, identity, split"):
        read_people(tmp_path)


def test_people_folders_without_cameras(tmp_path):
    with pytest.raises(HapError, match=r"neither people.csv .* nor folders"):
        read_people(tmp_path)
    touch(
        tmp_path,
        "train/anna/1.jpg",
        "train/bob/1.jpg",
        "query/eve/1.jpg",
        "gallery/eve/1.jpg",
        "gallery/zoe/1.jpg",
    )
    splits = read_people(tmp_path)
    assert [r.identity for r in splits["train"]] == [0, 1]
    assert [(r.person, r.is_query) for r in splits["test"]] == [("eve", True), ("eve", False), ("zoe", False)]
    assert len({r.camera for r in splits["test"]}) == 3  # no image is left out for its camera


def test_corrupt_image_is_replaced_and_named(tmp_path):
    root = touch(tmp_path, *MARKET)
    (root / MARKET[0]).write_bytes((root / MARKET[0]).read_bytes()[:-20])
    dataset = Dataset(read_market1501(root)["train"], ReidEval((32, 16)))
    sample = dataset[0, 1]
    assert (sample["bad"], sample["index"], sample["identity"]) == (
        1,
        0,
        0,
    )  # with the identity of what it shows
    assert str(dataset.problem(1)) == "the image file is truncated"


# ---- P x K


def people(*counts: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(identity=i) for i, n in enumerate(counts) for _ in range(n)]


def check_rows(rows: np.ndarray, records: list, size: int) -> None:
    identity = np.array([r.identity for r in records])[rows].reshape(len(rows), -1, size)  # (steps, P, K)
    assert (identity == identity[:, :, :1]).all()
    assert all(len(set(row)) == identity.shape[1] for row in identity[:, :, 0])


def test_one_pass_is_the_official_sampler():
    records = people(3, 8, 9, 17)
    plan = IdentityPlan(records, total=8, seed=0, images_per_identity=4)
    assert (plan.chunks.tolist(), plan.steps, plan.schedule_steps) == (
        [1, 2, 2, 4],
        4,
        5,
    )  # claimed length 36
    lengths = Counter()
    for draw in range(4000):
        rows = np.stack(plan.one_pass(np.random.default_rng(draw)))
        lengths[len(rows)] += 1
        check_rows(rows, records, 4)
        uses = Counter(rows.ravel().tolist())
        assert max(uses[i] for i in range(3, 37)) == 1  # images of people with 4 or more, once
        from_first = sum(uses[i] for i in range(3))
        assert from_first in (0, 4)  # at most one chunk, drawn with replacement from 3 images
    assert set(lengths) == {3, 4}
    assert lengths[3] / 4000 == pytest.approx(17 / 54, abs=0.025)  # 3.4 standard deviations


def test_epochs_have_one_length_and_depend_on_nothing_but_seed_and_epoch():
    counts = np.random.default_rng(0).integers(2, 60, 97)
    records = people(*counts)
    plan = IdentityPlan(records, total=64, seed=5)
    claimed = sum(max(n, 8) - max(n, 8) % 8 for n in counts)
    assert plan.steps == claimed // 64
    assert plan.schedule_steps == math.ceil(claimed / 64)
    np.random.seed(1)
    first = plan(3)
    np.random.seed(2)
    assert first.shape == (plan.steps, 64)
    assert np.array_equal(first, IdentityPlan(records, 64, seed=5)(3))
    assert not np.array_equal(first, plan(4))
    assert not np.array_equal(first, IdentityPlan(records, 64, seed=6)(3))
    for epoch in range(5):
        check_rows(plan(epoch), records, 8)
        passed = plan.one_pass(np.random.default_rng((5, epoch)))
        assert len(passed) <= plan.steps
        assert np.array_equal(plan(epoch)[: len(passed)], passed)


def test_ranks_share_a_plan_by_whole_identities():
    records = people(*[9] * 12)
    plan = IdentityPlan(records, total=16, seed=0, images_per_identity=4)
    parts = []
    for rank in range(2):
        batches = TrainBatches(plan, BatchPlan(total=16, micro=8, world=2), rank)
        assert len(batches) == plan.steps
        mine = np.array([[index for _, index in keys] for keys in batches])
        check_rows(mine, records, 4)
        parts.append(mine)
    assert np.array_equal(np.concatenate(parts, axis=1), plan(0))


@pytest.mark.parametrize("total", [60, 8, 104])
def test_batches_that_cannot_be_made(total):
    with pytest.raises(HapError, match=f"total_batch_size={total} .* 12 identities"):
        IdentityPlan(people(*[9] * 12), total, seed=0)


def test_loader_of_a_one_image_identity(tmp_path):
    root = touch(tmp_path, *(f"train/{p}/{i}.jpg" for p, n in (("a", 1), ("b", 5)) for i in range(n)))
    touch(root, "query/c/0.jpg", "gallery/c/0.jpg")
    data = DataModule(
        str(root),
        read_people,
        {"train": ReidTrain((64, 32)), "val": ReidEval((64, 32))},
        num_workers=0,
        plan=lambda records, total, seed: IdentityPlan(records, total, seed, images_per_identity=4),
    )
    data.batch_plan = BatchPlan(total=8, micro=8)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (8, 3, 64, 32)
    assert sorted(batch["identity"].tolist()) == [0] * 4 + [1] * 4
    assert batch["index"].tolist().count(0) == 4
    test = next(iter(data.val_dataloader()))
    assert test["image"].dtype == torch.uint8
    assert test["is_query"].tolist() == [True, False]


# ---- transforms


def normalised(image: torch.Tensor) -> np.ndarray:
    return (image.numpy().transpose(1, 2, 0) - PIXEL_MEAN) / PIXEL_STD  # (H, W, 3)


def test_eval_is_pillow_bicubic():
    image = np.random.default_rng(0).integers(0, 256, (128, 64, 3), dtype=np.uint8)
    out = ReidEval((256, 128))(
        image, {"identity": 4, "camera": 2, "is_query": True}, np.random.default_rng(0)
    )
    expected = (
        np.asarray(Image.fromarray(image).resize((128, 256), Image.Resampling.BICUBIC), np.float64) / 255
    )
    expected = (expected - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    assert np.abs(normalised(out.pop("image")) - expected).max() < 1e-5
    assert out == {"identity": 4, "camera": 2, "is_query": True}


def test_border_and_offsets():
    white = np.full((32, 16, 3), 255, np.uint8)
    transform = ReidTrain((64, 32), erase_prob=0.0)
    offsets = []
    for i in range(2000):
        image = normalised(transform(white, {}, np.random.default_rng(i))["image"])
        inside = image[:, :, 0] > 0
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        top, bottom, left, right = rows[0], 63 - rows[-1], columns[0], 31 - columns[-1]
        assert inside.sum() == (64 - top - bottom) * (32 - left - right)
        assert min(top, bottom) == min(left, right) == 0
        offsets.append((10 - top + bottom, 10 - left + right))
        if i == 0:
            assert np.allclose(image[inside], (2.2489, 2.4286, 2.6400), atol=1e-4)
        if i < 10:
            assert np.allclose(image[~inside], (-2.1179, -2.0357, -1.8044), atol=1e-4)
    for axis in np.array(offsets).T:  # uniform on 0..20: 95 of each, standard deviation 9.5
        counts = np.bincount(axis, minlength=21)
        assert len(counts) == 21
        assert np.abs(counts - 2000 / 21).max() < 40


def test_half_of_the_images_are_flipped():
    image = np.zeros((128, 64, 3), np.uint8)
    image[:, :32] = 255
    transform = ReidTrain((128, 64), erase_prob=0.0)
    flipped = [
        bool(transform(image, {}, np.random.default_rng(i))["image"][:, :, 50].float().mean() > 128)
        for i in range(500)
    ]
    assert np.mean(flipped) == pytest.approx(0.5, abs=0.09)


@pytest.mark.parametrize(("size", "share"), [((256, 128), 0.165), ((384, 128), 0.156)])
def test_erased_area(size, share):
    areas = []
    levels = np.zeros((*size, 3), np.int16)
    for i in range(8_000):  # standard deviation of an area 0.09, of the mean 0.001
        rng = np.random.default_rng(i)
        erase(
            levels,
            SimpleNamespace(
                uniform=rng.uniform,
                integers=rng.integers,
                standard_normal=lambda shape, dtype: areas.append(shape[0] * shape[1]) or dtype(0),
            ),
        )
    areas = np.array(areas) / (size[0] * size[1])
    assert areas.mean() == pytest.approx(share, abs=0.003)
    assert 0.019 < areas.min() < areas.max() < 0.338


def test_erased_pixels_are_standard_normal():
    noise = []
    for i in range(200):
        levels = np.full((256, 128, 3), 3000, np.int16)
        erase(levels, np.random.default_rng(i))
        noise.append((levels[levels[:, :, 0] != 3000] - PIXEL_MEAN) / PIXEL_STD)
    noise = np.concatenate(noise)  # (pixels, 3)
    assert np.abs(noise.mean(0)).max() < 0.02
    assert np.abs(noise.std(0) - 1).max() < 0.02
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.02
    assert noise.min() < -3.5  # beyond what a byte could hold
    assert noise.max() > 3.5


def test_erasing_is_applied_to_half():
    transform = ReidTrain((64, 32))
    image = np.full((64, 32, 3), 128, np.uint8)
    draws = [transform(image, {}, np.random.default_rng(i))["image"] for i in range(1000)]
    erased = [bool(((x != 128) & (x != 0)).any()) for x in draws]
    assert np.mean(erased) == pytest.approx(0.5, abs=0.06)
    assert torch.equal(draws[7], transform(image, {}, np.random.default_rng(7))["image"])
