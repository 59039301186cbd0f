"""Video files: which frames there are and when each is shown; then the frames, one after another, none by the number
of another.

A frame is known by its time stamp. What a file's header says of their number is often an estimate, a decoder leaves
damaged frames out without a word, and seeking lands where it likes: stamps are read first, without decoding, and
frames are found by going forward until their stamp comes.
"""

import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

# Before FFmpeg is first used: damage is told by the stamps, its decoders would write a line for each block of pixels.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2
import numpy as np

from hap.data.decoding import MAX_PIXELS
from hap.errors import BadSample, HapError, printable

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = (
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm",
    ".wmv",
)  # fmt: skip
LOOKED_AT = 64  # frames by which is decided whether stamps tell frames apart
PATIENCE = 100  # failures of the decoder in a row; no more is to come

_TURNS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


class Video:
    """The frames of a video file, from 0. Copies in other processes read for themselves.

    Args:
        path: of the file.
        name: what it is called in messages.

    Attributes:
        size: height and width in pixels, as a viewer shows it.
        seconds: float64 (N,), the time of each frame. Where the stamps of the file are not one for each frame (frames
            that are not shown, or cut off by an edit), all frames are decoded once for theirs; where those do not
            ascend (MPEG program streams), times are multiples of 1 / frame rate. A file that cannot be read at all
            has one frame, whose reading says why.
    """

    def __init__(self, path: Path, name: str):
        self.path, self.name = os.path.abspath(path), name
        self._passes: dict[int, _Pass] = {}  # of the process that it is in
        self.stamped = False
        self.seconds, self.size = np.zeros(1), (0, 0)
        try:
            capture = self.open()
        except BadSample:
            return
        sides = (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)
        lies = turn(capture) in (cv2.ROTATE_90_CLOCKWISE, cv2.ROTATE_90_COUNTERCLOCKWISE)
        height, width = (int(capture.get(side)) for side in (sides[::-1] if lies else sides))
        self.size = height, width
        packets = np.sort([stamp for stamp in stamps(self.open(packets=True)) if stamp is not None])
        first = list(islice(stamps(capture), LOOKED_AT))
        if not first:
            return
        seen = np.array([stamp for stamp in first if stamp is not None])
        self.stamped = bool(
            (np.diff(packets) > 0).all()
            and (np.diff(seen) > 0).all()
            and np.isin(seen, packets).all()
            # No packet is without a frame, but where the decoder failed.
            and np.searchsorted(packets, seen[-1]) < len(first)
        )
        self.seconds = packets
        if not self.stamped:
            self.seconds = np.array([stamp for stamp in stamps(self.open()) if stamp is not None])
            self.stamped = bool((np.diff(self.seconds) > 0).all())
        if not self.stamped:
            self.seconds = np.arange(len(self)) / capture.get(cv2.CAP_PROP_FPS)
        promised = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        log.info("%s: %s frames, %.2f s", printable(name), f"{len(self):,}", self.seconds[-1])
        if promised > len(self):
            log.warning(
                "%s: its header counts %s frames, the file has %s: is it cut off, or damaged?",
                *(printable(name), f"{promised:,}", f"{len(self):,}"),
            )

    def __len__(self) -> int:
        return len(self.seconds)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_passes": {}}

    def open(self, packets: bool = False) -> cv2.VideoCapture:
        """A capture at the start of the file: of frames, or of what they are packed in, without decoding.

        Raises BadSample if it is no video that can be read.
        """
        if any("\ud800" <= letter <= "\udfff" for letter in self.path):  # OpenCV would crash
            raise BadSample("OpenCV opens no video whose name is not UTF-8: give it another name")
        # Loader processes run side by side: each decodes in one thread.
        options = [cv2.CAP_PROP_N_THREADS, 1, *((cv2.CAP_PROP_FORMAT, -1) if packets else ())]
        capture = cv2.VideoCapture(self.path, cv2.CAP_FFMPEG, options)
        width, height = (int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if not capture.isOpened():
            raise BadSample("not a video that OpenCV can open: cut off, or of an unknown kind")
        if width * height > MAX_PIXELS:
            raise BadSample(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")
        # Which versions of OpenCV turn frames, and which way, varies: see `read`.
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
        return capture

    def read(self, frame: int) -> np.ndarray:
        """A frame as a viewer shows it, (H, W, 3) uint8 RGB. Fast in ascending order; going back starts anew.

        Raises BadSample if it cannot be decoded.
        """
        process = os.getpid()
        current = self._passes.get(process)
        if current is None or not current.can_reach(frame):
            current = _Pass(self)
            self._passes = {process: current}
        return current.read(frame)


class _Pass:
    """One way through a video, forward."""

    def __init__(self, video: Video):
        self.video, self.capture = video, video.open()
        self.turn = turn(self.capture)
        self.frame = -1  # that was decoded last
        self.lost: set[int] = set()  # frames before it that could not be

    def can_reach(self, frame: int) -> bool:
        return frame >= self.frame or frame in self.lost

    def _advance(self) -> None:
        """To the next frame that can be decoded; to the end if there is none."""
        before, end = self.frame, len(self.video)
        for _ in range(end - before + PATIENCE):
            if self.capture.grab():
                stamp = self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                stamped = self.video.stamped
                self.frame = int(np.searchsorted(self.video.seconds, stamp)) if stamped else before + 1
                if self.frame > before:
                    break
        else:
            self.frame = end
        self.lost.update(range(before + 1, self.frame))

    def read(self, frame: int) -> np.ndarray:
        while self.frame < frame:
            self._advance()
        image = self.capture.retrieve()[1] if self.frame == frame else None
        if image is None:
            raise BadSample(f"frame {frame}, at {self.video.seconds[frame]:.2f} s, cannot be decoded")
        image = image if self.turn is None else cv2.rotate(image, self.turn)
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def turn(capture: cv2.VideoCapture) -> int | None:
    """What `cv2.rotate` has to do with a frame for it to be seen upright."""
    return _TURNS.get(int(capture.get(cv2.CAP_PROP_ORIENTATION_META)) % 360)


def stamps(capture: cv2.VideoCapture) -> Iterator[float | None]:
    """Seconds of each frame or packet to the end of the capture; None where the decoder failed."""
    failed = 0
    while failed < PATIENCE:
        if capture.grab():
            yield from [None] * failed
            failed = 0
            yield capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        else:
            failed += 1


def record(capture: cv2.VideoCapture, path: Path, seconds: float) -> None:
    """Write what a camera sees to a video file, at the rate at which its frames come.

    Raises:
        HapError: it gives no frame.
    """
    frames = path.with_suffix(".frames")
    shutil.rmtree(frames, ignore_errors=True)  # of a recording that was killed
    frames.mkdir()
    start, count = time.monotonic(), 0
    while time.monotonic() - start < seconds and (read := capture.read())[0]:
        cv2.imwrite(str(frames / f"{count:07d}.jpg"), read[1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        count += 1
    if not count:
        frames.rmdir()
        raise HapError("the camera gives no picture: is another program using it? webcam:1 is the second one")
    rate = count / max(time.monotonic() - start, 1e-3)
    written = sorted(frames.iterdir())
    partial = path.with_name(f".partial_{path.name}")
    write_video(partial, rate, (cv2.cvtColor(cv2.imread(str(f)), cv2.COLOR_BGR2RGB) for f in written))  # type: ignore[arg-type]
    partial.replace(path)
    shutil.rmtree(frames)


def write_video(path: Path, rate: float, frames: Iterable[np.ndarray]) -> None:
    """Frames (H, W, 3) uint8 RGB of one size, one after another, as MPEG-4."""
    writer = None
    for frame in frames:
        if writer is None:
            # More digits, or more frames a second, are no time base of MPEG-4.
            rate = round(min(rate, 240.0), 2)
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, frame.shape[1::-1])
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    if writer is not None:
        writer.release()
