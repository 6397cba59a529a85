"""Load and save model weights in files of this project, of the authors and of the Hugging Face Hub."""

from mobile_former.weights.loading import LoadedWeights, load_weights, save_weights

__all__ = ["LoadedWeights", "load_weights", "save_weights"]
