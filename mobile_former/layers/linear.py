"""Linear layer with the initialisation of the published Mobile-Former models."""

from torch import nn


def linear(in_features: int, out_features: int) -> nn.Linear:
    """Build a linear layer whose weights are normal with standard deviation 0.01 and whose bias is zero."""
    layer = nn.Linear(in_features, out_features)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer
