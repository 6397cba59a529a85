"""scikit-learn's handwritten digits in one fixed split, from which both tasks' embedded data are made."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def digits_of(split: str) -> tuple[np.ndarray, list[int]]:
    """Digits of 8×8 pixels; every fifth of a class is held out.

    Args:
        split: ``"train"`` (1 437 digits) or ``"val"`` (360).

    Returns:
        ``(N, 8, 8)`` float64 in 0..16, and the labels.
    """
    data = load_digits()
    # Fixed, so that what is held out stays the same under every seed of a run, and in both tasks.
    chosen = train_test_split(np.arange(len(data.target)), test_size=0.2, stratify=data.target, random_state=0)
    indices = np.sort(chosen[split == "val"])
    return data.images[indices], data.target[indices].tolist()
