"""Object detection with Mobile-Former: detectors, losses, training and evaluation."""

import mobile_former.training  # noqa: F401, I001  # first: it names the missing extra before a detector fails on it
import detection.models.deploy  # noqa: F401  # registers the inference forms of the detectors' parts
from detection.losses.criterion import SetCriterion
from detection.losses.matcher import HungarianMatcher
from detection.models.factory import create_detector, list_detectors
from detection.models.weights import load_detector_weights

__all__ = ["HungarianMatcher", "SetCriterion", "create_detector", "list_detectors", "load_detector_weights"]
