"""3D pose: the body layer beside another one, the evaluation at the size of 3DPW from the parameters of people, the
training reader beside the straightforward way (`plain_errors`); then how many people a second `hap predict` gets
through."""

import copy
import logging
import pickle
import tempfile
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hap.benchmarks import plain_errors
from hap.benchmarks.pose2d import PER_IMAGE, write_pictures
from hap.benchmarks.timing import compare, one_core, timed
from hap.body.arrays import NUM_BETAS, NUM_FEATURES, NUM_JOINTS, PARENTS, Bodies, BodyArrays
from hap.body.joints import SMPL30
from hap.body.model import BodyModel, GenderedBody
from hap.body.rotations import to_matrix
from hap.data import pose3d_transforms
from hap.data.base import DataModule
from hap.data.boxes import Box, Boxes
from hap.data.sources import read_inputs
from hap.metrics.pose3d import BodyMetric
from hap.models.pose3d import BodyOutput

log = logging.getLogger(__name__)

CLOSE = 1e-4  # metres, by which the two layers may differ
Row = dict[str, Any]
Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


def run(
    task: Any,
    data: DataModule,
    trainer: Callable[..., L.Trainer],
    batch: int = 64,
    vertices: int = 6890,
    repeats: int = 5,
    eval_people: int = 35515,
    reader_people: int = 64,
    predicted_people: int = 64,
    num_workers: int | None = None,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Measure; each row is yielded with those before it.

    Args:
        task: a `Pose3d`.
        data: whose training people are read.
        trainer: makes the Trainer that predicts.
        batch: people at a time in the body layer and in the evaluation.
        vertices: of the made-up bodies; the default is SMPL's.
        repeats: of each comparison; the two take turns, the median counts.
        eval_people: size of the evaluation; the default is that of 3DPW's test split.
        reader_people: of the training split, spread evenly.
        predicted_people: in `hap predict`, eight in a picture; 0 leaves it out.
        num_workers: of `hap predict`; None takes its own default.
        seed: of bodies, people and pictures.

    Yields:
        `device`; `body_layer`: meshes/s and vertices/s; `evaluation`: seconds; `reader`: crops/s of one core;
        `predict`: people/s.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    results: dict[str, Any] = {"device": name, "vertices": vertices}
    bodies = made_up_bodies(vertices, seed)
    rows = results["body_layer"] = []
    for row in body_layer(bodies.neutral, batch, device, repeats, seed):
        rows.append(row)
        yield results
    results["evaluation"] = [evaluation(task, bodies, eval_people, batch, device, seed)]
    yield results
    with one_core():
        results["reader"] = [reader(data, reader_people, repeats, seed)]
    yield results
    if predicted_people:
        with tempfile.TemporaryDirectory() as folder:
            results["predict"] = [
                predict(task, data, trainer, Path(folder), predicted_people, num_workers, seed)
            ]
        yield results


def made_up_bodies(vertices: int, seed: int) -> Bodies:
    """Three bodies without a shape, as full and as empty as SMPL's: 4 joints move a vertex, and a row of a regressor is
    of 30 vertices."""
    rng = np.random.default_rng(seed)

    def body() -> BodyArrays:
        return BodyArrays(
            v_template=rng.normal(0, 0.5, (vertices, 3)).astype(np.float32),
            shapedirs=rng.normal(0, 0.01, (vertices, 3, NUM_BETAS)).astype(np.float32),
            posedirs=rng.normal(0, 0.003, (vertices, 3, NUM_FEATURES)).astype(np.float32),
            J_regressor=_means(rng, NUM_JOINTS, vertices, 30),
            weights=_means(rng, vertices, NUM_JOINTS, 4),
            faces=rng.integers(0, vertices, (2 * vertices - 4, 3)),
            face_vertices=tuple(range(5)),
        )

    extra, h36m = (_means(rng, rows, vertices, 30) for rows in (9, 17))
    return Bodies("made up", body(), extra, body(), body(), h36m)


def _means(rng: np.random.Generator, rows: int, columns: int, used: int) -> np.ndarray:
    """(rows, columns): weights of `used` of the columns, which sum to 1."""
    result = np.zeros((rows, columns), np.float32)
    places = rng.random((rows, columns)).argsort(axis=1)[:, :used]
    np.put_along_axis(result, places, rng.dirichlet(np.ones(used), rows).astype(np.float32), axis=1)
    return result


def made_up_people(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """pose (N, 72), betas (N, 10), trans (N, 3), all some 4 m away, gender (N,), male or female."""
    rng = np.random.default_rng(seed)
    columns = (
        rng.normal(0, 0.4, (count, 72)),
        rng.normal(0, 1, (count, 10)),
        rng.normal((0, 0, 4), 0.5, (count, 3)),
    )
    pose, betas, trans = (torch.from_numpy(column).float() for column in columns)
    return pose, betas, trans, torch.from_numpy(rng.integers(1, 3, count))


def body_layer(body: BodyArrays, batch: int, device: torch.device, repeats: int, seed: int) -> Iterator[Row]:
    """Parameters to vertices, rotations being matrices: forward, and forward and backward with gradients of all
    parameters; memory is that of the tensors that are made. smplfitter's layer gives the same, or this raises
    AssertionError."""
    pose, *rest, _ = made_up_people(batch, seed)
    inputs = [x.to(device) for x in (to_matrix(pose.unflatten(1, (NUM_JOINTS, 3))), *rest)]
    model = BodyModel(body).to(device)
    ours: Layer = lambda *people: model(*people).vertices  # noqa: E731
    other = other_layer(body, device)
    if other is not None:
        assert_close(ours(*inputs), other(*inputs), rtol=0, atol=CLOSE)
    for what, way in (("forward", _forward), ("forward and backward", _backward)):
        call = partial(way, ours, inputs)
        if other is None:
            seconds = compare(call, call, repeats)[0]
            row = {}
        else:
            plain = partial(way, other, inputs)
            seconds, ratio = compare(plain, call, repeats)
            row = {
                "smplfitter_meshes_per_s": batch / seconds / ratio,
                "smplfitter_memory_mb": peak_bytes(plain) / 1e6,
                "ratio": ratio,
            }
        yield {
            "what": what,
            "batch": batch,
            "meshes_per_s": batch / seconds,
            "vertices_per_s": batch * len(body.v_template) / seconds,
            "memory_mb": peak_bytes(call) / 1e6,
            **row,
        }


@torch.no_grad()
def _forward(layer: Layer, inputs: list[Tensor]) -> None:
    layer(*inputs)


def _backward(layer: Layer, inputs: list[Tensor]) -> None:
    inputs = [x.detach().requires_grad_() for x in inputs]
    torch.autograd.grad(layer(*inputs).square().sum(), inputs)


def other_layer(body: BodyArrays, device: torch.device) -> Layer | None:
    """smplfitter's, of the same arrays, by way of files such as it reads; None where it is not installed."""
    try:
        from smplfitter.pt import BodyModel as Other
    except ImportError:
        log.warning("smplfitter is not installed (it comes with the extra dev): nothing to compare with")
        return None
    names = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights")
    content = {name: getattr(body, name) for name in names}
    content |= {"f": body.faces, "kintree_table": np.array([PARENTS, range(NUM_JOINTS)])}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl"
        file.write_bytes(pickle.dumps(content, 2))
        np.save(Path(folder) / "kid_template.npy", np.zeros((60, 3)))
        model = Other("smpl", "neutral", folder, device=device)
    return lambda rotations, betas, trans: model(rel_rotmats=rotations, shape_betas=betas, trans=trans)[
        "vertices"
    ]


def peak_bytes(call: Callable[[], object]) -> int:
    """Most bytes of tensors that a call makes and has at a time."""
    with _Alive() as alive:
        call()
    return alive.peak


class _Alive(TorchDispatchMode):
    """Counts the memory of tensors that are made within, not that of those that were there."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._meet((args, kwargs), new=False)
        result = func(*args, **(kwargs or {}))
        self._meet(result, new=True)
        self.peak = max(self.peak, self.now)
        return result

    def _meet(self, values: Any, new: bool) -> None:
        for value in tree_leaves(values):
            if not isinstance(value, Tensor) or (key := value.untyped_storage()._cdata) in self.known:
                continue
            storage = value.untyped_storage()
            size = storage.nbytes() if new else 0
            self.known.add(key)
            self.now += size
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def evaluation(task: Any, bodies: Bodies, people: int, batch: int, device: torch.device, seed: int) -> Row:
    """Seconds from parameters of people to their scores: predicted meshes of the neutral body, true ones of the
    gendered, the metric."""
    task = copy.deepcopy(task)
    task.body, task.metric = GenderedBody(bodies), BodyMetric()
    task.to(device)
    task.metric.use(task.body.joints30, task.body.h36m)
    pose, betas, trans, gender = (x.to(device) for x in made_up_people(people, seed))
    scores: dict[str, float] = {}

    @torch.no_grad()
    def evaluate() -> None:
        for rows in torch.arange(people, device=device).split(batch):
            said = to_matrix(0.9 * pose[rows].unflatten(1, (NUM_JOINTS, 3)))
            truth = {"pose": pose[rows], "betas": betas[rows], "trans": trans[rows], "gender": gender[rows]}
            task.update_metrics(BodyOutput(said, betas[rows], trans[rows]), {**truth, "index": rows})
        scores.update(task.metric.compute())

    seconds = timed(evaluate)
    return {
        "people": people,
        "batch": batch,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "people_per_s": people / seconds,
        "PA-MPJPE": scores["PA-MPJPE"],
    }


def reader(data: DataModule, count: int, repeats: int, seed: int) -> Row:
    """Crops/s of file to crop and joints with errors, on one core, beside the same with the straightforward errors;
    what of it decoding is, and what the errors are."""
    people: Any = data.records("train")
    records = [people[i] for i in np.linspace(0, len(people) - 1, min(count, len(people))).astype(int)]
    transform: Any = data.transforms["train"]
    without = copy.copy(transform)
    without.joint_errors = False

    def crops(transform: Any) -> None:
        for number, record in enumerate(records):
            transform(record.pixels(), record.annotations(), np.random.default_rng((seed, number)))

    def plain() -> None:
        with mock.patch.object(pose3d_transforms, "perturb", plain_errors.perturb):
            crops(transform)

    seconds, ratio = compare(plain, partial(crops, transform), repeats)
    _, errors = compare(partial(crops, transform), partial(crops, without), repeats)
    decoding = timed(lambda: [record.pixels() for record in records])
    return {
        "people": len(records),
        "crops_per_s": len(records) / seconds,
        "plain_crops_per_s": len(records) / seconds / ratio,
        "ratio": ratio,
        "decoding_share": decoding / seconds,
        "errors_share": 1 - 1 / errors,
    }


def predict(
    task: Any,
    data: DataModule,
    make: Callable[..., L.Trainer],
    folder: Path,
    num_people: int,
    num_workers: int | None,
    seed: int,
) -> Row:
    """From JPEGs with eight boxes each, and joints in these, to parameters. A prediction of one picture warms up."""
    number = -(-num_people // PER_IMAGE)
    rng = np.random.default_rng(seed)
    write_pictures(folder, number, rng)
    sources = read_inputs({"input": str(folder)})
    sides = rng.uniform((0, 0, 60, 120), (440, 240, 200, 240), (num_people, 4))
    boxes = [Box(n, x, y, w, h, None) for n, (x, y, w, h) in enumerate(sides.tolist())]
    joints = np.ones((num_people, len(SMPL30), 3), np.float32)
    joints[..., :2] = (
        sides[:, None, :2] + rng.uniform(0, 1, (num_people, len(SMPL30), 2)) * sides[:, None, 2:]
    )
    task, seconds = copy.deepcopy(task), 0.0
    for count in (PER_IMAGE, num_people):
        people = Boxes(
            sources, boxes[:count], [n // PER_IMAGE for n in range(count)], whole=True, joints=joints
        )
        module = DataModule(
            str(folder), lambda root: {}, {"val": data.transforms["val"]}, num_workers=num_workers
        )
        module.splits = {"predict": people}
        trainer = make(logger=False)
        seconds = timed(partial(trainer.predict, task, module, return_predictions=False))
    return {
        "people": num_people,
        "precision": str(trainer.precision),
        "people_per_s": num_people / seconds,
        "images_per_s": number / seconds,
    }
