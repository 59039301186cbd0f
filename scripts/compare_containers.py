"""Measure how fast samples come out of different containers in random order: the table in docs/data.md.

    python scripts/compare_containers.py LUPERSON_FOLDER SCRATCH_FOLDER

Each container is written once from the images and poses of the first folder and read by one process, without
decoding. Cold: the page cache is emptied before each round (as root; else the files' own pages are).
Containers whose package is not installed are left out.
"""

import argparse
import importlib.metadata
import importlib.util
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from hap.data.pretrain import open_luperson
from hap.data.shards import read_shards
from hap.packing import pack

Read = Callable[[int], tuple[bytes, np.ndarray]]
BATCH = 1000  # rows of an Arrow batch
GROUP = 100  # rows of a Parquet group: all of it is read for one sample


def write_folder(source: Path, out: Path) -> None:
    out.mkdir()
    for name in ("LUPerson-data", "LUPerson-pose"):
        (out / name).symlink_to((source / name).resolve())


def read_folder(out: Path) -> Read:
    return _records(open_luperson(out))


def write_tar(source: Path, out: Path) -> None:
    pack(source, out)


def read_tar(out: Path) -> Read:
    return _records(read_shards(out))


def _records(records) -> Read:
    def read(i: int) -> tuple[bytes, np.ndarray]:
        record = records[i]
        return record.encoded(), record.annotations()["keypoints"]

    return read


def _samples(source: Path) -> list[tuple[str, bytes, bytes]]:
    records = open_luperson(source)
    return [(r.name, r.encoded(), r.annotations()["keypoints"].tobytes()) for r in records]


def _table(source: Path):
    import pyarrow as pa

    names, images, points = zip(*_samples(source), strict=True)
    images, points = pa.array(images, pa.binary()), pa.array(points, pa.binary(204))
    return pa.table({"name": names, "image": images, "points": points})


def write_arrow(source: Path, out: Path) -> None:
    import pyarrow as pa

    out.mkdir()
    table = _table(source)
    with pa.ipc.new_file(out / "data.arrow", table.schema) as writer:
        writer.write_table(table, BATCH)


def read_arrow(out: Path) -> Read:
    import pyarrow as pa

    reader = pa.ipc.open_file(pa.memory_map(str(out / "data.arrow")))
    batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]

    def read(i: int) -> tuple[bytes, np.ndarray]:
        batch, row = batches[i // BATCH], i % BATCH
        image, points = (batch.column(name)[row].as_buffer() for name in ("image", "points"))
        return image.to_pybytes(), np.frombuffer(points, np.float32)

    return read


def write_parquet(source: Path, out: Path) -> None:
    import pyarrow.parquet

    out.mkdir()
    options = {"row_group_size": GROUP, "compression": "none", "use_dictionary": False}
    pyarrow.parquet.write_table(_table(source), out / "data.parquet", **options)


def read_parquet(out: Path) -> Read:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(out / "data.parquet")

    def read(i: int) -> tuple[bytes, np.ndarray]:
        rows = file.read_row_group(i // GROUP, columns=["image", "points"]).slice(i % GROUP, 1)
        return rows["image"][0].as_py(), np.frombuffer(rows["points"][0].as_py(), np.float32)

    return read


def write_lmdb(source: Path, out: Path) -> None:
    import lmdb

    with lmdb.open(str(out), map_size=1 << 36) as env, env.begin(write=True) as transaction:
        for i, (_, image, points) in enumerate(_samples(source)):
            transaction.put(b"%09d" % i, points + image, append=True)


def read_lmdb(out: Path) -> Read:
    import lmdb

    transaction = lmdb.open(str(out), readonly=True, lock=False, readahead=False).begin(buffers=True)

    def read(i: int) -> tuple[bytes, np.ndarray]:
        value = transaction.get(b"%09d" % i)
        return bytes(value[204:]), np.frombuffer(value[:204], np.float32)

    return read


def write_litdata(source: Path, out: Path) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(out), chunk_bytes="256MB")
    for i, (_, image, points) in enumerate(_samples(source)):
        writer.add_item(i, (image, points))
    writer.done()
    writer.merge()


def read_litdata(out: Path) -> Read:
    from litdata import StreamingDataset

    dataset = StreamingDataset(str(out))

    def read(i: int) -> tuple[bytes, np.ndarray]:
        image, points = dataset[i]
        return image, np.frombuffer(points, np.float32)

    return read


# name -> (write, read, packages it needs that hap does not need anyway)
CONTAINERS = {
    "folder": (write_folder, read_folder, []),
    "tar + index, pread": (write_tar, read_tar, []),
    "Arrow IPC, memory map": (write_arrow, read_arrow, ["pyarrow"]),
    "Parquet": (write_parquet, read_parquet, ["pyarrow"]),
    "LMDB": (write_lmdb, read_lmdb, ["lmdb"]),
    "LitData": (write_litdata, read_litdata, ["litdata", "boto3", "botocore", "obstore", "tifffile"]),
}


def drop_cache(folder: Path) -> None:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(name: str, out: Path, count: int, reads: int, seed: int) -> tuple[float, float, float]:
    """Images/s cold, kB that the disk delivered per image, images/s warm; in a fresh process: a file that is
    still mapped stays in the cache."""
    order = np.random.default_rng(seed).permutation(count)[:reads].tolist()
    read = CONTAINERS[name][1](out)
    drop_cache(out)
    rates, before = [], _disk_bytes()
    for _ in range(2):
        start = time.perf_counter()
        for i in order:
            read(i)
        rates.append(reads / (time.perf_counter() - start))
        if len(rates) == 1:
            delivered = _disk_bytes() - before
    return rates[0], delivered / reads / 1000, rates[1]


def _disk_bytes() -> int:
    return int(Path("/proc/self/io").read_text().split("read_bytes: ")[1].split()[0])


def disk_mb(folder: Path) -> float:
    files = [os.path.join(at, name) for at, _, names in os.walk(folder, followlinks=True) for name in names]
    return sum(os.stat(file).st_blocks * 512 for file in files) / 1e6


def installed_mb(packages: list[str]) -> float:
    files = [file for package in packages for file in importlib.metadata.files(package) or []]
    return sum(os.path.getsize(path) for file in files if os.path.isfile(path := file.locate())) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--reads", type=int, default=500, help="images read in each round")
    parser.add_argument("--rounds", type=int, default=5, help="the median is shown")
    args = parser.parse_args()
    count = len(open_luperson(args.source))
    columns = ("MB on disk", "cold, images/s", "kB read per image", "warm, images/s", "packages, MB")
    table = Table("container", *columns)
    for name, (write, _, packages) in CONTAINERS.items():
        if any(importlib.util.find_spec(package) is None for package in packages):
            continue
        out = args.scratch / name.split(",")[0].replace(" ", "")
        if not out.exists():
            write(args.source, out)
        rounds = []
        for seed in range(args.rounds):
            with multiprocessing.get_context("fork").Pool(1) as pool:
                rounds.append(pool.apply(measure, (name, out, count, args.reads, seed)))
        cold, delivered, warm = np.median(rounds, axis=0)
        weight = f"{len(packages)}, {installed_mb(packages):.0f}" if packages else "-"
        table.add_row(name, f"{disk_mb(out):.0f}", f"{cold:,.0f}", f"{delivered:.0f}", f"{warm:,.0f}", weight)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
