"""Benchmarks, comparisons, sweeps, ablations and notebooks: how to repeat them, and their results."""
