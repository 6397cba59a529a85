"""Data for object detection: COCO data sets, built-in synthetic images, padded batches and data module."""
