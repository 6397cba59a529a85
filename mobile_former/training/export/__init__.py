"""Exported files: ONNX and ExecuTorch."""
