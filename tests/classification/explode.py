"""Callbacks for runs that end early."""

from pytorch_lightning import Callback


class StopAtThirdEpoch(Callback):
    """Stop the run as Ctrl-C does."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt


class Explode(Callback):
    """Make the loss infinite from the second epoch on, as much too high a learning rate does."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            pl_module.model.classifier.logits.weight.data.fill_(float("inf"))
