"""``python -m experiments.compare``: train several models with the same config, and compare the results."""
