"""Convolutions for inference, with their weights in the order in which oneDNN reads them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobile_former.deployment.modules import InferenceModule

_HAS_ONEDNN = torch.backends.mkldnn.is_available()


class InferenceConv(InferenceModule):
    """A convolution with bias, and ReLU6 after it where that is wanted.

    On a CPU, oneDNN puts the weights of a convolution into an order of its own at every call, which for maps of few
    positions takes half as long as the convolution. Here that is done once. A pointwise convolution is a linear over
    the positions there, which has less to set up.

    Args:
        weight: ``(out, in / groups, kernel, kernel)``.
        bias: ``(out,)``.
        stride: and
        padding: of both sides.
        groups: of channels.
        relu6: whether ReLU6 follows.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, *, stride: int = 1, padding: int = 0, groups: int = 1, relu6: bool = False
    ):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        self.stride, self.padding, self.groups, self.relu6 = (stride, stride), (padding, padding), groups, relu6
        self._activation = ("hardtanh", [0.0, 6.0], "") if relu6 else ("none", [], "")
        self._is_linear = weight.shape[2:] == (1, 1) and (stride, padding, groups) == (1, 0, 1)
        self._packed: tuple | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in, H, W)`` to ``(B, out, H', W')``."""
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        if _runs_onednn(x) and not needs_gradients(x, weight, bias):
            packed = self._packed_weight(weight, x)
            if self._is_linear:
                out = torch.ops.mkldnn._linear_pointwise(x.permute(0, 2, 3, 1), packed, bias, *self._activation)
                return out.permute(0, 3, 1, 2)
            return torch.ops.mkldnn._convolution_pointwise(
                x, packed, bias, self.padding, self.stride, (1, 1), self.groups, *self._activation
            )
        out = F.conv2d(x, weight, bias, self.stride, self.padding, 1, self.groups)
        return F.relu6(out, inplace=True) if self.relu6 else out

    def _packed_weight(self, weight: Tensor, x: Tensor) -> Tensor:
        state = weight.data_ptr(), None if weight.is_inference() else weight._version
        if self._packed is None or self._packed[0] != state:
            if self._is_linear:
                packed = torch.ops.mkldnn._reorder_linear_weight(weight[:, :, 0, 0], x.numel() // x.shape[1])
            else:
                packed = torch.ops.mkldnn._reorder_convolution_weight(
                    weight, self.padding, self.stride, (1, 1), self.groups, x.shape
                )
            self._packed = state, packed
        return self._packed[1]

    def _apply(self, *args, **kwargs) -> "InferenceConv":
        self._packed = None  # weights move, or change their type
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_packed": None}  # which cannot be copied or pickled


def needs_gradients(*tensors: Tensor) -> bool:
    """Whether what is computed from these tensors has to know how."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _runs_onednn(x: Tensor) -> bool:
    """Whether oneDNN's operations may be called on this map: exporters, fake tensors and autocast know them not."""
    return (
        type(x) is Tensor
        and x.is_cpu
        and x.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and _HAS_ONEDNN
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
    )
