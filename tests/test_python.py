"""hap.load and Model.predict: the examples of docs/python.md, and what they do not show."""

import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_PRETRAIN, config
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

import hap
from hap.building import build
from hap.config import CONF_DIR
from hap.description import describe_run
from hap.errors import HapError
from hap.pose.skeletons import COCO

PAGE = Path(__file__).parents[1] / "docs/python.md"
TASKS = {
    "pretrain": (("experiment=pretrain_hap", *TINY_PRETRAIN), {}),
    "attribute": (
        ("experiment=attribute_pa100k", *TINY, "task.model.num_attributes=26"),
        {"attributes": [f"attribute {n}" for n in range(26)]},
    ),
    "reid": (
        ("experiment=reid_market1501", *TINY, "task.model.num_classes=2"),
        {"people": ["0001", "0002"]},
    ),
    "text_reid": (
        (
            *("experiment=text_reid_cuhk", *TINY, "text_encoder=words", "task.model.embedding=16"),
            *("task.model.num_classes=2", "task.model.vocabulary=8"),
        ),
        {"people": ["1", "2"], "vocabulary": ["[PAD]", *["a", "woman", "in", "red", "man", "with", "bag"]]},
    ),
    "pose2d": (("experiment=pose2d_coco", *TINY, "task.model.num_joints=17"), COCO.labels()),
    "pose3d": (
        (
            *("experiment=pose3d_3dpw", *TINY, "img_size=[256,256]", "task.model.vposer=null", "body=drawn"),
            *("synthetic=true", "task.model.feature_dim=32", "task.model.graph_dim=16"),
        ),
        {},
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images a.jpg, b.jpg, c.jpg, and checkpoints of untrained models, which say what they are."""
    folder = tmp_path_factory.mktemp("python")
    rng = np.random.default_rng(0)
    for name in "abc":
        pixels = rng.integers(0, 256, (120, 70, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.jpg")
    for name, (options, labels) in TASKS.items():
        torch.manual_seed(0)
        cfg = config("train", *options)
        task = build(cfg.task, "task")
        content = {"state_dict": task.state_dict(), "hap": describe_run(cfg, labels)}
        task.on_save_checkpoint(content)
        torch.save(content | {"pytorch-lightning_version": "2"}, folder / f"{name}.ckpt")
    return folder


def test_the_examples_run(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    page = PAGE.read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) == 5
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert "attribute 25" in capsys.readouterr().out


def test_images_of_every_kind_are_the_same(folder):
    model = hap.load(folder / "pretrain.ckpt")
    path = folder / "a.jpg"
    image = Image.open(path)
    array = np.asarray(image)
    one = model.predict(path).feature
    for given in (str(path), image, array, [path], [array]):
        np.testing.assert_array_equal(model.predict(given).feature, one)
    with torch.no_grad():
        pixels = model.transform(
            array, {"keypoints": np.zeros((17, 3), np.float32)}, np.random.default_rng(0)
        )
        tokens = model.task.model.features(model.task.normalize(pixels["image"][None]))
    np.testing.assert_allclose(one, tokens[:, 0].numpy(), atol=1e-6)
    many = [path, folder / "b.jpg", array[:50]]
    together = model.predict(many).feature
    apart = np.concatenate([model.predict(image).feature for image in many])
    np.testing.assert_allclose(together, apart, atol=1e-5)
    np.testing.assert_allclose(model.predict(many, batch_size=2).feature, together, atol=1e-5)
    assert model.predict([]).feature.shape == (0, 32)
    assert model.size == (64, 32)
    assert model.predict(image.convert("L")).feature.shape == (1, 32)


def test_an_image_is_turned_upright(folder):
    turned = folder / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(folder / "a.jpg")
    image.save(turned, exif=exif, quality=100, subsampling=0)
    upright = Image.open(turned).transpose(Image.Transpose.ROTATE_270)
    model = hap.load(folder / "reid.ckpt")
    np.testing.assert_allclose(model.predict(turned).feature, model.predict(upright).feature, atol=1e-3)
    assert np.linalg.norm(model.predict(turned).feature) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((20, 10), np.uint8), r"image 0 is uint8 \(20, 10\): an image is"),
        (np.zeros((20, 10, 4), np.uint8), "image 0 is uint8"),
        (np.zeros((20, 10, 3)), "image 0 is float64"),
        ("no.jpg", "no.jpg: .*No such file"),
        (None, "None"),
    ],
)
def test_what_is_no_image_is_one_message(folder, image, message):
    with pytest.raises(HapError, match=message):
        hap.load(folder / "attribute.ckpt").predict([image])


def test_arguments_of_another_task_are_refused(folder):
    image = np.zeros((20, 10, 3), np.uint8)
    model = hap.load(folder / "reid.ckpt")
    for name, value in {"boxes": [[0, 0, 5, 5]], "keypoints": np.zeros((1, 17, 3)), "focal": 900}.items():
        with pytest.raises(HapError, match=f"{name}: not for a model of the task Reid"):
            model.predict(image, **{name: value})
    with pytest.raises(HapError, match="batch_size=0"):
        model.predict(image, batch_size=0)
    pose = hap.load(folder / "pose2d.ckpt")
    with pytest.raises(HapError, match="boxes of 1 images, 2 images"):
        pose.predict([image, image], [[[0, 0, 5, 5]]])
    assert pose.predict([image, image], [None, np.empty((0, 4))]).image.tolist() == [0]


def test_sentences(folder, caplog):
    model = hap.load(folder / "text_reid.ckpt")
    texts = ["a man", "a woman in red with a bag"]
    both = model.embed_texts(texts)
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([model.embed_texts(text) for text in texts]), both, atol=1e-6)
    assert model.embed_texts([]).shape == (0, 16)
    assert "does not know" not in caplog.text
    long = model.embed_texts("red lady " * 300)
    np.testing.assert_allclose(long, model.embed_texts("red " * 100), atol=1e-6)
    assert "words that this model does not know: lady" in caplog.text
    with pytest.raises(HapError, match="no word of sentence 2, 'gentleman', is in the vocabulary of this"):
        model.embed_texts(["a man", "gentleman"])
    with pytest.raises(HapError, match="embed_texts: not for a model of the task Reid"):
        hap.load(folder / "reid.ckpt").embed_texts("a man")


def test_within_a_program_of_hydra_and_in_threads(folder):
    found = []

    def work() -> None:
        model = hap.load(folder / "reid.ckpt")
        found.append(model.predict(folder / "a.jpg").feature)

    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        work()
        assert GlobalHydra.instance().hydra is before
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for feature in found:
        np.testing.assert_array_equal(feature, found[0])


def test_a_missing_file_is_one_message(tmp_path):
    with pytest.raises(HapError, match="checkpoint not found"):
        hap.load(tmp_path / "no.ckpt")
    with pytest.raises(AttributeError, match="no attribute 'load_model'"):
        _ = hap.load_model
