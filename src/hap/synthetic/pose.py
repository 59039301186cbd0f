"""Natural poses of the synthetic people: an activity is drawn, then its free angles within joint limits.

Arms are set by where the wrist goes (two-bone inverse kinematics), legs by clinical angles (flexion,
abduction, knee, ankle), the gait by its phase. Frame as in `hap.synthetic.body`: y up, the body faces +z,
left is +x."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hap.synthetic.body import JOINTS, MIRROR, axis_angle
from hap.synthetic.person import pick

UPPER_ARM, FOREARM = 0.275, 0.25  # of the template, metres

# Largest rotation of each joint, radians: the norm of its axis-angle vector.
_LIMIT = {
    "pelvis": 0.9, "spine": 0.6, "neck": 0.5, "head": 0.7, "collar": 0.35, "shoulder": 2.9, "elbow": 2.5,
    "wrist": 0.7, "hand": 0.3, "hip": 2.2, "knee": 2.5, "ankle": 0.7, "foot": 0.5,
}  # fmt: skip
LIMITS = np.array([next(v for k, v in _LIMIT.items() if k in joint) for joint in JOINTS])


@dataclass(frozen=True)
class Pose:
    """`axis_angle` [24, 3] (radians, SMPL's order; the root leans but does not turn: the renderer does),
    `activity` (a key of ACTIVITIES) and what the pose needs drawn: `seated` (a seat below the pelvis),
    `holding` (a box between the hands), `phone` ("left", "right" or None: the hand that has one)."""

    axis_angle: np.ndarray
    activity: str
    seated: bool = False
    holding: bool = False
    phone: str | None = None

    def mirrored(self) -> "Pose":
        """Left and right exchanged."""
        flipped = self.axis_angle[list(MIRROR)] * np.array([1, -1, -1])
        phone = {"left": "right", "right": "left", None: None}[self.phone]
        return Pose(flipped, self.activity, self.seated, self.holding, phone)


class _Builder:
    """Collects joint rotations by name; `finish` applies the limits."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.pose = np.zeros((len(JOINTS), 3))
        for joint in ("spine1", "spine2", "spine3", "neck", "left_wrist", "right_wrist"):
            self[joint] = rng.normal(0, 0.04, 3)
        self["head"] = (rng.normal(0.05, 0.12), rng.normal(0, 0.25), rng.normal(0, 0.04))

    def __setitem__(self, joint: str, vector) -> None:
        self.pose[JOINTS.index(joint)] = vector

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def bend(self, forward: float, side: float = 0.0, twist: float = 0.0) -> None:
        """Spreads a bend of the trunk over the three spine joints."""
        for joint in ("spine1", "spine2", "spine3"):
            self.pose[JOINTS.index(joint)] += (forward / 3, twist / 3, side / 3)

    def reach(self, side: str, wrist, elbow, jitter: float = 0.02) -> None:
        """Puts the wrist of `side` at `wrist` (from the shoulder, in the chest's frame, metres, x outward)
        with the elbow towards the direction `elbow`."""
        sign = 1.0 if side == "left" else -1.0
        outward = np.array([sign, 1, 1])
        target = (np.array(wrist) + self.rng.normal(0, jitter, 3)) * outward
        length = math.sqrt(target @ target)
        direction = target / length
        distance = min(max(length, 0.12), UPPER_ARM + FOREARM - 0.004)
        pole = np.array(elbow) * outward
        pole = pole - (pole @ direction) * direction
        cos = (UPPER_ARM**2 + distance**2 - FOREARM**2) / (2 * UPPER_ARM * distance)
        upper = cos * direction + math.sqrt((1 - cos**2) / (pole @ pole)) * pole
        fore = (distance * direction - UPPER_ARM * upper) / FOREARM
        along = float(fore @ upper)
        bend = fore - along * upper
        # The template's arm lies along x and its elbow closes towards z: turn these two into place.
        x, z = sign * upper, bend / math.sqrt(bend @ bend)
        y = (z[1] * x[2] - z[2] * x[1], z[2] * x[0] - z[0] * x[2], z[0] * x[1] - z[1] * x[0])
        self[f"{side}_shoulder"] = axis_angle(np.array([x, y, z]).T)
        self[f"{side}_elbow"] = (0, -sign * math.acos(min(max(along, -1), 1)), 0)

    def leg(
        self, side: str, flexion: float, knee: float, abduction: float = 0.03, turnout: float = 0.12
    ) -> None:
        """Hip and knee angles (radians, forward and closing positive); the foot stays near the horizontal."""
        sign = 1.0 if side == "left" else -1.0
        self[f"{side}_hip"] = (-flexion, sign * turnout, sign * abduction)
        self[f"{side}_knee"] = (max(knee, 0.0), 0, 0)
        self[f"{side}_ankle"] = (min(max(flexion - knee, -0.65), 0.5), 0, 0)

    def hang(self, side: str, swing: float = 0.0) -> None:
        """A relaxed arm beside the body; `swing` is forward, metres at the wrist."""
        out = 0.075 + abs(self.rng.normal(0, 0.03))
        self.reach(side, (out, -0.50 + 0.25 * swing * swing, 0.03 + swing), (0.35, 0, -1))

    def finish(self, activity: str, **needs) -> Pose:
        norm = np.linalg.norm(self.pose, axis=1)
        scale = np.minimum(1, LIMITS / np.maximum(norm, 1e-9))
        return Pose(self.pose * scale[:, None], activity, **needs)


def _stand_legs(b: _Builder) -> None:
    """Weight on both legs or on one."""
    shift = b.uniform(-1, 1)
    wide = b.uniform(0.0, 0.12)
    b["pelvis"] = (0, 0, 0.04 * shift)
    b.bend(0.02, -0.05 * shift)
    b.leg("left", b.uniform(0, 0.1), max(0, shift) * 0.3, wide - 0.04 * shift, b.uniform(0, 0.3))
    b.leg("right", b.uniform(0, 0.1), max(0, -shift) * 0.3, wide + 0.04 * shift, b.uniform(0, 0.3))


def _walk_legs(b: _Builder, stride: float, phase: float, lift: float) -> None:
    """The gait: hips swing as a cosine, the knee closes while its leg comes forward."""
    for side, t in (("left", phase), ("right", phase + np.pi)):
        flexion = 0.06 + stride * np.cos(t)
        knee = 0.10 + lift * max(0.0, -np.sin(t + 0.35)) ** 1.5
        b.leg(side, flexion, knee, 0.02, 0.08)
    b["pelvis"] = (0, 0.10 * np.cos(phase), 0.03 * np.sin(phase))
    b.bend(0.03, 0, -0.22 * np.cos(phase))


def _walk(b: _Builder) -> Pose:
    phase, stride = b.uniform(0, 2 * np.pi), b.uniform(0.25, 0.48)
    _walk_legs(b, stride, phase, 0.95)
    swing = b.uniform(0.25, 0.6) * stride
    for side, t in (("left", phase + np.pi), ("right", phase)):
        manner = pick(b.rng, ("hang", "pocket", "strap"), (0.86, 0.09, 0.05))
        if manner == "hang":
            b.hang(side, swing * np.cos(t))
        elif manner == "pocket":
            b.reach(side, (0.045, -0.43, 0.07), (0.6, 0, -1), 0.01)
        else:
            b.reach(side, (-0.05, -0.10, 0.14), (0.5, -1, -0.2))
    return b.finish("walking")


def _run(b: _Builder) -> Pose:
    phase = b.uniform(0, 2 * np.pi)
    _walk_legs(b, b.uniform(0.6, 0.85), phase, 1.7)
    b.bend(0.2)
    for side, t in (("left", phase + np.pi), ("right", phase)):
        b.reach(side, (-0.01, -0.22, 0.10 + 0.22 * np.cos(t)), (0.25, -0.3, -1))
    return b.finish("running")


def _stand(b: _Builder) -> Pose:
    _stand_legs(b)
    manner = pick(b.rng, ("hang", "pockets", "hips", "crossed", "behind"), (0.52, 0.18, 0.10, 0.12, 0.08))
    for side in ("left", "right"):
        if manner == "hang":
            b.hang(side, b.uniform(-0.03, 0.08))
        elif manner == "pockets":
            b.reach(side, (0.045, -0.43, 0.07), (0.6, 0, -1), 0.01)
        elif manner == "hips":
            b.reach(side, (0.02, -0.35, 0.07), (1, 0, -0.35), 0.01)
        elif manner == "crossed":
            b.reach(side, (-0.20, -0.20 - 0.04 * (side == "left"), 0.19), (0.5, -1, 0.3), 0.01)
        else:
            b.reach(side, (-0.10, -0.40, -0.15), (1, 0, -0.35), 0.01)
    return b.finish("standing")


def _call(b: _Builder) -> Pose:
    (_stand_legs if b.rng.random() < 0.5 else lambda b: _walk_legs(b, 0.35, b.uniform(0, 6.28), 0.9))(b)
    b.reach("right", (-0.035, 0.085, 0.12), (0.55, -1, 0.1), 0.01)
    b.hang("left", b.uniform(-0.05, 0.1))
    b["head"] = (0.1, 0.1, 0.12)
    return b.finish("phoning", phone="right")


def _text(b: _Builder) -> Pose:
    (_stand_legs if b.rng.random() < 0.6 else lambda b: _walk_legs(b, 0.3, b.uniform(0, 6.28), 0.9))(b)
    b["neck"], b["head"] = (0.25, 0, 0), (b.uniform(0.2, 0.4), 0, 0)
    b.reach("right", (-0.10, -0.20, 0.27), (0.35, -1, -0.1))
    if b.rng.random() < 0.5:
        b.reach("left", (-0.10, -0.22, 0.27), (0.35, -1, -0.1))
    else:
        b.hang("left", b.uniform(-0.03, 0.08))
    return b.finish("texting", phone="right")


def _raise(b: _Builder) -> Pose:
    _stand_legs(b)
    manner = pick(b.rng, ("wave", "both", "point", "spread", "head"))
    b.hang("left", b.uniform(-0.03, 0.08))
    if manner == "wave":
        b["right_collar"] = (0, 0, -0.2)
        b.reach("right", (b.uniform(0.12, 0.3), b.uniform(0.2, 0.4), 0.08), (1, -0.4, 0))
    elif manner == "both":
        for side, sign in (("left", 1), ("right", -1)):
            b[f"{side}_collar"] = (0, 0, 0.3 * sign)
            b.reach(side, (b.uniform(0.0, 0.3), b.uniform(0.38, 0.5), 0.06), (1, 0, -0.3))
    elif manner == "point":
        b.reach("right", (b.uniform(0, 0.3), b.uniform(-0.05, 0.2), 0.45), (0.6, -1, 0))
    elif manner == "spread":
        height = b.uniform(-0.1, 0.2)
        b.reach("left", (0.48, height, 0.08), (0, -0.3, -1))
        b.reach("right", (0.48, height, 0.08), (0, -0.3, -1))
    else:  # hands behind the head
        b.reach("left", (-0.05, 0.17, -0.04), (1, 0.3, 0))
        b.reach("right", (-0.05, 0.17, -0.04), (1, 0.3, 0))
    return b.finish("arms raised")


def _sit(b: _Builder) -> Pose:
    lean = b.uniform(-0.1, 0.35)
    b["pelvis"] = (-0.08, 0, 0)
    b.bend(lean)
    for side in ("left", "right"):
        flexion = b.uniform(1.35, 1.55)
        b.leg(side, flexion, flexion + b.uniform(-0.25, 0.15), b.uniform(0.03, 0.2), 0.05)
        if b.rng.random() < 0.75:
            b.reach(side, (-0.01, -0.33, 0.26), (0.6, 0.1, -1))
        else:
            b.reach(side, (-0.13, -0.32, 0.20), (0.7, -0.3, -0.6))
    return b.finish("sitting", seated=True)


def _crouch(b: _Builder) -> Pose:
    depth = b.uniform(1.5, 2.1)
    b["pelvis"] = (0.35, 0, 0)
    b.bend(b.uniform(0.2, 0.5))
    b["head"] = (-0.2, b.rng.normal(0, 0.2), 0)
    for side in ("left", "right"):
        b.leg(side, depth + b.uniform(-0.1, 0.1), depth + b.uniform(0.0, 0.25), b.uniform(0.05, 0.2), 0.2)
        b.reach(side, (0.0, -0.33, 0.28), (0.6, 0, -0.6))
    return b.finish("crouching")


def _bend(b: _Builder) -> Pose:
    lean = b.uniform(0.5, 0.85)
    b["pelvis"] = (lean, 0, 0)
    b.bend(b.uniform(0.4, 0.9))
    b["head"] = (-0.15, b.rng.normal(0, 0.2), 0)
    knees = b.uniform(0.1, 0.6)
    for side in ("left", "right"):  # thighs stay upright: the hip takes back the lean of the pelvis
        b.leg(side, lean + knees / 2, knees, 0.05, 0.1)
        b[f"{side}_ankle"] = (-knees / 2, 0, 0)
        b.reach(side, (-0.04, -0.30, 0.38), (0.6, 0, -0.3))
    return b.finish("bending")


def _carry(b: _Builder) -> Pose:
    (_stand_legs if b.rng.random() < 0.3 else lambda b: _walk_legs(b, 0.32, b.uniform(0, 6.28), 0.9))(b)
    b.bend(-0.06)
    height = b.uniform(-0.26, -0.16)
    for side in ("left", "right"):
        b.reach(side, (-0.01, height, 0.30), (0.35, -1, -0.4), 0.005)
    return b.finish("carrying", holding=True)


ACTIVITIES: dict[str, tuple[float, Callable[[_Builder], Pose]]] = {
    "walking": (0.38, _walk),
    "standing": (0.22, _stand),
    "texting": (0.09, _text),
    "arms raised": (0.08, _raise),
    "sitting": (0.06, _sit),
    "phoning": (0.05, _call),
    "running": (0.04, _run),
    "carrying": (0.04, _carry),
    "crouching": (0.02, _crouch),
    "bending": (0.02, _bend),
}


def sample_pose(rng: np.random.Generator, activity: str | None = None) -> Pose:
    """A pose of the named activity, or of one drawn by frequency; either side may lead."""
    if activity is None:
        activity = pick(rng, ACTIVITIES, [share for share, _ in ACTIVITIES.values()])
    pose = ACTIVITIES[activity][1](_Builder(rng))
    return pose.mirrored() if rng.random() < 0.5 else pose
