"""scikit-learn's handwritten digits with a fixed split into training and validation data.

The embedded data sets of classification and detection are made from these digits.
"""

import numpy as np

# Lightning must be imported before scikit-learn and albumentations. typing caches Optional[Union[float, int]] with the
# order of the union that it sees first; with their order, jsonargparse reads `--trainer.limit_train_batches 1` as 1.0,
# which means all batches. tests/mobile_former/training/test_requirements.py checks it.
import pytorch_lightning  # noqa: F401
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def digits_of(split: str) -> tuple[np.ndarray, list[int]]:
    """Load the handwritten digits of a split, 8×8 pixels each.

    The split ``"val"`` has one fifth of each class.

    Args:
        split: ``"train"`` (1 437 digits) or ``"val"`` (360).

    Returns:
        A tuple (images, labels). The images are an array ``(N, 8, 8)``, float64 in 0..16. The labels are a list of
        integers.
    """
    data = load_digits()
    # Fixed, so that the split is the same for every seed and in both tasks.
    chosen = train_test_split(np.arange(len(data.target)), test_size=0.2, stratify=data.target, random_state=0)
    indices = np.sort(chosen[split == "val"])
    return data.images[indices], data.target[indices].tolist()
