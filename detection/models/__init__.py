"""Detectors: E2E-MF, RetinaNet and DETR."""
