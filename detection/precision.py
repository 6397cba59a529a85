"""The precision in which losses and costs are computed."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is too coarse for boxes, costs and losses; double stays."""
    return x if x.dtype == torch.float64 else x.float()
