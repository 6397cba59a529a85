"""Mobile-Former: a MobileNet and a transformer of a few tokens, joined by a two-way bridge (CVPR 2022)."""

from mobile_former.after_import import after_import
from mobile_former.checkpointing import checkpoint_gradients
from mobile_former.cost import Cost, cost
from mobile_former.deploy import deploy
from mobile_former.errors import InputError
from mobile_former.factory import (
    create_model,
    list_models,
    mobile_former_26m,
    mobile_former_52m,
    mobile_former_96m,
    mobile_former_151m,
    mobile_former_214m,
    mobile_former_294m,
    mobile_former_508m,
)
from mobile_former.model import MobileFormer
from mobile_former.usage import Usage
from mobile_former.weights import LoadedWeights, load_weights, save_weights

__all__ = [
    "Cost",
    "InputError",
    "LoadedWeights",
    "MobileFormer",
    "Usage",
    "checkpoint_gradients",
    "cost",
    "create_model",
    "deploy",
    "list_models",
    "load_weights",
    "mobile_former_26m",
    "mobile_former_52m",
    "mobile_former_96m",
    "mobile_former_151m",
    "mobile_former_214m",
    "mobile_former_294m",
    "mobile_former_508m",
    "save_weights",
]


def _register_with_timm() -> None:
    from mobile_former import timm_models

    timm_models.register()


after_import("timm", _register_with_timm)
