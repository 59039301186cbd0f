"""boxes=detector and input=webcam: people who are looked for in whole pictures."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import config
from safetensors.torch import save_file
from torchvision.models import detection

from hap.building import build
from hap.data.boxes import read_boxes
from hap.data.sources import read_inputs
from hap.data.video import Video, record
from hap.detector import DETECTORS, TorchvisionDetector, cached, detect
from hap.errors import HapError
from hap.people import find_people
from hap.runner import run


@pytest.fixture
def pictures(tmp_path):
    """Three pictures with one, two and no bright figures on dark ground, and a damaged one."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, places in enumerate(([(10, 20)], [(5, 10), (60, 30)], [])):
        image = np.full((80, 100, 3), 30, np.uint8)
        for x, y in places:
            image[y : y + 40, x : x + 16] = 220
        cv2.imwrite(str(folder / f"{number}.png"), image)
    (folder / "3.png").write_bytes(b"no image")
    return read_inputs({"input": str(folder)})


class Brighter:
    """A detector by colour: what is brighter than the ground is somebody, the larger the surer."""

    def __init__(self, stop: int | None = None):
        self.seen, self.stop = 0, stop

    def __call__(self, image):
        if self.seen == self.stop:
            raise KeyboardInterrupt
        self.seen += 1
        count, _, stats, _ = cv2.connectedComponentsWithStats((image[..., 0] > 120).astype(np.uint8))
        x, y, w, h = stats[1:count, :4].T
        return np.stack([x, y, x + w, y + h], 1).astype(np.float32), np.full(count - 1, 0.9, np.float32)


def test_found_people_are_boxes_of_their_pictures(pictures, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        path = detect(Brighter, pictures, tmp_path / "detections.json", 0.5)
    found = json.loads(path.read_text())
    assert [(Path(d["image_id"]).name, d["bbox"]) for d in found] == [
        ("0.png", [10, 20, 16, 40]),
        ("1.png", [5, 10, 16, 40]),
        ("1.png", [60, 30, 16, 40]),
    ]
    assert "nobody is looked for in" in caplog.text
    assert "3.png" in caplog.text
    people = read_boxes(path, pictures, whole=True)
    assert [Path(person.name).name for person in people] == ["0.png, box 0", "1.png, box 1", "1.png, box 2"]
    assert people[1].pixels().shape == (80, 100, 3)
    assert people[1].annotations()["box"].tolist() == [5, 10, 16, 40]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["detections.json", "detections.lock", "pictures"]


def test_an_interrupted_search_goes_on(pictures, tmp_path):
    path = tmp_path / "detections.json"
    with pytest.raises(KeyboardInterrupt):
        detect(lambda: Brighter(stop=1), pictures, path, 0.5)
    assert not path.exists()
    notes = tmp_path / "detections.partial"
    notes.write_text(notes.read_text() + '{"image": "1.png", "bo')  # killed within a line
    second = Brighter()
    detect(lambda: second, pictures, path, 0.5)
    assert second.seen == 2  # the damaged picture is not seen at all
    assert len(json.loads(path.read_text())) == 3
    detect(lambda: pytest.fail("all is found"), pictures, path, 0.5)


def test_notes_of_other_pictures_are_not_taken(pictures, tmp_path):
    (tmp_path / "detections.partial").write_text('{"image": "z.png", "boxes": [], "scores": []}\n')
    detect(Brighter, pictures, tmp_path / "detections.json", 0.5)
    assert len(json.loads((tmp_path / "detections.json").read_text())) == 3


def test_nobody_is_told(pictures, tmp_path):
    with pytest.raises(HapError, match=r"nobody in 4 pictures with a score of 0.95 .*detector_score=0.1"):
        detect(Brighter, pictures, tmp_path / "detections.json", 0.95)


@pytest.mark.parametrize("name", DETECTORS)
def test_weights_that_are_not_there(name, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(HapError) as error:
        TorchvisionDetector(name)
    message = str(error.value)
    assert str(cached(name)) in message
    assert DETECTORS[name][1].url in message
    assert "MB" in message
    assert "detector_weights=FILE" in message


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """torchvision's network for CPUs, untrained, which takes most things for people; and the file of its weights."""
    torch.manual_seed(0)
    kind, _ = DETECTORS["mobilenet"]
    model = getattr(detection, kind)(weights=None, weights_backbone=None)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[1] = 6
    path = tmp_path_factory.mktemp("detector") / "weights.pth"
    torch.save(model.state_dict(), path)
    return model.eval(), path


def test_torchvision_s_network_runs_from_a_file(pictures, network):
    model, path = network
    image = pictures[0].pixels()
    boxes, scores = TorchvisionDetector("mobilenet", path)(image)
    with torch.inference_mode():
        expected = model([torch.from_numpy(image.transpose(2, 0, 1) / np.float32(255))])[0]
    people = expected["labels"] == 1
    assert people.sum() > 0
    np.testing.assert_allclose(boxes, expected["boxes"][people].numpy(), atol=1e-4)
    np.testing.assert_allclose(scores, expected["scores"][people].numpy(), atol=1e-5)
    with pytest.raises(HapError, match="is not of the detector fasterrcnn_resnet50_fpn_v2"):
        TorchvisionDetector("resnet50", path)


def test_predict_looks_for_people(pictures, network, tmp_path):
    """The whole way, for any task: found, written down, cut out, described."""
    model = tmp_path / "model.safetensors"
    options = (
        *(
            "experiment=pretrain_mae",
            "model=vit_micro",
            "img_size=[32,32]",
            f"weights={model}",
            "trainer=cpu",
        ),
        *("callbacks.progress=null", "trainer.enable_progress_bar=false", "data.num_workers=0"),
        f"input={tmp_path}/pictures",
    )
    task = build(config("predict", *options).task, "task")
    save_file(task.model.state_dict(), model, {"grid": "4x4"})
    detector = (
        "boxes=detector",
        "detector=mobilenet",
        f"detector_weights={network[1]}",
        "detector_score=0.1",
    )
    run("predict", config("predict", *options, *detector), tmp_path / "run")
    found = json.loads((tmp_path / "run/detections.json").read_text())
    names = np.load(tmp_path / "run/predictions.npz")["names"].tolist()
    assert len(found) >= 3  # some in each picture that can be read
    assert names == [f"{box['image_id']}, box {n}" for n, box in enumerate(found)]
    with pytest.raises(HapError, match=r"detector\.\.\. are for boxes=detector"):
        run("predict", config("predict", *options, *detector[1:]), tmp_path / "other")


def test_no_camera_is_told(tmp_path):
    task = SimpleNamespace(inputs=("input",), takes_texts=False)
    with pytest.raises(HapError, match="input=webcam:97: there is no such camera"):
        find_people(config("predict", "experiment=pretrain_mae", "input=webcam:97"), tmp_path, task)


def test_an_unknown_detector():
    with pytest.raises(HapError, match="resnet50 or mobilenet"):
        TorchvisionDetector("yolo")


def test_a_camera_becomes_a_video(tmp_path):
    """What it gives is written until it ends, or the time is over."""
    source = cv2.VideoWriter(str(tmp_path / "camera.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for level in range(6):
        source.write(np.full((48, 64, 3), 40 * level, np.uint8))
    source.release()
    record(cv2.VideoCapture(str(tmp_path / "camera.avi")), tmp_path / "out.mp4", seconds=30)
    video = Video(tmp_path / "out.mp4", "out.mp4")
    assert (len(video), video.size) == (6, (48, 64))
    assert abs(int(video.read(5).mean()) - 200) < 12
    assert sorted(p.name for p in tmp_path.iterdir()) == ["camera.avi", "out.mp4"]
    with pytest.raises(HapError, match="gives no picture"):
        record(cv2.VideoCapture(str(tmp_path / "camera.avi")), tmp_path / "none.mp4", seconds=0)
