"""The backbones of the detectors: Mobile-Former's, timm's, transformers'."""

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

NEEDED = (8, 16, 32)  # strides of the maps that the detectors take


def create_backbone(name: str) -> nn.Module:
    """Build a detector's backbone.

    Args:
        name: that of a published classifier, whose blocks then have spatially aware dynamic ReLU; ``timm/NAME`` for any
            of timm's that has maps at strides 8, 16 and 32; ``transformers/resnet18``, ``34``, ``50`` or ``101``.

    Returns:
        A module with ``channels`` by stride, whose ``forward(images, padding_mask)`` gives maps by stride, and the
        tokens where it has any.

    Raises:
        InputError: unknown name, a library that cannot be imported, or maps of other strides.
    """
    if name in VARIANTS:
        return Backbone(VARIANTS[name], spatial_dynamic_relu=True)
    if not is_baseline(name):
        raise InputError(f"no backbone {name!r}, other than timm/NAME and transformers/NAME: {nearest(name, VARIANTS)}")
    library, _, model = name.partition("/")
    return TimmBackbone(model) if library == "timm" else TransformersBackbone(model)


def load_pretrained_backbone(backbone: nn.Module, name: str, path: Path) -> None:
    """Load a classifier's weights file into a backbone, in place.

    Args:
        backbone: as :func:`create_backbone` builds it.
        name: by this name.
        path: the file, in the layout of the library that the backbone is from.

    Raises:
        InputError: a file that does not fit.
        FileNotFoundError: no such file.
    """
    if isinstance(backbone, Backbone):
        load_backbone_weights(backbone, name, path)
    elif isinstance(backbone, BaselineBackbone):
        backbone.load(path)
    else:  # the ResNet in DETR
        load_transformers_weights(backbone, path)


class BaselineBackbone(nn.Module):
    """Another library's network, called as Mobile-Former's backbone is.

    What lies on padding is set to zero in the image alone, not in every map as in Mobile-Former: near the border of its
    content an image gets features that depend on how much its batch pads it, as is usual with such networks.

    Args:
        network: gives maps, from the finest to the coarsest.
        strides: of these maps.
        channels: of these maps.
        name: for messages.

    Raises:
        InputError: the maps that detectors need are not among them.
    """

    def __init__(self, network: nn.Module, strides: list[int], channels: list[int], name: str):
        super().__init__()
        if set(NEEDED) - set(strides):
            raise InputError(f"{name} has maps at strides {strides}, and a detector needs those at {list(NEEDED)}")
        self.network = network
        self.strides = strides
        self.channels = dict(zip(strides, channels, strict=True))

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> tuple[dict[int, Tensor], None]:
        """The maps of images ``(B, 3, H, W)`` with ``padding_mask`` ``(B, H, W)``: ``{8: (B, C, H/8, W/8), …}``."""
        if padding_mask is not None:
            images = zero_padding(images, padding_mask[:, None])
        return dict(zip(self.strides, self.maps(images), strict=True)), None

    def maps(self, images: Tensor) -> list[Tensor]:
        """The maps of normalised images."""
        return self.network(images)


class TimmBackbone(BaselineBackbone):
    """Any network of timm that gives maps at strides 8, 16 and 32.

    Args:
        name: timm's own name for it.
    """

    def __init__(self, name: str):
        network = timm_model(name, features_only=True)
        info = network.feature_info
        super().__init__(network, info.reduction(), info.channels(), f"timm/{name}")
        self.name = name

    def load(self, path: Path) -> None:
        """Load a file in the layout of timm's weights."""
        self.network.load_state_dict(timm_model(self.name, path, features_only=True).state_dict())


class TransformersBackbone(BaselineBackbone):
    """A ResNet of transformers.

    Args:
        name: ``resnet18``, ``34``, ``50`` or ``101``.
    """

    def __init__(self, name: str):
        config = resnet_config(name, out_features=["stage2", "stage3", "stage4"])
        network = import_library("transformers", name).ResNetBackbone(config)
        super().__init__(network, list(NEEDED), network.channels, f"transformers/{name}")

    def maps(self, images: Tensor) -> list[Tensor]:
        """The maps of normalised images."""
        return list(self.network(images).feature_maps)

    def load(self, path: Path) -> None:
        """Load a file in the layout of transformers' weights, of a classifier or without one."""
        load_transformers_weights(self.network, path)
