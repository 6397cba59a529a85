import math

import numpy as np
import pytest
import torch

from detection.boxes.anchors import cell_centres, decode, encode, make_anchors


def test_each_position_has_nine_anchors_of_three_sizes_and_three_shapes():
    anchors = make_anchors([(2, 3), (1, 2)], (8, 16), 4, torch.device("cpu"))
    assert anchors.shape == (9 * (6 + 2), 4)
    expected = []
    for (height, width), stride in (((2, 3), 8), ((1, 2), 16)):
        for row in range(height):
            for column in range(width):
                for octave in range(3):
                    for ratio in (0.5, 1, 2):
                        area = (4 * stride * 2 ** (octave / 3)) ** 2
                        side = math.sqrt(area / ratio)
                        expected.append([(column + 0.5) * stride, (row + 0.5) * stride, side, side * ratio])
    np.testing.assert_allclose(anchors, expected, rtol=1e-5)


def test_cells_are_ordered_by_row_and_then_by_column():
    centres = cell_centres((2, 3), 8, torch.device("cpu"))
    assert centres.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]


def test_offsets_are_in_units_of_the_anchor_and_decode_to_the_box():
    anchors = torch.tensor([[50.0, 60, 20, 40], [10, 10, 32, 32]])
    boxes = torch.tensor([[55.0, 50, 40, 10], [12, 8, 30, 33]])
    offsets = encode(boxes, anchors)
    assert offsets[0].tolist() == pytest.approx([0.25, -0.25, math.log(2), math.log(0.25)])
    torch.testing.assert_close(decode(offsets, anchors), boxes)
    assert decode(torch.full((1, 4), 1e4), anchors[:1]).isfinite().all()
