import torch

from detection.models.box_features import GRID, BoxFeatures


def test_samples_are_projected_row_by_row():
    torch.manual_seed(0)
    features = BoxFeatures(8, 16).double()
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    down, across = torch.rand(2, 3, GRID, 5, dtype=torch.float64), torch.rand(2, 3, GRID, 7, dtype=torch.float64)
    samples = torch.einsum("bqgh,bqkw,bchw->bqgkc", down, across, x)
    expected = features.norm(features.project(samples.reshape(2, 3, -1)))
    torch.testing.assert_close(features(x, down, across), expected)
    channels_last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(features(channels_last, down, across), expected)
