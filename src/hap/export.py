"""`python -m hap.export ckpt_path=FILE format=timm size=256x128 out=FOLDER`: see conf/export.yaml and hap.exporting."""

from pathlib import Path

from omegaconf import DictConfig

from hap.cli import run_with_hydra
from hap.config import check_config, require
from hap.exporting.run import export


def body(cfg: DictConfig, _: Path) -> None:
    require(cfg, format="format=timm (or safetensors, hap, onnx, torch_export)", out="out=FOLDER")
    check_config(cfg)
    export(cfg)


def main() -> None:
    run_with_hydra("export", body, "stopped, nothing is left behind")


if __name__ == "__main__":
    main()
