"""``python -m detection.export``: export a detector to an ONNX file."""
