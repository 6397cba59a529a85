"""What losses of several processes share."""

import torch
from torch import Tensor


def normaliser(count: Tensor, *, training: bool) -> Tensor:
    """What losses are divided by: a count, at least 1; in training its mean over all processes, which all have to ask.

    A loss that is divided by it is, averaged over the processes as gradients are, the one of a single process with all
    of the images. In evaluation processes may have different numbers of batches, and would wait for each other for
    ever.

    Args:
        count: of objects or of what stands for them, of any shape.
        training: whether the loss is trained on.
    """
    if training and torch.distributed.is_available() and torch.distributed.is_initialized():
        count = count.clone()
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return count.clamp(min=1)
