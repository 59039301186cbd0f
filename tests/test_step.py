"""What a training step must not do: wait for the device, compile twice, depend on how it is cut."""

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_PRETRAIN, config
from torch.utils._python_dispatch import TorchDispatchMode

from hap.benchmarks.pose3d import peak_bytes
from hap.building import build, build_trainer
from hap.data.samplers import BatchPlan
from hap.errors import HapError
from hap.flops import peak_of
from hap.memory import HEADROOM, step_memory
from hap.runner import run


class HostReads(TorchDispatchMode):
    """Counts what `.item()`, `bool()` and `float()` of a tensor become: on a GPU the host waits there."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.reads += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def small(name: str, root: Path, *overrides: str):
    tiny = TINY_PRETRAIN if name.startswith("pretrain") else TINY
    return config("train", f"experiment={name}", *tiny, f"data.root={root}", *overrides)


REID = ("total_batch_size=16", "data.plan.images_per_identity=4", "task.model.num_classes=32", "epochs=2")


@pytest.fixture(scope="module")
def market(drawn) -> Path:
    return drawn("market1501", 200)


@pytest.mark.parametrize(
    ("experiment", "overrides"),
    [
        ("pretrain_hap", ["epochs=1"]),
        ("pretrain_hap", ["epochs=1", "micro_batch_size=2"]),
        ("reid_market1501", REID),
        ("reid_market1501_lem", REID),
    ],
)
def test_the_host_does_not_wait_between_two_logged_steps(
    luperson, market, tmp_path, monkeypatch, experiment, overrides
):
    """Progress included: it shows what it knows once a second."""
    counts: dict[int, list[int]] = {}  # of reads so far, at the start of each pass of an epoch
    with HostReads() as mode:
        monkeypatch.setattr(
            "hap.callbacks.Throughput.on_train_batch_start",
            lambda self, trainer, *_: counts.setdefault(trainer.current_epoch, []).append(mode.reads),
            raising=False,
        )
        root = luperson if experiment.startswith("pretrain") else market
        shown = [
            "+callbacks.progress._target_=hap.callbacks.Progress",
            "trainer.enable_progress_bar=true",
            "trainer.log_every_n_steps=1000",
            "trainer.limit_val_batches=0",
        ]
        run("train", small(experiment, root, *overrides, *shown), tmp_path / "run")
    for reads in counts.values():
        assert len(reads) > 3
        assert not np.diff(reads).any()


def test_without_a_terminal_progress_is_lines(luperson, tmp_path, caplog):
    """Here one after each pass, as no time lies between two; without a bar."""
    shown = [
        "+callbacks.progress._target_=hap.callbacks.Progress",
        "+callbacks.progress.seconds=0",
        "trainer.enable_progress_bar=true",
    ]
    caplog.set_level(logging.INFO, "hap.callbacks")
    run("train", small("pretrain_hap", luperson, "epochs=1", *shown), tmp_path)
    steps = json.loads((tmp_path / "results.json").read_text())["steps"]
    lines = [r.message for r in caplog.records if r.message.startswith("epoch 1/1, pass ")]
    assert [line.split(":")[0] for line in lines] == [
        f"epoch 1/1, pass {n}/{steps}" for n in range(1, steps + 1)
    ]
    assert all("train/loss" in line for line in lines[1:])
    assert lines[-1].endswith("(0:00:00 left)")


@pytest.mark.parametrize("switch", ["callbacks.progress=null", "trainer.enable_progress_bar=false"])
def test_either_switch_turns_the_bar_off(tmp_path, switch):
    """Lightning would show its own, in log files too."""
    trainer = build_trainer(config("train", "experiment=pretrain_hap", "trainer=cpu", switch), tmp_path)
    assert trainer.progress_bar_callback is None


def test_any_seed_trains(luperson, tmp_path):
    cfg = small("pretrain_hap", luperson, "epochs=1", "seed=4294967295", "trainer.limit_train_batches=1")
    assert np.isfinite(run("train", cfg, tmp_path)["train/loss"])


def task_and_batch(experiment: str, root: Path, size: int, *overrides: str):
    cfg = small(experiment, root, *overrides)
    torch.manual_seed(0)
    task = build(cfg.task, "task")
    dataset = build(cfg.data, "data").dataset("train")
    return task, torch.utils.data.default_collate([dataset[0, i] for i in range(size)])


def gradients(task, batch, autocast: bool = False) -> dict[str, torch.Tensor]:
    task.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = task.losses(task(batch), batch)["loss"]
    loss.backward()
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


def test_the_last_micro_batch_is_not_computed_twice(luperson):
    task, batch = task_and_batch("pretrain_hap", luperson, 16)
    calls = Counter()
    task.model.register_forward_hook(lambda *_: calls.update(["forward"]))
    task.micro_batch_size = 4
    gradients(task, batch)
    assert calls["forward"] == 4 + 3


def test_micro_batches_in_bf16_add_up_in_float32(luperson):
    """As accurate as one pass after the other with the parameters' own gradients."""
    task, batch = task_and_batch("pretrain_hap", luperson, 64, "task.alignment=null")
    exact = gradients(task, batch)

    def error(actual: dict[str, torch.Tensor]) -> float:
        off = sum((actual[name] - value).square().sum() for name, value in exact.items())
        return float((off / sum(value.square().sum() for value in exact.values())).sqrt())

    task.zero_grad()
    for i in range(64):
        piece = {name: value[i : i + 1] for name, value in batch.items()}
        with torch.autocast("cpu", torch.bfloat16):
            loss = task.losses(task(piece), piece)["loss"]
        (loss / 64).backward()
    accumulated = error({name: p.grad for name, p in task.named_parameters() if p.grad is not None})
    task.micro_batch_size = 1
    assert 0 < error(gradients(task, batch, autocast=True)) < 1.1 * accumulated


@pytest.mark.parametrize("experiment", ["pretrain_hap", "reid_market1501", "reid_market1501_lem"])
def test_compiled_once_for_each_size(luperson, market, tmp_path, monkeypatch, experiment):
    """Training, validation with an incomplete last batch, pictures: no symbolic size, nothing in pieces."""
    graphs: list[torch.fx.GraphModule] = []

    def record(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        assert not any(isinstance(value, torch.SymInt) for value in inputs)
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compile = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda self, **kw: compile(self, backend=record, fullgraph=True, **kw),
    )
    root, more = (luperson, []) if experiment.startswith("pretrain") else (market, REID)
    cfg = small(
        experiment,
        root,
        *more,
        "compile=true",
        "data.eval_batch_size=3",
        "trainer.limit_train_batches=2",
        "trainer.check_val_every_n_epoch=1",
    )
    run("train", cfg, tmp_path)
    assert list(tmp_path.glob("pictures/*.png"))
    held_out = len(build(cfg.data, "data").dataset("val"))
    assert held_out > 3
    assert len(graphs) == 2 + (held_out % 3 > 0)  # training, whole and last batch of the evaluation


@pytest.mark.parametrize("experiment", ["reid_market1501", "reid_market1501_lem"])
def test_people_are_told_apart_in_float32(market, experiment):
    task, batch = task_and_batch(experiment, market, 8, *REID)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = task.train()(batch)
    assert {logits.dtype for logits in outputs.logits} == {torch.float32}


@pytest.mark.parametrize(("precision", "exact"), [("32-true", True), ("bf16-mixed", False)])
def test_what_is_called_float32_is_not_rounded(tmp_path, monkeypatch, precision, exact):
    """Whatever the process was set to before."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", exact)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        overrides = ("experiment=pretrain_hap", "trainer=cpu", f"trainer.precision={precision}")
        build_trainer(config("train", *overrides), tmp_path)
        assert torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.cudnn.allow_tf32 is not exact
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA T1000", None),
    ],
)
def test_peak_of_a_card_by_its_whole_name(name, peak):
    assert peak_of(name) == peak


def measured(task, batch, autocast: bool) -> int:
    """Bytes that a forward pass keeps, of real tensors, beyond weights and images."""
    kept = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
    ):
        outputs = task.train()(batch)
    assert outputs
    for value in (*task.parameters(), *task.buffers(), *batch.values()):
        kept.pop(value.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("experiment", ["pretrain_hap", "reid_market1501", "reid_market1501_lem"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_memory_is_what_real_tensors_take(luperson, market, experiment, precision):
    root, more = (luperson, ()) if experiment.startswith("pretrain") else (market, REID)
    task, batch = task_and_batch(experiment, root, 6, *more)
    sample = {name: value[0] for name, value in batch.items()}
    memory = step_memory(task, sample, precision)
    expected = measured(task, batch, autocast=precision == "bf16-mixed")
    assert memory.per_pass + 6 * memory.per_image == pytest.approx(expected, rel=0.01)
    assert memory.state == sum(4 * (4 if p.requires_grad else 1) * p.numel() for p in task.parameters())
    assert memory.input == sum(value[0].nbytes for value in batch.values())


@pytest.mark.parametrize(("images", "micro"), [(8, 8), (32, 8)])
def test_peak_of_a_step_is_within_the_headroom(luperson, images, micro):
    """As deep as the paper's: beside what is kept, there is a layer's worth of gradients at a time."""
    depth = ["img_size=[128,64]", "model.embed_dim=64", "model.depth=12"]
    depth += ["task.model.decoder_embed_dim=64", "task.model.decoder_depth=8"]
    task, batch = task_and_batch("pretrain_hap", luperson, images, *depth)
    memory = step_memory(task.train(), {name: value[0] for name, value in batch.items()}, "32-true")
    task.micro_batch_size = micro
    kept = memory.per_pass + micro * memory.per_image
    most = (kept + memory.state / 4) / HEADROOM  # with all gradients
    assert kept < peak_bytes(lambda: gradients(task, batch)) < most


def test_memory_of_the_paper_model():
    """Per token and layer in bf16, beside flash attention, 36 bytes times the width: the residual twice in float32,
    both norms' outputs, queries, keys and values, attention's output, and the MLP's hidden layer twice."""
    sample = {"image": torch.zeros(3, 256, 128, dtype=torch.uint8), "scores": torch.rand(2, 128)}
    task = build(config("train", "experiment=pretrain_hap", "trainer=cpu").task, "task")
    memory = step_memory(task, sample, "bf16-mixed")
    blocks = 2 * 36 * (12 * 65 * 768 + 8 * 129 * 512)
    assert memory.per_image == pytest.approx(blocks, rel=0.05)
    assert memory.state == pytest.approx(16 * 111.8e6, rel=0.01)
    sizes = [memory.micro_batch(images, free) for images in (4096, 512) for free in (80e9, 141e9)]
    assert sizes == [512, 1024, 512, 512]
    assert memory.micro_batch(4096, None) == 128
    assert memory.micro_batch(3 * 97, 1e11) == 3 * 97
    with pytest.raises(HapError, match=r"a pass of one image needs 2.1 GB"):
        memory.micro_batch(4, 2e9)


@pytest.mark.parametrize(
    ("overrides", "passes"),
    [
        ([], 2),
        (["task.alignment=null"], 2),
        (["task.negatives=micro_batch"], 1),
        (["micro_batch_size=4"], 64),
    ],
)
def test_a_pass_is_what_fits_where_it_makes_no_difference(drawn, tmp_path, caplog, overrides, passes):

    root = drawn("luperson", 300)
    cfg = small(
        "pretrain_hap", root, "total_batch_size=256", "micro_batch_size=null", *overrides, "dry_run=true"
    )
    with caplog.at_level("INFO"):
        run("train", cfg, tmp_path)
    assert f"batch  256 = {256 // passes} images x 1 device(s) x {passes} pass(es)" in caplog.text


def test_workers_share_a_large_batch_which_stays_the_same(drawn):
    """Two pieces of 125 images in place of one of 250; at most a batch and two pieces for each worker are ready."""
    cfg = config("train", "experiment=pretrain_hap", *TINY_PRETRAIN, f"data.root={drawn('luperson', 300)}")
    data = build(cfg.data, "data")
    data.num_workers, data.batch_plan = 2, BatchPlan(250, 250)
    loader = data.train_dataloader()
    assert len(loader) == 1
    assert [len(keys) for keys in loader.batch_sampler] == [125, 125]
    assert loader.prefetch_factor == 2
    (batch,) = list(loader)
    assert [len(piece) for piece in batch["image"]] == [125, 125]
    assert loader.state_dict()["samples"] == 250

    whole = data.on_after_batch_transfer(batch, 0)
    (keys,) = data.train_dataloader().batches
    expected = torch.utils.data.default_collate([loader.dataset[key] for key in keys])
    for name, value in whole.items():
        assert torch.equal(value, expected[name]), name
