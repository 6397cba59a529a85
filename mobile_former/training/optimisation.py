"""Optimiser and schedule of the published recipes."""

import math

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Split trainable parameters in two: with weight decay, and (biases and norms) without.

    Args:
        model: any module; frozen parameters are left out.
        weight_decay: of the first group.
    """
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    decay, no_decay, seen = [], [], set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                (no_decay if name == "bias" or isinstance(module, norms) else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]


def warmup_cosine(step: int, warmup_steps: int, total_steps: int) -> float:
    """Factor of the learning rate at a step: linear from 1/warmup to 1, then half a cosine down to 0.

    Args:
        step: optimiser steps taken so far, from 0.
        warmup_steps: length of the linear part.
        total_steps: length of the whole; from there on the factor is 0.
    """
    if step >= total_steps:
        return 0.0
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def adamw_warmup_cosine(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    warmup_epochs: float,
    total_steps: int,
    steps_per_epoch: int,
) -> dict:
    """AdamW whose learning rate follows :func:`warmup_cosine`, in the form that ``configure_optimizers`` returns.

    Args:
        model: what is trained.
        learning_rate: the peak, reached after the warm-up.
        weight_decay: of all but biases and norms.
        warmup_epochs: length of the warm-up.
        total_steps: optimiser steps of the whole run.
        steps_per_epoch: optimiser steps of an epoch.
    """
    optimizer = AdamW(parameter_groups(model, weight_decay), lr=learning_rate)
    warmup_steps = min(total_steps, round(warmup_epochs * steps_per_epoch))
    scheduler = LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup_steps, total_steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
