"""``python -m classification.export``: export a classifier to an ONNX file or ExecuTorch program."""

from classification.export.writing import write_classifier

__all__ = ["write_classifier"]
