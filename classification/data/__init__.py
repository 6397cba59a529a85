"""Labelled images from image folders, tar shards or scikit-learn's digits, and the transforms of images."""
