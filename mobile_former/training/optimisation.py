"""The optimiser AdamW, learning rate schedules, and an exponential moving average of the weights."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mobile_former.errors import InputError


@dataclass(frozen=True)
class Optimisation:
    """Options of the optimiser, the learning rate schedule and the weight averaging.

    Attributes:
        learning_rate: peak learning rate.
        backbone_learning_rate: peak learning rate of the backbone. None: ``learning_rate``.
        learning_rate_batch: number of images per optimiser step for which the learning rates are given. If a run has
            another number, its learning rates are scaled in proportion. None: no scaling.
        weight_decay: weight decay of all parameters, with the exceptions in :func:`parameter_groups` (such as biases).
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
        """Build the optimiser and the learning rate schedule of a training run that is about to start.

        Args:
            model: module to train.
            trainer: trainer of the run.
            backbone: submodule of ``model`` that is trained with ``backbone_learning_rate``. None: all parameters are
                trained with ``learning_rate``.

        Returns:
            A dictionary that ``LightningModule.configure_optimizers`` can return.
        """
        require_steps(trainer)
        scale = rate_factor(trainer, self.learning_rate_batch)
        if scale != 1 and trainer.is_global_zero:
            print(
                f"rates  the learning rates are multiplied by {scale:.4g}: an optimiser step has "
                f"{total_batch(trainer)} images, --model.learning_rate_batch is {self.learning_rate_batch}"
            )
        backbone_rate = self.backbone_learning_rate or self.learning_rate
        optimizer = adamw(
            model,
            learning_rate=self.learning_rate * scale,
            weight_decay=self.weight_decay,
            learning_rates=None if backbone is None else {backbone: backbone_rate * scale},
        )
        scheduler = ProgressSchedule(optimizer, lambda: self.factor(progress_of(trainer)))
        # Lightning's LearningRateMonitor logs lr/NAME for each group of parameters.
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}

    def rates(self, trainer: Trainer) -> dict[str, float]:
        """Return a dictionary from the name of each logged learning rate to its current value.

        The names are ``lr`` and, if the backbone has another peak learning rate, ``lr_backbone``. If a user's callback
        has replaced the optimiser, ``lr`` is the learning rate of the optimiser's first parameter group.
        """
        groups = trainer.optimizers[0].param_groups
        rates = {group.get("name", "model"): group["lr"] for group in reversed(groups)}
        differs = self.backbone_learning_rate not in (None, self.learning_rate)
        return {"lr": rates["model"]} | ({"lr_backbone": rates["backbone"]} if differs else {})

    def factor(self, progress: "Progress") -> float:
        """Return the factor by which the peak learning rates are multiplied in the next optimiser step.

        Args:
            progress: number of finished steps and length of the schedule, see :class:`Progress`.
        """
        steps, total = progress.steps_per_epoch, progress.total_steps
        warmup = min(total, round(self.warmup_epochs * steps))
        if self.milestones is None:
            return warmup_cosine(progress.step, warmup, total)
        return warmup_milestones(progress.step, warmup, [epoch * steps for epoch in self.milestones])

    def callbacks(self) -> list[Callback]:
        """Return a list with the weight averaging callback. The list is empty if ``ema_decay`` is 0."""
        return [ExponentialAverage(self.ema_decay)] if self.ema_decay > 0 else []


class Progress(NamedTuple):
    """Position of a training run in its learning rate schedule, in optimiser steps.

    Attributes:
        step: number of finished epochs times ``steps_per_epoch``, plus the number of steps in the current epoch. If
            the batch size was changed when the run was resumed, this differs from the number of steps actually taken.
        steps_per_epoch: number of optimiser steps in an epoch.
        total_steps: value of ``step`` at which the run ends.
    """

    step: int
    steps_per_epoch: int
    total_steps: int


def progress_of(trainer: Trainer) -> Progress:
    """Return the position of a run in its learning rate schedule as :class:`Progress`, in optimiser steps.

    The position is computed from the number of finished epochs and the finished batches of the current epoch, not from
    the number of optimiser steps that the run has taken. A run can therefore resume at the right position with another
    batch size or another number of devices, images or epochs.
    """
    loop, accumulated = trainer.fit_loop, trainer.accumulate_grad_batches
    steps_per_epoch = math.ceil(trainer.num_training_batches / accumulated)
    batches = loop.epoch_loop.batch_progress  # of the current epoch, including the current batch
    # A checkpoint from the end of an epoch has the number of batches that an epoch had when it was written.
    share = steps_per_epoch if batches.is_last_batch else math.ceil(batches.current.ready / accumulated)
    step = trainer.current_epoch * steps_per_epoch + share
    ends = [loop.max_epochs * steps_per_epoch] if loop.max_epochs not in (None, -1) else []
    if trainer.max_steps != -1:
        ends.append(step + trainer.max_steps - trainer.global_step)
    return Progress(step, steps_per_epoch, min(ends))


class ProgressSchedule(LRScheduler):
    """Learning rate schedule that depends only on the progress of the run, see :func:`progress_of`.

    The state of the schedule is not saved in checkpoints. A resumed run therefore uses its own options, not those of
    the checkpoint.

    Args:
        optimizer: optimiser whose parameter groups have the peak learning rates.
        factor: function without arguments. It returns the number by which the peak learning rates are currently
            multiplied.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[], float]):
        self.factor = factor
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """Return a list of the learning rates for the next optimiser step, one for each parameter group."""
        factor = self.factor()
        return [peak * factor for peak in self.base_lrs]

    def state_dict(self) -> dict:
        """Return an empty dictionary, because the learning rates depend only on the progress of the run."""
        return {}

    def load_state_dict(self, state_dict: dict) -> None:
        """Set the learning rates to their values at the step from which the run resumes.

        Lightning restores the number of this step before it calls the method.

        Args:
            state_dict: not used. The argument is part of PyTorch's interface.
        """
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


class ExponentialAverage(WeightAveraging):
    """Callback that computes an exponential moving average of the weights over the optimiser steps.

    The averaged weights are evaluated and saved instead of the trained weights. The decay after ``n`` steps is the
    smaller one of ``decay`` and ``(1 + n) / (10 + n)``, as in TensorFlow's ExponentialMovingAverage. The initial
    weights therefore soon lose their influence, even in runs that are shorter than ``1 / (1 - decay)`` steps.

    The running statistics of BatchNorm layers are computed with the averaged weights. They are means over the last
    training batches before a validation or the end of an epoch. All other buffers are copied from the trained model.

    Args:
        decay: decay of the average in long runs, from 0 to below 1.
    """

    def __init__(self, decay: float):
        def average(averages: list[Tensor], values: list[Tensor], count: Tensor) -> None:
            steps = int(count)
            get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))(averages, values, count)

        super().__init__(use_buffers=False, multi_avg_fn=average)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Update the averaged weights.

        In the last batches before a validation or the end of an epoch, also update the BatchNorm statistics of the
        averaged model.
        """
        position, start = _statistics_window(trainer, batch_idx)
        norms = self._batch_norms(pl_module) if position >= start else []
        buffers = [buffer for norm in norms for buffer in norm.buffers()]
        collected = [buffer.clone() for buffer in buffers]  # the update replaces them by those of the trained model
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not norms:
            return
        for buffer, value in zip(buffers, collected, strict=True):
            buffer.copy_(value)
        average = self._average_model.module.eval()  # without dropout and stochastic depth
        for norm in norms:
            norm.train()
            norm.momentum = None  # the mean over all batches since the reset
            if position == start:
                norm.reset_running_stats()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            average(*(batch[name] for name in ("image", "padding_mask") if name in batch))
        if trainer.world_size > 1:  # after each batch, since a checkpoint only contains those of the first process
            statistics = [buffer for buffer in buffers if buffer.is_floating_point()]
            mean = trainer.strategy.reduce(parameters_to_vector(statistics), reduce_op="mean")
            vector_to_parameters(mean, statistics)

    @property
    def state_key(self) -> str:
        """Key under which checkpoints store the state of the callback.

        It is fixed, so that checkpoints of earlier versions of this project can be loaded.
        """
        return "EMAWeightAveraging"

    def _batch_norms(self, pl_module: LightningModule) -> list[nn.Module]:
        """Return a list of the averaged model's BatchNorm layers, except those that are frozen in training."""
        means = dict(self._average_model.module.named_modules())
        return [
            means[name]
            for name, part in pl_module.named_modules()
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training
        ]


def _statistics_window(trainer: Trainer, batch_idx: int) -> tuple[int, int]:
    """Return the position of a batch, and of the first batch from which BatchNorm statistics are computed.

    Training is divided into intervals. An interval ends at a validation, at the end of an epoch or at the end of
    training. The statistics are computed from the last tenth of the interval that contains the batch, but from at least
    10 and at most 50 batches.

    Args:
        trainer: trainer of the run.
        batch_idx: number of the batch in its epoch, from 0.

    Returns:
        A tuple (position of the batch, position of the first batch for the statistics). Both are numbers of batches
        since the start of the epoch or, if validations are not aligned with epochs, since the start of training.
    """
    total, first = trainer.num_training_batches, 0
    if trainer.check_val_every_n_epoch is None:
        first = trainer.fit_loop.total_batch_idx - batch_idx
    interval = trainer.val_check_batch if isinstance(trainer.val_check_batch, int) else total
    position = first + batch_idx
    begin = position // interval * interval
    begin, end = max(first, begin), min(first + total, begin + interval)
    accumulated = trainer.accumulate_grad_batches
    if trainer.max_steps != -1:
        left = (trainer.max_steps - trainer.global_step) * accumulated - (batch_idx + 1) % accumulated
        end = min(end, position + 1 + max(0, left))
    return position, max(begin, end - min(50, max(10, (end - begin) // 10)))


def adamw(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    learning_rates: Mapping[nn.Module, float] | None = None,
) -> AdamW:
    """Build an AdamW optimiser whose ``load_state_dict`` does not replace its learning rates and other options.

    PyTorch's AdamW would take the learning rates and the weight decay of an earlier run from the loaded state. On a
    CPU, the optimiser is fused: a step takes a third of the time.

    Args:
        model: module to train.
        learning_rate: peak learning rate.
        weight_decay: weight decay of all parameters, with the exceptions in :func:`parameter_groups` (such as biases).
        learning_rates: dictionary from a submodule to its peak learning rate. All other parameters use
            ``learning_rate``. None: no submodule has its own rate.
    """
    # Not on a GPU: there Lightning does not clip gradients in 16-bit precision if the optimiser is fused.
    fused = all(parameter.device.type == "cpu" for parameter in model.parameters())
    optimizer = AdamW(parameter_groups(model, weight_decay, learning_rates), lr=learning_rate, fused=fused)
    options = [
        {name: value for name, value in group.items() if name != "params"} | {"initial_lr": group["lr"]}
        for group in optimizer.param_groups
    ]

    def restore_options(optimizer: Optimizer) -> None:
        # torch takes the options of a checkpoint, so that a new learning rate or weight decay would have no effect.
        for group, given in zip(optimizer.param_groups, options, strict=True):
            group.update(given)
        if not fused:  # A fused optimiser's step counts are on the GPU. Otherwise AdamW would wait for them there.
            for state in optimizer.state.values():
                state["step"] = state["step"].cpu()

    optimizer.register_load_state_dict_post_hook(restore_options)
    return optimizer


def parameter_groups(
    model: nn.Module, weight_decay: float, learning_rates: Mapping[nn.Module, float] | None = None
) -> list[dict]:
    """Group the trainable parameters of a model by weight decay and learning rate.

    Biases and the parameters of norm layers have no weight decay. A module can exclude more of its parameters from
    weight decay by listing their names in an attribute ``no_weight_decay``.

    Args:
        model: module to train.
        weight_decay: weight decay of the parameters that are not excluded.
        learning_rates: dictionary from a submodule to its learning rate. All other parameters use the optimiser's
            default.

    Returns:
        A list of parameter groups for a PyTorch optimiser. The name of a group is the name of the submodule in
        ``learning_rates``, or ``"model"`` for all other parameters. For a group without weight decay, ``_no_decay`` is
        appended to the name.
    """
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    rates = {part: rate for module, rate in (learning_rates or {}).items() for part in module.modules()}
    names = {part: name for name, part in model.named_modules()}
    parts = {rate: names[module] for module, rate in (learning_rates or {}).items()} | {None: "model"}
    groups: dict[tuple, list] = {(None, True): [], (None, False): []}
    seen = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                kept = name == "bias" or isinstance(module, norms) or name in getattr(module, "no_weight_decay", ())
                groups.setdefault((rates.get(module), not kept), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decays else 0.0,
            "name": parts[rate] + ("" if decays else "_no_decay"),
        }
        | ({} if rate is None else {"lr": rate})
        for (rate, decays), parameters in groups.items()
    ]


def warmup_cosine(step: int, warmup_steps: int, total_steps: int) -> float:
    """Return the learning rate at an optimiser step, as a fraction of its peak, with warm-up and cosine decay.

    The fraction rises linearly from 1/``warmup_steps`` to 1, then falls to 0 along half a cosine period.

    Args:
        step: number of the optimiser step in the schedule, from 0.
        warmup_steps: length of the linear rise in steps.
        total_steps: length of the whole schedule in steps. From this step on, the fraction is 0.
    """
    if step >= total_steps:
        return 0.0
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def warmup_milestones(step: int, warmup_steps: int, milestones: Sequence[int]) -> float:
    """Return the learning rate at an optimiser step, as a fraction of its peak, with warm-up and step decay.

    The fraction rises linearly from 1/``warmup_steps`` to 1. It is divided by 10 at each milestone.

    Args:
        step: number of the optimiser step in the schedule, from 0.
        warmup_steps: length of the linear rise in steps.
        milestones: optimiser steps at which the fraction is divided by 10.
    """
    warmup = (step + 1) / warmup_steps if step < warmup_steps else 1.0
    return warmup * 0.1 ** sum(step >= milestone for milestone in milestones)


def total_batch(trainer: Trainer) -> int:
    """Return the number of images per optimiser step: batch size x processes x accumulated batches."""
    return trainer.datamodule.hparams.batch_size * trainer.world_size * trainer.accumulate_grad_batches


def rate_factor(trainer: Trainer, meant_for: int | None) -> float:
    """Return the factor that scales the learning rates to the total batch size of a run.

    The total batch size is the number of images per optimiser step. The factor follows the linear scaling rule of
    Goyal et al., Accurate, Large Minibatch SGD (arXiv 1706.02677).

    Args:
        trainer: trainer of the run.
        meant_for: total batch size for which the learning rates are given. None: the factor is 1.
    """
    return 1.0 if meant_for is None else total_batch(trainer) / meant_for


def require_steps(trainer: Trainer) -> None:
    """Check that a run has batches to train on and a limited length.

    Args:
        trainer: trainer of the run. This function sets up its training data loader.

    Raises:
        InputError: there is no batch to train on, or neither the number of epochs nor the number of steps is limited.
    """
    trainer.fit_loop.setup_data()  # sets the number of batches
    batches = trainer.num_training_batches
    if batches == 0 or math.isinf(batches):
        raise InputError("there is no batch to train on: is --trainer.limit_train_batches 0?")
    if math.isinf(trainer.estimated_stepping_batches):
        raise InputError("the learning rate schedule needs an end: give --trainer.max_epochs or --trainer.max_steps")
