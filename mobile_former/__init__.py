"""PyTorch models of Mobile-Former (CVPR 2022), a MobileNet and a transformer connected by a two-way bridge."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    from mobile_former.multiply_adds import Cost, cost
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

# Modules are imported when one of their names is used. Commands can therefore set up the process before PyTorch is
# loaded, and print their help without it.
_MODULES = {
    "Cost": "multiply_adds",
    "InputError": "errors",
    "LoadedWeights": "weights.loading",
    "MobileFormer": "model",
    "Usage": "weights.usage",
    "checkpoint_gradients": "layers.checkpointing",
    "cost": "multiply_adds",
    "deploy": "deployment.deploy",
    "load_weights": "weights.loading",
    "save_weights": "weights.loading",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'factory')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
