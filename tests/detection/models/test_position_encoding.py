import math

import pytest
import torch

from detection.models.position_encoding import BoxEmbedding, sine_encoding


def test_the_sine_encoding_spans_the_image_without_padding_and_gives_each_head_rows_and_columns():
    padding = torch.zeros(1, 1, 4, 6, dtype=torch.bool)
    padding[..., 4:] = True
    encoding = sine_encoding(torch.zeros(1, 16, 4, 6), padding)
    for row in range(4):
        for column in range(4):
            expected = []
            for head in range(2):
                for cell, extent in ((row, 4), (column, 4)):
                    angles = [2 * math.pi * (cell + 0.5) / extent / 10000 ** (k / 4) for k in (head, head + 2)]
                    expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert encoding[0, :, row, column].tolist() == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(sine_encoding(torch.zeros(3, 16, 4, 4)), encoding[..., :4])


def test_boxes_are_embedded_by_sines_of_their_coordinates_and_an_mlp():
    embedding = BoxEmbedding(8)
    box = [0.5, 0.25, 0.4, 0.1]
    features = []
    for coordinate in box:
        angles = [2 * math.pi * coordinate / 10000 ** (k / 2) for k in (0, 1)]
        features += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    expected = embedding.mlp(torch.tensor(features))
    torch.testing.assert_close(embedding(torch.tensor([[box]]))[0, 0], expected)
