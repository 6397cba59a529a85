"""Channel padding and thresholds for the ONNX graphs of an inference form, which ONNX Runtime runs.

ONNX Runtime's convolutions take images in blocks of 16 channels (8 on processors without AVX-512). A map with another
number of channels is converted before and after every convolution. Therefore the narrow maps at the beginning of an
ONNX graph are channel-padded: the channels are repeated as often as a block has room for, and the rest is zero.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from mobile_former.mobile import Lite
from mobile_former.model import Backbone

BLOCK = 16
FLAT_STRIDE = 8  # up to this stride, pointwise convolutions are one-dimensional
WHOLE_STRIDE = 4  # up to this stride, pointwise convolutions have no groups


def padded_maps(backbone: Backbone) -> tuple[bool, bool]:
    """Return whether the stem's output is channel-padded, and whether the map that the first bridge reads is.

    A Lite block with a residual returns a padded map if its input is padded. Other than Lite blocks, only the first
    bridge and a downsampling Mobile accept a padded map.
    """
    lites = list(itertools.takewhile(lambda block: isinstance(block, Lite), backbone.blocks))
    reaches_bridge = all(lite.residual for lite in lites)
    accepted = len(lites) > 0 and (not reaches_bridge or backbone.blocks[len(lites)].downsamples)
    pads_stem = accepted and backbone.stem.conv.out_channels < BLOCK
    return pads_stem, pads_stem and reaches_bridge


def pad_with_copies(tensor: Tensor, width: int = BLOCK) -> Tensor:
    """Repeat the first axis as often as ``width`` has room for, then append zeros up to ``width``."""
    return pad_with_zeros(torch.cat([tensor] * (width // len(tensor))), 0, width)


def pad_with_zeros(tensor: Tensor, dim: int, width: int) -> Tensor:
    """Append zeros along an axis up to ``width``."""
    missing = width - tensor.shape[dim]
    if missing == 0:
        return tensor
    return F.pad(tensor, [0, 0] * (tensor.ndim - 1 - dim % tensor.ndim) + [0, missing])
