"""Function that computes the divisor of a loss, also in distributed training."""

import torch
from torch import Tensor


def normaliser(count: Tensor, *, training: bool) -> Tensor:
    """Return the divisor of a loss: ``count``, averaged over all processes in training, but at least 1.

    Gradients are averaged over processes. With the averaged divisor, the averaged gradients equal the gradients of one
    process that holds the whole batch. In training, every process must call this function. In evaluation, each process
    uses its own count, because processes may have different numbers of batches, and averaging could then wait forever.

    Args:
        count: number of objects or sum of weights in this process, of any shape.
        training: whether the loss is used in training.

    Returns:
        Tensor of the shape of ``count``.
    """
    if training and torch.distributed.is_available() and torch.distributed.is_initialized():
        count = count.clone()
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return count.clamp(min=1)
