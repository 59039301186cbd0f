"""`python -m hap.predict ckpt_path=FILE ...`: see conf/predict.yaml and hap.runner."""

from functools import partial

from hap.cli import run_with_hydra
from hap.runner import run


def main() -> None:
    run_with_hydra("predict", partial(run, "predict"))


if __name__ == "__main__":
    main()
