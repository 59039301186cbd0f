"""Writers of 3D pose data: MuCo, COCO and MPII with fitted bodies, one's own people, and all that a model is trained
and evaluated on. Bodies are those that are drawn, so fits are exact; one person in ten has none."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hap.body.arrays import GENDERS
from hap.body.joints import H36M, MUCO, SMPL30
from hap.synthetic.pictures import MOST_PEOPLE, Seen
from hap.synthetic.pose2d import MPII_POINTS, coco_person, draw_pictures, keypoints_of, size_of, split_numbers
from hap.synthetic.pose3d_video import h36m, pw3d
from hap.synthetic.smpl import drawn_bodies, gendered
from hap.synthetic.writing import Run, write_json


def _muco_regressor() -> np.ndarray:
    """(21, V): the joints of the fit that is compared with them where Human3.6M has one of the name."""
    bodies = drawn_bodies()
    rows = dict(zip(SMPL30, bodies.joints30, strict=True)) | dict(
        zip(H36M, np.asarray(bodies.h36m), strict=True)
    )
    rows["Thorax"] = (rows["L_Shoulder"] + rows["R_Shoulder"]) / 2
    return np.stack([rows[name] for name in MUCO])


def muco(out: Path, num_images: int, seed: int, run: Run, *, longer: int = 320) -> None:
    """MuCo: `data/MuCo-3DHP.json`, `data/smpl_param.json`, and pictures in `data/unaugmented_set` and `augmented_set`,
    half in each. `longer`: side of the pictures."""
    sets = ("unaugmented_set", "augmented_set")
    files = [f"{sets[n % 2]}/{n:06d}.jpg" for n in range(num_images)]
    for name in sets:
        (out / "data" / name).mkdir(parents=True)
    pictures = draw_pictures({"train": files}, {"train": out / "data"}, seed, run, longer, crowds=False)[
        "train"
    ]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    fits: dict[str, Any] = {}
    regressor = _muco_regressor()
    for number, (file, people) in enumerate(zip(files, pictures, strict=True)):
        width, height = size_of(out / "data" / file)
        for person in people:
            body = person.in_camera()
            joints = regressor @ body.mesh()[0]
            points = joints @ person.view.intrinsics.T
            points = points[:, :2] / points[:, 2:]
            inside = ((points >= 0) & (points < (width, height))).all(1)
            if len(annotations) % 10 != 9:
                fits[str(len(annotations))] = body.parameters()
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "bbox": person.box.tolist(),
                    "keypoints_cam": (1000 * joints).tolist(),
                    "keypoints_img": points.tolist(),
                    "keypoints_vis": inside.tolist(),
                }
            )
        if people:
            focal, principal = people[0].view.lens
            image = {"id": number, "file_name": file, "width": width, "height": height}
            images.append(image | {"f": focal, "c": principal})
    write_json(out / "data/MuCo-3DHP.json", {"images": images, "annotations": annotations})
    write_json(out / "data/smpl_param.json", fits)


def coco3d(out: Path, num_images: int, seed: int, run: Run, *, longer: int = 320) -> None:
    """COCO's training set with NeuralAnnot's fits: `images/train2017`, `annotations/person_keypoints_train2017.json`,
    `annotations/MSCOCO_train_SMPL_NeuralAnnot.json`. `longer`: side of the pictures."""
    files = [f"{n + 1:012d}.jpg" for n in range(num_images)]
    folder = out / "images/train2017"
    pictures = draw_pictures({"train": files}, {"train": folder}, seed, run, longer)["train"]
    people = _people(pictures, 1)
    annotations = [coco_person(person, image + 1, number) for number, (image, person) in people.items()]
    write_json(
        out / "annotations/person_keypoints_train2017.json",
        {"images": _images(folder, files, 1), "annotations": annotations},
    )
    write_json(out / "annotations/MSCOCO_train_SMPL_NeuralAnnot.json", _neural_annot(people))


def mpii3d(out: Path, num_images: int, seed: int, run: Run, *, longer: int = 320) -> None:
    """MPII in COCO's format with NeuralAnnot's fits: `data/images`, `data/annotations/train.json`,
    `data/annotations/MPII_train_SMPL_NeuralAnnot.json`; counted from 0. `longer`: side of the pictures."""
    files = [f"images/{n:09d}.jpg" for n in range(num_images)]
    (out / "data/images").mkdir(parents=True)
    pictures = draw_pictures({"train": files}, {"train": out / "data"}, seed, run, longer, crowds=False)[
        "train"
    ]
    people = _people(pictures, 0)
    annotations = []
    for number, (image, person) in people.items():
        joints = np.array(keypoints_of(person, MPII_POINTS))
        joints[:, 2] = joints[:, 2] > 0
        annotations.append(
            {
                "id": number,
                "image_id": image,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": person.box.tolist(),
                "area": float(person.box[2] * person.box[3]),
                "num_keypoints": int(joints[:, 2].sum()),
                "keypoints": joints.ravel().tolist(),
            }
        )
    folder = out / "data/annotations"
    write_json(folder / "train.json", {"images": _images(out / "data", files, 0), "annotations": annotations})
    write_json(folder / "MPII_train_SMPL_NeuralAnnot.json", _neural_annot(people))


def _people(pictures: Sequence[Sequence[Seen]], first: int) -> dict[int, tuple[int, Seen]]:
    """Everybody by number, counted from `first`, with the picture."""
    everybody = [(image, person) for image, people in enumerate(pictures) for person in people]
    return dict(enumerate(everybody, first))


def _images(folder: Path, files: Sequence[str], first: int) -> list[dict[str, Any]]:
    sizes = [size_of(folder / file) for file in files]
    return [
        {"id": number, "file_name": file, "width": width, "height": height}
        for number, (file, (width, height)) in enumerate(zip(files, sizes, strict=True), first)
    ]


def _neural_annot(people: Mapping[int, tuple[int, Seen]]) -> dict[str, Any]:
    """Fits by the number of the person, as a string."""
    fits: dict[str, Any] = {}
    for number, (_, person) in people.items():
        if person.body is not None and number % 10 != 9:
            focal, principal = person.view.lens
            fits[str(number)] = {
                "smpl_param": person.in_camera().parameters(),
                "cam_param": {"focal": focal, "princpt": principal},
            }
    return fits


def bodies3d(
    out: Path, num_images: int, seed: int, run: Run, *, longer: int = 320, most: int = MOST_PEOPLE
) -> None:
    """People of one's own: `images`, and rows of `annotations/{train,val}.npz`. `longer`: side of the pictures;
    `most`: people in one."""
    names = {split: [f"{n:06d}.jpg" for n in of] for split, of in split_numbers(num_images).items()}
    folders = dict.fromkeys(names, out / "images")
    (out / "annotations").mkdir()
    for split, pictures in draw_pictures(names, folders, seed, run, longer, crowds=False, most=most).items():
        found = [
            (name, person) for name, people in zip(names[split], pictures, strict=True) for person in people
        ]
        bodies = [person.in_camera() for _, person in found]
        gender = np.array([body.gender * (i % 3 > 0) for i, body in enumerate(bodies)])  # a third are neutral
        lenses = np.array([person.view.lens for _, person in found])
        np.savez(
            out / f"annotations/{split}.npz",
            image=np.array([name for name, _ in found]),
            pose=np.stack([body.pose.ravel() for body in bodies]),
            betas=gendered(np.stack([body.betas for body in bodies]), gender),
            trans=np.stack([body.trans for body in bodies]),
            focal=lenses[:, 0],
            center=lenses[:, 1],
            gender=np.array(GENDERS)[gender],
            keypoints=np.array([keypoints_of(person, range(17)) for _, person in found]),
            box=np.stack([person.box for _, person in found]),
        )


# Folder of each data set, its writer, its share of the images.
_ALL: dict[str, tuple[Callable[..., None], float]] = {
    "Human36M": (h36m, 0.25),
    "MuCo": (muco, 0.2),
    "MSCOCO": (coco3d, 0.2),
    "MPII": (mpii3d, 0.1),
    "PW3D": (pw3d, 0.25),
}


def pose3d_multi(out: Path, num_images: int, seed: int, run: Run) -> None:
    """What the official code trains and evaluates on, of other people each: `Human36M`, `MuCo`, `MSCOCO`, `MPII`, and
    `PW3D` as released."""
    for i, (name, (writer, share)) in enumerate(_ALL.items()):
        (out / name).mkdir()
        writer(out / name, max(round(share * num_images), 5), seed + 1000 * i, run)
