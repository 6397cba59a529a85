"""Channel padding and stride thresholds that make the ONNX graph of an inference form fast in ONNX Runtime.

ONNX Runtime's convolutions process feature maps in blocks of 16 channels (8 on processors without AVX-512). A map whose
channels do not fill complete blocks is converted before and after every convolution. The maps at the beginning of a
network have few channels. In ONNX graphs, they are therefore padded to one block: all channels are repeated as often as
the block has room, and the rest of the block is zero.
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
    """Return whether ONNX graphs pad the stem's output to 16 channels, and whether the first bridge's input is padded.

    The result is a tuple of two bools. A Lite block with a residual connection returns a padded map if its input map is
    padded. Only Lite blocks, the first bridge and a downsampling Mobile accept a padded map.
    """
    lites = list(itertools.takewhile(lambda block: isinstance(block, Lite), backbone.blocks))
    reaches_bridge = all(lite.residual for lite in lites)
    accepted = len(lites) > 0 and (not reaches_bridge or backbone.blocks[len(lites)].downsamples)
    pads_stem = accepted and backbone.stem.conv.out_channels < BLOCK
    return pads_stem, pads_stem and reaches_bridge


def pad_with_copies(tensor: Tensor, width: int = BLOCK) -> Tensor:
    """Repeat a tensor along the first axis, and append zeros until this axis has the size ``width``.

    The tensor is repeated as long as complete copies fit into ``width``.
    """
    return pad_with_zeros(torch.cat([tensor] * (width // len(tensor))), 0, width)


def pad_with_zeros(tensor: Tensor, dim: int, width: int) -> Tensor:
    """Append zeros to a tensor along the axis ``dim`` until this axis has the size ``width``."""
    missing = width - tensor.shape[dim]
    if missing == 0:
        return tensor
    return F.pad(tensor, [0, 0] * (tensor.ndim - 1 - dim % tensor.ndim) + [0, missing])
