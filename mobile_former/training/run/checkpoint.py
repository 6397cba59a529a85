"""Loading a trained model from a checkpoint, together with the options of its data module."""

import contextlib
import inspect
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from reprlib import repr as brief
from typing import TYPE_CHECKING, TypeVar

from mobile_former.errors import InputError
from mobile_former.variants import MIN_SIZE
from mobile_former.weights.files import read_file

if TYPE_CHECKING:  # commands for inference do not import Lightning
    from pytorch_lightning import LightningModule

_MOST_PIXELS = 16_384  # most pixels along a side of the model's input image; larger images would exhaust the memory
_DATA_OPTIONS = {"classification": "crop_fraction", "detection": "short_side"}  # data options that only one task has

Module = TypeVar("Module", bound="LightningModule")


def load_checkpoint(path: str | Path, module_class: type[Module], task: str) -> tuple[Module, dict]:
    """Load a trained model from a checkpoint that the ``fit`` command has written.

    Args:
        path: path of the ``.ckpt`` file.
        module_class: LightningModule of the task.
        task: ``"classification"`` or ``"detection"``.

    Returns:
        A tuple (module, options). ``module`` is in evaluation mode, on the CPU. ``options`` is a dictionary of the data
        module options that were used in training (``root``, ``mean``, ``std``, …).

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file is damaged or not a checkpoint of the task.
    """
    content = read_checkpoint(path, task)
    with naming_damage(path):
        options = {name: value for name, value in content["hyper_parameters"].items() if not name.startswith("_")}
        if set(options) - set(inspect.signature(module_class).parameters):
            raise InputError(f"{path} is a checkpoint of another task, not of {task}.fit")
        module = module_class(**options)
        module.load_state_dict(content["state_dict"])
        require_data_options(content["datamodule_hyper_parameters"])
    return module.eval(), content["datamodule_hyper_parameters"]


def read_checkpoint(path: str | Path, task: str) -> dict:
    """Read a checkpoint that the ``fit`` command of a task has written.

    Args:
        path: path of the ``.ckpt`` file.
        task: ``"classification"`` or ``"detection"``.

    Returns:
        The content of the file: a dictionary with ``state_dict``, ``hyper_parameters`` and
        ``datamodule_hyper_parameters``, among others.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file is damaged or not a checkpoint of the task.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no checkpoint {path}: give checkpoints/best.ckpt of a run")
    content = read_file(Path(path))
    needed = ("state_dict", "hyper_parameters", "datamodule_hyper_parameters")
    if not isinstance(content, dict) or any(key not in content for key in needed):
        raise InputError(
            f"{path} is not a checkpoint of {task}.fit: a weights file has neither class names nor image size. Give "
            "checkpoints/best.ckpt of a run"
        )
    with naming_damage(path):
        require_task(path, content["datamodule_hyper_parameters"], task)
    return content


def require_task(path: str | Path, options: Mapping[str, object], task: str) -> None:
    """Check that a checkpoint is of a task.

    Args:
        path: path of the checkpoint, for the error message.
        options: options of the data module in the checkpoint.
        task: ``"classification"`` or ``"detection"``.

    Raises:
        InputError: the checkpoint is of another task.
    """
    found = {name for name, option in _DATA_OPTIONS.items() if option in options}
    if found and task not in found:
        raise InputError(f"{path} is a checkpoint of another task, not of {task}.fit")


@contextlib.contextmanager
def naming_damage(path: str | Path) -> Iterator[None]:
    """Context manager for reading a checkpoint. It reports any exception as a damaged file, and names the file.

    Raises:
        InputError: the ``with`` block raised an exception. The message contains ``path`` and says that the file is
            damaged. If the exception is already an InputError, it is passed on unchanged.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the options and weights in a file can be anything
        reason = (str(error).splitlines() or [""])[-1].strip()[:200]
        raise InputError(
            f"{path} is damaged or of another version ({type(error).__name__}: {reason}): give another checkpoint"
        ) from error


def require_data_options(options: dict) -> None:
    """Check the image preprocessing options in a checkpoint.

    Args:
        options: dictionary of the options of the data module, as read from the checkpoint.

    Raises:
        ValueError, TypeError, KeyError: an option is missing, has a wrong type or is out of range.
    """
    for name in ("mean", "std"):
        if len(options[name]) != 3 or not all(map(math.isfinite, options[name])) or min(options["std"]) <= 0:
            raise ValueError(f"{name} is {brief(options[name])}")
    for name in {"image_size", "short_side", "longest"} & set(options):
        most = math.inf if name == "longest" else _MOST_PIXELS
        if type(options[name]) is not int or not MIN_SIZE <= options[name] <= most:
            raise ValueError(f"{name} is {brief(options[name])}")
    if not 0.01 <= options.get("crop_fraction", 1) <= 1:
        raise ValueError(f"crop_fraction is {brief(options['crop_fraction'])}")
