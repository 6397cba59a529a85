"""Classifiers of timm and Hugging Face Transformers, which serve as baselines for Mobile-Former."""

import logging
import re
from pathlib import Path

from torch import Tensor, nn

from mobile_former.errors import InputError
from mobile_former.layers.linear import linear
from mobile_former.training.baselines import import_library, load_transformers_weights, resnet_config, timm_model
from mobile_former.weights.sources import local_file

_logger = logging.getLogger(__name__)

_MOBILENET = re.compile(r"mobilenet_v2_(\d+\.\d+)")


def create_baseline(
    name: str,
    num_classes: int,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    pretrained: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> nn.Module:
    """Build a classifier of timm or Hugging Face Transformers. Nothing is downloaded.

    The classification head is that of the library.

    Args:
        name: ``timm/NAME`` for any model of timm. ``transformers/mobilenet_v2_MULTIPLIER`` for a MobileNetV2, such as
            ``transformers/mobilenet_v2_1.0`` or ``transformers/mobilenet_v2_0.35``. ``transformers/resnetN`` for a
            ResNet, where N is 18, 34, 50 or 101.
        num_classes: number of classes.
        dropout: dropout rate before the last linear layer, in ``[0, 1)``.
        drop_path: stochastic depth rate of the last block. Only timm models that have stochastic depth accept a rate
            above 0.
        pretrained: path of a weights file. Its tensor names must be those of the library. None: random weights.
        image_size: side of the images in pixels, or height and width. It only affects timm models that are built for
            one image size.

    Returns:
        A module that maps images ``(B, 3, H, W)`` to logits ``(B, num_classes)``.

    Raises:
        InputError: the name is unknown, the library cannot be imported, an option does not apply to the model, or the
            weights do not fit the model.
        FileNotFoundError: the weights file does not exist.
    """
    library, _, model = name.partition("/")
    weights = None if pretrained is None else local_file(pretrained)
    if library == "timm":
        options = {"drop_rate": dropout or None, "drop_path_rate": drop_path or None}
        return timm_model(model, weights, image_size, num_classes=num_classes, **options)
    if drop_path:
        raise InputError(f"{name} has no stochastic depth: leave out drop_path")
    classifier = TransformersClassifier(*_backbone(model), num_classes, dropout)
    if weights is not None:
        classifier.load(weights)
    return classifier


class TransformersClassifier(nn.Module):
    """Classifier with a backbone of Hugging Face Transformers, followed by dropout and a linear layer.

    The structure is that of the library's own classifiers.

    Args:
        backbone: model of Hugging Face Transformers that returns pooled features.
        features: number of pooled features.
        num_classes: number of classes.
        dropout: dropout rate before the linear layer.
    """

    def __init__(self, backbone: nn.Module, features: int, num_classes: int, dropout: float):
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.classifier = linear(features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(B, num_classes)`` of normalised images ``(B, 3, H, W)``."""
        return self.classifier(self.dropout(self.backbone(images).pooler_output.flatten(1)))

    def load(self, path: Path) -> None:
        """Load a weights file into this classifier, in place.

        The tensor names in the file must be those of the transformers library. If the file has no final linear layer,
        or one of another shape, this classifier keeps its own final layer, and a warning is logged.
        """
        rest = load_transformers_weights(self.backbone, path)
        head = {name.rpartition(".")[2]: tensor for name, tensor in rest.items() if name.startswith("classifier.")}
        if {name: tensor.shape for name, tensor in head.items()} == {
            name: tensor.shape for name, tensor in self.classifier.state_dict().items()
        }:
            self.classifier.load_state_dict(head)
        else:
            _logger.warning("%s has other classes, or none: loaded all layers except the last linear one", path)


def _backbone(name: str) -> tuple[nn.Module, int]:
    """Build a backbone from Hugging Face Transformers. Return a tuple (backbone, number of its pooled features)."""
    transformers = import_library("transformers", f"transformers/{name}")
    multiplier = _MOBILENET.fullmatch(name)
    if not multiplier:
        config = resnet_config(name, others=("mobilenet_v2_1.0",))
        return transformers.ResNetModel(config), config.hidden_sizes[-1]
    # TensorFlow's padding would shift the image by a pixel, depending on its size.
    config = transformers.MobileNetV2Config(depth_multiplier=float(multiplier[1]), tf_padding=False)
    backbone = transformers.MobileNetV2Model(config)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            # transformers sets TensorFlow's decay of 0.997, but PyTorch's momentum is 1 - decay.
            module.momentum = 0.1
    return backbone, backbone.conv_1x1.convolution.out_channels
