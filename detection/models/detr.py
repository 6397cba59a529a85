"""DETR with a ResNet (Carion et al., ECCV 2020), by transformers: what E2E-MF is measured against."""

from collections.abc import Sequence

from torch import Tensor, nn

from detection.boxes.detections import best_classes, in_frames
from detection.losses.criterion import SetCriterion
from detection.models.variants import DetrVariant
from mobile_former.layers.padding import zero_padding
from mobile_former.training.baselines import import_library, resnet_config


class Detr(nn.Module):
    """DETR under this project's data, matching, losses and evaluation.

    Args:
        spec: the numbers of a variant.
        num_classes: number of classes K.

    Raises:
        InputError: transformers cannot be imported.
    """

    def __init__(self, spec: DetrVariant, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.backbone_name = f"transformers/{spec.resnet}"
        transformers = import_library("transformers", "DETR")
        resnet = resnet_config(spec.resnet, out_features=["stage4"])
        self.network = transformers.DetrForObjectDetection(
            transformers.DetrConfig(
                use_timm_backbone=False, backbone_config=resnet, num_labels=num_classes, num_queries=spec.queries
            )
        )
        # transformers' DETR has its ResNet's norms and first layers frozen, which only makes sense with pretrained
        # ones; here freeze_batch_norm tells, as for every other detector.
        self.network.model.backbone.model = transformers.ResNetBackbone(resnet)
        self.criterion = SetCriterion(num_classes)

    @property
    def backbone(self) -> nn.Module:
        """The ResNet."""
        return self.network.model.backbone.model

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> dict:
        """Detect objects; takes and gives what :class:`detection.models.e2e_mf.E2EMobileFormer` does."""
        mask = None
        if padding_mask is not None:
            images, mask = zero_padding(images, padding_mask[:, None]), (~padding_mask).long()
        features = self.network.model(images, pixel_mask=mask, output_hidden_states=True)
        # auxiliary_loss=True would hand each layer's normalised output to the next one, which is not DETR's.
        norm = self.network.model.decoder.layernorm
        layers = [norm(hidden) for hidden in features.decoder_hidden_states[1:-1]] + [features.last_hidden_state]
        predictions = [
            {
                "logits": self.network.class_labels_classifier(layer),
                "boxes": self.network.bbox_predictor(layer).sigmoid(),
            }
            for layer in layers
        ]
        return predictions[-1] | {"auxiliary": predictions[:-1]}

    def loss(self, outputs: dict, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Compare what :meth:`forward` gave with the objects, see :class:`SetCriterion`."""
        return self.criterion(outputs, targets)

    def postprocess(self, outputs: dict, image_sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Each query's best class and its box in pixels, see :func:`best_classes`."""
        return in_frames(self.decode(outputs), image_sizes)

    def decode(self, outputs: dict) -> dict[str, Tensor]:
        """As :meth:`postprocess`, of all images in one, in shares of the image: see :func:`best_classes`."""
        return best_classes(outputs["logits"].float().softmax(-1)[..., :-1], outputs["boxes"])
