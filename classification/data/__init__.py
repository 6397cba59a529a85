"""Data for image classification: image folders, tar shards, scikit-learn's digits, transforms and data module."""
