"""The published models for ``torch.hub.load``, from a clone of this repository or from where it lies."""

from collections.abc import Callable as _Callable

from mobile_former import MobileFormer as _MobileFormer
from mobile_former import create_model as _create_model
from mobile_former import list_models as _list_models

dependencies = ["torch", "safetensors", "numpy"]


def _entry_point(name: str) -> _Callable[..., _MobileFormer]:
    def entry_point(**options) -> _MobileFormer:
        return _create_model(name, **options)

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__doc__ = f"""Mobile-Former-{name.removeprefix("mobile_former_").upper()}.

    Args:
        num_classes (int): number of logits; 1000.
        in_chans (int): channels of an image; 3.
        dropout (float): rate before the last linear; 0.
        drop_path (float): stochastic depth's rate at the last block; 0.
        spatial_dynamic_relu (bool): spatially aware dynamic ReLU, as in the detectors' backbone; False.
        pretrained (str): a weights file: the authors' .pth or .pth.tar, a checkpoint of this project, or safetensors.
            With another number of classes all but the last linear is loaded. None: the model starts afresh.

    Returns:
        A module that takes normalised images (B, in_chans, H, W), both sides at least 32 pixels, and gives logits
        (B, num_classes); its forward_features gives maps and tokens.
    """
    return entry_point


globals().update({name: _entry_point(name) for name in _list_models()})
