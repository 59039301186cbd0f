"""The synthetic people: the body against a literal reference, the drawing against its own annotation, the
writers against the official layouts."""

import multiprocessing
import pickle
import re
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from hap.errors import HapError
from hap.synthetic import WRITERS, ensure, synthesize
from hap.synthetic.body import (
    JOINTS,
    MIRROR,
    NUM_BETAS,
    PARENTS,
    axis_angle,
    body_model,
    rotation_matrices,
)
from hap.synthetic.caption import describe
from hap.synthetic.person import ATTRIBUTES, identity
from hap.synthetic.pose import ACTIVITIES, LIMITS, sample_pose
from hap.synthetic.render import KEYPOINT_JOINTS, Rendering, render
from hap.synthetic.scene import camera


@lru_cache
def drawings() -> list[Rendering]:
    rngs = [np.random.default_rng([7, i]) for i in range(40)]
    return [render(identity(7, i), sample_pose(rng), camera(7, i % 4), rng) for i, rng in enumerate(rngs)]


# Body -------------------------------------------------------------------------------------------------------


def test_body_has_smpl_conventions():
    body = body_model()
    count = len(body.v_template)
    assert body.shapedirs.shape == (count, 3, NUM_BETAS)
    assert body.weights.shape == (count, 24)
    assert body.J_regressor.shape == (24, count)
    assert PARENTS == (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)
    np.testing.assert_allclose(body.weights.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(body.J_regressor.sum(1), 1, atol=1e-5)
    assert body.faces.min() == 0
    assert body.faces.max() == count - 1
    assert body.v_template[:, 1].min() == pytest.approx(0, abs=0.01)
    assert 1.6 < np.ptp(body.v_template[:, 1]) < 1.8
    joints = body.J_regressor @ body.v_template
    for name, x in zip(JOINTS, joints[:, 0], strict=True):  # the person's left is +x
        assert np.sign(np.round(x, 3)) == {"l": 1, "r": -1}.get(name[0] if "_" in name else "", 0)
    np.testing.assert_allclose(joints[list(MIRROR)], joints * [-1, 1, 1], atol=1e-5)
    assert (
        body.v_template[body.landmarks[0], 2] > body.v_template[body.landmarks[3], 2]
    )  # the nose is in front


def test_every_tube_is_closed_and_turned_outside():
    body = body_model()
    edges = Counter((int(f[i]), int(f[(i + 1) % 3])) for f in body.faces for i in range(3))
    assert all(edges[b, a] == n == 1 for (a, b), n in edges.items())  # each edge once in either direction
    for first, last in body.tubes:
        inside = (body.faces[:, 0] >= first) & (body.faces[:, 0] < last)
        a, b, c = (body.v_template[body.faces[inside, i]] for i in range(3))
        assert np.einsum("fi,fi->", a, np.cross(b, c)) > 0


def test_rest_pose_is_the_template():
    vertices, joints = body_model()(np.zeros((24, 3)), np.zeros(NUM_BETAS))
    np.testing.assert_allclose(vertices, body_model().v_template, atol=1e-6)
    np.testing.assert_allclose(joints, body_model().J_regressor @ vertices, atol=1e-6)


def literal_rotation(vector: np.ndarray) -> np.ndarray:
    """exp of the cross-product matrix, by its series."""
    x, y, z = vector
    generator = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    total = term = np.eye(3)
    for n in range(1, 60):
        term = term @ generator / n
        total = total + term
    return total


def test_rotations():
    rng = np.random.default_rng(0)
    vectors = np.concatenate([rng.normal(0, 1.5, (50, 3)), np.zeros((1, 3)), [[np.pi, 0, 0], [0, -1e-7, 0]]])
    matrices = rotation_matrices(vectors)
    np.testing.assert_allclose(matrices, [literal_rotation(v) for v in vectors], atol=1e-9)
    back = rotation_matrices(np.array([axis_angle(m) for m in matrices]))
    np.testing.assert_allclose(back, matrices, atol=1e-6)


def test_skinning_against_a_literal_reference():
    rng = np.random.default_rng(1)
    body, pose, betas = body_model(), rng.normal(0, 0.5, (24, 3)), rng.normal(0, 1, NUM_BETAS)
    vertices, joints = body(pose, betas)
    rest = body.v_template + np.einsum("vcb,b->vc", body.shapedirs, betas)
    rest_joints = body.J_regressor @ rest
    world = []
    for joint, parent in enumerate(PARENTS):
        local = np.eye(4)
        local[:3, :3] = literal_rotation(pose[joint])
        local[:3, 3] = rest_joints[joint] - (rest_joints[parent] if joint else 0)
        world.append(local if joint == 0 else world[parent] @ local)
    np.testing.assert_allclose(joints, [w[:3, 3] for w in world], atol=1e-5)
    for v in rng.integers(len(rest), size=60):
        expected = np.zeros(3)
        for joint in range(24):
            unposed = np.append(rest[v] - rest_joints[joint], 1)
            expected += body.weights[v, joint] * (world[joint] @ unposed)[:3]
        np.testing.assert_allclose(vertices[v], expected, atol=1e-5)


def test_poses_keep_their_limits_and_mirror():
    rng = np.random.default_rng(2)
    for activity in ACTIVITIES:
        for _ in range(20):
            pose = sample_pose(rng, activity)
            assert (np.linalg.norm(pose.axis_angle, axis=1) <= LIMITS + 1e-9).all()
            joints = body_model()(pose.axis_angle, np.zeros(NUM_BETAS))[1]
            mirrored = body_model()(pose.mirrored().axis_angle, np.zeros(NUM_BETAS))[1]
            np.testing.assert_allclose(mirrored[list(MIRROR)], joints * [-1, 1, 1], atol=1e-5)
            assert joints[15, 1] > joints[0, 1] - 0.2  # nobody stands on the head


# Drawing ----------------------------------------------------------------------------------------------------


def test_keypoints_are_the_projected_joints():
    for drawn in drawings():
        view = drawn.camera
        face = drawn.vertices[body_model().landmarks]
        for point, (x, y) in zip(
            [*face, *drawn.joints3d[list(KEYPOINT_JOINTS)]], drawn.keypoints, strict=True
        ):
            u, v, w = view.intrinsics @ (view.rotation @ point + view.translation)
            assert (u / w, v / w) == pytest.approx((x, y), abs=0.02)


def test_vertices_are_the_posed_body():
    for drawn in drawings()[:10]:
        vertices, joints = body_model()(drawn.pose, drawn.betas)
        np.testing.assert_allclose(drawn.vertices, vertices + drawn.translation, atol=1e-4)
        np.testing.assert_allclose(drawn.joints3d, joints + drawn.translation, atol=1e-4)
        assert drawn.vertices.dtype == np.float32
        assert drawn.vertices[:, 1].min() == pytest.approx(0, abs=1e-5)  # on the ground


def test_left_and_right_seen_from_the_front_and_from_behind():
    """The left shoulder is on the right of the image when the person faces the camera, else on the left."""
    seen = Counter()
    for drawn in drawings():
        view = [name for name in ("Front", "Back") if drawn.attributes[ATTRIBUTES.index(name)]]
        if view and drawn.activity in ("walking", "standing"):
            to_the_right = drawn.keypoints[5, 0] > drawn.keypoints[6, 0]
            assert to_the_right == (view == ["Front"])
            seen[view[0]] += 1
    assert min(seen["Front"], seen["Back"]) >= 3


def test_a_face_turned_away_is_hidden():
    hidden = 0
    for drawn in drawings():
        face = drawn.vertices[body_model().landmarks]
        depth = (face @ drawn.camera.rotation.T + drawn.camera.translation)[:, 2]
        left, right = sorted(drawn.keypoints[3:5, 0])
        if depth[0] > depth[3:].mean() + 0.05 and left < drawn.keypoints[0, 0] < right:  # behind the head
            assert drawn.visibility[0] < 2
            hidden += 1
    assert hidden >= 5


def test_visibility_matches_the_image_bounds():
    for drawn in drawings():
        height, width = drawn.image.shape[:2]
        x, y = drawn.keypoints.T
        inside = (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2)
        assert (drawn.visibility[inside] > 0).all()
        outside = (x < -2) | (x > width + 1) | (y < -2) | (y > height + 1)
        assert (drawn.visibility[outside] == 0).all()
        assert set(drawn.visibility.tolist()) <= {0, 1, 2}
        assert drawn.image.dtype == np.uint8
    assert 0.4 < np.mean([d.visibility == 2 for d in drawings()]) < 0.95


def test_sizes_are_those_of_surveillance_crops():
    heights, widths = np.array([d.image.shape[:2] for d in drawings()]).T
    assert heights.min() >= 130
    assert heights.max() <= 380
    assert heights.max() > 1.5 * heights.min()
    assert (widths >= 60).all()
    assert len({round(w / h, 1) for w, h in zip(widths, heights, strict=True)}) >= 3


def test_identity_persists_and_differs():
    assert identity(3, 5) == identity.__wrapped__(3, 5)
    assert identity(3, 5) != identity(3, 6)
    assert identity(3, 5) != identity(4, 5)
    one, two = identity(3, 4, alike=2), identity(3, 5, alike=2)
    assert (one.upper, one.lower, one.female, one.age) == (two.upper, two.lower, two.female, two.age)
    assert one.betas != two.betas


def test_captions_say_what_the_attributes_say():
    words = {  # attribute: what its caption must say (exactly then)
        "Backpack": r"\bbackpack\b", "ShoulderBag": r"\bshoulder bag\b", "HandBag": r"\bhand bag\b",
        "Hat": r"\b(cap|beanie|sun hat)\b", "Glasses": r"\b(glasses|sunglasses)\b", "boots": r"\bboots\b",
        "Skirt&Dress": r"\b(skirt|dress)\b", "Shorts": r"\bshorts\b", "Trousers": r"\b(trousers|jeans)\b",
        "LongCoat": r"\blong coat\b", "UpperLogo": r"\bprint\b", "UpperSplice": r"\btwo-tone\b",
        "LowerStripe": r"\bside stripes\b", "HoldObjectsInFront": r"\ba box\b",
        "AgeOver60": r"\b(elderly|old)\b",
        "AgeLess18": r"\b(boy|girl)\b", "Female": r"\b(woman|lady|girl)\b", "Back": r"\b(behind|away)\b",
        "Front": r"\b(facing the camera|from the front)\b", "Side": r"\b(from the side|in profile)\b",
    }  # fmt: skip
    captions = set()
    for i in range(400):
        rng = np.random.default_rng([11, i])
        person, pose = identity(11, i), sample_pose(rng)
        view = ("Front", "Side", "Back")[i % 3]
        facts = dict(zip(ATTRIBUTES, person.attributes(view, pose.holding), strict=True))
        caption = describe(person, pose.activity, view, rng)
        for name, pattern in words.items():
            assert bool(re.search(pattern, caption)) == facts[name], (name, caption)
        assert ("short-sleeved" in caption) <= facts["ShortSleeve"]
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  |None", caption), caption
        for group in ("AgeOver60 Age18-60 AgeLess18", "Front Side Back", "ShortSleeve LongSleeve",
                      "Trousers Shorts Skirt&Dress"):  # fmt: skip
            assert sum(facts[name] for name in group.split()) == 1
        captions.add(caption)
    assert len(captions) > 390


# Data sets --------------------------------------------------------------------------------------------------


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_workers_and_number_of_images_do_not_change_an_image(tmp_path):
    one = files(synthesize("luperson", tmp_path / "one", num_images=12, seed=5, num_cameras=3))
    two = files(synthesize("luperson", tmp_path / "two", num_images=12, seed=5, num_cameras=3, num_workers=2))
    more = files(synthesize("luperson", tmp_path / "more", num_images=15, seed=5, num_cameras=3))
    assert one == two
    pictures = [name for name in one if name.endswith((".jpg", ".npy"))]
    assert len(pictures) == 24
    assert all(more[name] == one[name] for name in pictures)
    other = files(synthesize("luperson", tmp_path / "other", num_images=12, seed=6, num_cameras=3))
    assert all(other[name] != one[name] for name in pictures)


def test_luperson_layout(tmp_path):
    root = synthesize("luperson", tmp_path / "lup", num_images=20, num_cameras=4)
    images = {str(p.relative_to(root / "LUPerson-data")) for p in (root / "LUPerson-data").rglob("*.jpg")}
    ranked = pickle.loads((root / "cfs_list.pkl").read_bytes())
    assert len(ranked) == 20
    assert set(ranked) == images
    assert all("/" in name for name in ranked)
    for name in ranked:
        height, width = cv2.imread(str(root / "LUPerson-data" / name)).shape[:2]
        record = np.load((root / "LUPerson-pose" / name).with_suffix(".npy"), allow_pickle=True)
        keypoints = record[0][0]["keypoints"]
        assert keypoints.shape == (17, 3)
        assert keypoints.dtype == np.float32
        assert ((keypoints[:, 2] >= 0) & (keypoints[:, 2] <= 1)).all()
        sure = keypoints[keypoints[:, 2] > 0.7]
        assert (sure[:, :2] > -0.1 * height).all()
        assert (sure[:, :2] < [width + 0.1 * height, 1.1 * height]).all()


def parsed(folder: Path, pattern: str) -> list[tuple[int, ...]]:
    rows = []
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(pattern, path.name)
        assert match, path.name
        rows.append(tuple(int(group) for group in match.groups()))
    return rows


def check_identities(train: list, query: list, gallery: list, *, disjoint: bool) -> None:
    """Rows start with (identity, camera)."""
    cameras = defaultdict(set)
    for person, place, *_ in query + gallery:
        cameras[person].add(place)
    matches = {(person, place) for person, place, *_ in gallery}
    for person, place, *_ in query:
        assert person > (0 if disjoint else -1)
        assert len(cameras[person]) >= 2
        assert any((person, other) in matches for other in cameras[person] - {place})
    assert not disjoint or not {r[0] for r in train} & {r[0] for r in query + gallery}
    assert min(Counter(r[0] for r in train).values()) >= 4


def test_market1501_layout(tmp_path):
    root = synthesize("market1501", tmp_path / "market", num_images=120, images_per_identity=8, num_cameras=4)
    pattern = r"(-1|\d{4})_c([1-6])s(\d)_(\d{6})_(\d{2})\.jpg"
    train, query, gallery = (
        parsed(root / f, pattern) for f in ("bounding_box_train", "query", "bounding_box_test")
    )
    assert len(train) + len(query) + len(gallery) == 120
    assert {r[0] for r in gallery} >= {0, -1}
    assert not {r[0] for r in train + query} & {0, -1}
    assert all(r[4] == 0 for r in query)
    check_identities(train, query, gallery, disjoint=True)
    for path in root.rglob("*.jpg"):
        assert cv2.imread(str(path)).shape == (128, 64, 3)


def test_msmt17_layouts(tmp_path):
    root = synthesize("msmt17", tmp_path / "msmt", num_images=80, images_per_identity=8, num_cameras=5)
    pattern = re.compile(
        r"(\d{4})/\1_(\d{3})_(\d{2})_\d{4}(?:morning|noon|afternoon)_\d{4}_\d(?:_ex)?\.jpg (\d+)"
    )
    splits = {}
    for split in ("train", "val", "query", "gallery"):
        splits[split] = []
        for line in (root / "MSMT17_V1" / f"list_{split}.txt").read_text().splitlines():
            match = pattern.fullmatch(line)
            assert match, line
            person, index, place, label = (int(group) for group in match.groups())
            assert person == label
            assert 1 <= place <= 15
            half = "train" if split in ("train", "val") else "test"
            assert (root / "MSMT17_V1" / half / line.split()[0]).is_file()
            splits[split].append((person, place, index))
    assert sum(map(len, splits.values())) == 80 == len(list(root.rglob("*.jpg")))
    assert splits["val"]
    check_identities(splits["train"] + splits["val"], splits["query"], splits["gallery"], disjoint=False)

    boxes = synthesize(
        "msmt17_boxes", tmp_path / "boxes", num_images=80, images_per_identity=8, num_cameras=5
    )
    pattern = r"(\d{4})_c(\d{1,2})_(\d{4})\.jpg"
    train, query, gallery = (
        parsed(boxes / f, pattern) for f in ("bounding_box_train", "query", "bounding_box_test")
    )
    assert sorted(train) == sorted(splits["train"] + splits["val"])
    assert sorted(query) == sorted(splits["query"])
    assert sorted(gallery) == sorted(splits["gallery"])


def _ensure(root: str) -> float:
    path = ensure("luperson", Path(root), num_images=6, num_cameras=2)
    return (path / "synthetic.json").stat().st_mtime_ns


def test_ensure_draws_once_for_many_processes(tmp_path):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        times = pool.map(_ensure, [str(tmp_path / "root")] * 4)
    assert len(set(times)) == 1
    assert _ensure(str(tmp_path / "root")) == times[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".root.lock", "root"]


def test_bad_requests(tmp_path):
    synthesize("luperson", tmp_path / "a", num_images=2, num_cameras=1)
    for call in (synthesize, ensure):
        with pytest.raises(HapError, match="is not empty"):
            call("luperson", tmp_path / "a", num_images=3, num_cameras=1)
    with pytest.raises(HapError, match="unknown data set 'cocoa'"):
        synthesize("cocoa", tmp_path / "b", num_images=2)
    with pytest.raises(HapError, match="no option 'cameras': choose from num_cameras"):
        synthesize("luperson", tmp_path / "b", num_images=2, cameras=1)
    with pytest.raises(HapError, match="at least 1 image"):
        synthesize("luperson", tmp_path / "b", num_images=0)
    with pytest.raises(HapError, match="at least 4 identities"):
        synthesize("market1501", tmp_path / "b", num_images=20)
    with pytest.raises(HapError, match="room for 1501"):
        synthesize("market1501", tmp_path / "b", num_images=200, num_cameras=7)
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == ["a"]


def test_a_failed_drawing_leaves_nothing(tmp_path, monkeypatch):
    def fails(out, num_images, seed, run):
        (out / "half.jpg").write_bytes(b"")
        raise OSError("disk full")

    monkeypatch.setitem(WRITERS, "fails", fails)
    with pytest.raises(HapError, match=r"cannot write .*x: disk full"):
        synthesize("fails", tmp_path / "x", num_images=1)
    assert [p.name for p in tmp_path.iterdir()] == [".x.lock"]
