"""Benchmarks of inference and training, run with ``python -m experiments.benchmark``."""
