"""What can go wrong while packing and with what was packed: each is one message, and the same command goes on."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from conftest import SMALL
from test_luperson import check, jpeg, names_of, number_of, write_set
from test_processes import children, end, is_running, start, wait_until
from test_shards import contents, copy, damage, keep_all

import hap.packing
from hap.data.base import Dataset
from hap.data.pretrain import read_luperson
from hap.data.shards import read_shards, verify
from hap.errors import HapError
from hap.packing import pack


def slowly() -> None:
    """Images that take long enough to be stopped in."""
    decode = hap.packing.decode_image
    hap.packing.decode_image = lambda *args: (time.sleep(0.05), decode(*args))[1]


def begin(source: Path, out: Path):
    """`hap pack` with two processes, when it has finished two more shards."""
    options = [f"data.root={source}", f"out={out}", "shard_mb=0.05", "num_workers=2"]
    finished = len(list(out.glob("*.tar")))
    program = start("pack", options, out.parent / "stderr", slowly)
    wait_until(lambda: len(list(out.glob("*.tar"))) >= finished + 2)
    return program


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_it_ends_at_once_with_one_line_and_goes_on(source, packed, tmp_path, number, status):
    out = tmp_path / "out"
    program = begin(source, out)
    workers = children(program.pid)
    os.killpg(program.pid, number)
    assert end(program) == status
    assert (
        tmp_path / "stderr"
    ).read_text() == "hap: stopped; what is finished stays, the same command goes on\n"
    assert not any(is_running(pid) for pid in workers)
    pack(source, out, **SMALL)
    assert contents(out) == contents(packed)


@pytest.mark.slow
def test_killed_three_times_at_random_it_ends_with_the_same_bytes(source, packed, tmp_path):
    out, rng = tmp_path / "out", random.Random(0)
    for _ in range(3):
        program = begin(source, out)
        workers = children(program.pid)
        with pytest.raises(HapError, match="another hap pack is writing to"):
            pack(source, out, **SMALL)
        time.sleep(rng.uniform(0, 0.3))
        program.kill()  # this process alone: its workers end by themselves
        program.join()
        wait_until(lambda: not any(is_running(pid) for pid in workers), 10)  # noqa: B023
    pack(source, out, **SMALL)
    assert contents(out) == contents(packed)
    assert verify(out) == []


def test_a_killed_worker_is_one_message(source, packed, tmp_path):
    out = tmp_path / "out"
    program = begin(source, out)
    os.kill(children(program.pid)[0], signal.SIGKILL)
    assert end(program) == 2
    message = (tmp_path / "stderr").read_text()
    assert message.count("\n") == 1
    assert "memory ran out: lower num_workers; what is finished stays, the same command goes on" in message
    pack(source, out, **SMALL)
    assert contents(out) == contents(packed)


def test_an_unforeseen_error_names_the_image(source, tmp_path, monkeypatch):
    def fails(*args):
        raise KeyError("a bug")

    monkeypatch.setattr(hap.packing, "decode_image", fails)
    with pytest.raises(HapError, match=r"(?s)^KeyError in a loader process: 'a bug'.*while packing [ab]/"):
        pack(source, tmp_path / "out", shard_mb=0.05, num_workers=1)


def at_image(monkeypatch, number: int, do) -> None:
    """Do something when so many images have been read."""
    decode, read = hap.packing.decode_image, []

    def decode_and_do(*args):
        read.append(args)
        if len(read) == number:
            do()
        return decode(*args)

    monkeypatch.setattr(hap.packing, "decode_image", decode_and_do)


def test_images_that_change_or_go_meanwhile_are_named(tmp_path, monkeypatch):
    root, out = tmp_path / "in", tmp_path / "out"
    names = write_set(root, 60)
    images = root / "LUPerson-data"

    def meanwhile():
        (images / names[40]).unlink()
        (images / names[41]).write_bytes(jpeg(number_of(names[41]))[:-200])
        (root / "LUPerson-pose" / names[42]).with_suffix(".npy").unlink()

    at_image(monkeypatch, 20, meanwhile)
    assert pack(root, out, **SMALL).images == 57
    skipped = dict(line.split("\t") for line in (out / "skipped.tsv").read_text().splitlines())
    assert list(skipped) == names[40:43]
    assert "truncated" in skipped[names[41]]
    assert names_of(read_shards(out)) == names[:40] + names[43:]
    check(read_shards(out))


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_source_that_goes_away_is_not_a_set_of_broken_images(packed, source, tmp_path, monkeypatch, left):
    root, away, out = tmp_path / "in", tmp_path / "away", tmp_path / "out"
    shutil.copytree(source, root)

    def unplugged():
        root.rename(away)
        if left == "an empty folder":  # as an unmounted disk leaves it
            root.mkdir()

    at_image(monkeypatch, 100, unplugged)
    with pytest.raises(HapError, match=r"in cannot be read any more.*the same command goes on"):
        pack(root, out, **SMALL)
    monkeypatch.undo()
    shutil.rmtree(root, ignore_errors=True)
    away.rename(root)
    pack(root, out, **SMALL)
    shards = {name: data for name, data in contents(packed).items() if name.endswith((".tar", ".npy"))}
    assert shards.items() <= contents(out).items()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"rows": 3}', b'{"rows": 3, "skipped": []}'])
def test_a_damaged_note_costs_its_shard_alone(source, packed, tmp_path, content):
    out = copy(packed, tmp_path / "out")
    (out / "notes" / "00002.json").write_bytes(content)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    pack(source, out, **SMALL)
    assert contents(out) == contents(packed)
    made = [name for name, time_ns in before.items() if (out / name).stat().st_mtime_ns != time_ns]
    assert made == ["00002.tar"]


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff"])
def test_a_damaged_plan_is_named(source, packed, tmp_path, content):
    out = copy(packed, tmp_path / "out")
    (out / "notes" / "plan.json").write_bytes(content)
    with pytest.raises(HapError, match=r"notes/plan\.json is damaged .*another folder"):
        pack(source, out, **SMALL)


def test_a_manifest_that_lacks_or_lies_is_refused_and_made_again(source, packed, tmp_path):
    out = copy(packed, tmp_path / "out")
    path = out / "manifest.json"
    whole = json.loads(path.read_text())

    def edited(change) -> str:
        manifest = json.loads(json.dumps(whole))
        change(manifest)
        return json.dumps(manifest)

    lies = [
        edited(lambda m: m.update(height=320)),
        edited(lambda m: m["shards"][1].update(rows=14)),
        edited(lambda m: m["shards"].pop()),
        path.read_text()[:-40],
        "\x00" * 100,
    ]
    for unsigned in (False, True):  # older manifests have no checksum, but must have the rest
        for key in ("listed", "ranked", "shards"):
            lies.append(edited(lambda m, k=key, u=unsigned: (m.pop(k), u and m.pop("sha256"))))
        for key in ("rows", "file", "bytes", "last_position", "sha256", "index_sha256"):
            lies.append(edited(lambda m, k=key, u=unsigned: (m["shards"][1].pop(k), u and m.pop("sha256"))))
    lies.append(edited(lambda m: (m.pop("sha256"), m["shards"][0].update(file="../00000.tar"))))
    for text in lies:
        path.write_text(text)
        for use in (read_luperson, verify):
            with pytest.raises(HapError, match=r"manifest\.json is damaged or was edited.*same hap pack"):
                use(out)
    pack(source, out, **SMALL)
    assert contents(out) == contents(packed)
    path.write_text(edited(lambda m: m.pop("sha256")))
    assert verify(out) == []
    assert names_of(read_shards(out)) == names_of(read_shards(packed))


def test_a_missing_or_shortened_index_is_named_and_made_again(source, packed, tmp_path):
    out = copy(packed, tmp_path / "out")
    index = out / "00001.npy"
    whole = index.read_bytes()
    for content in (None, b"", whole[:-100], (out / "00000.npy").read_bytes()[:-10]):
        index.unlink() if content is None else index.write_bytes(content)
        with pytest.raises(HapError, match=r"00001\.npy"):
            list(read_shards(out))
        assert verify(out) == ["00001.npy: " + ("missing" if content is None else "damaged")]
        index.unlink(missing_ok=True)
        pack(source, out, **SMALL)
        assert contents(out) == contents(packed)


def test_verify_names_what_does_not_belong_there(packed, tmp_path):
    out = copy(packed, tmp_path / "out")
    (out / "00099.tar").write_bytes(b"")
    (out / "a\nb").write_bytes(b"")
    (out / "00000.tar").unlink()
    damage(out / "00001.npy", -1)
    assert verify(out) == [
        "00000.tar: missing",
        "00001.npy: damaged",
        "00099.tar: not of this packing",
        r"a\nb: not of this packing",
    ]


def test_training_goes_on_over_a_damaged_shard_and_names_it(packed, tmp_path):
    out = copy(packed, tmp_path / "out")
    entry = json.loads((out / "manifest.json").read_text())["shards"][0]
    shard = out / entry["file"]
    shard.write_bytes(b"\x00" * entry["bytes"])  # blocks of zeros, as a broken disk returns them
    dataset = Dataset(read_shards(out), keep_all)
    samples = [dataset[0, index] for index in range(200)]
    assert [s["bad"] for s in samples] == [i if i < entry["rows"] else -1 for i in range(200)]
    assert "00000.tar" in str(dataset.problem(0))


def test_what_was_begun_in_the_first_moment_goes_on(source, packed, tmp_path):
    """Killed before the plan was written: the folder is not mistaken for somebody else's."""
    out = tmp_path / "out"
    (out / "notes").mkdir(parents=True)
    (out / "notes" / "lock").write_bytes(b"")
    (out / "notes" / "plan.json.123.tmp").write_bytes(b"{")
    pack(source, out, **SMALL)
    assert contents(out) == contents(packed)


def test_packing_again_and_again_leaves_no_file_and_no_process_open(tmp_path):
    write_set(tmp_path / "in", 20)
    counts = []
    for _ in range(20):
        pack(tmp_path / "in", tmp_path / "out", shard_mb=0.05, num_workers=1)
        verify(tmp_path / "out")
        shutil.rmtree(tmp_path / "out")
        counts.append(len(os.listdir("/proc/self/fd")))
        assert multiprocessing.active_children() == []
    assert counts[-1] <= counts[0]
