"""Optimiser and schedule of the published recipes."""

import math
from collections.abc import Mapping, Sequence

from pytorch_lightning import Trainer
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from mobile_former.errors import InputError


def parameter_groups(
    model: nn.Module, weight_decay: float, learning_rates: Mapping[nn.Module, float] | None = None
) -> list[dict]:
    """Split trainable parameters: with weight decay, and (biases and norms) without; and by learning rate.

    Args:
        model: any module; frozen parameters are left out. Its parts may name parameters in ``no_weight_decay``, for
            which 0 is no better a guess than any other value.
        weight_decay: of those with.
        learning_rates: of parts of the model that have their own.
    """
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    rates = {part: rate for module, rate in (learning_rates or {}).items() for part in module.modules()}
    groups: dict[tuple, list] = {(None, True): [], (None, False): []}
    seen = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                kept = name == "bias" or isinstance(module, norms) or name in getattr(module, "no_weight_decay", ())
                decayed = not kept
                groups.setdefault((rates.get(module), decayed), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decayed else 0.0}
        | ({} if rate is None else {"lr": rate})
        for (rate, decayed), parameters in groups.items()
    ]


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


def warmup_milestones(step: int, warmup_steps: int, milestones: Sequence[int]) -> float:
    """Factor of the learning rate at a step: linear from 1/warmup to 1, then a tenth from each milestone on.

    Args:
        step: optimiser steps taken so far, from 0.
        warmup_steps: length of the linear part.
        milestones: the steps from which on the rate is a tenth of what it was.
    """
    warmup = (step + 1) / warmup_steps if step < warmup_steps else 1.0
    return warmup * 0.1 ** sum(step >= milestone for milestone in milestones)


def adamw(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    warmup_epochs: float,
    total_steps: int,
    steps_per_epoch: int,
    milestones: Sequence[int] | None = None,
    learning_rates: Mapping[nn.Module, float] | None = None,
) -> dict:
    """AdamW with a schedule by step, in the form that ``configure_optimizers`` returns.

    Args:
        model: what is trained.
        learning_rate: the peak, reached after the warm-up.
        weight_decay: of all but biases and norms.
        warmup_epochs: length of the warm-up.
        total_steps: optimiser steps of the whole run.
        steps_per_epoch: optimiser steps of an epoch.
        milestones: epochs of :func:`warmup_milestones`; default: :func:`warmup_cosine`.
        learning_rates: peaks of parts of the model that have their own.
    """
    optimizer = AdamW(parameter_groups(model, weight_decay, learning_rates), lr=learning_rate)
    warmup_steps = min(total_steps, round(warmup_epochs * steps_per_epoch))
    if milestones is None:
        scheduler = LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup_steps, total_steps))
    else:
        falls = [epoch * steps_per_epoch for epoch in milestones]
        scheduler = LambdaLR(optimizer, lambda step: warmup_milestones(step, warmup_steps, falls))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def total_batch(trainer: Trainer) -> int:
    """Images that make up a step of the optimiser: of all processes, and of all batches that are accumulated."""
    return trainer.datamodule.hparams.batch_size * trainer.world_size * trainer.accumulate_grad_batches


def rate_factor(trainer: Trainer, meant_for: int | None) -> float:
    """What learning rates are multiplied by: the total batch over the one that they are meant for, None being any.

    The linear rule of Goyal et al., Accurate, Large Minibatch SGD (arXiv 1706.02677).
    """
    return 1.0 if meant_for is None else total_batch(trainer) / meant_for


def run_length(trainer: Trainer) -> dict[str, int]:
    """The optimiser steps of a fit that is about to begin: ``total_steps`` and ``steps_per_epoch``.

    Raises:
        InputError: there is nothing to train on, or no end.
    """
    trainer.fit_loop.setup_data()  # so that the number of batches is known
    batches = trainer.num_training_batches
    if batches == 0 or math.isinf(batches):
        raise InputError("there is no batch to train on: is --trainer.limit_train_batches 0?")
    total_steps = trainer.estimated_stepping_batches
    if math.isinf(total_steps):
        raise InputError("a schedule needs an end: give --trainer.max_epochs or --trainer.max_steps")
    return {
        "total_steps": int(total_steps),
        "steps_per_epoch": math.ceil(batches / trainer.accumulate_grad_batches),
    }
