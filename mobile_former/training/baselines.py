"""Build models of the libraries timm and transformers, which users select as ``timm/NAME`` or ``transformers/NAME``."""

import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from torch import Tensor, nn

from mobile_former.errors import InputError, first_line, nearest
from mobile_former.training.extras import import_extra
from mobile_former.weights.files import read_weights

_logger = logging.getLogger(__name__)

_LIBRARIES = ("timm", "transformers")

# He et al., Deep Residual Learning, CVPR 2016, table 1
_RESNETS = {
    "resnet18": {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]},
    "resnet34": {"layer_type": "basic", "depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 256, 512]},
    "resnet50": {"layer_type": "bottleneck", "depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048]},
    "resnet101": {"layer_type": "bottleneck", "depths": [3, 4, 23, 3], "hidden_sizes": [256, 512, 1024, 2048]},
}


def is_baseline(name: str) -> bool:
    """Return whether the name of a model begins with ``timm/`` or ``transformers/``."""
    return name.startswith(tuple(f"{library}/" for library in _LIBRARIES))


def import_library(library: str, model: str) -> ModuleType:
    """Import timm or transformers and return the module.

    Args:
        library: ``"timm"`` or ``"transformers"``.
        model: name of the model as the user gave it, for the error message.

    Raises:
        InputError: the library cannot be imported.
    """
    needs = " (and a torchvision that fits torch)" if library == "timm" else ""
    return import_extra(library, "baselines", f"{model} comes from {library}{needs}")


def timm_model(
    name: str, weights: Path | None = None, image_size: int | tuple[int, int] | None = None, **options
) -> nn.Module:
    """Build a timm model.

    Args:
        name: name of the model in timm.
        weights: weights file whose tensor names are those of timm. The classifier in the file is not loaded if its
            number of classes differs from that of the model. None: no weights file is loaded.
        image_size: side of the images in pixels, or height and width. It only affects models that take images of one
            size, such as LeViT. None: these models are built for timm's default size.
        options: keyword arguments of ``timm.create_model``. Arguments that are None are ignored.

    Raises:
        InputError: timm cannot be imported, has no such model, or does not accept the options. Also raised if the
            weights do not fit the model.
        FileNotFoundError: the weights file does not exist.
    """
    timm = import_library("timm", f"timm/{name}")
    if not timm.is_model(name):
        raise InputError(f"timm has no model {name!r}: {nearest(name, timm.list_models())}")
    options = {option: value for option, value in options.items() if value is not None}
    described = timm.get_pretrained_cfg(name)
    if image_size is not None and described.fixed_input_size:
        options["img_size"] = image_size
    if weights is not None:
        state, _ = read_weights(weights)
        overlay = {"state_dict": state}
        heads = described.classifier or ()
        heads = (heads,) if isinstance(heads, str) else tuple(heads)
        # For another number of classes, timm drops the classifier of the file and does not check the other tensors.
        if heads and f"{heads[0]}.weight" in state:
            overlay["num_classes"] = len(state[f"{heads[0]}.weight"])
        whole = timm.create_model(name).state_dict()
        missing = [n for n in whole if n not in state and not n.startswith(tuple(f"{head}." for head in heads))]
        if missing:
            raise InputError(
                f"{weights} does not fit timm/{name}: {len(missing)} of its {len(whole)} tensors are missing, first "
                f"{missing[0]!r}"
            )
        options |= {"pretrained": True, "pretrained_cfg_overlay": overlay}
    try:
        return timm.create_model(name, **options)
    except (RuntimeError, TypeError, KeyError, AssertionError) as error:
        what = f"with the weights in {weights}" if weights else "with these options"
        raise InputError(f"timm cannot build {name} {what}: {first_line(error)}") from error


def resnet_config(name: str, others: Sequence[str] = (), **options) -> object:
    """Return the ``transformers.ResNetConfig`` of a ResNet.

    Args:
        name: ``"resnet18"``, ``"resnet34"``, ``"resnet50"`` or ``"resnet101"``.
        others: names of further models that the caller supports. They are used only in the error message.
        options: keyword arguments of ``transformers.ResNetConfig``.

    Raises:
        InputError: the name is unknown, or transformers cannot be imported.
    """
    transformers = import_library("transformers", f"transformers/{name}")
    if name not in _RESNETS:
        raise InputError(f"no model transformers/{name}: {nearest(name, [*_RESNETS, *others])}")
    return transformers.ResNetConfig(**_RESNETS[name], **options)


def load_transformers_weights(network: nn.Module, path: Path) -> dict[str, Tensor]:
    """Load the weights of a Hugging Face transformers model into ``network``, in place.

    Args:
        network: model of the transformers library, without a classifier.
        path: ``.safetensors``, ``.bin`` or ``.pth`` file with weights of the same model, with or without a classifier.
            If tensor names in the file begin with the prefix of the model, such as ``resnet.``, this prefix is removed.

    Returns:
        A dictionary from tensor name to tensor. It contains the tensors of the file that the network does not have,
        such as those of the classifier.

    Raises:
        InputError: the file does not fit the network.
        FileNotFoundError: the file does not exist.
    """
    state, _ = read_weights(path)
    expected = network.state_dict()
    prefix = f"{network.base_model_prefix}."
    if any(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    unfit = [name for name in expected if name not in state or state[name].shape != expected[name].shape]
    if unfit:
        raise InputError(
            f"{path} does not fit {type(network).__name__}: {len(unfit)} of its {len(expected)} tensors are missing "
            f"or have another shape, first {unfit[0]!r}"
        )
    network.load_state_dict({name: state.pop(name) for name in expected})
    _logger.info("loaded the weights in %s", path)
    return state
