"""Benchmarks of inference and training: ``python -m experiments.benchmark``."""
