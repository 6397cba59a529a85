"""Division of the objects of an image into parts, so that comparisons with many boxes need little memory."""

import torch
from torch import Tensor

_LIMIT = 2**20  # comparisons at a time; each takes some 50 bytes


def parts(objects: int, boxes: int, device: torch.device) -> tuple[Tensor, ...]:
    """Return the indices of the objects of an image, divided into consecutive parts.

    Args:
        objects: number of objects.
        boxes: number of boxes that each object is compared with. It determines the length of the parts.
        device: device of the result.

    Returns:
        Tuple with one tensor ``(m,)`` long for each part: the indices of its m objects. m is at least 1.
    """
    return torch.arange(objects, device=device).split(max(1, _LIMIT // max(1, boxes)))
