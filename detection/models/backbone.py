"""Backbones of the detectors: Mobile-Former variants, and networks of timm and transformers."""

from pathlib import Path

from torch import Tensor, nn

from mobile_former.errors import InputError, nearest
from mobile_former.layers.padding import zero_padding
from mobile_former.model import Backbone
from mobile_former.training.baselines import (
    import_library,
    is_baseline,
    load_transformers_weights,
    resnet_config,
    timm_model,
)
from mobile_former.variants import VARIANTS
from mobile_former.weights.backbone import load_backbone_weights

STRIDES = (8, 16, 32)  # strides of the maps that every detector needs


def create_backbone(name: str) -> nn.Module:
    """Build a detector's backbone.

    Args:
        name: name of a Mobile-Former such as ``mobile_former_294m``, ``timm/NAME`` for a model of timm, or
            ``transformers/resnetN`` for a ResNet of the transformers library, where N is 18, 34, 50 or 101. A
            Mobile-Former is built with spatially aware dynamic ReLU. A model of timm must have feature maps at strides
            8, 16 and 32.

    Returns:
        A module with the attribute ``channels``, a dictionary from stride to number of channels. Its
        ``forward(images, padding_mask)`` returns a tuple (dictionary from stride to feature map, tokens). The tokens
        are None for networks of timm and transformers.

    Raises:
        InputError: the name is unknown, the library cannot be imported, or the network lacks a feature map at stride 8,
            16 or 32.
    """
    if name in VARIANTS:
        return Backbone(VARIANTS[name], spatial_dynamic_relu=True)
    if not is_baseline(name):
        raise InputError(
            f"no backbone {name!r}: give timm/NAME, transformers/NAME or a Mobile-Former; {nearest(name, VARIANTS)}"
        )
    library, _, model = name.partition("/")
    return TimmBackbone(model) if library == "timm" else TransformersBackbone(model)


def load_pretrained_backbone(backbone: nn.Module, name: str, path: Path) -> None:
    """Load pretrained weights into the backbone of a detector, in place.

    Args:
        backbone: a backbone built by :func:`create_backbone`, or the ResNet of DETR.
        name: name of the backbone.
        path: path of the weights file of a classifier with this backbone. A Mobile-Former needs a file from the paper's
            authors or this project. A backbone of timm or transformers needs a file with the tensor names of that
            library.

    Raises:
        InputError: the file does not fit the backbone.
        FileNotFoundError: the file does not exist.
    """
    if isinstance(backbone, Backbone):
        load_backbone_weights(backbone, name, path)
    elif isinstance(backbone, BaselineBackbone):
        backbone.load(path)
    else:  # the ResNet of DETR
        load_transformers_weights(backbone, path)


class BaselineBackbone(nn.Module):
    """A network of another library, with the interface of Mobile-Former's backbone.

    Padding is set to zero in the image, but not in the feature maps. Features near the padding therefore depend on the
    amount of padding. This is usual for these networks, but not the case for Mobile-Former's backbone.

    Args:
        network: module that computes feature maps, fine to coarse.
        strides: strides of these maps in pixels.
        channels: channels of these maps.
        name: name of the network in error messages.

    Raises:
        InputError: a map at stride 8, 16 or 32 is missing.
    """

    def __init__(self, network: nn.Module, strides: list[int], channels: list[int], name: str):
        super().__init__()
        if set(STRIDES) - set(strides):
            raise InputError(
                f"{name} has maps at strides {strides}, but a detector needs {list(STRIDES)}: choose another network"
            )
        self.network = network
        self.strides = strides
        self.channels = dict(zip(strides, channels, strict=True))

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> tuple[dict[int, Tensor], None]:
        """Compute the feature maps of images.

        Args:
            images: normalised images ``(B, 3, H, W)``.
            padding_mask: ``(B, H, W)`` bool, True on padding; None if there is no padding.

        Returns:
            A tuple (dictionary from stride to feature map, None). The dictionary is ``{8: (B, C, ⌈H/8⌉, ⌈W/8⌉), 16: …,
            32: …}``. It also contains the maps at other strides that the network returns. The second value is None,
            because these networks have no tokens.
        """
        if padding_mask is not None:
            images = zero_padding(images, padding_mask[:, None])
        return dict(zip(self.strides, self.maps(images), strict=True)), None

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return a list of the feature maps of normalised images ``(B, 3, H, W)``, fine to coarse."""
        return self.network(images)


class TimmBackbone(BaselineBackbone):
    """A network of timm with feature maps at strides 8, 16 and 32.

    Args:
        name: name of the network in timm.
    """

    def __init__(self, name: str):
        network = timm_model(name, features_only=True)
        info = network.feature_info
        super().__init__(network, info.reduction(), info.channels(), f"timm/{name}")
        self.name = name

    def load(self, path: Path) -> None:
        """Load pretrained weights into the network from a file. The tensors in the file have timm's own names.

        The weights of a classifier in the file are ignored.
        """
        self.network.load_state_dict(timm_model(self.name, path, features_only=True).state_dict())


class TransformersBackbone(BaselineBackbone):
    """ResNet backbone of the transformers library.

    Args:
        name: ``resnet18``, ``resnet34``, ``resnet50`` or ``resnet101``.
    """

    def __init__(self, name: str):
        config = resnet_config(name, out_features=["stage2", "stage3", "stage4"])
        network = import_library("transformers", name).ResNetBackbone(config)
        super().__init__(network, list(STRIDES), network.channels, f"transformers/{name}")

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return a list of the feature maps of normalised images ``(B, 3, H, W)``, fine to coarse."""
        return list(self.network(images).feature_maps)

    def load(self, path: Path) -> None:
        """Load pretrained weights into the network from a file.

        The tensors in the file have the names that the transformers library uses. The weights of a classifier in the
        file are ignored.
        """
        load_transformers_weights(self.network, path)
