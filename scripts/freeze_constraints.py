"""Write constraints.txt: the versions installed here of everything that hap[dev] needs, and nothing else.

python scripts/freeze_constraints.py
"""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Follow from torch's own version, and differ between machines.
BY_TORCH = ("nvidia-", "cuda-", "triton")


def closure(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> None:
    """Add a package and what it requires on this platform to `seen`; what is not installed is optional."""
    if (name, extras) in seen:
        return
    try:
        requires = distribution(name).requires or []
    except PackageNotFoundError:
        return
    seen.add((name, extras))
    for requirement in map(Requirement, requires):
        if requirement.marker is None or any(
            requirement.marker.evaluate({"extra": e}) for e in extras | {""}
        ):
            closure(canonicalize_name(requirement.name), frozenset(requirement.extras), seen)


if __name__ == "__main__":
    seen: set[tuple[str, frozenset[str]]] = set()
    closure("hap", frozenset({"dev"}), seen)
    names = sorted({name for name, _ in seen} - {"hap"})
    lines = [f"{name}=={distribution(name).version}" for name in names if not name.startswith(BY_TORCH)]
    header = "# One known-good set, written by scripts/freeze_constraints.py; `make` installs from it.\n"
    Path("constraints.txt").write_text(header + "\n".join(lines) + "\n")
