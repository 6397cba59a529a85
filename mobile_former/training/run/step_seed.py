"""Randomness that a resumed run repeats."""

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from mobile_former.training.data.sampler import mix_seeds


class StepSeed(Callback):
    """Seeds each training step's dropout and stochastic depth from the run's seed, epoch, batch and process.

    So they depend on nothing that went before, and a run that goes on draws what it would have drawn, with no
    generator's state in its checkpoint.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the seed that ``seed_everything`` has set."""
        self._seed = torch.initial_seed()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        """Seed the step."""
        torch.manual_seed(mix_seeds(self._seed, trainer.current_epoch, batch_idx, trainer.global_rank))
