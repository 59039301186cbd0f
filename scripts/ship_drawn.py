"""Put the weights of a finished `experiment=pretrain_drawn` into the package, with their card:

    python scripts/ship_drawn.py runs/pretrain_drawn/TIME

writes src/hap/weights/hap_drawn.safetensors (half precision) and hap_drawn.md beside it."""

import argparse
import json
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from hap.checkpointing import read_checkpoint

WEIGHTS = Path(__file__).parents[1] / "src" / "hap" / "weights"
LICENCE = "Apache-2.0"  # as the code that drew all that they have seen

CARD = """# hap_drawn: a small HAP, pre-trained on drawn people

`weights=drawn`: encoder (`model=vit_micro`, 6 blocks of width 128, 16 x 8 patches of 8 pixels) and decoder (2 blocks
of width 96), {parameters:,} parameters in half precision. It has seen people that hap draws, no photograph and no
real person. It is for demonstrations and tests, and a start for small models on small images; it is not the paper's
model.

| | |
| --- | --- |
| command | `{command}` |
| revision | `{revision}` |
| seed | {seed}; of the drawn people {drawn.seed} |
| images | {drawn.num_images:,} people, 128 x 64; {epochs} epochs, {steps:,} steps of {total_batch_size} images |
| time | {hours:.1f} hours on one core that was shared with other work |
| losses, held-out people | reconstruction {reconstruction:.3f} (pixels over deviation), alignment {alignment:.3f} |
| licence | {licence} |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of the finished run")
    run = parser.parse_args().run
    environment, results = (
        json.loads((run / f"{name}.json").read_text()) for name in ("environment", "results")
    )
    cfg = OmegaConf.load(run / "config.yaml")
    state = weights_of(run)
    WEIGHTS.mkdir(exist_ok=True)
    save_file(state, WEIGHTS / "hap_drawn.safetensors", {"grid": "16x8", "licence": LICENCE})
    card = CARD.format(
        **cfg,
        drawn=cfg.data.draw,
        command="python -m hap.train " + " ".join(a for a in environment["command"][1:] if "_dir=" not in a),
        revision=environment["git"],
        parameters=sum(value.numel() for value in state.values()),
        steps=results["steps"],
        hours=results["seconds"] / 3600,
        reconstruction=results["val/reconstruction"],
        alignment=results["val/alignment"],
        licence=LICENCE,
    )
    (WEIGHTS / "hap_drawn.md").write_text(card)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """The model of the last checkpoint in half precision, without the positions that it makes itself."""
    state = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    own = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    return {name: value.half() for name, value in own.items() if name != "decoder_pos_embed"}


if __name__ == "__main__":
    main()
