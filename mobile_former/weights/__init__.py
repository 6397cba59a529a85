"""Load and save model weights.

The weights can be in local files, including checkpoints of Mobile-Former's authors, or on the Hugging Face Hub.
"""

from mobile_former.weights.loading import LoadedWeights, load_weights, save_weights

__all__ = ["LoadedWeights", "load_weights", "save_weights"]
