"""Bytes of an image file -> pixels, without trust in what its header says."""

import io
import struct
import warnings
from typing import ClassVar

import cv2
import numpy as np
from PIL import Image

from hap.errors import BadSample

MAX_PIXELS = 100_000_000  # of one image; decoded, they take 300 MB in every loader process

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_PNG_END = b"\0\0\0\0IEND"
# Markers of a JPEG that begin a frame, and with it height and width; those without anything behind them.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
_ORIENTATION, _QUARTER_TURNS = 0x0112, (5, 6, 7, 8)  # of EXIF
_SCAN, _JPEG_END = 0xDA, b"\xff\xd9"


class Encoded:
    """A record that has the bytes of an image file; most of them do."""

    __slots__ = ()

    # Whether to turn the image as its EXIF orientation says. Annotations, and the official code, count the pixels as
    # they are stored.
    upright: ClassVar[bool] = False

    def encoded(self) -> bytes:
        """JPEG, PNG, ... Raises BadSample or OSError."""
        raise NotImplementedError

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return decode_image(self.encoded(), self.upright)


def decode_image(data: bytes, upright: bool = False) -> np.ndarray:
    """Decode an image file to RGB, (H, W, 3) uint8, of any bit depth and colour model; transparency is dropped.

    Args:
        upright: turn the image as its EXIF orientation says. False gives the pixels as they are stored, which
            is what annotations count and what training and evaluation in the official code (Pillow) read.

    Raises BadSample for anything incomplete, unreadable, or above MAX_PIXELS.
    """
    height, width = image_size(data)
    if height * width > MAX_PIXELS:
        raise BadSample(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")
    flags = cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except (cv2.error, MemoryError) as error:
        raise BadSample(f"OpenCV cannot decode it: {error}") from None
    if image is None:
        raise BadSample("not an image that OpenCV can decode")
    return image


def image_size(data: bytes, upright: bool = False) -> tuple[int, int]:
    """Height and width as the header of a complete image file gives them; `upright`: of the image as it is turned by
    its EXIF orientation. Raises BadSample.

    That a JPEG or PNG is complete is looked for here: decoders fill the missing part with grey and say nothing.
    More may follow, as phones append videos and second pictures.
    """
    if not data:
        raise BadSample("the file is empty")
    if upright:
        height, width = image_size(data)
        return (width, height) if orientation(data) in _QUARTER_TURNS else (height, width)
    if data.startswith(_JPEG):
        return _jpeg_size(data)
    if data.startswith(_PNG):
        if data.find(_PNG_END) < 24:
            raise BadSample("the image file is truncated")
        width, height = struct.unpack_from(">II", data, 16)
        return height, width
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except Image.DecompressionBombError as error:
        raise BadSample(str(error)) from None
    except Exception:  # the plug-ins of Pillow fail in any way on a damaged header
        raise BadSample("not an image that OpenCV can decode") from None


def orientation(data: bytes) -> int:
    """How EXIF says that the stored pixels are turned, 1 (not) to 8. Pillow turns a TIFF's size by itself: 1."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
            tag = image.getexif().get(_ORIENTATION, 1) if image.format != "TIFF" else 1
            return tag if tag in range(1, 9) else 1
    except Exception:  # as above
        return 1


def stored_points(points: np.ndarray, tag: int, size: tuple[int, int]) -> np.ndarray:
    """x, y (..., 2) in an image that was turned upright -> in the pixels as they are stored.

    Args:
        tag: its EXIF orientation.
        size: height and width, upright.
    """
    x, y = points[..., 0], points[..., 1]
    height, width = size
    if tag in (2, 3, 6, 7):
        x = width - 1 - x
    if tag in (3, 4, 7, 8):
        y = height - 1 - y
    return np.stack([y, x] if tag in _QUARTER_TURNS else [x, y], axis=-1)


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Walks over the segments up to the first scan, behind which the end marker cannot occur by chance."""
    size, position, last = None, 2, len(data) - 8
    while 0 <= (position := data.find(b"\xff", position)) < last:
        position += 1
        marker = data[position]
        if marker == _SCAN:
            if size is None or data.rfind(_JPEG_END) < position:
                break
            return size
        if marker in _FRAMES and size is None:
            size = struct.unpack_from(">HH", data, position + 4)
        if marker != 0xFF and marker not in _BARE:
            position += 1 + max(2, int.from_bytes(data[position + 1 : position + 3], "big"))
    raise BadSample("the image file is truncated")
