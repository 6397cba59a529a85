"""Experiment trackers: short names for Lightning's loggers, and functions that send options and results to them.

jsonargparse finds a class by its name. The classes ``mlflow``, ``wandb``, ``comet``, ``tensorboard`` and ``csv`` make
short names possible: ``--trainer.logger mlflow``.
"""

import functools
import importlib
import inspect
import logging
import threading
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
    """MLflow. It writes to the address in the variable ``MLFLOW_TRACKING_URI``, by default to the folder ``mlruns``."""


class wandb(WandbLogger):  # noqa: N801
    """Weights & Biases. First run ``wandb login``, or set the environment variable ``WANDB_MODE=offline``."""


class comet(CometLogger):  # noqa: N801
    """Comet. First set the environment variable ``COMET_API_KEY``, or give ``online=False`` for an offline archive."""

    def _create_experiment(self) -> None:
        if self._online is False:  # Lightning disables such an experiment, and no archive would be written
            self._comet_config = importlib.import_module("comet_ml").ExperimentConfig(**self._kwargs)
        super()._create_experiment()


class tensorboard(DummyLogger):  # noqa: N801
    """TensorBoard's log in the run folder. It is always written, even without this option."""


class csv(DummyLogger):  # noqa: N801
    """The file ``metrics.csv`` in the run folder. It is always written, even without this option."""


# The package of a logger, and the options that take the name and the folder of the run unless they are given.
_KINDS: dict[type[Logger], tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    MLFlowLogger: ("mlflow", ("run_name",), ()),
    WandbLogger: ("wandb", ("name",), ("save_dir",)),
    CometLogger: ("comet-ml", ("name",), ("offline_directory",)),
}


def build_loggers(given: object, folder: RunFolder, resumed_step: int | None) -> list[Logger] | bool:
    """Build a list of a run's loggers: for ``metrics.csv``, for TensorBoard, and for the user's trackers.

    Args:
        given: parsed value of ``--trainer.logger``: class path and options of one or several loggers, a bool, or None.
            False: no logger at all, and False is returned.
        folder: folder of the run. Trackers show the run under the name of this folder, unless their options give
            another name.
        resumed_step: optimiser step from which the run resumes. None: the run is new.

    Raises:
        InputError: a package is missing, or a logger cannot be built with its options.
    """
    if given is False:
        return False
    chosen = [] if given in (None, True) else given if isinstance(given, list) else [given]
    trackers = [_build(each, folder) for each in chosen]
    _quieten_tensorboard()
    return [
        ContinuedCSVLogger(folder, resumed_step),
        TensorBoardLogger(str(folder.path), name="", version="tensorboard", default_hp_metric=False),
        *(tracker for tracker in trackers if not isinstance(tracker, (tensorboard, csv))),
    ]


@functools.cache  # once in a process, which can be a notebook with several runs
def _quieten_tensorboard() -> None:
    """Suppress the tracebacks of the threads in which TensorBoard writes its files.

    They are not needed: if such a thread fails, for example on a full disk, TensorBoard also raises its error in the
    main thread, which ends the run with a message.
    """
    print_error = threading.excepthook

    def print_others(error: threading.ExceptHookArgs) -> None:
        if not type(error.thread).__module__.startswith("tensorboard."):
            print_error(error)

    threading.excepthook = print_others


def _build(given: Namespace, folder: RunFolder) -> Logger:
    module, _, name = given.class_path.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    kind = comet if kind is CometLogger else kind  # Lightning's own writes no offline archive
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
    """Start the runs of the trackers now. Lightning would start them only when training begins.

    Raises:
        InputError: a tracker cannot be started, for example because the user is not logged in.
    """
    for logger in loggers:
        try:
            getattr(logger, "experiment", None)
        except Exception as error:  # of many types, as in _build
            raise InputError(f"--trainer.logger {type(logger).__name__}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return an error message in one line. A message of more than 300 characters is shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) <= 300:
        return text
    end = text.rfind(". ", 0, 300)
    return text[: end + 1] if end > 0 else f"{first_line(error, 299)}…"


def log_options(trainer: Trainer, options: Mapping[str, Any]) -> None:
    """Send the options of a run to all of its loggers.

    Args:
        trainer: trainer of the run.
        options: dictionary from the name of each group to its options, such as ``{"model": {"learning_rate": 1e-3}}``.
    """
    for logger in trainer.loggers:
        logger.log_hyperparams(_plain(options))


def send_results(loggers: list[Logger], folder: RunFolder, checkpoint: Path) -> None:
    """Send the pictures of a finished run and the path of its best checkpoint to the trackers.

    Args:
        loggers: loggers of the run. Only those of MLflow, Weights & Biases and Comet get the pictures and the path.
        folder: folder of the run, which contains the pictures as ``.png`` files.
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
    """Convert nested options to types that YAML can store: dictionaries, lists, numbers, text, booleans and None.

    Keys that begin with an underscore are dropped, because they are internal to Lightning.
    """
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items() if not str(name).startswith("_")}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if isinstance(value, (bool, int, float, str)) or value is None else str(value)
