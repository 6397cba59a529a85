"""Callbacks that make runs with one process and with several processes comparable."""

import torch
from pytorch_lightning import Callback


class FrozenStatistics(Callback):
    """BatchNorm uses its running statistics, because batch statistics depend on the share of each process."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        for module in pl_module.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()


class PlainSGD(Callback):
    """Plain SGD. Adam amplifies rounding errors to whole steps; in float32, SGD does not."""

    def setup(self, trainer, pl_module, stage):
        pl_module.configure_optimizers = lambda: torch.optim.SGD(
            [parameter for parameter in pl_module.parameters() if parameter.requires_grad], lr=1e-2
        )
        pl_module.lr_schedulers = lambda: torch.optim.lr_scheduler.LambdaLR(
            pl_module.optimizers().optimizer, lambda step: 1.0
        )
