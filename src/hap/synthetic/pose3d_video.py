"""Writers of Human3.6M and 3DPW: the same actors in frame after frame, seen from a world that is not the camera's.

Every figure is drawn in the world of its camera (`hap.synthetic.scene`); the world of the data set is moved against it.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hap.errors import HapError
from hap.synthetic.body import axis_angle, rotation_matrices
from hap.synthetic.person import identity, pick
from hap.synthetic.pictures import THORAX, Seen, draw_figures
from hap.synthetic.pose import ACTIVITIES, sample_pose
from hap.synthetic.render import box_around, place_figure
from hap.synthetic.scene import Camera, camera
from hap.synthetic.smpl import Posed, drawn_bodies, gendered
from hap.synthetic.writing import Run, save_image, write_json

# Human3.6M ---------------------------------------------------------------------------------------------------

SUBJECTS = (1, 5, 6, 7, 8)
# Human3.6M's number and name of an action, and what is drawn for it.
ACTIONS = (
    (2, "Directions", "arms raised"),
    (6, "Phoning", "phoning"),
    (9, "Sitting", "sitting"),
    (13, "Waiting", "standing"),
    (14, "Walking", "walking"),
)
CAMERAS = 4
_Z_UP = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # Human3.6M's world, z up -> y up


@dataclass(frozen=True)
class _Shot:
    """One image: file, seed, places in SUBJECTS and ACTIONS, subaction from 1, frame and camera from 0, whether there
    is a fit, side in pixels."""

    path: Path
    seed: int
    subject: int
    action: int
    subaction: int
    frame: int
    camera: int
    fitted: bool
    side: int

    def stage(self) -> tuple[Camera, float, np.ndarray, np.ndarray]:
        """The camera, the turn of the stage before it, and the way from Human3.6M's world (z up, the stage around the
        origin) into the camera's: rotation (3, 3) and translation (3,)."""
        rng = np.random.default_rng([self.seed, 53, self.subject, self.camera])
        view = camera(self.seed, 64 + self.camera)
        turn = self.camera * 2 * np.pi / CAMERAS + rng.uniform(-0.3, 0.3)
        rotation = rotation_matrices(np.array([0, turn, 0])) @ _Z_UP
        return view, turn, rotation, np.array([0, 0, -np.mean(view.distance)])


def _draw_shot(shot: _Shot) -> tuple[Posed, Camera]:
    """The body in Human3.6M's world, and the camera of the picture."""
    view, turn, rotation, middle = shot.stage()
    moment = (shot.subject, shot.action, shot.subaction, shot.frame)
    rng = np.random.default_rng([shot.seed, 54, *moment])
    pose = sample_pose(rng, ACTIONS[shot.action][2])
    facing, place = rng.uniform(-np.pi, np.pi), np.array([*rng.uniform(-0.3, 0.3, 2), 0])
    where = rotation @ place + middle
    figure = place_figure(identity(shot.seed, shot.subject), pose, facing + turn, where[[0, 2]])
    (centre,), (depth,) = view.project(middle[None] + [0, 0.9, 0])
    width = 2.8 * view.intrinsics[0, 0] / depth  # of metres, in pixels
    region = np.array([*(centre - width / 2), width, width])
    rng = np.random.default_rng([shot.seed, 55, *moment, shot.camera])
    image, (seen,) = draw_figures(view, region, (shot.side, shot.side), [figure], rng)
    save_image(shot.path, image, view.quality)
    assert seen.body is not None
    return seen.body.moved(rotation.T, -rotation.T @ middle), seen.view


def h36m(out: Path, num_images: int, seed: int, run: Run, *, side: int = 200) -> None:
    """Human3.6M's five subjects for training: `images`, and four json files of each in `annotations`. Four cameras see
    each moment; one moment in eight is at no fifth frame, one in eight has no fit. `side`: of the pictures."""
    if num_images < len(SUBJECTS):
        raise HapError(
            f"num_images is {num_images}: at least one of each of the {len(SUBJECTS)} subjects is needed"
        )
    shots = []
    for number in range(num_images):
        rest, subject = divmod(number, len(SUBJECTS))
        moment, place = divmod(rest, CAMERAS)
        again, action = divmod(moment, len(ACTIONS))
        frame, subaction = divmod(again, 2)
        frame = 5 * frame + 2 * (moment % 8 == 2)
        folder = (
            f"s_{SUBJECTS[subject]:02d}_act_{ACTIONS[action][0]:02d}"
            f"_subact_{subaction + 1:02d}_ca_{place + 1:02d}"
        )
        path = out / "images" / folder / f"{folder}_{frame + 1:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        shots.append(_Shot(path, seed, subject, action, subaction + 1, frame, place, moment % 8 != 1, side))
    drawn = run(_draw_shot, shots)
    for place, subject in enumerate(SUBJECTS):
        mine = [n for n, shot in enumerate(shots) if shot.subject == place]
        files = _subject([(n + 1, shots[n], *drawn[n]) for n in mine], out / "images")
        for kind, content in files.items():
            write_json(out / f"annotations/Human36M_subject{subject}_{kind}.json", content)


def _subject(found: list[tuple[int, _Shot, Posed, Camera]], images: Path) -> dict[str, Any]:
    """The four files of one subject by their kinds, of (number of the image, shot, body in the world, camera)."""
    data: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    cameras: dict[str, Any] = {}
    joints: dict[str, Any] = {}
    fits: dict[str, Any] = {}
    for number, shot, body, view in found:
        action, title, _ = ACTIONS[shot.action]
        _, _, rotation, middle = shot.stage()
        rotation, shift = view.rotation @ rotation, view.rotation @ middle + view.translation
        focal, principal = view.lens
        world = np.asarray(drawn_bodies().h36m) @ body.mesh()[0]
        seen = world @ rotation.T + shift
        points = seen[:, :2] / seen[:, 2:] * focal + principal
        data["images"].append(
            {
                "id": number,
                "file_name": shot.path.relative_to(images).as_posix(),
                "width": shot.side,
                "height": shot.side,
                "subject": SUBJECTS[shot.subject],
                "action_name": title,
                "action_idx": action,
                "subaction_idx": shot.subaction,
                "cam_idx": shot.camera + 1,
                "frame_idx": shot.frame,
            }
        )
        x, y, w, h = box_around(points)
        box = wider(np.array([x, y, w - 1, h - 1]))
        inside = ((points >= 0) & (points < shot.side)).all(1)
        data["annotations"].append(
            {"id": number, "image_id": number, "bbox": box.tolist(), "keypoints_vis": inside.tolist()}
        )
        lens = {"f": focal, "c": principal}
        cameras[str(shot.camera + 1)] = {"R": rotation.tolist(), "t": (1000 * shift).tolist(), **lens}
        _put(joints, action, shot, (1000 * world).tolist())
        if shot.fitted:
            _put(fits, action, shot, body.parameters())
    return {"data": data, "camera": cameras, "joint_3d": joints, "smpl_param": fits}


def _put(content: dict[str, Any], action: int, shot: _Shot, value: Any) -> None:
    frames = content.setdefault(str(action), {}).setdefault(str(shot.subaction), {})
    frames[str(shot.frame)] = value


def wider(box: np.ndarray) -> np.ndarray:
    """A box x, y, width, height, its sides times 1.2 about its middle."""
    return np.concatenate([box[:2] - 0.1 * box[2:], 1.2 * box[2:]])


# 3DPW --------------------------------------------------------------------------------------------------------

FRAMES = 8  # of a sequence
PLACES = ("downtown", "office", "outdoors", "flat", "courtyard")
# Points of a picture's people in OpenPose's order, whose neck is between the shoulders.
OPENPOSE_POINTS = (0, THORAX, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
OPENPOSE_LEGS = ((8, 11), (9, 12), (10, 13))  # right and left
LEAST_JOINTS = 6  # with fewer, none are written


@dataclass(frozen=True)
class _Frame:
    """One image: folder of the sequence, seed, numbers of the sequence and of the frame from 0, longer side in
    pixels."""

    folder: Path
    seed: int
    sequence: int
    number: int
    longer: int

    @property
    def activity(self) -> str:
        return tuple(ACTIVITIES)[self.sequence % len(ACTIVITIES)]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height: every third sequence is upright."""
        size = (self.longer, 9 * self.longer // 16)
        return size[::-1] if self.sequence % 3 == 2 else size

    def world(self) -> tuple[np.ndarray, np.ndarray]:
        """The way from the world of the sequence into that of the camera, which walks: rotation, translation."""
        rng = np.random.default_rng([self.seed, 57, self.sequence])
        start, drift = rng.normal(0, 0.8, 3), rng.normal(0, 0.03, 3)
        origin, step = rng.normal(0, 3, 3), rng.normal(0, 0.1, 3)
        return rotation_matrices(start + self.number * drift), origin + self.number * step


def _draw_frame(frame: _Frame) -> list[Seen]:
    """Every actor, also one of whom nothing is seen."""
    rng = np.random.default_rng([frame.seed, 58, frame.sequence])
    view = camera(frame.seed, 128 + frame.sequence)
    distance = float(rng.uniform(*view.distance))
    homes, facing, drift = (
        [np.array([0, -distance])],
        rng.uniform(-np.pi, np.pi, 2),
        rng.normal(0, 0.08, (2, 2)),
    )
    if rng.random() < 0.6:
        homes.append(homes[0] + [pick(rng, (-1, 1)) * rng.uniform(0.4, 0.9), rng.uniform(-0.8, 0.8)])
    actors = [identity(frame.seed + 1, 2 * frame.sequence + i) for i in range(len(homes))]
    outline = box_around(view.project(np.array([[-0.4, 0, -distance], [0.4, 1.75, -distance]]))[0])
    height = outline[3] / rng.uniform(0.6, 0.9)
    width = height * frame.size[0] / frame.size[1]
    centre = outline[:2] + outline[2:] * [rng.uniform(0, 1), 0.5]
    region = np.array([centre[0] - width / 2, centre[1] - height / 2, width, height])

    rng = np.random.default_rng([frame.seed, 59, frame.sequence, frame.number])
    figures = [
        place_figure(
            actor,
            sample_pose(rng, frame.activity),
            facing[i] + 0.15 * frame.number,
            homes[i] + frame.number * drift[i],
        )
        for i, actor in enumerate(actors)
    ]
    image, seen = draw_figures(view, region, frame.size, figures, rng)
    save_image(frame.folder / f"image_{frame.number:05d}.jpg", image, view.quality)
    return seen


def openpose(person: Seen, rng: np.random.Generator) -> np.ndarray:
    """x, y, confidence (18, 3) as a detector has them: a little off where a joint is seen, further off or missing where
    it is hidden, now and then with the legs exchanged or a joint elsewhere; nothing where too few are found."""
    points, flags = person.points[list(OPENPOSE_POINTS)], person.visibility[list(OPENPOSE_POINTS)]
    visible = flags == 2
    points = points + rng.normal(0, np.where(visible, 0.008, 0.03)[:, None] * person.height, (18, 2))
    points += (rng.random(18) < 0.02)[:, None] * rng.normal(0, 0.15 * person.height, (18, 2))
    confidence = np.where(visible, 1 - rng.beta(1.5, 12, 18), rng.beta(2, 5, 18))
    found = np.concatenate([points, confidence[:, None]], axis=1)
    found[(flags == 0) | (~visible & (rng.random(18) < 0.4))] = 0
    if rng.random() < 0.05:
        for right, left in OPENPOSE_LEGS:
            found[[right, left]] = found[[left, right]]
    return found * (np.count_nonzero(found[:, 2]) >= LEAST_JOINTS)


def pw3d(out: Path, num_images: int, seed: int, run: Run, *, longer: int = 320) -> None:
    """3DPW as released: `imageFiles/SEQUENCE/image_%05d.jpg`, `sequenceFiles/{train,validation,test}/SEQUENCE.pkl`; and
    `3DPW_latest_test.json`, which is parsed from it. Half of the images are for the test. `longer`: side of them."""
    if num_images < 4:
        raise HapError(f"num_images is {num_images}: at least 4 pictures are needed")
    quarter = num_images // 4
    counts = {"train": quarter, "validation": quarter, "test": num_images - 2 * quarter}
    sequences: list[tuple[str, list[_Frame]]] = []
    for split, count in counts.items():
        for start in range(0, count, FRAMES):
            number = len(sequences)
            frame = _Frame(out, seed, number, 0, longer)
            name = f"{PLACES[number % len(PLACES)]}_{frame.activity.replace(' ', '')}_{number:02d}"
            folder = out / "imageFiles" / name
            folder.mkdir(parents=True)
            numbers = range(min(FRAMES, count - start))
            sequences.append((split, [_Frame(folder, seed, number, n, longer) for n in numbers]))
    drawn = iter(run(_draw_frame, [frame for _, frames in sequences for frame in frames]))
    parsed: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    for split, frames in sequences:
        content = _sequence(frames, [next(drawn) for _ in frames])
        path = out / f"sequenceFiles/{split}/{content['sequence']}.pkl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(content, protocol=2))
        if split == "test":
            _parse(content, frames[0].size, parsed)
    write_json(out / "3DPW_latest_test.json", parsed)


def _sequence(frames: Sequence[_Frame], drawn: Sequence[Sequence[Seen]]) -> dict[str, Any]:
    """What the pickle of a sequence holds: P actors, N frames. The camera is unknown for the last actor in the sixth
    frame, and for all in the seventh, whose pose of the camera is none."""
    ways = [frame.world() for frame in frames]
    bodies = [
        [person.body.moved(a.T, -a.T @ b) for person in people if person.body is not None]
        for people, (a, b) in zip(drawn, ways, strict=True)
    ]
    actors = list(zip(*bodies, strict=True))  # P of N
    poses = np.tile(np.eye(4), (len(frames), 1, 1))
    for pose, people, (a, b) in zip(poses, drawn, ways, strict=True):
        view = people[0].view
        pose[:3, :3], pose[:3, 3] = view.rotation @ a, view.rotation @ b + view.translation
    poses[6:7] = np.eye(4)
    valid = [np.ones(len(frames), int) for _ in actors]
    valid[-1][5:6] = 0
    for of in valid:
        of[6:7] = 0
    betas = [gendered(actor[0].betas, np.array(actor[0].gender)) for actor in actors]
    if frames[0].sequence % 3 == 1:  # as some of the files have them
        betas = [np.concatenate([of, np.zeros(290)]) for of in betas]
    rng = np.random.default_rng([frames[0].seed, 60, frames[0].sequence])
    return {
        "sequence": frames[0].folder.name,
        "genders": ["f" if actor[0].female else "m" for actor in actors],
        "betas": betas,
        "poses": [np.stack([body.pose.ravel() for body in actor]) for actor in actors],
        "trans": [np.stack([body.trans for body in actor]) for actor in actors],
        "jointPositions": [np.stack([body.mesh()[1].ravel() for body in actor]) for actor in actors],
        "poses2d": [np.stack([openpose(people[p], rng).T for people in drawn]) for p in range(len(actors))],
        "cam_poses": poses,
        "cam_intrinsics": drawn[0][0].view.intrinsics,
        "campose_valid": valid,
        "img_frame_ids": 2 * np.arange(len(frames)),
    }


def _parse(content: dict[str, Any], size: tuple[int, int], parsed: dict[str, list[dict[str, Any]]]) -> None:
    """Adds a sequence to the parsed json: people whose camera is known and of whom a joint is in the picture, in the
    camera's frame. As there, translations are by the rest joint of the neutral body, which is a little off."""
    lens = content["cam_intrinsics"]
    for n, to_camera in enumerate(content["cam_poses"]):
        rotation, shift = to_camera[:3, :3], to_camera[:3, 3]
        image = len(parsed["images"]) + 1
        parsed["images"].append(
            {
                "id": image,
                "sequence": content["sequence"],
                "file_name": f"image_{n:05d}.jpg",
                "frame_idx": n,
                "width": size[0],
                "height": size[1],
                "cam_param": {
                    "focal": np.diag(lens)[:2].tolist(),
                    "princpt": lens[:2, 2].tolist(),
                    "R": rotation.tolist(),
                    "t": shift.tolist(),
                },
            }
        )
        for p, letter in enumerate(content["genders"]):
            joints = content["jointPositions"][p][n].reshape(24, 3) @ rotation.T + shift
            pixels = (joints @ lens.T)[:, :2] / joints[:, 2:]
            inside = ((pixels >= 0) & (pixels < size)).all(1)
            if not (content["campose_valid"][p][n] and inside.any()):
                continue
            pose, betas = content["poses"][p][n].copy(), content["betas"][p][:10]
            pose[:3] = axis_angle(rotation @ rotation_matrices(pose[:3]))
            root = drawn_bodies().root(np.zeros(1, int), betas[None])[0]
            trans = rotation @ (content["trans"][p][n] + root) + shift - root
            own = drawn_bodies().root(np.array([1 + (letter == "f")]), betas[None])[0]
            off = rotation @ (root - own) - (root - own)  # of that translation
            parsed["annotations"].append(
                {
                    "id": len(parsed["annotations"]) + 1,
                    "image_id": image,
                    "person_id": p,
                    "joint_cam": joints.tolist(),
                    "joint_img": pixels.tolist(),
                    "fitted_joint_cam": (joints + off).tolist(),
                    "openpose_result": content["poses2d"][p][n].T.tolist(),
                    "bbox": wider(box_around(pixels[inside])).tolist(),
                    "smpl_param": {
                        "pose": pose.tolist(),
                        "shape": betas.tolist(),
                        "trans": trans.tolist(),
                        "gender": "female" if letter == "f" else "male",
                    },
                }
            )
