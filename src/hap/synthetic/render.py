"""Draws a person in front of a camera: mesh, clothes, light, shadow, background, things in front -> one crop
with everything that is known about it.

The mesh is rasterised in numpy, all triangles at once: spans of every triangle on every row, a depth buffer,
and colours looked up per visible pixel. Legend: V vertices, F faces, P covered pixels, S spans."""

import itertools
from dataclasses import dataclass, replace

import cv2
import numpy as np

from hap.body.raster import rasterise
from hap.synthetic.body import axis_angle, blend, body_model, joint_transforms, rotation_matrices, skin
from hap.synthetic.caption import describe
from hap.synthetic.clothes import Outfit, dress
from hap.synthetic.paint import paint
from hap.synthetic.person import Person, identity, pick
from hap.synthetic.pose import Pose, sample_pose
from hap.synthetic.scene import FRAME, Camera, background

# COCO's 17 key points: five of the face, then these joints of the body (left first).
KEYPOINT_JOINTS = (16, 17, 18, 19, 20, 21, 1, 2, 4, 5, 7, 8)
# How far a key point lies under the skin (and the clothes), metres: nearer surfaces hide it.
_COVER = np.repeat([0.03, 0.05, 0.12, 0.09, 0.07, 0.20, 0.12, 0.10], [3, 2, 2, 2, 2, 2, 2, 2])

NOBODY, PERSON, STRANGER, CLUTTER = range(4)  # who is seen at a pixel
_CLUTTER = ((72, 76, 80), (150, 150, 148), (112, 84, 72), (62, 74, 96), (78, 92, 66))  # colours


@dataclass(frozen=True)
class Rendering:
    """What was drawn. Lengths in metres, world frame of `hap.synthetic.scene`; pixels of `image`, 0-based,
    pixel centres at whole numbers."""

    image: np.ndarray  # uint8 RGB [H, W, 3]
    keypoints: np.ndarray  # [17, 2] x, y, COCO's order, also where hidden or outside the image
    visibility: np.ndarray  # [17] 2 visible, 1 hidden, 0 outside the image
    vertices: np.ndarray  # [V, 3] of the unclothed body, in the world
    joints3d: np.ndarray  # [24, 3] SMPL's joints, in the world
    pose: np.ndarray  # [24, 3] axis-angle, the root's turn included
    betas: np.ndarray  # [10]
    translation: np.ndarray  # [3] added to the posed body
    camera: Camera  # of this image: its intrinsics project to `keypoints`
    attributes: np.ndarray  # bool [26], `hap.synthetic.person.ATTRIBUTES`
    caption: str
    box: np.ndarray  # [4] x, y, width, height of the drawn person, may exceed the image
    activity: str


@dataclass(frozen=True)
class Figure:
    """A posed person in the world: drawn mesh [V, 3], its normals [3, V], body mesh, joints, root pose and
    translation."""

    person: Person
    pose: np.ndarray
    outfit: Outfit
    drawn: np.ndarray
    normals: np.ndarray
    body: np.ndarray
    joints: np.ndarray
    translation: np.ndarray


def place_figure(person: Person, pose: Pose, yaw: float, ground: np.ndarray) -> Figure:
    """Poses a person, turned by `yaw` about y, with the feet on the ground at (x, z)."""
    outfit = dress(person, pose.seated, pose.holding, pose.phone)
    turn, *rotations = rotation_matrices(np.concatenate([[[0, yaw, 0]], pose.axis_angle]))
    rotations[0] = turn @ rotations[0]
    transforms, joints = joint_transforms(np.stack(rotations), outfit.joints)
    body = skin(outfit.bare, body_model().weights, transforms)
    scale = outfit.joints[15, 1] / 1.492  # things in the world grow with the person
    slots = np.zeros((4, 3, 4), np.float32)
    slots[:, :, :3] = scale * turn
    slots[2, :, :3] = scale * transforms[9, :, :3]
    slots[0, :, 3], slots[1, :, 3] = joints[22], joints[23]
    slots[2, :, 3] = (joints[22] + joints[23]) / 2
    slots[3, :, 3] = joints[0] - [0, 0.115 * scale, 0]
    blended = blend(outfit.mesh.weights, np.concatenate([transforms, slots]))
    drawn = ((blended[:, :3] * outfit.vertices.T).sum(1) + blended[:, 3]).T
    normals = (blended[:, :3] * outfit.mesh.normals.T).sum(1)
    x, z = ground - joints[0, [0, 2]]
    translation = np.array([x, -body[:, 1].min(), z], np.float32)
    drawn = drawn + translation
    drawn[:, 1] = drawn[:, 1].clip(0)
    root = pose.axis_angle.copy()
    root[0] = axis_angle(rotations[0])
    body, joints = body + translation, joints + translation
    return Figure(person, root, outfit, drawn, normals, body, joints, translation)


def resized(region: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels of the frame -> pixels of an image of `size` (width, height) that shows `region` [4]; [3, 3]."""
    x, y, w, h = region
    sx, sy = size[0] / w, size[1] / h
    return np.array([[sx, 0, (0.5 - x) * sx - 0.5], [0, sy, (0.5 - y) * sy - 0.5], [0, 0, 1]])


def box_around(points: np.ndarray) -> np.ndarray:
    """Points [N, 2] -> the box x, y, width, height around them."""
    x, y = points[:, 0], points[:, 1]
    return np.array([x.min(), y.min(), np.ptp(x), np.ptp(y)])


def _moved(box: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """A box [4] under a scale and a shift [3, 3]."""
    scale = np.array([matrix[0, 0], matrix[1, 1]])
    return np.concatenate([scale * box[:2] + matrix[:2, 2], scale * box[2:]])


class Canvas:
    """The crop being drawn: colours, nearness (1 / depth) and who is seen at each pixel."""

    def __init__(self, view: Camera, size: tuple[int, int], region: np.ndarray):
        """`size` (width, height) in pixels shows `region` (x, y, width, height) of the camera's frame."""
        self.size = size
        self.to_crop = resized(region, size)
        self.view = replace(view, intrinsics=self.to_crop @ view.intrinsics)
        self.image = cv2.warpAffine(background(view), self.to_crop[:2], size, borderMode=cv2.BORDER_REFLECT)
        self.nearness = np.zeros(size[::-1], np.float32)
        self.owner = np.zeros(size[::-1], np.uint8)

    def shadow(self, figure: Figure) -> None:
        """Darkens the ground where the figure keeps the light off, and around its feet."""
        light = self.view.light
        mask = np.zeros(self.size[::-1], np.uint8)
        flat = figure.body - light / light[1] * figure.body[:, 1:2]
        points, depth = self.view.project(flat)
        if depth.min() < 0.5:
            return
        points = (points * 16).clip(-60000, 60000).astype(np.int32)
        for first, last in body_model().tubes:
            cv2.fillConvexPoly(mask, cv2.convexHull(points[first:last]), 255, cv2.LINE_AA, 4)
        soft = 2 * int(0.008 * self.size[1]) + 1
        mask = cv2.blur(mask, (soft, soft))
        strength = 0.28 + 0.45 * self.view.sun.mean() / (self.view.sun + self.view.ambient).mean()
        rows = np.flatnonzero(mask.any(1))
        if len(rows):
            part = slice(rows[0], rows[-1] + 1)
            dark = cv2.cvtColor(mask[part], cv2.COLOR_GRAY2RGB)
            lost = cv2.multiply(self.image[part], dark, scale=strength / 255)
            self.image[part] = cv2.subtract(self.image[part], lost)

    def figure(self, figure: Figure, owner: int) -> None:
        """Draws a figure; `owner` marks its pixels."""
        mesh = figure.outfit.mesh
        xy, depth = self.view.project(figure.drawn)
        pixels, face, second, third = rasterise(xy, depth, mesh.faces, self.nearness)
        order = np.argsort(mesh.part.take(face), kind="stable")
        pixels, face, second, third = (v.take(order) for v in (pixels, face, second, third))
        facing = self.view.light.astype(np.float32) @ figure.normals
        values = np.concatenate([mesh.template.T, facing[None], figure.normals[1:2]])  # [5, V]
        corners = mesh.faces.take(face, 0).T  # [3, P]
        mixed = values.take(corners[0], 1) * (1 - second - third)  # [5, P]
        mixed += values.take(corners[1], 1) * second
        mixed += values.take(corners[2], 1) * third
        colour, relief = paint(figure.person, mesh.part.take(face), mixed[:3])
        colour *= self._light(mixed[3], mixed[4], relief, pixels)
        self.image.reshape(-1, 3)[pixels] = np.minimum(colour, 255).astype(np.uint8)
        self.owner.ravel()[pixels] = owner

    def _light(
        self, facing: np.ndarray, up: np.ndarray, relief: np.ndarray, pixels: np.ndarray
    ) -> np.ndarray:
        """Light per colour [P, 3]: sun, sky and ground, folds, and less of it where something is close.
        `facing`, `up` [P]: cosines of the surface to the sun and to the sky."""
        sun = np.maximum(0.8 * facing + 0.2 + 0.22 * relief, 0)
        sky = 0.72 + 0.28 * up + 0.05 * relief
        radius = 2 * int(0.02 * self.size[1]) + 1
        near = self.nearness.ravel().take(pixels)
        around = cv2.blur(self.nearness, (radius, radius)).ravel().take(pixels)
        closer = (around / near - 1) / near  # metres by which the surroundings are nearer
        buried = np.clip(7 * closer, 0, 0.45)
        sky *= 1 - buried
        sun *= 1 - 0.6 * buried
        colour = np.stack([self.view.sun, self.view.ambient]).astype(np.float32)
        return sun[:, None] * colour[0] + sky[:, None] * colour[1]

    def clutter(self, box: np.ndarray, rng: np.random.Generator) -> None:
        """Something in front of the person in `box` [4]: a post, or a low wall over the legs."""
        x, y, w, h = box
        width, height = self.size
        light = rng.uniform(0.8, 1.3) * (self.view.sun + self.view.ambient) / 1.2
        colour = np.array(pick(rng, _CLUTTER)) * light
        if rng.random() < 0.5:
            left, wide = x + rng.uniform(0.05, 0.8) * w, rng.uniform(0.03, 0.07) * h
            edges = np.linspace(left, left + wide, 6).round().astype(int).tolist()
            shapes = [((a, 0), (b, 0), (b, height), (a, height)) for a, b in itertools.pairwise(edges)]
            shades = [0.65, 0.95, 1.1, 0.9, 0.7]  # round
        else:
            top, slope = y + rng.uniform(0.62, 0.85) * h, rng.normal(0, 0.06) * w
            tops = (top, top + 0.03 * h)
            shapes = [((0, t - slope), (width, t + slope), (width, height), (0, height)) for t in tops]
            shades = [1.0, 0.75]  # its upper side, its front
        for shape, shade in zip(shapes, shades, strict=True):
            corners = np.array(shape).round().astype(np.int32)
            rgb = np.minimum(shade * colour, 255).tolist()
            cv2.fillConvexPoly(self.image, corners, rgb, cv2.LINE_AA)
            cv2.fillConvexPoly(self.owner, corners, (CLUTTER,))


def render(
    person: Person,
    pose: Pose,
    camera: Camera,
    rng: np.random.Generator,
    *,
    size: tuple[int, int] | None = None,
    whole: bool = False,
) -> Rendering:
    """Draws `person` in `pose` somewhere in front of `camera`, cut out as a detector would.

    `size` (width, height): of the image, which then may be stretched a little; None draws one, like the crops
    of surveillance data (60 x 130 to 190 x 380). `whole`: nothing of the person is cut off, and nobody and nothing
    stands in front."""
    distance = rng.uniform(*camera.distance)
    across = rng.uniform(-0.36, 0.36) * distance * FRAME[1] / camera.intrinsics[0, 0]
    facing = rng.normal(pick(rng, (0, np.pi, np.pi / 2, -np.pi / 2), (0.35, 0.33, 0.16, 0.16)), 0.3)
    bearing = np.arctan2(-across, distance)  # the turn that faces the camera
    figure = place_figure(person, pose, facing + bearing, np.array([across, -distance]))
    others = _bystanders(figure, rng) if rng.random() < 0.1 and not whole else []

    outline = box_around(camera.project(figure.drawn)[0])
    region, size = _crop(outline, size, camera.margin, rng, whole)
    zoom = min(max(232 / size[1], 0.8), 1.6)  # small images are drawn larger, so that edges come out smooth
    canvas = Canvas(camera, (round(size[0] * zoom), round(size[1] * zoom)), region)
    for other in [figure, *others]:
        canvas.shadow(other)
    canvas.figure(figure, PERSON)
    for other in others:
        canvas.figure(other, STRANGER)
    if rng.random() < camera.clutter and not whole:
        canvas.clutter(_moved(outline, canvas.to_crop), rng)

    points = np.concatenate([figure.body[body_model().landmarks], figure.joints[list(KEYPOINT_JOINTS)]])
    to_image = resized(region, size)
    view = replace(camera, intrinsics=to_image @ camera.intrinsics)
    turned = abs((facing + np.pi) % (2 * np.pi) - np.pi)
    side = "Front" if turned < np.pi / 4 else "Back" if turned > 3 * np.pi / 4 else "Side"
    return Rendering(
        image=look(canvas.image, size, camera, rng),
        keypoints=view.project(points)[0].astype(np.float32),
        visibility=_visibility(canvas, *canvas.view.project(points)),
        vertices=figure.body,
        joints3d=figure.joints,
        pose=figure.pose,
        betas=np.array(person.betas, np.float32),
        translation=figure.translation,
        camera=view,
        attributes=person.attributes(side, pose.holding),
        caption=describe(person, pose.activity, side, rng),
        box=_moved(outline, to_image).astype(np.float32),
        activity=pose.activity,
    )


def _bystanders(figure: Figure, rng: np.random.Generator) -> list[Figure]:
    """One or two strangers near the person, in front or behind."""
    strangers = []
    for _ in range(1 if rng.random() < 0.8 else 2):
        who, pose = identity(1 << 40, int(rng.integers(1 << 30))), sample_pose(rng)
        shift = rng.uniform((0.35, 0.5), (0.75, 1.6)) * (pick(rng, (-1, 1)), pick(rng, (-1, 1)))  # x, z
        place = figure.joints[0, [0, 2]] + shift
        strangers.append(place_figure(who, pose, rng.uniform(-np.pi, np.pi), place))
    return strangers


def _crop(
    box: np.ndarray, size: tuple[int, int] | None, margin: float, rng: np.random.Generator, whole: bool
) -> tuple[np.ndarray, tuple[int, int]]:
    """The part of the frame a detector would cut out around `box` [4], and the size (width, height) of the
    image."""
    x, y, w, h = box
    left, right, top, bottom = np.abs(rng.normal(margin, 0.6 * margin, 4)) * h
    if rng.random() < 0.08 and not whole:  # the detector missed the feet or the head
        if rng.random() < 0.7:
            bottom = -rng.uniform(0.05, 0.3) * h
        else:
            top = -rng.uniform(0.03, 0.12) * h
    x, y, w, h = x - left, y - top, w + left + right, h + top + bottom
    aspect = rng.uniform(0.44, 0.56) if size else np.clip(w / h, 0.34, 0.5)
    wide, high = max(w, aspect * h), max(h, w / aspect)
    x, y = x - (wide - w) / 2, y - (high - h) * rng.uniform(0.3, 0.7)
    if size is None:
        height = int(np.exp(rng.uniform(np.log(130), np.log(380))))
        size = (int(max(height * wide / high, 60)), height)
    return np.array([x, y, wide, high]), size


def _visibility(canvas: Canvas, points: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """[17]: 0 outside, 1 hidden by the person itself or by something else, 2 visible."""
    column, row = np.round(points.T).astype(int)
    inside = (column >= 0) & (column < canvas.size[0]) & (row >= 0) & (row < canvas.size[1])
    column, row = np.where(inside, column, 0), np.where(inside, row, 0)
    surface = 1 / np.maximum(canvas.nearness[row, column], 1e-6)
    owner = canvas.owner[row, column]
    seen = (owner <= PERSON) & (depth - surface < _COVER)
    return np.where(inside, np.where(seen, 2, 1), 0)


def look(image: np.ndarray, size: tuple[int, int], camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """What the camera makes of it: sharpness, colours, noise."""
    if image.shape[1::-1] != size:
        shrink = image.shape[0] > size[1]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)
    sigma = camera.blur * rng.uniform(0.8, 1.3) * (0.7 + size[1] / 400)
    image = cv2.GaussianBlur(image, (0, 0), sigma)
    level = np.arange(256, dtype=np.float32) / 255
    exposure = rng.uniform(0.92, 1.08)
    curve = 255 * np.clip(exposure * camera.gain * level[:, None] ** camera.gamma, 0, 1)
    image = cv2.LUT(image, curve.astype(np.uint8)[None])
    noise: np.ndarray = np.empty(image.shape[:2], np.int16)
    cv2.setRNGSeed(int(rng.integers(1 << 31)))
    cv2.randn(noise, np.zeros(1), np.full(1, camera.noise))
    return cv2.add(image, cv2.merge([noise] * 3), dtype=cv2.CV_8U)
