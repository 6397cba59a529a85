"""``python -m experiments.sweep``: search options of ``fit``."""
