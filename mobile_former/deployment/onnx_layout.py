"""Channel padding and stride thresholds that make the ONNX graph of an inference form fast in ONNX Runtime.

ONNX Runtime's convolutions process maps in blocks of 16 channels (8 on processors without AVX-512). A map with another
number of channels is converted before and after every convolution. Therefore the maps with few channels at the
beginning of an ONNX graph are channel-padded to one block: the channels are repeated as often as the block has room
for, and the remaining channels of the block are zero.
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
    """Return two flags: whether the stem's output and the first bridge's input map are channel-padded.

    A Lite block with a residual connection returns a padded map for a padded input map. Apart from Lite blocks, only
    the first bridge and a downsampling Mobile accept a padded map.
    """
    lites = list(itertools.takewhile(lambda block: isinstance(block, Lite), backbone.blocks))
    reaches_bridge = all(lite.residual for lite in lites)
    accepted = len(lites) > 0 and (not reaches_bridge or backbone.blocks[len(lites)].downsamples)
    pads_stem = accepted and backbone.stem.conv.out_channels < BLOCK
    return pads_stem, pads_stem and reaches_bridge


def pad_with_copies(tensor: Tensor, width: int = BLOCK) -> Tensor:
    """Repeat a tensor along the first axis as often as ``width`` has room for, then append zeros up to ``width``."""
    return pad_with_zeros(torch.cat([tensor] * (width // len(tensor))), 0, width)


def pad_with_zeros(tensor: Tensor, dim: int, width: int) -> Tensor:
    """Append zeros along an axis up to ``width``."""
    missing = width - tensor.shape[dim]
    if missing == 0:
        return tensor
    return F.pad(tensor, [0, 0] * (tensor.ndim - 1 - dim % tensor.ndim) + [0, missing])
