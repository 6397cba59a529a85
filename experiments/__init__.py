"""Benchmarks, comparisons, sweeps, ablations and notebooks: how to repeat them, and their results."""

import mobile_former.training  # noqa: F401  # names the missing extra before a command fails on it
