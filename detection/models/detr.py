"""DETR with a ResNet backbone (Carion et al., ECCV 2020), built with the transformers library.

DETR is the baseline for E2E-MF, the DETR-like detector of the Mobile-Former paper.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from detection.boxes.postprocess import best_classes, to_pixels
from detection.losses.criterion import SetCriterion
from detection.models.variants import DetrVariant
from mobile_former.layers.padding import zero_padding
from mobile_former.training.baselines import import_library, resnet_config


class Detr(nn.Module):
    """DETR of the transformers library, with the matching and losses of this project.

    Args:
        variant: configuration of the detector: name of its ResNet and number of its queries.
        num_classes: number of classes K.

    Raises:
        InputError: transformers cannot be imported.
    """

    def __init__(self, variant: DetrVariant, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.backbone_name = f"transformers/{variant.resnet}"
        transformers = import_library("transformers", "DETR")
        resnet = resnet_config(variant.resnet, out_features=["stage4"])
        self.network = transformers.DetrForObjectDetection(
            transformers.DetrConfig(
                use_timm_backbone=False, backbone_config=resnet, num_labels=num_classes, num_queries=variant.queries
            )
        )
        # transformers freezes the norms and first layers of DETR's ResNet, which suits only pretrained weights. The new
        # ResNet is trained whole; freeze_batch_norm freezes its norms, as in every other detector.
        self.network.model.backbone.model = transformers.ResNetBackbone(resnet)
        self.criterion = SetCriterion(num_classes)

    @property
    def backbone(self) -> nn.Module:
        """The ResNet backbone, without the ResNet's classifier."""
        return self.network.model.backbone.model

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> dict:
        """Predict the class logits and the box of each query.

        Args:
            images: normalised images ``(B, 3, H, W)``, with padding only on the right and at the bottom.
            padding_mask: ``(B, H, W)`` bool, True on padding; None if there is no padding.

        Returns:
            A dictionary:

            - ``logits``: ``(B, Q, K+1)``. Class K is "no object".
            - ``boxes``: ``(B, Q, 4)``, cxcywh, normalised to 0..1 by the size of the image without padding.
            - ``auxiliary``: list with one dictionary for each decoder layer except the last. It contains the ``logits``
              and ``boxes`` predicted from this layer.
        """
        mask = None
        if padding_mask is not None:
            images, mask = zero_padding(images, padding_mask[:, None]), (~padding_mask).long()
        features = self.network.model(images, pixel_mask=mask, output_hidden_states=True)
        # auxiliary_loss=True is no option: it feeds the normalised output of a layer to the next layer, unlike DETR.
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
        """Return a dictionary from name to scalar with the losses of :class:`SetCriterion`.

        ``outputs`` is the output of :meth:`forward`. ``targets`` are the labels and true boxes of each image.
        """
        return self.criterion(outputs, targets)

    @property
    def max_detections(self) -> int:
        """Maximum number of detections in an image."""
        return self.network.config.num_queries

    def postprocess(self, outputs: dict, image_sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Return one detection for each query, as a list with one dictionary for each image.

        See :meth:`detection.models.e2e_mf.E2EMobileFormer.postprocess` for arguments and result.
        """
        return to_pixels(self.decode(outputs), image_sizes)

    def decode(self, outputs: dict) -> dict[str, Tensor]:
        """Convert the output of :meth:`forward` to the best class, its score and the box of each query.

        See :func:`best_classes` for the returned dictionary.
        """
        return best_classes(outputs["logits"].float().softmax(-1)[..., :-1], outputs["boxes"])
