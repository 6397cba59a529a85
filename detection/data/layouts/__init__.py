"""Layouts of annotated images: recognising them, and reading them as dictionaries in COCO format.

The readers are this project's own. Those of supervision 0.31 need the paths of a known layout. They skip subfolders and
lists of images, lose the flag ``difficult`` and (LabelMe) images without a file, shift the corners of datumaro and CVAT
by a pixel, read the class name ``no`` as False, and decode every image of Pascal VOC.
"""
