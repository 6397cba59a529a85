"""Load and save weights: weights files, the authors' checkpoints, models on the Hugging Face Hub."""

from mobile_former.weights.loading import LoadedWeights, load_weights, save_weights

__all__ = ["LoadedWeights", "load_weights", "save_weights"]
