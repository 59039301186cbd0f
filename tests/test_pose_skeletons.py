"""Joint sets: the published ones, and those of one's own."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from hap.errors import HapError
from hap.pose.skeletons import AIC, COCO, MPII, Skeleton, canonical, get_skeleton, of_labels, of_names

SAMPLES = os.environ.get("HAP_SAMPLES")


def test_pairs_of_the_published_sets():
    def pairs(skeleton):
        return {tuple(sorted(pair)) for pair in skeleton.flip_pairs}

    assert pairs(COCO) == {(1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)}
    assert pairs(MPII) == {(0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13)}
    assert pairs(AIC) == {(0, 3), (1, 4), (2, 5), (6, 9), (7, 10), (8, 11)}
    assert [len(s.joints) for s in (COCO, MPII, AIC)] == [17, 16, 14]


@pytest.mark.skipif(SAMPLES is None, reason="HAP_SAMPLES is not set")
@pytest.mark.parametrize(
    ("file", "skeleton"),
    [
        ("coco/annotations/person_keypoints_val2017.json", COCO),
        ("aic/annotations/aic_val.json", AIC),
    ],
)
def test_names_are_those_of_the_annotation_files(file, skeleton):
    category = json.loads((Path(SAMPLES) / file).read_text())["categories"][0]
    assert skeleton.mapped(category["keypoints"], file).tolist() == list(range(len(skeleton.joints)))
    drawn = {tuple(sorted((a - 1, b - 1))) for a, b in category["skeleton"]}
    assert {tuple(sorted(link)) for link in skeleton.links} == drawn


@pytest.mark.parametrize(
    ("name", "one_spelling"),
    [
        ("Right Shoulder", "right_shoulder"),
        ("r_shoulder", "right_shoulder"),
        ("shoulder_right", "right_shoulder"),
        ("RShoulder", "right_shoulder"),
        ("rightShoulder", "right_shoulder"),
        ("shoulder-R", "right_shoulder"),
        ("Head top", "head_top"),
        ("p22", "p_22"),
        ("左 肩", "左_肩"),
        ("relbow", "relbow"),
    ],
)
def test_spellings_of_a_name(name, one_spelling):
    assert canonical(name) == one_spelling


def test_pairs_are_found_by_name():
    for names in (
        ["left_x", "n", "right_x"],
        ["l_x", "n", "r_x"],
        ["x_left", "n", "x_right"],
        ["L-x", "n", "R-x"],
    ):
        assert of_names(names).flip_index.tolist() == [2, 1, 0]
        of_names(names).check_flip()


def test_a_side_without_a_partner_is_never_flipped():
    skeleton = of_names(["nose", "left_hand", "right_foot"])
    with pytest.raises(HapError, match=r"left_hand, right_foot have a side"):
        skeleton.check_flip()
    declared = of_names(["nose", "left_hand", "right_foot"], flip_pairs=[["left_hand", "right_foot"]])
    assert declared.flip_index.tolist() == [0, 2, 1]
    declared.check_flip()


def test_joints_without_sides_mirror_onto_themselves_if_told_so():
    names = [f"p{i}" for i in range(23)]
    with pytest.raises(HapError, match=r"p0, p1, p2, p3, \.\.\.: their names do not say .* \(\[\]: none\)"):
        of_names(names).check_flip()
    told = of_names(names, flip_pairs=[])
    told.check_flip()
    assert told.flip_index.tolist() == list(range(23))
    of_names(["p0"]).check_flip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flip_pairs": [[0, 1], [1, 2]]}, "no joint twice"),
        ({"flip_pairs": [[1, 1]]}, "no joint twice"),
        ({"flip_pairs": [[0, 3]]}, "no joint 3 of 3"),
        ({"flip_pairs": [["a", "z"]]}, "no joint z"),
        ({"sigmas": [0.1, 0.2]}, "2 values for 3 joints"),
        ({"sigmas": [[0.1, 0.2, 0.3]]}, "one list of 3 numbers"),
        ({"sigmas": [0.1, 0.2, 0]}, "above 0"),
        ({"joints": ["a", "b", "A"]}, "all different"),
        ({"joints": []}, "all different"),
        ({"links": [[0, 9]]}, "no joint 9"),
    ],
)
def test_a_wrong_joint_set_is_refused(arguments, message):
    with pytest.raises(HapError, match=message):
        of_names(**{"joints": ["a", "b", "c"], **arguments})


def test_joints_are_mapped_by_name():
    skeleton = of_names(["a", "left_b", "right_b"])
    assert skeleton.mapped(["Right B", "a", "l b"], "file").tolist() == [1, 2, 0]
    with pytest.raises(HapError, match=r"f.json: .* missing right_b; new c"):
        skeleton.mapped(["a", "left_b", "c"], "f.json")


def test_another_order_is_the_same_joint_set():
    index = np.random.default_rng(0).permutation(17).tolist()
    other = COCO.arranged(index)

    def names(skeleton, pairs):
        return {frozenset(skeleton.joints[i] for i in pair) for pair in pairs}

    assert other.joints == tuple(COCO.joints[i] for i in index)
    assert other.sigmas == tuple(COCO.sigmas[i] for i in index)
    assert names(other, other.flip_pairs) == names(COCO, COCO.flip_pairs)
    assert names(other, other.links) == names(COCO, COCO.links)
    assert {other.joints[i] for i in other.upper_body} == {COCO.joints[i] for i in COCO.upper_body}


@pytest.mark.parametrize("skeleton", [COCO, MPII, AIC, of_names(["a", "l_b", "r_b"], links=[["a", "l_b"]])])
def test_a_checkpoint_keeps_a_joint_set(skeleton: Skeleton):
    kept = of_labels(skeleton.labels())
    assert kept.joints == skeleton.joints
    assert kept.links == skeleton.links
    np.testing.assert_array_equal(kept.flip_index, skeleton.flip_index)


def test_a_joint_set_by_name_or_by_its_arguments():
    assert get_skeleton("mpii") is MPII
    assert get_skeleton({"joints": ["a", "b"], "sigmas": [0.1, 0.1]}).sigmas == (0.1, 0.1)
    with pytest.raises(HapError, match="coco, mpii, aic"):
        get_skeleton("cocoo")
    with pytest.raises(HapError, match="colour"):
        get_skeleton({"joints": ["a"], "colour": 1})
