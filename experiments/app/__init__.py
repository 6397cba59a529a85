"""``python -m experiments.app``: try a trained model in a browser."""
