"""Full precision for boxes, losses and matching costs in mixed-precision training."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32 and keep float64; half precision is too coarse for boxes, losses and costs."""
    return x if x.dtype == torch.float64 else x.float()


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Return a context that disables autocast on a device.

    If autocast is already disabled, the context is empty: exporters do not support autocast contexts.
    """
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
