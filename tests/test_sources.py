"""What `hap predict` reads: folders, files, patterns, lists and videos, and what is wrong with them."""

import logging
import os
import pickle
import shutil
import struct
import subprocess
import sys
from io import StringIO
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pytest
import rich
from conftest import TINY_PRETRAIN, config
from rich.console import Console

import hap.progress
from hap.data.sources import Frames, read_inputs, source_columns
from hap.data.video import Video
from hap.errors import BadSample, HapError
from hap.runner import run

WIDTH, HEIGHT, LEVELS = 64, 48, 12  # of the videos; frame k has the grey level LEVELS * (k % 20)


def picture(number: int) -> np.ndarray:
    """Blue above, red below, and on the left a bar whose brightness says which frame it is; BGR."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[: HEIGHT // 2], image[HEIGHT // 2 :] = (255, 0, 0), (0, 0, 255)
    image[:, :32] = LEVELS * (number % 20)
    return image


def number_in(image: np.ndarray) -> int:
    return round(float(image[:, 4:24].mean()) / LEVELS)


def write_video(path: Path, frames: int = 50, code: str = "mp4v", fps: float = 25) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), fps, (WIDTH, HEIGHT))
    assert writer.isOpened()
    for number in range(frames):
        writer.write(picture(number))
    writer.release()
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Fifty frames in each of the usual containers."""
    folder = tmp_path_factory.mktemp("videos")
    kinds = {"a.mp4": "mp4v", "a.avi": "MJPG", "a.mov": "mp4v", "a.mkv": "mp4v", "a.webm": "VP80"}
    for name, code in (kinds | {"a.mpg": "PIM1", "a.ts": "mpg2", "a.wmv": "WMV2"}).items():
        write_video(folder / name, code=code)
    return folder


def box(data: bytes, *path: bytes) -> int:
    """Where the content of a box of an MP4 begins."""
    start, end = 0, len(data)
    for name in path:
        while data[start + 4 : start + 8] != name:
            start += struct.unpack_from(">I", data, start)[0]
            assert start < end
        start += 8
    return start


TRACK = (b"moov", b"trak")


def turned(source: Path, target: Path, degrees: int) -> Path:
    """The same file, which a viewer shows turned clockwise."""
    data = bytearray(source.read_bytes())
    a, b, c, d = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    matrix = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    struct.pack_into(">9i", data, box(data, *TRACK, b"tkhd") + 40, *matrix)
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("name", ["mp4", "avi", "mov", "mkv", "webm", "mpg", "ts", "wmv"])
def test_each_frame_of_a_video_once_and_in_order(videos, name):
    records = read_inputs({"input": str(videos / f"a.{name}")})
    assert len(records) == 50
    assert [number_in(record.pixels()) for record in records] == [k % 20 for k in range(50)]
    assert [record.frame for record in records] == list(range(50))
    assert [record.seconds for record in records] == pytest.approx([k / 25 for k in range(50)], abs=2e-3)
    assert records[12].name == f"{videos}/a.{name}#12"


def test_a_stride(videos):
    records = read_inputs({"input": str(videos / "a.mp4")}, video_stride=7)
    assert [record.frame for record in records] == [0, 7, 14, 21, 28, 35, 42, 49]
    assert [number_in(record.pixels()) for record in records] == [0, 7, 14, 1, 8, 15, 2, 9]
    assert records[1].seconds == pytest.approx(0.28)
    with pytest.raises(HapError, match="video_stride=0"):
        read_inputs({"input": str(videos / "a.mp4")}, video_stride=0)


def test_frames_are_read_in_any_order_and_in_any_process(videos):
    video = Video(videos / "a.mp4", "a.mp4")
    order = [49, 3, 3, 4, 30, 0, 29]
    assert [number_in(video.read(k)) for k in order] == [k % 20 for k in order]
    copy = pickle.loads(pickle.dumps(video))
    assert number_in(copy.read(33)) == 13
    context = get_context("fork")  # both go on from where they are, neither disturbs the other
    queue = context.Queue()
    child = context.Process(target=lambda: [queue.put(number_in(video.read(k))) for k in (31, 32, 5)])
    child.start()
    assert [number_in(video.read(k)) for k in (30, 31, 32)] == [10, 11, 12]
    assert [queue.get(timeout=20) for _ in range(3)] == [11, 12, 5]
    child.join()


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_frames_are_turned_as_the_container_says(videos, tmp_path, degrees):
    path = videos / "a.mp4"
    if degrees:
        path = turned(path, tmp_path / "turned.mp4", degrees)
    upright = picture(1)[..., ::-1].astype(int)
    shown = Video(path, "a").read(1).astype(int)
    expected = np.rot90(upright, -degrees // 90)
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).mean() < 12


def test_times_are_those_of_the_file_where_the_rate_varies(videos, tmp_path):
    """As of telephones and screen recordings: here, half of the frames stay twice as long."""
    data = bytearray((videos / "a.mp4").read_bytes().replace(b"edts", b"free"))  # nothing is cut off
    path = (*TRACK, b"mdia", b"minf", b"stbl", b"stts")
    at = box(data, *path)
    version, entries, frames, ticks = struct.unpack_from(">4I", data, at)
    assert (version, entries, frames) == (0, 1, 50)
    data[at + 4 : at + 16] = struct.pack(">5I", 2, 25, ticks, 25, 2 * ticks)
    for depth in range(1, len(path) + 1):
        start = box(data, *path[:depth]) - 8
        struct.pack_into(">I", data, start, struct.unpack_from(">I", data, start)[0] + 8)
    (tmp_path / "v.mp4").write_bytes(data)
    video = Video(tmp_path / "v.mp4", "v.mp4")
    assert video.seconds.tolist() == pytest.approx([*np.arange(25) / 25, *(1 + np.arange(25) / 12.5)])
    assert [number_in(video.read(k)) for k in (10, 24, 25, 40)] == [10, 4, 5, 0]


def test_a_header_that_promises_more_is_told(videos, tmp_path, caplog):
    data = (videos / "a.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) * 2 // 5])
    records = read_inputs({"input": str(tmp_path / "cut.avi")})
    assert 5 < len(records) < 25
    assert f"its header counts 50 frames, the file has {len(records)}" in caplog.text
    assert [number_in(r.pixels()) for r in list(records)[:-1]] == list(range(len(records) - 1))


def test_frames_that_are_damaged_are_named_and_the_others_keep_their_numbers(videos, tmp_path):
    data = bytearray((videos / "a.mp4").read_bytes())
    start = data.find(b"mdat") + 4
    frames = []  # each packet of MPEG-4 begins with 00 00 01 b6
    while (start := data.find(b"\0\0\1\xb6", start)) >= 0:
        frames.append(start)
        start += 4
    assert len(frames) == 50
    for number in (20, 21, 37):
        data[frames[number] : frames[number] + 5] = b"\xff" * 5
    (tmp_path / "d.mp4").write_bytes(data)
    records = read_inputs({"input": str(tmp_path / "d.mp4")})
    assert len(records) == 50
    for record in records:
        if record.frame in (20, 21, 37):
            message = f"frame {record.frame}, at {record.seconds:.2f} s, cannot be decoded"
            for _ in range(2):  # the second time is for the log
                with pytest.raises(BadSample, match=message):
                    record.pixels()
        else:  # what comes after builds on what is missing
            assert abs(number_in(record.pixels()) - record.frame % 20) <= 1
    assert number_in(records[40].pixels()) in (0, 1)


@pytest.mark.parametrize("content", [b"", b"no video", b"\0\0\0\x18ftypmp42" + bytes(200)])
def test_what_is_no_video_is_one_bad_record(tmp_path, content):
    (tmp_path / "x.mp4").write_bytes(content)
    (record,) = read_inputs({"input": str(tmp_path / "x.mp4")})
    with pytest.raises(BadSample, match="not a video that OpenCV can open"):
        record.pixels()
    odd = Video(Path(os.fsdecode(b"/caf\xe9.mp4")), "x")
    with pytest.raises(BadSample, match="not UTF-8"):
        odd.read(0)


def test_a_long_video_is_few_objects(videos):
    frames = Frames(Video(videos / "a.mp4", "a.mp4"), "input")
    frames.video.seconds = np.arange(10**7) / 25
    assert len(frames) == 10**7
    assert frames[9_999_999].seconds == pytest.approx(399_999.96)
    assert sys.getsizeof(vars(frames)) < 1000


# Folders, files, patterns, lists -----------------------------------------------------------------------------


@pytest.fixture
def crops(tmp_path, monkeypatch) -> Path:
    """`crops/{a,b,c}.jpg`, `crops/below/{d.png,e.JPG}`, hidden and foreign files; the current folder is above."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crops/below/deep").mkdir(parents=True)
    names = ["a.jpg", "b.jpg", "c.jpg", "below/d.png", "below/e.JPG", "below/deep/f.jpg"]
    for number, name in enumerate(names):
        data = cv2.imencode(Path(name).suffix, picture(number))[1]
        (tmp_path / "crops" / name).write_bytes(data.tobytes())
    (tmp_path / "crops/._a.jpg").write_bytes(b"x")
    (tmp_path / "crops/notes.txt").write_text("b.jpg\n")
    return tmp_path


def names(text: str, **more: str) -> list[str]:
    return [record.name for record in read_inputs({"input": text, **more})]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("crops", ["a.jpg", "b.jpg", "below/d.png", "below/deep/f.jpg", "below/e.JPG", "c.jpg"]),
        ("crops/b.jpg", ["b.jpg"]),
        ("crops/*.jpg", ["a.jpg", "b.jpg", "c.jpg"]),
        ("crops/*", ["a.jpg", "b.jpg", "c.jpg"]),
        ("crops/[ac].jpg", ["a.jpg", "c.jpg"]),
        ("crops/**/*.jpg", ["a.jpg", "b.jpg", "below/deep/f.jpg", "c.jpg"]),
        ("**/below/*", ["below/d.png", "below/e.JPG"]),
        ("crops/**", ["a.jpg", "b.jpg", "below/d.png", "below/deep/f.jpg", "below/e.JPG", "c.jpg"]),
        ("cr*/be*/**/*.jpg", ["below/deep/f.jpg"]),
        ("crops/**/deep/**/?.jpg", ["below/deep/f.jpg"]),
    ],
)
def test_folder_file_and_pattern(crops, pattern, found):
    assert names(pattern) == [f"crops/{name}" for name in found]
    assert names(str(crops / pattern)) == [str(crops / "crops" / name) for name in found]


def test_a_name_with_brackets_is_a_name(crops):
    shutil.copytree("crops", "crops [1]")
    shutil.copy("crops/a.jpg", "a[1].jpg")
    assert len(names("crops [1]")) == 6
    assert names("a[1].jpg") == ["a[1].jpg"]


def test_links_in_circles_end(crops):
    for name in ("x", "y"):
        (crops / "crops" / name).symlink_to(crops / "crops")
    assert len(names("crops/**/*.jpg")) == 4


def test_query_and_gallery_keep_apart(crops):
    records = read_inputs({"query": "crops/a.jpg", "gallery": "crops/below"})
    assert [record.part for record in records] == ["query", "gallery", "gallery", "gallery"]
    assert [record.annotations()["is_query"] for record in records] == [True, False, False, False]


def test_lists(crops, videos, caplog):
    text = f"\ufeff# mine\n\n  crops/c.jpg\r\ncrops/./a.jpg\n{videos}/a.mp4\ncrops/a.jpg\n"
    (crops / "some.txt").write_text(text, encoding="utf-8")
    assert names("some.txt")[:3] == ["crops/c.jpg", "crops/./a.jpg", f"{videos}/a.mp4#0"]
    assert len(names("some.txt")) == 52
    assert "some.txt names 1 files again, which count once\n  line 6: crops/a.jpg" in caplog.text
    # Relative to the list, wherever one is.
    (crops / "crops/table.CSV").write_text("id;image\r\n7;below/d.png\r\n8;c.jpg\r\n")
    records = read_inputs({"input": str(crops / "crops/table.CSV")})
    assert [record.name for record in records] == ["below/d.png", "c.jpg"]
    assert [number_in(record.pixels()) for record in records] == [3, 2]
    (crops / "table.csv").write_text("path\ncrops/b.jpg\n")
    assert names("table.csv") == ["crops/b.jpg"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("none", r"input: not found: none \(give a folder, an image, a video, a pattern"),
        ("crops/*.webp", r"input: no image or video matches crops/\*.webp"),
        ("none/**/x.jpg", "no image or video matches"),
        ("crops/n*", "no image or video matches"),
        ("empty", r"input: no images \(.*\) in empty; videos are given by a file or a pattern"),
        ("x.heic", r"input: x.heic is no image \(.*\), no video \(.*\) and no list"),
        ("bad.txt", "3 lines of bad.txt cannot be used\n  line 2: not found: none.jpg\n"
                    "  line 4: neither image nor video: crops\n  line 5: not found: crops/A.jpg"),
        ("empty.txt", "input: empty.txt names no image or video"),
        ("no.csv", "no.csv has no column image or path; it has file, x"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said(crops, given, message):
    (crops / "empty").mkdir()
    (crops / "x.heic").write_bytes(b"x")
    (crops / "bad.txt").write_text("crops/a.jpg\nnone.jpg\n#\ncrops\ncrops/A.jpg\n")
    (crops / "empty.txt").write_text("# nothing\n\n")
    (crops / "no.csv").write_text("file,x\na.jpg,1\n")
    with pytest.raises(HapError, match=message):
        read_inputs({"input": given})


def test_columns_of_a_table(crops, videos):
    records = read_inputs({"input": "crops/a.jpg", "gallery": str(videos / "a.mp4")}, video_stride=30)
    assert source_columns(records) == {
        "image": ["crops/a.jpg", f"{videos}/a.mp4", f"{videos}/a.mp4"],
        "frame": ["", 0, 30],
        "seconds": ["", "0.000", "1.200"],
    }
    assert list(source_columns([records[0]])) == ["image"]


# The whole way ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(luperson, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    overrides = ["experiment=pretrain_hap", *TINY_PRETRAIN, f"data.root={luperson}", "epochs=1"]
    run("train", config("train", *overrides, "callbacks.pictures=null"), folder)
    return folder / "checkpoints/last.ckpt"


def options(checkpoint: Path, given: str, *more: str) -> list[str]:
    return ["experiment=pretrain_hap", *TINY_PRETRAIN, f"ckpt_path={checkpoint}", f"input='{given}'", *more]


def predict(checkpoint: Path, given: str, folder: Path, *more: str) -> tuple[list[str], np.ndarray]:
    run("predict", config("predict", *options(checkpoint, given, *more)), folder)
    with np.load(folder / "predictions.npz") as file:
        return file["names"].tolist(), file["feature"]


def test_loader_processes_share_a_video(checkpoint, videos, tmp_path):
    more = ["video_stride=2", "data.eval_batch_size=4"]
    one = predict(checkpoint, f"{videos}/a.m*", tmp_path / "one", *more)
    two = predict(checkpoint, f"{videos}/a.m*", tmp_path / "two", *more, "data.num_workers=2")
    assert (
        one[0]
        == two[0]
        == [f"{videos}/a.{c}#{k}" for c in ("mkv", "mov", "mp4", "mpg") for k in range(0, 50, 2)]
    )
    assert np.array_equal(one[1], two[1])
    # Each frame by itself: not its neighbour's row.
    frames = tmp_path / "frames"
    frames.mkdir()
    for record in read_inputs({"input": f"{videos}/a.mp4"}, video_stride=2):
        cv2.imwrite(str(frames / f"{record.frame:02d}.png"), record.pixels()[..., ::-1])
    _, alone = predict(checkpoint, str(frames), tmp_path / "alone")
    assert np.abs(alone - one[1][50:75]).max() < 1e-5
    assert len(np.unique(alone.round(4), axis=0)) == 10


def damaged(crops: Path, bad: int) -> None:
    (crops / "crops/b.jpg").write_bytes((crops / "crops/b.jpg").read_bytes()[:300])
    (crops / "crops/video.mp4").write_bytes(b"no video")
    for number in range(bad - 2):
        (crops / f"crops/bad{number:02d}.jpg").write_bytes(b"\xff\xd8\xff no image")


@pytest.mark.parametrize("bad", [2, 60])
def test_bad_files_are_named_and_left_out(crops, checkpoint, tmp_path, caplog, bad):
    """However many they are: 60 of 64 are more than are replaced in a row."""
    damaged(crops, bad)
    found, features = predict(
        checkpoint, "crops/*", tmp_path / "out", "data.max_bad_fraction=0", "callbacks.progress=null"
    )
    assert found == ["crops/a.jpg", "crops/c.jpg"]
    assert len(features) == 2
    lines = (tmp_path / "out/bad_samples_predict_rank0.txt").read_text().splitlines()
    assert len(lines) == bad
    assert "crops/b.jpg: the image file is truncated" in lines
    assert "crops/video.mp4#0: not a video that OpenCV can open: cut off, or of an unknown kind" in lines
    assert "bad sample left out: crops/b.jpg" in caplog.text
    assert f"{bad} of {bad + 2} images could not be read and are left out" in caplog.text


@pytest.mark.slow
def test_bad_files_of_two_processes(crops, checkpoint, tmp_path):
    """Six images in shares of three, two of them of one process; what one repeats is not counted again."""
    damaged(crops, 4)
    arguments = options(checkpoint, "crops/*", "trainer=ddp_cpu", f"run_dir={tmp_path}/out")
    result = subprocess.run(
        [sys.executable, "-m", "hap.predict", *arguments], capture_output=True, text=True, cwd=crops
    )
    assert result.returncode == 0, result.stderr
    with np.load(tmp_path / "out/predictions.npz") as file:
        assert file["names"].tolist() == ["crops/a.jpg", "crops/c.jpg"]
        two = file["feature"]
    _, one = predict(checkpoint, "crops/[ac].jpg", tmp_path / "one")
    assert np.abs(one - two).max() < 1e-5
    lines = [line for file in (tmp_path / "out").glob("bad_*.txt") for line in file.read_text().splitlines()]
    assert len(lines) == len(set(lines)) == 4
    assert "4 of 6 images could not be read" in result.stdout


def test_nothing_that_can_be_read_is_an_error(crops, checkpoint, tmp_path):
    (crops / "crops/b.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(
        HapError, match=r"none of the 1 images can be read\n  crops/b.jpg: the image file is trunc"
    ):
        predict(checkpoint, "crops/b.jpg", tmp_path / "out")


def test_progress_of_prediction_and_evaluation(crops, checkpoint, luperson, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "hap.progress")
    monkeypatch.setattr(hap.progress, "SECONDS", 0)
    overrides = [o for o in options(checkpoint, "crops") if not o.startswith("callbacks.progress")]
    for screen in (None, StringIO()):
        console = Console(file=screen or StringIO(), force_terminal=screen is not None, width=120)
        monkeypatch.setattr(rich, "_console", console)
        caplog.clear()
        bars = ["trainer.enable_progress_bar=true", "data.eval_batch_size=4"]
        run("predict", config("predict", *overrides, *bars), tmp_path / f"out{screen is None}")
        lines = [m for m in caplog.messages if m.startswith("prediction: ")]
        assert lines[-1].startswith("prediction: 6 images in 0:00:0")
        assert lines[-1].endswith("images/s")
        if screen is None:
            assert lines[0].startswith("prediction: 4 of 6, ")
            assert lines[0].endswith("left")
        else:
            assert "6/6" in screen.getvalue()
    evaluation = [o for o in overrides if not o.startswith("input")]
    caplog.clear()
    run("eval", config("eval", *evaluation, *bars, f"data.root={luperson}"), tmp_path / "eval")
    assert any(m.startswith("evaluation: 5 images in ") for m in caplog.messages)
