"""``python -m classification.predict``: classify images, videos and cameras."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from classification.predict.classifier import CheckpointClassifier, Classifier, load_classifier, predict

__all__ = ["CheckpointClassifier", "Classifier", "load_classifier", "predict"]


def __getattr__(name: str) -> object:
    if name not in __all__:  # imported on use, so that the command prints its help without PyTorch
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("classification.predict.classifier"), name)
