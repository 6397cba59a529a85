"""Optimiser, schedule and weight averaging of the published recipes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from mobile_former.errors import InputError


@dataclass(frozen=True)
class Optimisation:
    """Options of optimiser, learning rate schedule and weight averaging, shared by both tasks.

    Attributes:
        learning_rate: peak learning rate.
        backbone_learning_rate: peak learning rate of the backbone. None: ``learning_rate``.
        learning_rate_batch: total batch size (images per optimiser step) that the learning rates are meant for. The
            rates are scaled in proportion to the total batch size of the run. None: no scaling.
        weight_decay: weight decay of all parameters except biases and norm layers.
        warmup_epochs: number of epochs at the start during which the learning rate rises.
        milestones: epochs after which the learning rate is divided by 10. None: a cosine schedule down to 0.
        ema_decay: decay of an exponential moving average of the weights. 0: no average.

    Raises:
        InputError: a value is out of range.
    """

    learning_rate: float
    backbone_learning_rate: float | None = None
    learning_rate_batch: int | None = None
    weight_decay: float = 0.0
    warmup_epochs: float = 0.0
    milestones: Sequence[int] | None = None
    ema_decay: float = 0.0

    def __post_init__(self):
        def require(valid: bool, option: str, accepted: str) -> None:
            if not valid:
                raise InputError(f"--model.{option} is {getattr(self, option)}: give {accepted}")

        milestones = [] if self.milestones is None else list(self.milestones)
        require(self.learning_rate > 0, "learning_rate", "more than 0")
        backbone, batch = self.backbone_learning_rate, self.learning_rate_batch
        require(backbone is None or backbone > 0, "backbone_learning_rate", "more than 0")
        require(batch is None or batch >= 1, "learning_rate_batch", "a number of images")
        require(self.weight_decay >= 0, "weight_decay", "0 or more")
        require(self.warmup_epochs >= 0, "warmup_epochs", "0 or more")
        rising = milestones == sorted(set(milestones)) and min(milestones, default=1) >= 1
        require(rising, "milestones", "epochs from 1 in rising order")
        require(0 <= self.ema_decay < 1, "ema_decay", "0 (no average) to below 1")

    def configure(self, model: nn.Module, trainer: Trainer, backbone: nn.Module | None = None) -> dict:
        """Build the optimiser and the schedule of a training run that is about to begin.

        Args:
            model: module to train.
            trainer: trainer of the run.
            backbone: part of ``model`` that takes ``backbone_learning_rate``. None: there is no such part.

        Returns:
            The dictionary that ``configure_optimizers`` returns.
        """
        factor = rate_factor(trainer, self.learning_rate_batch)
        backbone_rate = self.backbone_learning_rate or self.learning_rate
        return adamw(
            model,
            learning_rate=self.learning_rate * factor,
            weight_decay=self.weight_decay,
            warmup_epochs=self.warmup_epochs,
            milestones=self.milestones,
            learning_rates=None if backbone is None else {backbone: backbone_rate * factor},
            **run_length(trainer),
        )

    def callbacks(self) -> list[Callback]:
        """Return a list with the callback that averages the weights. The list is empty if ``ema_decay`` is 0."""
        return [EMAWeightAveraging(decay=self.ema_decay)] if self.ema_decay > 0 else []


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
    """Build AdamW and a learning rate schedule that changes the rate at every optimiser step.

    Args:
        model: module to train.
        learning_rate: peak learning rate, reached after the warm-up.
        weight_decay: weight decay of all parameters except biases and norm layers.
        warmup_epochs: length of the warm-up in epochs.
        total_steps: number of optimiser steps of the run.
        steps_per_epoch: number of optimiser steps of an epoch.
        milestones: epochs after which the learning rate is divided by 10, see :func:`warmup_milestones`. None: the
            schedule of :func:`warmup_cosine`.
        learning_rates: dictionary from a submodule to its peak learning rate. Other submodules take ``learning_rate``.

    Returns:
        The dictionary that ``configure_optimizers`` returns.
    """
    optimizer = AdamW(parameter_groups(model, weight_decay, learning_rates), lr=learning_rate)
    warmup_steps = min(total_steps, round(warmup_epochs * steps_per_epoch))
    if milestones is None:
        scheduler = LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup_steps, total_steps))
    else:
        falls = [epoch * steps_per_epoch for epoch in milestones]
        scheduler = LambdaLR(optimizer, lambda step: warmup_milestones(step, warmup_steps, falls))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def parameter_groups(
    model: nn.Module, weight_decay: float, learning_rates: Mapping[nn.Module, float] | None = None
) -> list[dict]:
    """Group the trainable parameters of a model by weight decay and learning rate.

    Biases and norm layers have no weight decay. A submodule excludes further parameters by listing their names in its
    attribute ``no_weight_decay``. These are parameters that should not be pulled towards 0.

    Args:
        model: module to train.
        weight_decay: weight decay of the parameters that are not excluded.
        learning_rates: dictionary from a submodule to its learning rate. Other submodules take that of the optimiser.
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
                groups.setdefault((rates.get(module), not kept), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0} | ({} if rate is None else {"lr": rate})
        for (rate, decays), parameters in groups.items()
    ]


def warmup_cosine(step: int, warmup_steps: int, total_steps: int) -> float:
    """Return the learning rate factor. It rises linearly from 1/warmup_steps to 1, then falls to 0 along half a cosine.

    Args:
        step: number of optimiser steps so far.
        warmup_steps: length of the linear rise.
        total_steps: length of the whole schedule. The factor is 0 from this step on.
    """
    if step >= total_steps:
        return 0.0
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def warmup_milestones(step: int, warmup_steps: int, milestones: Sequence[int]) -> float:
    """Return the learning rate factor. It rises linearly from 1/warmup_steps to 1; each milestone divides it by 10.

    Args:
        step: number of optimiser steps so far.
        warmup_steps: length of the linear rise.
        milestones: optimiser steps at which the factor is divided by 10.
    """
    warmup = (step + 1) / warmup_steps if step < warmup_steps else 1.0
    return warmup * 0.1 ** sum(step >= milestone for milestone in milestones)


def total_batch(trainer: Trainer) -> int:
    """Return the number of images per optimiser step, over all processes and accumulated batches."""
    return trainer.datamodule.hparams.batch_size * trainer.world_size * trainer.accumulate_grad_batches


def rate_factor(trainer: Trainer, meant_for: int | None) -> float:
    """Return the factor that scales the learning rates to the total batch size of a run.

    This is the linear scaling rule of Goyal et al., Accurate, Large Minibatch SGD (arXiv 1706.02677).

    Args:
        trainer: trainer of the run.
        meant_for: total batch size that the learning rates are meant for. None: the factor is 1.
    """
    return 1.0 if meant_for is None else total_batch(trainer) / meant_for


def run_length(trainer: Trainer) -> dict[str, int]:
    """Return ``total_steps`` and ``steps_per_epoch`` of a run that is about to begin, in optimiser steps.

    Raises:
        InputError: there is no batch to train on, or the run is limited neither in epochs nor in steps.
    """
    trainer.fit_loop.setup_data()  # sets the number of batches
    batches = trainer.num_training_batches
    if batches == 0 or math.isinf(batches):
        raise InputError("there is no batch to train on: is --trainer.limit_train_batches 0?")
    total_steps = trainer.estimated_stepping_batches
    if math.isinf(total_steps):
        raise InputError("the learning rate schedule needs an end: give --trainer.max_epochs or --trainer.max_steps")
    return {"total_steps": int(total_steps), "steps_per_epoch": math.ceil(batches / trainer.accumulate_grad_batches)}
