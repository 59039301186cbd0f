"""The drawn people in the layouts of PA-100K, RAP and PETA: the files against the published ones' structure, the
labels against each other, the people and the pictures."""

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import loadmat

from hap.data.mat_file import read_mat
from hap.errors import HapError
from hap.synthetic import synthesize
from hap.synthetic.person import identity

# The columns of the published annotation.mat.
PA100K = [
    "Female", "AgeOver60", "Age18-60", "AgeLess18", "Front", "Side", "Back", "Hat", "Glasses",
    "HandBag", "ShoulderBag", "Backpack", "HoldObjectsInFront", "ShortSleeve", "LongSleeve",
    "UpperStride", "UpperLogo", "UpperPlaid", "UpperSplice", "LowerStripe", "LowerPattern", "LongCoat",
    "Trousers", "Shorts", "Skirt&Dress", "boots",
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


@pytest.mark.parametrize("dataset", ["pa100k"])
def test_processes_do_not_change_anything(root, tmp_path, dataset):
    assert files(drawn(root, dataset)) == files(
        synthesize(dataset, tmp_path / "two", num_images=N, seed=3, num_workers=2)
    )


@pytest.mark.parametrize("dataset", ["pa100k"])
def test_too_few_images_for_three_parts(tmp_path, dataset):
    with pytest.raises(HapError, match=r"4 images: from 10 to \d+ are needed"):
        synthesize(dataset, tmp_path / "few", num_images=4)


def one_of(labels: dict[str, np.ndarray], names: str) -> np.ndarray:
    """How many of the attributes each image has."""
    return np.sum([labels[name] for name in names.split()], axis=0)


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


def test_the_reader_of_annotations_reads_it(root):
    mat = read_mat(drawn(root, "pa100k") / "annotation.mat")
    assert mat["attributes"] == PA100K
    assert mat["val_images_name"] == [f"{i:06d}.jpg" for i in range(49, 55)]
    assert mat["test_label"].shape == (6, 26)


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
