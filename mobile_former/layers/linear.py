"""The linear layer with the published initialisation."""

from torch import nn


def linear(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer with bias; weights normal with standard deviation 0.01, bias zero."""
    layer = nn.Linear(in_features, out_features)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer
