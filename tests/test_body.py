"""Rotations and the body layer against golden numbers, numbers worked out by hand, and a layer of somebody else's."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from hap.body.arrays import Bodies, BodyArrays
from hap.body.model import BodyModel
from hap.body.rotations import from_6d, to_axis_angle, to_matrix
from hap.errors import HapError

GOLDEN = {
    name: dict(np.load(Path(__file__).parent / "data" / f"pose3d_{name}.npz"))
    for name in ("body", "rotations")
}
VECTOR = (0.3, -0.2, 0.5)
MATRIX = [
    [0.859533899, -0.497991537, -0.114916954],
    [0.439867633, 0.835315605, -0.329794338],
    [0.260226714, 0.232921164, 0.937032437],
]


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def golden(name: str, kind: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[kind][name])


def golden_body(**changed) -> BodyArrays:
    names = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "faces")
    fields = {name: GOLDEN["body"][name] for name in names}
    face = tuple(GOLDEN["body"]["face_vertices"].tolist())
    return BodyArrays(**fields | {"face_vertices": face} | changed)


# Rotations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vector", "matrix"),
    [
        ((0, 0, np.pi / 2), [[0, -1, 0], [1, 0, 0], [0, 0, 1]]),
        (VECTOR, MATRIX),
        ((0, 0, 0), np.eye(3).tolist()),
    ],
)
def test_vectors_to_matrices_and_back(vector, matrix):
    assert_close(to_matrix(double(vector)), double(matrix), rtol=0, atol=1e-8)
    assert_close(to_axis_angle(double(matrix)), double(vector), rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("layout", "matrix", "vector"),
    [
        (
            "columns_interleaved",
            [
                [0.169030851, 0.897085227, -0.408248290],
                [0.507092553, 0.276026224, 0.816496581],
                [0.845154255, -0.345032780, -0.408248290],
            ],
            (-1.373906084, -1.482577575, -0.461299840),
        ),
        (
            "columns",
            [
                [0.267261242, 0.872871561, -0.408248290],
                [0.534522484, 0.218217890, 0.816496581],
                [0.801783726, -0.436435780, -0.408248290],
            ],
            (-1.447785762, -1.398213646, -0.390968413),
        ),
    ],
)
def test_six_numbers(layout, matrix, vector):
    found = from_6d(double([1, 2, 3, 4, 5, 6]), layout)
    assert_close(found, double(matrix), rtol=0, atol=1e-8)
    assert_close(to_axis_angle(found), double(vector), rtol=0, atol=1e-8)
    assert_close(
        from_6d(double([1, 2, 3, 4, 5, 6]), "rows"), from_6d(double([1, 2, 3, 4, 5, 6]), "columns").mT
    )


@pytest.mark.parametrize(
    ("layout", "identity", "quarter"),
    [
        ("columns_interleaved", [1, 0, 0, 1, 0, 0], [0, -1, 1, 0, 0, 0]),
        ("columns", [1, 0, 0, 0, 1, 0], [0, 1, 0, -1, 0, 0]),
        ("rows", [1, 0, 0, 0, 1, 0], [0, -1, 0, 1, 0, 0]),
    ],
)
def test_each_layout_has_its_own_quarter_turn(layout, identity, quarter):
    """About z; the form of the rows, taken for columns, is a turn the other way and no error."""
    assert_close(from_6d(double(identity), layout), torch.eye(3, dtype=torch.float64))
    assert_close(from_6d(double(quarter), layout), to_matrix(double([0, 0, np.pi / 2])))
    if layout == "rows":
        assert_close(from_6d(double(quarter), "columns"), to_matrix(double([0, 0, -np.pi / 2])))


def test_angles_of_more_than_half_a_turn_come_back_shorter():
    back = to_axis_angle(to_matrix(double([[4, 0, 0], [0, 0, np.pi], [2 * np.pi, 0, 0]])))
    assert_close(back[0], double([-2.283185307, 0, 0]), rtol=0, atol=1e-8)
    assert_close(back[1].abs(), double([0, 0, np.pi]), rtol=0, atol=1e-8)
    assert_close(back[2], torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-8)


def test_mirror_and_turn_in_the_picture():
    mirror = torch.diag(double([-1, 1, 1]))
    assert_close(mirror @ to_matrix(double(VECTOR)) @ mirror, to_matrix(double([0.3, 0.2, -0.5])))
    turn = to_matrix(double([0, 0, -np.pi / 6]))
    assert_close(turn, double([[0.866025404, 0.5, 0], [-0.5, 0.866025404, 0], [0, 0, 1]]), rtol=0, atol=1e-8)
    for vector, turned in (
        ((np.pi, 0, 0), (3.034545480, -0.813104011, 0)),
        (VECTOR, (0.235513459, -0.267985637, -0.017987564)),
    ):
        found = to_axis_angle(turn @ to_matrix(double(vector)))
        assert_close(to_matrix(found), to_matrix(double(turned)), rtol=0, atol=1e-8)
        if vector == VECTOR:
            assert_close(found, double(turned), rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rotations_are_the_official_ones(dtype):
    near = {"rtol": 0, "atol": 2e-6}
    official = {
        name: torch.from_numpy(value).to(dtype) for name, value in GOLDEN["rotations"].items() if value.ndim
    }
    numbers = official["random_6d"].requires_grad_()
    matrix = from_6d(numbers, "columns_interleaved")
    assert_close(matrix, official["random_matrix"], **near)
    vector = to_axis_angle(matrix)
    assert_close(vector, official["random_axis_angle"], rtol=0, atol=1e-5)
    (vector * official["random_gradient_weight"]).sum().backward()
    assert_close(numbers.grad, official["random_gradient_6d"], rtol=1e-4, atol=1e-4)
    special = from_6d(official["special_6d"], "columns_interleaved")
    assert_close(special, official["special_matrix"], **near)
    assert_close(to_matrix(to_axis_angle(special)), official["special_matrix"], **near)
    assert_close(to_matrix(official["axis_angle"]), official["axis_angle_matrix"], **near)
    back = to_axis_angle(official["axis_angle_matrix"])
    assert back.norm(dim=1).max() <= np.pi + 1e-6
    assert_close(to_matrix(back), to_matrix(official["axis_angle_back"]), **near)


def test_small_and_large_angles_round_trip():
    """From the smallest to just below half a turn, also in float32, where differences of near numbers would be lost."""
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(200, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    angles = np.concatenate([np.logspace(-7, 0, 100), np.pi - np.logspace(-5, 0, 100)])[:, None]
    vectors = torch.from_numpy(axes * angles)
    assert_close(to_axis_angle(to_matrix(vectors)), vectors, rtol=1e-9, atol=1e-12)
    single = to_axis_angle(to_matrix(vectors.float()))
    assert_close(to_matrix(single.double()), to_matrix(vectors), rtol=0, atol=5e-7)


def test_gradients_are_finite_everywhere():
    """The official code's is not a number at the identity."""
    assert GOLDEN["rotations"]["identity_gradient_is_nan"]
    special = golden("special_6d", "rotations").double()
    for numbers in special:
        leaf = numbers.clone().requires_grad_()
        to_axis_angle(from_6d(leaf, "columns_interleaved")).sum().backward()
        assert leaf.grad.isfinite().all()
    for vector in ([0.0, 0, 0], [1e-5, 0, 0], [np.pi, 0, 0], [2 * np.pi, 0, 0], [1e-30, 0, 0]):
        leaf = double(vector).requires_grad_()
        to_matrix(leaf).sum().backward()
        assert leaf.grad.isfinite().all()
    vectors = double([[0.1, 0.2, -0.3], [1e-5, 0, 1e-5], [0, 2.5, 1]]).requires_grad_()
    assert torch.autograd.gradcheck(to_matrix, vectors)
    assert torch.autograd.gradcheck(lambda v: to_axis_angle(to_matrix(v)), vectors)


def test_no_numbers_at_all_still_are_finite():
    """What a network may give in its first step: zeros, or two columns that are one."""
    numbers = torch.tensor([[0.0] * 6, [1, 1, 1, 1, 1, 1], [2, 4, 0, 0, 0, 0]], requires_grad=True)
    matrix = from_6d(numbers, "columns_interleaved")
    assert matrix.isfinite().all()
    assert to_axis_angle(matrix).isfinite().all()


# The layer --------------------------------------------------------------------------------------------------


def test_body_is_the_official_one():
    body = BodyModel(golden_body())
    pose = golden("pose", "body").unflatten(1, (24, 3)).requires_grad_()
    betas, trans = golden("betas", "body").requires_grad_(), golden("trans", "body")
    rotations = to_matrix(pose)
    assert_close(rotations, golden("rotations", "body"), rtol=0, atol=2e-6)
    vertices, joints = body(rotations, betas, trans)
    assert_close(vertices, golden("vertices", "body"), rtol=0, atol=1e-5)
    assert_close(joints, golden("joints", "body"), rtol=0, atol=1e-5)
    regressor = golden("joint_regressor_30", "body")
    assert_close(regressor @ vertices, golden("joints_30", "body"), rtol=0, atol=1e-5)
    mean, moved = golden_body().rest_joints
    rest = mean + np.einsum("jcb,nb->njc", moved, GOLDEN["body"]["betas"])
    np.testing.assert_allclose(rest, GOLDEN["body"]["rest_joints"], atol=1e-5)
    assert_close(body(rotations, betas).vertices, vertices - trans[:, None], rtol=0, atol=1e-6)

    (vertices * golden("vertex_weights_for_gradient", "body"))[3:].sum().backward()
    assert_close(pose.grad[3:].flatten(1), golden("grad_pose", "body"), rtol=1e-4, atol=1e-4)
    assert_close(betas.grad[3:], golden("grad_betas", "body"), rtol=1e-4, atol=1e-4)


def test_face_and_top_of_the_head_are_the_official_rows():
    extra = np.zeros((9, 60), np.float32)
    extra[3] = GOLDEN["body"]["head_top_row"]
    bodies = Bodies("golden", golden_body(), extra)
    np.testing.assert_array_equal(bodies.joints30, GOLDEN["body"]["joint_regressor_30"])


@pytest.mark.parametrize(
    ("pose", "betas", "trans", "vertices"),
    [
        (
            (0, 0, 0, 0, 0, np.pi / 2, 0, 0, np.pi / 2),
            (1, 2),
            (0, 0, 5),
            [[0, 1, 5], [1, 0, 5], [1, 2, 5], [1.2, 0, 5.1]],
        ),
        (
            (0, 0, np.pi / 2, 0, 0, 0, 0, 0, 0),
            (0, 0),
            (0, 0, 0),
            [[0, 1, 0], [1, 2, 0], [1, 3, 0], [0, 3, 0]],
        ),
        (
            (0.3, -0.2, 0.5, 0, 0.4, 0, -0.1, 0, 0.2),
            (0.5, -1),
            (0.1, 0.2, 3),
            [
                [0.1, 1.2, 3],
                [1.457525436, 0.804552028, 3.027305550],
                [2.712176311, 1.604911353, 2.839486136],
                [2.372219985, 1.963077463, 2.917988373],
            ],
        ),
    ],
)
def test_a_body_worked_out_by_hand(pose, betas, trans, vertices):
    """Four vertices, three joints, two shape coefficients; the joints are the first three vertices."""
    shapedirs, posedirs = np.zeros((4, 3, 10)), np.zeros((4, 3, 18))
    shapedirs[2:, 0, 0], shapedirs[3, 1, 1] = 1, 0.5
    posedirs[3, 2, 3], posedirs[3, 0, 9] = 0.1, 0.2
    body = BodyModel(
        BodyArrays(
            v_template=np.array([[0.0, 1, 0], [1, 0, 0], [2, 0, 0], [2, 1, 0]]),
            shapedirs=shapedirs,
            posedirs=posedirs,
            J_regressor=np.eye(3, 4),
            weights=np.array([[1, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1]]),
            faces=np.array([[0, 1, 2]]),
            face_vertices=(0,),
            parents=(-1, 0, 1),
        )
    )
    rotations = to_matrix(double(pose).view(1, 3, 3))
    betas = torch.nn.functional.pad(double([betas]), (0, 8))
    found = body(rotations, betas, double([trans]))
    wanted = torch.tensor(vertices, dtype=torch.float32)
    assert_close(found.vertices[0], wanted, rtol=1e-6, atol=1e-6)
    assert_close(found.joints[0], wanted[:3], rtol=1e-6, atol=1e-6)


def test_float32_whatever_surrounds_it():
    body = BodyModel(golden_body())
    arguments = (golden("rotations", "body"), golden("betas", "body"), golden("trans", "body"))
    plain = body(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(body(*arguments).vertices, plain.vertices, rtol=0, atol=0)
    far = body(arguments[0], arguments[1], torch.tensor([[0, 0, 24.4140625]]).expand(6, -1))
    farther = body(arguments[0], arguments[1], torch.tensor([[0, 0, 24.4141625]]).expand(6, -1))
    moved = (farther.joints - far.joints)[..., 2]
    assert_close(moved, torch.full_like(moved, 1e-4), rtol=0.1, atol=0)


def test_nothing_of_the_body_is_saved_or_trained():
    body = BodyModel(golden_body())
    assert not body.state_dict()
    assert not list(body.parameters())


def test_nobody_and_the_order_of_people():
    body = BodyModel(golden_body())
    rotations, betas = golden("rotations", "body"), golden("betas", "body")
    assert body(rotations[:0], betas[:0]).vertices.shape == (0, 60, 3)
    all_at_once = body(rotations, betas).vertices
    for i in range(6):
        assert_close(
            body(rotations[i : i + 1], betas[i : i + 1]).vertices[0], all_at_once[i], rtol=0, atol=2e-6
        )


@pytest.mark.parametrize("count", [0, 1, 9, 11, 16, 300])
def test_other_than_ten_shape_coefficients_are_refused(count):
    with pytest.raises(HapError, match=f"betas have {count} numbers, not 10"):
        BodyModel(golden_body())(torch.eye(3).expand(2, 24, 3, 3), torch.zeros(2, count))


def test_a_tree_that_is_not_numbered_by_levels_is_refused():
    with pytest.raises(HapError, match="joint 3 hangs on joint 0, not on the level above"):
        BodyModel(golden_body(parents=(-1, 0, 1, 0, *range(3, 23))))


def test_another_layer_gives_the_same(tmp_path):
    """smplfitter (MIT) reads SMPL's files and poses them by code of its own."""
    import smplfitter.np as smplfitter

    data = GOLDEN["body"]
    tree = np.stack([data["parents"], np.arange(24)]).astype(np.int64)
    names = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights")
    content = {name: data[name] for name in names} | {"f": data["faces"], "kintree_table": tree}
    (tmp_path / "basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl").write_bytes(pickle.dumps(content, 2))
    np.save(tmp_path / "kid_template.npy", np.zeros((60, 3)))
    other = smplfitter.BodyModel("smpl", "neutral", str(tmp_path))
    rng = np.random.default_rng(0)
    pose, betas, trans = rng.normal(0, 0.7, (16, 72)), rng.normal(0, 1.5, (16, 10)), rng.normal(0, 3, (16, 3))
    wanted = other(pose, betas, trans)
    pose, betas, trans = (torch.tensor(x, dtype=torch.float32) for x in (pose, betas, trans))
    found = BodyModel(golden_body())(to_matrix(pose.unflatten(1, (24, 3))), betas, trans)
    assert_close(found.vertices, torch.as_tensor(wanted["vertices"]), rtol=0, atol=3e-5)
    assert_close(found.joints, torch.as_tensor(wanted["joints"]), rtol=0, atol=1e-5)
