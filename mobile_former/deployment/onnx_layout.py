"""What an inference form does for ONNX Runtime alone, in graphs that ``torch.onnx.export`` makes of it.

That runtime's convolutions for images have 16 channels side by side (8 on processors without AVX-512), and a map of
another number goes from layout to layout between them. So its graphs have maps of fewer channels *filled*: with as many
copies of all channels as a block takes, then zeros.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 16


def makes_onnx() -> bool:
    """Whether ``torch.onnx.export`` is at work."""
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


def filled(tensor: Tensor, width: int = BLOCK) -> Tensor:
    """What gives channels, along the first axis, for a map filled to ``width`` channels."""
    copies = width // len(tensor)
    return with_zeros(torch.cat([tensor] * copies), 0, width)


def with_zeros(tensor: Tensor, dim: int, width: int) -> Tensor:
    """What reads or gives channels, along an axis, with zeros for those beyond them, up to ``width``."""
    missing = width - tensor.shape[dim]
    if missing == 0:
        return tensor
    return F.pad(tensor, [0, 0] * (tensor.ndim - 1 - dim % tensor.ndim) + [0, missing])
