"""Notebooks, and ``python -m experiments.notebooks``, which executes them in place."""
