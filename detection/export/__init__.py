"""``python -m detection.export``: write a detector as ONNX file."""
