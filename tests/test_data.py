"""Batches, order, bad samples, transforms."""

import os
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from hap.data.base import BadSample, BadSampleLog, Dataset, Loader, default_workers
from hap.data.decoding import decode_image
from hap.data.pretrain import read_luperson
from hap.data.samplers import BatchPlan, EvalBatches, TrainBatches, permutation
from hap.data.transforms import PretrainTransform
from hap.errors import HapError
from hap.models.masking import BlockParts

RECORDS = list(range(103))


def epoch_batches(batches: TrainBatches) -> list[list[tuple[int, int]]]:
    batches.next_pass()
    result = []
    for batch in batches:
        batches.advance()
        result.append(batch)
    return result


@pytest.mark.parametrize(("world", "micro"), [(1, 16), (1, 4), (2, 8), (2, 2), (4, 4)])
def test_steps_are_the_same_images_for_any_ranks_and_micro_batches(world, micro):
    plan = permutation(RECORDS, 16, seed=5)
    batch = BatchPlan.divide(16, micro, world)
    ranks = [epoch_batches(TrainBatches(plan, batch, rank)) for rank in range(world)]
    flat = [[key for rank in ranks for part in rank[s : s + batch.accumulate] for key in part]
            for s in range(0, len(ranks[0]), batch.accumulate)]  # fmt: skip
    assert [sorted(i for _, i in step) for step in flat] == np.sort(plan(0)).tolist()
    seen = [i for step in flat for _, i in step]
    assert len(seen) == len(set(seen)) == 96  # each once; 103 - 96 are left out


def test_epochs_differ_and_are_numbered():
    batches = TrainBatches(permutation(RECORDS, 8, seed=0), BatchPlan.divide(8, None, 1))
    first, second = epoch_batches(batches), epoch_batches(batches)
    assert {e for b in first for e, _ in b} == {0}
    assert {e for b in second for e, _ in b} == {1}
    assert [i for b in first for _, i in b] != [i for b in second for _, i in b]


def test_position_survives_other_ranks_and_workers():
    plan = permutation(RECORDS, 8, seed=0)
    two = TrainBatches(plan, BatchPlan.divide(8, 4, 2), rank=0)
    two.next_pass()
    iterator = iter(two)
    for _ in range(5):
        next(iterator)
        two.advance()
    one = TrainBatches(plan, BatchPlan.divide(8, 4, 1))
    one.load_state_dict(two.state_dict())
    rest = [i for batch in epoch_batches(one) for _, i in batch]
    assert rest == plan(0)[5:].ravel().tolist()
    assert {e for batch in epoch_batches(one) for e, _ in batch} == {1}


def test_another_total_batch_cannot_be_resumed():
    state = TrainBatches(permutation(RECORDS, 8, 0), BatchPlan.divide(8, None, 1)).state_dict()
    other = TrainBatches(permutation(RECORDS, 16, 0), BatchPlan.divide(16, None, 1))
    with pytest.raises(HapError, match="total batch size: 16"):
        other.load_state_dict(state)


@pytest.mark.parametrize(("total", "micro", "world"), [(10, 4, 1), (10, None, 4), (4, None, 8)])
def test_indivisible_batches_are_refused(total, micro, world):
    if micro is None and total % world == 0:
        pytest.skip("divisible")
    with pytest.raises(HapError, match="not a multiple"):
        BatchPlan.divide(total, micro, world)


@pytest.mark.parametrize(("size", "world"), [(10, 1), (10, 3), (2, 4)])
def test_evaluation_covers_everything_with_equal_steps(size, world):
    ranks = [list(EvalBatches(size, 2, rank, world)) for rank in range(world)]
    assert len({len(r) for r in ranks}) == 1
    assert {i for r in ranks for batch in r for _, i in batch} == set(range(size))


def transform(scale=(0.8, 1.0)):
    return PretrainTransform((256, 128), 16, BlockParts(16), 0.5, scale=scale)


def test_sample_is_a_function_of_seed_epoch_and_index(luperson):
    records = read_luperson(luperson)["train"]
    a, b, other = (Dataset(records, transform(), seed) for seed in (0, 0, 1))
    for name, value in a[3, 7].items():
        torch.testing.assert_close(value, b[3, 7][name], rtol=0, atol=0)
    assert not torch.equal(a[3, 7]["image"], a[4, 7]["image"])
    assert not torch.equal(a[3, 7]["image"], other[3, 7]["image"])
    scores = a[3, 7]["scores"]
    assert not torch.equal(scores[0], scores[1])  # two views, two masks


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_do_not_change_samples(luperson, workers):
    dataset = Dataset(read_luperson(luperson)["train"], transform())
    batches = TrainBatches(permutation(dataset.records, 8, 0), BatchPlan.divide(8, None, 1))
    loader = Loader(dataset, batches, BadSampleLog(dataset, None, 0.1), num_workers=workers)
    for batch in list(loader)[:2]:
        for i, index in enumerate(batch["index"].tolist()):
            assert torch.equal(batch["image"][i], dataset[0, index]["image"])


def test_keypoints_follow_the_crop_and_the_flip():
    """A dot drawn at each keypoint is found where the transform says it is."""
    rng = np.random.default_rng(0)
    found = flipped = 0
    for _ in range(40):
        image = np.zeros((200, 90, 3), np.uint8)
        keypoints = np.zeros((17, 3), np.float32)
        keypoints[0] = (rng.integers(8, 82), rng.integers(8, 192), 1)
        keypoints[1] = (-5, 20, 1)  # outside the image
        cv2.circle(image, keypoints[0, :2].astype(int).tolist(), 3, (255, 255, 255), -1)
        sample = transform()(image, {"keypoints": keypoints}, rng)
        x, y, present = sample["keypoints"][0].tolist()
        assert sample["keypoints"][1, 2] == 0
        if present:
            weight = sample["image"].float().sum(0)
            rows, columns = torch.arange(256.0)[:, None], torch.arange(128.0)
            assert abs((weight * columns).sum() / weight.sum() - x) < 2
            assert abs((weight * rows).sum() / weight.sum() - y) < 2
            found += 1
            flipped += abs(x - keypoints[0, 0] * 128 / 90) > 20
    assert found > 25
    assert flipped > 5


def test_validation_transform_keeps_the_whole_image():
    image = np.random.default_rng(0).integers(0, 255, (300, 100, 3), np.uint8)
    keypoints = np.full((17, 3), (99.0, 299.0, 1.0), np.float32)
    sample = transform(scale=None)(image, {"keypoints": keypoints}, np.random.default_rng(0))
    assert sample["image"].shape == (3, 256, 128)
    assert sample["image"].dtype == torch.uint8
    torch.testing.assert_close(
        sample["keypoints"][0], torch.tensor([99 * 1.28, 299 * 256 / 300, 1]), atol=1, rtol=0
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: b"", "empty"),
        (lambda data: b"not an image at all", "not an image"),
    ],
)
def test_undecodable_images_are_named(damage, message):
    data = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (64, 32, 3), np.uint8))[1].tobytes()
    assert decode_image(data).shape == (64, 32, 3)
    with pytest.raises(BadSample, match=message):
        decode_image(damage(data))


def test_truncated_png_is_noticed():
    data = cv2.imencode(".png", np.zeros((64, 32, 3), np.uint8))[1].tobytes()
    with pytest.raises(BadSample, match="truncated"):
        decode_image(data[:-20])


@pytest.fixture
def damaged(tmp_path):
    """100 people, three of them unusable."""
    from hap.synthetic.datasets import synthesize

    root = synthesize("luperson", tmp_path / "people", num_images=100)
    images = sorted(root.rglob("*.jpg"))
    images[3].write_bytes(images[3].read_bytes()[:200])
    images[30].write_bytes(b"")
    images[60].write_text("hello")
    return root


def test_bad_samples_are_replaced_counted_and_named(damaged, tmp_path):
    dataset = Dataset(read_luperson(damaged, num_val=0)["train"], transform())
    batches = TrainBatches(permutation(dataset.records, 10, 0), BatchPlan.divide(10, None, 1))
    report = BadSampleLog(dataset, tmp_path / "bad.txt", max_fraction=0.05)
    loader = Loader(dataset, batches, report, num_workers=2)
    for _ in range(2):  # the second epoch names nobody twice
        assert sum(len(batch["index"]) for batch in loader) == 100
    lines = (tmp_path / "bad.txt").read_text().splitlines()
    assert len(lines) == 3
    assert sum("truncated" in line for line in lines) == 1


def test_too_many_bad_samples_stop_the_run_and_are_listed(damaged):
    dataset = Dataset(read_luperson(damaged, num_val=0)["train"], transform())
    batches = TrainBatches(permutation(dataset.records, 10, 0), BatchPlan.divide(10, None, 1))
    loader = Loader(dataset, batches, BadSampleLog(dataset, None, max_fraction=0.01))
    with pytest.raises(
        HapError, match=r"2 samples cannot be used, above data.max_bad_fraction=0.01(.|\n)*\.jpg"
    ):
        list(loader)


@pytest.mark.parametrize(
    ("cores", "slurm", "devices", "workers"),
    [
        (16, None, 1, 15),
        (16, None, 4, 3),
        (64, None, 1, 16),
        (12, "12", 8, 11),
        (96, "12", 8, 11),
        (1, None, 1, 1),
    ],
)
def test_workers_share_the_cores_of_the_node_or_have_those_of_their_task(
    monkeypatch, cores, slurm, devices, workers
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    if slurm:
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", slurm)
    assert default_workers(SimpleNamespace(num_devices=devices)) == workers
