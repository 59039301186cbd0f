"""The drawn body in SMPL's layout, with its two gendered variants and the regressors that go with it.

Everything that takes SMPL takes it, so nothing in the package needs SMPL's files, which may not be given away.
Legend: V vertices, N people; metres.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hap.body.arrays import NUM_FEATURES, PARENTS, Bodies, BodyArrays
from hap.body.joints import H36M, SMPL30, places
from hap.synthetic.body import axis_angle, body_model, rotation_matrices

# Shape coefficients of the neutral body that make the mean shape of each of `GENDERS`, (3, 10).
GENDER_BETAS = np.array(
    [
        np.zeros(10),
        [0.55, 0, 0, 0.6, -0.5, 0, -0.3, 0, 0, 0.3],
        [-0.75, 0, 0, -0.9, 0.8, 0, 0.7, 0, 0, -0.7],
    ],
    np.float32,
)
# SMPL's, by gender.
FILES = tuple(f"basicModel_{name}_lbs_10_207_0_v1.0.0.npz" for name in ("neutral", "m", "f"))
# Joints of other regressors as means of the body's 30; those of Human3.6M that are not named are the body's own.
_H36M = {"Pelvis": ("L_Hip", "R_Hip"), "Torso": ("Torso", "Spine"), "Neck": ("Chest", "Neck")}
_EXTRA = (
    ("R_Hip",), ("L_Hip",), ("L_Shoulder", "R_Shoulder", "Neck"), ("Head_top",), ("L_Hip", "R_Hip"),
    ("L_Shoulder", "R_Shoulder"), ("Torso", "Spine"), ("Nose", "Neck"), ("L_Ear", "R_Ear", "Head_top"),
)  # fmt: skip


def gendered(betas: np.ndarray, gender: np.ndarray) -> np.ndarray:
    """Coefficients (N, 10) of the neutral body -> those by which the body of each `gender` (N,), a place in
    `GENDERS`, is the same person (N, 10)."""
    return betas - GENDER_BETAS[gender]


@dataclass(frozen=True)
class Posed:
    """Somebody's body in some frame: `pose` (24, 3) axis-angle, `betas` (10,) of the neutral body, `trans` (3,)."""

    pose: np.ndarray
    betas: np.ndarray
    trans: np.ndarray
    female: bool

    def moved(self, rotation: np.ndarray, translation: np.ndarray) -> "Posed":
        """In the frame to which x -> rotation x + translation goes. The root turns about its own joint, not about the
        origin."""
        root = body_model().rest(self.betas)[1][0]
        pose = self.pose.copy()
        pose[0] = axis_angle(rotation @ rotation_matrices(self.pose[0]))
        return replace(self, pose=pose, trans=rotation @ (self.trans + root) + translation - root)

    @property
    def gender(self) -> int:
        """Of the body that is the person's own, a place in `GENDERS`."""
        return 2 if self.female else 1

    def parameters(self) -> dict[str, Any]:
        """Of the neutral body, as json files have them."""
        return {
            "pose": self.pose.ravel().tolist(),
            "shape": self.betas.tolist(),
            "trans": self.trans.tolist(),
        }

    def mesh(self) -> tuple[np.ndarray, np.ndarray]:
        """Vertices (V, 3) and joints (24, 3)."""
        vertices, joints = body_model()(self.pose, self.betas)
        return vertices + self.trans, joints + self.trans


@lru_cache(maxsize=1)
def drawn_bodies() -> Bodies:
    """The three bodies: one topology, one skeleton, other mean shapes. The pose moves no vertices but by skinning."""
    body = body_model()
    count = len(body.v_template)
    one_hot = np.eye(count, dtype=np.float32)
    basis = np.concatenate([body.J_regressor, one_hot[[*body.landmarks, body.head_top]]])  # (30, V)

    def rows(*means: tuple[str, ...]) -> np.ndarray:
        return np.stack([basis[places(names, SMPL30)].mean(0) for names in means])

    neutral, male, female = (
        BodyArrays(
            v_template=body.rest(betas)[0],
            shapedirs=body.shapedirs,
            posedirs=np.zeros((count, 3, NUM_FEATURES), np.float32),
            J_regressor=body.J_regressor,
            weights=body.weights,
            faces=body.faces,
            face_vertices=tuple(body.landmarks.tolist()),
        )
        for betas in GENDER_BETAS
    )
    h36m = rows(*(_H36M.get(name, (name,)) for name in H36M))
    return Bodies("drawn", neutral, rows(*_EXTRA), male, female, h36m)


def write_bodies(folder: Path) -> None:
    """Writes the drawn bodies under the names of SMPL's files, as .npz with SMPL's fields and `face_vertices`, and the
    two regressors."""
    folder.mkdir(parents=True, exist_ok=True)
    bodies = drawn_bodies()
    for gender, file in enumerate(FILES):
        body = bodies.of(gender)
        tree = np.array([PARENTS, range(len(PARENTS))]).astype(np.uint32)  # of the root, -1 is 4294967295
        np.savez_compressed(
            folder / file,
            v_template=body.v_template,
            shapedirs=body.shapedirs,
            posedirs=body.posedirs,
            J_regressor=body.J_regressor,
            weights=body.weights,
            kintree_table=tree,
            f=body.faces.astype(np.uint32),
            face_vertices=body.face_vertices,
        )
    np.save(folder / "J_regressor_extra.npy", bodies.extra)
    np.save(folder / "J_regressor_h36m_correct.npy", np.asarray(bodies.h36m))
