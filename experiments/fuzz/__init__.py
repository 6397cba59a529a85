"""``python -m experiments.fuzz``: damaged files for everything that reads files."""
