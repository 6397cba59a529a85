"""Export of trained models to ONNX and ExecuTorch files."""
