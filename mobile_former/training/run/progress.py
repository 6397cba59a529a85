"""Lightning callbacks that show the progress of training, and stop training if the loss is NaN or infinite."""

import logging
import math
import shutil
import time
from collections import deque

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBarTheme
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn

from mobile_former.errors import InputError

_logger = logging.getLogger(__name__)

_LARGEST_WAIT = 0.25  # fraction of an epoch's time; above this, a warning is logged
_LEAST_STEPS = 20  # an epoch with fewer steps is not judged: the wait for its first batch weighs too much


class Throughput(Callback):
    """Callback that logs the speed of training and warns if data loading limits it.

    The following metrics are logged:

    - ``images/s``: number of training images per second over the last 20 steps. The time includes data loading.
    - ``data_wait``: mean time in seconds that each of these steps waited for its batch, measured by
      :class:`mobile_former.training.data.timed_loader.TimedLoader`.
    - ``gpu_memory_gb``: peak of the allocated GPU memory so far, in GiB. It is logged only on CUDA devices.
    """

    def __init__(self):
        # At the end of each step: time, number of images, seconds waited since training began
        self._recent: deque[tuple[float, int, float]] = deque(maxlen=21)
        self._warned = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the timer of the speed measurement.

        This does the same as ``on_train_epoch_start``, which Lightning does not call if a run resumes within an epoch.
        """
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the timer of the speed measurement, so that the time of validation is not counted."""
        self._recent.clear()
        self._recent.append((time.perf_counter(), 0, self._waited(trainer)))
        self._start, self._steps = self._recent[0], 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Record the time of this step, and log the metrics that the docstring of the class lists."""
        self._recent.append((time.perf_counter(), len(batch["image"]), self._waited(trainer)))
        self._steps += 1
        seconds = self._recent[-1][0] - self._recent[0][0]
        images = sum(count for _, count, _ in list(self._recent)[1:]) * trainer.world_size
        pl_module.log("images/s", images / seconds, prog_bar=True, batch_size=1)
        wait = (self._recent[-1][2] - self._recent[0][2]) / (len(self._recent) - 1)
        pl_module.log("data_wait", wait, batch_size=1)
        if pl_module.device.type == "cuda":
            pl_module.log("gpu_memory_gb", torch.cuda.max_memory_allocated(pl_module.device) / 2**30, batch_size=1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log a warning if more than a quarter of the epoch's time was spent waiting for data.

        The warning is logged at most once. Epochs of fewer than 20 steps are not checked.
        """
        if self._warned or self._steps < _LEAST_STEPS:
            return
        seconds, waited = (self._recent[-1][number] - self._start[number] for number in (0, 2))
        if waited > _LARGEST_WAIT * seconds and trainer.is_global_zero:
            self._warned = True
            _logger.warning(
                "data loading limits the speed: %.0f %% of the epoch's %.0f s were spent waiting for batches. Use more "
                "loading processes (--data.num_workers, now %d), cheaper augmentation or smaller image files",
                100 * waited / seconds,
                seconds,
                trainer.datamodule.num_workers,
            )

    @staticmethod
    def _waited(trainer: Trainer) -> float:
        return getattr(trainer.train_dataloader, "waited", 0.0)


class GradientNorm(Callback):
    """Callback that logs ``grad_norm``, the L2 norm of all gradients before clipping.

    The option ``log_every_n_steps`` of Lightning's Trainer sets the number of steps between two values.
    """

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer) -> None:
        """Compute and log the gradient norm after every ``log_every_n_steps`` optimiser steps."""
        if trainer.log_every_n_steps and (trainer.global_step + 1) % trainer.log_every_n_steps == 0:
            gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
            pl_module.log("grad_norm", torch.nn.utils.get_total_norm(gradients), batch_size=1)


class StopOnNonFiniteLoss(Callback):
    """Callback that raises InputError if the training or validation loss of a run is NaN or infinite.

    The run stops before the loss can change the weights or a checkpoint is written.
    """

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss) -> None:
        """Raise InputError if the training loss is NaN or infinite."""
        if not loss.isfinite().all():
            self._stop(trainer, "training", loss.item())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise InputError if the validation loss is NaN or infinite.

        This happens before the checkpoint of the epoch is written.
        """
        loss = trainer.callback_metrics.get("val/loss")
        # trainer.training is False here, even within a fit.
        if trainer.state.fn == "fit" and not trainer.sanity_checking and loss is not None and not loss.isfinite():
            self._stop(trainer, "validation", loss.item())

    @staticmethod
    def _stop(trainer: Trainer, stage: str, loss: float) -> None:
        # best_model_path of a checkpoint callback without a score is the checkpoint that it wrote last.
        kept = [callback.best_model_path for callback in trainer.checkpoint_callbacks if callback.best_model_path]
        checkpoint = f"the last good checkpoint is {kept[-1]}" if kept else "no epoch was finished"
        raise InputError(
            f"the {stage} loss is {loss} at step {trainer.global_step} (epoch {trainer.current_epoch}); {checkpoint}. "
            "Lower --model.learning_rate, increase --model.warmup_epochs or set --trainer.gradient_clip_val"
        )


class TrainingBar(RichProgressBar):
    """Lightning's RichProgressBar that fits into 80 columns.

    It shows the number of the epoch, from 1, the progress within the epoch, the loss, and the score that determines the
    best checkpoint. The score is from the last validation. All other metrics are in the lines of :class:`EpochLines`.
    """

    def __init__(self):
        super().__init__(refresh_rate=5, theme=RichProgressBarTheme(metrics_text_delimiter="  ", metrics=""))

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Return a list of the columns: epoch, bar, number of batches, remaining time of the epoch."""
        return [
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
        ]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict:
        """Return a dictionary of the metrics shown next to the bar. It is empty before training."""
        if trainer.sanity_checking:  # the scores of a few images
            return {}
        metrics = super().get_metrics(trainer, pl_module)
        return {name: metrics[name] for name in ("loss", pl_module.monitor) if name in metrics}

    def _get_train_description(self, current_epoch: int) -> str:
        return _epoch(self.trainer, current_epoch)


def _epoch(trainer: Trainer, epoch: int) -> str:
    """Return the number of an epoch as text, such as "epoch 1/20" for ``epoch`` 0, or "epoch 1" without a limit."""
    limited = trainer.max_epochs not in (None, -1)
    return f"epoch {epoch + 1}" + (f"/{trainer.max_epochs}" if limited else "")


class EpochLines(Callback):
    """Callback that prints one line of metrics after each epoch.

    In a terminal, the lines are above the progress bar. Metrics are left out if the terminal is too narrow for them.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the timer and the mean loss.

        This does the same as ``on_train_epoch_start``, which Lightning does not call if a run resumes within an epoch.
        """
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the timer and the mean loss for a new epoch."""
        self._start = time.perf_counter()
        self._loss, self._steps, self._validated = 0.0, 0, False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record that the current epoch was validated.

        Validation scores are printed only for validated epochs.
        """
        self._validated = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Update the epoch's mean loss with the loss of this step."""
        # Lightning has divided the loss by the number of accumulated batches.
        self._loss += outputs["loss"].detach() * trainer.accumulate_grad_batches
        self._steps += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print one line with the losses, validation scores, speed and duration of the epoch."""
        metrics = trainer.callback_metrics  # gathered from all processes, so every process must read it
        if not trainer.is_global_zero:
            return
        figures = {"loss": float(self._loss) / max(1, self._steps)}
        # Only figures of the curves: all twelve scores of a detector would be too many for a line.
        shown = [name for names in pl_module.curves.values() for name in names if name in metrics]
        terms = {name.removeprefix("train/"): metrics[name] for name in shown if name.startswith("train/loss_")}
        scores = {name: metrics[name] for name in shown if name.startswith("val/") and self._validated}
        figures |= {name: float(value) for name, value in (terms | scores).items()}
        ends = [f"{metrics.get('images/s', 0.0):.0f} images/s", f"{time.perf_counter() - self._start:.1f} s"]
        width = shutil.get_terminal_size().columns if trainer.progress_bar_callback else math.inf
        while True:
            numbers = [f"{name} {value:.4f}" for name, value in figures.items()]
            line = "  ".join([_epoch(trainer, trainer.current_epoch), *numbers, *ends])
            less = [name for name in figures if name not in ("loss", pl_module.monitor)]
            if len(line) <= width or not less:
                break
            figures.pop(less[-1])
        print(line, flush=True)  # a pipe is buffered otherwise
