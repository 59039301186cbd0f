"""`python -m hap.train experiment=NAME ...`: see conf/train.yaml and hap.runner."""

from functools import partial

from hap.cli import run_with_hydra
from hap.runner import run


def main() -> None:
    run_with_hydra("train", partial(run, "train"))


if __name__ == "__main__":
    main()
