"""``python -m detection.export``: write a detector as an ONNX file."""
