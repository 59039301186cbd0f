"""The console script. It loads nothing but the program that is asked for: `hap doctor` works where PyTorch does not."""

import runpy
import sys

PROGRAMS = {
    "train": "pre-train or fine-tune: hap train experiment=NAME [key=value ...]",
    "eval": "evaluate a checkpoint: hap eval ckpt_path=FILE data.root=FOLDER",
    "predict": "results for your own images: hap predict ckpt_path=FILE ...",
    "export": "a trained model for other programs: hap export ckpt_path=FILE format=onnx out=FOLDER",
    "synthesize": "draw annotated people in a data set's official layout",
    "pack": "images and annotations into shards; `hap pack --verify DIR` checks them",
    "report": "what a run has left, on one page: hap report FOLDER [FOLDER ...]",
    "bench": "measured speed on this machine: hap bench pretrain",
    "doctor": "what this machine and its data sets lack, and what to type: hap doctor [data=FOLDER]",
}


def main() -> None:
    """`hap train ...` is `python -m hap.train ...`."""
    if len(sys.argv) > 1 and sys.argv[1] in PROGRAMS:
        program = sys.argv.pop(1)
        # As __main__ and by its module name, so that Lightning can start the other ranks the same way.
        runpy.run_module(f"hap.{program}", run_name="__main__", alter_sys=True)
        return
    print("usage: hap PROGRAM ...\n\n" + "\n".join(f"  {name:12}{text}" for name, text in PROGRAMS.items()))
    if len(sys.argv) > 1 and sys.argv[1] not in ("-h", "--help"):
        from hap.config import did_you_mean

        print(
            f"\nhap: there is no program {sys.argv[1]!r}{did_you_mean(sys.argv[1], PROGRAMS)}",
            file=sys.stderr,
        )
        sys.exit(2)
