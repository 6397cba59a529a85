"""Notebooks to read and to run, and ``python -m experiments.notebooks``, which executes them in place."""
