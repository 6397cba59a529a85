"""Gradient checkpointing (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016): time for memory."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mobile_former.errors import InputError


def checkpoint_gradients(model: nn.Module, enable: bool = True) -> None:
    """Let a model keep only what its blocks take and give while training, and compute the rest anew for the gradients.

    Gradients, BatchNorm's statistics and random draws stay what they are. A compiled model takes no notice, as its
    compiler decides what is kept.

    Args:
        model: one of Mobile-Former's, a detector over it too.
        enable: False lets it keep everything again.

    Raises:
        InputError: a model without such blocks.
    """
    parts = [module for module in model.modules() if hasattr(type(module).forward, "recomputable")]
    if not parts:
        raise InputError(f"{type(model).__name__} has none of the blocks whose gradients can be checkpointed")
    for part in parts:
        part.checkpoint_gradients = enable


def recomputable(forward: Callable) -> Callable:
    """Mark a module's ``forward`` as one that :func:`checkpoint_gradients` may have computed anew."""

    @functools.wraps(forward)
    def forward_or_checkpoint(self: nn.Module, *inputs, **named):
        checkpoints = getattr(self, "checkpoint_gradients", False) and self.training and torch.is_grad_enabled()
        if not checkpoints or torch.compiler.is_compiling():
            return forward(self, *inputs, **named)
        return checkpoint(
            forward,
            self,
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _spare_buffers(self)),  # of the first computation and of the second
            **named,
        )

    forward_or_checkpoint.recomputable = True
    return forward_or_checkpoint


@contextmanager
def _spare_buffers(module: nn.Module) -> Iterator[None]:
    """Have a module write into copies of its buffers: BatchNorm's statistics have counted this batch already."""
    buffers = [(part, *entry) for part in module.modules() for entry in part.named_buffers(recurse=False)]
    for part, name, buffer in buffers:
        setattr(part, name, buffer.clone())
    try:
        yield
    finally:
        for part, name, buffer in buffers:
            setattr(part, name, buffer)
