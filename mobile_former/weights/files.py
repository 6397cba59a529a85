"""Read weights files as data, never as code."""

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
    """Read a weights file into this project's names, without a model at hand.

    Args:
        path: the file.
        ema: take ``state_dict_ema``.

    Returns:
        Tensors by name, and which entry of the file they are, see :class:`LoadedWeights`.

    Raises:
        FileNotFoundError: no such file.
        InputError: not a weights file, cut short, or holding anything but data.
    """
    state, entry = _select(path, read_file(path), ema)
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise InputError(f"{path}: {entry} is not a set of named tensors, so this is not a weights file")
    state = {re.sub(r"^((module|_orig_mod)\.)+", "", name): value for name, value in state.items()}
    if any(name.startswith("model.") for name in state):  # a LightningModule holds the network as `model`
        state = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    strange = [name for name, value in state.items() if not _is_plain(value)]
    if strange or not state:
        raise InputError(
            f"{path}: {entry} holds no plain tensors{f' (such as {brief(strange[0])})' if strange else ''}"
        )
    return our_names(state), entry


def read_file(path: Path) -> object:
    """A file's content, as data: never executed.

    Raises:
        FileNotFoundError: no such file.
        InputError: not a weights file, cut short, or holding anything but data.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the weights file itself")
    with path.open("rb") as file:
        start = file.read(512)
    # The first bytes tell the format; endings do not (the authors' .pth.tar are no tar files).
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
    except Exception as error:  # a damaged file can fail anywhere in its format's reader, with any exception
        reason = first_line(error).split(". ")[0]
        raise InputError(
            f"{path} is cut short or damaged ({type(error).__name__}: {reason}): fetch or save it again"
        ) from error


def _is_plain(value: object) -> bool:
    """Whether this is a tensor that can be copied into a parameter: real numbers, in memory, each in its place."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_complex())
    )


def _read_pickle(path: Path) -> object:
    if zipfile.is_zipfile(path):  # torch.load looks at no checksum
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise InputError(
                    f"{path} is cut short or damaged (the checksum of {damaged} is another): fetch or save it again"
                )
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{path} holds more than data: it asks to load {refused[1]}, which could run code. It was not read; "
                "if you trust it, save its state_dict alone with torch.save and give that file"
            ) from error
        raise


# What the authors' training program leaves beside the tensors: its options, and scores as numpy scalars, which numpy
# before 2 wrote under another module's name.
_SAFE_GLOBALS = [
    argparse.Namespace,
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "float16", "float32", "float64")),
]


def _select(path: Path, content: object, ema: bool) -> tuple[object, str]:
    """The set of weights in a file's content that was asked for."""
    wrapped = isinstance(content, Mapping) and "state_dict" in content
    if ema:
        if not (isinstance(content, Mapping) and "state_dict_ema" in content):
            raise InputError(f"{path} holds no averaged weights (state_dict_ema): load it without asking for them")
        return content["state_dict_ema"], "state_dict_ema"
    if wrapped and "state_dict_ema" in content:
        _logger.warning("%s holds plain and averaged weights: taking the plain ones (ema=True takes the others)", path)
    return (content["state_dict"], "state_dict") if wrapped else (content, "file")
