"""Runs continued as another run, from damaged or abandoned checkpoints, or in a folder that is in use or full."""

import json
import multiprocessing
import os
import resource
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_PRETRAIN, config

from hap.building import build
from hap.checkpointing import CheckpointFiles, checkpoints_in, is_intact, newest_intact, read_checkpoint
from hap.data.base import DataModule
from hap.data.samplers import fingerprint
from hap.errors import HapError
from hap.packing import pack
from hap.plots import write_picture
from hap.run_folder import hold, make_folder, write_json
from hap.runner import run

REID = (
    "experiment=reid_market1501",
    "img_size=[64,32]",
    "model=vit_tiny",
    "trainer=cpu",
    "data.num_workers=0",
    "total_batch_size=16",
)


def options(root: Path, *more: str) -> list[str]:
    return [
        "experiment=pretrain_hap",
        *TINY_PRETRAIN,
        f"data.root={root}",
        "callbacks.pictures=null",
        "callbacks.checkpoint.keep=null",
        "callbacks.checkpoint.every_n_steps=4",
        "trainer.limit_val_batches=0",
        *more,
    ]


def train(folder: Path, root: Path, *more: str) -> dict[str, float]:
    return run("train", config("train", *options(root, *more)), folder)


@pytest.fixture(scope="module")
def finished(luperson, tmp_path_factory) -> Path:
    """A run of 22 steps with checkpoints after 4, 8, 11, 12, 16, 20 and 22."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(folder, luperson)
    return folder


@pytest.fixture
def again(finished, tmp_path) -> Path:
    """A copy of that run, to go on with."""
    return shutil.copytree(finished, tmp_path / "run", symlinks=True)


def steps(folder: Path) -> list[int]:
    return [int(path.stem[5:]) for path in reversed(checkpoints_in(folder / "checkpoints"))]


def flip_a_bit_of_a_weight(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        entry = max((e for e in file.infolist() if "/data/" in e.filename), key=lambda e: e.file_size)
    name, extra = struct.unpack("<HH", whole[entry.header_offset + 26 : entry.header_offset + 30])
    whole[entry.header_offset + 30 + name + extra + 3] ^= 0x40
    path.write_bytes(whole)


# A resumed run is the same run.


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("data.reader.cfs_ratio=0.8", "images: 76, the checkpoint's run had 95"),
        ("+data.reader.split_seed=1", "names of images: "),
        ("seed=7", "seed: 7, the checkpoint's run had 0"),
        ("total_batch_size=16", "total batch size: 16, the checkpoint's run had 8"),
        ("model.embed_dim=48", "model.embed_dim: 48 here, 32 in the checkpoint"),
        (
            "model.num_heads=2",
            "model.num_heads: 2 here, 4 in the checkpoint",
        ),  # of weights of the same shapes
        ("img_size=[64,48]", r"img_size: \[64, 48\] here, \[64, 32\] in the checkpoint"),
        ("task.recipe.weight_decay=0", "weight_decay cannot become or leave 0"),
    ],
)
def test_another_run_is_not_resumed(again, luperson, change, named):
    records = sorted(again.glob("config*.yaml"))
    with pytest.raises(HapError, match=named):
        train(again, luperson, "resume=auto", "epochs=4", change)
    assert sorted(again.glob("config*.yaml")) == records  # refused before anything was written
    assert steps(again) == [4, 8, 11, 12, 16, 20, 22]


@pytest.mark.parametrize(
    ("change", "lr"), [("epochs=2", None), ("epochs=4", 4.43e-6), ("task.recipe.base_lr=3e-4", 5.35e-6)]
)
def test_a_learning_rate_that_jumps_is_said(again, luperson, change, lr, caplog):
    """Another length or peak of the recipe is allowed, but seldom meant."""
    path = again / "checkpoints/step-000000016.ckpt"  # 5 / 11 of the cosine from 4.69e-6, or 5 / 33
    train(again, luperson, "resume=auto", f"ckpt_path={path}", "trainer.max_steps=17", change)
    said = [line for line in caplog.messages if "the learning rate goes on" in line]
    assert [f"goes on at {lr:.3g}, not at 2.68e-06 as" in line for line in said] == [True] * (lr is not None)


def test_every_difference_is_named_at_once(again, luperson):
    with pytest.raises(HapError, match="weights=") as error:
        train(again, luperson, "resume=auto", "seed=7", "data.reader.cfs_ratio=0.5")
    lines = str(error.value).splitlines()[1:-1]
    assert {line.split(":")[0].strip() for line in lines} == {
        "images",
        "names of images",
        "seed",
        "steps per epoch",
        "steps per epoch of the schedule",
        "order of images",
    }


def test_a_person_more_is_another_run(drawn):
    """Classes are numbers in the order of the names: another person in front renumbers all."""
    root = drawn("market1501", 60)

    def of(records: list) -> dict:
        return fingerprint(records)

    module: DataModule = build(config("train", *REID, f"data.root={root}").data, "data")
    records = list(module.records("train"))
    renumbered = [
        type(r)(r.root, r.name, r.person, (r.identity + 1) % 5, r.camera, r.is_query) for r in records
    ]
    assert of(records) == of(records)
    assert of(records)["names_of_images"] == of(renumbered)["names_of_images"]
    assert of(records)["class_of_each_image"] != of(renumbered)["class_of_each_image"]


def test_shards_and_another_place_are_the_same_data(luperson, tmp_path):
    def of(root: Path) -> dict:
        return build(config("train", *options(root)).data, "data").fingerprint

    pack(luperson, tmp_path / "shards", num_workers=1)
    moved = shutil.copytree(luperson, tmp_path / "moved")
    assert of(luperson) == of(tmp_path / "shards") == of(moved)
    records = build(config("train", *options(luperson)).data, "data").records("train")
    assert list(records.names) == [record.name for record in records]


def test_a_checkpoint_of_an_earlier_release_resumes_with_a_warning(again, luperson, caplog):
    path = again / "checkpoints/step-000000012.ckpt"
    checkpoint = read_checkpoint(path)
    loader = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
    loader["total_batch_size"] = loader.pop("origin")["total_batch_size"]
    CheckpointFiles().save_checkpoint(checkpoint, path)
    results = train(again, luperson, "resume=auto", f"ckpt_path={path}", "trainer.max_steps=13")
    assert results["steps"] == 13
    assert "does not record its data" in caplog.text
    with pytest.raises(HapError, match="total batch size: 16"):
        train(again, luperson, "resume=auto", f"ckpt_path={path}", "total_batch_size=16")


def test_an_encoder_is_not_a_run(finished, luperson, tmp_path):
    checkpoint = read_checkpoint(finished / "checkpoints/last.ckpt")
    torch.save({"state_dict": checkpoint["state_dict"]}, tmp_path / "weights.ckpt")
    with pytest.raises(HapError, match="weights="):
        train(tmp_path / "run", luperson, f"ckpt_path={tmp_path}/weights.ckpt")


# Going back, and damage.


def test_going_back_leaves_the_new_branch_newest(again, luperson):
    back = again / "checkpoints/step-000000008.ckpt"
    keep = "callbacks.checkpoint.keep=3"
    train(again, luperson, "resume=auto", f"ckpt_path={back}", "callbacks.checkpoint.every_n_steps=1",
          "trainer.max_steps=10", keep)  # fmt: skip
    assert steps(again) == [8, 9, 10]
    abandoned = sorted(p.name for p in (again / "checkpoints").glob("*.abandoned"))
    assert abandoned == [f"step-{n:09d}.ckpt.abandoned" for n in (11, 12, 16, 20, 22)]
    assert (again / "checkpoints/last.ckpt").resolve().name == "step-000000010.ckpt"
    assert train(again, luperson, "resume=auto", "trainer.max_steps=12", keep)["steps"] == 12
    assert steps(again) == [10, 11, 12]


def test_going_back_without_a_new_step_leaves_a_link_to_where_it_went(again, luperson):
    back = again / "checkpoints/step-000000008.ckpt"
    for _ in range(2):  # the second time there are abandoned ones already
        with pytest.raises(HapError):
            train(again, luperson, "resume=auto", f"ckpt_path={back}", "task.recipe.base_lr=1e12")
        assert (again / "checkpoints/last.ckpt").resolve() == back
        shutil.copy(back, back.with_name("step-000000022.ckpt"))
    assert (back.parent / "step-000000022.ckpt.abandoned_2").exists()


def test_damaged_ones_do_not_count(again, luperson):
    folder = again / "checkpoints"
    for path in checkpoints_in(folder):
        if path.stem[-2:] not in ("16", "20", "22"):
            path.unlink()
    os.truncate(folder / "step-000000022.ckpt", 50_000)
    flip_a_bit_of_a_weight(folder / "step-000000016.ckpt")
    more = "callbacks.checkpoint.every_n_steps=1", "callbacks.checkpoint.keep=2"
    train(again, luperson, "resume=auto", "trainer.max_steps=21", *more)
    assert steps(again) == [20, 21]
    assert newest_intact(folder) == folder / "step-000000021.ckpt"


def test_all_damaged_stops_and_says_how_to_start_anew(again, luperson):
    folder = again / "checkpoints"
    for path in checkpoints_in(folder)[2:]:
        path.unlink()
    os.truncate(folder / "step-000000022.ckpt", 0)
    (folder / "step-000000020.ckpt").unlink()
    (folder / "step-000000020.ckpt").mkdir()
    with pytest.raises(
        HapError, match=r"all checkpoints in .* are damaged: .*22.ckpt, .*20.ckpt.*rm "
    ) as error:
        train(again, luperson, "resume=auto")
    assert str(folder) in str(error.value)


def test_a_dangling_link_does_not_matter(again, luperson):
    last = again / "checkpoints/last.ckpt"
    last.unlink()
    last.symlink_to("step-000000099.ckpt")
    (again / "checkpoints/step-2 (copy).ckpt").write_text("")  # not ours
    train(again, luperson, "resume=auto", "epochs=3", "trainer.max_steps=23")
    assert last.resolve().name == "step-000000023.ckpt"


def test_a_run_that_is_done_keeps_its_results(again, luperson, caplog):
    """As a job that is queued again after its end finds it."""
    file = again / "results.json"
    before = file.read_text()
    assert train(again, luperson, "resume=auto") == json.loads(before)
    assert file.read_text() == before
    assert "train/loss" in before
    file.write_text("")  # by a full disk
    assert train(again, luperson, "resume=auto") == {"steps": 22}
    assert f"hap eval ckpt_path={again}/checkpoints/last.ckpt" in caplog.text


@pytest.mark.parametrize("program", ["train", "eval", "predict"])
def test_a_flipped_bit_is_found_before_use(again, luperson, tmp_path, program):
    path = again / "checkpoints/step-000000022.ckpt"
    flip_a_bit_of_a_weight(path)
    assert not is_intact(path)
    more = [f"input={luperson}"] if program == "predict" else []
    with pytest.raises(HapError, match=r"step-000000022.ckpt is damaged"):
        run(program, config(program, *options(luperson, *more, f"ckpt_path={path}")), tmp_path / "out")


def test_other_files_are_told_from_damaged_ones(tmp_path):
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(HapError, match="is not a checkpoint of hap"):
        read_checkpoint(tmp_path / "text.ckpt")
    (tmp_path / "empty.ckpt").write_text("")
    with pytest.raises(HapError, match="is damaged"):
        read_checkpoint(tmp_path / "empty.ckpt")


# One run, one folder.


def _hold(folder: Path, has: multiprocessing.Event, leave: multiprocessing.Event) -> None:  # type: ignore[valid-type]
    with hold(folder, resume=True):
        has.set()
        leave.wait()


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path/run`."""
    context = multiprocessing.get_context("fork")
    has, leave = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "run", has, leave))
    process.start()
    assert has.wait(60)
    yield process
    process.kill()
    process.join()


@pytest.mark.parametrize("resume", ["resume=auto", "resume=null"])
def test_a_folder_in_use_is_refused_at_once(holder, luperson, tmp_path, resume):
    with pytest.raises(HapError, match=f"another run is using .*pid {holder.pid} on "):
        train(tmp_path / "run", luperson, resume)
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".lock"]


def test_the_lock_ends_with_its_process(holder, luperson, tmp_path):
    holder.kill()
    holder.join()
    train(tmp_path / "run", luperson, "resume=auto", "trainer.max_steps=1")


def test_a_dry_run_and_wrong_input_leave_no_record(luperson, tmp_path):
    train(tmp_path / "run", luperson, "dry_run=true")
    assert not (tmp_path / "run").exists()


def test_dated_folders_are_never_shared(tmp_path):
    folder = str(tmp_path / "runs/2026-01-31_12-00-00")
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        made = pool.starmap(make_folder, [(folder, "2026-01-31_12-00-00")] * 12, chunksize=1)
    assert sorted(made) == sorted([folder, *(f"{folder}_{n}" for n in range(2, 13))])
    mine = str(tmp_path / "mine")
    assert {make_folder(mine, "2026-01-31_12-00-00") for _ in range(2)} == {mine}


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/run", "/proc/self"])
def test_a_folder_that_cannot_be_written_is_named(luperson, tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(HapError, match=r"cannot write to the run folder .*run_dir="):
        train(tmp_path / place, luperson)


def test_a_full_disk_costs_nothing_that_is_there(tmp_path):
    """No byte may be written: that stands for the disk."""
    file = tmp_path / "results.json"
    write_json(file, {"test/loss": 0.5})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with hold(tmp_path, resume=True):
            with pytest.raises(HapError, match=f"cannot write to the run folder {tmp_path}: File too large"):
                write_json(file, {"test/loss": 0.4})
            with pytest.raises(OSError, match="File too large"):
                write_picture(tmp_path / "picture.png", np.zeros((8, 8, 3), np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert json.loads(file.read_text()) == {"test/loss": 0.5}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "picture.png", "results.json"]
