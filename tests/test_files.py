"""What lies in data folders besides images, what names can be, and files that go away."""

import io
import logging
import os
import pickle
import shutil
import tarfile
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from conftest import as_another_user
from PIL import Image

import hap.data.base
from hap.data.base import BadSampleLog, Dataset, Loader
from hap.data.files import IMAGE_SUFFIXES, list_files, read_file, read_text, relative
from hap.data.pretrain import open_luperson, read_luperson
from hap.data.reid import read_market1501, read_msmt17, read_people
from hap.data.samplers import EvalBatches
from hap.data.sources import read_inputs
from hap.data.stores import RandomFile
from hap.errors import BadSample, HapError, printable
from hap.packing import pack


def image(path: Path, level: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 16), (level, 120, 150)).save(
        buffer, "PNG"
    )  # decoders look at the content, not the name
    path.write_bytes(buffer.getvalue())


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Six images, two of them in a linked folder, among what systems leave behind."""
    root, other = tmp_path / "root", tmp_path / "other disk"
    for name in ("a.jpg", "b.JPEG", "c/d.webp", "c/e.jpg/f.tif"):
        image(root / name)
    for name in ("1.png", "2.bmp"):
        image(other / name)
    for name in (
        "._a.jpg",
        "c/.ipynb_checkpoints/d.jpg",
        "@eaDir/a.jpg/T.jpg",
        "__MACOSX/x.jpg",
        "lost+found/y.jpg",
    ):
        image(root / name)
    (root / "Thumbs.db").touch()
    (root / "notes.txt").touch()
    (root / "second").symlink_to(other)
    (root / "c/again").symlink_to(root / "c")
    (root / "c/up").symlink_to("..")
    (root / "nowhere.jpg").symlink_to("absent.jpg")
    (root / "circle.jpg").symlink_to("circle.jpg")
    (root / "zero.jpg").symlink_to("/dev/zero")
    os.mkfifo(root / "pipe.jpg")
    return root


SIX = ["a.jpg", "b.JPEG", "c/d.webp", "c/e.jpg/f.tif", "second/1.png", "second/2.bmp"]


def test_only_images_are_listed_and_the_rest_is_counted_by_its_reason(mixed, caplog):
    with caplog.at_level(logging.INFO):
        assert list_files(mixed) == SIX
    (message,) = caplog.messages
    assert message.startswith(f"{mixed}: 13 left out")
    lines = message.splitlines()[1:]
    assert [line.split(": ")[0].split(" and ")[-1] for line in lines if "hidden" in line] == ["5 more"]
    assert sum("no file: a pipe" in line and "2 more" in line for line in lines) == 1
    assert sum("circle.jpg: a link that leads in circles" in line for line in lines) == 1
    assert sum("c/again/ and 1 more: the same folder" in line for line in lines) == 1
    assert f"  notes.txt: not {', '.join(IMAGE_SUFFIXES)}" in lines


def test_every_reader_lists_alike(mixed, tmp_path):
    assert [record.name for record in read_inputs({"input": str(mixed)})] == [
        str(mixed / name) for name in SIX
    ]
    data = tmp_path / "pretrain"
    data.mkdir()
    (data / "LUPerson-data").symlink_to(mixed)
    records = read_luperson(data, num_val=0, require_pose=False)["train"]
    assert [record.name for record in records] == SIX
    people = tmp_path / "people"
    for split in ("train", "query", "gallery"):
        shutil.copytree(
            mixed, people / split / "anna", symlinks=True, ignore=lambda *_: ["pipe.jpg", "up", "again"]
        )
    found = read_people(people)
    assert [record.name for record in found["train"]] == [f"train/anna/{name}" for name in SIX]
    assert len(found["test"]) == 12
    market = tmp_path / "market"
    for folder, person in (("bounding_box_train", 3), ("bounding_box_test", 2), ("query", 2)):
        for i, suffix in enumerate(("jpg", "webp", "bmp", "tif")):
            image(market / folder / f"000{person}_c{i + 1}s1_0.{suffix}")
            image(market / folder / f"._000{person}_c{i + 1}s1_0.{suffix}")
    assert [len(part) for part in read_market1501(market).values()] == [4, 8, 8]


def test_folders_that_link_to_each_other_are_each_listed_once(tmp_path):
    """By every path, twelve of them would take half a million years."""
    for i in range(12):
        image(tmp_path / "all" / f"{i:02d}" / "1.jpg")
        for j in range(12):
            (tmp_path / "all" / f"{i:02d}" / f"to{j}").symlink_to(f"../{j:02d}")
    assert list_files(tmp_path / "all") == [f"{i:02d}/1.jpg" for i in range(12)]
    image(tmp_path / "beside.jpg")
    (tmp_path / "all" / "parent").symlink_to("..")  # it holds the folder itself: not what was asked for
    assert len(list_files(tmp_path / "all")) == 12


def test_a_folder_that_may_not_be_read_is_passed_over_and_named(caplog):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        root = Path(folder)
        image(root / "a/1.jpg")
        image(root / "closed/2.jpg")
        image(root / "market/bounding_box_train/0001_c1.jpg")
        os.chmod(root / "closed", 0)
        with as_another_user():
            assert list_files(root) == ["a/1.jpg", "market/bounding_box_train/0001_c1.jpg"]
            with pytest.raises(HapError, match=r"folder not found: .*(query|test)"):
                read_market1501(root)  # it was found, beside the closed folder
            with pytest.raises(HapError, match=r"cannot list .*closed: Permission denied"):
                list_files(root / "closed")
    assert "closed/: a folder that may not be read" in caplog.text


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(HapError, match=r"folder not found: .*none"):
        list_files(tmp_path / "none")


@pytest.mark.parametrize(
    ("listed", "one"),
    [
        ("./a//b.jpg", "a/b.jpg"),
        ("c/../a/b.jpg", "a/b.jpg"),
        ("a/b.jpg", "a/b.jpg"),
        ("..a/b.jpg", "..a/b.jpg"),
        ("../b.jpg", None),
        ("a/../../b.jpg", None),
        ("/etc/b.jpg", None),
        ("//etc/b.jpg", None),
        ("", None),
        (".", None),
    ],
)
def test_one_spelling(listed, one):
    assert relative(listed) == one


def test_reading_ends(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    for name, reason in (("pipe", "not a regular"), ("zero", "not a regular"), ("sparse", "more than")):
        with pytest.raises(BadSample, match=reason):
            read_file(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "absent")


# ---- archives


def add(
    archive: tarfile.TarFile, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    archive.addfile(info, io.BytesIO(data))


def test_members_of_an_archive_follow_the_same_rules(tmp_path, caplog):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "./LUPerson-data/a/1.jpg", b"old")
        add(archive, "LUPerson-data/a/2.webp", b"two")
        add(archive, "LUPerson-data/hard.jpg", kind=tarfile.LNKTYPE, link="./LUPerson-data/a/1.jpg")
        add(archive, "LUPerson-data/a/soft.jpg", kind=tarfile.SYMTYPE, link="../soft.jpg")
        add(archive, "LUPerson-data/soft.jpg", kind=tarfile.SYMTYPE, link="./a//2.webp")
        add(archive, "LUPerson-data/out.jpg", kind=tarfile.SYMTYPE, link="/etc/passwd")
        add(archive, "LUPerson-data/circle.jpg", kind=tarfile.SYMTYPE, link="circle.jpg")
        add(archive, "/absolute/3.jpg", b"three")
        for name in ("../4.jpg", "a/../../5.jpg", "LUPerson-data/._1.jpg", "__MACOSX/6.jpg", "readme.txt"):
            add(archive, name, b"x")
        add(archive, "./LUPerson-data/a/1.jpg", b"one")  # as `tar -r` renews a file
    (tmp_path / "._a.tar").write_bytes(b"\0\5\x16\7")  # as macOS leaves one beside each file
    records = open_luperson(tmp_path, require_pose=False)
    content = {"a/1.jpg": b"one", "a/2.webp": b"two", "a/soft.jpg": b"two", "absolute/3.jpg": b"three"}
    content |= {"hard.jpg": b"one", "soft.jpg": b"two"}
    assert {record.name: record.encoded() for record in records} == content
    assert f"{tmp_path}: 8 left out" in caplog.text
    assert "LUPerson-data/a/1.jpg: an older version" in caplog.text
    assert "../4.jpg and 1 more: a name that leads out" in caplog.text
    assert "and 1 more: a link to what the archive has not" in caplog.text


@pytest.mark.parametrize(
    "entries",
    [
        [("a.tar", "1.jpg"), ("b.tar", "./1.jpg")],
        [("a.tar", "x/LUPerson-data/1.jpg"), ("a.tar", "LUPerson-data/1.jpg")],
    ],
)
def test_entries_of_one_name_are_an_error_not_a_loss(tmp_path, entries):
    for number, (file, name) in enumerate(entries):
        with tarfile.open(tmp_path / file, "a") as archive:
            add(archive, name, bytes([number]))
    with pytest.raises(HapError, match=r"different entries have one name; rename them:\n.*1\.jpg in "):
        open_luperson(tmp_path, require_pose=False)


# ---- names in lists and tables


def test_one_image_by_two_names_in_the_list_counts_once(tmp_path, caplog):
    data, out = tmp_path / "data", tmp_path / "packed"
    for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg"):
        image(data / "LUPerson-data" / name)
    listed = ["./a/2.jpg", "b//3.jpg", "a/2.jpg", "a/../a/1.jpg", "../../a/1.jpg", "b/3.jpg"]
    (data / "cfs_list.pkl").write_bytes(pickle.dumps(listed))
    records = open_luperson(data, require_pose=False)
    assert [record.name for record in records] == ["a/2.jpg", "b/3.jpg", "a/1.jpg"]
    assert list(records.positions) == [0, 1, 3]
    assert "2 of 6 entries of cfs_list.pkl name an image again" in caplog.text
    assert "1 of 6 names in cfs_list.pkl have no image" in caplog.text
    pack(data, out, require_pose=False, num_workers=0)
    assert (out / "skipped.tsv").read_text().splitlines() == [
        "../../a/1.jpg\tno image",
        "a/2.jpg\tnamed before",
        "b/3.jpg\tnamed before",
    ]
    (data / "cfs_list.pkl").write_bytes(pickle.dumps(["\ud800.jpg"]))
    with pytest.raises(HapError, match="a name that no file can have"):
        open_luperson(data, require_pose=False)


def test_a_table_finds_one_file_under_all_its_names(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        image(tmp_path / "people" / name)
    image(tmp_path / "secret.jpg")
    root = tmp_path / "people"
    os.link(root / "a.jpg", root / "hard.jpg")
    (root / "soft.jpg").symlink_to("a.jpg")
    (root / "inside.jpg").symlink_to("../secret.jpg")  # where links lead is the owner's choice
    rows = ["a.jpg,x,train", "./a.jpg,x,train", "b/../a.jpg,x,train", "hard.jpg,x,train", "soft.jpg,x,train"]
    rows += [
        "../secret.jpg,x,train",
        f"{tmp_path}/secret.jpg,x,train",
        f"{'x' * 300},x,train",
        "inside.jpg,x,train",
    ]
    (root / "people.csv").write_text("\n".join(["path,identity,split", *rows]))
    with pytest.raises(HapError, match="7 mistakes") as error:
        read_people(root)
    for line in range(3, 7):
        assert f"line {line}: the same image as line 2" in str(error.value)
    for line in (7, 8):
        assert f"line {line}: path '{rows[line - 2].split(',')[0]}' is empty or leads out" in str(error.value)


def people(root: Path, *rows: str) -> list:
    (root / "people.csv").write_text("\n".join(["path,identity,split,camera", "train.jpg,z,train,", *rows]))
    return read_people(root)["test"]


def test_no_image_finds_itself_under_another_name(tmp_path):
    """An image is left out of the gallery if person and camera are the query's."""
    for name in ("train.jpg", "q.jpg", "other.jpg"):
        image(tmp_path / name)
    os.link(tmp_path / "q.jpg", tmp_path / "hard.jpg")
    (tmp_path / "soft.jpg").symlink_to("q.jpg")
    for camera in ("", "roof"):  # known from one of the rows, it is known for the file
        for name in ("q.jpg", "hard.jpg", "soft.jpg"):
            rows = f"q.jpg,x,query,{camera}", f"{name},x,gallery,", "other.jpg,x,gallery,"
            query, *gallery = people(tmp_path, *rows)
            assert [r.name for r in gallery if r.camera == query.camera] == [name]
    for row in ("hard.jpg,y,gallery,roof", "soft.jpg,x,gallery,door"):
        with pytest.raises(
            HapError, match=r"1 images are one file in query and gallery.*\n  q.jpg and (hard|soft).jpg"
        ):
            people(tmp_path, "q.jpg,x,query,roof", row)


def test_images_outside_the_folder_of_a_person_are_counted(tmp_path, caplog):
    for name in ("train/a/day/1.jpg", "train/2.jpg", "query/b/1.webp", "gallery/b/2.bmp", "gallery/b/3.gif"):
        image(tmp_path / name)
    splits = read_people(tmp_path)
    assert [(r.name, r.person) for r in splits["train"]] == [("train/a/day/1.jpg", "a")]
    assert [r.name for r in splits["test"]] == ["query/b/1.webp", "gallery/b/2.bmp"]
    assert "2.jpg: not in a folder of a person" in caplog.text
    assert "b/3.gif: not .bmp" in caplog.text


def msmt17(root: Path) -> dict[str, list[str]]:
    lines = {}
    for i, part in enumerate(("train", "val", "query", "gallery")):
        name = f"0001/0001_00{i}_0{i + 1}_0303morning_0015_0.jpg"
        image(root / ("train" if i < 2 else "test") / name)
        lines[part] = [f"{name} 1"]
    return lines


def write_lists(
    root: Path, lines: dict[str, list[str]], mark: bytes = b"", code: str = "utf-8", end: str = "\n"
):
    for part, rows in lines.items():
        (root / f"list_{part}.txt").write_bytes(mark + (end.join(rows) + end).encode(code))


@pytest.mark.parametrize(
    ("mark", "code", "end"),
    [
        (b"", "utf-8", "\r\n"),
        (b"", "utf-8", "\r"),
        (b"\xef\xbb\xbf", "utf-8", "\n"),
        (b"", "utf-16", "\r\n"),
        (b"\xfe\xff", "utf-16-be", "\n"),
    ],
)
def test_lists_and_tables_of_other_systems(tmp_path, mark, code, end):
    lines = msmt17(tmp_path)
    write_lists(tmp_path, lines, mark, code, end)
    assert [len(part) for part in read_msmt17(tmp_path).values()] == [2, 2, 2]
    image(tmp_path / "José.jpg")
    rows = ["path,identity,split", *(f"José.jpg,José,{split}" for split in ("train", "query", "gallery"))]
    (tmp_path / "people.csv").write_bytes(mark + end.join(rows).encode(code))
    assert read_people(tmp_path)["train"][0].person == "José"


@pytest.mark.parametrize("code", ["latin-1", "utf-16-le"])
def test_text_in_another_encoding_is_an_error_that_names_the_file(tmp_path, code):
    (tmp_path / "people.csv").write_bytes("path,identity,split\na.jpg,José,train\n".encode(code))
    with pytest.raises(HapError, match=r"people\.csv.*save the file in UTF-8"):
        read_people(tmp_path)
    with pytest.raises(HapError, match="cannot read"):
        read_text(tmp_path)


def test_lists_stay_in_their_folder_and_count_an_image_once(tmp_path, caplog):
    lines = msmt17(tmp_path)
    first = lines["train"][0]
    write_lists(tmp_path, lines | {"val": [*lines["val"], f"./{first}", f"0001//{first.split('/')[1]}"]})
    assert len(read_msmt17(tmp_path)["train"]) == 2
    assert "list_val.txt names 2 images again" in caplog.text
    for line, message in (
        (f"../train/{first}", "line 2: .* leads out"),
        (first[:-1] + "2", "line 2: .* another person"),
    ):
        write_lists(tmp_path, lines | {"train": [first, line]})
        with pytest.raises(HapError, match=message):
            read_msmt17(tmp_path)


# ---- names that no terminal and no table expects


def test_printable_names():
    assert printable("a/é 日本/1.jpg") == "a/é 日本/1.jpg"
    assert printable("a\nb\tc\x1b[2J\x7f\u202e\u2028.jpg") == r"a\nb\tc\x1b[2J\x7f\u202e\u2028.jpg"
    assert printable(os.fsdecode(b"\xc7\xe9.jpg")) == r"\xc7\xe9.jpg"


AWKWARD = [
    b"a\nb.jpg",
    b"tab\t.jpg",
    b"\x1b[31mred.jpg",
    b"\xc7\xe9.jpg",
    b'a=b,\'"c".jpg',
    b"~.jpg",
    b"2024.jpg",
]


def test_awkward_names_are_read_and_take_one_line_each(tmp_path):
    folder = tmp_path / "data" / "LUPerson-data"
    folder.mkdir(parents=True)
    for name in AWKWARD:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"cut off")
    image(folder / "good.jpg")
    records = read_luperson(tmp_path / "data", num_val=0, require_pose=False)["train"]
    dataset = Dataset(records, lambda image, annotations, rng: {})
    report = BadSampleLog(dataset, tmp_path / "bad.txt", max_fraction=1)
    report(torch.arange(len(records))[[r.name != "good.jpg" for r in records]])
    lines = (tmp_path / "bad.txt").read_text().splitlines()
    names = [line.partition(": ")[0] for line in lines]
    assert sorted(names) == sorted(printable(os.fsdecode(name)) for name in AWKWARD)
    assert all(name.isprintable() for name in names)
    pack(tmp_path / "data", tmp_path / "packed", require_pose=False, num_workers=0)
    skipped = (tmp_path / "packed/skipped.tsv").read_text().splitlines()
    assert sorted(line.partition("\t")[0] for line in skipped) == sorted(names)
    with pytest.raises(HapError) as error:
        BadSampleLog(dataset, None, max_fraction=0.1)(torch.arange(len(records)))
    assert all(line.isprintable() for line in str(error.value).splitlines())


# ---- files that go away


@pytest.fixture
def ten(tmp_path) -> tuple[Path, Dataset]:
    for i in range(10):
        image(tmp_path / "root/LUPerson-data" / f"{i}.jpg", level=20 * i)
    records = read_luperson(tmp_path / "root", num_val=0, require_pose=False)["train"]
    return tmp_path / "root", Dataset(records, lambda image, annotations, rng: {"level": image[0, 0, 0]})


def test_a_file_system_that_comes_back_costs_no_sample(ten):
    root, dataset = ten
    root.rename(root.with_name("away"))
    timer = threading.Timer(0.4, lambda: root.with_name("away").rename(root))
    timer.start()
    assert dataset[0, 4] == {"level": 80, "index": 4, "bad": -1}
    timer.join()


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_stays_away_is_one_message(ten, monkeypatch, workers):
    root, dataset = ten
    monkeypatch.setattr(hap.data.base, "MAX_WAIT", 0.5)
    loader = Loader(dataset, EvalBatches(10, 2, 0, 1), BadSampleLog(dataset, None, 1.0), num_workers=workers)
    assert len(next(iter(loader))["index"]) == 2
    shutil.rmtree(root)
    with pytest.raises(HapError) as error:
        list(loader)
    assert str(error.value).startswith("the data cannot be read: 32 samples in a row failed, again and again")
    assert str(error.value).endswith("0.jpg'")
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_many_bad_samples_in_a_row_are_one_message(ten, workers):
    root, dataset = ten
    for path in root.rglob("*.jpg"):
        path.write_bytes(b"")
    loader = Loader(dataset, EvalBatches(10, 2, 0, 1), BadSampleLog(dataset, None, 1.0), num_workers=workers)
    with pytest.raises(HapError) as error:
        list(loader)
    assert str(error.value) == "32 samples in a row cannot be used, the first is 0.jpg: the file is empty"


def test_an_archive_is_opened_anew_after_a_failure(tmp_path):
    """As on a network file system, to which the old descriptor is stale once it is back."""
    (tmp_path / "archive").write_bytes(b"0123456789")
    file = RandomFile(tmp_path / "archive")
    assert file.read(2, 3) == b"234"
    os.close(file._descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.read(2, 3)
    assert file.read(2, 3) == b"234"


def test_a_file_that_is_gone_is_replaced_at_once(ten):
    root, dataset = ten
    (root / "LUPerson-data/4.jpg").unlink()
    sample = dataset[0, 4]
    assert sample["bad"] == 4
    assert sample["index"] != 4
