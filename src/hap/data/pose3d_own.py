"""People with the parameters of their bodies: one's own, and BEDLAM's. Both are .npz files of plain arrays."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hap.body.arrays import GENDERS, NUM_BETAS, Bodies
from hap.body.joints import COCO, to_smpl30, with_middle
from hap.body.world import into_camera
from hap.data.decoding import image_size
from hap.data.files import first_lines, is_hidden, locate, read_file
from hap.data.pose3d import BodyRecords, Kind
from hap.data.pose3d_exact import JOINTS, People, files, load, numbers, placed, records, text
from hap.errors import BadSample, HapError, printable

log = logging.getLogger(__name__)

# Of each person, in a file of one's own. focal and center may be one for all.
SHAPES: Mapping[str, tuple[int, ...]] = {
    "pose": (3 * len(JOINTS),),
    "betas": (NUM_BETAS,),
    "trans": (3,),
    "focal": (2,),
    "center": (2,),
    "keypoints": (len(COCO), 3),
    "box": (4,),
}
NEEDED, OPTIONAL = ("image", "pose", "betas", "trans", "focal", "center"), ("gender", "keypoints", "box")
LETTERS = {"m": "male", "f": "female"}
SMPLX = (
    "these are SMPL-X's, a body of other shapes and joints; its authors have a tool that makes SMPL's of them"
)
HINTS = {
    ("pose", 165): SMPLX,
    ("pose", 156): "these are of SMPL with hands: take the first 66 and six zeros",
    ("pose", 69): "the three of the root come before them",
    ("betas", 11): "the last is of age, which SMPL's body of adults has not",
    ("betas", 16): SMPLX,
    ("betas", 300): "take the first ten",
}
LABELS = "take the labels of SMPL's body, which BEDLAM's df_full_body_smpl.py makes"
OFF, OFF_DRAWN = (
    0.25,
    0.05,
)  # of a box, that a body and key points may be apart: that were found, that are its own


def read_bodies3d(root: Path, bodies: Bodies) -> dict[str, BodyRecords]:
    """Splits `train`, `val` and, if there is one, `test`: `annotations/{split}.npz`, with images below `images/`.

    Arrays of a file:
        image: text (N,), paths of the images below `images/`.
        pose (N, 72), betas (N, 10), trans (N, 3): of SMPL, axis-angle vectors and metres, in the frame of the camera.
        focal, center: (N, 2), or (2,) for all: focal lengths and principal point in pixels.
        gender: text (N,), m, f or neutral: whose body these are of. If it is not there, of the neutral one.
        keypoints: (N, 17, 3), COCO's: x, y, and above 0 where found; the 2D pose that is given to networks. If it is
            not there, that of the body.
        box: (N, 4), x, y, w, h. If it is not there, that of the body's joints, each side times 1.2.

    People behind the camera and those whose box has no area are left out.

    Raises:
        HapError: files, arrays or images are missing, or what they say makes no sense.
    """
    advice = f"people of one's own, with arrays {', '.join(NEEDED)}"
    folder = locate(root, ["annotations/train.npz", "annotations/val.npz"], advice)
    splits = {}
    for split in ("train", "val", "test"):
        path = folder / "annotations" / f"{split}.npz"
        if path.is_file():
            people = _own(path)
            seen = placed(path, people, bodies, OFF)
            _tell(path, len(people["id"]), len(seen["id"]))
            splits[split] = records(Kind("bodies3d", exact=True), path, folder / "images", [seen])
    if missing := [f"{split}.npz" for split in ("train", "val") if split not in splits]:
        raise HapError(f"{folder / 'annotations'} has no {missing[0]}: {advice}")
    return splits


def _own(path: Path) -> People:
    arrays = load(path, NEEDED, OPTIONAL)
    count = len(names := files(path, "image", arrays["image"]))
    values = {}
    for name, shape in SHAPES.items():
        if name in arrays:
            array = arrays[name]
            if name in ("focal", "center") and array.shape == shape:
                array = np.broadcast_to(array, (count, *shape))
            hint = HINTS.get((name, array.shape[-1] if array.ndim else 0), "")
            values[name] = numbers(path, name, array, (count, *shape), hint)
    people: People = {name: values[name] for name in ("pose", "betas", "trans", "box") if name in values}
    if "keypoints" in values:
        found = with_middle(values["keypoints"], COCO.index("L_Hip"), COCO.index("R_Hip"))
        found[..., 2] = found[..., 2] > 0
        people["found"] = to_smpl30(found, (*COCO, "Pelvis"))
    return people | {
        "file": names,
        "id": np.arange(count),
        "gender": _genders(path, arrays["gender"], count) if "gender" in arrays else np.zeros(count, int),
        "size": np.zeros((count, 2), int),
        "camera": np.concatenate([values["focal"], values["center"]], axis=1),
    }


def _genders(path: Path, array: np.ndarray, count: int) -> np.ndarray:
    """Places in `GENDERS` (N,)."""
    if len(text(path, "gender", array)) != count:
        raise HapError(f"{path}: gender of {len(array):,} of {count:,} people")
    given, inverse = np.unique(np.char.lower(array), return_inverse=True)
    names = [LETTERS.get(name, name) for name in given.tolist()]
    if wrong := [printable(repr(name)) for name in names if name not in GENDERS]:
        raise HapError(f"{path}: gender is m, f or neutral, not {', '.join(wrong[:5])}")
    return np.array([GENDERS.index(name) for name in names])[inverse]


def read_bedlam(
    root: Path, bodies: Bodies, annotations: str = "training_labels/**/*.npz", images: str = "training_images"
) -> BodyRecords:
    """BEDLAM (Black et al., CVPR 2023): drawn people, whose bodies are known; by its labels of SMPL's body.

    A file of labels is of one scene and called like it; its images are in `{images}/{scene}/png`. The bodies are
    neutral ones: `gender` in the files is that of the person who was drawn. Left out are scenes without images, and
    those whose images are stored lying on their side (closeup), until somebody turns them a quarter clockwise.

    Args:
        annotations: pattern of the files below `root`.
        images: folder of the scenes below `root`.

    Raises:
        HapError: there are no labels, they are of SMPL-X's body, or what they say makes no sense.
    """
    folder = locate(root, [images], "BEDLAM's images, of its training scenes")
    try:
        paths = [p for p in sorted(folder.glob(annotations)) if p.is_file() and not is_hidden(p.name)]
    except (NotImplementedError, ValueError) as error:
        raise HapError(f"data.reader.annotations={annotations}: {error}") from None
    if not paths:
        raise HapError(f"{folder} has no {annotations}, labels of BEDLAM: data.reader.annotations=PATTERN")
    scenes: list[People] = []
    left_out: list[str] = []
    total = 0
    for path in paths:
        places = (f"{path.stem}/png", path.stem)
        if (place := next((p for p in places if (folder / images / p).is_dir()), None)) is None:
            left_out.append(f"{path.stem}: no images")
            continue
        people = _scene(path, place)
        said, size = tuple(people["size"][0].tolist()), _size(folder / images / people["file"][0])
        if said == size[::-1]:
            left_out.append(f"{path.stem}: its images lie on their side")
        elif said != size:
            raise HapError(
                f"{path}: images of {said[0]} x {said[1]} pixels by its cameras, the first has {size[0]} x {size[1]}"
            )
        else:
            total += len(people["id"])
            scenes.append(placed(path, people, bodies, OFF_DRAWN))
    if left_out:
        log.warning(
            "%s: %d of %d scenes left out%s", folder, len(left_out), len(paths), first_lines(left_out)
        )
    if not scenes:
        raise HapError(
            f"no scene of {folder / annotations} has upright images in {folder / images}/SCENE/png"
        )
    _tell(folder / annotations, total, sum(len(scene["id"]) for scene in scenes))
    return records(Kind("bedlam", exact=True), folder / annotations, folder / images, scenes)


def _scene(path: Path, place: str) -> People:
    """`found` are the first 24 key points of a file, which are the joints of its bodies."""
    needed, optional = (
        ("imgname", "shape", "trans_cam", "cam_int", "cam_ext"),
        ("pose_cam", "pose_world", "gtkps"),
    )
    arrays = load(path, needed, optional, others=True)
    names = files(path, "imgname", arrays["imgname"])
    count, pose = len(names), "pose_cam" if "pose_cam" in arrays else "pose_world"
    if pose not in arrays:
        raise HapError(f"{path} has no array pose_cam, and no pose_world")
    hint = LABELS if arrays[pose].shape[1:] == (165,) else ""
    turns = numbers(path, pose, arrays[pose], (count, *SHAPES["pose"]), hint)
    if arrays["shape"].shape == (count, 11):  # of SMPL 1.1: one more of its shapes, not age
        arrays["shape"] = arrays["shape"][:, :NUM_BETAS]
    outer = numbers(path, "cam_ext", arrays["cam_ext"], (count, 4, 4))
    if pose == "pose_world":
        here = np.zeros((count, 3))
        turns[:, :3], _ = into_camera(turns[:, :3], here, here, outer[:, :3, :3], here)
    inner = numbers(path, "cam_int", arrays["cam_int"], (count, 3, 3))
    people = {
        "pose": turns,
        "betas": numbers(path, "shape", arrays["shape"], (count, NUM_BETAS)),
        "trans": numbers(path, "trans_cam", arrays["trans_cam"], (count, 3)) + outer[:, :3, 3],
        "camera": inner[:, [0, 1, 0, 1], [0, 1, 2, 2]],
        "size": np.rint(2 * inner[:, :2, 2]).astype(int),
        "gender": np.zeros(count, int),
        "file": np.char.add(f"{place}/", names),
        "id": np.arange(count),
    }
    if "gtkps" in arrays and arrays["gtkps"].ndim == 3:
        found = arrays["gtkps"][:, : len(JOINTS), :2]
        found = numbers(path, "gtkps", found, (count, len(JOINTS), 2))
        people["found"] = to_smpl30(np.concatenate([found, np.ones_like(found[..., :1])], axis=2), JOINTS)
    return people


def _size(path: Path) -> tuple[int, int]:
    """Width and height of an image."""
    try:
        height, width = image_size(read_file(path))
    except (BadSample, OSError) as error:
        raise HapError(f"cannot read {path}: {error}") from None
    return width, height


def _tell(path: Path, total: int, seen: int) -> None:
    if seen < total:
        log.info(
            "%s: left out %s of %s people whom the camera does not see",
            path,
            f"{total - seen:,}",
            f"{total:,}",
        )
