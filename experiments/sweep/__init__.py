"""Hyperparameter search for ``classification.fit`` and ``detection.fit``, run with ``python -m experiments.sweep``."""
