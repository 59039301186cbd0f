import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import SMALL
from test_luperson import check, jpeg, names_of, number_of, points, write_pose, write_set

from hap.data.base import BadSample, Dataset
from hap.data.decoding import decode_image
from hap.data.pretrain import open_luperson, read_luperson
from hap.data.samplers import permutation
from hap.data.shards import read_shards, verify
from hap.errors import HapError
from hap.packing import pack


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def keep_all(image, annotations, rng):
    return {"image": image, "draw": rng.random()} | annotations


def test_the_stream_of_samples_is_the_folders(source, packed):
    folder, shards = (Dataset(read_luperson(root)["train"], keep_all, seed=3) for root in (source, packed))
    assert names_of(folder.records) == names_of(shards.records)
    for epoch in range(2):
        keys = [(epoch, int(index)) for index in permutation(folder.records, 10, seed=3)(epoch).ravel()]
        assert len(keys) == 190
        for key in keys:
            a, b = folder[key], shards[key]
            assert a.keys() == b.keys()
            assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("ratio", [1, 0.5, 0.33, 0.001, 14, 15, 16, 199, 1000])
def test_cfs_ratio_picks_the_same_images_as_in_the_folder(source, packed, ratio):
    if ratio == 0.001:
        with pytest.raises(HapError, match="no image"):
            read_luperson(packed, ratio)
        return
    for split in ("train", "val"):
        assert names_of(read_luperson(packed, ratio)[split]) == names_of(read_luperson(source, ratio)[split])


def test_a_shard_is_a_plain_archive_of_original_bytes(source, packed, tmp_path):
    shards = sorted(packed.glob("*.tar"))
    assert len(shards) > 5
    for shard in shards:
        with tarfile.open(shard) as archive:
            archive.extractall(tmp_path, filter="data")
    assert names_of(open_luperson(tmp_path)) == sorted(names_of(open_luperson(source)))
    check(open_luperson(tmp_path))
    check(read_shards(packed))


def test_records_survive_pickling_and_forks(packed):
    records = read_shards(packed)
    check(pickle.loads(pickle.dumps(records)))
    records[0].encoded()  # opened before the fork
    from torch.utils.data import DataLoader

    loader = DataLoader(
        Dataset(records, keep_all), sampler=[(0, i) for i in range(200)], batch_size=None, num_workers=2
    )
    for index, sample in enumerate(loader):
        assert np.array_equal(sample["image"], decode_image(jpeg(number_of(records[index].name))))


def test_packing_of_a_packing_or_over_something_else_is_refused(source, packed, tmp_path):
    with pytest.raises(HapError, match="packed already"):
        pack(packed, tmp_path / "out")
    with pytest.raises(HapError, match="height was None, is 32"):
        pack(source, packed, height=32, **SMALL)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    with pytest.raises(HapError, match="not empty"):
        pack(source, tmp_path / "mine")
    assert contents(tmp_path / "mine") == {"notes.txt": b"precious"}


def test_workers_do_not_change_the_result(source, packed, tmp_path):
    report = pack(source, tmp_path / "out", shard_mb=SMALL["shard_mb"], num_workers=2)
    assert contents(tmp_path / "out") == contents(packed)
    assert (report.images, report.skipped, report.shards) == (200, 0, len(list(packed.glob("*.tar"))))


KILLED = """
import sys, time, hap.packing
from pathlib import Path

decode = hap.packing.decode_image
hap.packing.decode_image = lambda data: (time.sleep(0.01), decode(data))[1]  # time to be killed in
hap.packing.pack(Path(sys.argv[1]), Path(sys.argv[2]), shard_mb=0.05, num_workers=2)
"""


def test_killed_while_packing_the_same_command_ends_with_the_same_bytes(source, packed, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(source), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.tar"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert 3 <= len(finished) < len(list(packed.glob("*.tar")))
    for use in (read_luperson, verify):
        with pytest.raises(HapError, match="not finished"):
            use(out)

    pack(source, out, **SMALL)
    assert contents(out) == contents(packed)
    noted = [name for name in finished if (out / name).stat().st_mtime_ns == finished[name]]
    assert len(noted) >= len(finished) - 2  # at most the shards in hand were made again


def damage(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def copy(folder: Path, out: Path) -> Path:
    out.mkdir()
    for name, data in contents(folder).items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(data)
    return out


def test_a_flipped_bit_is_found_named_and_repaired(source, packed, tmp_path):
    out = copy(packed, tmp_path / "out")
    assert verify(out) == []
    names = names_of(read_shards(out))
    row = json.loads((out / "manifest.json").read_text())["shards"][0]["rows"] + 2
    for part in ("image", "points"):
        entry = np.load(out / "00001.npy")[2]
        damage(
            out / "00001.tar", int(entry["offset"]) + (100 if part == "image" else int(entry["length"]) - 9)
        )
        assert verify(out) == ["00001.tar: damaged"]
        dataset = Dataset(read_shards(out), keep_all)
        with pytest.raises(BadSample, match=r"damaged in .*00001\.tar"):
            dataset.read(row)
        assert dataset[0, row]["bad"] == row
        check([record for record in read_shards(out) if record.name != names[row]])
        (out / "00001.tar").unlink()
        with pytest.raises(HapError, match=r"missing or incomplete: 00001\.tar"):
            read_luperson(out)
        pack(source, out, **SMALL)
        assert contents(out) == contents(packed)
    damage(out / "00002.npy", -30)
    assert verify(out) == ["00002.npy: damaged"]
    (out / "00003.tar").write_bytes(b"")
    assert verify(out) == ["00003.tar: damaged", "00002.npy: damaged"]


def test_no_bit_of_an_index_can_crash_a_reader(packed, tmp_path):
    out = copy(packed, tmp_path / "out")
    whole = (out / "00000.npy").read_bytes()
    rng = np.random.default_rng(0)
    for offset in rng.integers(0, len(whole), 100):
        (out / "00000.npy").write_bytes(whole)
        damage(out / "00000.npy", int(offset))
        for record in range(15):
            try:
                read_shards(out)[record].encoded()
            except (BadSample, HapError, OSError):
                continue


def test_a_damaged_manifest_is_an_error(packed, tmp_path):
    out = copy(packed, tmp_path / "out")
    for text in ("", "{}", "[]", '{"format": "another-1"}'):
        (out / "manifest.json").write_text(text)
        with pytest.raises(HapError, match=r"manifest\.json"):
            read_luperson(out)


def test_what_cannot_be_used_is_left_out_and_named(tmp_path):
    root, out = tmp_path / "in", tmp_path / "out"
    names = write_set(root, 40)
    (root / "cfs_list.pkl").write_bytes(pickle.dumps(["gone.jpg", *names]))
    images, poses = root / "LUPerson-data", root / "LUPerson-pose"
    (images / names[5]).write_bytes(jpeg(0)[:-100])
    (images / names[6]).write_bytes(b"")
    write_pose((poses / names[7]).with_suffix(".npy"), np.full((17, 3), np.nan))
    (poses / names[8]).with_suffix(".npy").unlink()
    report = pack(root, out, **SMALL)
    assert (report.images, report.skipped) == (36, 5)
    skipped = dict(line.split("\t") for line in (out / "skipped.tsv").read_text().splitlines())
    reasons = ("truncated", "empty", "not finite", "no pose")
    assert all(reason in skipped[name] for name, reason in zip(names[5:9], reasons, strict=True))
    assert skipped["gone.jpg"] == "no image"
    assert names_of(read_shards(out)) == names[:5] + names[9:]
    check(read_shards(out))
    # the list's entries count, not the packed images
    assert names_of(read_shards(out, 10)) == names[:5]
    assert names_of(read_shards(out, 0.5)) == names[:5] + names[9:19]


def test_a_shard_of_nothing_but_broken_images(tmp_path):
    names = write_set(tmp_path / "in", 60)
    for name in names[:30]:
        (tmp_path / "in" / "LUPerson-data" / name).write_bytes(b"")
    report = pack(tmp_path / "in", tmp_path / "out", **SMALL)
    assert (report.images, report.skipped) == (30, 30)
    assert names_of(read_shards(tmp_path / "out")) == names[30:]
    assert names_of(read_shards(tmp_path / "out", 40)) == names[30:40]


def test_shrinking_is_recorded_and_moves_the_points(tmp_path):
    root, out = tmp_path / "in", tmp_path / "out"
    names = write_set(root, 8)
    (root / "LUPerson-data" / names[0]).write_bytes(jpeg(number_of(names[0]), height=129))
    assert pack(root, out, height=64, **SMALL).images == 8
    assert json.loads((out / "manifest.json").read_text())["height"] == 64
    records = read_shards(out)
    check(list(records)[1:])  # not higher than 64: the original bytes
    assert decode_image(records[0].encoded()).shape == (64, 32, 3)
    expected = points(number_of(names[0])) * np.float32([32 / 64, 64 / 129, 1])
    assert np.allclose(records[0].annotations()["keypoints"], expected)
    with pytest.raises(HapError, match="height=0"):
        pack(root, tmp_path / "other", height=0)


def test_without_poses(tmp_path):
    (tmp_path / "in" / "LUPerson-data").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "in" / "LUPerson-data" / "a.png"), np.zeros((8, 4, 3), np.uint8))
    pack(tmp_path / "in", tmp_path / "out", require_pose=False, **SMALL)
    (record,) = read_shards(tmp_path / "out")
    assert np.array_equal(record.annotations()["keypoints"], np.tile([-1, -1, 0], (17, 1)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_is_a_clear_error_and_leaves_nothing_half_written(source, packed, tmp_path, workers):
    out = tmp_path / "out"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(HapError, match=r"cannot write .*out: .*too large.*same command"):
            pack(source, out, shard_mb=SMALL["shard_mb"], num_workers=workers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    if not workers:
        assert sorted(contents(out)) == ["notes/lock", "notes/plan.json"]
    pack(source, out, **SMALL)
    assert contents(out) == contents(packed)


def test_an_output_that_cannot_be_made_is_a_clear_error(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HapError, match="cannot write"):
        pack(source, tmp_path / "file" / "out", **SMALL)
