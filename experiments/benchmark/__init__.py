"""Speed of models and their peers, measured by turns: ``python -m experiments.benchmark``."""
