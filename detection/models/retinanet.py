"""RetinaNet with a Mobile-Former backbone (Lin et al., ICCV 2017; section 4.2 of the Mobile-Former paper)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detection.boxes.anchors import PER_POSITION, decode, make_anchors
from detection.boxes.geometry import cxcywh_to_xyxy
from detection.boxes.nms import nms
from detection.losses.focal import PRIOR_LOGIT
from detection.losses.mixed_precision import at_least_float32
from detection.losses.retinanet_criterion import RetinaNetCriterion
from detection.models.backbone import create_backbone
from detection.models.variants import RetinaNetVariant
from mobile_former.layers.padding import content_size, padding_pyramid, zero_padding

STRIDES = (8, 16, 32, 64, 128)
LEAST_SCORE = 0.05
CANDIDATES = 1000  # per map, before non-maximum suppression
NMS_THRESHOLD = 0.5
DETECTIONS = 100  # default of max_detections, as in COCO's scores


class RetinaNet(nn.Module):
    """RetinaNet: a backbone, a feature pyramid, and two stacks of convolutions, for classes and for boxes.

    Each stack (tower) has the same weights for all maps of the pyramid.

    Args:
        variant: configuration of the detector.
        num_classes: number of classes K.
        backbone: name of a backbone that replaces the one in ``variant``, see
            :func:`detection.models.backbone.create_backbone`. None: the one in ``variant``.
        max_detections: maximum number of detections in an image.
    """

    def __init__(
        self, variant: RetinaNetVariant, num_classes: int, backbone: str | None = None, max_detections: int = DETECTIONS
    ):
        super().__init__()
        self.num_classes = num_classes
        self.max_detections = max_detections
        self.backbone_name = backbone or variant.backbone
        self.base = variant.base
        self.backbone = create_backbone(self.backbone_name)
        self.pyramid = FeaturePyramid(self.backbone.channels, variant.width)
        self.class_tower = Tower(variant.width, variant.depth)
        self.box_tower = Tower(variant.width, variant.depth)
        self.classify = convolution(variant.width, PER_POSITION * num_classes)
        self.box = convolution(variant.width, PER_POSITION * 4)
        nn.init.constant_(self.classify.bias, PRIOR_LOGIT)
        self.criterion = RetinaNetCriterion(num_classes)

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> dict:
        """Predict class logits and box offsets at every anchor.

        Args:
            images: normalised images ``(B, 3, H, W)``, with padding only on the right and at the bottom.
            padding_mask: ``(B, H, W)`` bool, True on padding; None if there is no padding.

        Returns:
            A dictionary:

            - ``logits``: ``(B, A, K)``.
            - ``offsets``: offsets of the boxes from the anchors ``(B, A, 4)``, see
              :func:`detection.boxes.anchors.encode`.
            - ``anchors``: ``(A, 4)``, cxcywh in pixels.
            - ``padding``: ``(B, A)`` bool, True if the position of the anchor is padding.
            - ``extent``: ``(B, 2)``, width and height of the images without padding, in pixels.
            - ``levels``: list with the number of anchors of each feature map.
        """
        maps, _ = self.backbone(images, padding_mask)
        padding = {} if padding_mask is None else padding_pyramid(padding_mask, STRIDES)
        logits, offsets, sizes, padded = [], [], [], []
        for stride, x in self.pyramid(maps, padding).items():
            logits.append(_rows(self.classify(self.class_tower(x, padding.get(stride))), self.num_classes))
            offsets.append(_rows(self.box(self.box_tower(x, padding.get(stride))), 4))
            height, width = x.shape[2:]
            sizes.append((height, width))
            if padding:  # in torch.export, flatten(1) would restrict dynamic sizes to maps of several positions
                mask = padding[stride].flatten().unflatten(0, (x.shape[0], -1))
            else:
                mask = x.new_zeros((x.shape[0], height * width), dtype=torch.bool)
            padded.append(mask.repeat_interleave(PER_POSITION, dim=1))
        return {
            "logits": at_least_float32(torch.cat(logits, dim=1)),
            "offsets": at_least_float32(torch.cat(offsets, dim=1)),
            "anchors": make_anchors(sizes, STRIDES, self.base, images.device),
            "padding": torch.cat(padded, dim=1),
            "extent": content_size(images, padding_mask),
            "levels": [height * width * PER_POSITION for height, width in sizes],
        }

    def loss(self, outputs: dict, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return a dictionary from name to scalar with the losses of :class:`RetinaNetCriterion`.

        ``outputs`` is the output of :meth:`forward`. ``targets`` are the labels and true boxes of each image.
        """
        return self.criterion(outputs, targets)

    def postprocess(self, outputs: dict, image_sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Return the detections that remain after the score threshold and non-maximum suppression.

        Args:
            outputs: output of :meth:`forward`.
            image_sizes: list with a tuple (height, width) for each image, usually its original size. Boxes are scaled
                to this size.

        Returns:
            List with one dictionary for each image: ``boxes`` ``(n, 4)``, xyxy in pixels, clipped to the image;
            ``scores`` ``(n,)``, in 0..1; ``labels`` ``(n,)`` long. An image has at most ``max_detections`` detections.
            They are sorted by descending score.
        """
        logits, boxes = self.decode(outputs)
        candidates = best_candidates(logits, boxes, outputs["levels"])
        return suppress_candidates(candidates, outputs["extent"], image_sizes, self.max_detections)

    def decode(self, outputs: dict) -> tuple[Tensor, Tensor]:
        """Convert the predicted anchor offsets to boxes, and mask the logits of anchors on padding.

        Args:
            outputs: output of :meth:`forward`.

        Returns:
            A tuple (logits ``(B, A, K)``, boxes ``(B, A, 4)``). The logits of anchors on padding are the lowest finite
            number of their dtype. The boxes are xyxy in pixels, clipped to the image without padding.
        """
        logits = outputs["logits"]
        logits = logits.masked_fill(outputs["padding"][..., None], torch.finfo(logits.dtype).min)
        boxes = cxcywh_to_xyxy(decode(outputs["offsets"], outputs["anchors"]))
        return logits, torch.minimum(boxes.clamp(min=0), outputs["extent"].repeat(1, 2)[:, None])


def best_candidates(logits: Tensor, boxes: Tensor, levels: Sequence[int]) -> dict[str, Tensor]:
    """Return the 1000 pairs (anchor, class) with the highest scores on each feature map.

    If a map has fewer than 1000 pairs, all of its pairs are returned.

    Args:
        logits: class logits ``(B, A, K)`` of the A anchors.
        boxes: predicted boxes ``(B, A, 4)``.
        levels: number of anchors on each feature map.

    Returns:
        A dictionary with the N selected pairs of all maps, in the order of the maps. The pairs of a map are sorted by
        descending score:

        - ``boxes``: ``(B, N, 4)``.
        - ``scores``: ``(B, N)``; scores of 0.05 or less are set to 0.
        - ``labels``: ``(B, N)`` long.
    """
    num_classes = logits.shape[2]
    scores, places, start = [], [], 0
    for anchors in logits.sigmoid().split(list(levels), dim=1):
        level = anchors.flatten(1)
        best, index = level.topk(torch.sym_min(CANDIDATES, level.shape[1]))  # min() would be constant in torch.export
        scores.append(best * (best > LEAST_SCORE))
        places.append(index + start * num_classes)
        start = start + anchors.shape[1]
    scores, places = torch.cat(scores, dim=1), torch.cat(places, dim=1)
    anchors = torch.div(places, num_classes, rounding_mode="trunc")  # tract refuses the ONNX operators of // and %
    boxes = boxes.gather(1, anchors[..., None].expand(-1, -1, 4))
    return {"boxes": boxes, "scores": scores, "labels": places - num_classes * anchors}


def suppress_candidates(
    candidates: dict[str, Tensor],
    extent: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    max_detections: int = DETECTIONS,
) -> list[dict[str, Tensor]]:
    """Apply non-maximum suppression to the output of :func:`best_candidates`, and scale the boxes to the image sizes.

    Args:
        candidates: output of :func:`best_candidates`, with boxes xyxy in pixels of the detector's input.
        extent: ``(B, 2)``, width and height of the images in the detector's input, without padding, in pixels.
        image_sizes: list with a tuple (height, width) for each image. Boxes are scaled to this size.

    Returns:
        List with one dictionary for each image: ``boxes`` ``(n, 4)``, xyxy in pixels of the size in ``image_sizes``;
        ``scores`` ``(n,)`` and ``labels`` ``(n,)``. An image has at most ``max_detections`` detections. They are sorted
        by descending score.
    """
    detections = []
    for image, (height, width) in enumerate(image_sizes):
        valid = candidates["scores"][image] > 0
        boxes, scores, labels = (candidates[name][image][valid] for name in ("boxes", "scores", "labels"))
        kept = nms(boxes, scores, labels, NMS_THRESHOLD)[:max_detections]
        frame = extent.new_tensor([width, height, width, height])
        detections.append(
            {"boxes": boxes[kept] / extent[image].repeat(2) * frame, "scores": scores[kept], "labels": labels[kept]}
        )
    return detections


class FeaturePyramid(nn.Module):
    """Feature pyramid with maps at strides 8, 16, 32, 64 and 128, all with the same number of channels.

    Source: Lin et al., Feature Pyramid Networks, CVPR 2017.

    Args:
        channels: dictionary from stride (8, 16 and 32) to the number of channels of the backbone's map.
        width: number of channels of the pyramid's maps.
    """

    def __init__(self, channels: dict[int, int], width: int):
        super().__init__()
        self.lateral = nn.ModuleDict({str(stride): nn.Conv2d(channels[stride], width, 1) for stride in STRIDES[:3]})
        self.output = nn.ModuleDict({str(stride): nn.Conv2d(width, width, 3, padding=1) for stride in STRIDES[:3]})
        self.down64 = nn.Conv2d(channels[32], width, 3, stride=2, padding=1)
        self.down128 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)

    def forward(self, maps: dict[int, Tensor], padding: dict[int, Tensor]) -> dict[int, Tensor]:
        """Compute the maps of the pyramid.

        Args:
            maps: dictionary from stride to the backbone's map.
            padding: dictionary from stride to mask ``(B, 1, H, W)``, True on padding; empty if there is no padding.

        Returns:
            Dictionary from stride to map: ``{8: (B, C, ⌈H/8⌉, ⌈W/8⌉), 16: …, 32: …, 64: …, 128: …}``.
        """
        joined = {}
        x = None
        for stride in reversed(STRIDES[:3]):
            entering = zero_padding(self.lateral[str(stride)](maps[stride]), padding.get(stride))
            x = entering if x is None else entering + F.interpolate(x, entering.shape[2:], mode="nearest")
            joined[stride] = zero_padding(x, padding.get(stride))
        pyramid = {stride: self.output[str(stride)](joined[stride]) for stride in STRIDES[:3]}
        pyramid[64] = self.down64(zero_padding(maps[32], padding.get(32)))
        pyramid[128] = self.down128(zero_padding(pyramid[64].relu(), padding.get(64)))
        return pyramid


class Tower(nn.Module):
    """Stack of 3×3 convolutions with ReLU, between the feature pyramid and a prediction layer.

    Args:
        width: number of channels.
        depth: number of convolutions.
    """

    def __init__(self, width: int, depth: int):
        super().__init__()
        self.layers = nn.ModuleList(convolution(width, width) for _ in range(depth))

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Apply the convolutions to ``x`` ``(B, C, H, W)``. The result has the same shape and is 0 on padding.

        ``padding`` ``(B, 1, H, W)`` is True on padding. None: there is no padding.
        """
        x = zero_padding(x, padding)
        for layer in self.layers:
            x = zero_padding(layer(x).relu(), padding)
        return x


def convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Build a 3×3 convolution with RetinaNet's initialisation: weights with standard deviation 0.01, bias 0."""
    layer = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def _rows(x: Tensor, values: int) -> Tensor:
    """Reshape ``(B, 9·values, H, W)`` to ``(B, H·W·9, values)``: one row for each of the 9 anchors of a position."""
    return x.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, values))
