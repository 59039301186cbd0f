"""Image files of any kind, and of no kind, become sane pixels or a reason."""

import io
import resource
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from hap.data.decoding import MAX_PIXELS, decode_image, image_size
from hap.errors import BadSample

PIXELS = cv2.resize(
    np.random.default_rng(0).integers(0, 256, (8, 4, 3), np.uint8), (48, 96), interpolation=cv2.INTER_CUBIC
)
COLOUR = Image.fromarray(PIXELS)
GREY = np.repeat(np.asarray(COLOUR.convert("L"))[..., None], 3, 2)
PALETTE = COLOUR.quantize(200)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def deep(suffix: str, pixels: np.ndarray) -> bytes:
    """16 bits per channel, RGB or grey, by OpenCV: Pillow writes none in colour."""
    return cv2.imencode(suffix, pixels[..., ::-1].astype(np.uint16) * 257)[1].tobytes()


SEE_THROUGH = Image.fromarray(np.dstack([PIXELS, np.zeros(PIXELS.shape[:2], np.uint8)]))
FILES = {
    "jpeg": (encode(COLOUR, "JPEG", quality=98), PIXELS, 3),
    "progressive": (encode(COLOUR, "JPEG", quality=98, progressive=True), PIXELS, 3),
    "grey jpeg": (encode(COLOUR.convert("L"), "JPEG", quality=98), GREY, 3),
    "cmyk jpeg": (encode(COLOUR.convert("CMYK"), "JPEG", quality=98), PIXELS, 3),
    "png": (encode(COLOUR, "PNG"), PIXELS, 0),
    "palette png": (encode(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB")), 0),
    "transparent png": (encode(SEE_THROUGH, "PNG"), PIXELS, 0),
    "grey png with alpha": (encode(COLOUR.convert("LA"), "PNG"), GREY, 0),
    "16-bit png": (deep(".png", PIXELS), PIXELS, 0),
    "16-bit grey png": (deep(".png", GREY[..., :1]), GREY, 0),
    "webp": (encode(SEE_THROUGH, "WEBP", lossless=True, exact=True), PIXELS, 0),
    "bmp": (encode(COLOUR, "BMP"), PIXELS, 0),
    "palette bmp": (encode(PALETTE, "BMP"), np.asarray(PALETTE.convert("RGB")), 0),
    "ppm": (encode(COLOUR, "PPM"), PIXELS, 0),
    "pgm": (encode(COLOUR.convert("L"), "PPM"), GREY, 0),
    "jpeg 2000": (encode(COLOUR, "JPEG2000"), PIXELS, 0),
    "tiff": (encode(COLOUR, "TIFF", compression="tiff_lzw"), PIXELS, 0),
    "cmyk tiff": (encode(COLOUR.convert("CMYK"), "TIFF"), PIXELS, 0),
    "16-bit tiff": (deep(".tiff", PIXELS), PIXELS, 0),
}


@pytest.mark.parametrize("kind", FILES)
def test_any_kind_is_8_bit_rgb(kind):
    data, expected, tolerance = FILES[kind]
    image = decode_image(data)
    assert image.dtype == np.uint8
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() <= tolerance
    assert image_size(data) == expected.shape[:2]
    # what phones and cameras append is nothing to the image
    assert np.array_equal(decode_image(data + bytes(5000)), image)
    assert np.array_equal(decode_image(data + FILES["jpeg"][0]), image)


@pytest.mark.parametrize("kind", FILES)
def test_cut_off_anywhere_it_is_damage(kind):
    data = FILES[kind][0]
    for length in [*range(0, 60, 3), len(data) // 3, len(data) // 2, len(data) - 30]:
        with pytest.raises(BadSample):
            decode_image(data[:length])


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_image():
    """EXIF holds a whole small JPEG, end marker included."""
    exif = Image.Exif()
    exif[0x010E] = "a description"
    thumbnail = encode(COLOUR.resize((12, 24)), "JPEG")
    data = encode(COLOUR, "JPEG", exif=exif.tobytes() + thumbnail)
    assert data.count(b"\xff\xd9") == 2
    assert decode_image(data).shape == PIXELS.shape
    with pytest.raises(BadSample, match="truncated"):
        decode_image(data[:-40])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_stored_pixels_for_annotations_upright_people_for_viewers(kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    data = encode(COLOUR, kind, exif=exif, quality=98, **({"lossless": True} if kind == "WEBP" else {}))
    stored, upright = decode_image(data), decode_image(data, upright=True)
    assert stored.shape == PIXELS.shape
    assert np.abs(stored.astype(int) - PIXELS).mean() < 3
    assert np.array_equal(upright, np.rot90(stored, -1))


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def jpeg_header(width: int, height: int) -> bytes:
    data = encode(COLOUR, "JPEG")
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


def bmp_header(width: int, height: int) -> bytes:
    data = encode(COLOUR, "BMP")
    return data[:18] + struct.pack("<ii", width, height) + data[26:]


@pytest.mark.parametrize("bomb", [png_header, jpeg_header, bmp_header])
@pytest.mark.parametrize("size", [(30_000, 30_000), (65_500, 65_500), (MAX_PIXELS // 5_000 + 1, 5_000)])
def test_a_header_that_asks_for_gigabytes_gets_none(bomb, size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadSample, match="pixels"):
        decode_image(bomb(*size))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


@pytest.mark.parametrize(
    "data", [b"<html>", b"\xff\xd8\xff", b"\xff" * 999, b"\x89PNG\r\n\x1a\n" + bytes(99), b"BM" + bytes(99)]
)
def test_what_is_no_image_has_a_reason(data):
    with pytest.raises(BadSample):
        decode_image(data)
