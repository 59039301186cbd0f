"""How a run ended, as its folder tells it later."""

import multiprocessing
import os
import time

import pytest
from conftest import TINY_PRETRAIN, config

from hap.errors import HapError
from hap.record import read_status, recorded
from hap.run_folder import hold
from hap.runner import run


def test_a_run_says_that_it_finished_or_why_it_failed(luperson, tmp_path):
    options = ("experiment=pretrain_hap", *TINY_PRETRAIN, f"data.root={luperson}", "callbacks.pictures=null")
    run("train", config("train", *options, "trainer.max_steps=1"), tmp_path / "right")
    status = read_status(tmp_path / "right")
    assert (status["state"], status["program"]) == ("finished", "train")
    assert status["started"] <= status["ended"]
    with pytest.raises(HapError):
        run("train", config("train", *options, "data.root=/nowhere"), tmp_path / "wrong")
    status = read_status(tmp_path / "wrong")
    assert status["state"] == "failed"
    assert "/nowhere" in status["error"]


def test_a_signal_is_no_failure(tmp_path):
    with pytest.raises(SystemExit), recorded(tmp_path, "train", ["seed=1"]):
        raise SystemExit(143)
    status = read_status(tmp_path)
    assert (status["state"], status["overrides"]) == ("stopped", ["seed=1"])
    assert "error" not in status


def _stay(folder) -> None:
    with hold(folder, False), recorded(folder, "train", []):
        time.sleep(60)


def test_running_and_killed_are_told_apart_by_the_lock(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_stay, args=(tmp_path,))
    process.start()
    while not (tmp_path / "status.json").exists():
        time.sleep(0.05)
    assert read_status(tmp_path)["state"] == "running"
    process.kill()
    process.join()
    assert read_status(tmp_path)["state"] == "killed"


def test_a_run_of_this_process_is_running(tmp_path):
    with hold(tmp_path, False), recorded(tmp_path, "train", []):
        assert read_status(tmp_path)["state"] == "running"
        held = multiprocessing.get_context("fork").Process(target=_is_refused, args=(tmp_path,))
        held.start()
        held.join()
        assert held.exitcode == 0  # looking at it has not given up the lock


def _is_refused(folder) -> None:
    try:
        with hold(folder, True):
            os._exit(1)
    except HapError:
        os._exit(0)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "null"])
def test_what_is_no_status_is_none(tmp_path, content):
    (tmp_path / "status.json").write_text(content)
    assert read_status(tmp_path) == {}


def test_no_folder_has_no_status(tmp_path):
    assert read_status(tmp_path / "none") == {}
