"""COCO data sets, batches of images of different sizes, the data module."""
