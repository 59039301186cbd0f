"""A shaped, posable body of our own in SMPL's conventions: what the synthetic people are made of.

The layout is SMPL's (24 joints in its order and tree, 10 shape coefficients, linear blend skinning of a
triangle mesh, axis-angle pose, metres, y up, facing +z, left is +x, T-pose at rest), so that code written for
SMPL runs on it. The geometry is not: the template is a union of closed tubes with superelliptic sections
around the skeleton of an average adult, 1.72 m tall, feet on y = 0.

Legend: V vertices, F faces, J = 24 joints, B = 10 shape coefficients.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

JOINTS = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle",
    "right_ankle", "spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_hand", "right_hand",
)  # fmt: skip
PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)
MIRROR = (0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20, 23, 22)
NUM_BETAS = 10
TORSO, HEAD, ARM, LEG, FOOT = range(5)  # the tubes; the two sides share a number

# One ring per row: position along the tube's axis, centre in the ring's plane (2), half width, extent to the
# front and to the back (top and bottom for the foot). Metres.
_TORSO = [  # along y; width x, front +z
    (0.835, 0, -0.005, 0.060, 0.050, 0.060),
    (0.860, 0, -0.005, 0.138, 0.090, 0.105),
    (0.900, 0, -0.005, 0.166, 0.106, 0.128),
    (0.940, 0, -0.005, 0.168, 0.108, 0.124),
    (0.990, 0, 0.000, 0.158, 0.108, 0.108),
    (1.040, 0, 0.002, 0.146, 0.104, 0.096),
    (1.090, 0, 0.002, 0.141, 0.102, 0.094),
    (1.140, 0, 0.000, 0.146, 0.106, 0.098),
    (1.200, 0, 0.000, 0.157, 0.114, 0.106),
    (1.260, 0, 0.000, 0.168, 0.118, 0.114),
    (1.320, 0, -0.006, 0.174, 0.108, 0.112),
    (1.375, 0, -0.012, 0.168, 0.088, 0.100),
    (1.415, 0, -0.016, 0.140, 0.072, 0.082),
    (1.445, 0, -0.016, 0.098, 0.064, 0.066),
    (1.470, 0, -0.012, 0.066, 0.058, 0.056),
]
_HEAD = [  # neck and head, along y
    (1.430, 0, -0.010, 0.058, 0.052, 0.054),
    (1.465, 0, -0.004, 0.055, 0.050, 0.054),
    (1.492, 0, 0.000, 0.054, 0.056, 0.056),
    (1.502, 0, 0.002, 0.052, 0.088, 0.058),
    (1.518, 0, 0.004, 0.057, 0.100, 0.062),
    (1.545, 0, 0.004, 0.066, 0.102, 0.076),
    (1.575, 0, 0.004, 0.072, 0.103, 0.092),
    (1.605, 0, 0.004, 0.076, 0.097, 0.102),
    (1.635, 0, 0.004, 0.078, 0.097, 0.105),
    (1.665, 0, 0.004, 0.076, 0.088, 0.102),
    (1.692, 0, 0.002, 0.065, 0.066, 0.086),
    (1.711, 0, 0.000, 0.044, 0.042, 0.058),
    (1.719, 0, -0.002, 0.022, 0.020, 0.028),
]
_ARM = [  # the left arm, along x; width is the height y, front +z
    (0.060, 1.405, -0.010, 0.046, 0.050, 0.050),
    (0.095, 1.408, -0.010, 0.054, 0.056, 0.058),
    (0.130, 1.406, -0.010, 0.058, 0.058, 0.062),
    (0.175, 1.398, -0.010, 0.060, 0.060, 0.062),
    (0.205, 1.395, -0.010, 0.056, 0.058, 0.058),
    (0.235, 1.396, -0.010, 0.050, 0.053, 0.053),
    (0.290, 1.398, -0.010, 0.045, 0.048, 0.048),
    (0.360, 1.400, -0.010, 0.041, 0.044, 0.044),
    (0.415, 1.400, -0.011, 0.037, 0.040, 0.040),
    (0.450, 1.400, -0.012, 0.036, 0.038, 0.040),
    (0.485, 1.400, -0.010, 0.037, 0.041, 0.040),
    (0.540, 1.400, -0.008, 0.036, 0.041, 0.039),
    (0.620, 1.400, -0.006, 0.030, 0.033, 0.032),
    (0.700, 1.400, -0.004, 0.023, 0.028, 0.027),
    (0.725, 1.400, -0.002, 0.021, 0.032, 0.029),
    (0.755, 1.399, 0.002, 0.021, 0.048, 0.038),
    (0.790, 1.397, 0.000, 0.019, 0.048, 0.041),
    (0.825, 1.395, -0.002, 0.015, 0.038, 0.038),
    (0.860, 1.392, -0.002, 0.012, 0.028, 0.032),
    (0.880, 1.390, -0.002, 0.007, 0.016, 0.018),
]
_LEG = [  # the left leg, along y
    (0.945, 0.085, -0.004, 0.050, 0.060, 0.060),
    (0.900, 0.088, -0.006, 0.080, 0.090, 0.100),
    (0.850, 0.090, -0.008, 0.086, 0.090, 0.098),
    (0.790, 0.091, -0.006, 0.082, 0.086, 0.090),
    (0.700, 0.091, -0.002, 0.073, 0.078, 0.078),
    (0.610, 0.091, 0.000, 0.064, 0.068, 0.066),
    (0.540, 0.091, 0.000, 0.056, 0.060, 0.058),
    (0.510, 0.091, 0.000, 0.053, 0.058, 0.055),
    (0.480, 0.091, 0.000, 0.051, 0.056, 0.053),
    (0.450, 0.091, -0.002, 0.049, 0.052, 0.053),
    (0.410, 0.091, -0.006, 0.049, 0.048, 0.058),
    (0.340, 0.092, -0.010, 0.051, 0.047, 0.064),
    (0.260, 0.092, -0.012, 0.045, 0.042, 0.054),
    (0.180, 0.092, -0.014, 0.036, 0.036, 0.042),
    (0.100, 0.092, -0.016, 0.031, 0.034, 0.036),
    (0.060, 0.092, -0.014, 0.032, 0.040, 0.038),
    (0.030, 0.092, -0.012, 0.028, 0.040, 0.036),
]
_FOOT = [  # the left foot, along z; width x, "front" is up
    (-0.072, 0.092, 0.036, 0.018, 0.020, 0.026),
    (-0.058, 0.092, 0.036, 0.031, 0.034, 0.036),
    (-0.015, 0.093, 0.036, 0.035, 0.050, 0.036),
    (0.035, 0.094, 0.034, 0.038, 0.046, 0.034),
    (0.085, 0.097, 0.030, 0.045, 0.030, 0.030),
    (0.130, 0.099, 0.024, 0.047, 0.020, 0.024),
    (0.165, 0.099, 0.020, 0.040, 0.016, 0.020),
    (0.188, 0.098, 0.016, 0.024, 0.011, 0.014),
]

# Joint, and where along the tube its share rises from 0 to 1; the joint before it gives way.
_TORSO_CHAIN = [(0, 0, 0), (3, 0.96, 1.06), (6, 1.09, 1.17), (9, 1.20, 1.32)]
_HEAD_CHAIN = [(9, 0, 0), (12, 1.425, 1.470), (15, 1.480, 1.506)]
_ARM_CHAIN = [(9, 0, 0), (13, 0.03, 0.10), (16, 0.12, 0.235), (18, 0.405, 0.495), (20, 0.675, 0.735),
              (22, 0.765, 0.815)]  # fmt: skip
_LEG_CHAIN = [(0, 0, 0), (1, -0.945, -0.850), (4, -0.545, -0.415), (7, -0.125, -0.070)]  # along -y
_FOOT_CHAIN = [(7, 0, 0), (10, 0.075, 0.125)]


@dataclass(frozen=True)
class Mesh:
    """A skinned mesh at rest: `vertices` [V, 3] (m), `faces` [F, 3] (int, counter-clockwise from outside),
    `weights` [V, J], `centres` [V, 3] (the axis point of each vertex' ring)."""

    vertices: np.ndarray
    faces: np.ndarray
    weights: np.ndarray
    centres: np.ndarray

    def mirrored(self) -> "Mesh":
        """The same on the other side: x negated, left and right joints exchanged."""
        flip = np.array([-1, 1, 1], np.float32)
        return Mesh(self.vertices * flip, self.faces[:, ::-1], self.weights[:, MIRROR], self.centres * flip)


def chain_weights(position: np.ndarray, chain: Sequence[tuple[int, float, float]]) -> np.ndarray:
    """Skinning weights [V, J] of vertices at `position` [V] along a limb. `chain`: (joint, start, end)."""
    weights = np.zeros((len(position), len(JOINTS)), np.float32)
    reached = np.ones(len(position))
    previous = chain[0][0]
    for joint, start, end in chain[1:]:
        t = np.clip((position - start) / (end - start), 0, 1)
        share = t * t * (3 - 2 * t)
        weights[:, previous] = reached - share
        reached, previous = share, joint
    weights[:, previous] = reached
    return weights


def tube(
    rings: ArrayLike, axis: int, segments: int, chain: Sequence[tuple[int, float, float]],
    *, squareness: float = 1.0, along: float = 1.0,
) -> Mesh:  # fmt: skip
    """A closed tube of superelliptic rings (rows as in `_TORSO`) along `axis` (0 x, 1 y, 2 z).

    `squareness` 1 gives ellipses, less gives boxes; `chain` is evaluated at `along` x position on the axis.
    Vertices: ring by ring, then one at either end."""
    table = np.array(rings, np.float64)
    theta = 2 * np.pi * np.arange(segments) / segments
    side, front = (np.sign(f) * np.abs(f) ** squareness for f in (np.sin(theta), np.cos(theta)))
    across, depth = [(1, 2), (0, 2), (0, 1)][axis]
    vertices = np.zeros((len(table), segments, 3))
    vertices[..., axis] = table[:, None, 0]
    vertices[..., across] = table[:, None, 1] + table[:, None, 3] * side
    extent = np.where(front > 0, table[:, None, 4], table[:, None, 5])
    vertices[..., depth] = table[:, None, 2] + extent * front
    centres = np.zeros_like(vertices)
    centres[..., axis], centres[..., across], centres[..., depth] = (table[:, None, i] for i in range(3))

    ends = [0, len(table) - 1]
    vertices = np.concatenate([vertices.reshape(-1, 3), centres[ends, 0]]).astype(np.float32)
    centres = np.concatenate([centres.reshape(-1, 3), centres[ends, 0]]).astype(np.float32)

    ring = np.arange(segments)
    following = (ring + 1) % segments
    pole, last = len(table) * segments, (len(table) - 1) * segments
    fans = [np.stack([following, ring, np.full(segments, pole)], 1)]
    fans.append(np.stack([ring + last, following + last, np.full(segments, pole + 1)], 1))
    steps = segments * np.arange(len(table) - 1)[:, None, None]
    quads = [np.stack(t, 1) + steps for t in ((ring, following, ring + segments),
             (following, following + segments, ring + segments))]  # fmt: skip
    faces = np.concatenate([*(q.reshape(-1, 3) for q in quads), *fans])
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    if np.einsum("fi,fi->", a, np.cross(b, c)) < 0:  # signed volume: the winding is inside out
        faces = faces[:, ::-1]
    return Mesh(vertices, faces, chain_weights(along * centres[:, axis], chain), centres)


def merge(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh out of several, vertices and faces in their order."""
    offsets = np.cumsum([0, *(len(m.vertices) for m in meshes[:-1])])
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.faces + o for m, o in zip(meshes, offsets, strict=True)]),
        np.concatenate([m.weights for m in meshes]),
        np.concatenate([m.centres for m in meshes]),
    )


def _shape_directions(mesh: Mesh, kind: np.ndarray) -> np.ndarray:
    """Displacements [V, 3, B] per unit of each coefficient (about one standard deviation of adults):
    0 stature, 1 weight, 2 leg length, 3 shoulder breadth, 4 hip breadth, 5 belly, 6 bust, 7 head size,
    8 arm length, 9 muscle."""
    v, radial = mesh.vertices, mesh.vertices - mesh.centres
    x, y = v[:, 0], v[:, 1]
    side = np.sign(x)

    def bump(value: np.ndarray, centre: float, width: float) -> np.ndarray:
        return np.exp(-(((value - centre) / width) ** 2))

    def ramp(value: np.ndarray, start: float, end: float) -> np.ndarray:
        return np.clip((value - start) / (end - start), 0, 1)

    d = np.zeros((len(v), 3, NUM_BETAS), np.float32)
    d[:, :, 0] = 0.04 * v
    d[:, :, 1] = np.array([0.10, 0.03, 0.09, 0.09, 0.03], np.float32)[kind, None] * radial
    d[:, 1, 2] = 0.022 * ramp(y, 0, 0.9)
    d[:, 0, 3] = np.where(kind == ARM, 0.012 * side * ramp(np.abs(x), 0, 0.12), 0) + np.where(
        kind == TORSO, 0.07 * x * ramp(y, 1.1, 1.3), 0
    )
    d[:, 0, 4] = np.where(kind == TORSO, 0.06 * x * bump(y, 0.92, 0.12), 0)
    legs = (kind == LEG) | (kind == FOOT)
    d[:, 0, 4] += np.where(legs, 0.005 * side, 0)
    d[:, :, 4] += np.where((kind == LEG) & (y > 0.5), 0.05 * ramp(y, 0.5, 0.85), 0)[:, None] * radial
    front = (kind == TORSO) * np.clip(radial[:, 2] / 0.1, 0, 1)
    d[:, 2, 5] = 0.025 * front * bump(y, 1.05, 0.11)
    d[:, 2, 6] = 0.022 * front * bump(y, 1.26, 0.06) * (0.55 + 0.45 * bump(np.abs(x), 0.08, 0.05))
    skull = np.where(kind == HEAD, ramp(y, 1.48, 1.52), 0)
    d[:, :, 7] = 0.04 * skull[:, None] * (v - np.array([0, 1.5, 0]))
    d[:, 0, 8] = np.where(kind == ARM, 0.02 * side * ramp(np.abs(x), 0.175, 0.705), 0)
    d[:, :, 9] = np.array([0.0, 0.0, 0.08, 0.06, 0.0], np.float32)[kind, None] * radial
    d[:, 0, 9] += np.where(kind == TORSO, 0.03 * x * ramp(y, 1.05, 1.3), 0)
    return d


@dataclass(frozen=True)
class Body:
    """The body model: `v_template` [V, 3], `shapedirs` [V, 3, B], `weights` [V, J] (rows sum to 1),
    `J_regressor` [J, V] (rows sum to 1), `faces` [F, 3]; `landmarks` [5]: the vertices of nose, left eye,
    right eye, left ear, right ear; `kind` [V]: the tube (TORSO, HEAD, ARM, LEG, FOOT), `centres` [V, 3] its
    axis, `tubes` the first vertex and the last + 1 of each."""

    v_template: np.ndarray
    shapedirs: np.ndarray
    weights: np.ndarray
    J_regressor: np.ndarray
    faces: np.ndarray
    landmarks: np.ndarray
    kind: np.ndarray
    centres: np.ndarray
    tubes: tuple[tuple[int, int], ...]

    @property
    def head_top(self) -> int:
        """The highest vertex of the head."""
        return int(np.where(self.kind == HEAD, self.v_template[:, 1], -np.inf).argmax())

    def rest(self, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shape coefficients [B] -> vertices [V, 3] and joints [J, 3] of the T-pose."""
        offsets = self.shapedirs.reshape(-1, NUM_BETAS) @ np.array(betas, np.float32)
        vertices = self.v_template + offsets.reshape(-1, 3)
        return vertices, self.J_regressor @ vertices

    def __call__(self, pose: np.ndarray, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Axis-angle pose [J, 3] (radians) and shape [B] -> posed vertices [V, 3] and joints [J, 3].

        As in SMPL the root turns about its own joint, and there is no translation."""
        vertices, joints = self.rest(betas)
        transforms, posed_joints = joint_transforms(rotation_matrices(pose), joints)
        return skin(vertices, self.weights, transforms), posed_joints


@lru_cache(maxsize=1)
def body_model() -> Body:
    """The one body of the package, built on first use."""
    head = tube(_HEAD, 1, 12, _HEAD_CHAIN)
    nose, eyes, ears = 6 * 12, 7 * 12, 7 * 12
    head.vertices[nose, 2] += 0.024
    head.vertices[nose + 12, 2] += 0.004
    for ear in (3, 9):  # left, right
        for ring in (6, 7):
            head.vertices[ring * 12 + ear] += np.array([0.014 * np.sign(6 - ear), 0, -0.014], np.float32)
    arm = tube(_ARM, 0, 8, _ARM_CHAIN)
    leg = tube(_LEG, 1, 10, _LEG_CHAIN, along=-1)
    foot = tube(_FOOT, 2, 8, _FOOT_CHAIN)
    torso = tube(_TORSO, 1, 14, _TORSO_CHAIN, squareness=0.9)
    parts = [torso, head, arm, arm.mirrored(), leg, leg.mirrored(), foot, foot.mirrored()]
    mesh = merge(parts)
    sizes = [len(m.vertices) for m in parts]
    kind = np.repeat([TORSO, HEAD, ARM, ARM, LEG, LEG, FOOT, FOOT], sizes)
    start = np.cumsum([0, *sizes])

    # A joint is the mean of one ring: (joint, part, ring).
    rings = [(0, 0, 3), (3, 0, 5), (6, 0, 7), (9, 0, 9), (12, 1, 1), (15, 1, 2)]
    for side in (0, 1):
        rings += [(13 + side, 2 + side, 1), (16 + side, 2 + side, 3), (18 + side, 2 + side, 9),
                  (20 + side, 2 + side, 13), (22 + side, 2 + side, 16), (1 + side, 4 + side, 1),
                  (4 + side, 4 + side, 8), (7 + side, 4 + side, 14), (10 + side, 6 + side, 4)]  # fmt: skip
    segments = (14, 12, 8, 8, 10, 10, 8, 8)
    regressor = np.zeros((len(JOINTS), len(mesh.vertices)), np.float32)
    for joint, part, ring in rings:
        first = start[part] + ring * segments[part]
        regressor[joint, first : first + segments[part]] = 1 / segments[part]
    landmarks = start[1] + np.array([nose, eyes + 1, eyes + 11, ears + 3, ears + 9])
    return Body(
        v_template=mesh.vertices,
        shapedirs=_shape_directions(mesh, kind),
        weights=mesh.weights,
        J_regressor=regressor,
        faces=mesh.faces,
        landmarks=landmarks,
        kind=kind,
        centres=mesh.centres,
        tubes=tuple(zip(start[:-1].tolist(), start[1:].tolist(), strict=True)),
    )


# axis [3] @ this [3, 9] = the matrix of the cross product with the axis, row by row
_CROSS = np.array(
    [[0, 0, 0, 0, 0, -1, 0, 1, 0], [0, 0, 1, 0, 0, 0, -1, 0, 0], [0, -1, 0, 1, 0, 0, 0, 0, 0.0]]
)


def rotation_matrices(axis_angle: np.ndarray) -> np.ndarray:
    """Axis-angle vectors [..., 3] (radians) -> rotation matrices [..., 3, 3] (Rodrigues' formula)."""
    angle = np.sqrt((axis_angle * axis_angle).sum(-1, keepdims=True))
    axis = axis_angle / np.maximum(angle, 1e-12)
    sin, cos = np.sin(angle)[..., None], np.cos(angle)[..., None]
    cross = (axis @ _CROSS).reshape(*axis.shape, 3)
    return np.eye(3) + sin * cross + (1 - cos) * (cross @ cross)


def axis_angle(rotation: np.ndarray) -> np.ndarray:
    """Rotation matrix [3, 3] -> axis-angle vector [3], angle in [0, pi]. Inverse of `rotation_matrices`."""
    (a, b, c), (d, e, f), (g, h, i) = rotation.tolist()
    vector = np.array([h - f, c - g, d - b])
    sin, cos = math.sqrt(vector @ vector) / 2, (a + e + i - 1) / 2
    if sin > 1e-6:
        return vector / (2 * sin) * math.atan2(sin, cos)
    if cos > 0:
        return vector / 2
    outer = (rotation + np.eye(3)) / 2  # half a turn: R = 2 n n^T - 1
    column = outer[np.argmax(np.diag(outer))]
    return np.pi * column / np.linalg.norm(column)


_PARENTS = np.array(PARENTS)
# Joints whose parents are done before them: a whole level of the tree is turned at once.
_LEVELS = [
    np.arange(*span) for span in ((1, 4), (4, 7), (7, 10), (10, 15), (15, 18), (18, 20), (20, 22), (22, 24))
]


def joint_transforms(rotations: np.ndarray, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotations relative to the parent [J, 3, 3] and rest joints [J, 3] -> skinning transforms [J, 3, 4],
    which take a rest point to its posed place, and the posed joints [J, 3]."""
    posed = joints.astype(np.float64)[:, :, None]  # [J, 3, 1]
    offsets = posed[1:] - posed[list(PARENTS[1:])]
    world = np.array(rotations, np.float64)
    for level in _LEVELS:
        above = _PARENTS[level]
        posed[level] = posed[above] + world[above] @ offsets[level - 1]
        world[level] = world[above] @ world[level]
    shift = posed - world @ joints[:, :, None]
    return np.concatenate([world, shift], 2).astype(np.float32), posed[:, :, 0].astype(np.float32)


def blend(weights: np.ndarray, transforms: np.ndarray) -> np.ndarray:
    """The transform of each vertex, [3, 4, V]: weights [V, J] x transforms [J, 3, 4]."""
    return (transforms.reshape(len(transforms), 12).T @ weights.T).reshape(3, 4, -1)


def skin(vertices: np.ndarray, weights: np.ndarray, transforms: np.ndarray) -> np.ndarray:
    """Linear blend skinning: rest vertices [V, 3], weights [V, J], transforms [J, 3, 4] -> posed [V, 3]."""
    blended = blend(weights, transforms)
    return ((blended[:, :3] * vertices.T).sum(1) + blended[:, 3]).T
