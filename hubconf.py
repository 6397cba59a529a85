"""Entry points of the published models for ``torch.hub.load``."""

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
        num_classes (int): number of classes; default: 1000.
        in_chans (int): number of image channels; default: 3.
        dropout (float): dropout rate before the last linear layer; default: 0.
        drop_path (float): stochastic depth rate of the last block; default: 0.
        spatial_dynamic_relu (bool): use the spatially aware dynamic ReLU of the detectors' backbone; default: False.
        pretrained (str): path of a weights file: the authors' .pth or .pth.tar, a checkpoint of this project, or
            safetensors. If the file has another number of classes, the last linear layer is not loaded. Default: None,
            for random weights.

    Returns:
        A module that maps normalised images (B, in_chans, H, W), with sides of at least 32 pixels, to logits
        (B, num_classes). The method forward_features returns the feature maps and the tokens.
    """
    return entry_point


globals().update({name: _entry_point(name) for name in _list_models()})
