"""Functions that check whether tensors are in eager mode and in channels-last memory format."""

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def is_eager(*tensors: Tensor | None) -> bool:
    """Return whether PyTorch runs operations on the tensors immediately, and supports writing into existing memory.

    Compilers, tracers, dispatch modes and function transforms such as ``vmap`` do not support operations that write
    into existing memory, and choose memory formats themselves.
    """
    return (
        all(tensor is None or type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not is_in_torch_dispatch_mode()
        and not torch._C._are_functorch_transforms_active()
    )


def is_channels_last(x: Tensor) -> bool:
    """Return True if a feature map ``(B, C, H, W)`` is in channels-last memory format and :func:`is_eager` holds."""
    return is_eager(x) and x.is_contiguous(memory_format=torch.channels_last)


def channels_last_on_cpu(x: Tensor) -> Tensor:
    """Convert a feature map ``(B, C, H, W)`` on a CPU to channels-last memory format if :func:`is_eager` holds.

    Any other feature map is returned unchanged.
    """
    return x.contiguous(memory_format=torch.channels_last) if is_eager(x) and x.is_cpu else x
