"""Load the weights of a Mobile-Former from a file, and save the weights of a model in a safetensors file.

Three kinds of files can be loaded: checkpoints that the authors of Mobile-Former published, Lightning checkpoints of
this project, and safetensors files.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn

from mobile_former.errors import InputError
from mobile_former.variants import VARIANTS
from mobile_former.weights.files import read_weights
from mobile_former.weights.sources import local_file
from mobile_former.whole_file import write_whole

_logger = logging.getLogger(__name__)
# Tensors whose shapes vary within a variant. Those of the last linear layer depend on the number of classes, that of
# the stem's convolution on the number of image channels.
_HEAD = ("classifier.logits.weight", "classifier.logits.bias")
_STEM = "backbone.stem.conv.weight"


@dataclass(frozen=True)
class LoadedWeights:
    """Return value of :func:`load_weights`: information about the loaded file.

    Attributes:
        path: path of the file.
        entry: key of the loaded weights in the file, ``"state_dict"`` or ``"state_dict_ema"``. It is ``"file"`` if the
            file itself is a dictionary of tensors.
        num_classes: number of classes of the classifier in the file.
        new_head: True if the last linear layer was not loaded because the model has another number of classes.
    """

    path: Path
    entry: str
    num_classes: int
    new_head: bool


def load_weights(model: nn.Module, path: str | Path, ema: bool = False) -> LoadedWeights:
    """Load the weights in a file into a model, in place.

    The file can be a ``.pth`` or ``.pth.tar`` checkpoint of Mobile-Former's authors, a Lightning checkpoint (``.ckpt``)
    of this project, or a ``.safetensors`` file. If the file and the model have different numbers of classes, the last
    linear layer is not loaded and a warning is logged. Files with pickled objects that could run code are refused.

    Args:
        model: a :class:`mobile_former.MobileFormer`.
        path: path of the file, ``hf://owner/name``, or an ``https://`` URL with the SHA-256 of the file, see
            :func:`mobile_former.weights.sources.local_file`.
        ema: True to load the averaged weights, which the authors' training program saves as ``state_dict_ema``; False
            to load the plain ones.

    Returns:
        A :class:`LoadedWeights` with the path, the key of the weights in the file and the number of classes in the
        file. It also states whether the last linear layer was left out.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file is not a weights file, is damaged, or contains pickled objects that could run code. The
            error is also raised in these cases: ``ema`` is True but the file has no averaged weights, the file is for
            another variant (the message names it) or for another number of image channels, or ``model`` is not a
            Mobile-Former.
    """
    if not hasattr(model, "published"):
        raise InputError(f"{type(model).__name__} cannot load weights: load them into a MobileFormer, then deploy it")
    path = local_file(path)
    state, entry = read_weights(path, ema)
    require_variant(path, state, model)
    require_channels(path, state, model.in_chans)
    rows, num_classes = (len(state[name]) for name in _HEAD)
    if rows != num_classes:
        raise InputError(f"{path}: the last linear layer has weights for {rows} classes, but {num_classes} biases")
    new_head = num_classes != model.num_classes
    if new_head:
        own = model.state_dict()
        state = state | {name: own[name] for name in _HEAD}
        _logger.warning(
            "%s has %d classes, the model %d: loaded all layers except the last linear one",
            path,
            num_classes,
            model.num_classes,
        )
    model.load_state_dict(state)
    _logger.info("loaded the weights in %s", path)
    return LoadedWeights(path, entry, num_classes, new_head)


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Save the weights of a model as a safetensors file.

    The metadata of the file contain the name of the model's variant and the number of classes.

    Args:
        model: a :class:`mobile_former.MobileFormer`.
        path: path of the file, with the suffix ``.safetensors``. Its folder is created if it is missing.

    Raises:
        InputError: the path has another suffix.
        OSError: the file cannot be written. An existing file stays unchanged.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: weights are saved as safetensors; give a name with the suffix .safetensors")
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_whole(path, save(state, {"model": model.variant, "num_classes": str(model.num_classes)}))


def require_variant(path: Path, state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise InputError if the tensors in a file differ in name or shape from those of a model.

    Differences in the number of classes or of image channels are allowed.

    Args:
        path: path of the file, for the message.
        state: dictionary from names to the tensors of the file.
        model: a :class:`mobile_former.MobileFormer`.

    Raises:
        InputError: a name or shape differs. If the file fits another published model, the message names that model.
    """
    found, expected = layout(state), layout(model.state_dict())
    if found == expected:
        return
    for variant in VARIANTS:
        if found == layout(model.published(variant).state_dict()):
            if variant == model.variant:
                raise InputError(f"{path} holds the published {variant}, not an ablated one: train that from scratch")
            raise InputError(
                f"{path} holds the weights of {variant}, but the model is {model.variant}: create {variant!r}"
            )
    differences = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "with another shape": sorted(n for n in expected.keys() & found.keys() if expected[n] != found[n]),
    }
    listed = ", ".join(f"{len(names)} {kind} (first: {names[0]!r})" for kind, names in differences.items() if names)
    raise InputError(f"{path} holds no published Mobile-Former. Its tensors differ from {model.variant}: {listed}")


def require_channels(path: Path, state: Mapping[str, Tensor], in_chans: int) -> None:
    """Raise InputError if the weights in a file are for a number of image channels other than ``in_chans``.

    Args:
        path: path of the file, for the message.
        state: dictionary from names to the tensors of the file.
        in_chans: number of image channels of the model.
    """
    found = state[_STEM].shape[1]
    if found != in_chans:
        raise InputError(
            f"{path} is for images of {found} channels, the model for {in_chans}: create the model with "
            f"in_chans={found}"
        )


def layout(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's tensors, independent of the numbers of classes and image channels.

    Args:
        state: dictionary from the names of the tensors to the tensors.

    Returns:
        Dictionary from the names to the shapes. In the shapes of the last linear layer's weight and bias, the number of
        classes is replaced by 0. In the shape of the stem's weight, the axis of the image channels is left out.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in _HEAD:
        if shapes.get(name):
            shapes[name] = 0, *shapes[name][1:]
    if _STEM in shapes:
        shapes[_STEM] = shapes[_STEM][:1] + shapes[_STEM][2:]
    return shapes
