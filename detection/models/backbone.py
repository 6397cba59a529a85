"""Backbones of the detectors: Mobile-Former variants, and networks of timm and transformers."""

from pathlib import Path

import torch
from torch import Tensor, nn

from mobile_former.errors import InputError, first_line, nearest
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
    """Base class of backbones from timm and transformers, with the interface of Mobile-Former's backbone.

    Padding is set to zero in the image, but not in the feature maps. Features near the padding therefore depend on the
    amount of padding. Mobile-Former's backbone does not have this dependence.

    Args:
        network: module that computes feature maps, fine to coarse.
        strides: stride of each of these maps, in pixels.
        channels: number of channels of each of these maps.
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
    """A network of timm with feature maps at strides 8, 16 and 32, see :func:`timm_features`.

    Args:
        name: name of the network in timm.

    Raises:
        InputError: the network lacks one of these maps, or takes images of one size only.
    """

    def __init__(self, name: str):
        network = timm_features(name)
        info = network.feature_info
        super().__init__(network, info.reduction(), info.channels(), f"timm/{name}")
        self.name = name
        height, width = 64, 96
        expected = [(self.channels[stride], height // stride, width // stride) for stride in STRIDES]
        try:
            maps, _ = _run(self, torch.zeros(1, 3, height, width))
        except (RuntimeError, AssertionError, ValueError, IndexError) as error:
            raise InputError(
                f"timm/{name} does not take images of any size ({first_line(error)}): choose another network"
            ) from error
        if (found := [tuple(maps[stride].shape[1:]) for stride in STRIDES]) != expected:
            raise InputError(
                f"timm/{name} has maps of shapes {found} for an image of {height}x{width}, but a detector needs "
                f"{expected}: choose another network"
            )

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return a list of the feature maps of normalised images ``(B, 3, H, W)``, fine to coarse."""
        maps = self.network(images)
        channels_last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"  # Swin and others
        return [x.permute(0, 3, 1, 2) for x in maps] if channels_last else maps

    def load(self, path: Path) -> None:
        """Load pretrained weights into the network from a file. The tensors in the file have timm's own names.

        The weights of a classifier in the file are ignored.
        """
        self.network.load_state_dict(timm_features(self.name, path).state_dict())


def timm_features(name: str, weights: Path | None = None) -> nn.Module:
    """Build a network of timm that returns a list of feature maps.

    In general, the maps are those of timm's ``features_only``. For the EfficientNet, MobileNet and GhostNet families,
    which timm builds alike, the list instead has the last map of each stride before the classifier. ``features_only``
    is not used for these families, because it returns the first map of each stride (GhostNet), or includes a pointwise
    convolution to 960 channels that belongs to the classifier (MobileNetV3 and V4).

    Args:
        name: name of the network in timm.
        weights: weights file of a classifier, with timm's own names; None for random weights.

    Returns:
        A module with the attribute ``feature_info``, which has timm's methods ``reduction()`` and ``channels()``.
    """
    network = timm_model(name, weights)
    if not (hasattr(network, "conv_stem") and hasattr(network, "blocks")):
        return timm_model(name, weights, features_only=True)
    network.feature_info = _last_maps(network)
    features = import_library("timm", f"timm/{name}").models.FeatureListNet
    return features(network, out_indices=range(len(network.feature_info)), flatten_sequential=True)


def _last_maps(network: nn.Module) -> list[dict]:
    """Describe the last feature map at each stride, in a list of dictionaries in the format of timm's ``feature_info``.

    ``network`` must have the modules of timm's EfficientNet.
    """
    side, ends, hooks = 64, {}, []
    for number, stage in enumerate(network.blocks):
        if all(module.kernel_size == (1, 1) for module in stage.modules() if isinstance(module, nn.Conv2d)):
            continue  # an expansion for the classifier

        def keep(module: nn.Module, inputs: tuple, x: Tensor, number: int = number) -> None:
            stride = side // x.shape[3]
            ends[stride] = {"num_chs": x.shape[1], "reduction": stride, "module": f"blocks.{number}"}

        hooks.append(stage.register_forward_hook(keep))
    _run(network, torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return list(ends.values())


@torch.no_grad()
def _run(network: nn.Module, images: Tensor) -> object:
    """Run a network in evaluation mode, switch it to training mode afterwards, and return its output."""
    output = network.eval()(images)
    network.train()
    return output


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
