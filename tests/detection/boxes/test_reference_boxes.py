import math

import pytest
import torch

from detection.boxes.reference_boxes import attention_bias, correct, grid_boxes, sampling_weights


def test_the_attention_bias_is_the_logarithm_of_a_gaussian_around_the_box():
    boxes = torch.tensor([[[0.5, 0.25, 0.4, 0.2]]])
    bias = attention_bias(boxes, (2, 4), 16, torch.tensor([[64.0, 32.0]]))[0, 0].reshape(2, 4)
    for row in range(2):
        for column in range(4):
            x, y = (column + 0.5) / 4, (row + 0.5) / 2
            across = (x - 0.5) / (0.4 / 2 + 0.25 / 4)
            down = (y - 0.25) / (0.2 / 2 + 0.5 / 4)
            assert bias[row, column].item() == pytest.approx(-(across**2 + down**2) / 2, abs=1e-6)


def test_the_attention_bias_of_an_image_does_not_depend_on_its_padding():
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2]]])
    single = attention_bias(boxes, (4, 4), 8, torch.tensor([[32.0, 32.0]]))[0, 0].reshape(4, 4)
    padded = attention_bias(boxes, (6, 8), 8, torch.tensor([[32.0, 32.0]]))[0, 0].reshape(6, 8)
    torch.testing.assert_close(padded[:4, :4], single)


@pytest.mark.parametrize("count", [1, 7, 50, 100])
def test_the_grid_has_the_given_number_of_boxes_spread_over_the_image(count):
    boxes = grid_boxes(count)
    assert boxes.shape == (count, 4)
    assert boxes[:, :2].mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.1)
    assert len({tuple(box) for box in boxes[:, :2].tolist()}) == count
    assert 0 < boxes.min() <= boxes.max() <= 1


def test_a_correction_is_added_to_the_logits_of_a_box():
    boxes = torch.tensor([[[0.2, 0.5, 0.1, 0.9]]])
    moved = correct(boxes, torch.tensor([[[0.3, -0.2, 0.0, 1.0]]]))[0, 0].tolist()
    for before, by, after in zip([0.2, 0.5, 0.1, 0.9], [0.3, -0.2, 0.0, 1.0], moved, strict=True):
        assert math.log(after / (1 - after)) == pytest.approx(math.log(before / (1 - before)) + by, abs=1e-5)


def test_corrected_boxes_at_the_border_are_finite():
    boxes = torch.tensor([[[0.0, 1.0, 1.0, 0.0]]])
    assert correct(boxes, torch.zeros(1, 1, 4)).isfinite().all()


def test_samples_of_a_small_box_are_bilinear_interpolations():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 6, 9, generator=generator, dtype=torch.float64)
    boxes = torch.rand(2, 5, 4, generator=generator, dtype=torch.float64) * torch.tensor([0.4, 0.4, 0.2, 0.2])
    boxes += torch.tensor([0.3, 0.3, 0.1, 0.1])
    extent = torch.tensor([[72.0, 48.0]] * 2, dtype=torch.float64)
    down, across = sampling_weights(boxes, (6, 9), 8, extent, grid=4)
    samples = torch.einsum("bqgh,bqkw,bchw->bqcgk", down, across, x)
    places = (torch.arange(4, dtype=torch.float64) + 0.5) / 4 - 0.5
    for image in range(2):
        for query in range(5):
            cx, cy, w, h = boxes[image, query]
            rows, columns = torch.meshgrid(cy + places * h, cx + places * w, indexing="ij")
            grid = torch.stack([columns, rows], dim=-1)[None] * 2 - 1
            expected = torch.nn.functional.grid_sample(x[image, None], grid, align_corners=False, padding_mode="border")
            torch.testing.assert_close(samples[image, query], expected[0])


def test_samples_of_a_large_box_cover_its_cells_and_no_padding():
    padding = torch.zeros(1, 1, 16, 32, dtype=torch.bool)
    padding[..., 20:] = True
    boxes = torch.tensor([[[0.5, 0.5, 1.0, 1.0], [1.5, 0.5, 0.1, 0.1]]])
    down, across = sampling_weights(boxes, (16, 32), 8, torch.tensor([[160.0, 128.0]]), 4, padding)
    torch.testing.assert_close(down[0, 0].sum(-1), torch.ones(4))
    torch.testing.assert_close(across[0, 0].sum(-1), torch.ones(4))
    assert (down[0, 0].sum(0) > 0).all()
    assert (across[0, 0].sum(0) > 0).tolist() == [True] * 20 + [False] * 12
    cells = torch.arange(16) + 0.5
    torch.testing.assert_close((down[0, 0] @ cells)[1:3], torch.tensor([6.0, 10]))  # the others end at the border
    assert across[0, 1].sum() == 0  # the second box is outside the image
