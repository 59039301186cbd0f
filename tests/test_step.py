"""What a training step must not do: wait for the device, compile twice, depend on how it is cut."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_PRETRAIN, config
from torch.utils._python_dispatch import TorchDispatchMode

from hap.flops import peak_of
from hap.runner import build, run


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
