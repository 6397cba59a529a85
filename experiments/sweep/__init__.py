"""``python -m experiments.sweep``: hyperparameter search for ``classification.fit`` and ``detection.fit``."""
