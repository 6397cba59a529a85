"""Seeds of training steps, so that a resumed run draws the same random numbers as an uninterrupted run."""

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from mobile_former.training.data.sampler import mix_seeds


class StepSeed(Callback):
    """Seeds dropout and stochastic depth of each step from the seed of the run, the epoch, the batch and the process.

    The random numbers of a step do not depend on earlier steps. A resumed run therefore draws the same numbers as an
    uninterrupted one, without a generator state in the checkpoint.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the seed that ``seed_everything`` has set."""
        self._seed = torch.initial_seed()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        """Seed the step."""
        torch.manual_seed(mix_seeds(self._seed, trainer.current_epoch, batch_idx, trainer.global_rank))
