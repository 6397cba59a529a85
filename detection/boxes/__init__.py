"""Box geometry, anchors, reference boxes, non-maximum suppression and postprocessing."""
