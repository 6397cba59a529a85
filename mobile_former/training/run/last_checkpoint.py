"""The checkpoint that a run goes on from: after every epoch, every so many steps, and when it is told to stop."""

import signal
import sys
import threading
import time

from pytorch_lightning import LightningModule, Trainer

from mobile_former.training.run.folder import LAST, RunCheckpoint, RunFolder

_SIGNALS = (signal.SIGTERM, signal.SIGINT)  # how a scheduler and a user end a process
_TWICE = 2.0  # seconds; launchers hand on what the terminal has sent already


class LastCheckpoint(RunCheckpoint):
    """Keeps ``last.ckpt``, and ends a run that is told to stop without losing a step.

    On SIGTERM or Ctrl-C the step that has begun is finished, a checkpoint written, and the process ends with the status
    that is usual for the signal (143, 130). A validation that has begun is finished first. Of several processes it is
    enough that one is told.

    Args:
        folder: the run's.
        every_n_steps: optimiser steps between checkpoints within an epoch; None writes at its end alone.
    """

    def __init__(self, folder: RunFolder, every_n_steps: int | None = None):
        super().__init__(
            dirpath=folder.checkpoints,
            filename=LAST.removesuffix(".ckpt"),
            # Also of epochs that are not validated, where --trainer.check_val_every_n_epoch is above 1
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self.folder = folder
        self.every_n_steps = every_n_steps
        self._told: int | None = None  # the signal
        self._handlers: dict[int, object] = {}  # those of before

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals, in place of Lightning, which would drop the epoch."""
        super().on_train_start(trainer, pl_module)
        if threading.current_thread() is threading.main_thread():  # no other may
            self._handlers = {number: signal.signal(number, self._hear) for number in _SIGNALS}
        if trainer.received_sigterm:  # before this; Lightning would stop the first step without a checkpoint
            trainer._signal_connector.received_sigterm = False
            self._hear(signal.SIGTERM, None)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Write a checkpoint where one is due; end the run where it is told to."""
        # A checkpoint holds no gradients that wait for others; after an epoch's last step, its validation comes first.
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        # A resumed run would take a validation that is due for one that is done.
        validates = trainer.val_check_batch is not None and (batch_idx + 1) % trainer.val_check_batch == 0
        if not stepped or validates or batch_idx + 1 >= trainer.num_training_batches:
            return
        told = self._any_told(trainer)
        if told or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0):
            trainer.save_checkpoint(self.folder.last)
        if told:
            self._stop()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the run where it was told to after the last checkpoint."""
        if trainer.current_epoch > 0 and self._any_told(trainer):
            self._stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave signals to whoever had them."""
        super().on_train_end(trainer, pl_module)
        self._let_go()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave signals to whoever had them."""
        super().on_exception(trainer, pl_module, exception)
        self._let_go()

    def _hear(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self._told is not None:
            if now - self._told_at > _TWICE:  # told again: at once
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
                signal.raise_signal(number)
            return
        self._told, self._told_at = number, now
        print("stopping after this step; the same signal once more stops at once", file=sys.stderr, flush=True)

    def _any_told(self, trainer: Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self._told is not None, all=False)

    def _stop(self) -> None:
        sys.exit(128 + (self._told or signal.SIGTERM))

    def _let_go(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
