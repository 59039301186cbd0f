"""The arrays of a body model in SMPL's layout, checked.

Legend: V vertices, F faces; metres.
"""

import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hap.errors import HapError

NUM_JOINTS, NUM_BETAS, NUM_FEATURES = 24, 10, 207
GENDERS = ("neutral", "male", "female")
PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)
# Nose, left and right eye, left and right ear of SMPL's mesh, as 3DCrowdNet has them; smplx takes others.
SMPL_FACE = (331, 2802, 6262, 3489, 3990)
HEAD_TOP_ROW = 3  # of `J_regressor_extra.npy`
NEAR_ONE = 1e-4  # what sums of weights may be off
H36M_NEAR_ONE = 5e-3  # the public regressor's rows are off by up to 4e-4


@dataclass(frozen=True, eq=False)
class BodyArrays:
    """One body model. Raises HapError where the arrays are none.

    Attributes:
        v_template: (V, 3), the mesh at rest.
        shapedirs: (V, 3, 10), moved by a unit of each shape coefficient.
        posedirs: (V, 3, 207), moved by the nine numbers of each of 23 rotations.
        J_regressor: (24, V), joints at rest from vertices at rest.
        weights: (V, 24), of each joint's turn on each vertex.
        faces: int64 (F, 3).
        face_vertices: (5,), nose, left and right eye, left and right ear.
        parents: joints that each joint hangs on, the root's is -1.
    """

    v_template: np.ndarray
    shapedirs: np.ndarray
    posedirs: np.ndarray
    J_regressor: np.ndarray
    weights: np.ndarray
    faces: np.ndarray
    face_vertices: tuple[int, ...] = SMPL_FACE
    parents: tuple[int, ...] = PARENTS

    def __post_init__(self):
        count, num_faces = (max(len(np.atleast_1d(a)), 1) for a in (self.v_template, self.faces))
        joints = len(self.parents)
        shapes = {
            "v_template": (count, 3),
            "shapedirs": (count, 3, NUM_BETAS),
            "posedirs": (count, 3, 9 * (joints - 1)),
            "J_regressor": (joints, count),
            "weights": (count, joints),
            "faces": (num_faces, 3),
        }
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape:
                raise HapError(f"{name} is {array.shape} instead of {shape}")
            if not np.isfinite(array).all():
                raise HapError(f"{name} is not finite everywhere")
        for name in ("weights", "J_regressor"):
            sums = getattr(self, name).sum(1)
            worst = np.abs(sums - 1).argmax()
            if abs(sums[worst] - 1) > NEAR_ONE:
                raise HapError(f"row {worst} of {name} sums to {sums[worst]:.6g}, not to 1")
        for name in ("faces", "face_vertices"):
            if not 0 <= np.min(getattr(self, name)) <= np.max(getattr(self, name)) < count:
                raise HapError(f"{name} name vertices beyond the {count:,} of the mesh")

    @cached_property
    def rest_joints(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the mean shape (24, 3), and what a unit of each coefficient moves them (24, 3, 10)."""
        moved = np.einsum("jv,vcb->jcb", self.J_regressor, self.shapedirs)
        return self.J_regressor @ self.v_template, moved


@dataclass(frozen=True, eq=False)
class Bodies:
    """The neutral, male and female model of one topology, with what gives joints of their posed meshes.

    Attributes:
        name: of what they are, in the protocol of scores.
        neutral: predictions are of it.
        extra: (9, V), `J_regressor_extra.npy` (SPIN).
        male, female, h36m: needed to evaluate and to compare fits: the two are the truth of 3DPW, and
            `J_regressor_h36m_correct.npy` (17, V) gives joints as Human3.6M has them. None where there is no file.
    """

    name: str
    neutral: BodyArrays
    extra: np.ndarray
    male: BodyArrays | None = None
    female: BodyArrays | None = None
    h36m: np.ndarray | None = None

    def __post_init__(self):
        count = len(self.neutral.v_template)
        for gender in ("male", "female"):
            if (body := getattr(self, gender)) is not None and len(body.v_template) != count:
                raise HapError(
                    f"the {gender} body has {len(body.v_template):,} vertices, the neutral one {count:,}: files of "
                    "two models"
                )
        for file, name, rows in (
            ("J_regressor_extra.npy", "extra", 9),
            ("J_regressor_h36m_correct.npy", "h36m", 17),
        ):
            array = getattr(self, name)
            if array is not None and (array.shape != (rows, count) or not np.isfinite(array).all()):
                raise HapError(f"{file} is {array.shape}, not ({rows}, {count}) of finite numbers")
        if self.h36m is not None and (off := np.abs(self.h36m.sum(1) - 1).max()) > H36M_NEAR_ONE:
            raise HapError(f"a row of J_regressor_h36m_correct.npy is off a sum of 1 by {off:.3g}")

    def of(self, gender: int) -> BodyArrays:
        """By its place in `GENDERS`. Raises HapError where there is no such file."""
        body = getattr(self, GENDERS[gender])
        if body is None:
            raise HapError(
                f"{self.name} has no {GENDERS[gender]} body: it is the truth of {GENDERS[gender]} people in 3DPW, and "
                "there is no score without it"
            )
        return body

    @cached_property
    def joints30(self) -> np.ndarray:
        """(30, V), gives `hap.body.joints.SMPL30` of any posed mesh, also of a gendered one: the model's own 24, the
        face, the top of the head."""
        body = self.neutral
        face = np.eye(len(body.v_template), dtype=np.float32)[list(body.face_vertices)]
        return np.concatenate([body.J_regressor, face, self.extra[[HEAD_TOP_ROW]]]).astype(np.float32)

    @cached_property
    def checksum(self) -> str:
        """Of what shape coefficients and poses are of: the neutral mesh at rest, and what moves it."""
        arrays = (self.neutral.v_template, self.neutral.shapedirs)
        return f"{zlib.crc32(b''.join(np.asarray(a, np.float32).tobytes() for a in arrays)):08x}"

    def root(self, gender: np.ndarray, betas: np.ndarray) -> np.ndarray:
        """Where the root is at rest, about which it turns: gender int (N,), betas (N, 10) -> (N, 3)."""
        result = np.zeros((len(betas), 3))
        for number in np.unique(gender):
            mean, moved = self.of(number).rest_joints
            mine = gender == number
            result[mine] = mean[0] + betas[mine] @ moved[0].T
        return result
