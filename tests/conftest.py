"""Drawn people and small configurations for all tests. Nothing here replaces a part of the program."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # bits do not depend on the number of cores
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from hap.config import CONF_DIR, register
from hap.packing import pack
from hap.synthetic.datasets import ensure

torch.set_num_threads(1)

# A model of 64 x 32 pixels and 8 patches that trains a step in milliseconds.
TINY = (
    "img_size=[64,32]",
    "model.embed_dim=32",
    "model.depth=2",
    "model.num_heads=4",
    "trainer=cpu",
    "trainer.log_every_n_steps=1",
    "callbacks.progress=null",
    "trainer.enable_progress_bar=false",
    "data.num_workers=0",
    "data.max_bad_fraction=0.1",
    "callbacks.checkpoint.every_n_epochs=1",
    "callbacks.probe=null",
)
TINY_PRETRAIN = (
    *TINY,
    "task.model.decoder_embed_dim=32",
    "task.model.decoder_depth=1",
    "task.model.decoder_num_heads=4",
    "task.recipe.warmup_epochs=1",
    "data.reader.cfs_ratio=1.0",
    "total_batch_size=8",
    "micro_batch_size=null",
    "epochs=2",
    "trainer.check_val_every_n_epoch=1",
)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory):
    """drawn(dataset, num_images, **options): folder of a drawn data set, one for the whole session."""
    base = tmp_path_factory.mktemp("drawn")

    def draw(dataset: str, num_images: int, **options) -> Path:
        name = "_".join([dataset, str(num_images), *(f"{k}{v}" for k, v in sorted(options.items()))])
        return ensure(dataset, base / name, num_images=num_images, **options)

    return draw


@pytest.fixture(scope="session")
def luperson(drawn) -> Path:
    """100 drawn people in LUPerson's layout."""
    return drawn("luperson", 100)


SMALL = {"shard_mb": 0.05, "num_workers": 0}  # of `pack`: about 15 images in a shard


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """200 images with poses, to pack."""
    from test_luperson import write_set

    root = tmp_path_factory.mktemp("source")
    write_set(root, 200)
    return root


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory) -> Path:
    """Shards of `source`; read only."""
    out = tmp_path_factory.mktemp("packed") / "out"
    pack(source, out, **SMALL)
    return out


@contextmanager
def as_another_user() -> Iterator[None]:
    """Root may read everything: then what is forbidden to its owner is tried as somebody else."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def config(program: str, *overrides: str, hydra: bool = False) -> DictConfig:
    """Compose a program's configuration as the command line does."""
    register()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose(program, overrides=list(overrides), return_hydra_config=hydra)
