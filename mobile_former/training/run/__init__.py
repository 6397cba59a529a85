"""Code of a training run: folder, checkpoints, callbacks and report."""
