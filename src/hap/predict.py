"""`python -m hap.predict ckpt_path=FILE ...`: see conf/predict.yaml and hap.runner."""

from functools import partial

from hap.cli import run_with_hydra
from hap.description import add_experiment
from hap.runner import run


def main() -> None:
    run_with_hydra("predict", partial(run, "predict"), complete=add_experiment)


if __name__ == "__main__":
    main()
