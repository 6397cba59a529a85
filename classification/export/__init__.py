"""``python -m classification.export``: write a classifier as ONNX or ExecuTorch file."""

from classification.export.writing import write_classifier

__all__ = ["write_classifier"]
