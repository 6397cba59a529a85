"""A training run: folder, checkpoints, callbacks and report."""
