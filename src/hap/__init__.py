"""hap: masked image modelling for people (HAP, NeurIPS 2023, arXiv 2310.20695)."""

import os
from importlib import import_module

# albumentations asks a server for its newest version at import, unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.1.0"
__all__ = ["HapError", "create_encoder", "load"]

from hap.errors import HapError

_HOME = {"create_encoder": "hap.models.vit", "load": "hap.inference"}


def __getattr__(name: str):
    """Functions are imported when they are asked for, so that `import hap` stays light."""
    if name not in _HOME:
        raise AttributeError(f"module 'hap' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
