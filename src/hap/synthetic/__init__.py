"""Synthetic people: annotated images of clothed persons, drawn here and written in the layouts of the real
data sets, so that tests and demonstrations need no download."""

from hap.synthetic.datasets import WRITERS, ensure, synthesize

__all__ = ["WRITERS", "ensure", "synthesize"]
