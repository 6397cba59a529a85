"""Load and save model weights: local files, checkpoints of Mobile-Former's authors, and the Hugging Face Hub."""

from mobile_former.weights.loading import LoadedWeights, load_weights, save_weights

__all__ = ["LoadedWeights", "load_weights", "save_weights"]
