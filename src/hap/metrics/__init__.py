"""Measures of the tasks: pure functions, and thin torchmetrics classes around them."""
