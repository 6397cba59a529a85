"""Read and write weights: the authors' files, this project's checkpoints, safetensors."""

import argparse
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from reprlib import repr as brief

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mobile_former.errors import InputError
from mobile_former.model import Backbone, MobileFormer
from mobile_former.variants import VARIANTS

_logger = logging.getLogger(__name__)

# The last linear depends on the number of classes; the stem's convolution on the number of image channels.
_HEAD = ("classifier.logits.weight", "classifier.logits.bias")
_STEM = "backbone.stem.conv.weight"


@dataclass(frozen=True)
class LoadedWeights:
    """What :func:`load_weights` did.

    Attributes:
        path: the file.
        entry: which of the file's sets of weights was taken: ``"state_dict"``, ``"state_dict_ema"``, or ``"file"``
            where the file holds one set and nothing else.
        num_classes: number of classes in the file.
        new_head: True where that is not the model's number, so that the last linear was left as it was.
    """

    path: Path
    entry: str
    num_classes: int
    new_head: bool


def load_weights(model: MobileFormer, path: str | Path, ema: bool = False) -> LoadedWeights:
    """Load a weights file into a model, in place.

    Reads the authors' ``.pth`` and ``.pth.tar``, this project's Lightning ``.ckpt`` and ``.safetensors``. From a file
    with another number of classes all but the last linear is loaded, and a logged warning says so. Nothing in a file
    is ever executed: it is read as data, and refused where it holds more than that.

    Args:
        model: a Mobile-Former.
        path: the file.
        ema: take the averaged weights (``state_dict_ema``) that the authors' training program keeps beside the plain
            ones.

    Returns:
        What was taken from the file.

    Raises:
        FileNotFoundError: no such file.
        InputError: not a weights file, cut short, holding anything but data, of another variant (which is named), for
            images of another number of channels, or without averaged weights although asked for.
    """
    path = Path(path)
    state, entry = read_weights(path, ema)
    expected = model.state_dict()
    _require_variant(path, state, model.variant, _layout(expected))
    _require_channels(path, state, model.in_chans)
    rows, num_classes = (len(state[name]) for name in _HEAD)
    if rows != num_classes:
        raise InputError(f"{path}: its last linear has weights for {rows} classes and biases for {num_classes}")
    new_head = num_classes != model.num_classes
    if new_head:
        state = state | {name: expected[name] for name in _HEAD}
        _logger.warning(
            "%s has %d classes, the model %d: loaded all but the last linear, which starts afresh",
            path,
            num_classes,
            model.num_classes,
        )
    model.load_state_dict(state)
    _logger.info("loaded the weights in %s", path)
    return LoadedWeights(path, entry, num_classes, new_head)


def load_backbone_weights(backbone: Backbone, variant: str, path: str | Path) -> None:
    """Load the backbone out of a classifier's weights file, in place.

    Args:
        backbone: of a model of another task; whether its dynamic ReLU is spatially aware makes no difference.
        variant: name of the published model that it is the backbone of.
        path: the file, as of :func:`load_weights`.

    Raises:
        FileNotFoundError: no such file.
        InputError: as of :func:`load_weights`.
    """
    path = Path(path)
    state, _ = read_weights(path)
    _require_variant(path, state, variant, _published_layout(variant))
    _require_channels(path, state, backbone.in_chans)
    prefix = "backbone."
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if _layout(state) != _layout(backbone.state_dict()):
        raise InputError(f"{path} holds the published {variant}, not an ablated one: train that from scratch")
    backbone.load_state_dict(state)
    _logger.info("loaded the backbone out of %s", path)


def save_weights(model: MobileFormer, path: str | Path) -> None:
    """Write a model's weights as safetensors, its variant and number of classes as metadata.

    Args:
        model: a Mobile-Former.
        path: the file, ending in ``.safetensors``; its folder is made where missing.

    Raises:
        InputError: the path has another ending.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: weights are written as safetensors; give a name that ends in .safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    unfinished = path.with_suffix(".part")
    save_file(state, unfinished, metadata={"model": model.variant, "num_classes": str(model.num_classes)})
    os.replace(unfinished, path)  # so that a reader never sees half a file


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
    return _our_names(state), entry


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
        reason = (str(error).splitlines() or [""])[0].split(". ")[0][:200]
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


def _require_variant(path: Path, state: dict[str, Tensor], expected_variant: str, expected: dict[str, tuple]) -> None:
    """Raise InputError where a file's tensors are not those of the model's variant, whose layout is ``expected``."""
    layout = _layout(state)
    if layout == expected:
        return
    for variant in VARIANTS:
        if layout == _published_layout(variant):
            if variant == expected_variant:
                raise InputError(f"{path} holds the published {variant}, not an ablated one: train that from scratch")
            raise InputError(
                f"{path} holds the weights of {variant}, but the model is {expected_variant}: create {variant!r}"
            )
    differences = [
        (f"it lacks {len(expected.keys() - layout.keys())}", sorted(expected.keys() - layout.keys())),
        (f"it has {len(layout.keys() - expected.keys())} unknown", sorted(layout.keys() - expected.keys())),
        ("shapes differ", sorted(n for n in expected.keys() & layout.keys() if expected[n] != layout[n])),
    ]
    told = "; ".join(f"{what}, first {names[0]!r}" for what, names in differences if names)
    raise InputError(f"{path} holds no published Mobile-Former. Of the entries of {expected_variant}, {told}")


def _require_channels(path: Path, state: dict[str, Tensor], in_chans: int) -> None:
    found = state[_STEM].shape[1]
    if found != in_chans:
        raise InputError(
            f"{path} is for images of {found} channels, the model for {in_chans}: create the model with "
            f"in_chans={found}"
        )


def _layout(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by name, less what varies within a variant."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in _HEAD:
        if shapes.get(name):
            shapes[name] = 0, *shapes[name][1:]
    if _STEM in shapes:
        shapes[_STEM] = shapes[_STEM][:1] + shapes[_STEM][2:]
    return shapes


@cache
def _published_layout(variant: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return _layout(MobileFormer(variant).state_dict())


def _our_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the entries of the authors' checkpoints; others stay as they are."""
    if "tokens.weight" not in state:
        return state
    # Only a downsampling block has a fourth convolution, only a lite block a sequence `conv`.
    down = {name.split(".")[1] for name in state if re.match(r"features\.\w+\.conv4\.", name)}

    def rename(name: str) -> str:
        block = re.match(r"features\.(\w+)\.", name)
        rules = _AUTHORS_BLOCK | (_AUTHORS_DOWN if block and block[1] in down else _AUTHORS_SAME)
        for pattern, replacement in (_AUTHORS_TOP | rules).items():
            name = re.sub(pattern, replacement, name)
        return name

    return {rename(name): tensor for name, tensor in state.items()}


_AUTHORS_TOP = {
    r"^tokens\.weight$": "backbone.tokens",
    r"^stem\.0\.": "backbone.stem.conv.",
    r"^stem\.1\.": "backbone.stem.norm.",
    r"^features\.(\w+)\.": r"backbone.blocks.\1.",
    r"^local_global\.": "classifier.local_global.",
    r"^classifier\.conv\.1\.": "classifier.expand.conv.",
    r"^classifier\.conv\.2\.": "classifier.expand.norm.",
    r"^classifier\.fc\.0\.": "classifier.features.",
    r"^classifier\.fc\.1\.": "classifier.norm.",
    r"^classifier\.classifier\.1\.": "classifier.logits.",
}
_AUTHORS_BLOCK = {
    r"\.local_global\.alpha\.0\.": ".to_former.gate.",
    r"\.local_global\.q\.": ".to_former.query.",
    r"\.local_global\.proj\.": ".to_former.output.",
    r"\.local_global\.layer_norm\.": ".to_former.norm.",
    r"\.global_block\.q\.": ".former.query.",
    r"\.global_block\.channel_mlp\.": ".former.output.",
    r"\.global_block\.layer_norm\.": ".former.attention_norm.",
    r"\.global_block\.": ".former.",
    r"\.global_local\.k\.": ".to_mobile.key.",
    r"\.global_local\.proj\.": ".to_mobile.value.",
    r"\.hyper\.0\.": ".reduce.",
    r"\.hyper\.2\.": ".slopes.",
    r"(blocks\.\w+)\.conv\.0\.": r"\1.depthwise.conv.",
    r"(blocks\.\w+)\.conv\.1\.": r"\1.depthwise.norm.",
    r"(blocks\.\w+)\.conv\.4\.": r"\1.project.conv.",
    r"(blocks\.\w+)\.conv\.5\.": r"\1.project.norm.",
    r"\.conv(\d)\.0\.": r".conv\1.conv.",
    r"\.conv(\d)\.1\.": r".conv\1.norm.",
}
_AUTHORS_SAME = {
    r"\.conv1\.": ".mobile.expand.",
    r"\.hyper1\.": ".mobile.expand_relu.",
    r"\.conv2\.": ".mobile.depthwise.",
    r"\.hyper2\.": ".mobile.depthwise_relu.",
    r"\.conv3\.": ".mobile.project.",
}
_AUTHORS_DOWN = {
    r"\.conv1\.": ".mobile.depthwise1.",
    r"\.hyper1\.": ".mobile.relu1.",
    r"\.conv2\.": ".mobile.project1.",
    r"\.conv3\.": ".mobile.depthwise2.",
    r"\.hyper3\.": ".mobile.relu2.",
    r"\.conv4\.": ".mobile.project2.",
}
