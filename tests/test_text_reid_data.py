"""Readers of people with descriptions, against files written by hand."""

import json
import logging
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hap.data.files import read_json
from hap.data.samplers import fingerprint
from hap.data.text_files import (
    CUHK_PEDES,
    read_cuhk_pedes,
    read_described,
    read_icfg_pedes,
    read_published,
    read_rstpreid,
)
from hap.data.text_reid import TextRecord, TextRecords, names_side
from hap.errors import HapError
from hap.synthetic.text import _plan
from hap.text.tokens import Words, words_of


def png() -> bytes:
    file = BytesIO()
    Image.new("RGB", (2, 2), (90, 120, 150)).save(file, "png")
    return file.getvalue()


PIXELS = png()


def words(texts: Sequence[str]) -> Words:
    return Words(words_of(texts, at_least=1))


def record(name: str, person: Any, split: str, *captions: str, image: str = "file_path", **more: Any) -> dict:
    return {"split": split, "id": person, image: name, "captions": list(captions), **more}


def write(root: Path, file: str, records: Sequence[Any], level: str = "imgs") -> Path:
    """The annotations and the images that they name."""
    root.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(records))
    for item in records:
        path = root / level / (item.get("file_path") or item["img_path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PIXELS)
    return root


def table(records: Sequence[TextRecord]) -> list[tuple]:
    return [(r.name, r.person, r.identity, r.first, *r.captions) for r in records]


CUHK = [
    record("CUHK01/a.png", 1368, "train", "a man", "a man in red", "he walks", processed_tokens=[["a"]] * 3),
    record("cam_a/b.bmp", 1369, "Train", "a girl", "a girl in blue"),
    record("Market/c.jpg", 4116, "train", "one"),
    record("Market/d.jpg", 6116, "train", "two"),
    record("Market/e.jpg", 9000, "train", "a boy", "a boy runs"),
    record("CUHK03/f.jpg", 1368, "train", "the man again"),
    record("CUHK03/g.jpg", 11500, "VAL", "a lady"),
    record("test_query/h.jpg", 12590, "test", *(f"number {i}" for i in range(10))),
    record("train_query/i.jpg", 12591, "test", "a woman", "a woman in green"),
    record("train_query/j.jpg", 12590, "test", "she", "she again"),
]


@pytest.mark.parametrize("below", [".", "CUHK-PEDES", "data/CUHK-PEDES"])
def test_cuhk_pedes(tmp_path, below):
    root = write(tmp_path / below, "reid_raw.json", CUHK)
    splits = read_cuhk_pedes(tmp_path, words)
    assert table(splits["train"]) == [
        ("imgs/CUHK01/a.png", "1368", 0, 0, "a man"),
        ("imgs/CUHK01/a.png", "1368", 0, 1, "a man in red"),
        ("imgs/CUHK01/a.png", "1368", 0, 2, "he walks"),
        ("imgs/cam_a/b.bmp", "1369", 1, 3, "a girl"),
        ("imgs/cam_a/b.bmp", "1369", 1, 4, "a girl in blue"),
        ("imgs/Market/c.jpg", "4116", 2, 5, "one"),
        ("imgs/Market/d.jpg", "6116", 3, 6, "two"),
        ("imgs/Market/e.jpg", "9000", 4, 7, "a boy"),
        ("imgs/Market/e.jpg", "9000", 4, 8, "a boy runs"),
        ("imgs/CUHK03/f.jpg", "1368", 0, 9, "the man again"),
    ]
    assert table(splits["val"]) == [("imgs/CUHK03/g.jpg", "11500", 0, 0, "a lady")]
    ten = tuple(f"number {i}" for i in range(10))
    assert table(splits["test"]) == [  # an image each, with all its captions as queries
        ("imgs/test_query/h.jpg", "12590", 0, 0, *ten),
        ("imgs/train_query/i.jpg", "12591", 1, 10, "a woman", "a woman in green"),
        ("imgs/train_query/j.jpg", "12590", 0, 12, "she", "she again"),
    ]
    assert splits["train"][-1].encoded() == PIXELS
    assert splits["train"][0].root == root
    assert splits["test"].caption(11) == (1, "a woman in green")
    assert splits["test"].caption(12) == (2, "she")


def test_official_cuhk_pedes_leaves_three_people_out(tmp_path):
    write(tmp_path, "reid_raw.json", CUHK)
    splits = read_cuhk_pedes(tmp_path, words, protocol="official")
    assert splits["train"].people == ["1368", "9000"]
    assert [r.identity for r in splits["train"]] == [0, 0, 0, 1, 1, 0]
    assert splits["val"] is splits["test"]
    assert splits["test"].protocol == "CUHK-PEDES, official"
    with pytest.raises(HapError, match="choose standard or official"):
        read_cuhk_pedes(tmp_path, words, protocol="offical")


@pytest.mark.parametrize("file", ["ICFG-PEDES.json", "ICFG_PEDES.json"])
@pytest.mark.parametrize("level", ["imgs", ".", "elsewhere"])
def test_icfg_pedes(tmp_path, file, level):
    records = [
        record("train/0000/a.jpg", 0, "train", "a man", processed_tokens=[["a", "man"]]),
        record("test/1369/b.jpg", 1369, "train", "a girl"),  # MSMT17's folders are not the split
        record("train/3101/c.jpg", 3101, "train", "a boy", processed_tokens=None),
        record("test/3102/d.jpg", 3102, "test", "a lady", processed_tokens=[[["a", "lady"]]]),
    ]
    write(tmp_path, file, records, level)
    if level == "elsewhere":
        with pytest.raises(HapError, match="lacks 4 of the images"):
            read_icfg_pedes(tmp_path, words)
        return
    splits = read_icfg_pedes(tmp_path, words)
    prefix = "imgs/" if level == "imgs" else ""
    assert [r.name for r in splits["train"]] == [prefix + r["file_path"] for r in records[:3]]
    assert splits["val"] is splits["test"]
    assert table(splits["test"]) == [(f"{prefix}test/3102/d.jpg", "3102", 0, 0, "a lady")]
    official = read_icfg_pedes(tmp_path, words, protocol="official")
    assert official["train"].people == ["0", "3101"]


def test_icfg_pedes_by_the_last_three_parts(tmp_path):
    """The official code's way with paths that have more in front."""
    write(tmp_path, "ICFG-PEDES.json", [record("train/0/a.jpg", 0, "train", "a man")])
    records = [
        record(f"somebody/ICFG-PEDES/train/0/{s}.jpg", 0, s, "a man in red") for s in ("train", "test")
    ]
    (tmp_path / "ICFG-PEDES.json").write_text(json.dumps(records))
    (tmp_path / "imgs/train/0/train.jpg").write_bytes(PIXELS)
    (tmp_path / "train/0").mkdir(parents=True)
    (tmp_path / "train/0/test.jpg").write_bytes(PIXELS)
    splits = read_icfg_pedes(tmp_path, words)
    assert [splits[s][0].name for s in ("train", "test")] == ["imgs/train/0/train.jpg", "train/0/test.jpg"]


@pytest.mark.parametrize("level", ["imgs", "."])
def test_rstpreid(tmp_path, level):
    make = partial(record, image="img_path")
    records = [
        make("0000_c14_0007.jpg", 0, "train", "a man", "he"),
        make("3702_c1_0001.jpg", 3702, "val", "a girl", "she"),
        make("3901_c1_0001.jpg", 3901, "test", "a boy", "it"),
        make("1369_c1_0001.jpg", 1369, "train", "a lady", "her"),
    ]
    write(tmp_path, "data_captions.json", records, level)
    splits = read_rstpreid(tmp_path, words)
    assert [len(splits[s]) for s in ("train", "val", "test")] == [4, 1, 1]
    assert splits["train"].people == ["0", "1369"]  # that rule is not for this data set
    official = read_rstpreid(tmp_path, words, protocol="official")
    assert official["train"].people == ["0", "1369", "3702"]
    assert len(official["train"]) == 6
    assert official["val"] is official["test"]


@pytest.mark.parametrize("protocol", ["standard", "official"])
def test_a_file_of_one_split(tmp_path, protocol):
    write(tmp_path, "reid_raw.json", CUHK[-2:])
    with pytest.raises(HapError, match="no train images with captions"):
        read_cuhk_pedes(tmp_path, words, protocol=protocol)
    write(tmp_path, "reid_raw.json", CUHK[:2])
    with pytest.raises(HapError, match=r"no val images with captions|no test images with captions"):
        read_cuhk_pedes(tmp_path, words, protocol=protocol)


def test_counts_against_the_published(tmp_path, caplog):
    write(tmp_path, "reid_raw.json", CUHK)
    read_cuhk_pedes(tmp_path, words)
    expected = "train is not the published set, which has 34,054 images, 68,126 captions, 11,003 people"
    assert expected in caplog.text
    with pytest.raises(HapError, match=expected) as error:
        read_cuhk_pedes(tmp_path, words, strict=True)
    assert "test is not the published set, which has 3,074 images, 6,156 captions" in str(error.value)
    with pytest.raises(HapError, match="34,051 images, 68,120 captions, 11,000 people"):
        read_cuhk_pedes(tmp_path, words, strict=True, protocol="official")
    own = {"train": (6, 10, 5), "val": (1, 1, 1), "test": (3, 14, 2)}
    read_published(tmp_path, CUHK_PEDES._replace(counts=own), words, strict=True)
    # The published numbers are those of all captions, also where some are left out.
    read_published(tmp_path, CUHK_PEDES._replace(counts=own), words, strict=True, captions_per_image=1)


def test_the_published_numbers():
    """Totals of the releases, from their papers and the data."""
    parts = CUHK_PEDES.counts.values()
    assert [sum(part[i] for part in parts) for i in range(3)] == [40_206, 80_440, 13_003]


def test_captions_per_image(tmp_path):
    write(tmp_path, "reid_raw.json", CUHK)
    splits = read_cuhk_pedes(tmp_path, words, captions_per_image=2)
    assert [r.captions for r in splits["test"]] == [
        ("number 0", "number 1"),
        ("a woman", "a woman in green"),
        ("she", "she again"),
    ]
    assert len(splits["train"]) == 9
    assert splits["test"].protocol == "CUHK-PEDES, standard, 2 captions per image"
    with pytest.raises(HapError, match="captions_per_image=0: 1 or more"):
        read_cuhk_pedes(tmp_path, words, captions_per_image=0)


DOUBTFUL = [
    record("a.jpg", 1, "train", "a person in black", "a man in red"),
    record("b.jpg", 2, "train", "a person in black", "衣服", ""),
    record("c.jpg", 3, "train", "a person in black", "?! ...", "12 34"),
    record("d.jpg", 3, "train", "a lady", "a lady"),  # twice, of one person
    record("e.jpg", 4, "train", "a caf\u00e9 owner in blue"),
    record("f.jpg", 5, "test", "a person in black", "衣服"),
]


def test_doubtful_captions(tmp_path, caplog):
    write(tmp_path, "reid_raw.json", DOUBTFUL)
    caplog.set_level(logging.INFO)
    splits = read_cuhk_pedes(tmp_path, words)
    assert len(splits["train"]) == 11  # nothing is removed by itself
    for line in (
        "train: 3 captions without a letter\n  imgs/b.jpg: ''",
        "train: 3 captions of several people\n  imgs/a.jpg: 'a person in black'",
        "train: 2 captions with other characters than ASCII",
        "test: 1 captions with other characters than ASCII",
    ):
        assert line in caplog.text
    kept = read_cuhk_pedes(tmp_path, words, drop_doubtful=True)
    assert [r.captions[0] for r in kept["train"]] == ["a man in red", "a lady", "a lady"]
    assert [r.captions for r in kept["test"]] == [("a person in black", "衣服")]
    assert "8 captions are left out" in caplog.text
    assert "doubtful captions left out of training" in kept["train"].protocol


def test_nobody_is_left_without_captions(tmp_path):
    """A classifier has no class for people of whom no caption is left."""
    write(tmp_path, "reid_raw.json", DOUBTFUL)
    assert read_cuhk_pedes(tmp_path, words, drop_doubtful=True)["train"].people == ["1", "3"]
    write(tmp_path, "reid_raw.json", [record("a.jpg", 1, "train", "?"), record("b.jpg", 2, "test", "she")])
    with pytest.raises(HapError, match="no train images with captions"):
        read_cuhk_pedes(tmp_path, words, drop_doubtful=True)


def test_the_wrong_file_of_cuhk_pedes(tmp_path):
    (tmp_path / "CUHK-PEDES").mkdir()
    with pytest.raises(HapError, match=r"no reid_raw.json .*usually named CUHK-PEDES"):
        read_cuhk_pedes(tmp_path, words)
    (tmp_path / "CUHK-PEDES/caption_all.json").write_text("[]")
    with pytest.raises(HapError, match=r"caption_all.json, which has no splits: reid_raw.json is a download"):
        read_cuhk_pedes(tmp_path, words)


def test_missing_folders_are_named_once_each(tmp_path):
    folders = ["cam_a", "cam_b", "CUHK01", "CUHK03", "Market", "test_query", "train_query"]
    records = [
        record(f"{f}/{i}.jpg", i, "test" if f == "Market" else "train", "a man in red")
        for f in folders
        for i in range(3)
    ]
    write(tmp_path, "reid_raw.json", records)
    for folder in folders[:4]:
        for path in (tmp_path / "imgs" / folder).iterdir():
            path.unlink()
    (tmp_path / "imgs/Market/1.jpg").unlink()
    with pytest.raises(HapError) as error:
        read_cuhk_pedes(tmp_path, words)
    lines = str(error.value).splitlines()
    assert "lacks 13 of the images that reid_raw.json names" in lines[0]
    assert lines[1:6] == ["  CUHK01: 3", "  CUHK03: 3", "  Market: 1", "  cam_a: 3", "  cam_b: 3"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no JSON"),
        ("[{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("{}", "is not a list of records"),
        ("[]", "is not a list of records"),
        ('{"annotations": [1]}', "is not a list of records"),
        ("[1]", "record 0: it is no object with fields"),
    ],
)
def test_a_file_that_is_none(tmp_path, content, message):
    (tmp_path / "reid_raw.json").write_text(content)
    with pytest.raises(HapError, match=message):
        read_cuhk_pedes(tmp_path, words)


WRONG = [
    (record("a.jpg", 1, "gallery", "x"), "split 'gallery' is not train, val or test"),
    (record("a.jpg", 1, "", "x"), "split '' is not train"),
    ({**record("a.jpg", 1, "train", "x"), "split": None}, "split None is not train"),
    ({"id": 1, "file_path": "a.jpg", "captions": ["x"]}, "no split"),
    ({"id": 1}, "no split, file_path, captions"),
    (record("a.jpg", None, "train", "x"), "id None is no name or number"),
    (record("a.jpg", True, "train", "x"), "id True is no name or number"),
    (record("a.jpg", [1], "train", "x"), "id [1] is no name or number"),
    (record("a.jpg", 1.5, "train", "x"), "id 1.5 is no name or number"),
    (record("../a.jpg", 1, "train", "x"), "file_path '../a.jpg' is no path below the folder"),
    (record("/etc/passwd", 1, "train", "x"), "is no path below the folder"),
    (record("a/../../b.jpg", 1, "train", "x"), "is no path below the folder"),
    (record("", 1, "train", "x"), "file_path '' is no path"),
    ({**record("a.jpg", 1, "train"), "captions": "x"}, "captions is not a list of sentences"),
    ({**record("a.jpg", 1, "train"), "captions": ["x", None]}, "captions is not a list of sentences"),
    ({**record("a.jpg", 1, "train"), "captions": [["x"]]}, "captions is not a list of sentences"),
]


def test_all_mistakes_at_once(tmp_path):
    for start in range(0, len(WRONG), 8):  # a message shows ten
        part = WRONG[start : start + 8]
        (tmp_path / "reid_raw.json").write_text(json.dumps([CUHK[0], *(item for item, _ in part)]))
        with pytest.raises(HapError, match=f"has {len(part)} mistakes") as error:
            read_cuhk_pedes(tmp_path, words)
        for number, (_, message) in enumerate(part, start=1):
            assert f"record {number}: " in str(error.value)
            assert message in str(error.value)


def test_mistakes_show_no_control_characters(tmp_path):
    records = [record("a.jpg", 1, "\x1b[31mred\x07", "x"), record("../\x1b]0;t\x07.jpg", 1, "train", "x")]
    (tmp_path / "reid_raw.json").write_text(json.dumps(records))
    with pytest.raises(HapError) as error:
        read_cuhk_pedes(tmp_path, words)
    assert "\x1b" not in str(error.value)
    write(tmp_path, "reid_raw.json", [record("\x1b[31m/a.jpg", 1, s, "x y") for s in ("train", "test")])
    (tmp_path / "imgs/\x1b[31m/a.jpg").unlink()
    with pytest.raises(HapError, match="lacks 2") as error:
        read_cuhk_pedes(tmp_path, words)
    assert "\x1b" not in str(error.value)


def lines(root: Path, *rows: Any) -> Path:
    text = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (root / "captions.jsonl").write_text("\n".join(text) + "\n")
    for row in rows:
        if isinstance(row, dict):
            path = root / row["image"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(PIXELS)
    return root


def own(image: str, identity: Any, split: str, *captions: str) -> dict:
    return {"image": image, "identity": identity, "split": split, "captions": list(captions)}


def test_people_of_ones_own(tmp_path):
    rows = [
        own("a.jpg", "anna", "train", "a woman", "she walks"),
        "",
        own("x/b.jpg", 7, "train", "a man"),
        own("c.jpg", "anna", "TEST", "a woman in red"),
        own("d.jpg", "7", "test"),  # in the gallery without captions
    ]
    splits = read_described(lines(tmp_path, *rows), words)
    assert splits["train"].people == ["anna", "7"]
    assert table(splits["test"]) == [
        ("c.jpg", "anna", 0, 0, "a woman in red"),
        ("d.jpg", "7", 1, 1),
    ]
    assert splits["test"][1].lengths.tolist() == [0]
    assert splits["val"] is splits["test"]
    (tmp_path / "other.jsonl").write_text((tmp_path / "captions.jsonl").read_text())
    assert len(read_described(tmp_path, words, table="other.jsonl")["train"]) == 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["{"], "line 1 is no JSON"),
        (["", "nonsense"], "line 2 is no JSON"),
        (["[]"], "line 1: it is no object with fields"),
        ([own("a.jpg", "", "train", "x")], "line 1: identity '' is no name or number"),
        ([own("a.jpg", "p", "train", "x"), "", own("b.jpg", "p", "probe", "x")], "line 3: split 'probe'"),
        ([own("a.jpg", "p", "train", "x")], "no val images with captions"),
        ([own("a.jpg", "p", "train", "x"), own("b.jpg", "p", "test")], "no test images with captions"),
        ([own("a.jpg", "p", "test", "x")], "no train images with captions"),
    ],
)
def test_mistakes_in_ones_own(tmp_path, rows, message):
    with pytest.raises(HapError, match=message):
        read_described(lines(tmp_path, *rows), words)


def test_ones_own_is_missing(tmp_path):
    with pytest.raises(HapError, match=r'captions.jsonl is missing: a line for each image, \{"image"'):
        read_described(tmp_path, words)


def test_ids_lengths_and_the_longest_of_64(tmp_path):
    """The official evaluation has batches of 64 captions, in the order of the file, over the ends of images."""
    rng = np.random.default_rng(0)
    captions = [" ".join(["coat"] * n) for n in rng.integers(1, 30, 150)]
    records = [record(f"{i}.jpg", i, "test", *captions[3 * i : 3 * i + 3]) for i in range(50)]
    records += [record("x.jpg", 99, "train", "coat coat", "coat")]
    splits = read_cuhk_pedes(write(tmp_path, "reid_raw.json", records), words)
    lengths = np.array([len(c.split()) for c in captions])
    longest = [max(lengths[64 * (i // 64) : 64 * (i // 64) + 64]) for i in range(150)]
    for i, item in enumerate(splits["test"]):
        assert item.lengths.tolist() == lengths[3 * i : 3 * i + 3].tolist()
        assert item.longest.tolist() == longest[3 * i : 3 * i + 3]
        for row, length in zip(item.tokens, item.lengths, strict=True):
            assert row.tolist() == [1] * length + [0] * (lengths.max() - length)
    given = splits["test"][4].annotations()
    assert given["identity"] == 4
    assert given["first_caption"] == 12
    assert given["tokens"].dtype == given["lengths"].dtype == given["longest"].dtype == np.int64
    train = splits["train"]
    assert table([train[-1]]) == table([train[1]])
    with pytest.raises(IndexError):
        train[2]


def test_an_image_with_fewer_captions_than_the_most(tmp_path):
    splits = read_cuhk_pedes(write(tmp_path, "reid_raw.json", CUHK), words)
    item = splits["test"][1]
    assert item.tokens.shape[0] == 10
    assert item.lengths.tolist() == [1, 2] + [0] * 8  # of what is said in training
    assert not item.tokens[2:].any()


def test_a_checkpoint_has_a_vocabulary_of_its_own(tmp_path):
    splits = read_cuhk_pedes(write(tmp_path, "reid_raw.json", CUHK), words)
    again = splits["train"].retokenized(Words(["[PAD]", "girl", "man"]))
    assert [r.tokens[0, : r.lengths[0]].tolist() for r in again][:5] == [[2], [2], [0], [1], [1]]
    assert table(again) == table(splits["train"])


def test_captions_are_tokenised_once_and_late(tmp_path):
    calls = []

    def counted(texts: Sequence[str]) -> Words:
        calls.append(list(texts))
        return words(texts)

    splits = read_cuhk_pedes(write(tmp_path, "reid_raw.json", CUHK), counted)
    assert not calls
    for part in splits.values():
        part[0], part[-1]
    assert len(calls) == 1
    assert calls[0] == splits["train"].texts  # never those of the test


def test_what_tells_one_training_from_another(tmp_path):
    def of(name: str, records: Sequence[dict], tokens: Any = words) -> dict[str, Any]:
        return fingerprint(read_cuhk_pedes(write(tmp_path / name, "reid_raw.json", records), tokens)["train"])

    first = of("a", CUHK)
    assert of("b", CUHK) == first
    assert first["images"] == 10
    assert first["people"] == 5
    other = [{**CUHK[0], "captions": ["a man", "a man in rag", "he walks"]}, *CUHK[1:]]
    assert of("c", other)["captions"] != first["captions"]
    other = [{**CUHK[0], "id": 77}, *CUHK[1:]]
    assert of("d", other)["identities"] != first["identities"]
    changed = {k for k, v in of("e", CUHK, lambda _: Words(["[PAD]", "a"])).items() if v != first[k]}
    assert changed == {"vocabulary"}


@pytest.mark.parametrize(
    ("caption", "side"),
    [
        ("a bag in her left hand", True),
        ("On the RIGHT, a bag", True),
        ("left-handed", True),
        ("a bright coat", False),
        ("he leftover", False),
        ("", False),
    ],
)
def test_captions_that_name_a_side(caption, side):
    assert names_side(["a coat", caption]) == side


def test_a_sentence_of_any_bytes(tmp_path):
    """Half a character, and bytes that are not UTF-8: the sentence stays one, and no reader breaks."""
    records = [record("a.jpg", 1, s, "a \ud800 coat", "a red coat") for s in ("train", "test")]
    root = write(tmp_path, "reid_raw.json", records)
    data = (root / "reid_raw.json").read_bytes().replace(b"red", b"r\xe9d")
    (root / "reid_raw.json").write_bytes(data)
    splits = read_cuhk_pedes(root, words)
    assert splits["train"].texts[1] == "a r\udce9d coat"
    assert fingerprint(splits["train"])["images"] == 2
    assert splits["test"][0].lengths.tolist() == [2, 4]


@pytest.mark.parametrize("people", [5, 6, 8, 9])
def test_few_drawn_people(tmp_path, people):
    """However few, there are two to tell apart in the test."""
    shots = _plan(5 * people, 0, 5, {"train": 0.7, "val": 0.1, "test": 0.2})
    counts = [len({s.who for s in shots if s.split == split}) for split in ("train", "val", "test")]
    assert sum(counts) == people
    assert min(counts[0], counts[2]) >= 2
    with pytest.raises(HapError, match="at least 5 people"):
        _plan(24, 0, 5, {"train": 0.7, "val": 0.1, "test": 0.2})


@pytest.mark.parametrize(
    ("dataset", "read", "captions", "images"),
    [
        ("cuhk_pedes", read_cuhk_pedes, 2, 4),
        ("icfg_pedes", read_icfg_pedes, 1, 4),
        ("rstpreid", read_rstpreid, 2, 5),
        ("described", read_described, 2, 4),
    ],
)
def test_drawn_people_are_read(drawn, dataset, read, captions, images):
    root = drawn(dataset, 40)
    splits = read(root, words)
    train, test = splits["train"], splits["test"]
    assert len(train) == captions * images * len(train.people)
    found = {name: set(part.people) for name, part in splits.items()}
    assert not found["train"] & found["test"]
    parts = {id(part): part for part in splits.values()}.values()
    assert sum(len(part.items) for part in parts) == 40
    assert len({name for part in parts for name in part.names}) == 40
    assert all(len(r.captions) == captions for r in test)
    assert train[0].pixels().shape[2] == 3
    assert all(text.isascii() and text.strip() for text in train.texts)
    assert isinstance(train, TextRecords)
    if dataset == "icfg_pedes":
        raw = read_json(root / "ICFG-PEDES/ICFG-PEDES.json")
        assert [isinstance(r["processed_tokens"][0][0], list) for r in raw] == [
            r["split"] == "test" for r in raw
        ]
    if dataset == "cuhk_pedes":
        assert {Path(name).suffix for part in parts for name in part.names} == {".jpg", ".png"}
