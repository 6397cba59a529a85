"""Functions that keep boxes, losses and matching costs in full precision during mixed-precision training."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Convert a tensor to float32. A float64 tensor is returned unchanged.

    Half precision is too coarse for boxes, losses and matching costs.
    """
    return x if x.dtype == torch.float64 else x.float()


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Return a context manager that disables autocast on a device.

    If autocast is not enabled on the device, a ``nullcontext`` is returned, because model exporters do not support
    ``torch.autocast``.
    """
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
