"""``python -m classification.export``: export a classifier to a file for inference."""

from classification.export.writing import write_classifier

__all__ = ["write_classifier"]
