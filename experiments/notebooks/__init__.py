"""Notebooks, and the command ``python -m experiments.notebooks`` that executes them in place."""
