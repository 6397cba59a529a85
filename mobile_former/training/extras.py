"""Importing optional dependencies, with an error message that names the pip extra to install."""

import importlib
from types import ModuleType

from mobile_former.errors import InputError


def import_extra(name: str, extra: str, reason: str) -> ModuleType:
    """Import and return a module of an optional dependency.

    Args:
        name: name of the module, such as ``"onnxruntime"`` or ``"onnxruntime.quantization"``.
        extra: name of the pip extra that installs the module, defined in setup.cfg.
        reason: beginning of the error message, such as ``"an ONNX file needs onnxruntime"``. Its last word is the name
            of the library.

    Raises:
        InputError: the module cannot be imported. The message gives the cause and the command that installs the extra.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # torchvision raises RuntimeError if it does not fit torch
        raise InputError(
            f"{reason}, which cannot be imported ({error}): pip install -c constraints.txt -e '.[{extra}]'"
        ) from error
