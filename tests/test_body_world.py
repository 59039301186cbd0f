"""Bodies of the world in a camera: the numbers of a small body by hand, and any turn, shape and place."""

import numpy as np
import pytest
import torch

from hap.body.arrays import BodyArrays
from hap.body.model import BodyModel
from hap.body.rotations import to_matrix
from hap.body.world import into_camera


def small_body() -> BodyArrays:
    """Four vertices, three joints in a row; the first two coefficients move the last vertices."""
    shapedirs, posedirs = np.zeros((4, 3, 10)), np.zeros((4, 3, 18))
    shapedirs[2:, 0, 0], shapedirs[3, 1, 1] = 1, 0.5
    posedirs[3, 2, 3], posedirs[3, 0, 9] = 0.1, 0.2
    return BodyArrays(
        v_template=np.array([[0.0, 1, 0], [1, 0, 0], [2, 0, 0], [2, 1, 0]]),
        shapedirs=shapedirs,
        posedirs=posedirs,
        J_regressor=np.eye(3, 4),
        weights=np.array([[1, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1]]),
        faces=np.array([[0, 1, 2]]),
        face_vertices=(0,),
        parents=(-1, 0, 1),
    )


def mesh(arrays: BodyArrays, pose, betas, trans) -> np.ndarray:
    pose, betas, trans = (torch.as_tensor(np.asarray(x), dtype=torch.float32) for x in (pose, betas, trans))
    return BodyModel(arrays)(to_matrix(pose.unflatten(1, (-1, 3))), betas, trans).vertices.numpy()


def test_the_numbers_of_a_small_body():
    pose = np.array([[0.3, -0.2, 0.5, 0, 0.4, 0, -0.1, 0, 0.2]])
    betas = np.array([[0.5, -1, *[0] * 8]])
    rotation = to_matrix(torch.tensor([0.2, 0.7, -0.4], dtype=torch.float64)).numpy()
    orient, trans = into_camera(pose[:, :3], [[0.1, 0.2, 3]], np.array([[0, 1, 0]]), rotation, [0.5, -0.3, 2])
    np.testing.assert_allclose(orient, [[0.596619608, 0.370292615, -0.040354069]], atol=1e-9)
    np.testing.assert_allclose(trans, [[2.828718853, -1.171946655, 4.238452780]], atol=1e-9)
    found = mesh(small_body(), np.concatenate([orient, pose[:, 3:]], axis=1), betas, trans)
    wanted = [
        [2.828718853, -0.171946655, 4.238452780],
        [3.619068687, -0.931530819, 3.344932193],
        [4.716548587, -0.511716967, 2.412572715],
        [4.677765161, -0.113268136, 2.712156162],
    ]
    np.testing.assert_allclose(found[0], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cameras", [1, 20])
def test_meshes_are_those_of_the_world_turned_and_moved(cameras):
    """Also of shapes that move the root, and of turns by half a circle."""
    rng = np.random.default_rng(0)
    arrays = small_body()
    arrays.shapedirs[0] = rng.normal(size=(3, 10))  # the first vertex is the root joint
    pose, betas, trans = rng.normal(size=(20, 9)), rng.normal(size=(20, 10)), rng.normal(size=(20, 3))
    turns = np.concatenate([[[np.pi, 0, 0]], rng.normal(size=(cameras - 1, 3)) * 2])
    rotation, move = to_matrix(torch.from_numpy(turns)).numpy(), rng.normal(size=(cameras, 3)) + 4.0
    root = arrays.v_template[0] + betas @ arrays.shapedirs[0].T
    orient, moved = into_camera(pose[:, :3], trans, root, rotation, move)
    found = mesh(arrays, np.concatenate([orient, pose[:, 3:]], axis=1), betas, moved)
    wanted = mesh(arrays, pose, betas, trans) @ rotation.transpose(0, 2, 1) + move[:, None]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
