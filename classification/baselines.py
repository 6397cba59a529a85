"""Classifiers of timm and transformers, to be trained by the same recipe."""

import logging
import re
from pathlib import Path

from torch import Tensor, nn

from mobile_former.errors import InputError
from mobile_former.layers.linear import linear
from mobile_former.training.baselines import import_library, load_transformers_weights, resnet_config, timm_model

_logger = logging.getLogger(__name__)

_MOBILENET = re.compile(r"mobilenet_v2_(\d+\.\d+)")


def create_baseline(
    name: str,
    num_classes: int,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    pretrained: str | Path | None = None,
) -> nn.Module:
    """Build a classifier of another library, whole: with the head that belongs to it.

    Args:
        name: ``timm/NAME`` for any of timm's; ``transformers/mobilenet_v2_MULTIPLIER`` (as ``…_1.0``, ``…_0.35``);
            ``transformers/resnet18``, ``34``, ``50`` or ``101``. Nothing is downloaded.
        num_classes: number of logits.
        dropout: rate before the last linear, in ``[0, 1)``.
        drop_path: stochastic depth's rate at the last block, for timm's models that have it.
        pretrained: a weights file in the library's own layout.

    Returns:
        A module that takes images ``(B, 3, H, W)`` and gives logits ``(B, num_classes)``.

    Raises:
        InputError: unknown name, a library that cannot be imported, an option that the model lacks, or weights that do
            not fit.
        FileNotFoundError: no such weights file.
    """
    library, _, model = name.partition("/")
    weights = None if pretrained is None else Path(pretrained)
    if library == "timm":
        options = {"drop_rate": dropout or None, "drop_path_rate": drop_path or None}
        return timm_model(model, weights, num_classes=num_classes, **options)
    if drop_path:
        raise InputError(f"{name} has no stochastic depth: leave out drop_path")
    classifier = TransformersClassifier(*_body(model), num_classes, dropout)
    if weights is not None:
        classifier.load(weights)
    return classifier


class TransformersClassifier(nn.Module):
    """A body of transformers, and the dropout and linear that its own classifier has.

    Args:
        body: gives pooled features.
        features: how many.
        num_classes: number of logits.
        dropout: rate before the linear.
    """

    def __init__(self, body: nn.Module, features: int, num_classes: int, dropout: float):
        super().__init__()
        self.backbone = body
        self.dropout = nn.Dropout(dropout)
        self.classifier = linear(features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Classify normalised images ``(B, 3, H, W)``: logits ``(B, num_classes)``."""
        return self.classifier(self.dropout(self.backbone(images).pooler_output.flatten(1)))

    def load(self, path: Path) -> None:
        """Load a classifier's file in the layout of transformers, less its last linear where it has other classes."""
        rest = load_transformers_weights(self.backbone, path)
        head = {name.rpartition(".")[2]: tensor for name, tensor in rest.items() if name.startswith("classifier.")}
        if {name: tensor.shape for name, tensor in head.items()} == {
            name: tensor.shape for name, tensor in self.classifier.state_dict().items()
        }:
            self.classifier.load_state_dict(head)
        else:
            _logger.warning("%s has other classes, or none: the last linear starts afresh", path)


def _body(name: str) -> tuple[nn.Module, int]:
    """A model without classifier, and the number of its pooled features."""
    transformers = import_library("transformers", f"transformers/{name}")
    multiplier = _MOBILENET.fullmatch(name)
    if not multiplier:
        config = resnet_config(name, others=("mobilenet_v2_1.0",))
        return transformers.ResNetModel(config), config.hidden_sizes[-1]
    # TensorFlow's padding would shift the image by a pixel, depending on its size.
    config = transformers.MobileNetV2Config(depth_multiplier=float(multiplier[1]), tf_padding=False)
    body = transformers.MobileNetV2Model(config)
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            # transformers hands on TensorFlow's decay of 0.997, by which PyTorch understands: the last batch alone.
            module.momentum = 0.1
    return body, body.conv_1x1.convolution.out_channels
