"""Attributes end to end on drawn people: what is trained, kept, evaluated and predicted."""

import csv
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import TINY, config

import hap
from hap.building import build
from hap.data.decoding import decode_image
from hap.description import add_experiment
from hap.errors import HapError
from hap.metrics.attributes import best_thresholds, label_scores
from hap.runner import run
from hap.tasks.attribute import Attribute

NAMES = ("hat", "bag", "female")
FEW = ("task.recipe.warmup_epochs=1", "task.recipe.lr=1e-3", "trainer.check_val_every_n_epoch=1")
COMMON = (*TINY, *FEW, "experiment=attribute_pa100k", "data=attributes", "epochs=3", "total_batch_size=8")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Images with three attributes that can be seen: blue above, white below, red on the left."""
    folder = tmp_path_factory.mktemp("attributes")
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 16), ("test", 17)):
        lines = [f"image,{','.join(NAMES)}"]
        for i in range(count):
            labels = rng.integers(0, 2, 3)
            image = rng.integers(60, 120, (64, 32, 3), np.uint8)
            image[:20, :, 2] += np.uint8(120 * labels[0])
            image[44:] += np.uint8(100 * labels[1])
            image[:, :10, 0] += np.uint8(120 * labels[2])
            name = f"{split}{i:02d}.png"
            cv2.imwrite(str(folder / name), image[..., ::-1])
            lines.append(f"{name},{','.join(map(str, labels))}")
        (folder / f"{split}.csv").write_text("\n".join(lines))
    return folder


def rows_of(file: Path) -> list[list[str]]:
    return list(csv.reader(file.read_text().splitlines()))


def train(root: Path, folder: Path, *overrides: str) -> dict[str, float]:
    return run("train", config("train", *COMMON, f"data.root={root}", *overrides), folder)


def evaluate(root: Path, folder: Path, checkpoint: Path, *overrides: str) -> dict[str, float]:
    options = (*COMMON, f"data.root={root}", f"ckpt_path={checkpoint}", *overrides)
    return run("eval", config("eval", *options), folder)


def protocol(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())["protocol"]


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory) -> Path:
    """Run folder of a training that has a validation part, an average of weights, and tuned thresholds."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(root, folder, "task.threshold=val")
    return folder


@pytest.mark.parametrize(("decay", "which"), [("0.5", "EMA"), ("null", "raw")])
def test_the_file_is_the_number(root, tmp_path, decay, which):
    """What an evaluation of the checkpoint gives is what training logged, on the weights that it names."""
    options = (f"task.ema_decay={decay}", "data.reader.train_on=trainval")
    logged = train(root, tmp_path / "run", *options)
    again = evaluate(root, tmp_path / "eval", tmp_path / "run/checkpoints/last.ckpt", *options)
    for name in ("mA", "accuracy", "precision", "recall", "F1", "loss"):
        assert again[f"test/{name}"] == pytest.approx(logged[f"val/{name}"], abs=1e-6), name
    assert protocol(tmp_path / "eval")["weights"] == which
    assert protocol(tmp_path / "run")["split"] == protocol(tmp_path / "eval")["split"] == "test"
    assert "best_val/mA" not in logged  # it would be chosen on the test
    assert not (tmp_path / "run/checkpoints/best.ckpt").exists()


def test_weights_of_the_official_code_are_what_is_evaluated(root, tmp_path):
    """Also where the recipe evaluates an average: there is none but these weights."""
    options = ("task.ema_decay=null", "data.reader.train_on=trainval", "epochs=1")
    logged = train(root, tmp_path / "run", *options)
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    model = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    names = {k: f"classifier.logits.0.{k[5:]}" if k.startswith("head.") else f"backbone.{k}" for k in model}
    file = tmp_path / "official.pth"
    torch.save({"state_dicts": {f"module.{names[k]}": v for k, v in model.items()}, "epoch": "0"}, file)
    overrides = (*COMMON, f"data.root={root}", f"weights={file}", "task.ema_decay=0.5", *options[1:])
    results = run("eval", config("eval", *overrides), tmp_path / "eval")
    for name in ("mA", "F1", "loss"):
        assert results[f"test/{name}"] == pytest.approx(logged[f"val/{name}"], abs=1e-6), name
    assert protocol(tmp_path / "eval")["weights"] == str(file)
    cfg = config("predict", *COMMON, f"weights={file}", "task.model.num_attributes=3", f"input={root}")
    with pytest.raises(HapError, match="does not name the attributes"):
        run("predict", cfg, tmp_path / "predict")


def test_the_average_follows_every_step(root, tmp_path, monkeypatch):
    """e <- d e + (1 - d) w after each step, from the weights before the first; the decay is per 64 images."""
    states = []
    step = Attribute.optimizer_step

    def noted(task, *args, **kwargs):
        states.append({k: v.clone() for k, v in task.model.state_dict().items()})
        step(task, *args, **kwargs)

    monkeypatch.setattr(Attribute, "optimizer_step", noted)
    train(root, tmp_path / "run", "task.ema_decay=0.5", "epochs=1", "micro_batch_size=4")
    assert len(states) == 5  # the weights before each of them
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    states.append({name: checkpoint[f"model.{name}"] for name in states[0]})
    decay, expected = 0.5 ** (8 / 64), states[0]
    for state in states[1:]:
        expected = {k: decay * v + (1 - decay) * state[k] for k, v in expected.items()}
    for name, value in expected.items():
        torch.testing.assert_close(checkpoint[f"ema.module.{name}"], value)


@pytest.mark.parametrize("stop", [5, 7])  # at the end of an epoch, and within one
def test_a_stopped_run_goes_on_with_its_average_and_its_best(root, tmp_path, stop):
    whole = train(root, tmp_path / "whole")
    first = train(root, tmp_path / "run", f"trainer.max_steps={stop}")
    resumed = train(root, tmp_path / "run", "resume=auto")
    states = [
        torch.load(tmp_path / f"{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "run")
    ]
    torch.testing.assert_close(*states, rtol=0, atol=0, equal_nan=True)
    for name in ("val/mA", "best_val/mA", "best_val/epoch"):
        assert resumed[name] == whole[name], name
    assert resumed["best_val/mA"] >= first["best_val/mA"]


def test_passes_of_a_step_have_the_gradient_of_one(root, tmp_path):
    norms = [
        train(root, tmp_path / f"run{micro}", f"micro_batch_size={micro}", "trainer.max_steps=1")[
            "train/grad_norm"
        ]
        for micro in (8, 2)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


def test_shares_of_yes_are_of_the_training_labels(root, trained):
    rows = rows_of(root / "train.csv")[1:]
    expected = np.array([[int(x) for x in row[1:]] for row in rows]).mean(0)
    ratio = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)["state_dict"]["ratio"]
    assert ratio.tolist() == pytest.approx(expected.tolist())


def test_the_best_epoch_is_kept_where_validation_is_not_the_test(root, trained, tmp_path):
    results = json.loads((trained / "results.json").read_text())
    with next((trained / "logs").rglob("metrics.csv")).open() as file:
        scores = [float(row["val/mA"]) for row in csv.DictReader(file) if row["val/mA"]]
    assert len(scores) == 3
    assert results["best_val/mA"] == pytest.approx(max(scores))
    assert results["best_val/epoch"] == scores.index(max(scores))
    assert results["val/mA"] == pytest.approx(scores[-1])
    best = torch.load(trained / "checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] == results["best_val/epoch"]
    assert protocol(trained)["split"] == "val"


def test_thresholds_are_tuned_on_validation_and_kept(root, trained, tmp_path):
    state = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    cfg = config("eval", *COMMON, f"data.root={root}", "task.model.num_attributes=3", "task.threshold=val")
    task, data = build(cfg.task, "task"), build(cfg.data, "data")
    task.load_state_dict(state)
    batch = torch.utils.data.default_collate([data.dataset("val")[0, i] for i in range(16)])
    with torch.no_grad():
        probability = task.eval()(batch).sigmoid()
    assert state["thresholds"].tolist() == best_thresholds(probability, batch["labels"]).tolist()
    assert not (state["thresholds"] == 0.5).all()

    results = evaluate(root, tmp_path / "eval", trained / "checkpoints/last.ckpt", "task.threshold=val")
    batch = torch.utils.data.default_collate([data.dataset("test")[0, i] for i in range(17)])
    with torch.no_grad():
        scores = label_scores(task(batch).sigmoid(), batch["labels"], state["thresholds"])
    assert results["test/mA"] == pytest.approx(scores.mA.mean().item())
    assert "tuned on the validation split" in protocol(tmp_path / "eval")["threshold"]


@pytest.mark.slow
def test_two_processes_evaluate_as_one(root, trained, tmp_path):
    """17 images on two processes: one is seen twice, and counts once. Tables, thresholds and pictures are of all."""
    checkpoint = trained / "checkpoints/best.ckpt"
    one = evaluate(root, tmp_path / "one", checkpoint, "task.threshold=val")
    options = (
        *COMMON,
        f"data.root={root}",
        f"ckpt_path={checkpoint}",
        "task.threshold=val",
        "data.eval_batch_size=4",
    )
    command = [sys.executable, "-m", "hap.eval", *options, "trainer=ddp_cpu", f"run_dir={tmp_path}/two"]
    subprocess.run(command, check=True, cwd=tmp_path)
    two = json.loads((tmp_path / "two/results.json").read_text())
    for name, value in one.items():
        if name.startswith("test/"):
            assert two[name] == pytest.approx(value, rel=1e-5), name
    tables = [(tmp_path / name / "per_attribute.csv").read_text() for name in ("one", "two")]
    assert tables[0] == tables[1]


def test_thresholds_are_not_tuned_on_the_test(root, tmp_path):
    with pytest.raises(HapError, match=r"data\.reader\.train_on=train"):
        train(root, tmp_path / "run", "task.threshold=val", "data.reader.train_on=trainval")


def test_an_average_that_stays_untrained_is_told(root, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train(root, tmp_path / "run", "epochs=1")
    left = 0.9998 ** (8 / 64 * 5)
    assert f"will still be {100 * left:.0f} % untrained ones at the end" in caplog.text


@pytest.mark.parametrize("threshold", ["1", "-0.1", "best"])
def test_a_threshold_is_a_probability(root, tmp_path, threshold):
    with pytest.raises(HapError, match=f"task.threshold={threshold}"):
        train(root, tmp_path / "run", f"task.threshold={threshold}")


def test_an_evaluation_goes_by_name(root, trained, tmp_path):
    """Columns in another order give the same scores; an attribute that only one side has is named."""
    checkpoint = trained / "checkpoints/last.ckpt"
    expected = evaluate(root, tmp_path / "eval", checkpoint)
    other = tmp_path / "other"
    shutil.copytree(root, other)
    for split in ("train", "val", "test"):
        rows = rows_of(root / f"{split}.csv")
        with (other / f"{split}.csv").open("w") as file:
            csv.writer(file).writerows([row[0], row[3], row[1], row[2]] for row in rows)
    again = evaluate(other, tmp_path / "again", checkpoint)
    assert again["test/mA"] == expected["test/mA"]
    assert again["test/F1"] == expected["test/F1"]
    with pytest.raises(HapError, match="no labels for female, which the model puts out"):
        evaluate(root, tmp_path / "less", checkpoint, "data.reader.attributes=[hat,bag]")


def predict(folder: Path, checkpoint: Path, source: Path, *overrides: str) -> list[list[str]]:
    options = add_experiment([f"ckpt_path={checkpoint}"])
    quiet = (
        "trainer=cpu",
        "callbacks.progress=null",
        "trainer.enable_progress_bar=false",
        "data.num_workers=0",
    )
    run("predict", config("predict", *options, *quiet, f"input={source}", *overrides), folder)
    return rows_of(folder / "attributes.csv")


def test_predictions_have_the_names_of_the_checkpoint(root, trained, tmp_path):
    table = predict(tmp_path / "one", trained / "checkpoints/last.ckpt", root)
    assert table[0] == ["image", *NAMES, "positive"]
    assert len(table) == 1 + 73
    thresholds = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)["state_dict"]["thresholds"]
    for row in table[1:]:
        yes = [n for n, p, t in zip(NAMES, row[1:4], thresholds, strict=True) if np.float32(p) > t]
        assert row[4] == ";".join(yes)
    assert len(list((tmp_path / "one/pictures").glob("*.png"))) == 60
    assert (tmp_path / "one/contact_sheet.png").exists()

    moved = tmp_path / "elsewhere" / "people.ckpt"
    moved.parent.mkdir()
    shutil.copy(trained / "checkpoints/last.ckpt", moved)
    predict(tmp_path / "two", moved, root)
    first, second = ((tmp_path / name / "attributes.csv").read_bytes() for name in ("one", "two"))
    assert first == second


def test_predictions_of_others_are_scored_without_a_model(root, trained, tmp_path):
    """The table that a prediction writes gives the scores of the evaluation."""
    checkpoint = trained / "checkpoints/last.ckpt"
    predict(tmp_path / "table", checkpoint, root, "task.threshold=0.5")
    expected = evaluate(root, tmp_path / "eval", checkpoint, "task.threshold=0.5")
    options = (*COMMON, f"data.root={root}", f"predictions={tmp_path}/table/attributes.csv")
    results = run("eval", config("eval", *options), tmp_path / "scored")
    for name in ("mA", "accuracy", "precision", "recall", "F1", "AP", "images"):
        assert results[f"test/{name}"] == pytest.approx(expected[f"test/{name}"], rel=1e-6), name
    assert protocol(tmp_path / "scored")["weights"] == f"none: {tmp_path}/table/attributes.csv"
    for name in ("per_attribute.csv", "pictures/thresholds.png"):
        assert (tmp_path / "scored" / name).exists()
        assert (tmp_path / "eval" / name).exists()
    per_attribute = [(tmp_path / n / "per_attribute.csv").read_text() for n in ("scored", "eval")]
    assert per_attribute[0] == per_attribute[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [row[:3] for row in rows], "no column female"),
        (lambda rows: rows[:-1], "1 of 17 images are missing, test16.png is the first"),
        (lambda rows: [*rows, rows[1]], "line 19: the image of line 2 again, test00.png"),
        (
            lambda rows: [rows[0], [rows[1][0], "0.1", "no", "0.2"], *rows[2:]],
            "line 2: bag is 'no', no probability from 0 to 1",
        ),
        (
            lambda rows: [rows[0], [rows[1][0], "0.1", "nan", "0.2"], *rows[2:]],
            "line 2: bag is 'nan', no probability from 0 to 1",
        ),
        (
            lambda rows: [rows[0], [rows[1][0], "0.1", "1.5", "0.2"], *rows[2:]],
            "line 2: bag is '1.5', no probability from 0 to 1",
        ),
    ],
)
def test_tables_that_cannot_be_scored(root, tmp_path, change, message):
    rows = [["image", *NAMES], *([f"test{i:02d}.png", "0.1", "0.6", "0.7"] for i in range(17))]
    with (tmp_path / "t.csv").open("w") as file:
        csv.writer(file).writerows(change(rows))
    with pytest.raises(HapError, match=message):
        run(
            "eval",
            config("eval", *COMMON, f"data.root={root}", f"predictions={tmp_path}/t.csv"),
            tmp_path / "run",
        )


def test_predictions_are_for_evaluation_alone(root, tmp_path):
    with pytest.raises(HapError, match="in place of ckpt_path= and weights="):
        run("train", config("train", *COMMON, f"data.root={root}", "predictions=t.csv"), tmp_path / "run")
    with pytest.raises(HapError, match="table not found"):
        run("eval", config("eval", *COMMON, f"data.root={root}", "predictions=t.csv"), tmp_path / "run")


def test_undefined_recalls_are_named(root, trained, tmp_path, caplog):
    other = tmp_path / "other"
    shutil.copytree(root, other)
    rows = rows_of(root / "test.csv")
    with (other / "test.csv").open("w") as file:
        csv.writer(file).writerows([rows[0], *([row[0], "0", row[2], row[3]] for row in rows[1:])])
    with caplog.at_level(logging.WARNING):
        results = evaluate(other, tmp_path / "eval", trained / "checkpoints/last.ckpt")
    assert "nobody is labelled yes: hat" in caplog.text
    header, hat, *_ = rows_of(tmp_path / "eval/per_attribute.csv")
    row = dict(zip(header, hat, strict=True))
    assert (row["attribute"], row["positives"], row["negatives"], row["unknown"]) == ("hat", "0", "17", "0")
    assert (row["pos_recall"], row["ap"]) == ("0", "")
    assert results["test/undefined_recalls"] == 1
    assert results["test/mA_defined"] > results["test/mA"]


def test_from_python(root, trained, tmp_path):
    """The same as the program, for images of any size in memory."""
    table = predict(tmp_path / "run", trained / "checkpoints/last.ckpt", root)
    model = hap.load(trained / "checkpoints/last.ckpt")
    images = [decode_image(Path(row[0]).read_bytes()) for row in table[1:6]]
    found = model.predict(images)
    assert found.names == model.names["attributes"] == tuple(NAMES)
    expected = [[float(x) for x in row[1:4]] for row in table[1:6]]
    np.testing.assert_allclose(found.probability, expected, atol=1e-6)
    assert model.predict(np.zeros((200, 50, 3), np.uint8)).probability.shape == (1, 3)
