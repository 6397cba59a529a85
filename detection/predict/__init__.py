"""``python -m detection.predict``: detect objects in images, videos and cameras."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detection.predict.detector import CheckpointDetector, Detector, listed, load_detector, predict

__all__ = ["CheckpointDetector", "Detector", "listed", "load_detector", "predict"]


def __getattr__(name: str) -> object:
    if name not in __all__:  # imported on use, so that the command prints its help without PyTorch
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("detection.predict.detector"), name)
