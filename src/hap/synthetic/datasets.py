"""Writes synthetic people in the on-disk layouts of the real data sets, so that their readers read them.

An image depends on (seed, its number) alone: not on the number of workers or on the order in which it is
drawn. A data set is one function in WRITERS: it lays out the jobs, hands them to `run` (which draws them, in
processes if asked) and writes the lists that the layout wants."""

import inspect
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from filelock import FileLock

from hap.errors import HapError
from hap.processes import end_with_parent, held_back
from hap.progress import progress
from hap.synthetic.attributes import pa100k, peta, rap
from hap.synthetic.person import identity, pick
from hap.synthetic.pose import sample_pose
from hap.synthetic.pose2d import aic, coco, mpii, pose_multi
from hap.synthetic.pose3d import bodies3d, coco3d, h36m, mpii3d, muco, pose3d_multi, pw3d
from hap.synthetic.render import Rendering, render
from hap.synthetic.scene import camera
from hap.synthetic.text import cuhk_pedes, described, icfg_pedes, rstpreid
from hap.synthetic.writing import Run, save_image

DRAWING = 1  # raised when the same seed gives other pictures
MARKER = "synthetic.json"  # what a folder holds, beside the data


def synthesize(
    dataset: str, out: Path, *, num_images: int, seed: int = 0, num_workers: int = 0, **options: Any
) -> Path:
    """Draws `num_images` images and writes them to the folder `out` in the layout of `dataset` (a key of
    WRITERS).

    `num_workers` processes draw (0: this one); `options` are the keyword arguments of the writer. The folder
    appears complete or not at all. Raises HapError if `out` holds anything or cannot be written, and for what
    the writer refuses."""
    marker, out = _marker(dataset, num_images, seed, options), Path(out)
    with _writing(out):
        _write(marker, out, num_workers)
    return out


def ensure(
    dataset: str, root: Path, *, num_images: int, seed: int = 0, num_workers: int = 0, **options: Any
) -> Path:
    """`synthesize` on first use, nothing afterwards. Processes that come meanwhile wait for the first.

    Raises HapError if `root` holds anything else: other data, or people drawn with other settings."""
    marker, root = _marker(dataset, num_images, seed, options), Path(root)
    if not _same(root / MARKER, marker):
        with _writing(root):
            if not _same(root / MARKER, marker):  # another process may have drawn it meanwhile
                _write(marker, root, num_workers)
    return root


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """One process writes at a time. The system gives the lock back when a process is killed."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(out.parent / f".{out.name}.lock"):
            yield
    except OSError as error:
        raise HapError(f"cannot write {out}: {error}") from error


def _write(marker: dict[str, Any], out: Path, num_workers: int) -> None:
    """Draws into a sibling of `out` and renames it, so that `out` is never half written."""
    if out.is_dir() and any(out.iterdir()):
        raise HapError(
            f"{out} is not empty and does not hold what was asked for ({json.dumps(marker)}): "
            "delete it or name another folder"
        )
    for left in out.parent.iterdir():  # by a process that was killed
        if left.name.startswith(f".{out.name}.partial"):
            shutil.rmtree(left, ignore_errors=True)
    partial = (
        out.parent / f".{out.name}.partial-{os.getpid()}"
    )  # not one that its last processes may write to
    partial.mkdir()
    try:
        writer, run = WRITERS[marker["dataset"]], _runner(num_workers)
        writer(partial, marker["num_images"], marker["seed"], run, **marker["options"])
        (partial / MARKER).write_text(json.dumps(marker, indent=2) + "\n")
        if out.is_dir():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _marker(dataset: str, num_images: int, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """What the folder will say of itself; refuses what cannot be drawn."""
    if dataset not in WRITERS:
        raise HapError(f"unknown data set {dataset!r}: choose one of {', '.join(WRITERS)}")
    if num_images < 1:
        raise HapError(f"num_images is {num_images}: at least 1 image is needed")
    parameters = inspect.signature(WRITERS[dataset]).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise HapError(f"{dataset} has no option {name!r}: choose from {', '.join(known) or 'none'}")
    return {
        "dataset": dataset,
        "num_images": num_images,
        "seed": seed,
        "options": options,
        "drawing": DRAWING,
    }


def _same(path: Path, marker: dict[str, Any]) -> bool:
    try:
        return json.loads(path.read_text()) == json.loads(json.dumps(marker))
    except (OSError, ValueError):  # not there, or damaged
        return False


def _runner(num_workers: int) -> Run:
    """Maps a function over jobs, in `num_workers` processes or in this one."""

    def run(function: Callable[[Any], Any], jobs: Sequence[Any]) -> list[Any]:
        def collect(results: Iterable[Any]) -> list[Any]:
            found = []
            with progress("drawing people", len(jobs)) as advance:
                for result in results:
                    found.append(result)
                    advance(1)
            return found

        if num_workers == 0:
            return collect(map(function, jobs))
        # Not forked: the threads of torch and OpenCV do not survive that.
        context = multiprocessing.get_context("spawn")
        chunk = max(1, min(8, len(jobs) // (4 * num_workers)))
        with ProcessPoolExecutor(num_workers, context, _prepare) as pool:
            try:
                with _only_for_us():
                    results = pool.map(function, jobs, chunksize=chunk)
                return collect(results)
            except BrokenProcessPool:
                raise HapError(
                    "a drawing process died, most likely because memory ran out: lower num_workers"
                ) from None
            finally:
                pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C the rest is not drawn

    return run


def _prepare() -> None:
    end_with_parent()
    cv2.setNumThreads(0)


@contextmanager
def _only_for_us() -> Iterator[None]:
    """Processes started in here do not import the program again (all of Lightning, ten seconds in each), and
    leave Ctrl-C to this one."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        with held_back(signal.SIGINT):
            yield
    finally:
        sys.modules["__main__"] = main


# LUPerson ---------------------------------------------------------------------------------------------------


def luperson(out: Path, num_images: int, seed: int, run: Run, *, num_cameras: int = 32) -> None:
    """LUPerson with the estimated poses of HAP: `LUPerson-data/CAM/NUMBER.jpg`,
    `LUPerson-pose/CAM/NUMBER.npy` (a pickled object array whose element [0][0] is a dict with `keypoints`
    [17, 3]: x, y, score in COCO's order) and `cfs_list.pkl`, the names under LUPerson-data, best first.
    Everyone is somebody else."""
    jobs = [(out, seed, number, number % num_cameras) for number in range(num_images)]
    for place in range(min(num_cameras, num_images)):
        for kind in ("LUPerson-data", "LUPerson-pose"):
            (out / kind / f"{place:03d}").mkdir(parents=True)
    results = run(_luperson_image, jobs)
    names = [name for _, name in sorted(results, reverse=True)]
    with open(out / "cfs_list.pkl", "wb") as file:
        pickle.dump(names, file)


def _luperson_image(job: tuple[Path, int, int, int]) -> tuple[float, str]:
    """Draws one image; returns how good it is and its name."""
    out, seed, number, place = job
    rng = np.random.default_rng([seed, 19, number])
    view = camera(seed, place)
    drawn = render(identity(seed, number), sample_pose(rng), view, rng)
    stem = f"{place:03d}/{number:07d}"
    save_image(out / "LUPerson-data" / f"{stem}.jpg", drawn.image, view.quality)
    record = np.empty((1, 1), object)
    record[0, 0] = {"keypoints": estimated_keypoints(drawn, rng)}
    np.save(out / "LUPerson-pose" / f"{stem}.npy", record, allow_pickle=True)
    return float((drawn.visibility == 2).mean() - 0.1 * view.blur), f"{stem}.jpg"


def estimated_keypoints(drawn: Rendering, rng: np.random.Generator) -> np.ndarray:
    """float32 [17, 3]: x, y, score, as a pose estimator would see the key points: a little off and sure where
    they are visible, further off and unsure where they are not."""
    visible = drawn.visibility == 2
    size = max(drawn.box[2:])
    error = rng.normal(0, np.where(visible, 0.006, 0.02)[:, None] * size, (17, 2))
    score = np.where(visible, 1 - rng.beta(1.5, 12, 17), rng.beta(2.5, 4, 17))
    score = np.where(drawn.visibility == 0, rng.uniform(0, 0.2, 17), score)
    return np.concatenate([drawn.keypoints + error, score[:, None]], 1).astype(np.float32)


# Person re-identification -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shot:
    """One image of a person: `split` (train, val, query, gallery, distractor, junk), `label` within train or
    test, `who` in the population, `place` (camera, from 0), `index` among the images of the label."""

    split: str
    label: int
    who: int
    place: int
    index: int


def _plan(
    num_images: int,
    seed: int,
    num_cameras: int,
    images_per_identity: int,
    *,
    val: float = 0.0,
    extra: float = 0.0,
) -> list[_Shot]:
    """Half of the people are for training, the others for the test. Everyone is seen by two to four cameras;
    a test person has one query per camera and at least one gallery image in each. `val`: share of the
    training images; `extra`: share of distractors and junk."""
    num_extra = int(extra * num_images)
    people = 2 * ((num_images - num_extra) // (2 * images_per_identity))
    if people < 4 or images_per_identity < 4 or num_cameras < 2:
        raise HapError(
            f"{num_images} images, {images_per_identity} per identity, {num_cameras} cameras: at least "
            "4 identities (two to train, two to test), 4 images each and 2 cameras are needed"
        )
    share, left = divmod(num_images - num_extra, people)
    counts = np.full(people, share) + (np.arange(people) < left)
    shots = []
    for who, count in enumerate(counts.tolist()):
        rng = np.random.default_rng([seed, 23, who])
        places = rng.permutation(num_cameras)[
            : min(num_cameras, int(rng.integers(2, 5)), count // 2)
        ].tolist()
        train, label = who < people // 2, who % (people // 2)
        for index in range(count):
            split = "gallery" if index >= len(places) else "query"
            if train:
                split = "val" if index >= len(places) and rng.random() < val else "train"
            shots.append(_Shot(split, label, who, places[index % len(places)], index))
    for index in range(num_extra):
        kind = "junk" if index % 3 == 0 else "distractor"
        shots.append(_Shot(kind, 0, people + index, index % num_cameras, index))
    return shots


_REID_ACTIVITIES = ("walking", "standing", "texting", "phoning", "arms raised")


# File, seed, number of the image, what it shows, size (width, height) or None.
_ReidJob = tuple[Path, int, int, _Shot, tuple[int, int] | None]


def _reid_image(job: _ReidJob) -> None:
    """Draws one image of a data set of identities. Half of the people have a double who wears the same."""
    path, seed, number, shot, size = job
    rng = np.random.default_rng([seed, 29, number])
    view = camera(seed, shot.place)
    pose = sample_pose(rng, pick(rng, _REID_ACTIVITIES, (0.6, 0.22, 0.08, 0.05, 0.05)))
    person = identity(seed, shot.who, alike=2 if shot.who % 4 < 2 else 1)
    drawn = render(person, pose, view, rng, size=size).image
    if shot.split == "junk":  # a box on half of somebody
        height, width = drawn.shape[:2]
        top = int(rng.uniform(0.1, 0.5) * height)
        drawn = cv2.resize(drawn[top : top + height // 2], (width, height), interpolation=cv2.INTER_LINEAR)
    save_image(path, drawn, view.quality)


def _draw_reid(jobs: list[_ReidJob], run: Run) -> None:
    for folder in {path.parent for path, *_ in jobs}:
        folder.mkdir(parents=True, exist_ok=True)
    run(_reid_image, jobs)


def market1501(
    out: Path, num_images: int, seed: int, run: Run, *, num_cameras: int = 6, images_per_identity: int = 10
) -> None:
    """Market-1501: `bounding_box_train`, `bounding_box_test`, `query`; 128 x 64 images named
    `PPPP_cCsS_FFFFFF_BB.jpg`, with distractors (0000) and junk (-1) in the gallery."""
    shots = _plan(num_images, seed, num_cameras, images_per_identity, extra=0.1)
    people = 1 + max(s.who for s in shots if s.split in ("train", "query"))
    if people > 1501 or num_cameras > 6:
        raise HapError(
            f"Market-1501 has room for 1501 identities and 6 cameras, not {people} and {num_cameras}"
        )
    names = (
        1 + np.random.default_rng([seed, 31]).permutation(1501)[:people]
    )  # training and test mixed, as there
    folders = {"train": "bounding_box_train", "query": "query"}
    jobs: list[_ReidJob] = []
    for number, shot in enumerate(shots):
        person = {"junk": "-1", "distractor": "0000"}.get(shot.split) or f"{names[shot.who]:04d}"
        box = 0 if shot.split == "query" else 1 + number % 9
        name = f"{person}_c{shot.place + 1}s{1 + number % 3}_{number * 25:06d}_{box:02d}.jpg"
        folder = folders.get(shot.split, "bounding_box_test")
        jobs.append((out / folder / name, seed, number, shot, (64, 128)))
    _draw_reid(jobs, run)


def msmt17(
    out: Path, num_images: int, seed: int, run: Run, *, num_cameras: int = 15, images_per_identity: int = 10
) -> None:
    """MSMT17 as released: `MSMT17_V1/train/PPPP/*.jpg`, `MSMT17_V1/test/PPPP/*.jpg` and the four lists (path
    under train or test, identity from 0); names `PPPP_III_CC_MMDDslot_FFFF_B.jpg`."""
    root = out / "MSMT17_V1"
    lists: dict[str, list[str]] = {"train": [], "val": [], "query": [], "gallery": []}
    jobs: list[_ReidJob] = []
    for number, shot in enumerate(_plan(num_images, seed, num_cameras, images_per_identity, val=0.1)):
        rng = np.random.default_rng([seed, 37, number])
        day, slot = pick(rng, ("0113", "0114", "0302", "0303")), pick(rng, ("morning", "noon", "afternoon"))
        suffix = "_ex" if rng.random() < 0.05 else ""
        person = f"{shot.label:04d}"
        frame = f"{day}{slot}_{number % 10000:04d}_{number % 4}{suffix}"
        name = f"{person}_{shot.index:03d}_{shot.place + 1:02d}_{frame}.jpg"
        half = "train" if shot.split in ("train", "val") else "test"
        lists[shot.split].append(f"{person}/{name} {shot.label}\n")
        jobs.append((root / half / person / name, seed, number, shot, None))
    _draw_reid(jobs, run)
    for split, lines in lists.items():
        (root / f"list_{split}.txt").write_text("".join(lines))


def msmt17_boxes(
    out: Path, num_images: int, seed: int, run: Run, *, num_cameras: int = 15, images_per_identity: int = 10
) -> None:
    """MSMT17 in Market's manner: `bounding_box_train`, `bounding_box_test`, `query`, named
    `PPPP_cC_IIII.jpg`. The same images as `msmt17`'s."""
    folders = {
        "train": "bounding_box_train",
        "val": "bounding_box_train",
        "query": "query",
        "gallery": "bounding_box_test",
    }
    jobs: list[_ReidJob] = []
    for number, shot in enumerate(_plan(num_images, seed, num_cameras, images_per_identity, val=0.1)):
        name = f"{shot.label:04d}_c{shot.place + 1}_{shot.index:04d}.jpg"
        jobs.append((out / folders[shot.split] / name, seed, number, shot, None))
    _draw_reid(jobs, run)


# fmt: off
_WRITERS = (
    luperson, market1501, msmt17, msmt17_boxes, pa100k, rap, peta, coco, mpii,
    aic, pose_multi, h36m, muco, coco3d, mpii3d, pw3d, pose3d_multi, bodies3d,
    cuhk_pedes, icfg_pedes, rstpreid, described,
)
# fmt: on
WRITERS: dict[str, Callable[..., None]] = {writer.__name__: writer for writer in _WRITERS}
