"""PyTorch models of Mobile-Former (CVPR 2022), a MobileNet and a transformer connected by a two-way bridge."""

from mobile_former.cost import Cost, cost
from mobile_former.deployment.deploy import deploy
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
from mobile_former.layers.checkpointing import checkpoint_gradients
from mobile_former.model import MobileFormer
from mobile_former.weights.loading import LoadedWeights, load_weights, save_weights
from mobile_former.weights.usage import Usage

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
