"""The drawn people in the layouts of PA-100K, RAP and PETA: the files against the published ones' structure, the
labels against each other, the people and the pictures."""

import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import loadmat

from hap.data.attribute import read_pa100k, read_peta, read_rap
from hap.errors import HapError
from hap.synthetic import synthesize
from hap.synthetic.labels import UNTOLD, Shown
from hap.synthetic.labels import pa100k as pa100k_facts
from hap.synthetic.labels import peta as peta_facts
from hap.synthetic.labels import rap as rap_facts
from hap.synthetic.person import Person, identity
from hap.synthetic.pose import sample_pose
from hap.synthetic.render import render
from hap.synthetic.scene import camera

# The columns of the published files.
PA100K = [
    "Female", "AgeOver60", "Age18-60", "AgeLess18", "Front", "Side", "Back", "Hat", "Glasses",
    "HandBag", "ShoulderBag", "Backpack", "HoldObjectsInFront", "ShortSleeve", "LongSleeve",
    "UpperStride", "UpperLogo", "UpperPlaid", "UpperSplice", "LowerStripe", "LowerPattern", "LongCoat",
    "Trousers", "Shorts", "Skirt&Dress", "boots",
]  # fmt: skip
RAP = [
    "Female", "AgeLess16", "Age17-30", "Age31-45", "BodyFat", "BodyNormal", "BodyThin", "Customer",
    "Clerk", "hs-BaldHead", "hs-LongHair", "hs-BlackHair", "hs-Hat", "hs-Glasses", "hs-Muffler",
    "ub-Shirt", "ub-Sweater", "ub-Vest", "ub-TShirt", "ub-Cotton", "ub-Jacket", "ub-SuitUp", "ub-Tight",
    "ub-ShortSleeve", "lb-LongTrousers", "lb-Skirt", "lb-ShortSkirt", "lb-Dress", "lb-Jeans",
    "lb-TightTrousers", "shoes-Leather", "shoes-Sport", "shoes-Boots", "shoes-Cloth", "shoes-Casual",
    "attach-Backpack", "attach-SingleShoulderBag", "attach-HandBag", "attach-Box", "attach-PlasticBag",
    "attach-PaperBag", "attach-HandTrunk", "attach-Other", "action-Calling", "action-Talking",
    "action-Gathering", "action-Holding", "action-Pusing", "action-Pulling", "action-CarrybyArm",
    "action-CarrybyHand", "faceFront", "faceBack", "faceLeft", "faceRight", "occlusionLeft",
    "occlusionRight", "occlusionUp", "occlusionDown", "occlusion-Environment", "occlusion-Attachment",
    "occlusion-Person", "occlusion-Other", "up-Black", "up-White", "up-Gray", "up-Red", "up-Green",
    "up-Blue", "up-Yellow", "up-Brown", "up-Purple", "up-Pink", "up-Orange", "up-Mixture", "low-Black",
    "low-White", "low-Gray", "low-Red", "low-Green", "low-Blue", "low-Yellow", "low-Mixture",
    "shoes-Black", "shoes-White", "shoes-Gray", "shoes-Red", "shoes-Green", "shoes-Blue",
    "shoes-Yellow", "shoes-Brown", "shoes-Mixture",
]  # fmt: skip
PETA = [
    "personalLess30", "personalLess45", "personalLess60", "personalLarger60", "carryingBackpack",
    "carryingOther", "lowerBodyCasual", "upperBodyCasual", "lowerBodyFormal", "upperBodyFormal",
    "accessoryHat", "upperBodyJacket", "lowerBodyJeans", "footwearLeatherShoes", "upperBodyLogo",
    "hairLong", "personalMale", "carryingMessengerBag", "accessoryMuffler", "accessoryNothing",
    "carryingNothing", "upperBodyPlaid", "carryingPlasticBags", "footwearSandals", "footwearShoes",
    "lowerBodyShorts", "upperBodyShortSleeve", "lowerBodyShortSkirt", "footwearSneaker",
    "upperBodyThinStripes", "accessorySunglasses", "lowerBodyTrousers", "upperBodyTshirt",
    "upperBodyOther", "upperBodyVNeck", "upperBodyBlack", "upperBodyBlue", "upperBodyBrown",
    "upperBodyGreen", "upperBodyGrey", "upperBodyOrange", "upperBodyPink", "upperBodyPurple",
    "upperBodyRed", "upperBodyWhite", "upperBodyYellow", "lowerBodyBlack", "lowerBodyBlue",
    "lowerBodyBrown", "lowerBodyGreen", "lowerBodyGrey", "lowerBodyOrange", "lowerBodyPink",
    "lowerBodyPurple", "lowerBodyRed", "lowerBodyWhite", "lowerBodyYellow", "hairBlack", "hairBlue",
    "hairBrown", "hairGreen", "hairGrey", "hairOrange", "hairPink", "hairPurple", "hairRed",
    "hairWhite", "hairYellow", "footwearBlack", "footwearBlue", "footwearBrown", "footwearGreen",
    "footwearGrey", "footwearOrange", "footwearPink", "footwearPurple", "footwearRed", "footwearWhite",
    "footwearYellow", "accessoryHeadphone", "personalLess15", "carryingBabyBuggy", "hairBald",
    "footwearBoots", "lowerBodyCapri", "carryingShoppingTro", "carryingUmbrella", "personalFemale",
    "carryingFolder", "accessoryHairBand", "lowerBodyHotPants", "accessoryKerchief",
    "lowerBodyLongSkirt", "upperBodyLongSleeve", "lowerBodyPlaid", "lowerBodyThinStripes",
    "carryingLuggageCase", "upperBodyNoSleeve", "hairShort", "footwearStocking", "upperBodySuit",
    "carryingSuitcase", "lowerBodySuits", "upperBodySweater", "upperBodyThickStripes",
]  # fmt: skip
N = 60


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("attributes")


@lru_cache
def drawn(root: Path, dataset: str) -> Path:
    return synthesize(dataset, root / dataset, num_images=N, seed=3)


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("dataset", ["pa100k", "rap", "peta"])
def test_processes_do_not_change_anything(root, tmp_path, dataset):
    assert files(drawn(root, dataset)) == files(
        synthesize(dataset, tmp_path / "two", num_images=N, seed=3, num_workers=2)
    )


@pytest.mark.parametrize("dataset", ["pa100k", "rap", "peta"])
def test_too_few_images_for_three_parts(tmp_path, dataset):
    with pytest.raises(HapError, match=r"num_images is 4: from 10 to \d+ images are needed"):
        synthesize(dataset, tmp_path / "few", num_images=4)


def one_of(labels: dict[str, np.ndarray], names: str) -> np.ndarray:
    """How many of the attributes each image has."""
    return np.sum([labels[name] for name in names.split()], axis=0)


def shown(person: Person, number: int) -> Shown:
    rng = np.random.default_rng([23, number])
    pose = sample_pose(rng, "walking")
    return Shown(person, pose, render(person, pose, camera(3, 0), rng, size=(80, 160), whole=True))


def someone(upper: str, lower: str) -> Person:
    people = (identity(0, i) for i in range(9000))
    return next(p for p in people if (p.upper.kind, p.lower.kind) == (upper, lower))


def test_what_is_drawn_alike_is_labelled_alike():
    skirt, coat = someone("t-shirt", "skirt"), someone("coat", "shorts")
    pairs = [[replace(skirt, lower=replace(skirt.lower, end=end)) for end in (0.46, 0.54)]]
    shorts = replace(coat.lower, end=0.55, colour="white", second="red")  # the coat ends at 0.45
    for pattern in ("plaid", "side stripe"):
        pairs.append(
            [replace(coat, inner=None, lower=replace(shorts, pattern=p)) for p in ("plain", pattern)]
        )
    for pair in pairs:
        for number in range(4):
            one, two = (shown(person, number) for person in pair)
            np.testing.assert_allclose(*(s.drawn.image.astype(int) for s in (one, two)), atol=12)
            for facts in (pa100k_facts, rap_facts, peta_facts):
                assert facts(one) == facts(two)


def test_a_skirt_is_short_where_the_knee_is_seen():
    skirt = someone("t-shirt", "skirt")
    for end, short in ((0.38, False), (0.44, False), (0.46, True), (0.62, True)):
        picture = shown(replace(skirt, lower=replace(skirt.lower, end=end)), 0)
        assert rap_facts(picture)["lb-ShortSkirt"] == short != rap_facts(picture)["lb-Skirt"]
        assert (
            peta_facts(picture)["lowerBodyShortSkirt"] == short != peta_facts(picture)["lowerBodyLongSkirt"]
        )


# PA-100K ----------------------------------------------------------------------------------------------------


def pa100k(root: Path) -> dict[str, np.ndarray]:
    mat = loadmat(drawn(root, "pa100k") / "annotation.mat")
    labels = np.concatenate([mat[f"{split}_label"] for split in ("train", "val", "test")])
    return dict(zip(PA100K, labels.T, strict=True))


def test_pa100k_is_nested_as_published(root):
    mat = loadmat(drawn(root, "pa100k") / "annotation.mat")
    assert [mat["attributes"][i][0][0] for i in range(26)] == PA100K
    first = 1
    for split, count in (("train", 48), ("val", 6), ("test", 6)):
        names, labels = mat[f"{split}_images_name"], mat[f"{split}_label"]
        assert (names.shape, names.dtype) == ((count, 1), object)
        assert (labels.shape, labels.dtype) == ((count, 26), np.uint8)
        assert [names[i][0][0] for i in range(count)] == [f"{first + i:06d}.jpg" for i in range(count)]
        first += count
    pictures = sorted(p.name for p in (drawn(root, "pa100k") / "data").iterdir())
    assert pictures == [f"{i:06d}.jpg" for i in range(1, N + 1)]
    for name in pictures:
        height, width = cv2.imread(str(drawn(root, "pa100k") / "data" / name)).shape[:2]
        assert 150 <= height <= 200
        assert 60 <= width <= 110


def test_the_readers_read_it(root):
    readers = {"pa100k": (read_pa100k, 54, PA100K), "rap": (read_rap, 48, RAP), "peta": (read_peta, 36, PETA)}
    for dataset, (read, count, attributes) in readers.items():
        splits = read(drawn(root, dataset), attributes="all")
        assert set(splits["train"].attributes) == set(attributes)
        assert len(splits["train"]) == count
        assert cv2.imdecode(np.frombuffer(splits["test"][0].encoded(), np.uint8), 1).shape[0] >= 120


def test_pa100k_labels_exclude_each_other_as_published(root):
    labels = pa100k(root)
    for group in ("AgeOver60 Age18-60 AgeLess18", "Front Side Back", "ShortSleeve LongSleeve"):
        assert (one_of(labels, group) == 1).all()
    assert (one_of(labels, "Trousers Shorts Skirt&Dress") <= 1).all()
    positives = np.sum(list(labels.values()), axis=0)
    assert positives.min() >= 3
    assert positives.max() <= 10
    assert sum(0 < label.mean() < 1 for label in labels.values()) >= 24  # learnable, even of a few


def test_pa100k_labels_are_true_of_the_person(root):
    labels = pa100k(root)
    for i in range(N):
        person = identity(3, i)
        has = {name for name in PA100K if labels[name][i]}
        assert ("Female" in has) == person.female
        assert ("Hat" in has) == (person.hat is not None)
        assert ("Backpack" in has) == (person.backpack is not None)
        assert ("boots" in has) == (person.shoes == "boots")
        assert ("LongCoat" in has) == (person.upper.kind == "coat")
        assert ("UpperPlaid" in has) == (person.upper.pattern == "plaid")
        assert not ("UpperLogo" in has and {"Back", "HoldObjectsInFront"} & has)  # seen in no picture
        assert not {"HandBag", "HoldObjectsInFront"} <= has
        assert not ("Back" in has and "Glasses" in has)


# RAP --------------------------------------------------------------------------------------------------------


def rap(root: Path) -> np.void:
    return loadmat(drawn(root, "rap") / "RAP_annotation" / "RAP_annotation.mat")["RAP_annotation"][0, 0]


def rap_labels(root: Path) -> dict[str, np.ndarray]:
    return dict(zip(RAP, rap(root)["label"].T, strict=True))


def test_rap_is_nested_as_published(root):
    mat = loadmat(drawn(root, "rap") / "RAP_annotation" / "RAP_annotation.mat")["RAP_annotation"]
    assert mat.shape == (1, 1)
    fields = "partion label attribute_chinese attribute_eng position imagesname attribute_exp identity reid_partion"
    assert mat.dtype.names == tuple(fields.split())
    mat = mat[0, 0]
    shapes = {name: (mat[name].shape, mat[name].dtype) for name in mat.dtype.names[:-1]}
    assert shapes == {
        "partion": ((5, 1), object), "label": ((N, 92), np.int32), "attribute_chinese": ((92, 1), object),
        "attribute_eng": ((92, 1), object), "position": ((N, 16), np.int32), "imagesname": ((N, 1), object),
        "attribute_exp": ((51, 1), object), "identity": ((N, 1), np.int16),
    }  # fmt: skip
    assert [mat["attribute_eng"][i][0][0] for i in range(92)] == RAP
    assert mat["reid_partion"].dtype.names == ("train_identity", "test_identity")
    orders = []
    for k in range(5):
        part = mat["partion"][k][0][0][0]
        train, test = part["train_index"], part["test_index"]
        assert (train.shape, test.shape, train.dtype) == ((1, 48), (1, 12), np.uint16)
        orders.append([*train[0].tolist(), *test[0].tolist()])
        assert sorted(orders[-1]) == list(range(1, N + 1)) != orders[-1]
    assert len({tuple(order) for order in orders}) == 5


def test_rap_names_its_pictures(root):
    names = [mat_name[0][0] for mat_name in rap(root)["imagesname"]]
    pattern = r"CAM(\d\d)_(\d{4}-\d\d-\d\d)_\d{14}-\d{14}_tarid\d+_frame\d+_line1\.png"
    matches = [re.fullmatch(pattern, name) for name in names]
    assert all(matches)
    assert len({match[1] for match in matches}) == 23
    assert sorted(names) == sorted(p.name for p in (drawn(root, "rap") / "RAP_dataset").iterdir())


def test_rap_labels_exclude_each_other_as_published(root):
    labels = rap_labels(root)
    for group in ("AgeLess16 Age17-30 Age31-45", "faceFront faceBack faceLeft faceRight"):
        assert (one_of(labels, group) == 1).all()
    for group in ("BodyFat BodyNormal BodyThin", "Customer Clerk"):
        assert (one_of(labels, group) <= 1).all()
    for start, end in ((63, 75), (75, 83), (83, 92)):
        assert (one_of(labels, " ".join(RAP[start:end])) <= 1).all()
    assert set(np.unique(labels["Female"])) == {0, 1, 2}
    assert 0 < (labels["Female"] == 2).mean() < 0.1
    assert all(set(np.unique(label)) <= {0, 1} for name, label in labels.items() if name != "Female")
    assert (labels["faceBack"][labels["Female"] == 2] == 1).all()
    assert not (labels["attach-Box"] & labels["action-CarrybyHand"]).any()
    positives = rap(root)["label"][:, :51].clip(0, 1).sum(1)
    assert positives.min() >= 2
    assert positives.max() <= 16


def test_what_cannot_be_told_is_zero_for_everybody(root, tmp_path):
    many = synthesize("rap", tmp_path / "rap", num_images=300)
    label = loadmat(many / "RAP_annotation" / "RAP_annotation.mat")["RAP_annotation"][0, 0]["label"]
    constant = {name for name, column in zip(RAP[:63], label.T, strict=False) if not column.any()}
    assert constant == {name for name in RAP[:63] if name in UNTOLD}
    many = synthesize("peta", tmp_path / "peta", num_images=300)
    label = loadmat(many / "PETA.mat")["peta"][0, 0]["data"][:, 4:]
    evaluated = {name for name, column in zip(PETA[:35], label.T, strict=False) if not column.any()}
    assert evaluated == {name for name in PETA[:35] if name in UNTOLD}
    assert not label[:, [i for i, name in enumerate(PETA) if name in UNTOLD]].any()


def test_rap_people_are_in_several_images(root):
    numbers = rap(root)["identity"][:, 0]
    known, counts = np.unique(numbers[numbers > 0], return_counts=True)
    assert known.tolist() == list(range(1, len(known) + 1))
    assert counts.min() >= 2
    assert set(numbers) == {-1, *known}
    labels = rap_labels(root)
    for number in known:  # what does not depend on the view stays
        for name in ("hs-Hat", "attach-Backpack", "lb-Jeans", "up-Blue", "Age17-30", "BodyThin"):
            assert len(set(labels[name][numbers == number])) == 1
    shared = 0
    for k in range(5):
        part = rap(root)["partion"][k][0][0][0]
        train, test = (set(numbers[part[f"{split}_index"][0] - 1]) for split in ("train", "test"))
        shared += len(train & test - {-1})
    assert shared > 0


def test_rap_colours_and_boxes_are_those_of_the_picture(root):
    labels, mat = rap_labels(root), rap(root)
    right = []
    for i in range(N):
        image = cv2.imread(str(drawn(root, "rap") / "RAP_dataset" / mat["imagesname"][i][0][0]))
        boxes = mat["position"][i].reshape(4, 4)
        assert (boxes[:, 2:] > 0).all()
        assert (boxes[:, :2] >= -1).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= [image.shape[1] + 1, image.shape[0] + 1]).all()
        x, y, w, h = boxes[2]
        middle = image[y : y + h, x + w // 3 : x + 2 * w // 3].reshape(-1, 3)
        if not (labels["attach-Backpack"] | labels["attach-Box"])[i]:
            for channel, name in enumerate(("up-Blue", "up-Green", "up-Red")):
                if labels[name][i]:
                    right.append(np.median(middle, 0).argmax() == channel)
    assert len(right) >= 6
    assert np.mean(right) >= 0.8


def test_the_same_facts_in_the_words_of_rap(root):
    labels = rap_labels(root)
    for i in range(N):
        person = identity(3, person_of(i))
        has = {name for name in RAP if labels[name][i] == 1}
        assert ("hs-Hat" in has) == (person.hat is not None)
        assert ("AgeLess16" in has) == (person.age == "child")
        assert ("lb-Dress" in has) == (person.upper.kind == "dress")
        assert ("shoes-Sport" in has) == (person.shoes == "sneakers")
        assert ("attach-SingleShoulderBag" in has) == (person.shoulder_bag is not None)
        assert ("Female" in has) == (person.female and labels["Female"][i] != 2)
        assert "up-Mixture" not in has or person.upper.pattern in ("stripes", "plaid", "splice")
        assert not {"lb-Jeans", "lb-LongTrousers"} <= has


# PETA -------------------------------------------------------------------------------------------------------


def person_of(image: int) -> int:
    """Of eight images, three are of the first person, two of the second."""
    return image // 8 * 5 + (0, 0, 0, 1, 1, 2, 3, 4)[image % 8]


def test_peta_is_nested_as_published(root):
    mat = loadmat(drawn(root, "peta") / "PETA.mat")["peta"]
    assert mat.shape == (1, 1)
    assert mat.dtype.names == ("data", "attribute", "selected_attribute", "partion_attribute")
    mat = mat[0, 0]
    assert (mat["data"].shape, mat["data"].dtype) == ((N, 109), np.uint16)
    assert mat["attribute"].shape == (105, 1)
    assert [mat["attribute"][i][0][0] for i in range(105)] == PETA
    assert (mat["selected_attribute"].shape, mat["selected_attribute"].dtype) == ((1, 35), np.uint8)
    assert mat["selected_attribute"][0].tolist() == list(range(5, 40))
    number, who, source = mat["data"][:, :3].T
    assert number.tolist() == list(range(1, N + 1))
    assert who.tolist() == [person_of(i) + 1 for i in range(N)]
    assert set(source) == set(range(1, 11))
    assert mat["partion_attribute"].shape == (5, 1)
    for k in range(5):
        part = mat["partion_attribute"][k][0][0][0]
        assert part.dtype.names == ("train", "val", "test")
        assert [(p.shape, p.dtype) for p in part] == [((n, 1), np.uint16) for n in (30, 6, 24)]
        order = np.concatenate(list(part))[:, 0].tolist()
        assert sorted(order) == list(range(1, N + 1)) != order
        assert set(who[part["train"][:, 0] - 1]) & set(who[part["test"][:, 0] - 1])
    pictures = sorted(p.name for p in (drawn(root, "peta") / "images").iterdir())
    assert pictures == [f"{i:05d}.png" for i in range(1, N + 1)]


def test_peta_labels_are_true_of_each_other_and_of_the_person(root):
    data = loadmat(drawn(root, "peta") / "PETA.mat")["peta"][0, 0]["data"][:, 4:]
    labels = dict(zip(PETA, data.T, strict=True))
    for group in (
        "personalLess15 personalLess30 personalLess45 personalLess60 personalLarger60", "personalMale personalFemale",
        "upperBodyShortSleeve upperBodyLongSleeve", "upperBodyCasual upperBodyFormal",
        "lowerBodyCasual lowerBodyFormal",
    ):  # fmt: skip
        assert (one_of(labels, group) == 1).all()
    carried = "carryingBackpack carryingOther carryingMessengerBag"
    assert ((one_of(labels, carried) == 0) == labels["carryingNothing"]).all()
    assert (one_of(labels, "lowerBodyJeans lowerBodyTrousers lowerBodyShorts lowerBodyShortSkirt") <= 1).all()
    assert set(np.unique(data)) == {0, 1}
    for i in range(N):
        person = identity(3, person_of(i))
        has = {name for name in PETA if labels[name][i]}
        assert ("personalMale" in has) == (not person.female)
        assert ("accessoryHat" in has) == (person.hat is not None)
        assert ("upperBodyPlaid" in has) == (person.upper.pattern == "plaid")
        assert ("lowerBodyJeans" in has) == (person.lower.kind == "jeans")
        assert ("footwearBoots" in has) == (person.shoes == "boots")
        assert f"footwear{person.shoes_colour.capitalize()}" in has
        assert len([name for name in has if re.fullmatch("hair[A-Z].*", name)]) >= 1
