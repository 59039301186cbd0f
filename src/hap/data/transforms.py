"""image (H, W, 3) uint8 RGB + annotations + generator -> dict of tensors; one pair of classes per task.

Images leave as uint8 (3, H, W); normalisation happens on the device, so a quarter of the bytes travel.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import albumentations as A
import cv2
import numpy as np
import torch
from PIL import Image

# Of ImageNet, per channel, in pixel levels 0..255; what the images are normalised with.
PIXEL_MEAN = 255 * np.array([0.485, 0.456, 0.406], np.float32)
PIXEL_STD = 255 * np.array([0.229, 0.224, 0.225], np.float32)

BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR

Masking = Callable[[tuple[int, int], float, np.ndarray | None, np.random.Generator], np.ndarray]


class Seeded:
    """An albumentations pipeline whose draws come from the sample's generator. By itself albumentations ignores
    global seeds and repeats one stream in every loader worker and epoch."""

    def __init__(self, *transforms: A.BasicTransform):
        # Keypoints that leave the image stay in the array, so that joint k is always row k.
        keypoints = A.KeypointParams("xy", remove_invisible=False)
        self.pipeline = A.Compose(transforms, keypoint_params=keypoints)

    def __call__(
        self, image: np.ndarray, keypoints: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        self.pipeline.set_random_seed(int(rng.integers(2**31)))
        result = self.pipeline(image=image, keypoints=keypoints)
        return result["image"], result["keypoints"]


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 -> (3, H, W) uint8."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def resized_crop(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> A.RandomResizedCrop:
    """Bicubic when enlarging, area averaging when shrinking: OpenCV's bicubic has no antialias."""
    return A.RandomResizedCrop(
        tuple(size), tuple(scale), tuple(ratio), interpolation=cv2.INTER_CUBIC, area_for_downscale="image"
    )


class PretrainTransform:
    """One crop, and for each of its views the scores by which patches are removed (HAP, section 3.2).

    Args:
        size: height, width.
        patch_size: of the encoder, in pixels.
        masking: strategy, see hap.models.masking.
        mask_ratio: share of patches to remove.
        views: independent masks of the one crop.
        scale, ratio: area and width / height of the random crop, as in RandomResizedCrop. The paper: area from
            0.8; MAE's 0.2 cuts heads and legs off. None: the whole image, not flipped (validation).

    Returns (per sample):
        image (3, H, W) uint8; keypoints (17, 3) float32: x, y in pixels of the crop, 1 present or 0 missing;
        scores (views, L) float32. Keypoints are not relabelled by the flip: masking treats both sides alike.
    """

    def __init__(
        self,
        size: tuple[int, int],
        patch_size: int,
        masking: Masking,
        mask_ratio: float,
        views: int = 2,
        scale: tuple[float, float] | None = None,
        ratio: tuple[float, float] = (0.5 * 3 / 4, 0.5 * 4 / 3),
    ):
        self.size, self.masking, self.mask_ratio, self.views = size, masking, mask_ratio, views
        self.grid = (size[0] // patch_size, size[1] // patch_size)
        if scale is not None:
            self.augment = Seeded(resized_crop(size, scale, ratio), A.HorizontalFlip(p=0.5))
        else:
            resize = A.Resize(*size, interpolation=cv2.INTER_CUBIC, area_for_downscale="image")
            self.augment = Seeded(resize)

    def __call__(
        self, image: np.ndarray, annotations: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, torch.Tensor]:
        keypoints = annotations["keypoints"]
        present = inside(keypoints, *image.shape[:2]) & (keypoints[:, 2] > 0)
        image, xy = self.augment(image, keypoints[:, :2], rng)
        keypoints = np.concatenate([xy, present[:, None]], axis=1, dtype=np.float32)
        keypoints[:, 2] *= inside(keypoints, *self.size)
        scores = [self.masking(self.grid, self.mask_ratio, keypoints, view) for view in rng.spawn(self.views)]
        return {
            "image": to_tensor(image),
            "keypoints": torch.from_numpy(keypoints),
            "scores": torch.from_numpy(np.stack(scores)),
        }


def inside(keypoints: np.ndarray, height: int, width: int) -> np.ndarray:
    """Which keypoints (K, 2+) lie in the image: bool (K,)."""
    x, y = keypoints[:, 0], keypoints[:, 1]
    return (x >= 0) & (x < width) & (y >= 0) & (y < height)


def resize(image: np.ndarray, size: tuple[int, int], resample: Image.Resampling) -> np.ndarray:
    """(H, W, 3) uint8 -> (*size, 3) uint8 by Pillow's filter, antialiased when shrinking, as the official code of
    ReID (bicubic) and attributes (bilinear). OpenCV's (and so albumentations') are others: the bicubic is 1.5 to 8
    grey levels apart on average."""
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), resample))


def erase(levels: np.ndarray, rng: np.random.Generator) -> None:
    """Random erasing (Zhong et al., AAAI 2020) in place: one rectangle of 2 % to a third of the image, aspect
    0.3 to 1 / 0.3, filled with noise that is standard normal *after* the normalisation.

    Args:
        levels: (H, W, 3) int16. The noise is written in the units of the pixels, mean and deviation those of
            ImageNet; it goes below 0 and above 255, which is why the image is not uint8. Rounding to whole
            levels is the precision that all other pixels have.
    """
    height, width = levels.shape[:2]
    for _ in range(10):  # large or long rectangles do not fit: then others are tried
        area = rng.uniform(0.02, 1 / 3) * height * width
        aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            noise = rng.standard_normal((h, w, 3), dtype=np.float32)
            levels[top : top + h, left : left + w] = np.rint(noise * PIXEL_STD + PIXEL_MEAN)
            return


class ReidTrain:
    """Resize, flip, shift by up to `padding` pixels over black, erase (TransReID's augmentation).

    Args:
        size: height, width.
        padding: black border on each side before the random crop back to `size`.
        erase_prob: share of the images in which a rectangle is erased.

    Returns (per sample):
        image (3, H, W) int16 in pixel levels (`erase` says why); identity, camera (int), is_query (bool).
    """

    def __init__(self, size: tuple[int, int], padding: int = 10, erase_prob: float = 0.5):
        self.size, self.erase_prob = size, erase_prob
        self.augment = Seeded(A.HorizontalFlip(p=0.5), A.Pad(padding, fill=0), A.RandomCrop(*size))

    def __call__(
        self, image: np.ndarray, annotations: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        image, _ = self.augment(resize(image, self.size, BICUBIC), np.empty((0, 2)), rng)
        levels = image.astype(np.int16)
        if rng.random() < self.erase_prob:
            erase(levels, rng)
        return {"image": to_tensor(levels), **annotations}


class TextTrain:
    """Resize, shift by up to `padding` pixels over black, flip.

    Args:
        size: height, width.
        padding: black border on each side before the random crop back to `size`.
        flip_sides: flip images whose caption names a side, too, as the official code does.

    Returns (per sample):
        image (3, H, W) uint8, and the annotations but `names_side`.
    """

    def __init__(self, size: tuple[int, int], padding: int = 10, flip_sides: bool = True):
        self.size, self.flip_sides = size, flip_sides
        shift = A.Pad(padding, fill=0), A.RandomCrop(*size)
        self.shift, self.shift_and_flip = Seeded(*shift), Seeded(*shift, A.HorizontalFlip(p=0.5))

    def __call__(
        self, image: np.ndarray, annotations: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        side = annotations.pop("names_side")
        augment = self.shift if side and not self.flip_sides else self.shift_and_flip
        image, _ = augment(resize(image, self.size, BICUBIC), np.empty((0, 2)), rng)
        return {"image": to_tensor(image), **annotations}


class _Resize:
    filter: ClassVar[Image.Resampling]

    def __init__(self, size: tuple[int, int]):
        self.size = size

    def __call__(
        self, image: np.ndarray, annotations: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        return {"image": to_tensor(resize(image, self.size, self.filter)), **annotations}


class ReidEval(_Resize):
    """Resize and nothing else. Returns image (3, H, W) uint8; identity, camera (int), is_query (bool)."""

    filter = BICUBIC


class AttributeTrain:
    """Resize, shift by up to `padding` pixels over black, flip: no evaluated attribute names a side.

    Args:
        size: height, width.
        padding: black border on each side before the random crop back to `size`.

    Returns (per sample):
        image (3, H, W) uint8; labels int8 (A,).
    """

    def __init__(self, size: tuple[int, int], padding: int = 10):
        self.size = size
        self.augment = Seeded(A.Pad(padding, fill=0), A.RandomCrop(*size), A.HorizontalFlip(p=0.5))

    def __call__(
        self, image: np.ndarray, annotations: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        image, _ = self.augment(resize(image, self.size, BILINEAR), np.empty((0, 2)), rng)
        return {"image": to_tensor(image), **annotations}


class AttributeEval(_Resize):
    """Resize and nothing else. Returns image (3, H, W) uint8; labels int8 (A,)."""

    filter = BILINEAR
