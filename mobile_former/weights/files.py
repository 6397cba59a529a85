"""Read weights files without running code from them."""

import argparse
import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as brief

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from mobile_former.errors import InputError, first_line
from mobile_former.weights.authors_layout import our_names

_logger = logging.getLogger(__name__)


def read_weights(path: Path, ema: bool = False) -> tuple[dict[str, Tensor], str]:
    """Read a weights file, and return its tensors under this project's names.

    Args:
        path: path of the file.
        ema: True to read the averaged weights (``state_dict_ema``), False to read the plain ones.

    Returns:
        A dictionary from names to tensors, and the key under which the file contains the tensors. The key is
        ``"state_dict"`` or ``"state_dict_ema"``, or ``"file"`` if the file itself is a dictionary of tensors.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file is not a weights file, is damaged, contains pickled objects that could run code, or has no
            averaged weights although ``ema`` is True.
    """
    state, entry = _select(path, read_file(path), ema)
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise InputError(f"{path} is not a weights file: {entry} is not a mapping from names to tensors")
    state = {re.sub(r"^((module|_orig_mod)\.)+", "", name): value for name, value in state.items()}
    if any(name.startswith("model.") for name in state):  # a LightningModule holds the network as `model`
        state = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    if not state:
        raise InputError(f"{path} is not a weights file: {entry} holds no tensors")
    for name, value in state.items():
        if not _is_plain(value):
            raise InputError(f"{path}: {brief(name)} is not a plain tensor (dense, real, unquantised, on the CPU)")
    return our_names(state), entry


def read_file(path: Path) -> object:
    """Load a safetensors file or a ``torch.save`` file, without running code from the file.

    Returns:
        The loaded object, usually a dictionary. Its type is not checked. All tensors in it are on the CPU.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file has another format, is damaged, or contains pickled objects that could run code.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the weights file itself")
    with path.open("rb") as file:
        start = file.read(512)
    # The first bytes identify the format. The suffix does not: the authors' .pth.tar files are not tar files.
    if start[8:9] == b"{":
        reader = load_file
    elif start.startswith((b"PK", b"\x80")) or start[257:262] == b"ustar":
        reader = _read_pickle
    else:
        raise InputError(
            f"{path} is not a weights file: it is neither safetensors nor written by torch.save "
            f"(it begins with {start[:16]!r})"
        )
    try:
        return reader(path)
    except InputError:
        raise
    except Exception as error:  # the reader of a damaged file can raise any exception
        reason = first_line(error).split(". ")[0]
        raise InputError(
            f"{path} is cut short or damaged ({type(error).__name__}: {reason}): fetch or save it again"
        ) from error


def _is_plain(value: object) -> bool:
    """Return whether a value is a dense, real, unquantised tensor on the CPU. Only such tensors can be loaded."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_complex())
    )


def _read_pickle(path: Path) -> object:
    if zipfile.is_zipfile(path):  # torch.load does not verify checksums
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise InputError(
                    f"{path} is cut short or damaged (the checksum of {damaged} does not match): fetch or save it again"
                )
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{path} contains more than data: it refers to {refused[1]}, which could run code, so it was not "
                "loaded. If you trust the file, save only its state_dict with torch.save and give that file"
            ) from error
        raise


# The authors' checkpoints also contain the training options and scores as numpy scalars. numpy 1 wrote the scalars
# under another module name.
_SAFE_GLOBALS = [
    argparse.Namespace,
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "float16", "float32", "float64")),
]


def _select(path: Path, content: object, ema: bool) -> tuple[object, str]:
    """Select the plain or the averaged weights from a loaded weights file.

    Args:
        path: path of the file, for messages.
        content: object that :func:`read_file` returned.
        ema: True to select the averaged weights (exponential moving average), False to select the plain ones.

    Returns:
        The weights, usually a dictionary from names to tensors, and their key in ``content``. The key is
        ``"state_dict"`` or ``"state_dict_ema"``, or ``"file"`` if ``content`` itself is the dictionary of weights.

    Raises:
        InputError: ``ema`` is True, but ``content`` has no averaged weights.
    """
    entries = content if isinstance(content, Mapping) else {}
    if ema:
        if "state_dict_ema" not in entries:
            raise InputError(f"{path} holds no averaged weights (state_dict_ema): load it without ema=True")
        return entries["state_dict_ema"], "state_dict_ema"
    if "state_dict" not in entries:
        return content, "file"
    if "state_dict_ema" in entries:
        _logger.warning("%s holds plain and averaged weights: taking the plain ones (ema=True takes the others)", path)
    return entries["state_dict"], "state_dict"
