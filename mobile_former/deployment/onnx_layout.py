"""Rules and helper functions that make ONNX graphs of converted models fast in ONNX Runtime.

:func:`mobile_former.deployment.deploy.deploy` converts models. There are two rules for their ONNX graphs:

- Feature maps with fewer than 16 channels are padded to 16 channels, if the layers that follow accept padded maps. Only
  the first maps of small variants have fewer than 16 channels. A padded map consists of as many complete copies of the
  map as fit, followed by zeros. ONNX Runtime's convolutions process 16 channels at a time (8 on processors without
  AVX-512). If the number of channels is not a multiple of 16, ONNX Runtime converts the memory layout of the map before
  and after every convolution.
- The stride of a feature map relative to the image determines how a pointwise convolution is computed: without groups
  up to stride 4, and in one dimension up to stride 8. See :func:`mobile_former.deployment.exported_graphs.pointwise`.
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
    """Return which feature maps of a backbone are padded to 16 channels in ONNX graphs.

    A Lite block with a residual connection returns a padded map if its input map is padded. Only Lite blocks, the first
    bridge and a downsampling Mobile accept a padded map.

    Returns:
        Tuple of two bools: whether the output of the stem is padded, and whether the input map of the first bridge is
        padded.
    """
    lites = list(itertools.takewhile(lambda block: isinstance(block, Lite), backbone.blocks))
    reaches_bridge = all(lite.residual for lite in lites)
    accepted = len(lites) > 0 and (not reaches_bridge or backbone.blocks[len(lites)].downsamples)
    pads_stem = accepted and backbone.stem.conv.out_channels < BLOCK
    return pads_stem, pads_stem and reaches_bridge


def pad_with_copies(tensor: Tensor, width: int = BLOCK) -> Tensor:
    """Pad the first axis of a tensor to the size ``width`` with copies of the tensor.

    The result consists of as many complete copies as fit, followed by zeros.
    """
    return pad_with_zeros(torch.cat([tensor] * (width // len(tensor))), 0, width)


def pad_with_zeros(tensor: Tensor, dim: int, width: int) -> Tensor:
    """Append zeros to a tensor along its axis ``dim`` until this axis has the size ``width``."""
    missing = width - tensor.shape[dim]
    if missing == 0:
        return tensor
    return F.pad(tensor, [0, 0] * (tensor.ndim - 1 - dim % tensor.ndim) + [0, missing])
