"""Losses of the detectors, and the matching of predictions with objects."""
