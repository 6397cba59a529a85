import math

import pytest
import torch

from mobile_former.layers.padding import content_size, double, halve, mean_pool, padding_pyramid, zero_padding


def padded(height, width, content):
    """A map of two samples and its mask: the first has its content in the top left corner, the second is full."""
    torch.manual_seed(0)
    padding = torch.zeros(2, 1, height, width, dtype=torch.bool)
    padding[0, :, content[0] :] = True
    padding[0, :, :, content[1] :] = True
    return torch.randn(2, 3, height, width, dtype=torch.double), padding


@pytest.mark.parametrize("size", [(7, 10), (8, 8)])
def test_a_cell_of_the_pyramid_is_padding_if_all_of_its_pixels_are(size):
    _, mask = padded(*size, (5, 3))
    pyramid = padding_pyramid(mask[:, 0], (1, 2, 4, 8))
    for stride, found in pyramid.items():
        assert found.dtype == torch.bool
        assert found.shape == (2, 1, *(math.ceil(side / stride) for side in size))
        for sample, _, row, column in torch.cartesian_prod(*map(torch.arange, found.shape)).tolist():
            pixels = mask[sample, 0, row * stride : (row + 1) * stride, column * stride : (column + 1) * stride]
            assert found[sample, 0, row, column] == pixels.all()


def test_content_size_is_width_and_height_without_padding():
    x, padding = padded(7, 10, (5, 3))
    assert content_size(x, padding[:, 0]).tolist() == [[3, 5], [10, 7]]
    assert content_size(x, None).tolist() == [[10, 7], [10, 7]]


def test_zero_padding_changes_only_the_padding():
    x, padding = padded(4, 5, (2, 3))
    found = zero_padding(x, padding)
    assert torch.equal(found[1], x[1])
    assert torch.equal(found[0, :, :2, :3], x[0, :, :2, :3])
    assert found[0].count_nonzero() == 3 * 2 * 3
    assert zero_padding(x, None) is x


def test_the_mean_leaves_out_padding():
    x, padding = padded(4, 5, (2, 3))
    found = mean_pool(x, padding)
    torch.testing.assert_close(found[0], x[0, :, :2, :3].mean((1, 2)))
    torch.testing.assert_close(found[1], x[1].mean((1, 2)))
    torch.testing.assert_close(mean_pool(x, None), x.mean((2, 3)))
    assert mean_pool(x, torch.ones_like(padding)).count_nonzero() == 0


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_halving_averages_the_content_of_each_cell(size):
    x, padding = padded(*size, (3, 3))
    for mask in (padding, None):
        found = halve(x, mask)
        assert found.shape == (2, 3, math.ceil(size[0] / 2), math.ceil(size[1] / 2))
        for sample, row, column in torch.cartesian_prod(*map(torch.arange, (2, *found.shape[2:]))).tolist():
            cell = (sample, slice(None), slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
            content = x[cell][:, ~padding[cell][0]] if mask is not None else x[cell].flatten(1)
            expected = content.mean(1) if content.numel() else torch.zeros(3).double()
            torch.testing.assert_close(found[sample, :, row, column], expected)


@pytest.mark.parametrize("size", [(8, 10), (7, 9)])
def test_doubling_interpolates_between_positions_that_are_not_padding(size):
    x, padding = padded(4, 5, (2, 3))

    def neighbours(index, count):
        """The two source positions of an output position, with their weights."""
        source = max((index + 0.5) / 2 - 0.5, 0)
        low = int(source)
        return (low, 1 - (source - low)), (min(low + 1, count - 1), source - low)

    for mask in (padding, None):
        found = double(x, mask, size)
        assert found.shape == (2, 3, *size)
        for sample, row, column in torch.cartesian_prod(*map(torch.arange, (2, *size))).tolist():
            total, weights = torch.zeros(3).double(), 0.0
            for source_row, row_weight in neighbours(row, 4):
                for source_column, column_weight in neighbours(column, 5):
                    if mask is None or not mask[sample, 0, source_row, source_column]:
                        total += row_weight * column_weight * x[sample, :, source_row, source_column]
                        weights += row_weight * column_weight
            torch.testing.assert_close(found[sample, :, row, column], total / weights if weights else total)
