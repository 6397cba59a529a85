"""Shared code of the commands that score a checkpoint; the commands themselves are tested with their tasks."""

import os
import signal

import pytest
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

from mobile_former.errors import InputError
from mobile_former.training.cli.evaluation import score


class KilledInMidStep(Dataset):
    """Data whose second image kills the loading process, while the model computes the first."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


class Waiting(LightningModule):
    """Model whose steps last until the signal of a lost process interrupts them."""

    def __init__(self):
        super().__init__()
        self.save_hyperparameters({"class_names": ["a"]})

    def test_step(self, batch):
        signal.pause()

    validation_step = test_step


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_a_loading_process_that_is_killed_during_a_step_is_an_error_of_one_line(stage):
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0
    )
    with pytest.raises(InputError, match=r"has ended \(DataLoader worker \(pid.*\): if memory is short") as raised:
        score(stage, trainer, Waiting(), DataLoader(KilledInMidStep(), num_workers=1))
    assert "\n" not in str(raised.value)
