"""Object detection with Mobile-Former."""

import detection.models.deploy  # noqa: F401 — tells mobile_former.deployment.deploy of the detectors' parts
from detection.losses.criterion import SetCriterion
from detection.losses.matcher import HungarianMatcher
from detection.models.factory import create_detector, list_detectors
from detection.models.weights import load_detector_weights

__all__ = ["HungarianMatcher", "SetCriterion", "create_detector", "list_detectors", "load_detector_weights"]
