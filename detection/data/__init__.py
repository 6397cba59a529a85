"""COCO data sets, the embedded scenes, batches of images of different sizes, and the data module."""
