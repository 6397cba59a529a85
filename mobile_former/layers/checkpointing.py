"""Gradient checkpointing (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016)."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mobile_former.errors import InputError


def checkpoint_gradients(model: nn.Module, enable: bool = True) -> None:
    """Enable or disable gradient checkpointing, which makes training use less memory but more time.

    With checkpointing, a training step stores only the inputs and outputs of the blocks and recomputes the rest in the
    backward pass. Gradients, BatchNorm's statistics and random numbers do not change. Checkpointing has no effect on a
    compiled model, because the compiler decides which tensors to store.

    Args:
        model: a Mobile-Former or a detector of this project.
        enable: True to enable checkpointing, False to disable it.

    Raises:
        InputError: the model has no block that supports checkpointing.
    """
    blocks = [module for module in model.modules() if hasattr(type(module).forward, "recomputable")]
    if not blocks:
        raise InputError(
            f"{type(model).__name__} has no block that supports gradient checkpointing: give a model of this project"
        )
    for block in blocks:
        block.checkpoint_gradients = enable


def recomputable(forward: Callable) -> Callable:
    """Decorator for the ``forward`` method of a module class. :func:`checkpoint_gradients` then supports the class."""

    @functools.wraps(forward)
    def forward_or_checkpoint(self: nn.Module, *inputs, **named):
        enabled = getattr(self, "checkpoint_gradients", False) and self.training and torch.is_grad_enabled()
        if not enabled or torch.compiler.is_compiling():
            return forward(self, *inputs, **named)
        return checkpoint(
            forward,
            self,
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _copied_buffers(self)),  # for the forward pass, for the recomputation
            **named,
        )

    forward_or_checkpoint.recomputable = True
    return forward_or_checkpoint


@contextmanager
def _copied_buffers(module: nn.Module) -> Iterator[None]:
    """Context manager that replaces a module's buffers by copies while checkpointing recomputes the forward pass.

    Without the copies, the recomputation would update BatchNorm's running statistics a second time.
    """
    buffers = [(part, *entry) for part in module.modules() for entry in part.named_buffers(recurse=False)]
    for part, name, buffer in buffers:
        setattr(part, name, buffer.clone())
    try:
        yield
    finally:
        for part, name, buffer in buffers:
            setattr(part, name, buffer)
