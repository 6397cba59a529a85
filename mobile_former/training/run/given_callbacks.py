"""Check the Lightning callbacks that a user adds to a run, and apply the values that a LearningRateFinder finds."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import BatchSizeFinder, LearningRateFinder, ModelPruning, StochasticWeightAveraging

from mobile_former.errors import InputError
from mobile_former.training.optimisation import rate_factor

_FINDERS = {BatchSizeFinder: "batch_size", LearningRateFinder: "learning_rate"}


def given_callbacks(value: Callback | list[Callback] | None) -> list[Callback]:
    """Return the value of the option ``--trainer.callbacks`` as a list.

    Raises:
        InputError: a callback is known not to work with the models of this project.
    """
    callbacks = value if isinstance(value, list) else [] if value is None else [value]
    for callback in callbacks:
        if isinstance(callback, StochasticWeightAveraging):
            raise InputError(
                "--trainer.callbacks StochasticWeightAveraging: its average leaves out the last epoch, and its last "
                "pass for BatchNorm trains the averaged weights; leave it out and give --model.ema_decay, such as 0.999"
            )
        if type(callback) is ModelPruning:  # a subclass may choose parameters that can be pruned
            raise InputError(
                "--trainer.callbacks ModelPruning: PyTorch prunes neither the channels-last weights of convolutions "
                "(unstructured) nor the scales of norm layers (structured); leave it out, or give a subclass whose "
                "filter_parameters_to_prune leaves them out"
            )
    return callbacks


def found_options(callbacks: list[Callback]) -> list[str]:
    """Return a list of the options whose values Lightning's finders in ``callbacks`` will choose.

    The finders are BatchSizeFinder, which chooses ``batch_size``, and LearningRateFinder, which chooses
    ``learning_rate``.
    """
    return [name for finder, name in _FINDERS.items() if any(isinstance(callback, finder) for callback in callbacks)]


def without_finders(callbacks: list[Callback]) -> list[Callback]:
    """Return a list of ``callbacks`` without BatchSizeFinder and LearningRateFinder, for a resumed run."""
    return [callback for callback in callbacks if not isinstance(callback, tuple(_FINDERS))]


def set_option(module: LightningModule, datamodule: LightningDataModule, name: str, value: float) -> None:
    """Set the option ``name`` (``batch_size`` or ``learning_rate``) of a run that is about to start."""
    if name == "learning_rate":
        module.optimisation = replace(module.optimisation, learning_rate=value)
        module.hparams[name] = value
    else:
        datamodule.hparams[name] = value


class FoundOptions(Callback):
    """Callback that applies and records the option values that Lightning's finders have found.

    The finders (BatchSizeFinder and LearningRateFinder) change the options of the model and the data when training
    starts. This callback must come after them in the list of callbacks. It builds the optimiser and the schedule again,
    with the found values.

    Args:
        used: dictionary with the values of ``batch_size`` and ``learning_rate`` before the finders run.
        record: function that writes the found values to the config of the run. It takes a dictionary like ``used``.
    """

    def __init__(self, used: Mapping[str, float], record: Callable[[dict[str, float]], None]):
        self.used, self.record = used, record

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rebuild the optimiser and the schedule, and record and print the found values."""
        values = {**pl_module.hparams, **trainer.datamodule.hparams}
        found = {name: values[name] for name, used in self.used.items() if values[name] != used}
        if not found:
            return
        if "learning_rate" in found:  # the finder has tried the rates without the factor for the batch size
            found["learning_rate"] /= rate_factor(trainer, pl_module.optimisation.learning_rate_batch)
        for name, value in found.items():
            set_option(pl_module, trainer.datamodule, name, value)
        trainer.strategy.setup_optimizers(trainer)
        if trainer.is_global_zero:
            self.record(found)
            print("found  " + ", ".join(f"{name} {value:.4g} (was {self.used[name]})" for name, value in found.items()))
