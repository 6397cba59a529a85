"""``python -m experiments.compare``: train several models by one recipe and compare them."""
