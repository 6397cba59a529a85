"""Libraries that only an extra of setup.cfg installs: imported where they are needed, or told how to get."""

import importlib
from types import ModuleType

from mobile_former.errors import InputError


def import_extra(name: str, extra: str, reason: str) -> ModuleType:
    """Import a library of an extra.

    Args:
        name: of the module, ``"onnxruntime"`` or ``"onnxruntime.quantization"``.
        extra: the one in setup.cfg that installs it.
        reason: who wants it, in a clause that ends in the library: ``"an ONNX file needs onnxruntime"``.

    Raises:
        InputError: it cannot be imported; the message says why, and how to install it.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch fails with RuntimeError
        raise InputError(
            f"{reason}, which cannot be imported ({error}): pip install -c constraints.txt -e '.[{extra}]'"
        ) from error
