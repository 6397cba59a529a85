"""Callback that writes the checkpoint to resume from, and stops the run on a signal."""

import os
import signal
import subprocess
import sys
import threading
import time

from lightning_fabric.plugins.environments import SLURMEnvironment
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from mobile_former.training.run.folder import LAST, RunCheckpoint, RunFolder, array_task

_SIGNALS = (signal.SIGTERM, signal.SIGINT)  # from a scheduler, and from Ctrl-C
_DUPLICATE = 2.0  # seconds; launchers forward a signal that the terminal has already sent to all processes


class LastCheckpoint(RunCheckpoint):
    """Callback that writes ``last.ckpt``, and stops the run on a signal without losing a step.

    The checkpoint is written after every epoch and, if ``every_n_steps`` is given, also within epochs. On SIGTERM or
    Ctrl-C the current step or validation is finished first, and then the checkpoint is written. The process exits with
    the usual status of the signal (143 or 130). If there are several processes, a signal to one of them stops all of
    them. A second signal stops the process at once.

    In a SLURM job, SIGUSR1 (or another ``requeue_signal`` of Lightning's SLURMEnvironment) does the same, and also puts
    the job back into the queue.

    Args:
        folder: folder of the run.
        every_n_steps: number of optimiser steps between checkpoints within an epoch. None: write only after epochs.
    """

    def __init__(self, folder: RunFolder, every_n_steps: int | None = None):
        super().__init__(
            dirpath=folder.checkpoints,
            filename=LAST.removesuffix(".ckpt"),
            save_on_train_epoch_end=True,  # also after epochs without validation (--trainer.check_val_every_n_epoch)
            enable_version_counter=False,
        )
        self.folder = folder
        self.every_n_steps = every_n_steps
        self._signal: int | None = None  # the received signal
        self._requeue_signal: int | None = None
        self._trained = False  # whether training has ended, and the final scores are being computed
        self._previous_handlers: dict[int, object] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace Lightning's handler of the signal with which SLURM requeues a job.

        Lightning's handler would write a checkpoint in the middle of a step, into an additional file that is never
        replaced.
        """
        super().setup(trainer, pl_module, stage)
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue and stage == "fit":
            environment.auto_requeue = False
            self._requeue_signal = environment.requeue_signal
            if threading.current_thread() is threading.main_thread():
                signal.signal(self._requeue_signal, self._on_signal)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install handlers for SIGTERM and Ctrl-C.

        Lightning's own handlers would lose the steps of the current epoch.
        """
        super().on_train_start(trainer, pl_module)
        if threading.current_thread() is threading.main_thread():  # Python allows it only there
            self._previous_handlers = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        if trainer.received_sigterm:  # it came before this hook; Lightning would stop in step 1 without a checkpoint
            trainer._signal_connector.received_sigterm = False
            self._on_signal(signal.SIGTERM, None)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Write a checkpoint after every ``every_n_steps`` optimiser steps.

        After SIGTERM or Ctrl-C, write a checkpoint after the current step and stop the run. In two cases nothing is
        done, because the run could not resume correctly after this batch: the batch does not complete an optimiser
        step, or a validation or the end of the epoch follows directly.
        """
        # A checkpoint does not hold accumulated gradients.
        accumulates = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
        # A run that resumes here would skip a validation that is due now.
        validates = trainer.val_check_batch is not None and (batch_idx + 1) % trainer.val_check_batch == 0
        ends_epoch = batch_idx + 1 >= trainer.num_training_batches  # the epoch's checkpoint follows its validation
        if accumulates or validates or ends_epoch:
            return
        stops = self._any_process_signalled(trainer)
        if stops or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0):
            trainer.save_checkpoint(self.folder.last)
        if stops:  # Lightning logs the metrics of a step after this hook
            trainer._logger_connector.on_batch_end()
            trainer._logger_connector.update_train_step_metrics()
            self._stop(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the run if SIGTERM or Ctrl-C came during the last step or validation of the previous epoch."""
        if trainer.current_epoch > 0 and self._any_process_signalled(trainer):
            self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the signal handlers that were active before training.

        If the signal to requeue the SLURM job came in the last step, put the job back into the queue and exit.
        """
        super().on_train_end(trainer, pl_module)
        self._restore_handlers()
        self._trained = True
        # After a signal in the last step, the remaining time of the job may be too short for the final scores.
        if self._requeue_signal is not None and trainer.strategy.reduce_boolean_decision(self._requeues, all=False):
            self._requeue_and_exit()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the signal handlers that were active before training."""
        super().on_exception(trainer, pl_module, exception)
        self._restore_handlers()

    def _on_signal(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self._signal is not None:
            follows = self._requeues and number != self._signal  # SLURM sends SIGTERM later
            if now - self._signal_time > _DUPLICATE and not follows:  # the user has repeated the signal: stop at once
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
                signal.raise_signal(number)
            return
        self._signal, self._signal_time = number, now
        if self._trained:  # the last checkpoint is written
            self._requeue_and_exit()
        print("stopping after this step; repeat the signal to stop at once", file=sys.stderr, flush=True)

    def _any_process_signalled(self, trainer: Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)

    @property
    def _requeues(self) -> bool:
        """True if this process has received the signal that asks to put the SLURM job back into the queue."""
        return self._signal is not None and self._signal == self._requeue_signal

    def _stop(self, trainer: Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self._requeues, all=False):
            self._signal = self._requeue_signal
            self._requeue_and_exit()
        sys.exit(128 + (self._signal or signal.SIGTERM))

    def _requeue_and_exit(self) -> None:
        """Put the SLURM job back into the queue, and exit. In an array, put back only this task of the job."""
        if rank_zero_only.rank == 0:
            command = ["scontrol", "requeue", array_task() or os.environ["SLURM_JOB_ID"]]
            try:
                subprocess.run(command, check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"error: the job is not back in the queue: {error}; submit it again", file=sys.stderr)
        sys.exit(128 + self._requeue_signal)

    def _restore_handlers(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}
