"""RetinaNet over Mobile-Former's backbone (Lin et al., ICCV 2017; section 4.2 of the Mobile-Former paper)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detection.boxes.anchors import PER_POSITION, decode, make_anchors
from detection.boxes.boxes import cxcywh_to_xyxy
from detection.boxes.nms import nms
from detection.losses.focal import PRIOR_LOGIT
from detection.losses.precision import at_least_float32
from detection.losses.retinanet_criterion import RetinaNetCriterion
from detection.models.backbone import create_backbone
from detection.models.variants import RetinaNetVariant
from mobile_former.layers.padding import content_size, padding_pyramid, zero_padding

STRIDES = (8, 16, 32, 64, 128)
LEAST_SCORE = 0.05
CANDIDATES = 1000  # of a map, before non-maximum suppression
NMS_THRESHOLD = 0.5
DETECTIONS = 100  # of an image, at most


class RetinaNet(nn.Module):
    """A feature pyramid over the backbone's maps, and two towers of convolutions that all of its maps share.

    Args:
        spec: the numbers of a variant.
        num_classes: number of classes K.
        backbone: in place of the variant's, see :func:`detection.models.backbone.create_backbone`.
    """

    def __init__(self, spec: RetinaNetVariant, num_classes: int, backbone: str | None = None):
        super().__init__()
        self.num_classes = num_classes
        self.backbone_name = backbone or spec.backbone
        self.base = spec.base
        self.backbone = create_backbone(self.backbone_name)
        self.pyramid = FeaturePyramid(self.backbone.channels, spec.width)
        self.class_tower = Tower(spec.width, spec.depth)
        self.box_tower = Tower(spec.width, spec.depth)
        self.classify = convolution(spec.width, PER_POSITION * num_classes)
        self.box = convolution(spec.width, PER_POSITION * 4)
        nn.init.constant_(self.classify.bias, PRIOR_LOGIT)
        self.criterion = RetinaNetCriterion(num_classes)

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> dict:
        """Predict at every anchor.

        Args:
            images: ``(B, 3, H, W)``, normalised.
            padding_mask: ``(B, H, W)`` bool, True on padding, each image being at the top left of its place.

        Returns:
            ``logits`` ``(B, A, K)``; ``offsets`` ``(B, A, 4)`` from the anchors; ``anchors`` ``(A, 4)``, cxcywh in
            pixels; ``padding`` ``(B, A)`` bool, True where an anchor's position is padding; ``extent`` ``(B, 2)``,
            width and height in pixels of the images without their padding; ``levels``, how many anchors each map has.
        """
        maps, _ = self.backbone(images, padding_mask)
        padding = {} if padding_mask is None else padding_pyramid(padding_mask, STRIDES)
        logits, offsets, sizes, padded = [], [], [], []
        for stride, x in self.pyramid(maps, padding).items():
            logits.append(_rows(self.classify(self.class_tower(x, padding.get(stride))), self.num_classes))
            offsets.append(_rows(self.box(self.box_tower(x, padding.get(stride))), 4))
            sizes.append(tuple(x.shape[2:]))
            mask = x.new_zeros((x.shape[0], 1, *x.shape[2:]), dtype=torch.bool) if not padding else padding[stride]
            padded.append(mask.flatten(1).repeat_interleave(PER_POSITION, dim=1))
        return {
            "logits": at_least_float32(torch.cat(logits, dim=1)),
            "offsets": at_least_float32(torch.cat(offsets, dim=1)),
            "anchors": make_anchors(sizes, STRIDES, self.base, images.device),
            "padding": torch.cat(padded, dim=1),
            "extent": content_size(images, padding_mask),
            "levels": [height * width * PER_POSITION for height, width in sizes],
        }

    def loss(self, outputs: dict, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Compare what :meth:`forward` gave with the objects, see :class:`RetinaNetCriterion`."""
        return self.criterion(outputs, targets)

    def postprocess(self, outputs: dict, image_sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """The detections left by a threshold and non-maximum suppression.

        Args:
            outputs: what :meth:`forward` gave.
            image_sizes: for each image height and width of the frame in which its boxes are wanted.

        Returns:
            For each image ``boxes`` ``(n, 4)`` xyxy, clipped to the frame, ``scores`` ``(n,)`` in 0..1 and ``labels``
            ``(n,)``, best first, 100 at most.
        """
        logits, boxes = self.decode(outputs)
        candidates = best_candidates(logits, boxes, outputs["levels"])
        return suppressed(candidates, outputs["extent"], image_sizes)

    def decode(self, outputs: dict) -> tuple[Tensor, Tensor]:
        """The boxes that :meth:`forward` gave as offsets, and logits that tell of padding.

        Returns:
            ``logits`` ``(B, A, K)``, the lowest finite number on padding, and ``boxes`` ``(B, A, 4)``, xyxy in pixels,
            clipped to the image without its padding.
        """
        logits = outputs["logits"]
        logits = logits.masked_fill(outputs["padding"][..., None], torch.finfo(logits.dtype).min)
        boxes = cxcywh_to_xyxy(decode(outputs["offsets"], outputs["anchors"]))
        return logits, torch.minimum(boxes.clamp(min=0), outputs["extent"].repeat(1, 2)[:, None])


def best_candidates(logits: Tensor, boxes: Tensor, levels: Sequence[int]) -> dict[str, Tensor]:
    """Of each map the best 1000 pairs of anchor and class.

    Args:
        logits: ``(B, A, K)``.
        boxes: ``(B, A, 4)``.
        levels: how many anchors each map has.

    Returns:
        ``boxes`` ``(B, N, 4)``, ``scores`` ``(B, N)``, 0 where they are 0.05 or less, and ``labels`` ``(B, N)``; map by
        map, the best of each first.
    """
    num_classes = logits.shape[2]
    scores, places, start = [], [], 0
    for anchors in logits.sigmoid().split(list(levels), dim=1):
        level = anchors.flatten(1)
        best, index = level.topk(torch.sym_min(CANDIDATES, level.shape[1]))  # min() would fix it in torch.export
        scores.append(best * (best > LEAST_SCORE))
        places.append(index + start * num_classes)
        start = start + anchors.shape[1]
    scores, places = torch.cat(scores, dim=1), torch.cat(places, dim=1)
    boxes = boxes.gather(1, (places // num_classes)[..., None].expand(-1, -1, 4))
    return {"boxes": boxes, "scores": scores, "labels": places % num_classes}


def suppressed(
    candidates: dict[str, Tensor], extent: Tensor, image_sizes: Sequence[tuple[int, int]]
) -> list[dict[str, Tensor]]:
    """What non-maximum suppression leaves of candidates.

    Args:
        candidates: as :func:`best_candidates` gives them, boxes xyxy in pixels.
        extent: ``(B, 2)``, width and height of the images in these pixels.
        image_sizes: for each image height and width of the frame in which its boxes are wanted.

    Returns:
        For each image ``boxes`` ``(n, 4)`` in the frame, ``scores`` ``(n,)`` and ``labels`` ``(n,)``, best first, 100
        at most.
    """
    detections = []
    for image, (height, width) in enumerate(image_sizes):
        valid = candidates["scores"][image] > 0
        boxes, scores, labels = (candidates[name][image][valid] for name in ("boxes", "scores", "labels"))
        kept = nms(boxes, scores, labels, NMS_THRESHOLD)[:DETECTIONS]
        frame = extent.new_tensor([width, height, width, height])
        detections.append(
            {"boxes": boxes[kept] / extent[image].repeat(2) * frame, "scores": scores[kept], "labels": labels[kept]}
        )
    return detections


class FeaturePyramid(nn.Module):
    """Maps of one width at strides 8 to 128 (Lin et al., Feature Pyramid Networks, CVPR 2017).

    Args:
        channels: of the backbone's maps at strides 8, 16 and 32.
        width: channels of all maps.
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
        """From the backbone's maps, and the padding of all maps if any, ``{8: (B, C, H/8, W/8), …, 128: …}``."""
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
    """Convolutions between the pyramid and a prediction.

    Args:
        width: channels.
        depth: number of convolutions.
    """

    def __init__(self, width: int, depth: int):
        super().__init__()
        self.layers = nn.ModuleList(convolution(width, width) for _ in range(depth))

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """``(B, C, H, W)`` to the same, 0 on padding."""
        x = zero_padding(x, padding)
        for layer in self.layers:
            x = zero_padding(layer(x).relu(), padding)
        return x


def convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3×3 convolution with RetinaNet's initialisation."""
    layer = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def _rows(x: Tensor, values: int) -> Tensor:
    """``(B, 9·values, H, W)`` to ``(B, H·W·9, values)``."""
    return x.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, values))
