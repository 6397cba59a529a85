"""Convolutions for inference, with their weights in the order in which oneDNN reads them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InferenceConv(nn.Module):
    """A convolution with bias, and ReLU6 after it where that is wanted.

    On a CPU, oneDNN puts the weights of a convolution into an order of its own at every call, which for maps of few
    positions takes half as long as the convolution. Here that is done once.

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
        self._packed: tuple | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in, H, W)`` to ``(B, out, H', W')``."""
        if (
            x.is_cpu
            and x.dtype == torch.float32
            and not needs_gradients(x, self.weight, self.bias)
            and _knows_onednn(x)
        ):
            weight = self._packed_weight(x)
            return torch.ops.mkldnn._convolution_pointwise(
                x, weight, self.bias, self.padding, self.stride, (1, 1), self.groups, *self._activation
            )
        out = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, 1, self.groups)
        return F.relu6(out, inplace=True) if self.relu6 else out

    def _packed_weight(self, x: Tensor) -> Tensor:
        weight = self.weight
        state = weight.data_ptr(), None if weight.is_inference() else weight._version
        if self._packed is None or self._packed[0] != state:
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


def _knows_onednn(x: Tensor) -> bool:
    """Whether oneDNN's operations may be called as such: exporters, fake tensors and autocast know them not."""
    return (
        type(x) is Tensor
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and torch.backends.mkldnn.enabled
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )
