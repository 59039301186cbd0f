"""Weights by name: the package's, timm's, the hub's and those of an address, from caches that the tests fill."""

import functools
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import timm
import torch
from conftest import TINY_PRETRAIN, config
from omegaconf import OmegaConf
from safetensors.torch import save_file
from test_checkpoint import assert_loaded, encoder, save

import hap
from hap.building import weights_options
from hap.errors import HapError
from hap.models import weight_names
from hap.models.checkpoint import load_weights
from hap.runner import run
from hap.schema import Root

REPO = "timm/vit_tiny_patch16_224.augreg_in21k"


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Empty caches of the hub, which is offline, and of torch.hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def fill_hub(cache: Path, repo: str, name: str, content: Path) -> None:
    """What the hub's library leaves after a download."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs/main").write_text("0" * 40)
    shutil.copy(content, snapshot / name)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def tiny(tmp_path) -> Path:
    torch.manual_seed(5)
    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


# --- timm and the hub ------------------------------------------------------------------------------------


def test_timms_models_come_from_the_cache(caches, tiny, caplog):
    fill_hub(caches / "hub", REPO, "model.safetensors", tiny)
    with caplog.at_level("INFO"):
        model = hap.create_encoder("vit_tiny", weights=f"timm:{REPO.partition('/')[2]}", sha256=sha256(tiny))
    expected = hap.create_encoder("vit_tiny", weights=tiny)
    assert_loaded(model, expected.state_dict(), expected.state_dict())
    assert "weights of timm:vit_tiny_patch16_224.augreg_in21k = " in caplog.text
    assert "licence of these weights: Apache-2.0" in caplog.text
    assert "trained on images of mean (0.5, 0.5, 0.5) and std (0.5, 0.5, 0.5)" in caplog.text
    report = load_weights(model, f"hf:{REPO}")
    assert report.licence == "Apache-2.0"
    assert report.sha256 == sha256(tiny)


def test_a_file_of_a_repository_can_be_named(caches, tmp_path):
    path = save(tmp_path / "encoder.pth", encoder().state_dict())
    fill_hub(caches / "hub", "someone/reid", "deep/encoder.pth", path)
    fill_hub(caches / "hub", "someone/bin", "pytorch_model.bin", path)
    for name in ("hf:someone/reid/deep/encoder.pth", "hf:someone/bin"):
        report = load_weights(encoder(), name)
        assert report.missing == ()
        assert report.licence == "unknown: see its page"
    with pytest.raises(HapError, match=r"someone/reid is neither in the cache \(.*hub\) nor to be had"):
        load_weights(encoder(), "hf:someone/reid")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "timm:vit_base_patch16_224.mea",
            "no pre-trained model 'vit_base_patch16_224.mea'; did you mean .*224.mae",
        ),
        ("timm:nothing", "timm has no pre-trained model 'nothing'; did you mean "),
        ("hf:reid", "give weights=hf:OWNER/REPO"),
        ("hf:some one/re id", "no name of a repository"),
        (
            "hf:someone/nothing",
            r"Fetch https://\S+/someone/nothing/resolve/main/model.safetensors elsewhere and give",
        ),
        ("drawn", "comes without .*hap_drawn.safetensors"),
        (
            "s3://bucket/x.pth",
            r"s3://bucket/x\.pth: no such weight file\. Names are drawn, timm:NAME, hf:OWNER",
        ),
    ],
)
def test_names_that_lead_nowhere_say_what_to_do(caches, monkeypatch, name, message):
    monkeypatch.setattr(weight_names, "DRAWN", caches / "hap_drawn.safetensors")
    with pytest.raises(HapError, match=message):
        load_weights(encoder(), name)


@pytest.mark.parametrize("offline", ["1", pytest.param("0", marks=pytest.mark.slow)])  # 0: retries, 25 s
def test_without_network_and_cache_a_program_ends_with_one_message(tmp_path, offline):
    """A dead port in place of the hub and of every proxy."""
    code = "import hap; hap.create_encoder('vit_tiny', weights='timm:vit_base_patch16_224.mae')"
    dead = "http://127.0.0.1:9"
    environment = {
        **os.environ,
        "HF_ENDPOINT": dead,
        "HF_HUB_OFFLINE": offline,
        "HF_HOME": str(tmp_path / "hf"),
        "TORCH_HOME": str(tmp_path / "torch"),
        **{f"{scheme}_proxy": dead for scheme in ("http", "https")},
        "no_proxy": "",
    }
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    message = result.stderr.strip().splitlines()
    assert message[-2].startswith(
        "hap.errors.HapError: timm/vit_base_patch16_224.mae is neither in the cache"
    )
    assert f"{tmp_path}/hf/hub" in message[-2]
    assert "give weights=FILE" in message[-2]
    assert "mae_pretrain_vit_base.pth cannot be downloaded" in message[-1]
    assert f"put it at {tmp_path}/torch/hub/checkpoints/" in message[-1]


def test_timms_own_cache_of_an_address_is_used(caches, tmp_path):
    path = save(tmp_path / "mae.pth", {"model": encoder((224, 224)).state_dict()})
    (caches / "torch/hub/checkpoints").mkdir(parents=True)
    shutil.copy(path, caches / "torch/hub/checkpoints/mae_pretrain_vit_base.pth")
    report = load_weights(encoder(), "timm:vit_base_patch16_224.mae")
    assert report.missing == ()
    assert "source mae" in report.origin
    assert report.notes == ("pos_embed is taken to be of 14x14 patches; weights_grid says otherwise",)
    assert report.licence == "CC BY-NC 4.0 (no commercial use)"


# --- addresses -------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    """A folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            requests.append(self.path)

        def send_header(self, keyword, value):
            longer = keyword == "Content-Length" and "short" in self.path
            super().send_header(keyword, str(int(value) + 10) if longer else value)

    requests: list[str] = []
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_address[1]}", requests
        httpd.shutdown()
        thread.join()


def test_an_address_is_downloaded_once(caches, server):
    folder, address, requests = server
    digest = sha256(save(folder / "model.pth", encoder().state_dict()))
    model = encoder()
    for _ in range(2):
        report = load_weights(model, f"{address}/model.pth", sha256=digest.upper())
        assert report.missing == ()
        assert report.licence == "unknown: see its page"
    assert len(requests) == 1
    (folder / "other").mkdir()
    other = sha256(save(folder / "other/model.pth", encoder(depth=3).state_dict()))
    load_weights(
        encoder(depth=3), f"{address}/other/model.pth", sha256=other
    )  # another file of the same name
    cached = [path for path in (caches / "torch/hub/checkpoints").iterdir() if path.suffix == ".pth"]
    assert {sha256(path) for path in cached} == {digest, other}
    with pytest.raises(HapError, match=f"its SHA-256 is {digest}, not {other}"):
        load_weights(model, f"{address}/model.pth", sha256=other)


@pytest.mark.parametrize(
    ("path", "digest", "message"),
    [
        ("model.pth", "0" * 64, "its SHA-256 is [0-9a-f]{64}, not 0{64} as weights_sha256 says"),
        ("short.pth", "right", "the download broke off after [0-9,]+ of [0-9,]+ bytes: try again"),
        (
            "nothing.pth",
            "0" * 64,
            "cannot be downloaded .*404.* put it at .*/checkpoints/[0-9a-f]{8}-nothing.pth",
        ),
        ("model.pth", None, "anybody on the way can change what http brings: give weights_sha256"),
    ],
)
def test_a_download_that_is_not_the_file_leaves_nothing(caches, server, path, digest, message):
    folder, address, _ = server
    for name in ("model.pth", "short.pth"):
        right = sha256(save(folder / name, encoder().state_dict()))
    with pytest.raises(HapError, match=message):
        load_weights(encoder(), f"{address}/{path}", sha256=right if digest == "right" else digest)
    left = [name for name in (caches / "torch").rglob("*") if name.is_file() and name.suffix != ".lock"]
    assert left == []


def test_a_file_with_another_checksum_is_refused(tmp_path):
    path = save(tmp_path / "file.pth", encoder().state_dict())
    assert load_weights(encoder(), path, sha256=sha256(path)).sha256 == sha256(path)
    with pytest.raises(HapError, match=r"file.pth: its SHA-256 is .* another file"):
        load_weights(encoder(), path, sha256="ab" * 32)


# --- licences and records --------------------------------------------------------------------------------


def test_the_drawn_weights_bring_their_licence(tmp_path, monkeypatch):
    path = tmp_path / "hap_drawn.safetensors"
    save_file(encoder().state_dict(), path, metadata={"grid": "16x8", "licence": "Apache-2.0"})
    monkeypatch.setattr(weight_names, "DRAWN", path)
    report = load_weights(encoder((128, 128)), "drawn")
    assert report.licence == "Apache-2.0"
    assert report.resized == ("pos_embed",)
    assert report.notes == ()


def test_every_key_of_weights_reaches_the_loader(luperson, tmp_path):
    assert weights_options(OmegaConf.structured(Root)).keys() == {
        "source", "entry", "prefix", "grid", "sha256", "partial"
    }  # fmt: skip
    sizes = {"patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 4}
    source = encoder((96, 64), **sizes)
    state = {f"backbone.{name}": value for name, value in source.state_dict().items()}
    path = save(tmp_path / "mae_pretrain_vit_x.pth", {"teacher": state})
    options = (
        f"weights={path}",
        "weights_entry=teacher",
        "weights_prefix=backbone.",
        "weights_grid=[6,4]",
        f"weights_sha256='{sha256(path)}'",
        "weights_partial=true",
    )
    cfg = config("train", "experiment=pretrain_hap", *TINY_PRETRAIN, f"data.root={luperson}", *options)
    cfg.trainer.max_steps = 1
    run("train", cfg, tmp_path / "run")
    record = json.loads((tmp_path / "run/weights.json").read_text())
    assert record["sha256"] == sha256(path)
    assert record["licence"] == "CC BY-NC 4.0 (no commercial use)"
    assert record["origin"] == f"{path} (entry teacher, prefix backbone.)"
    assert record["resized"] == ["pos_embed"]
    assert (record["matched"], record["unexpected"]) == (30, 12)
    assert "only it has blocks.2.norm1.weight" in record["notes"][0]

    path.unlink()  # a resumed run has its weights
    cfg.resume = "auto"
    assert run("train", cfg, tmp_path / "run")["steps"] == 1
    assert json.loads((tmp_path / "run/weights.json").read_text()) == record

    cfg.weights = None
    with pytest.raises(
        HapError, match=r"the keys weights_\.\.\. say how to read weights=FILE, which is missing"
    ):
        run("train", cfg, tmp_path / "other")
