"""hap: masked image modelling for people (HAP, NeurIPS 2023, arXiv 2310.20695)."""

import os

# albumentations asks a server for its newest version at import, unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.1.0"
__all__ = ["HapError", "create_encoder"]

from hap.errors import HapError


def create_encoder(*args, **kwargs):
    """`hap.models.vit.create_encoder`, imported when called, so that `import hap` stays light."""
    from hap.models.vit import create_encoder

    return create_encoder(*args, **kwargs)
