"""Object detection with Mobile-Former: detectors, losses, training and evaluation."""

import importlib
from typing import TYPE_CHECKING

import mobile_former.training  # noqa: F401  # names the missing extra before a command fails on it

if TYPE_CHECKING:
    from detection.losses.criterion import SetCriterion
    from detection.losses.matcher import HungarianMatcher
    from detection.models.factory import create_detector, list_detectors
    from detection.models.weights import load_detector_weights

# Modules are imported when one of their names is used, so that commands print their help without PyTorch.
_MODULES = {
    "HungarianMatcher": "losses.matcher",
    "SetCriterion": "losses.criterion",
    "create_detector": "models.factory",
    "list_detectors": "models.factory",
    "load_detector_weights": "models.weights",
}

__all__ = ["HungarianMatcher", "SetCriterion", "create_detector", "list_detectors", "load_detector_weights"]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
