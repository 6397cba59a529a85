"""Detection head that predicts a class and a box at every position of the feature maps, like one-stage detectors.

The backbone learns faster from this head than from object queries, because each object is a training target for many
positions. The best positions of the head are good initial queries (Zhu et al., Deformable DETR, ICLR 2021, section 4.2;
Zong et al., Co-DETR, ICCV 2023).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detection.boxes.anchors import cell_centres
from detection.losses.focal import PRIOR_LOGIT
from detection.losses.mixed_precision import at_least_float32
from mobile_former.layers.checkpointing import recomputable
from mobile_former.layers.conv_norm import ConvNorm, depthwise
from mobile_former.layers.padding import double, zero_padding
from mobile_former.layers.pointwise import convolve

_MAX_LOG_SCALE = 4.0  # bound of |log(side / (4 · stride))|


class DenseHead(nn.Module):
    """Module that predicts class logits and a box at each position of the feature maps.

    A top-down path comes first: it adds each coarser feature map to the next finer one. Classes and boxes are then
    predicted by separate stacks of convolutions (towers). If object queries start from the output of this head, their
    losses train the class tower but not the box tower.

    Args:
        width: channels of the feature maps.
        strides: strides of the feature maps in pixels, coarse to fine.
        num_classes: number of classes K.
        separable: whether the 3×3 convolutions are depthwise separable. If not, they learn small objects sooner, but
            cost eight times as many multiply-adds.
    """

    def __init__(self, width: int, strides: Sequence[int], num_classes: int, *, separable: bool):
        super().__init__()
        self.strides = list(strides)
        # Each map has its own layers. A BatchNorm shared by the maps would normalise each map by its own statistics in
        # training, but by a mixture of all maps' statistics in evaluation.
        layer = Separable if separable else Convolution
        self.merge = nn.ModuleDict({str(stride): layer(width) for stride in strides})
        self.class_towers, self.box_towers = (
            nn.ModuleDict({str(stride): nn.ModuleList([layer(width), layer(width)]) for stride in strides})
            for _ in range(2)
        )
        self.classify = nn.Conv2d(width, num_classes, 1)
        self.box = nn.Conv2d(width, 4, 1)
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.constant_(self.classify.bias, PRIOR_LOGIT)
        nn.init.zeros_(self.box.weight)
        nn.init.zeros_(self.box.bias)

    def forward(self, maps: dict[int, Tensor], padding: dict[int, Tensor], extent: Tensor) -> dict[str, Tensor]:
        """Predict class logits and a box at each position of the feature maps.

        Args:
            maps: dictionary from stride to feature map ``(B, C, H, W)``.
            padding: dictionary from stride to mask ``(B, 1, H, W)``, bool, True on padding; empty without padding.
            extent: ``(B, 2)``, width and height of the images without padding, in pixels.

        Returns:
            A dictionary. The P positions are those of all feature maps, coarse to fine, row by row.

            - ``logits``: ``(B, P, K)``; the lowest finite number on padding.
            - ``boxes``: ``(B, P, 4)``, cxcywh, normalised by the size of the image without padding. Values are outside
              0..1 if a box exceeds the image.
            - ``centres``: centres of the positions ``(B, P, 2)``, x and y, normalised like ``boxes``.
            - ``features``: features of the positions ``(B, P, 2·C)``, first those of the class tower, then those of the
              box tower. The box tower gets no gradient from them.
            - ``padding``: ``(B, P)`` bool, True on padding.
            - ``peaks``: ``(B, P)`` bool, True if none of the eight neighbours on the same map has a higher class logit.
        """
        x, rows = None, []
        for stride in self.strides:
            joined = maps[stride]
            if x is not None:
                joined = joined + double(x, padding.get(2 * stride), joined.shape[2:])
            x = self.merge[str(stride)](joined, padding.get(stride))
            rows.append(self._predict(x, padding.get(stride), stride, extent))
        return {name: torch.cat([row[name] for row in rows], dim=1) for name in rows[0]}

    def _predict(self, x: Tensor, padding: Tensor, stride: int, extent: Tensor) -> dict[str, Tensor]:
        features, shape = x, x
        for layer in self.class_towers[str(stride)]:
            features = layer(features, padding)
        for layer in self.box_towers[str(stride)]:
            shape = layer(shape, padding)
        height, width = x.shape[2:]
        centres = cell_centres((height, width), stride, x.device)
        offsets = at_least_float32(_rows(convolve(self.box, shape)))
        size = 4 * stride * offsets[..., 2:].clamp(-_MAX_LOG_SCALE, _MAX_LOG_SCALE).exp()
        extent = extent[:, None].to(offsets.dtype)
        logits = convolve(self.classify, features)
        best = logits.detach().amax(1, keepdim=True)
        if padding is not None:
            best = best.masked_fill(padding, torch.finfo(best.dtype).min)
        peaks = best == F.max_pool2d(best, 3, stride=1, padding=1)
        logits = at_least_float32(_rows(logits))
        padded = (
            logits.new_zeros((x.shape[0], height * width, 1), dtype=torch.bool) if padding is None else _rows(padding)
        )
        return {
            "logits": logits.masked_fill(padded, torch.finfo(logits.dtype).min),
            "boxes": torch.cat([(centres + stride * offsets[..., :2]) / extent, size / extent], dim=-1),
            "centres": (centres / extent).expand(x.shape[0], -1, -1),
            "features": torch.cat([_rows(features), _rows(shape).detach()], dim=-1),
            "padding": padded[..., 0],
            "peaks": _rows(peaks)[..., 0],
        }


class Separable(nn.Module):
    """Depthwise separable convolution: 3×3 depthwise, BatchNorm, 1×1 pointwise, BatchNorm, ReLU.

    Args:
        width: number of channels.
    """

    def __init__(self, width: int):
        super().__init__()
        self.depthwise = depthwise(width, 1)
        self.pointwise = ConvNorm(width, width)

    @recomputable
    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Apply the convolutions to a feature map ``x`` ``(B, C, H, W)``. The result has the same shape.

        First, ``x`` is set to zero on padding. ``padding`` ``(B, 1, H, W)`` is True on padding. None: there is no
        padding.
        """
        return F.relu(self.pointwise(self.depthwise(zero_padding(x, padding))))


class Convolution(nn.Module):
    """3×3 convolution, BatchNorm, ReLU.

    Args:
        width: number of channels.
    """

    def __init__(self, width: int):
        super().__init__()
        self.convolution = ConvNorm(width, width, kernel_size=3)

    @recomputable
    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Apply the convolution to a feature map, like :meth:`Separable.forward`."""
        return F.relu(self.convolution(zero_padding(x, padding)))


def _rows(x: Tensor) -> Tensor:
    """Reshape ``(B, C, H, W)`` to ``(B, H·W, C)``."""
    return x.flatten(2).transpose(1, 2)
