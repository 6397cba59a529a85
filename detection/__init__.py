"""Object detection with Mobile-Former."""

import detection.deploy  # noqa: F401 — tells mobile_former.deploy of the detectors' parts
from detection.criterion import SetCriterion
from detection.factory import create_detector, list_detectors
from detection.matcher import HungarianMatcher
from detection.weights import load_detector_weights

__all__ = ["HungarianMatcher", "SetCriterion", "create_detector", "list_detectors", "load_detector_weights"]
