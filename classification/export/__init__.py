"""``python -m classification.export``: write a classifier as an ONNX file or ExecuTorch program."""

from classification.export.writing import write_classifier

__all__ = ["write_classifier"]
