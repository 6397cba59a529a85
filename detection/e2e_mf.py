"""E2E-MF: a DETR whose backbone, encoder and decoder are Mobile-Former blocks (section 4.2 of the paper)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detection.boxes import cxcywh_to_xyxy
from detection.criterion import SetCriterion
from detection.position_encoding import sine_encoding
from detection.variants import E2EVariant
from mobile_former.bridge import FormerToMobile, MobileToFormer
from mobile_former.conv_norm import ConvNorm, depthwise
from mobile_former.former import Former
from mobile_former.linear import linear
from mobile_former.mobile import Mobile
from mobile_former.model import Backbone
from mobile_former.padding import double, padding_pyramid, zero_padding
from mobile_former.variants import VARIANTS


class E2EMobileFormer(nn.Module):
    """Object queries that pass nine Mobile-Former blocks over three scales, predicting after each.

    Args:
        spec: the numbers of a variant.
        num_classes: number of classes K.
    """

    def __init__(self, spec: E2EVariant, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.backbone = Backbone(VARIANTS[spec.backbone], spatial_dynamic_relu=True)
        self.scales = list(dict.fromkeys(stride for stride, _ in spec.blocks))  # coarse to fine
        self.project = nn.ModuleDict({str(s): ConvNorm(self.backbone.channels[s], spec.width) for s in self.scales})
        self.merge = nn.ModuleDict({str(s): depthwise(spec.width, 1) for s in self.scales[1:]})
        self.position = nn.Parameter(torch.randn(spec.queries, spec.query_dim))
        self.strides = [stride for stride, _ in spec.blocks]
        self.blocks = nn.ModuleList(HeadBlock(spec.width, spec.query_dim, expansion) for _, expansion in spec.blocks)
        self.predict = PredictionHeads(spec.query_dim, num_classes)
        self.criterion = SetCriterion(num_classes)

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> dict:
        """Detect objects.

        Args:
            images: ``(B, 3, H, W)``, normalised.
            padding_mask: ``(B, H, W)`` bool, True on padding.

        Returns:
            ``logits`` ``(B, Q, K+1)``, the last class being "no object"; ``boxes`` ``(B, Q, 4)``, cxcywh in 0..1 of the
            image without its padding; ``auxiliary``, the same after each block but the last.
        """
        if padding_mask is None:
            padding_mask = images.new_zeros((len(images), *images.shape[2:]), dtype=torch.bool)
        maps, _ = self.backbone(images, padding_mask)
        padding = padding_pyramid(padding_mask, tuple(self.scales))
        position = self.position.expand(len(images), -1, -1)
        content = torch.zeros_like(position)
        x, scale, predictions = None, None, []
        for block, stride in zip(self.blocks, self.strides, strict=True):
            if stride != scale:
                x, scale = self._enter_scale(x, maps, stride, padding), stride
                encoding = sine_encoding(padding[stride], x.shape[1], x.dtype)
            x, content, position = block(x, content, position, encoding, padding[stride])
            predictions.append(self.predict(content))
        return predictions[-1] | {"auxiliary": predictions[:-1]}

    def loss(self, outputs: dict, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Compare what :meth:`forward` gave with the objects, see :class:`SetCriterion`."""
        return self.criterion(outputs, targets)

    def postprocess(self, outputs: dict, image_sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Each query's best class and its box in pixels.

        Args:
            outputs: what :meth:`forward` gave.
            image_sizes: for each image height and width of the frame in which its boxes are wanted.

        Returns:
            For each image ``boxes`` ``(Q, 4)`` xyxy, clipped to the frame, ``scores`` ``(Q,)`` in 0..1 and ``labels``
            ``(Q,)``, best first.
        """
        scores, labels = outputs["logits"].float().softmax(-1)[..., :-1].max(-1)
        boxes = cxcywh_to_xyxy(outputs["boxes"].float()).clamp(0, 1)
        detections = []
        for image_scores, image_labels, image_boxes, (height, width) in zip(
            scores, labels, boxes, image_sizes, strict=True
        ):
            order = image_scores.argsort(descending=True, stable=True)
            frame = image_boxes.new_tensor([width, height, width, height])
            detections.append(
                {"boxes": image_boxes[order] * frame, "scores": image_scores[order], "labels": image_labels[order]}
            )
        return detections

    def _enter_scale(
        self, x: Tensor | None, maps: dict[int, Tensor], stride: int, padding: dict[int, Tensor]
    ) -> Tensor:
        projected = self.project[str(stride)](maps[stride])
        if x is None:
            return projected
        x = double(x, padding[2 * stride], projected.shape[2:])
        return self.merge[str(stride)](zero_padding(x + projected, padding[stride]))


class HeadBlock(nn.Module):
    """A Mobile-Former block whose tokens are object queries, each of a content and a position.

    Args:
        channels: of the map.
        query_dim: width of a query.
        expansion: of the inverted bottleneck.
    """

    def __init__(self, channels: int, query_dim: int, expansion: int):
        super().__init__()
        self.to_former = MobileToFormer(channels, query_dim, gated=False)
        self.former = Former(query_dim)
        self.mobile = Mobile(channels, channels, expansion, query_dim)
        self.to_mobile = FormerToMobile(channels, query_dim)
        self.adapt = nn.Sequential(linear(query_dim, query_dim), nn.ReLU(), linear(query_dim, query_dim))

    def forward(
        self, x: Tensor, content: Tensor, position: Tensor, encoding: Tensor, padding: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Update map, contents and positions.

        Args:
            x: ``(B, C, H, W)``.
            content: of the queries, ``(B, Q, d)``.
            position: of the queries, ``(B, Q, d)``.
            encoding: of the map's positions, ``(B, C, H, W)``.
            padding: ``(B, 1, H, W)`` bool, True on padding.

        Returns:
            The same three.
        """
        content, _ = self.to_former(x, content, padding, token_position=position, map_position=encoding)
        content = self.former(content, position)
        x = self.mobile(x, content.mean(1, keepdim=True), padding=padding)
        x = self.to_mobile(x, content, position)
        return x, content, position + self.adapt(content)


class PredictionHeads(nn.Module):
    """Class and box of each query, shared by all blocks.

    Args:
        query_dim: width of a query.
        num_classes: number of classes K.
    """

    def __init__(self, query_dim: int, num_classes: int):
        super().__init__()
        self.classify = nn.Linear(query_dim, num_classes + 1)
        self.box = nn.Sequential(
            nn.Linear(query_dim, query_dim),
            nn.ReLU(),
            nn.Linear(query_dim, query_dim),
            nn.ReLU(),
            nn.Linear(query_dim, 4),
        )

    def forward(self, content: Tensor) -> dict[str, Tensor]:
        """From ``(B, Q, d)``: ``logits`` ``(B, Q, K+1)`` and ``boxes`` ``(B, Q, 4)``, cxcywh in 0..1."""
        return {"logits": self.classify(content), "boxes": self.box(content).sigmoid()}
