"""Readers of annotated images. They recognise the layout of a data folder and return dictionaries in COCO format.

The library supervision 0.31 also has such readers. This project does not use them, because they do not recognise the
layout: the user must name it, with its paths. They also skip subfolders and lists of images, lose the flag
``difficult`` and LabelMe's images without a JSON file, shift the corners in files of datumaro and CVAT by a pixel, read
the class name ``no`` as False, and decode every image of Pascal VOC.
"""
