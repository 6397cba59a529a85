"""Load only the backbone of a classifier's weights file."""

import logging
from pathlib import Path

from mobile_former.errors import InputError
from mobile_former.model import Backbone, MobileFormer
from mobile_former.weights.files import read_weights
from mobile_former.weights.loading import layout, require_channels, require_variant

_logger = logging.getLogger(__name__)


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
    published = MobileFormer.published
    require_variant(path, state, variant, layout(published(variant).state_dict()), published=published)
    require_channels(path, state, backbone.in_chans)
    prefix = "backbone."
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if layout(state) != layout(backbone.state_dict()):
        raise InputError(f"{path} holds the published {variant}, not an ablated one: train that from scratch")
    backbone.load_state_dict(state)
    _logger.info("loaded the backbone out of %s", path)
