"""A trained classifier with all that it needs to be used: classes, image size, normalisation."""

from pathlib import Path

from classification.module import ClassificationModule
from mobile_former.errors import InputError
from mobile_former.weights import read_file


def load_checkpoint(path: str | Path) -> tuple[ClassificationModule, dict]:
    """Read a checkpoint that ``classification.fit`` wrote.

    Args:
        path: the ``.ckpt`` file.

    Returns:
        The module in evaluation mode, on the CPU, and the options of the :class:`ClassificationData` it was trained on
        (``root``, ``image_size``, ``mean``, ``std``, …).

    Raises:
        FileNotFoundError: no such file.
        InputError: no checkpoint of a classifier.
    """
    content = read_file(Path(path))
    needed = ("state_dict", "hyper_parameters", "datamodule_hyper_parameters")
    if not isinstance(content, dict) or any(key not in content for key in needed):
        raise InputError(
            f"{path} is no checkpoint of classification.fit: a weights file alone does not tell classes and image "
            "size. Give a run's checkpoints/best.ckpt"
        )
    options = content["hyper_parameters"]
    if "class_names" not in options or "mixup_alpha" not in options:
        raise InputError(f"{path} is a checkpoint of another task, not of classification.fit")
    module = ClassificationModule(**{name: value for name, value in options.items() if not name.startswith("_")})
    module.load_state_dict(content["state_dict"])
    return module.eval(), content["datamodule_hyper_parameters"]
