"""Split a model for COCO, AIC and MPII together into three plain ones, which compute the same.

    python scripts/split_pose2d.py runs/pose2d_multi/TIME/checkpoints/last.ckpt --out FOLDER

writes coco.ckpt, aic.ckpt and mpii.ckpt, checkpoints that need nothing else (hap eval ckpt_path=FOLDER/aic.ckpt). A
released file does not say how large its images are; an experiment does:

    python scripts/split_pose2d.py released.pth --out FOLDER experiment=pose2d_multi_384
"""

import argparse
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from hap.building import build, weights_options
from hap.checkpointing import CheckpointFiles
from hap.cli import quote_paths, readable_errors
from hap.config import CONF_DIR, check_config, register
from hap.description import add_experiment, describe_run
from hap.errors import HapError
from hap.models.checkpoint import load_weights
from hap.models.pose import PoseViT, split_experts
from hap.pose.skeletons import AIC, COCO, MPII, Skeleton

SETS = (COCO, AIC, MPII)  # in the order of the experts and heads


def split(path: Path, out: Path, overrides: Sequence[str] = ()) -> list[Path]:
    """Write the three checkpoints; their paths.

    Args:
        path: a checkpoint of `task=pose2d_multi`, or a released file.
        overrides: as on the command line, such as "experiment=pose2d_multi" for a file that does not say what it is.

    Raises:
        HapError: the file is of something else, incomplete, or a result is there already.
    """
    multi = configuration(path, overrides)
    model = build(multi.task.model, "task.model")
    if not isinstance(model, PoseViT) or model.num_sources != len(SETS):
        raise HapError(f"{path} is of {multi.name}, which is no model for COCO, AIC and MPII together")
    height, width = multi.img_size
    try:
        report = load_weights(model, path, **weights_options(multi))
    except HapError as error:
        raise HapError(
            f"{error}\n(read as of {multi.name}, images of {height} x {width}: experiment=pose2d_multi_384 or "
            "img_size=[HEIGHT,WIDTH] say otherwise)"
        ) from error
    if report.missing:
        raise HapError(
            f"{path} lacks {len(report.missing)} parameters of a model for {len(SETS)} data sets: "
            f"{', '.join(report.missing[:4])}, ..."
        )
    if report.resized:
        raise HapError(
            f"{path} is of images of another size than {height} x {width}: add img_size=[HEIGHT,WIDTH]"
        )
    files = {skeleton.name: out / f"{skeleton.name}.ckpt" for skeleton in SETS}
    if there := [str(file) for file in files.values() if file.exists()]:
        raise HapError(f"{', '.join(there)}: there already; --out FOLDER writes elsewhere")
    for source, skeleton in enumerate(SETS):
        state = split_experts(model.state_dict(), source, len(skeleton.joints))
        checkpoint = {
            "state_dict": {f"model.{name}": value for name, value in state.items()},
            "hap": describe_run(plain_configuration(multi, source, skeleton), skeleton.labels()),
            "grid": "{}x{}".format(*model.grid),
            "pytorch-lightning_version": lightning.__version__,
        }
        CheckpointFiles().save_checkpoint(checkpoint, files[skeleton.name])
    return list(files.values())


def configuration(path: Path, overrides: Sequence[str]) -> DictConfig:
    """Of the model for three sets: the file's own, or that of the experiment that is named."""
    if not path.is_file():
        raise HapError(f"file not found: {path}")
    try:
        arguments = add_experiment(quote_paths([f"ckpt_path={path}", *overrides]))
    except HapError as error:
        raise HapError(f"{error} (a released file: experiment=pose2d_multi or pose2d_multi_384)") from error
    cfg = composed(arguments)
    check_config(cfg)
    return cfg


def plain_configuration(multi: DictConfig, source: int, skeleton: Skeleton) -> DictConfig:
    """Of one of the three: the data of its own experiment, where the training had them; all else as it was there."""
    plain, cfg = composed([f"experiment=pose2d_{skeleton.name}"]), deepcopy(multi)
    given: Any = OmegaConf.to_container(multi, resolve=False)
    folder = (given["data"]["reader"].get("folders") or {}).get(skeleton.name, skeleton.name)
    with open_dict(cfg):
        cfg.name, cfg.data = plain.name, plain.data
        cfg.data.root = f"{given['data']['root']}/{folder}"
        cfg.task.model.num_joints = len(skeleton.joints)
        del cfg.task.model.num_sources
        cfg.task.codecs = [given["task"]["codecs"][source]]
        cfg.task.skeleton = skeleton.name
    return cfg


def composed(arguments: list[str]) -> DictConfig:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("eval", arguments)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, help="folder; default: that of the file")
    parser.add_argument("overrides", nargs="*", help="of a released file: experiment=NAME, and what differs")
    args = parser.parse_intermixed_args()
    register()
    with readable_errors("eval"):
        for file in split(args.file, args.out or args.file.parent, args.overrides):
            print(f"hap eval ckpt_path={file}")


if __name__ == "__main__":
    main()
