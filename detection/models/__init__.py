"""Detectors: E2E-MF (the DETR-like detector of the Mobile-Former paper), RetinaNet and DETR."""
