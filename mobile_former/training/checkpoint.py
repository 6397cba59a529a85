"""A trained module with all that it needs to be used: classes, image size, normalisation."""

import inspect
from pathlib import Path
from typing import TypeVar

from pytorch_lightning import LightningModule

from mobile_former.errors import InputError
from mobile_former.weights import read_file

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
    options = {name: value for name, value in content["hyper_parameters"].items() if not name.startswith("_")}
    if set(options) - set(inspect.signature(module_class).parameters):
        raise InputError(f"{path} is a checkpoint of another task, not of {task}.fit")
    module = module_class(**options)
    module.load_state_dict(content["state_dict"])
    return module.eval(), content["datamodule_hyper_parameters"]
