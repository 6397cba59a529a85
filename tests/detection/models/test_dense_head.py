import pytest
import torch

from detection.models.dense_head import DenseHead
from mobile_former.layers.padding import content_size, padding_pyramid


@pytest.mark.parametrize("separable", [False, True])
def test_the_head_predicts_at_every_cell_coarse_to_fine(separable):
    torch.manual_seed(0)
    head = DenseHead(16, (32, 16, 8), 3, separable=separable).eval()
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, :, 50:] = True
    maps = {stride: torch.randn(2, 16, 64 // stride, 96 // stride) for stride in (32, 16, 8)}
    dense = head(maps, padding_pyramid(mask, (32, 16, 8)), content_size(torch.zeros(2, 3, 64, 96), mask))
    assert dense["logits"].shape == (2, 2 * 3 + 4 * 6 + 8 * 12, 3)
    expected = [
        ((column + 0.5) * stride, (row + 0.5) * stride)
        for stride in (32, 16, 8)
        for row in range(64 // stride)
        for column in range(96 // stride)
    ]
    torch.testing.assert_close(dense["centres"][0] * torch.tensor([96, 64]), torch.tensor(expected))
    torch.testing.assert_close(dense["centres"][1] * torch.tensor([50, 64]), torch.tensor(expected))
    # A cell is padding if all of its pixels are.
    outside = [x - stride / 2 >= 50 for (x, _), stride in zip(expected, [32] * 6 + [16] * 24 + [8] * 96, strict=True)]
    assert dense["padding"][1].tolist() == outside
    assert not dense["padding"][0].any()
    # Initially, every class has a probability of about 0.01, and boxes are centred at their cells.
    assert dense["logits"][0].sigmoid().mean().item() == pytest.approx(0.01, rel=0.3)
    torch.testing.assert_close(dense["boxes"][0, :, :2], dense["centres"][0])


@pytest.mark.parametrize("separable", [False, True])
def test_only_the_class_tower_gets_a_gradient_from_the_features(separable):
    torch.manual_seed(0)
    head = DenseHead(16, (32, 16), 3, separable=separable)
    maps = {stride: torch.randn(2, 16, 64 // stride, 64 // stride) for stride in (32, 16)}
    dense = head(maps, {}, content_size(torch.zeros(2, 3, 64, 64), None))
    assert dense["features"].shape == (2, 2 * 2 + 4 * 4, 2 * 16)
    dense["features"].square().sum().backward()
    for tower, trained in ((head.class_towers, True), (head.box_towers, False)):
        assert all((parameter.grad is not None) == trained for parameter in tower.parameters())


def test_peaks_are_the_positions_without_a_better_neighbour():
    torch.manual_seed(0)
    head = DenseHead(16, (32, 16), 3, separable=True).eval()
    mask = torch.zeros(2, 160, 224, dtype=torch.bool)
    mask[1, 100:] = True
    maps = {stride: 100 * torch.randn(2, 16, 160 // stride, 224 // stride) for stride in (32, 16)}
    dense = head(maps, padding_pyramid(mask, (32, 16)), content_size(torch.zeros(2, 3, 160, 224), mask))
    best = dense["logits"].amax(-1)
    for image in range(2):
        for number, (rows, columns) in {0: (5, 7), 35: (10, 14)}.items():
            scores = best[image, number : number + rows * columns].view(rows, columns)
            found = dense["peaks"][image, number : number + rows * columns].view(rows, columns)
            for row in range(rows):
                for column in range(columns):
                    near = scores[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
                    if scores[row, column] > torch.finfo(torch.float32).min:  # not on padding
                        assert found[row, column] == (scores[row, column] == near.max())
    assert 0.05 < dense["peaks"].float().mean() < 0.4
