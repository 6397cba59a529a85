"""Load the weights of a backbone from the weights file of a classifier."""

import logging
from pathlib import Path

from mobile_former.errors import InputError
from mobile_former.model import Backbone, MobileFormer
from mobile_former.weights.files import read_weights
from mobile_former.weights.loading import layout, require_channels, require_variant
from mobile_former.weights.sources import local_file

_logger = logging.getLogger(__name__)


def load_backbone_weights(backbone: Backbone, variant: str, path: str | Path) -> None:
    """Load the weights of a classifier's backbone from a file into ``backbone``, in place.

    Args:
        backbone: the backbone, usually of a detector. It may have the spatially shared or the spatially aware dynamic
            ReLU, because the names and shapes of the weights are the same for both.
        variant: name of the published model to which the backbone belongs.
        path: path of a weights file in any format of :func:`mobile_former.load_weights`.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file cannot be read or does not fit, see :func:`mobile_former.load_weights`.
    """
    path = local_file(path)
    state, _ = read_weights(path)
    require_variant(path, state, MobileFormer.published(variant))
    require_channels(path, state, backbone.in_chans)
    prefix = "backbone."
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if layout(state) != layout(backbone.state_dict()):
        raise InputError(f"{path} holds the published {variant}, not an ablated one: train that from scratch")
    backbone.load_state_dict(state)
    _logger.info("loaded the backbone from %s", path)
