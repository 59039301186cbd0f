"""Of whom `hap predict` says something: the pictures that were given, and the people in them."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import torch
from filelock import FileLock
from omegaconf import DictConfig

from hap.data.base import Record
from hap.data.boxes import read_boxes
from hap.data.files import read_text, user_path
from hap.data.kept import SUFFIX, read_kept
from hap.data.keypoint_files import read_keypoints
from hap.data.sources import INPUTS, read_inputs
from hap.data.video import record
from hap.detector import TorchvisionDetector, detect
from hap.errors import HapError, printable
from hap.tasks.base import Task


def find_people(cfg: DictConfig, run_dir: Path, task: Task) -> Sequence[Record]:
    """Each picture is one person; with `boxes=FILE` each of its boxes, with `boxes=detector` those that are found, with
    `keypoints=FILE` those whose joints are known.

    Raises:
        HapError: keys are missing, or what they name is not there or makes no sense.
    """
    given = {part: cfg[part] for part in task.inputs if cfg[part] is not None}
    if len(given) < len(task.inputs):
        needed = " ".join(f"{part}=FOLDER" for part in task.inputs)
        raise HapError(f"predict needs {needed}; in place of a FOLDER: {INPUTS}")
    if cfg.boxes != "detector" and (cfg.detector_weights is not None or cfg.detector != "resnet50"):
        raise HapError("the keys detector... are for boxes=detector, which is missing")
    if task.takes_texts:
        task.search_for(_sentences(cfg.text))
        if str(given["gallery"]).lower().endswith(SUFFIX):
            return read_kept(user_path(given["gallery"]))
    elif cfg.text is not None:
        raise HapError("text= is for models of text-to-image re-identification")
    for part, text in given.items():
        if camera := re.fullmatch(r"webcam:(\d+)", text):
            given[part] = str(_recorded(int(camera[1]), run_dir, cfg.webcam_seconds))
    pictures = read_inputs(given, cfg.video_stride)
    if cfg.keypoints is not None:
        if not task.takes_joints:
            raise HapError("keypoints=FILE is for models of 3D pose; where people are is boxes=FILE")
        if cfg.boxes is not None:
            raise HapError("keypoints=FILE says where people are: leave boxes= out")
        return read_keypoints(user_path(cfg.keypoints), pictures)
    if cfg.boxes in (None, "none"):
        return pictures
    path = user_path(cfg.boxes)
    if cfg.boxes == "detector":
        device = "cuda" if torch.cuda.is_available() and cfg.trainer.accelerator != "cpu" else "cpu"
        weights = None if cfg.detector_weights is None else user_path(cfg.detector_weights)
        make = partial(TorchvisionDetector, cfg.detector, weights, device)
        path = detect(make, pictures, run_dir / "detections.json", cfg.detector_score)
    return read_boxes(path, pictures, task.whole_pictures)


def _sentences(text: str | None) -> list[str]:
    """What to look for: a sentence, or those of a file, one on each line."""
    if text is None:
        raise HapError(
            'predict needs text="a woman in a red coat", or text=FILE.txt with a sentence on each line'
        )
    lines = read_text(user_path(text)).split("\n") if text.lower().endswith(".txt") else [text]
    sentences = [line.strip() for line in lines if line.strip()]
    if not sentences:
        raise HapError(f"text={printable(text)}: there is no sentence in it")
    return sentences


def _recorded(number: int, run_dir: Path, seconds: float) -> Path:
    """What the camera sees, as a video in the run folder; what was recorded before is taken again."""
    path = run_dir / "webcam.mp4"
    with FileLock(path.with_suffix(".lock")):  # of several processes one records
        if not path.is_file():
            capture = cv2.VideoCapture(number)
            if not capture.isOpened():
                raise HapError(f"input=webcam:{number}: there is no such camera, or it may not be used")
            record(capture, path, seconds)
            capture.release()
    return path
