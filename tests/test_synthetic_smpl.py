"""The drawn body in SMPL's layout: the same meshes as those that are drawn, gendered bodies, regressors, files."""

import numpy as np
import pytest
import torch

from hap.body.arrays import Bodies
from hap.body.joints import H36M, SMPL30
from hap.body.model import BodyModel
from hap.body.rotations import to_matrix
from hap.data.body_files import load_bodies
from hap.synthetic.body import MIRROR, PARENTS, body_model, rotation_matrices
from hap.synthetic.person import identity
from hap.synthetic.smpl import FILES, GENDER_BETAS, drawn_bodies, gendered, write_bodies

RNG = np.random.default_rng(5)
POSES, BETAS = RNG.normal(0, 0.6, (4, 24, 3)), RNG.normal(0, 1, (4, 10)).astype(np.float32)


def skinned(arrays, pose: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """Linear blend skinning as the specification writes it, vertex by vertex."""
    shaped = arrays.v_template + arrays.shapedirs @ betas
    joints = arrays.J_regressor @ shaped
    rotations = rotation_matrices(pose)
    posed = shaped + arrays.posedirs @ (rotations[1:] - np.eye(3)).ravel()
    chain = [np.eye(4) for _ in PARENTS]
    for j, parent in enumerate(PARENTS):
        local = np.eye(4)
        local[:3, :3], local[:3, 3] = rotations[j], joints[j] - (joints[parent] if j else 0)
        chain[j] = chain[parent] @ local if j else local
    moved = []
    for matrix, joint in zip(chain, joints, strict=True):
        moved.append(matrix.copy())
        moved[-1][:3, 3] -= matrix[:3, :3] @ joint
    blended = np.einsum("vj,jab->vab", arrays.weights, moved)
    return np.einsum("vab,vb->va", blended, np.c_[posed, np.ones(len(posed))])[:, :3]


@pytest.mark.parametrize("gender", range(3))
def test_meshes_of_every_gender_are_the_drawn_ones(gender):
    """A person has other coefficients in each body and the same mesh, in the renderer, the literal formula and the
    layer that networks use."""
    arrays = drawn_bodies().of(gender)
    betas = gendered(BETAS, np.full(4, gender))
    layer = BodyModel(arrays)(to_matrix(torch.tensor(POSES)), torch.tensor(betas))
    for i, pose in enumerate(POSES):
        drawn, joints = body_model()(pose, BETAS[i])
        np.testing.assert_allclose(skinned(arrays, pose, betas[i]), drawn, atol=1e-5)
        np.testing.assert_allclose(layer.vertices[i], drawn, atol=1e-5)
        np.testing.assert_allclose(layer.joints[i], joints, atol=1e-5)
    root = drawn_bodies().root(np.full(4, gender), betas)
    np.testing.assert_allclose(root, [body_model().rest(b)[1][0] for b in BETAS], atol=1e-6)


def test_genders_are_other_people_by_the_same_numbers():
    bodies = drawn_bodies()
    heights = [np.ptp(bodies.of(g).v_template[:, 1]) for g in range(3)]
    assert heights[1] > heights[0] > heights[2]
    assert np.abs(bodies.male.v_template - bodies.female.v_template).max() > 0.02
    drawn = np.array([identity(0, i).betas for i in range(200) if identity(0, i).age == "adult"])
    female = np.array([identity(0, i).female for i in range(200) if identity(0, i).age == "adult"])
    for mask, betas in ((~female, GENDER_BETAS[1]), (female, GENDER_BETAS[2])):
        assert np.abs(drawn[mask].mean(0) - betas).max() < 0.7  # the means of the people who are drawn


def test_joints_are_where_they_are_called():
    """On the T-pose: sums of one, symmetric, at the height of their names."""
    bodies = drawn_bodies()
    mesh = bodies.neutral.v_template
    for regressor in (bodies.joints30, bodies.h36m, bodies.extra):
        np.testing.assert_allclose(regressor.sum(1), 1, atol=1e-6)
    joints = dict(zip(SMPL30, bodies.joints30 @ mesh, strict=True))
    h36m = dict(zip(H36M, bodies.h36m @ mesh, strict=True))
    assert joints["Head_top"][1] == mesh[:, 1].max()
    for found in (joints, h36m):
        for name, (x, _, _) in found.items():
            assert np.sign(np.round(x, 3)) == {"L": 1, "R": -1}.get(name[0] if name[1] == "_" else "", 0)
        assert found["Head_top"][1] > found["Nose"][1] > found["L_Shoulder"][1] > found["L_Hip"][1]
    for name in H36M:  # near their namesakes, not the same
        away = np.linalg.norm(h36m[name] - joints[name])
        assert (0.02 < away < 0.12) if name in ("Pelvis", "Torso", "Neck") else away < 1e-6
    extra = bodies.extra @ mesh
    np.testing.assert_allclose(extra[[0, 1]], [joints["R_Hip"], joints["L_Hip"]], atol=1e-6)
    np.testing.assert_allclose(extra[4], h36m["Pelvis"], atol=1e-6)
    assert (np.diff(extra[[4, 6, 5, 2, 7, 8, 3], 1]) > 0).all()  # from the pelvis up
    np.testing.assert_allclose(
        bodies.neutral.J_regressor[list(MIRROR)] @ mesh,
        (bodies.neutral.J_regressor @ mesh) * [-1, 1, 1],
        atol=1e-5,
    )


def test_files_hold_the_bodies(tmp_path):
    write_bodies(tmp_path)
    bodies = drawn_bodies()
    assert isinstance(bodies, Bodies)
    assert drawn_bodies() is bodies
    for file in FILES:
        with np.load(tmp_path / file, allow_pickle=False) as found:
            assert found["kintree_table"][0, 0] == 4294967295
            np.testing.assert_array_equal(found["kintree_table"][0, 1:], PARENTS[1:])
            np.testing.assert_array_equal(found["kintree_table"][1], range(24))
            assert found["f"].dtype == np.uint32
    read = load_bodies(str(tmp_path))
    for name in ("extra", "h36m", "joints30"):
        np.testing.assert_allclose(getattr(read, name), getattr(bodies, name), atol=1e-7)
    for gender in range(3):
        for name in (
            "v_template",
            "shapedirs",
            "posedirs",
            "J_regressor",
            "weights",
            "faces",
            "face_vertices",
            "parents",
        ):
            np.testing.assert_array_equal(getattr(read.of(gender), name), getattr(bodies.of(gender), name))
