"""``python -m experiments.app``: try a model in a browser."""
