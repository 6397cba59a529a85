"""Checks for computations that are only faster, or only possible, in eager PyTorch or for one memory layout."""

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def is_eager(*tensors: Tensor | None) -> bool:
    """Return whether operations on the tensors run at once and may write into given memory.

    Compilers, tracers, dispatch modes and function transforms such as ``vmap`` do not support operations that write
    into given memory, and choose memory layouts themselves.
    """
    return (
        all(tensor is None or type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not is_in_torch_dispatch_mode()
        and not torch._C._are_functorch_transforms_active()
    )


def is_channels_last(x: Tensor) -> bool:
    """Return whether a feature map ``(B, C, H, W)`` is stored channels-last, in eager PyTorch."""
    return is_eager(x) and x.is_contiguous(memory_format=torch.channels_last)


def channels_last_on_cpu(x: Tensor) -> Tensor:
    """Return a feature map ``(B, C, H, W)`` that is stored channels-last if it is on a CPU, in eager PyTorch."""
    return x.contiguous(memory_format=torch.channels_last) if is_eager(x) and x.is_cpu else x
