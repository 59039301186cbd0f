"""`python -m hap.synthesize dataset=NAME num_images=N out=FOLDER`: drawn people in a data set's official layout."""

import logging
import os
from pathlib import Path

from omegaconf import DictConfig

from hap.cli import run_with_hydra
from hap.config import check_config, require
from hap.synthetic.datasets import synthesize

log = logging.getLogger(__name__)


def body(cfg: DictConfig, _: Path) -> None:
    require(cfg, dataset="dataset=luperson", out="out=FOLDER")
    check_config(cfg)
    out = synthesize(
        cfg.dataset,
        Path(cfg.out).expanduser(),
        num_images=cfg.num_images,
        seed=cfg.seed,
        num_workers=os.cpu_count() or 1 if cfg.num_workers is None else cfg.num_workers,
        **cfg.options,
    )
    log.info("%s: %d images in %s", cfg.dataset, cfg.num_images, out)


def main() -> None:
    run_with_hydra("synthesize", body, "stopped, nothing is left behind; the same command begins again")


if __name__ == "__main__":
    main()
