"""Read and write weights: the authors' files, this project's checkpoints, safetensors."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn

from mobile_former.errors import InputError
from mobile_former.variants import VARIANTS
from mobile_former.weights.files import read_weights
from mobile_former.whole_file import write_whole

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


def load_weights(model: nn.Module, path: str | Path, ema: bool = False) -> LoadedWeights:
    """Load a weights file into a model, in place.

    Reads the authors' ``.pth`` and ``.pth.tar``, this project's Lightning ``.ckpt`` and ``.safetensors``. From a file
    with another number of classes all but the last linear is loaded, and a logged warning says so. Nothing in a file
    is ever executed: it is read as data, and refused where it holds more than that.

    Args:
        model: a :class:`mobile_former.MobileFormer`.
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
    require_variant(path, state, model.variant, layout(expected), published=type(model).published)
    require_channels(path, state, model.in_chans)
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


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write a model's weights as safetensors, its variant and number of classes as metadata.

    Args:
        model: a :class:`mobile_former.MobileFormer`.
        path: the file, ending in ``.safetensors``; its folder is made where missing.

    Raises:
        InputError: the path has another ending.
        OSError: the file cannot be written. An existing file of that name stays as it was.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: weights are written as safetensors; give a name that ends in .safetensors")
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_whole(path, save(state, {"model": model.variant, "num_classes": str(model.num_classes)}))


def require_variant(
    path: Path,
    state: Mapping[str, Tensor],
    variant: str,
    expected: dict[str, tuple[int, ...]],
    published: Callable[[str], nn.Module],
) -> None:
    """Check that the tensors of a file are those of the model.

    Args:
        path: the file, for messages.
        state: its tensors.
        variant: name of the model's variant.
        expected: the layout of the model, see :func:`layout`.
        published: builds a published model by its name, see :meth:`mobile_former.MobileFormer.published`.

    Raises:
        InputError: the layouts differ. The message names the variant of the file if it is a published one.
    """
    found = layout(state)
    if found == expected:
        return
    for other in VARIANTS:
        if found == layout(published(other).state_dict()):
            if other == variant:
                raise InputError(f"{path} holds the published {other}, not an ablated one: train that from scratch")
            raise InputError(f"{path} holds the weights of {other}, but the model is {variant}: create {other!r}")
    differences = [
        ("missing", sorted(expected.keys() - found.keys())),
        ("unknown", sorted(found.keys() - expected.keys())),
        ("of another shape", sorted(n for n in expected.keys() & found.keys() if expected[n] != found[n])),
    ]
    listed = "; ".join(f"{len(names)} {kind}, first {names[0]!r}" for kind, names in differences if names)
    raise InputError(f"{path} holds no published Mobile-Former. Compared with {variant}, entries differ: {listed}")


def require_channels(path: Path, state: Mapping[str, Tensor], in_chans: int) -> None:
    """Raise InputError if a file's stem is for another number of image channels than ``in_chans``."""
    found = state[_STEM].shape[1]
    if found != in_chans:
        raise InputError(
            f"{path} is for images of {found} channels, the model for {in_chans}: create the model with "
            f"in_chans={found}"
        )


def layout(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors by name, without the sizes that depend on the numbers of classes and of image channels."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in _HEAD:
        if shapes.get(name):
            shapes[name] = 0, *shapes[name][1:]
    if _STEM in shapes:
        shapes[_STEM] = shapes[_STEM][:1] + shapes[_STEM][2:]
    return shapes
