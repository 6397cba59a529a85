"""Export of trained models to ONNX, ExecuTorch, LiteRT, Core ML and torch.export files."""
