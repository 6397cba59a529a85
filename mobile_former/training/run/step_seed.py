"""Callback that seeds each training step, so that resumed and uninterrupted runs use the same random numbers."""

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from mobile_former.training.data.sampler import mix_seeds


class StepSeed(Callback):
    """Callback that seeds PyTorch's random number generators before each training step.

    Dropout, for example, uses these generators. The seed depends on the seed of the run, the epoch, the index of the
    batch and the rank of the process. The random numbers of a step therefore do not depend on earlier steps. A resumed
    run uses the same numbers as an uninterrupted run, and the checkpoint needs no generator state.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the seed of the run, which ``seed_everything`` has set."""
        self._seed = torch.initial_seed()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        """Seed PyTorch's random number generators for this step."""
        torch.manual_seed(mix_seeds(self._seed, trainer.current_epoch, batch_idx, trainer.global_rank))
