"""3DPW: people in front of a moving camera with the parameters of their bodies, as released and as converted to json.

Of the original release the sequences are read themselves (`sequenceFiles/test/*.pkl`, plain data of Python 2). Both
forms give the same people: every frame of every actor for whom the camera is known.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hap.body.arrays import GENDERS, NUM_BETAS, Bodies
from hap.body.joints import OPENPOSE, SMPL30, to_smpl30, with_middle
from hap.body.world import into_camera
from hap.data.decoding import image_size
from hap.data.files import check_images, first_lines, list_files, locate, read_file, read_json
from hap.data.pose3d import BodyRecords, Kind
from hap.data.safe_pickle import load
from hap.errors import BadSample, HapError, printable

log = logging.getLogger(__name__)

# Columns of people M in the frame of the camera: those of `BodyRecords`, and `file`, `size`, `actor` and `openpose`
# (M, 18, 3) of x, y, confidence.
People = dict[str, np.ndarray]

KIND = Kind("3dpw", from_joints=True)
PUBLISHED = {"test": 35_515}  # person-frames
DETECTED = 0.05  # confidence above which a joint of the input counts
FAR = 0.5  # metres between bodies and their own joints: they are in different units or frames
ADVICE = "it holds sequenceFiles/{train,validation,test}/*.pkl and imageFiles/, as the release is unpacked"

# What a sequence has of each actor in each frame, and what else is needed of it.
SHAPES = {"poses": (72,), "trans": (3,), "jointPositions": (72,), "poses2d": (3, 18), "campose_valid": ()}
OTHERS = ("genders", "betas", "cam_poses", "cam_intrinsics")
LETTERS = {"m": "male", "f": "female"}


def read_3dpw(
    root: Path,
    bodies: Bodies,
    split: Literal["train", "validation", "test"] = "test",
    gt_body: Literal["gendered", "neutral"] = "gendered",
) -> dict[str, BodyRecords]:
    """One split of 3DPW to evaluate on, as `val` and as `test`.

    Args:
        root: folder of `imageFiles`, and of `sequenceFiles` or else `3DPW_latest_{split}.json`.
        gt_body: whose meshes are the truth. Some papers score against neutral ones; their numbers differ.

    Raises:
        HapError: files or images are missing, damaged, or contain code, or their numbers make no sense.
    """
    if split not in ("train", "validation", "test"):
        raise HapError(f"data.reader.split={split}: train, validation or test")
    if gt_body not in ("gendered", "neutral"):
        raise HapError(f"data.reader.gt_body={gt_body}: gendered or neutral")
    json = f"3DPW_latest_{split}.json"
    folder = locate(root, ["sequenceFiles", json], ADVICE)
    source, images = folder / "sequenceFiles" / split, folder / "imageFiles"
    neutral = gt_body == "neutral"
    for gender in ("male", "female") if not neutral else ():
        bodies.of(GENDERS.index(gender))  # there, before anything is read
    if source.is_dir():
        people = _released(source, images, bodies, neutral)
    elif (source := folder / json).is_file():
        people = _converted(source, bodies, neutral)
    else:
        raise HapError(f"{folder} has neither sequenceFiles/{split} nor {json}: {ADVICE}")
    files, first, image = np.unique(people["file"], return_index=True, return_inverse=True)
    check_images(source, images, files.tolist())

    detected = with_middle(people["openpose"], OPENPOSE.index("L_Hip"), OPENPOSE.index("R_Hip"))
    joints = to_smpl30(detected, (*OPENPOSE, "Pelvis"))
    joints[..., 2] = joints[..., 2] > DETECTED
    count, unseen = len(image), int((~joints[..., 2].any(1)).sum())
    videos = len({name.rpartition("/")[0] for name in files})
    title = f"3DPW {split}: {count:,} person-frames of {videos} sequences"
    if count == (published := PUBLISHED.get(split, count)):
        log.info("%s", title)
    else:
        log.warning("%s; %s are published", title, f"{published:,}")
    if unseen:
        log.info("%s: %s have no joint in the input: cropped around the true ones", source, f"{unseen:,}")
    columns = ("box", "camera", "pose", "betas", "trans")
    records = BodyRecords(
        root=images,
        files=tuple(files),
        sizes=people["size"][first],
        image=image,
        ids=people["actor"].tolist(),
        kind=KIND,
        joints=joints.astype(np.float32),
        joints3d=np.zeros((count, len(SMPL30), 4), np.float32),
        **{name: people[name].astype(np.float32) for name in columns},
        fitted=np.ones(count, bool),
        gender=people["gender"],
        near=np.zeros(count + 1, int),
        near_joints=np.zeros((0, 17, 3), np.float32),
        sequence=tuple(people["sequence"]),
        protocol=f"{title}, {gt_body} bodies, joints of the release as input, {unseen:,} people without any",
    )
    return {"val": records, "test": records}


def _released(folder: Path, images: Path, bodies: Bodies, neutral: bool) -> People:
    """Of all sequences of a split. Raises HapError with what is wrong with each."""
    names = list_files(folder, (".pkl",))
    parts, wrong, left_out = [], [], np.zeros(2, int)
    for name in names:
        try:
            part, out = _sequence(folder / name, images, bodies, neutral)
            parts.append(part)
            left_out += out
        except HapError as error:
            wrong.append(str(error))
    if wrong:
        raise HapError(f"{len(wrong)} of {len(names)} sequences cannot be read{first_lines(wrong)}")
    if not any(len(part["file"]) for part in parts):
        raise HapError(f"{folder}: in {len(names)} sequences there is nobody in a picture of a known camera")
    no_camera, outside = left_out.tolist()
    log.info(
        "%s: left out %s person-frames without a camera, %s outside of the picture",
        *(folder, f"{no_camera:,}", f"{outside:,}"),
    )
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _sequence(path: Path, images: Path, bodies: Bodies, neutral: bool) -> tuple[People, tuple[int, int]]:
    """One file; and how many person-frames of it have no camera, and how many are outside of the picture."""
    name, content = path.stem, _content(path)
    frame, actor = np.nonzero(content["campose_valid"] > 0)  # frame by frame
    pose, trans, joints, openpose = (content[field][frame, actor] for field in list(SHAPES)[:4])
    cameras = content["cam_poses"][frame]
    rotation, move = cameras[:, :3, :3], cameras[:, :3, 3]
    who = [f"{path}, frame {n}, actor {p}" for n, p in zip(frame, actor, strict=True)]
    for values in pose, trans, joints, openpose, cameras:
        if not (finite := np.isfinite(values).all(tuple(range(1, values.ndim)))).all():
            raise HapError(f"{who[finite.argmin()]}: numbers that are not finite")
    off = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
    if not (turns := (off < 1e-2) & (np.linalg.det(rotation) > 0)).all():
        raise HapError(f"{who[turns.argmin()]}: cam_poses has no rotation")

    (width, height), k = _first_size(images / name / "image_00000.jpg"), content["cam_intrinsics"]
    camera = np.array([k[0, 0], k[1, 1], k[0, 2], k[1, 2]])
    betas, gender = content["betas"][actor], content["genders"][actor] * (not neutral)
    root = bodies.root(gender, betas)
    orient, trans = into_camera(pose[:, :3], trans, root, rotation, move)
    joints = joints.reshape(-1, 24, 3) @ rotation.transpose(0, 2, 1) + move[:, None]
    _check_places(path, trans + root, joints[:, 0])
    box, inside = _boxes(joints, camera, (width, height))
    people = {
        "file": np.array([f"{name}/image_{n:05d}.jpg" for n in frame], object),
        "size": np.tile([width, height], (len(frame), 1)),
        "actor": actor,
        "sequence": np.array([f"{name}, actor {p}" for p in actor], object),
        "openpose": openpose.transpose(0, 2, 1),
        "box": box,
        "camera": np.tile(camera, (len(frame), 1)),
        "pose": np.concatenate([orient, pose[:, 3:]], axis=1),
        "betas": betas,
        "trans": trans,
        "gender": gender,
    }
    left_out = content["campose_valid"].size - len(frame), int((~inside).sum())
    return {key: column[inside] for key, column in people.items()}, left_out


def _content(path: Path) -> People:
    """Arrays of a sequence: fields of `SHAPES` (N, P, ...) of frames and actors, betas (P, 10), genders (P,), ..."""
    try:
        content = load(path)
    except OSError as error:
        raise HapError(f"cannot read {path}: {error}") from None
    if not isinstance(content, dict):
        raise HapError(f"{path} is no sequence of 3DPW: it holds no dictionary")
    if missing := [name for name in (*SHAPES, *OTHERS) if name not in content]:
        raise HapError(f"{path} has no {', '.join(missing)}")
    actors = len(content["genders"]) if isinstance(content["genders"], list | tuple) else 0
    for name in ("genders", "betas", *SHAPES):
        if not actors or not isinstance(content[name], list | tuple) or len(content[name]) != actors:
            raise HapError(f"{path}: {name} is no list of one entry for each actor, as genders is")
    cameras = _numbers(content["cam_poses"], f"{path}: cam_poses", (None, 4, 4))
    k = _numbers(content["cam_intrinsics"], f"{path}: cam_intrinsics", (3, 3))
    if not (np.isfinite(k).all() and k[0, 0] > 0 and k[1, 1] > 0):
        raise HapError(f"{path}: cam_intrinsics have no focal lengths above 0")
    who = [f"{path}, actor {p}" for p in range(actors)]
    columns: People = {
        "cam_poses": cameras,
        "cam_intrinsics": k,
        "genders": np.array([_gender(v, w) for v, w in zip(content["genders"], who, strict=True)]),
        "betas": np.stack([_ten(v, w) for v, w in zip(content["betas"], who, strict=True)]),
    }
    for name, shape in SHAPES.items():
        values = zip(content[name], who, strict=True)
        columns[name] = np.stack([_numbers(v, f"{w}: {name}", (len(cameras), *shape)) for v, w in values], 1)
    return columns


def _numbers(value: Any, what: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """float64 of a shape, in which None is any length."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise HapError(f"{what}: {printable(str(value))[:40]} is no array of numbers") from None
    if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        raise HapError(f"{what} is {array.shape}, not {shape}".replace("None", "N"))
    return array


def _gender(value: Any, where: str) -> int:
    """A place in `GENDERS`; never neutral, which would be another body in silence."""
    name = str(value).lower()
    name = LETTERS.get(name, name)
    if name not in LETTERS.values():
        raise HapError(f"{where}: gender {printable(repr(value))[:40]}, not m, f, male or female")
    return GENDERS.index(name)


def _ten(value: Any, where: str) -> np.ndarray:
    """The first ten of 10 or 300 shape coefficients."""
    betas = _numbers(value, f"{where}: betas", (None,))
    if len(betas) not in (NUM_BETAS, 300) or not np.isfinite(betas).all():
        age = " (the last of them of age)" if len(betas) == NUM_BETAS + 1 else ""
        raise HapError(f"{where}: {len(betas)} betas{age}, not {NUM_BETAS} or 300 finite numbers")
    return betas[:NUM_BETAS]


def _first_size(path: Path) -> tuple[int, int]:
    """Width and height of the pictures of a sequence, by its first."""
    try:
        height, width = image_size(read_file(path))
    except (BadSample, OSError) as error:
        raise HapError(f"no size of the pictures of {path.parent.name}: {path}: {error}") from None
    return width, height


def _boxes(joints: np.ndarray, camera: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """x, y, w, h (M, 4) around those of the true joints (M, 24, 3) that are in the picture, each side 1.2 times as
    long; and whether there are any (M,). Behind the camera is not in the picture."""
    depth = np.where(joints[..., 2:] > 0, joints[..., 2:], np.nan)
    xy = camera[:2] * joints[..., :2] / depth + camera[2:]
    inside = ((xy >= 0) & (xy < size)).all(2)
    seen = inside.any(1)
    low = np.where(seen[:, None], np.where(inside[..., None], xy, np.inf).min(1), 0)
    high = np.where(seen[:, None], np.where(inside[..., None], xy, -np.inf).max(1), 0)
    return np.concatenate([low - 0.1 * (high - low), 1.2 * (high - low)], axis=1), seen


def _check_places(path: Path, bodies: np.ndarray, joints: np.ndarray) -> None:
    """Raises HapError where bodies (M, 3) are not where their own joints (M, 3) are."""
    far = np.linalg.norm(bodies - joints, axis=1)
    if len(far) and np.median(far) > FAR:
        raise HapError(
            f"{path}: bodies are {np.median(far):.3g} m away from their own joints: are both in metres (a factor of "
            "1000?) and in the same frame?"
        )


def _converted(file: Path, bodies: Bodies, neutral: bool) -> People:
    """A split as the authors of 3DCrowdNet converted it."""
    content = read_json(file)
    images, people = (
        content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations")
    )
    if not isinstance(images, list) or not isinstance(people, list) or not people:
        raise HapError(f"{file} has no lists of images and annotations")
    place = dict(zip(map(str, _get(file, images, "id")), images, strict=True))
    wanted = [str(image) for image in _get(file, people, "image_id")]
    ids = [f"annotation {printable(str(number))}" for number in _get(file, people, "id")]
    if foreign := [name for name, image in zip(ids, wanted, strict=True) if image not in place]:
        raise HapError(
            f"{file}: {len(foreign):,} of {len(ids):,} are of images that it does not list{first_lines(foreign)}"
        )
    at = [place[image] for image in wanted]

    def column(entries: Sequence[Any], path: str, *shape: int) -> np.ndarray:
        return _column(file, ids, _get(file, entries, path), path, shape)

    named = zip(_get(file, people, "smpl_param.gender"), ids, strict=True)
    gender = np.array([_gender(value, f"{file}, {who}") for value, who in named]) * (not neutral)
    betas, joints = column(people, "smpl_param.shape", NUM_BETAS), column(people, "joint_cam", 24, 3)
    root, actor = bodies.root(gender, betas), column(people, "person_id").astype(int)
    _check_places(file, column(people, "smpl_param.trans", 3) + root, joints[:, 0])
    videos = [str(name) for name in _get(file, at, "sequence")]
    names = zip(videos, _get(file, at, "file_name"), strict=True)
    return {
        "file": np.array([f"{video}/{name}" for video, name in names], object),
        "size": np.stack([column(at, "width"), column(at, "height")], axis=1).astype(int),
        "actor": actor,
        "sequence": np.array([f"{v}, actor {p}" for v, p in zip(videos, actor, strict=True)], object),
        "openpose": column(people, "openpose_result", 18, 3),
        "box": column(people, "bbox", 4),
        "camera": np.hstack([column(at, "cam_param.focal", 2), column(at, "cam_param.princpt", 2)]),
        "pose": column(people, "smpl_param.pose", 72),
        "betas": betas,
        "trans": joints[:, 0] - root,  # the file's is that of the neutral body, whose root is elsewhere
        "gender": gender,
    }


def _get(file: Path, entries: Sequence[Any], path: str) -> list[Any]:
    """What each entry has at a path of keys."""
    values = list(entries)
    for key in path.split("."):
        values = [value.get(key) if isinstance(value, dict) else None for value in values]
    if lacking := [str(i) for i, value in enumerate(values) if value is None]:
        raise HapError(
            f"{file}: {len(lacking):,} of {len(values):,} entries have no {path}{first_lines(lacking)}"
        )
    return values


def _column(
    file: Path, ids: Sequence[str], values: Sequence[Any], what: str, shape: tuple[int, ...]
) -> np.ndarray:
    """(M, *shape). Raises HapError with the ids of people for whom it is not that many finite numbers."""
    try:
        array = np.array(values, np.float64)
        if array.shape == (len(values), *shape) and np.isfinite(array).all():
            return array
    except (TypeError, ValueError):
        pass
    wrong = []
    for who, value in zip(ids, values, strict=True):
        try:
            if not np.isfinite(_numbers(value, who, shape)).all():
                wrong.append(f"{who}: not finite")
        except HapError as error:
            wrong.append(str(error))
    raise HapError(f"{file}: {what} of {len(wrong):,} people is wrong{first_lines(wrong)}")
