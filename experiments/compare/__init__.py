"""``python -m experiments.compare``: train several models with the same training config and compare them."""
