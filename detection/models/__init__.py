"""Detectors: E2E-MF (the DETR-like detector of the Mobile-Former paper), RetinaNet and DETR."""

import detection.models.deploy  # noqa: F401  # registers the inference forms of the detectors' parts
