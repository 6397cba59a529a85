"""Division of the objects of an image into parts, so that comparisons with many boxes need little memory."""

import torch
from torch import Tensor

_LIMIT = 2**20  # comparisons at a time; each takes some 50 bytes


def parts(objects: int, boxes: int, device: torch.device) -> tuple[Tensor, ...]:
    """Return the indices of the objects of an image, divided into consecutive parts.

    Args:
        objects: number of objects.
        boxes: number of boxes that each object is compared with. The more boxes, the fewer objects in a part.
        device: device of the result.

    Returns:
        Tuple of int64 tensors, one for each part. Each has the shape ``(m,)`` and contains the indices of the m objects
        in the part. A part has at least one object.
    """
    return torch.arange(objects, device=device).split(max(1, _LIMIT // max(1, boxes)))
