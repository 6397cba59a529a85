"""Data and loops shared by the tests of data loading."""

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn

from classification.data.module import ClassificationData
from tests.conftest import trainer_with, write_image_folder

CLASSES = ("blue", "green", "red")


class Watcher(LightningModule):
    """A linear layer that records its batches."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.trained, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.trained.append(batch)
        return nn.functional.cross_entropy(self.layer(batch["image"].mean((2, 3))), batch["label"])

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def data_of(root, **options):
    options = {"image_size": 32, "batch_size": 4, "num_workers": 0} | options
    return ClassificationData(root=str(root), **options)


def fit(data, epochs=1):
    module = Watcher()
    trainer_with(max_epochs=epochs).fit(module, data)
    return module


@pytest.fixture
def folder(tmp_path):
    """An image folder that a test may damage: nine training and six validation images."""
    return write_image_folder(tmp_path / "photos", CLASSES, train=3, val=2, side=40)
