"""Measurements behind the figures in the documentation, run by `python -m hap.bench`."""
