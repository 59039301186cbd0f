"""What a logged name says: which of a run's scores it is judged by, and whether less of it is better."""

import re
from collections.abc import Collection

# Of errors and losses; the losses of `train/` have any name. All else that is measured is a share of what is right.
_LESS = re.compile(
    r"(loss|reconstruction|alignment|identity|triplet|head_\d+|seconds|grad_norm|data_wait)|.*(MPJPE|MPVPE).*"
)
# By which papers compare runs, best known first; `test/` before `val/` before what a probe found.
_SCORES = ("mAP", "mA", "AP", "PCKh", "PCK_box@0.05", "PA-MPJPE", "loss")


def lower_is_better(name: str) -> bool:
    """Whether a smaller `val/loss`, `test/mAP`, `probe/rank1`, ... is the better one."""
    stage, _, score = name.rpartition("/")
    return stage == "train" or _LESS.fullmatch(score) is not None


def main_score(names: Collection[str]) -> str | None:
    """The one that says most of a run; None if none of them says anything."""
    order = [f"{stage}/{score}" for stage in ("test", "val", "probe", "train") for score in _SCORES]
    return next((name for name in order if name in names), None)
