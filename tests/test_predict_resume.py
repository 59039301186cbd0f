"""A prediction that was stopped goes on; what is not the same prediction is refused; memory stays flat."""

import json
import logging
import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import TINY_PRETRAIN, config
from lightning.pytorch.utilities.exceptions import SIGTERMException

import hap.progress
import hap.spool
from hap.callbacks import Predictions
from hap.data.boxes import Boxes
from hap.data.samplers import EvalBatches
from hap.errors import HapError
from hap.runner import run
from hap.spool import Spool, begun
from hap.tasks.base import Task
from hap.tasks.pretrain import Pretrain

NUM_IMAGES = 11


def row(*index: int) -> dict[str, torch.Tensor]:
    """Values that tell which index they are of."""
    places = torch.tensor(index)
    return {"index": places, "value": places[:, None] * torch.tensor([1.0, 10.0])}


# Files --------------------------------------------------------------------------------------------------------


def test_rows_of_several_ranks_come_in_the_order_of_the_records(tmp_path, monkeypatch):
    monkeypatch.setattr(hap.spool, "SECONDS", 0)
    files = begun(tmp_path, {"weights": "a"})
    spools = [Spool(tmp_path, rank, files) for rank in range(2)]
    spools[0].add(row(4, 0))
    spools[1].add(row(1, -1))
    spools[0].add(row(2))
    spools[1].add(row(4))  # repeated, as ranks that come out short do
    index, rows = spools[0].rows([*spools[0].files, *spools[1].files])
    assert index.tolist() == [0, 1, 2, 4]
    assert rows["value"].tolist() == [[0, 0], [1, 10], [2, 20], [4, 40]]
    assert set(rows) == {"value"}

    # One process goes on from two.
    again = Spool(tmp_path, 0, begun(tmp_path, {"weights": "a"}))
    assert again.done.tolist() == [0, 1, 2, 4]
    again.add(row(3))
    assert again.rows(again.files)[0].tolist() == [0, 1, 2, 3, 4]


def test_memory_holds_no_more_than_what_was_not_written_yet(tmp_path, monkeypatch):
    spool = Spool(tmp_path)
    tokens = torch.zeros(4, 1000, 8, dtype=torch.bfloat16)
    spool.add({"feature": tokens[:, 0], "index": torch.arange(4)})
    # A part of a larger tensor does not keep all of it.
    assert spool._waiting[0]["feature"].untyped_storage().nbytes() == 4 * 8 * 2
    monkeypatch.setattr(hap.spool, "SECONDS", 0)
    spool.add({"feature": tokens[:, 1], "index": torch.arange(4, 8)})
    assert not spool._waiting
    _, rows = spool.rows(spool.files)
    assert rows["feature"].dtype == torch.bfloat16
    assert rows["feature"].untyped_storage().filename == str(tmp_path / "feature.bin")  # mapped, not read


def test_a_damaged_file_is_left_out_and_no_other_is_written_over(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(hap.spool, "SECONDS", 0)
    spool = Spool(tmp_path, 0, begun(tmp_path, {}))
    for index in range(3):
        spool.add(row(index))
    (tmp_path / spool.files[1]).write_bytes(b"x" * 40)
    (tmp_path / ".rows_000009_rank0.safetensors.tmp").write_bytes(b"x")  # of a process that was killed
    again = Spool(tmp_path, 0, begun(tmp_path, {}))
    assert again.done.tolist() == [0, 2]
    assert f"{tmp_path / spool.files[1]} is damaged" in caplog.text
    again.add(row(1))
    assert again.rows(again.files)[0].tolist() == [0, 1, 2]


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    spool = Spool(tmp_path)
    spool.add(row(0))

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        HapError, match=rf"cannot write to the run folder {tmp_path}: No space left on device"
    ):
        spool.flush()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("done", [[], [0, 1, 2], [1, 3, 5, 7, 9], list(range(9)), list(range(10))])
def test_what_is_done_is_not_dealt(world, done):
    ranks = [list(EvalBatches(10, 2, rank, world, np.array(done, int))) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1  # as many steps for all
    dealt = {index for batches in ranks for batch in batches for _, index in batch}
    assert dealt == (set(range(10)) - set(done) or {9})


# The whole way ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(luperson, tmp_path_factory) -> list[Path]:
    """Of two seeds."""
    paths = []
    for seed in range(2):
        folder = tmp_path_factory.mktemp("trained") / "run"
        overrides = [
            "experiment=pretrain_hap",
            *TINY_PRETRAIN,
            f"data.root={luperson}",
            "epochs=1",
            f"seed={seed}",
        ]
        run("train", config("train", *overrides, "callbacks.pictures=null"), folder)
        paths.append(folder / "checkpoints/last.ckpt")
    return paths


@pytest.fixture
def crops(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("crops").mkdir()
    rng = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        cv2.imwrite(f"crops/{number:02d}.png", rng.integers(0, 256, (64, 32, 3), np.uint8))
    return tmp_path


def predict(checkpoint: Path, folder: str, *more: str, quiet: bool = True) -> tuple[list[str], np.ndarray]:
    tiny = [option for option in TINY_PRETRAIN if quiet or "progress" not in option]
    options = ["experiment=pretrain_hap", *tiny, f"ckpt_path={checkpoint}", "data.eval_batch_size=2"]
    given = [] if any(option.startswith("input=") for option in more) else ["input=crops"]
    run("predict", config("predict", *options, *given, *more), Path(folder))
    with np.load(f"{folder}/predictions.npz") as file:
        return file["names"].tolist(), file["feature"]


@pytest.fixture
def stop_after(monkeypatch):
    """stop_after(batches, how): what `how` does happens instead of the next one. Returns the indices that were
    computed."""
    original = Pretrain.predict_step

    def install(batches: int, how=None) -> list[int]:
        computed: list[int] = []

        def step(task: Task, batch: dict, batch_idx: int) -> dict:
            if batch_idx == batches and how is not None:
                how()
            computed.extend(batch["index"].tolist())
            return original(task, batch, batch_idx)

        monkeypatch.setattr(Pretrain, "predict_step", step)
        return computed

    return install


def fail() -> None:
    raise ValueError("stopped")


def test_goes_on_where_it_was_stopped(crops, checkpoints, stop_after):
    names, features = predict(checkpoints[0], "whole")
    assert not Path("whole/spool").exists()
    stop_after(3, fail)
    with pytest.raises(ValueError, match="stopped"):
        predict(checkpoints[0], "run")
    computed = stop_after(0)
    resumed, values = predict(checkpoints[0], "run", "resume=auto", "data.eval_batch_size=3")
    assert computed == [6, 7, 8, 9, 10]
    assert resumed == names == [f"crops/{number:02d}.png" for number in range(NUM_IMAGES)]
    assert np.abs(values - features).max() < 1e-6
    assert not Path("run/spool").exists()
    assert Path("run/results.json").exists()


def test_killed_between_two_files(crops, checkpoints, stop_after, monkeypatch):
    """Nothing is left but what was written."""
    _, features = predict(checkpoints[0], "whole")
    monkeypatch.setattr(hap.spool, "SECONDS", 0)
    stop_after(2, fail)
    with monkeypatch.context() as killed:
        killed.setattr(Predictions, "on_exception", lambda *_: None)
        with pytest.raises(ValueError, match="stopped"):
            predict(checkpoints[0], "run")
    computed = stop_after(0)
    _, values = predict(checkpoints[0], "run", "resume=auto")
    assert computed == list(range(4, NUM_IMAGES))
    assert np.abs(values - features).max() < 1e-6


def test_sigterm_keeps_what_is_there(crops, checkpoints, stop_after):
    stop_after(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SIGTERMException):
        predict(checkpoints[0], "run")
    computed = stop_after(0)
    predict(checkpoints[0], "run", "resume=auto")
    assert computed == list(range(4, NUM_IMAGES))


def test_results_that_could_not_be_written_are_written_again(crops, checkpoints, stop_after, monkeypatch):
    with monkeypatch.context() as full:
        full.setattr(Pretrain, "write_predictions", lambda *_: fail())
        with pytest.raises(ValueError, match="stopped"):
            predict(checkpoints[0], "run")
    computed = stop_after(0)
    names, features = predict(checkpoints[0], "run", "resume=auto")
    assert computed == [NUM_IMAGES - 1]  # one, for the loop to run
    assert len(names) == len(features) == NUM_IMAGES


def test_images_that_could_not_be_read_are_tried_again(crops, checkpoints, stop_after):
    content = Path("crops/01.png").read_bytes()
    Path("crops/01.png").write_bytes(content[:50])
    Path("crops/03.png").write_bytes(content[:50])
    stop_after(3, fail)
    with pytest.raises(ValueError, match="stopped"):
        predict(checkpoints[0], "run")
    Path("crops/01.png").write_bytes(content)
    computed = stop_after(0)
    names, _ = predict(checkpoints[0], "run", "resume=auto")
    assert computed == [1, -1, *range(6, NUM_IMAGES)]
    assert names == [f"crops/{number:02d}.png" for number in range(NUM_IMAGES) if number != 3]
    assert Path("run/bad_samples_predict_rank0.txt").read_text().splitlines() == [
        "crops/03.png: the image file is truncated"
    ]


def test_another_prediction_is_refused(crops, checkpoints, stop_after):
    Path("boxes.csv").write_text("image,x,y,w,h\n00.png,0,0,30,60\n01.png,1,1,30,60\n02.png,0,0,9,9\n")
    for folder, more in (("run", ()), ("boxed", ("boxes=boxes.csv",))):
        stop_after(1, fail)
        with pytest.raises(ValueError, match="stopped"):
            predict(checkpoints[0], folder, *more)
    stop_after(0)

    def refused(checkpoint: Path, folder: str, *more: str) -> str:
        with pytest.raises(
            HapError, match=f"this is not the prediction that was begun in {folder}:\n"
        ) as error:
            predict(checkpoint, folder, "resume=auto", *more)
        return str(error.value)

    message = refused(checkpoints[1], "run")
    before = json.loads(Path("run/spool/origin.json").read_text())["weights"]
    assert f", before {before}\ngo on with the same input, checkpoint and settings, or choose" in message
    assert message.splitlines()[1].startswith("  weights: ")
    assert "  images: 1, before 11" in refused(checkpoints[0], "run", "input=crops/00.png")
    assert "  precision: bf16-mixed, before 32-true" in refused(
        checkpoints[0], "run", "trainer.precision=bf16-mixed"
    )
    assert "  boxes: None, before " in refused(checkpoints[0], "boxed")
    Path("boxes.csv").write_text("image,x,y,w,h\n00.png,0,0,30,60\n01.png,1,1,30,60\n02.png,0,0,9,8\n")
    assert "  boxes: " in refused(checkpoints[0], "boxed", "boxes=boxes.csv")
    with pytest.raises(HapError, match="holds a run already"):
        predict(checkpoints[0], "run")


def test_progress_counts_people_and_images(crops, checkpoints, stop_after, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "hap")
    monkeypatch.setattr(hap.progress, "SECONDS", 0)
    lines = [f"{n % 4:02d}.png,0,0,30,{20 + n}" for n in range(8)]
    Path("boxes.csv").write_text("\n".join(["image,x,y,w,h", *lines]))
    stop_after(2, fail)
    with pytest.raises(ValueError, match="stopped"):
        predict(checkpoints[0], "run", "boxes=boxes.csv", quiet=False)
    stop_after(0)
    caplog.clear()
    predict(checkpoints[0], "run", "resume=auto", "boxes=boxes.csv", quiet=False)
    assert "4 of the predictions are there already" in caplog.text
    found = [message for message in caplog.messages if message.startswith("prediction: ")]
    assert found[0].startswith("prediction: 6 of 8, ")
    assert found[-1].startswith("prediction: 4 people in 0:00:0")
    people, images = (float(part.split()[0]) for part in found[-1].split(", ")[-2:])
    assert found[-1].endswith(" images/s")
    assert people == pytest.approx(2 * images, rel=1e-3)


def test_boxes_count_their_images():
    assert Boxes([], [], [3, 3, 0]).num_images == 2
