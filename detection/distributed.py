"""What losses of several processes share."""

import torch
from torch import Tensor


def average_over_processes(value: Tensor) -> Tensor:
    """The mean of a scalar over all processes, each of which has to ask; the scalar itself where there is but one.

    A loss that is divided by it is, averaged over the processes as gradients are, the one of a single process with all
    of the images.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    value = value.clone()
    torch.distributed.all_reduce(value)
    return value / torch.distributed.get_world_size()
