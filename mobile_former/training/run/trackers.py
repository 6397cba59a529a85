"""Experiment trackers: Lightning's loggers by name, and the options and results that they get.

jsonargparse finds a class by its name. The classes ``mlflow``, ``wandb``, ``comet``, ``tensorboard`` and ``csv`` make
short names possible: ``--trainer.logger mlflow``.
"""

import importlib
import inspect
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import CometLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.logger import DummyLogger

from mobile_former.errors import InputError, first_line
from mobile_former.training.run.folder import ContinuedCSVLogger, RunFolder

_logger = logging.getLogger(__name__)


class mlflow(MLFlowLogger):  # noqa: N801
    """MLflow. Without options, it writes to ``MLFLOW_TRACKING_URI``, or to the folder ``mlruns``."""


class wandb(WandbLogger):  # noqa: N801
    """Weights & Biases. Run ``wandb login`` before, or set ``WANDB_MODE=offline``."""


class comet(CometLogger):  # noqa: N801
    """Comet. Set ``COMET_API_KEY`` before."""


class tensorboard(DummyLogger):  # noqa: N801
    """The log of TensorBoard in the run's folder, which is always written."""


class csv(DummyLogger):  # noqa: N801
    """The file ``metrics.csv`` in the run's folder, which is always written."""


# The package of a logger, and the options that take the name and the folder of the run unless they are given.
_KINDS: dict[type[Logger], tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    MLFlowLogger: ("mlflow", ("run_name",), ()),
    WandbLogger: ("wandb", ("name",), ("save_dir",)),
    CometLogger: ("comet-ml", ("name",), ()),
}


def build_loggers(given: object, folder: RunFolder, resumed_step: int | None) -> list[Logger] | bool:
    """Build the loggers of a run: ``metrics.csv``, TensorBoard's log, and the trackers that the user names.

    Args:
        given: parsed value of ``--trainer.logger``: class path and options of one or several loggers, a bool, or None.
            False: no logger at all.
        folder: folder of the run. A tracker calls the run by its name, unless its options give another one.
        resumed_step: optimiser step from which the run resumes. None: the run is new.

    Raises:
        InputError: a package is missing, or a logger cannot be built with its options.
    """
    if given is False:
        return False
    chosen = [] if given in (None, True) else given if isinstance(given, list) else [given]
    trackers = [_build(each, folder) for each in chosen]
    return [
        ContinuedCSVLogger(folder, resumed_step),
        TensorBoardLogger(str(folder.path), name="", version="tensorboard", default_hp_metric=False),
        *(tracker for tracker in trackers if not isinstance(tracker, (tensorboard, csv))),
    ]


def _build(given: Namespace, folder: RunFolder) -> Logger:
    module, _, name = given.class_path.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    options = dict(given.get("init_args") or {}) | dict(given.get("dict_kwargs") or {})
    package, named, placed = next((_KINDS[base] for base in kind.__mro__ if base in _KINDS), (name, (), ()))
    defaults = {each: parameter.default for each, parameter in inspect.signature(kind).parameters.items()}
    for option, value in (
        *((each, folder.path.name) for each in named),
        *((each, str(folder.path)) for each in placed),
    ):
        if options.get(option) in (None, defaults.get(option)):
            options[option] = value
    try:
        return kind(**options)
    except ImportError as error:  # Lightning raises it if its check of the package fails
        raise InputError(f"--trainer.logger {name} needs a package that is missing: pip install {package}") from error
    except Exception as error:  # a tracker's own checks of options, servers and stores raise many types
        raise InputError(f"--trainer.logger {name}: {_reason(error)}") from error


def connect(loggers: Sequence[Logger]) -> None:
    """Start the runs of the trackers, which Lightning would do when training begins.

    Raises:
        InputError: a tracker refuses, such as without a login.
    """
    for logger in loggers:
        try:
            getattr(logger, "experiment", None)
        except Exception as error:  # of many types, as in _build
            raise InputError(f"--trainer.logger {type(logger).__name__}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the first sentence or two of an error message, in one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) <= 300:
        return text
    end = text.rfind(". ", 0, 300)
    return text[: end + 1] if end > 0 else f"{first_line(error, 299)}…"


def log_options(trainer: Trainer, options: Mapping[str, Any]) -> None:
    """Send the options of a run to all loggers. ``hparams.yaml`` then contains them, too.

    Args:
        trainer: trainer of the run.
        options: options by group, such as ``{"model": {"learning_rate": 1e-3}}``.
    """
    for logger in trainer.loggers:
        logger.log_hyperparams(_plain(options))


def send_results(loggers: list[Logger], folder: RunFolder, checkpoint: Path) -> None:
    """Send the pictures of a finished run and the path of its best checkpoint to the trackers.

    Args:
        loggers: loggers of the run. Only MLflow, Weights & Biases and Comet get them.
        folder: folder of the run, with the pictures.
        checkpoint: path of the best checkpoint.
    """
    pictures, best = sorted(folder.path.glob("*.png")), str(checkpoint.resolve())
    for logger in loggers:
        try:
            _send(logger, pictures, best)
        except Exception as error:  # such as a lost connection: the run itself is complete
            name = type(logger).__name__
            _logger.warning("the pictures of the run did not reach %s: %s", name, _reason(error))


def _send(logger: Logger, pictures: list[Path], best: str) -> None:
    if isinstance(logger, MLFlowLogger):
        for picture in pictures:
            logger.experiment.log_artifact(logger.run_id, str(picture), "pictures")
        logger.experiment.set_tag(logger.run_id, "best_checkpoint", best)
    elif isinstance(logger, WandbLogger):
        for picture in pictures:
            logger.log_image(f"pictures/{picture.stem}", [str(picture)])
        logger.experiment.summary["best_checkpoint"] = best
        logger.experiment.finish()
    elif isinstance(logger, CometLogger):
        for picture in pictures:
            logger.experiment.log_image(str(picture), name=f"pictures/{picture.stem}")
        logger.experiment.log_other("best_checkpoint", best)
        logger.experiment.end()


def _plain(value: Any) -> Any:
    """Convert nested mappings and tuples to dictionaries and lists, which YAML has. Drop Lightning's private names."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items() if not str(name).startswith("_")}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if isinstance(value, (bool, int, float, str)) or value is None else str(value)
