"""Boxes: conversions, overlap, anchors, reference boxes, suppression."""
