"""2D pose the straightforward way, as it is mostly written: whole pictures, one joint after another. What the package
does is measured against it, and gives the same."""

from typing import Any

import cv2
import numpy as np

from hap.data.transforms import PIXEL_MEAN, PIXEL_STD
from hap.pose.codecs import EPS, HIGHEST, KERNEL, LOWEST, UDP
from hap.pose.geometry import PIXELS
from hap.pose.skeletons import Skeleton


def training_sample(
    data: bytes,
    joints: np.ndarray,
    center: np.ndarray,
    scale: np.ndarray,
    skeleton: Skeleton,
    codec: UDP,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `PoseTrain` by its defaults, the encoding and the normalisation come to: image (3, H, W), heat maps
    (K, h, w) and weights (K,), float32."""
    image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    joints, center, scale = joints.copy(), center.copy(), scale.copy()
    if rng.random() < 0.5:
        image = np.ascontiguousarray(image[:, ::-1])
        for a, b in skeleton.flip_pairs:
            joints[[a, b]] = joints[[b, a]]
        for joint in joints:
            joint[0] = image.shape[1] - 1 - joint[0]
            joint[:2] *= joint[2] > 0
        center[0] = image.shape[1] - 1 - center[0]
    labelled = [k for k in range(len(joints)) if joints[k, 2] > 0]
    if len(labelled) > 8 and rng.random() < 0.3:
        upper = [k for k in labelled if k in skeleton.upper_body]
        lower = [k for k in labelled if k not in skeleton.upper_body]
        wants_upper = rng.standard_normal() < 0.5 and len(upper) > 2
        half = upper if wants_upper or len(lower) <= 2 else lower
        if len(half) >= 2:
            center, scale = _region(joints[half, :2], codec.size)
    scale = scale * (1 + np.clip(0.5 * rng.standard_normal(), -0.5, 0.5))
    angle = np.clip(40 * rng.standard_normal(), -80, 80)
    matrix = codec.matrix(center, scale, float(angle) if rng.random() < 0.6 else 0.0)
    image = cv2.warpAffine(image, matrix, codec.size[::-1], flags=cv2.INTER_LINEAR)
    for joint in joints:
        joint[:2] = matrix @ np.array([joint[0], joint[1], 1])
    image = (image.astype(np.float32) - np.float32(PIXEL_MEAN)) / np.float32(PIXEL_STD)
    return np.ascontiguousarray(image.transpose(2, 0, 1)), *encode(joints, codec)


def _region(points: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    (left, top), (right, bottom) = points.min(0), points.max(0)
    width, height = right - left, bottom - top
    if width > height * size[1] / size[0]:
        height = width * size[0] / size[1]
    else:
        width = height * size[1] / size[0]
    return points.mean(0), 1.5 / PIXELS * np.array([width, height])


def encode(joints: np.ndarray, codec: UDP) -> tuple[np.ndarray, np.ndarray]:
    """Joints (K, 3) in pixels of the input -> heat maps (K, h, w) and weights (K,)."""
    height, width = codec.heatmap_size
    radius = codec.radius
    target = np.zeros((len(joints), height, width), np.float32)
    weight = joints[:, 2].astype(np.float32)
    stride = (np.array(codec.size[::-1]) - 1) / (np.array([width, height]) - 1)
    around = np.arange(2 * radius + 1, dtype=np.float32)
    for k in range(len(joints)):
        mu = joints[k, :2] / stride
        x, y = (int(value + 0.5) for value in mu)
        left, top, right, bottom = x - radius, y - radius, x + radius + 1, y + radius + 1
        if left >= width or top >= height or right < 0 or bottom < 0:
            weight[k] = 0
            continue
        if weight[k] <= 0.5:
            continue
        apart_x, apart_y = around + left - mu[0], around[:, None] + top - mu[1]
        bump = np.exp(-(apart_x**2 + apart_y**2) / (2 * codec.sigma**2))
        rows, columns = slice(max(0, top), min(bottom, height)), slice(max(0, left), min(right, width))
        target[k, rows, columns] = bump[
            rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]
    return target, weight


def decode(heatmaps: np.ndarray) -> np.ndarray:
    """Heat maps (K, h, w) -> (K, 3): x, y in their pixels, and the height of the maximum."""
    found = np.zeros((len(heatmaps), 3), np.float32)
    for k, heatmap in enumerate(heatmaps):
        y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
        found[k] = x, y, heatmap[y, x]
        if heatmap[y, x] <= 0:
            found[k, :2] = -1
            continue
        log = np.log(np.clip(cv2.GaussianBlur(heatmap, (KERNEL, KERNEL), 0), LOWEST, HIGHEST))
        log = np.pad(log, 1, mode="edge")
        y, x = y + 1, x + 1
        dx, dy = (log[y, x + 1] - log[y, x - 1]) / 2, (log[y + 1, x] - log[y - 1, x]) / 2
        dxx = log[y, x + 1] - 2 * log[y, x] + log[y, x - 1]
        dyy = log[y + 1, x] - 2 * log[y, x] + log[y - 1, x]
        dxy = log[y + 1, x + 1] - log[y, x + 1] - log[y + 1, x] + 2 * log[y, x]
        dxy = (dxy - log[y, x - 1] - log[y - 1, x] + log[y - 1, x - 1]) / 2
        hessian = np.array([[dxx + EPS, dxy], [dxy, dyy + EPS]])
        found[k, :2] -= np.linalg.inv(hessian) @ np.array([dx, dy])
    return found


def without_repeats(
    keypoints: np.ndarray, score: np.ndarray, area: np.ndarray, sigmas: np.ndarray, threshold: float
) -> list[int]:
    """OKS-NMS of the poses of one image, pair by pair; the rows that are kept."""
    order, kept = score.argsort(kind="stable")[::-1], []
    variance = (2 * sigmas) ** 2
    while len(order):
        first = order[0]
        kept.append(int(first))
        near = np.zeros(len(order) - 1, np.float32)
        for n, other in enumerate(order[1:]):
            dx, dy = (keypoints[other, :, i] - keypoints[first, :, i] for i in (0, 1))
            apart = (dx**2 + dy**2) / variance / ((area[first] + area[other]) / 2 + np.spacing(1)) / 2
            near[n] = np.exp(-apart).sum() / len(apart)
        order = order[1:][near <= np.float32(threshold)]
    return kept


def coco_ap(truth: dict[str, Any], found: list[dict[str, Any]], sigmas: np.ndarray) -> float:
    """AP by pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    true = COCO()
    true.dataset = truth
    true.createIndex()
    evaluation = COCOeval(true, true.loadRes(found), "keypoints")
    evaluation.params.kpt_oks_sigmas = sigmas
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])
