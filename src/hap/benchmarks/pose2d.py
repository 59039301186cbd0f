"""2D pose: the training reader, heat maps both ways and the evaluation beside the straightforward way
(`plain_pose`), one core each; then how many people a second `hap predict` gets through."""

import contextlib
import copy
import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import numpy as np
import torch

from hap.benchmarks import plain_pose
from hap.benchmarks.timing import compare, one_core, timed
from hap.data.base import DataModule
from hap.data.boxes import Box, Boxes
from hap.data.pose import PoseRecords
from hap.data.pose_transforms import PoseEval, PoseTrain
from hap.data.sources import read_inputs
from hap.data.transforms import PIXEL_MEAN, PIXEL_STD
from hap.metrics.pose import PoseMetric
from hap.pose.codecs import UDP
from hap.pose.geometry import box_to_region
from hap.pose.skeletons import COCO
from hap.pose.truth import CocoTruth

log = logging.getLogger(__name__)

WIDTH, HEIGHT = 640, 480  # of most pictures of COCO
PER_IMAGE = 8  # people, in pictures to predict
QUALITY = 95  # of their JPEGs, which take about 160 kB
Row = dict[str, Any]


def run(
    task: Any,
    trainer: Callable[..., L.Trainer],
    num_images: int = 32,
    repeats: int = 5,
    eval_images: int = 5000,
    eval_boxes: int = 104125,
    eval_people: int = 6352,
    predicted_people: int = 64,
    num_workers: int | None = None,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Measure; each row is yielded with those before it.

    Args:
        task: a `Pose2d` with UDP heat maps of COCO's joints.
        trainer: makes the Trainer that predicts.
        num_images: JPEGs that are written from the seed, each with one person for the reader.
        repeats: of each comparison; the two take turns, the median counts.
        eval_images, eval_boxes, eval_people: size of the evaluation; the defaults are those of COCO's val2017.
        predicted_people: in `hap predict`, eight in a picture; 0 leaves it out.
        num_workers: of `hap predict`; None takes its own default.
        seed: of pictures and people.

    Yields:
        `device`; `reader`: crops/s of one core; `heat_maps`: ms per crop; `evaluation`: seconds, with the AP that both
        come to; `predict`: people/s.
    """
    on_gpu = torch.cuda.is_available()
    codec: UDP = task.codecs[0]
    results: dict[str, Any] = {"device": torch.cuda.get_device_name() if on_gpu else "cpu"}
    with tempfile.TemporaryDirectory() as folder, one_core():
        people = write_people(Path(folder), num_images, codec, seed)
        results["reader"] = [reader(people, codec, repeats, seed)]
        yield results
        results["heat_maps"] = list(heat_maps(codec, repeats, seed))
        yield results
        results["evaluation"] = [evaluation(made_up(eval_images, eval_boxes, eval_people, seed))]
        yield results
    if predicted_people:
        with tempfile.TemporaryDirectory() as folder:
            results["predict"] = [predict(task, trainer, Path(folder), predicted_people, num_workers, seed)]
            yield results


def write_pictures(folder: Path, num_images: int, rng: np.random.Generator) -> None:
    """JPEGs of smooth noise with fine grain."""
    for number in range(num_images):
        coarse = rng.integers(0, 256, (HEIGHT // 40, WIDTH // 40, 3), np.uint8)
        image = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        image += rng.integers(-12, 13, image.shape, np.int16)
        image = np.clip(image, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number:06d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])


def write_people(folder: Path, num_images: int, codec: UDP, seed: int) -> PoseRecords:
    """Pictures, and in each a person with all joints."""
    rng = np.random.default_rng(seed)
    write_pictures(folder, num_images, rng)
    size = rng.uniform((60, 120), (200, 400), (num_images, 2))
    corner = rng.uniform(0, 1, (num_images, 2)) * ((WIDTH, HEIGHT) - size)
    box = np.concatenate([corner, size], axis=1).astype(np.float32)
    joints = np.ones((num_images, len(COCO.joints), 3), np.float32)
    joints[..., :2] = corner[:, None] + rng.uniform(0, 1, (*joints.shape[:2], 2)) * size[:, None]
    center, scale = box_to_region(box, codec.size)
    return PoseRecords(
        root=folder,
        files=[f"{number:06d}.jpg" for number in range(num_images)],
        sizes=np.tile([WIDTH, HEIGHT], (num_images, 1)),
        image=np.arange(num_images),
        ids=range(num_images),
        box=box,
        center=center,
        scale=scale,
        score=np.ones(num_images, np.float32),
        joints=joints,
        skeleton=COCO,
    )


def training_batch(people: PoseRecords, codec: UDP, seed: int) -> tuple[torch.Tensor, ...]:
    """Images, normalised (N, 3, H, W), heat maps and weights of all people, by the package."""
    transform = PoseTrain([codec])
    samples = []
    for n, record in enumerate(people):
        samples.append(transform(record.pixels(), record.annotations(), np.random.default_rng((seed, n))))
    image = torch.stack([sample["image"] for sample in samples])
    joints = torch.from_numpy(np.stack([sample["joints"] for sample in samples]))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return torch.sub(image, mean).div_(std), *codec.encode(joints)


def plain_batch(people: PoseRecords, codec: UDP, seed: int) -> tuple[torch.Tensor, ...]:
    """The same, the straightforward way."""
    samples = []
    for n, record in enumerate(people):
        columns = people.joints[n], people.center[n], people.scale[n]
        rng = np.random.default_rng((seed, n))
        samples.append(plain_pose.training_sample(record.encoded(), *columns, COCO, codec, rng))
    return tuple(torch.from_numpy(np.stack(parts)) for parts in zip(*samples, strict=True))


def reader(people: PoseRecords, codec: UDP, repeats: int, seed: int) -> Row:
    """Crops/s of file to normalised image and heat maps, all on one core, and what of it decoding the JPEG is."""
    plain, ours = (partial(make, people, codec, seed) for make in (plain_batch, training_batch))
    seconds, ratio = compare(plain, ours, repeats)
    decoding = timed(lambda: [record.pixels() for record in people])
    return {
        "crops_per_s": len(people) / seconds,
        "plain_crops_per_s": len(people) / seconds / ratio,
        "ratio": ratio,
        "decoding_share": decoding / seconds,
    }


def heat_maps(codec: UDP, repeats: int, seed: int, crops: int = 64) -> Iterator[Row]:
    """Joints to heat maps and back, ms per crop, a batch of 64."""
    rng = np.random.default_rng(seed)
    joints = np.ones((crops, len(COCO.joints), 3), np.float32)
    joints[..., :2] = rng.uniform(0, 1, (*joints.shape[:2], 2)) * codec.size[::-1]
    maps, _ = codec.encode(torch.from_numpy(joints))
    noisy = maps + 0.01 * torch.from_numpy(rng.random(maps.shape, np.float32))
    ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "encode": (
            lambda: [plain_pose.encode(one, codec) for one in joints],
            lambda: codec.encode(torch.from_numpy(joints)),
        ),
        "decode": (
            lambda: [plain_pose.decode(one) for one in noisy.numpy()],
            lambda: codec.decode(noisy),
        ),
    }
    for name, (plain, ours) in ways.items():
        seconds, ratio = compare(plain, ours, repeats)
        yield {
            "what": name,
            "ms_per_crop": 1000 * seconds / crops,
            "plain_ms_per_crop": 1000 * seconds * ratio / crops,
            "ratio": ratio,
        }


def made_up(num_images: int, num_boxes: int, num_people: int, seed: int) -> tuple[PoseRecords, np.ndarray]:
    """People in pictures, detected boxes, most of them of nobody, and poses (N, K, 3) for these: near to somebody's, or
    anywhere."""
    rng = np.random.default_rng(seed)
    count = len(COCO.joints)
    of_person = np.sort(rng.integers(0, num_images, num_people))
    size = rng.uniform((40, 80), (200, 300), (num_people, 2))
    corner = rng.uniform(0, 1, (num_people, 2)) * ((WIDTH, HEIGHT) - size)
    joints = np.full((num_people, count, 3), 2.0)
    joints[..., :2] = corner[:, None] + rng.uniform(0, 1, (num_people, count, 2)) * size[:, None]
    joints[rng.random((num_people, count)) < 0.3] = 0
    joints[:, 0, 2] = 2
    truth = CocoTruth(
        skeleton=COCO,
        image_ids=tuple(range(1, num_images + 1)),
        files=tuple(f"{n}.jpg" for n in range(num_images)),
        image=of_person,
        box=np.concatenate([corner, size], axis=1),
        area=0.53 * size.prod(1),
        crowd=np.zeros(num_people, bool),
        joints=joints,
        person_ids=tuple(range(1, num_people + 1)),
    )
    person = rng.integers(0, num_people, num_boxes)
    somebody = rng.random(num_boxes) < 0.3
    image = np.where(somebody, of_person[person], rng.integers(0, num_images, num_boxes))
    keypoints = rng.uniform(0, 1, (num_boxes, count, 3)).astype(np.float32)
    keypoints[..., :2] *= WIDTH, HEIGHT
    spread = rng.exponential(4, (num_boxes, 1, 1))
    near = joints[person, :, :2] + spread * rng.standard_normal((num_boxes, count, 2))
    keypoints[somebody, :, :2] = near[somebody]
    box = np.concatenate([keypoints[..., :2].min(1), np.ptp(keypoints[..., :2], axis=1)], axis=1)
    center, scale = box_to_region(box, (256, 192))
    records = PoseRecords(
        root=Path(),
        files=truth.files,
        sizes=np.tile([WIDTH, HEIGHT], (num_images, 1)),
        image=image,
        ids=range(num_boxes),
        box=box,
        center=center,
        scale=scale,
        score=rng.random(num_boxes).astype(np.float32),
        joints=np.zeros((num_boxes, count, 3), np.float32),
        skeleton=COCO,
        truth=truth,
    )
    return records, keypoints


def package_ap(records: PoseRecords, keypoints: np.ndarray) -> float:
    metric = PoseMetric()
    metric.records = records
    for rows in torch.arange(len(records)).split(256):
        metric.update(torch.from_numpy(keypoints)[rows], rows)
    return metric.compute()["AP"]


def plain_ap(records: PoseRecords, keypoints: np.ndarray) -> float:
    """Rescored, repeats dropped, scored by pycocotools."""
    truth: Any = records.truth
    sigmas = np.array(COCO.sigmas)
    by_image: dict[int, list[int]] = {}
    score = np.zeros(len(records))
    for n in range(len(records)):
        above = [value for value in keypoints[n, :, 2] if value > 0.2]
        score[n] = records.score[n] * (float(np.mean(above)) if above else 0)
        by_image.setdefault(int(records.image[n]), []).append(n)
    area = (200 * records.scale).prod(1)
    found = []
    for image, rows in by_image.items():
        for kept in plain_pose.without_repeats(keypoints[rows], score[rows], area[rows], sigmas, 0.9):
            n = rows[kept]
            flat = np.concatenate([keypoints[n, :, :2], np.ones((len(sigmas), 1))], axis=1).ravel().tolist()
            found.append(
                {"image_id": image + 1, "category_id": 1, "keypoints": flat, "score": float(score[n])}
            )
    people = [
        {
            "id": n + 1,
            "image_id": int(truth.image[n]) + 1,
            "category_id": 1,
            "iscrowd": 0,
            "area": float(truth.area[n]),
            "bbox": truth.box[n].tolist(),
            "keypoints": truth.joints[n].ravel().tolist(),
            "num_keypoints": int((truth.joints[n, :, 2] > 0).sum()),
        }
        for n in range(len(truth.image))
    ]
    content = {
        "images": [{"id": number} for number in truth.image_ids],
        "categories": [{"id": 1}],
        "annotations": people,
    }
    return plain_pose.coco_ap(content, found, sigmas)


def evaluation(made: tuple[PoseRecords, np.ndarray]) -> Row:
    """Seconds from the poses of all boxes to the scores."""
    values: dict[str, float] = {}

    def score(name: str, way: Callable[..., float]) -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            return timed(lambda: values.update({name: way(*made)}))

    row: Row = {"boxes": len(made[0]), "seconds": score("AP", package_ap), "AP": values["AP"]}
    try:
        seconds = score("plain_AP", plain_ap)
    except ImportError:
        log.warning("pycocotools is not installed (it comes with the extra dev): nothing to compare with")
        return row
    return row | {
        "plain_seconds": seconds,
        "ratio": seconds / row["seconds"],
        "plain_AP": values["plain_AP"],
    }


def predict(
    task: Any,
    make: Callable[..., L.Trainer],
    folder: Path,
    num_people: int,
    num_workers: int | None,
    seed: int,
) -> Row:
    """From JPEGs with eight boxes each to joints, the mirror image included where the task asks for it. A prediction of
    one picture warms up."""
    number = -(-num_people // PER_IMAGE)
    write_people(folder, number, task.codecs[0], seed)
    sources = read_inputs({"input": str(folder)})
    sides = np.random.default_rng(seed).uniform((0, 0, 60, 120), (440, 240, 200, 240), (num_people, 4))
    boxes = [Box(n, x, y, w, h, None) for n, (x, y, w, h) in enumerate(sides.tolist())]
    task = copy.deepcopy(task)
    task.labels = COCO.labels()
    seconds = 0.0
    for count in (PER_IMAGE, num_people):
        people = Boxes(sources, boxes[:count], [n // PER_IMAGE for n in range(count)], whole=True)
        transforms = {"val": PoseEval(task.codecs)}
        data = DataModule(str(folder), lambda root: {}, transforms, num_workers=num_workers)
        data.splits = {"predict": people}
        trainer = make(logger=False)
        seconds = timed(partial(trainer.predict, task, data, return_predictions=False))
    return {
        "people": num_people,
        "precision": str(trainer.precision),
        "flip_test": task.flip_test,
        "people_per_s": num_people / seconds,
        "images_per_s": number / seconds,
    }
