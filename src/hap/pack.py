"""`python -m hap.pack data.root=FOLDER out=FOLDER`; `hap pack --verify FOLDER`: see hap.packing."""

import logging
import sys
from pathlib import Path

from omegaconf import DictConfig

from hap.cli import run_with_hydra
from hap.config import check_config, require
from hap.data.shards import verify
from hap.errors import HapError
from hap.packing import pack

log = logging.getLogger(__name__)


def body(cfg: DictConfig, _: Path) -> None:
    require(cfg, out="out=FOLDER, where the shards are" if cfg.verify else "out=FOLDER")
    check_config(cfg)
    out = Path(cfg.out).expanduser()
    if cfg.verify:
        if wrong := verify(out):
            raise HapError(
                f"{len(wrong)} files are wrong in {out}; delete them and run the same hap pack again, it makes "
                "only those of the packing:\n" + "\n".join(wrong)
            )
        log.info("every shard in %s is intact", out)
        return
    if cfg.data.root is None:
        raise HapError("missing: data.root=FOLDER, the images to pack")
    report = pack(
        Path(cfg.data.root).expanduser(),
        out,
        height=cfg.height,
        shard_mb=cfg.shard_mb,
        num_workers=cfg.num_workers,
        cfs_ratio=cfg.cfs_ratio,
        require_pose=cfg.require_pose,
    )
    log.info(
        "%s images in %d shard(s), %.1f MB, %s left out, in %.1f s",
        *(f"{report.images:,}", report.shards, report.bytes / 1e6, f"{report.skipped:,}", report.seconds),
    )


def main() -> None:
    # A flag and a folder, as one types them, are the same as verify=true out=FOLDER.
    sys.argv[1:] = [
        "verify=true" if a == "--verify" else a if "=" in a or a.startswith("-") else f"out={a}"
        for a in sys.argv[1:]
    ]
    run_with_hydra("pack", body, "stopped; what is finished stays, the same command goes on")


if __name__ == "__main__":
    main()
