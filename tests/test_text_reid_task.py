"""Text-to-image ReID end to end: drawn people with captions, trained, resumed, evaluated, and searched."""

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import TINY, config
from hydra.utils import instantiate
from torch.nn import functional as F

from hap.cli import quote_paths
from hap.data.kept import read_kept
from hap.data.text_files import read_cuhk_pedes
from hap.data.transforms import ReidEval
from hap.description import add_experiment
from hap.errors import HapError
from hap.people import find_people
from hap.runner import run
from hap.tasks.text_reid import TextReid
from hap.text.tokens import KNOWN, Words, tokenizer_of

SMALL = (
    "experiment=text_reid_cuhk",
    *TINY,
    "task.model.embedding=16",
    "total_batch_size=16",
    "epochs=2",
    "data.eval_batch_size=3",
)
WORDS = (*SMALL, "text_encoder=words")


@pytest.fixture(scope="module")
def people(drawn) -> Path:
    """15: 10 in training, 2 in validation, 3 in the test, 4 images and 8 captions each."""
    return drawn("cuhk_pedes", 60)


def train(people: Path, folder: Path, *more: str) -> dict[str, float]:
    return run("train", config("train", *(more or WORDS), f"data.root={people}"), folder)


def evaluate(people: Path, folder: Path, checkpoint: Path, *more: str) -> dict[str, float]:
    options = (*(more or WORDS), f"ckpt_path='{checkpoint}'", f"data.root={people}")
    run("eval", config("eval", *options), folder)
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def trained(people, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(people, folder, *WORDS, "callbacks.checkpoint.every_n_steps=3", "callbacks.checkpoint.keep=null")
    return folder


@pytest.fixture(scope="module")
def last(trained) -> Path:
    return trained / "checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def scores(people, last, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("scores") / "eval"
    return folder, evaluate(people, folder, last)


def of_checkpoint(path: Path) -> TextReid:
    checkpoint = torch.load(path, weights_only=True)
    labels = checkpoint["hap"]["labels"]
    sizes = (
        f"task.model.num_classes={len(labels['people'])}",
        f"task.model.vocabulary={len(labels['vocabulary'])}",
    )
    task = instantiate(config("train", *WORDS, *sizes).task, _convert_="all")
    task.load_state_dict(checkpoint["state_dict"])
    task.labels = labels
    return task.eval()


def test_a_training_leaves_what_it_should(trained):
    results = json.loads((trained / "results.json").read_text())
    assert {
        "val/rank1",
        "val/mAP",
        "val/mAP_trapz",
        "val/mINP",
        "val/other_rank1",
        "train/matching",
    } <= results.keys()
    assert "val/loss" not in results
    assert results["best_val/rank1"] >= results["val/rank1"]
    assert results["steps"] == 10  # of 80 pairs
    assert results["protocol"]["split"] == "val"
    assert results["protocol"]["data"] == "CUHK-PEDES, standard"
    checkpoint = torch.load(trained / "checkpoints/best.ckpt", weights_only=True)
    labels = checkpoint["hap"]["labels"]
    assert labels["people"] == [str(i) for i in range(1, 11)]
    assert labels["vocabulary"][0] == "[PAD]"
    assert (trained / "pictures/worst_queries_step0000010.png").is_file()


@pytest.mark.slow
def test_it_learns_sixteen_people(drawn, tmp_path):
    """Spec 10.15: every caption finds its own people, of those that it was trained on."""
    root = drawn("cuhk_pedes", 64)
    images = root / "CUHK-PEDES/imgs"
    lines = []
    for record in json.loads((root / "CUHK-PEDES/reid_raw.json").read_text()):
        own = {"image": record["file_path"], "identity": record["id"], "captions": record["captions"]}
        lines += [json.dumps(own | {"split": split}) for split in ("train", "test")]
    (images / "captions.jsonl").write_text("\n".join(lines))
    options = (
        *("experiment=text_reid_own", *SMALL[1:], "text_encoder=words", "epochs=80"),
        *("model.patch_size=8", "model.embed_dim=64", "task.model.embedding=64", "task.model.drop_path=0"),
        *("task.recipe.lr=3e-3", "task.recipe.encoder_lr=2e-3", "task.recipe.milestones=[60]"),
        *("data.transforms.train.padding=2", "trainer.check_val_every_n_epoch=80"),
    )
    results = run("train", config("train", *options, f"data.root={images}"), tmp_path / "run")
    assert results["val/rank1"] == 1


def test_the_official_protocol_has_a_best_epoch_on_the_test_and_no_file_of_it(people, tmp_path):
    results = train(people, tmp_path, *WORDS, "epochs=1", "data.reader.protocol=official")
    assert not (tmp_path / "checkpoints/best.ckpt").exists()
    assert results["val/num_valid"] == 24  # of the test part
    assert results["best_test/rank1"] == results["val/rank1"]
    assert results["best_test/epoch"] == 0
    assert "best_val/rank1" not in results
    assert json.loads((tmp_path / "results.json").read_text())["protocol"]["split"] == "test"


def test_a_resumed_run_is_the_uninterrupted_one(people, trained, tmp_path):
    steps = sorted((trained / "checkpoints").glob("step-*.ckpt"))
    train(people, tmp_path, *WORDS, f"ckpt_path={steps[0]}")  # in the middle of an epoch
    states = [torch.load(f / "checkpoints/last.ckpt", weights_only=True) for f in (trained, tmp_path)]
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][name]), name


@pytest.mark.parametrize("change", ["a caption", "a vocabulary"])
def test_a_run_of_other_captions_does_not_go_on(people, last, tmp_path, change):
    own = tmp_path / "own"
    shutil.copytree(people, own)
    file = own / "CUHK-PEDES/reid_raw.json"
    records = json.loads(file.read_text())
    if change == "a caption":
        records[0]["captions"][0] = records[0]["captions"][1]
        file.write_text(json.dumps(records))
        with pytest.raises(HapError, match="captions"):
            train(own, tmp_path / "run", *WORDS, f"ckpt_path={last}", "epochs=3")
    else:  # the same number of words
        words = {w for r in records if r["split"] == "train" for c in r["captions"] for w in c.split()}
        text = file.read_text()
        assert "black" in words
        file.write_text(text.replace("black", "blackish"))
        with pytest.raises(HapError, match="vocabulary"):
            train(own, tmp_path / "run", *WORDS, f"ckpt_path={last}", "epochs=3")


def literal(
    similarity: np.ndarray, queries: list[str], gallery: list[str], own: list[int] | None
) -> dict[str, float]:
    """Scores as their definitions say, one caption after the other."""
    found: dict[str, list[float]] = {k: [] for k in ("rank1", "rank5", "rank10", "mAP", "mAP_trapz", "mINP")}
    for i, person in enumerate(queries):
        order = [j for j in np.argsort(-similarity[i], kind="stable") if own is None or j != own[i]]
        hits = [r for r, j in enumerate(order) if gallery[j] == person]
        if not hits:
            continue
        for k in (1, 5, 10):
            found[f"rank{k}"].append(float(hits[0] < k))
        after = [(n + 1) / (r + 1) for n, r in enumerate(hits)]
        before = [n / r if r else 1 for n, r in enumerate(hits)]
        found["mAP"].append(float(np.mean(after)))
        found["mAP_trapz"].append(float(np.mean([(a + b) / 2 for a, b in zip(after, before, strict=True)])))
        found["mINP"].append(len(hits) / (hits[-1] + 1))
    return {name: float(np.mean(values)) for name, values in found.items()}


def embedded(task: TextReid, records: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each image and of each caption, one at a time."""
    transform = ReidEval((64, 32))
    images, texts = [], []
    with torch.no_grad():
        for item in records:
            pixels = transform(item.pixels(), {}, np.random.default_rng(0))["image"]
            images.append(task.model.image_embedding(task.normalize(pixels[None].float()))[0])
            for row in tokenizer_of(task.labels["vocabulary"])(item.captions):
                length = torch.tensor([len(row)])
                texts.append(task.model.text_embedding(torch.tensor(row[None]).long(), length, length)[0])
    return F.normalize(torch.stack(images)), F.normalize(torch.stack(texts))


def test_an_evaluation_is_the_literal_one(people, last, scores):
    folder, results = scores
    records = read_cuhk_pedes(people, lambda texts: Words(["[PAD]", "a"]))["test"]
    image, text = embedded(of_checkpoint(last), records)
    gallery = [r.person for r in records]
    own = [i for i, r in enumerate(records) for _ in r.captions]
    queries = [gallery[i] for i in own]
    similarity = (text @ image.T).numpy()
    expected = literal(similarity, queries, gallery, None)
    other = literal(similarity, queries, gallery, own)
    expected |= {f"other_{name}": value for name, value in other.items() if name != "mINP"}
    assert {name: results[f"test/{name}"] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert results["test/num_gallery"] == len(gallery) == 12
    assert results["test/num_valid"] == len(queries) == 24
    assert results["protocol"]["padding"] == "zero"
    for name in ("best_queries", "worst_queries"):
        assert cv2.imread(str(folder / f"pictures/{name}.png")).std() > 10


def test_scores_do_not_depend_on_the_batch_or_the_description(people, last, scores, tmp_path):
    """A checkpoint says what it is: nothing but the file is given, from another folder, in another batch."""
    cfg = config("eval", *WORDS, f"ckpt_path={last}", f"data.root={people}", "data.eval_batch_size=64")
    run("eval", cfg, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    for name, value in scores[1].items():
        if name.startswith("test/"):
            assert results[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.slow
def test_two_processes_evaluate_as_one(people, last, scores, tmp_path):
    options = (
        *WORDS,
        f"ckpt_path={last}",
        f"data.root={people}",
        "trainer=ddp_cpu",
        f"run_dir={tmp_path}/two",
    )
    subprocess.run([sys.executable, "-m", "hap.eval", *options], check=True, cwd=tmp_path)
    results = json.loads((tmp_path / "two/results.json").read_text())
    for name, value in scores[1].items():
        if name.startswith("test/"):
            assert results[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["text_reid_cuhk", "text_reid_cuhk_sdm"])
def test_two_processes_train(people, tmp_path, experiment):
    """Every parameter that learns has a gradient on both; the losses are compared in test_text_reid_parts."""
    options = (*WORDS, f"experiment={experiment}", "epochs=1", f"data.root={people}", "trainer=ddp_cpu")
    command = [sys.executable, "-m", "hap.train", *options[1:], f"run_dir={tmp_path}/two"]
    subprocess.run(command, check=True, cwd=tmp_path)
    results = json.loads((tmp_path / "two/results.json").read_text())
    assert results["steps"] == 5
    assert np.isfinite(results["train/loss"])
    assert results["val/num_valid"] == 16


def test_another_batch_than_the_recipe_s_is_said(people, tmp_path, caplog):
    train(people, tmp_path, *WORDS, "trainer.max_steps=1", "epochs=1")
    assert "16 pairs per step, the recipe is one of 64" in caplog.text


def search(checkpoint: Path, folder: Path, *more: str) -> list[dict[str, str]]:
    run("predict", config("predict", *WORDS, f"ckpt_path='{checkpoint}'", *quote_paths(list(more))), folder)
    with (folder / "rankings.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def gallery(people, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own images, of 2026")
    test = read_cuhk_pedes(people, lambda texts: Words(["[PAD]", "a"]))["test"]
    for i, item in enumerate(test):
        shutil.copy(item.root / item.name, folder / f"{i:02d}{Path(item.name).suffix}")
    return folder


TEXT = 'A woman\'s red coat = 100% wool, {size: 5}, "bag"'


@pytest.fixture(scope="module")
def searched(last, gallery, tmp_path_factory) -> tuple[Path, list[dict[str, str]]]:
    folder = tmp_path_factory.mktemp("searched") / "run"
    return folder, search(last, folder, f"text={TEXT}", f"gallery={gallery}")


def test_a_search(last, gallery, searched):
    folder, rows = searched
    assert [row["rank"] for row in rows] == [str(i) for i in range(1, 13)]
    assert {row["text"] for row in rows} == {TEXT}
    task = of_checkpoint(last)
    transform = ReidEval((64, 32))
    expected = {}
    with torch.no_grad():
        text = task.embed_texts([TEXT])[0]
        for path in gallery.iterdir():
            image = cv2.imread(str(path))[..., ::-1]
            pixels = transform(np.ascontiguousarray(image), {}, np.random.default_rng(0))["image"]
            feature = task.model.image_embedding(task.normalize(pixels[None].float()))[0]
            expected[str(path)] = (F.normalize(feature, dim=0) @ text).item()
    assert {row["gallery"]: float(row["similarity"]) for row in rows} == pytest.approx(expected, abs=1e-5)
    values = [float(row["similarity"]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert cv2.imread(str(folder / "ranked_gallery.png")).std() > 10
    with np.load(folder / "features.npz") as file:
        assert file["features"].shape == (12, 16)
        assert np.linalg.norm(file["features"], axis=1) == pytest.approx(1, abs=1e-5)


def test_kept_features_give_the_same(last, searched, tmp_path):
    folder, rows = searched
    assert search(last, tmp_path, f"text={TEXT}", f"gallery={folder}/features.npz") == rows
    assert (tmp_path / "ranked_gallery.png").is_file()


def test_sentences_of_a_file(last, gallery, searched, tmp_path, caplog):
    """One on each line, also from Windows; each is what it is alone. What the model does not know is told."""
    file = tmp_path / "sentences.txt"
    file.write_bytes(f"a man\r\n\r\n  {TEXT}  \r\nA man, zzz: {'a ' * 101}\r\n".encode("utf-8-sig"))
    rows = search(last, tmp_path / "run", f"text={file}", f"gallery={gallery}", "task.top_k=2")
    assert [row["text"] for row in rows][:4] == ["a man"] * 2 + [TEXT] * 2
    assert len(rows) == 6
    assert re.search("words that this model does not know: woman's, .*wool, size, 5, zzz$", caplog.text, re.M)
    assert "1 sentences are longer than 100 ids: their ends are not read" in caplog.text
    alone = [
        {**row, "similarity": pytest.approx(float(row["similarity"]), abs=1e-5)} for row in searched[1][:2]
    ]
    assert [{**row, "similarity": float(row["similarity"])} for row in rows[2:4]] == alone


def test_one_image_and_one_place(last, gallery, tmp_path):
    image = sorted(gallery.iterdir())[0]
    rows = search(last, tmp_path / "one", "text=a man", f"gallery={image}")
    assert [(row["rank"], row["gallery"]) for row in rows] == [("1", str(image))]
    rows = search(last, tmp_path / "top", "text=a man", f"gallery={gallery}", "task.top_k=1")
    assert len(rows) == 1
    with pytest.raises(HapError, match=r"task.top_k=0: give a number of images, 1 or more"):
        search(last, tmp_path / "none", "text=a man", f"gallery={gallery}", "task.top_k=0")


def test_images_that_are_gone_are_grey(last, searched, tmp_path):
    """Kept features are searched without their images."""
    with np.load(searched[0] / "features.npz") as file:
        kept = {name: file[name] for name in file.files}
    np.savez(tmp_path / "moved.npz", **kept | {"paths": np.array([f"/nowhere/{n}" for n in kept["names"]])})
    assert search(last, tmp_path / "run", f"text={TEXT}", f"gallery={tmp_path}/moved.npz") == searched[1]


def test_what_cannot_be_searched(last, gallery, tmp_path, searched):
    for options, message in (
        ((f"gallery={gallery}",), 'predict needs text="a woman in a red coat"'),
        (("text=a man",), "predict needs gallery=FOLDER"),
        (("text=' '", f"gallery={gallery}"), "there is no sentence in it"),
        (("text=a man", f"gallery={tmp_path}/nowhere"), "nowhere"),
        (("text=a man", f"gallery={tmp_path}/nowhere.npz"), "holds no features as hap predict keeps them"),
    ):
        with pytest.raises(HapError, match=message):
            search(last, tmp_path / "run", *options)
    for content, message in (
        (b"\n \n", "there is no sentence in it"),
        (b"a man\nlady zzz\nqqq, zzz!\n", "no word of sentence 3, 'qqq, zzz!', is in the vocabulary"),
        (b"a man\ncaf\xe9\n", "line 2, is not utf-8-sig text: save the file in UTF-8"),
        (None, "cannot read .*sentences.txt"),
    ):
        file = tmp_path / "sentences.txt"
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(HapError, match=message):
            search(last, tmp_path / "run", f"text={file}", f"gallery={searched[0]}/features.npz")


def hostile(kept: Mapping[str, np.ndarray]) -> dict[str, Mapping[str, np.ndarray]]:
    n = len(kept["names"])
    return {
        "no model": {k: v for k, v in kept.items() if k != "model"},
        "another model": {**kept, "model": np.array("0" * 64)},
        "code": {**kept, "names": np.array([print] * n, dtype=object)},
        "fewer names": {**kept, "names": kept["names"][1:]},
        "one axis": {**kept, "features": kept["features"][:, 0]},
        "not finite": {**kept, "features": np.full_like(kept["features"], np.nan)},
        "words": {**kept, "features": np.full((n, 16), "x")},
        "none": {
            **kept,
            "names": kept["names"][:0],
            "paths": kept["paths"][:0],
            "features": kept["features"][:0],
        },
        "another width": {**kept, "features": kept["features"][:, :5]},
        "names without a name": {**kept, "names": np.array("x")},
    }


def test_hostile_features(last, searched, tmp_path):
    with np.load(searched[0] / "features.npz") as file:
        kept = {name: file[name] for name in file.files}
    file = tmp_path / "x.npz"
    for name, content in hostile(kept).items():
        np.savez(file, **content)
        read = partial(read_kept, file)
        if name in ("another model", "another width"):
            read = partial(search, last, tmp_path / name, "text=a man", f"gallery={file}")
        with pytest.raises(HapError, match="features"):
            read()
    np.savez_compressed(tmp_path / "packed.npz", **kept)
    packed = (tmp_path / "packed.npz").read_bytes()
    np.save(tmp_path / "array.npy", kept["features"])
    array = (tmp_path / "array.npy").read_bytes()
    broken = packed[:60] + b"\xff" * 40 + packed[100:], packed[: len(packed) // 2]
    for data in (b"", b"PK\x03\x04 nonsense", b"\x80\x04cos\nsystem\n.", array, *broken):
        file.write_bytes(data)
        with pytest.raises(HapError, match="holds no features"):
            read_kept(file)


def test_text_is_for_this_task_alone(tmp_path, gallery):
    cfg = config(
        "predict", "experiment=reid_market1501", "text=a man", f"query='{gallery}'", f"gallery='{gallery}'"
    )
    with pytest.raises(HapError, match="text= is for models of text-to-image re-identification"):
        find_people(cfg, tmp_path, SimpleNamespace(inputs=("query", "gallery"), takes_texts=False))


@pytest.mark.parametrize(
    "sentence",
    [
        TEXT,
        "a man, a woman, and a bag",
        "key=value",
        "it's [1,2] (red) {x: 1} $5",
        'said "red"',
        "back\\slash\\",
        "100",
        "true",
        "衣服 caf\u00e9",
        "'quoted'' and not",
        "a ${x} coat",
    ],
)
def test_sentences_on_the_command_line(sentence):
    """What is typed is what is searched for."""
    cfg = config("predict", *WORDS, *quote_paths([f"text={sentence}"]))
    assert cfg.text == sentence


def as_official(state: dict[str, torch.Tensor], path: Path) -> Path:
    """As the official code saves its best epoch."""
    parts: dict[str, dict[str, torch.Tensor]] = {"network": {}, "W": {}}
    for name, value in state.items():
        name = name.removeprefix("model.")
        kind, _, rest = name.partition(".")
        if kind == "classifier":
            parts["W"][f"block.{rest}"] = value
        elif kind == "text":
            parts["network"][f"TextExtract.text_embed.{rest.removeprefix('bert.')}"] = value
        elif kind == "lstm":
            end = "_reverse" if rest.startswith("back") else ""
            parts["network"][f"TextExtract.lstm.{rest.partition('.')[2]}{end}"] = value
        elif kind == "projection":
            parts["network"]["conv_1X1_2.block.0.weight"] = value[..., None, None]
        else:
            parts["network"][f"ImageExtract.model.{name}"] = value
    torch.save({**parts, "optimizer": {"state": {}, "param_groups": []}, "epoch": 2}, path)
    return path


def test_a_checkpoint_of_bert_needs_no_folder(people, gallery, tmp_path):
    transformers = pytest.importorskip("transformers")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    records = json.loads((people / "CUHK-PEDES/reid_raw.json").read_text())
    said = [
        w
        for r in records
        for c in r["captions"]
        for w in c.lower().replace(".", " .").replace(",", " ,").split()
    ]
    vocabulary = list(dict.fromkeys([*special, *KNOWN.split(), *said]))
    bert = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    folder = tmp_path / "bert, tiny"
    transformers.BertModel(bert).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    options = (*SMALL, f"text_encoder='{folder}'", "task.model.text.dropout=official")
    train(people, tmp_path / "run", *options)
    last = tmp_path / "run/checkpoints/last.ckpt"
    state = torch.load(last, weights_only=True)["state_dict"]
    source = transformers.BertModel.from_pretrained(folder).state_dict()
    for name, value in state.items():  # it has not moved
        if name.startswith("model.text.bert."):
            assert torch.equal(value, source[name.removeprefix("model.text.bert.")]), name
    before = evaluate(people, tmp_path / "before", last, *options)
    official = as_official(state, tmp_path / "best.pth.tar")
    given = (*options, f"weights='{official}'", f"data.root={people}")
    scores = run("eval", config("eval", *given), tmp_path / "official")
    assert scores["test/mAP"] == pytest.approx(before["test/mAP"], abs=1e-6)
    shutil.rmtree(folder)
    given = [
        f"ckpt_path={last}",
        "trainer=cpu",
        "data.num_workers=0",
        "callbacks.progress=null",
    ]  # but the file
    run("eval", config("eval", *add_experiment([*given, f"data.root={people}"])), tmp_path / "after")
    after = json.loads((tmp_path / "after/results.json").read_text())
    for name, value in before.items():
        if name.startswith("test/"):
            assert after[name] == pytest.approx(value, abs=1e-6), name
    more = quote_paths([f"text={TEXT}", f"gallery={gallery}"])
    run("predict", config("predict", *add_experiment([*given, *more])), tmp_path / "search")
    assert (tmp_path / "search/ranked_gallery.png").is_file()
