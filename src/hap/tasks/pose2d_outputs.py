"""What `hap predict` leaves of poses: `poses.json` and `poses.csv`, pictures and videos with the joints drawn over
them, and pose files to pre-train with.

Joints keep their slots and coordinates in every file, however low their score; a threshold acts on drawing alone.
"""

import csv
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hap.data.boxes import picture_size
from hap.data.decoding import image_size, orientation, stored_points
from hap.data.files import relative
from hap.data.pretrain import write_poses as write_pose_table
from hap.data.sources import ImageRecord, source_columns
from hap.data.video import VIDEO_SUFFIXES
from hap.errors import BadSample, HapError, printable
from hap.metrics.pose import pose_score
from hap.plots import draw_pose
from hap.pose.skeletons import COCO, Skeleton
from hap.tasks.pictures import Picture, by_picture, draw_people

log = logging.getLogger(__name__)

DRAWN = 0.3  # score of a joint or a box from which it is drawn


def write_poses(
    folder: Path, records: Sequence[Any], keypoints: np.ndarray, skeleton: Skeleton, pictures: Sequence[Any]
) -> None:
    """
    `poses.json`: in COCO's format, with `images` (`id`, `file_name`, `width`, `height`, of videos `frame` and
    `seconds`), `categories` (names of the joints, links) and `annotations`: `bbox` [x, y, w, h], `score` of the person,
    `keypoints` x, y, 2 of each joint, `keypoint_scores`. Pixels are those of the picture as a viewer shows it.

    `poses.csv`: a row for each person, where it is from (`source_columns`), `person_score`, and x, y and score of each
    joint by its name.

    `pictures/`: everybody in a picture together; of a video `pictures/NAME.mp4`, all of its frames that were given.

    Args:
        records: of people; their pictures with `frame`, `box` and so on, see `hap.data.sources`, `hap.data.boxes`.
        keypoints: float32 (N, K, 3): x, y in pixels of the whole picture, score.
        pictures: all that were given, also those in which nobody is.
    """
    box_score = np.array([1.0 if r.box is None or r.box.score is None else r.box.score for r in records])
    score = pose_score(keypoints, box_score)
    people = by_picture(records, pictures)
    _write_json(folder / "poses.json", records, people, keypoints, score, skeleton)
    _write_csv(folder / "poses.csv", records, keypoints, score, skeleton)
    _draw(folder / "pictures", records, people, keypoints, skeleton)


def _write_json(
    path: Path,
    records: Sequence[Any],
    pictures: Sequence[Picture],
    keypoints: np.ndarray,
    score: np.ndarray,
    skeleton: Skeleton,
) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for picture, people in pictures:
        try:
            height, width = picture_size(picture)
        except (BadSample, OSError):  # it was named when it was read
            continue
        number = len(images) + 1
        image = {"id": number, "file_name": picture.file, "width": width, "height": height}
        if picture.frame is not None:
            image |= {"frame": picture.frame, "seconds": round(picture.seconds, 3)}
        images.append(image)
        for i in people:
            box = records[i].box
            bbox = [0.0, 0.0, float(width), float(height)] if box is None else list(box[1:5])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                    "iscrowd": 0,
                    "score": float(score[i]),
                    "num_keypoints": len(skeleton.joints),
                    "keypoints": [
                        v for x, y, _ in keypoints[i].tolist() for v in (round(x, 3), round(y, 3), 2)
                    ],
                    "keypoint_scores": [round(s, 5) for s in keypoints[i, :, 2].tolist()],
                }
            )
    category = {
        "id": 1,
        "name": "person",
        "keypoints": list(skeleton.joints),
        "skeleton": [[a + 1, b + 1] for a, b in skeleton.links],
    }
    content = {"images": images, "annotations": annotations, "categories": [category]}
    path.write_text(json.dumps(content, ensure_ascii=True), encoding="ascii")


def _write_csv(
    path: Path, records: Sequence[Any], keypoints: np.ndarray, score: np.ndarray, skeleton: Skeleton
) -> None:
    where = source_columns(records)
    columns = [f"{joint}_{what}" for joint in skeleton.joints for what in ("x", "y", "score")]
    # Names as the file system has them, also those that are not UTF-8.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow([*where, "person_score", *columns])
        for place, points, one in zip(zip(*where.values(), strict=True), keypoints, score, strict=True):
            writer.writerow([*place, f"{one:.5f}", *(f"{value:.5g}" for value in points.ravel())])


def _draw(
    folder: Path,
    records: Sequence[Any],
    pictures: Sequence[Picture],
    keypoints: np.ndarray,
    skeleton: Skeleton,
) -> None:
    def draw(image: np.ndarray, people: list[int]) -> np.ndarray:
        for i in people:
            box = records[i].box
            if box is None:
                image = draw_pose(image, keypoints[i], skeleton, DRAWN)
            elif box.score is None or box.score >= DRAWN:
                image = draw_pose(image, keypoints[i], skeleton, DRAWN, np.array(box[1:5]))
        return image

    draw_people(folder, pictures, draw)


def check_luperson(records: Sequence[Any], skeleton: Skeleton) -> None:
    """Raises HapError where poses cannot be those of a folder of crops, before anything is computed."""
    COCO.mapped(skeleton.joints, "output=luperson")
    if records[0].box is not None or any(record.frame is not None for record in records):
        raise HapError(
            "output=luperson is for images of one person each: leave boxes= out, and give images, not videos "
            f"({', '.join(VIDEO_SUFFIXES[:4])}, ...)"
        )


def write_luperson(
    folder: Path, records: Sequence[ImageRecord], keypoints: np.ndarray, skeleton: Skeleton
) -> None:
    """`luperson/`, to pre-train with: `LUPerson-data/` with links to the crops, and `LUPerson-pose.npy`. Points are in
    the pixels as they are stored, which is what pre-training reads, in COCO's order."""
    root = folder / "luperson"
    images = root / "LUPerson-data"
    order = COCO.mapped(skeleton.joints, "output=luperson")
    names, points, stems = [], [], set()
    for i, record in enumerate(records):
        name = relative(record.file) or f"{i:07d}/{Path(record.file).name}"
        if (stem := os.path.splitext(name)[0]) in stems:
            name = f"{i:07d}/{name}"  # a pose is known by its image's name without the suffix
            stem = os.path.splitext(name)[0]
        stems.add(stem)
        data = record.encoded()
        xy = stored_points(keypoints[i, order, :2], orientation(data), image_size(data, upright=True))
        names.append(name)
        points.append(np.column_stack([xy, keypoints[i, order, 2]]))
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).unlink(missing_ok=True)  # of a writing that was stopped
        (images / name).symlink_to(os.path.abspath(record.path))
    write_pose_table(root / "LUPerson-pose.npy", names, np.stack(points))
    log.info(
        "pre-train with these: python -m hap.train experiment=pretrain_hap data.root=%s data.reader.cfs_ratio=1",
        printable(str(root)),
    )
