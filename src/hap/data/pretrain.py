"""Pre-training: images of people with 17 body points each, as LUPerson comes, or packed by `hap pack`.

Official layout, any subset of it, folders may be nested:

    LUPerson-data/xxx.jpg    4,180,243 images (Fu et al., CVPR 2021; from its authors, under their agreement)
    LUPerson-pose/xxx.npy    a pickled object array; [0][0]["keypoints"] is (17, 3): x, y in pixels, score
    cfs_list.pkl             the image names, best first (Luo et al., 2021; with the poses from HAP's authors)

Instead of LUPerson-pose/ there may be one file, LUPerson-pose.npy (see `write_poses`). Instead of the image
folder there may be tar archives, or data.mdb of an LMDB, with images and .npy files inside. A folder made by
`hap pack` gives the same records in the same order.
"""

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hap.data import safe_pickle
from hap.data.base import Record, Splits
from hap.data.decoding import Encoded, image_size
from hap.data.files import IMAGE_SUFFIXES, is_hidden, relative
from hap.data.shards import Shards, first_entries, is_packed, read_shards
from hap.data.stores import FolderStore, LmdbStore, Store, TarStore, map_array
from hap.data.transforms import inside
from hap.errors import BadSample, HapError, Unwanted, printable

log = logging.getLogger(__name__)

IMAGES, POSES, LIST = "LUPerson-data", "LUPerson-pose", "cfs_list.pkl"
MISSING = np.array([-1, -1, 0], np.float32)  # outside every image
SOURCE = "images: LUPerson's authors, by agreement; poses and cfs_list.pkl: HAP's authors"


def read_luperson(
    root: Path, cfs_ratio: float = 1.0, num_val: int = 1000, split_seed: int = 0, require_pose: bool = True
) -> Splits:
    """The images of the list, or of the sorted folder, as "train" and a held-out "val".

    Args:
        root: a folder in the official layout, or made by `hap pack`.
        cfs_ratio: below 1 the first share of cfs_list.pkl, above 1 so many first entries, 1 everything. HAP
            takes 0.5. Entries whose image or pose is not there are left out, not replaced by later ones.
        num_val: images drawn for "val", at most 5 % of all.
        split_seed: of that draw.
        require_pose: leave out images without a pose; False keeps them with all 17 points missing.

    A look at some poses warns where they do not fit their images.

    Raises HapError if nothing is left, or a file that is needed is missing.
    """
    if is_packed(root):
        records: LuPerson | Shards = read_shards(root, cfs_ratio)
    else:
        records = open_luperson(root, cfs_ratio, require_pose)
    if not len(records):
        raise HapError(f"{root} has no image that can be used ({SOURCE})")
    look_at_points(root, records)
    count = min(num_val, max(1, len(records) // 20))
    held_out = np.zeros(len(records), bool)
    held_out[np.random.default_rng(split_seed).choice(len(records), count, replace=False)] = True
    parts = {"train": ~held_out, "val": held_out}
    return {split: _Part(records, np.flatnonzero(part)) for split, part in parts.items()}


class _Part(Sequence[Record]):
    def __init__(self, records: "LuPerson | Shards", indices: np.ndarray):
        self.records, self.indices = records, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.records[self.indices[index]]

    @property
    def names(self) -> Iterator[str]:
        chosen = np.zeros(len(self.records), bool)
        chosen[self.indices] = True
        return itertools.compress(self.records.names, chosen.tolist())


class Names(Sequence[str]):
    """File names in one block of bytes. Millions of strings would cost each forked worker a copy of their
    memory, page by page, because reading a Python object writes its reference count."""

    def __init__(self, names: Iterable[str]):
        encoded = [os.fsencode(name) for name in names]
        self.ends = np.fromiter(itertools.accumulate(map(len, encoded)), np.int64, len(encoded))
        self.block = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        index = range(len(self))[index]
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.block[start : self.ends[index]].tobytes())

    def __iter__(self) -> Iterator[str]:
        block, ends = self.block.tobytes(), self.ends.tolist()
        return (os.fsdecode(block[a:b]) for a, b in itertools.pairwise([0, *ends]))


@dataclass(frozen=True, slots=True)
class Person(Encoded):
    """One image; `row` is its pose's place in `source.poses`, -1 for none."""

    name: str
    row: int
    source: "LuPerson" = field(repr=False)

    def encoded(self) -> bytes:
        return self.source.images.read(self.name)

    def annotations(self) -> dict[str, Any]:
        """`keypoints`: (17, 3) float32, x and y in pixels of the image, score; (-1, -1, 0) where missing."""
        if self.row < 0:
            return {"keypoints": np.tile(MISSING, (17, 1))}
        points = self.source.poses.read(_stem(self.name), self.row)
        if points is None:
            if self.source.require_pose:
                raise Unwanted("its pose file says that nobody was found")
            return {"keypoints": np.tile(MISSING, (17, 1))}
        if points.shape != (17, 3):
            raise BadSample(f"its pose has shape {points.shape}, not (17, 3)")
        if not np.isfinite(points).all():
            raise BadSample("its pose holds values that are not finite")
        return {"keypoints": points}


@dataclass(frozen=True, eq=False)
class LuPerson(Sequence[Person]):
    """The records of an unpacked data set, made when asked for.

    `positions` (N,) are their places in the list of `listed` names, ascending; `ranked` says that it is
    cfs_list.pkl, not the sorted folder. `absent`, `without_pose` and `repeated` are entries that were left out.
    """

    images: Store
    poses: "PoseFiles | PoseTable"
    names: Names
    rows: np.ndarray
    positions: np.ndarray
    listed: int
    ranked: bool
    absent: Names
    without_pose: Names
    repeated: Names
    require_pose: bool

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        return Person(self.names[index], int(self.rows[index]), self)


class PoseFiles:
    """One .npy per image, in the official form or as a plain (17, 3) array."""

    def __init__(self, store: Store):
        self.store = store

    def stems(self) -> list[str]:
        return [_stem(name) for name in self.store.names(".npy")]

    def read(self, stem: str, row: int) -> np.ndarray | None:
        """The points of the first person in the file, float32; None where the file says that there is nobody."""
        try:
            pose: Any = safe_pickle.load_npy(self.store.read(f"{stem}.npy"))
            if pose.dtype.hasobject:
                for key in (0, 0, "keypoints"):
                    if _is_nothing(pose):
                        return None
                    pose = pose[key]
            if _is_nothing(pose):
                return None
            if not isinstance(pose, np.ndarray):
                pose = [[float(value) for value in point] for _, point in zip(range(18), pose, strict=False)]
            return np.array(pose, np.float32)
        except HapError as error:
            raise BadSample(f"its pose: {error}") from None
        except (LookupError, TypeError, ValueError, OverflowError):
            raise BadSample('its pose file has no [0][0]["keypoints"] of numbers') from None


def _is_nothing(value: Any) -> bool:
    """None, or an empty list or array: what pose tools write where they find no one."""
    return value is None or (np.size(value) if isinstance(value, np.ndarray) else len(value)) == 0


class PoseTable:
    """Poses in one file, see `write_poses`."""

    def __init__(self, path: Path):
        self.path = path
        columns: Any = self.table.dtype.fields or {}
        if (
            not {"name", "keypoints"} <= set(columns)
            or columns["name"][0].kind != "S"
            or self.table.ndim != 1
        ):
            raise HapError(f"{path} has no columns name and keypoints: write it with write_poses")

    @cached_property
    def table(self) -> np.ndarray:
        return map_array(self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        return PoseTable, (self.path,)

    def stems(self) -> list[str]:
        stems = [os.fsdecode(name) for name in self.table["name"]]
        return [(relative(stem) or stem) if "./" in stem or "//" in stem else stem for stem in stems]

    def read(self, stem: str, row: int) -> np.ndarray:
        return np.array(self.table["keypoints"][row], np.float32)


def write_poses(path: Path, names: Sequence[str], keypoints: np.ndarray) -> None:
    """Write all poses as one file, LUPerson-pose.npy beside the image folder.

    Args:
        names: of the images, relative to their folder.
        keypoints: (N, 17, 3), x and y in pixels of the image, score; COCO's order.
    """
    stems = np.array([os.fsencode(_stem(name)) for name in names])
    table = np.zeros(len(stems), [("name", stems.dtype), ("keypoints", np.float32, (17, 3))])
    table["name"], table["keypoints"] = stems, keypoints
    np.save(path, table)


def open_luperson(root: Path, cfs_ratio: float = 1.0, require_pose: bool = True) -> LuPerson:
    """The records of an unpacked data set in the order of its list. Raises HapError if a part is missing."""
    images, poses = _stores(root)
    log.info("listing %s", root)
    present = images.names(*IMAGE_SUFFIXES)
    have = set(present)
    ranked = (root / LIST).is_file()
    listed = _cfs_list(root / LIST) if ranked else present
    used = listed[: first_entries(len(listed), cfs_ratio, ranked, root)]
    used = [name if name in have else relative(name) or name for name in used]  # "./a.jpg" is "a.jpg"

    stems = poses.stems()
    row_of = {stem: row for row, stem in enumerate(stems)}
    if len(row_of) < len(stems):
        log.warning("%s: %d poses are of images that have a later one", root, len(stems) - len(row_of))
    if require_pose and not row_of:
        raise HapError(
            f"{root} has no poses: neither {POSES}/ nor {POSES}.npy ({SOURCE}). "
            "require_pose=false trains without them; masks then cannot follow the body"
        )
    rows = np.fromiter((row_of.get(_stem(name), -1) for name in used), np.int64, len(used))
    there = np.fromiter((name in have for name in used), bool, len(used))
    first = _first_of_each(used)
    kept = there & first & (rows >= 0) if require_pose else there & first

    def chosen(mask: np.ndarray) -> Names:
        return Names(used[i] for i in np.flatnonzero(mask))

    absent, without_pose, repeated = chosen(~there), chosen(there & first & ~kept), chosen(there & ~first)
    for names, what in (
        (absent, f"names in {LIST} have no image"),
        (without_pose, "images have no pose"),
        (repeated, f"entries of {LIST} name an image again"),
    ):
        if names:
            message = "%d of %d %s and are left out, first %s"
            log.warning(message, len(names), len(used), what, printable(names[0]))
    return LuPerson(
        *(images, poses, chosen(kept), rows[kept], np.flatnonzero(kept), len(listed), ranked),
        *(absent, without_pose, repeated, require_pose),
    )


def _first_of_each(names: Sequence[str]) -> np.ndarray:
    """Which names are there for the first time, bool (N,)."""
    seen: set[str] = set()
    first = np.ones(len(names), bool)
    if len(set(names)) < len(names):
        for index, name in enumerate(names):
            first[index] = name not in seen
            seen.add(name)
    return first


def look_at_points(root: Path, records: Sequence[Any], count: int = 256) -> None:
    """Warn if the points of evenly spread records do not fit their images: another unit, or another picture's."""
    found, within, cornered, unscored = [], 0, 0, 0
    for index in np.unique(np.linspace(0, len(records) - 1, count).astype(int)):
        try:
            points = records[index].annotations()["keypoints"]
            size = image_size(records[index].encoded())
        except (BadSample, OSError):
            continue
        there, stated = inside(points, *size), points[:, 2] > 0
        found.extend(points[stated, :2])
        within += int((there & stated).sum())
        cornered += int(((np.abs(points[:, :2]) <= 2).all(axis=1) & stated).sum())
        unscored += int((there & ~stated).sum())
    total = len(found)
    shares = cornered >= 0.9 * total
    if (within > total / 2 and not shares) or not (total or unscored):
        return
    if total:
        seen = f"of {total:,} body points {within:,} lie in their image"
        seen += f"; they go from {np.min(found):.3g} to {np.max(found):.3g}"
        cause = "as if shares of its size" if shares else "as if of another picture, or y before x"
    else:
        seen, cause = f"{unscored:,} body points lie in their image", "but all of them have score 0"
    log.warning(
        "%s: %s, %s. Points are x, y in pixels of the stored image file, and a score above 0; "
        "as they are, the masks do not follow the body",
        *(root, seen, cause),
    )


def _stores(root: Path) -> tuple[Store, PoseFiles | PoseTable]:
    images: Store
    if not root.exists():
        raise HapError(f"{root} not found ({SOURCE})")
    if (root / IMAGES).is_dir():
        images = FolderStore(root / IMAGES)
    elif (root / "data.mdb").is_file():
        images = LmdbStore(root)
    elif archives := [root] if root.suffix == ".tar" else _archives(root):
        images = TarStore(archives)
    else:
        raise HapError(f"{root} has neither {IMAGES}/ nor *.tar nor data.mdb ({SOURCE})")
    if (root / f"{POSES}.npy").is_file():
        return images, PoseTable(root / f"{POSES}.npy")
    return images, PoseFiles(FolderStore(root / POSES) if (root / POSES).is_dir() else images)


def _archives(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("*.tar") if path.is_file() and not is_hidden(path.name))


def _cfs_list(path: Path) -> list[str]:
    listed = safe_pickle.load(path)
    if not isinstance(listed, list | tuple) or not all(isinstance(name, str) for name in listed):
        raise HapError(f"{path} is not a pickled list of image names")
    try:
        os.fsencode("".join(listed))
    except UnicodeEncodeError as error:
        raise HapError(f"{path} holds a name that no file can have: {error}") from None
    return list(listed)


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]
