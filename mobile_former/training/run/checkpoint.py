"""A trained module with all that it needs to be used: classes, image size, normalisation."""

import inspect
import math
from pathlib import Path
from reprlib import repr as brief
from typing import TypeVar

from pytorch_lightning import LightningModule

from mobile_former.errors import InputError
from mobile_former.model import MIN_SIZE
from mobile_former.weights.files import read_file

_MOST_PIXELS = 16_384  # of a side of the model's image, beyond which memory is a question

Module = TypeVar("Module", bound=LightningModule)


def load_checkpoint(path: str | Path, module_class: type[Module], task: str) -> tuple[Module, dict]:
    """Read a checkpoint that a task's ``fit`` wrote.

    Args:
        path: the ``.ckpt`` file.
        module_class: the task's LightningModule.
        task: its name.

    Returns:
        The module in evaluation mode, on the CPU, and the options of the data module that it was trained on (``root``,
        ``mean``, ``std``, …).

    Raises:
        FileNotFoundError: no such file.
        InputError: no checkpoint of this task.
    """
    content = read_file(Path(path))
    needed = ("state_dict", "hyper_parameters", "datamodule_hyper_parameters")
    if not isinstance(content, dict) or any(key not in content for key in needed):
        raise InputError(
            f"{path} is no checkpoint of {task}.fit: a weights file alone does not tell classes and image size. Give a "
            "run's checkpoints/best.ckpt"
        )
    try:
        options = {name: value for name, value in content["hyper_parameters"].items() if not name.startswith("_")}
        if set(options) - set(inspect.signature(module_class).parameters):
            raise InputError(f"{path} is a checkpoint of another task, not of {task}.fit")
        module = module_class(**options)
        module.load_state_dict(content["state_dict"])
        require_data_options(content["datamodule_hyper_parameters"])
    except InputError:
        raise
    except Exception as error:  # options and weights from a file may be anything
        reason = (str(error).splitlines() or [""])[-1].strip()[:200]
        raise InputError(
            f"{path} is damaged, or of another version ({type(error).__name__}: {reason}): give another checkpoint"
        ) from error
    return module.eval(), content["datamodule_hyper_parameters"]


def require_data_options(options: dict) -> None:
    """Check what comes from a file.

    Args:
        options: those of a data module by which images are prepared.

    Raises:
        ValueError: or TypeError, or KeyError: images cannot be prepared by them.
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
