"""Basic modules of converted models, designed for fast inference in eager PyTorch.

All code that depends on the internals of ``nn.Module`` or on oneDNN's operators is in this file:

- :class:`InferenceModule` calls ``forward`` without hooks and stores submodules as plain attributes. A converted model
  has about 170 submodules. For one small image, the overhead of ``nn.Module`` takes as much time as the arithmetic.
- :func:`exported_forward` registers a different forward pass for exported graphs.
- :class:`InferenceConv` and :func:`gelu` are faster than PyTorch's own operations on a CPU. They use PyTorch's own
  operations if a compiler, an exporter or autograd needs them.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_tracing_state = torch._C._get_tracing_state  # None outside torch.jit.trace. The public is_tracing takes twice as long
_HAS_ONEDNN = torch.backends.mkldnn.is_available()


class InferenceModule(nn.Module):
    """Base class of modules for inference. A call has less overhead than a call of an ``nn.Module``.

    A call runs ``forward`` without hooks. Submodules are also stored as plain attributes, so that Python finds them
    without a call of ``nn.Module.__getattr__``. Parameters and buffers are not stored as plain attributes, because
    exporters and ``functional_call`` replace parameters and buffers.
    """

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        if "forward" in cls.__dict__:
            cls.__call__ = cls.forward

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__.pop(name, None)
        super().__setattr__(name, value)
        if isinstance(value, nn.Module):
            self.__dict__[name] = value

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self.__dict__.pop(name, None)


def exported_forward(kind: type[InferenceModule], *, onnx_only: bool = False) -> Callable[[Callable], Callable]:
    """Return a decorator that registers a function as the forward pass of a module class in exported graphs.

    During ``torch.export``, ``torch.jit.trace`` and ``torch.onnx.export``, modules of the class run the registered
    function. At all other times, they run the ``forward`` method of the class. To achieve this, the decorator replaces
    the ``__call__`` method of the class.

    A second function can be registered for the same class, and then replaces the first one. If it is registered with
    ``onnx_only=True``, it replaces the first one only in exports to ONNX.

    Args:
        kind: class of the modules. The decorated function takes the module, followed by the inputs of ``kind.forward``.
        onnx_only: True to use the function only in ``torch.onnx.export``, False to use it in every export.
    """

    def register(forward: Callable) -> Callable:
        otherwise = kind.__call__

        def call(self: InferenceModule, *inputs: Any) -> Any:
            applies = torch.compiler.is_exporting() or _tracing_state()
            applies = applies and (not onnx_only or torch.onnx.is_in_onnx_export())
            return (forward if applies else otherwise)(self, *inputs)

        kind.__call__ = call
        return forward

    return register


class InferenceLinear(InferenceModule):
    """Linear layer with bias that is fast on a CPU if it is applied to only a few tokens.

    The parameter ``weight`` is the transpose of the weight of ``nn.Linear``. It is contiguous, because some exporters
    ignore the strides of parameters.

    Args:
        weight: ``(out, in)``.
        bias: ``(out,)``.
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        # Tokens are few rows. For few rows, a CPU multiplies up to a third faster if the weight is (in, out) in memory.
        self.weight = nn.Parameter(weight.detach().t().contiguous())
        self.bias = nn.Parameter(bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x``, ``(…, in)``. The output is ``(…, out)``."""
        parameters = self._parameters
        exporting = _tracing_state() or torch.compiler.is_exporting()
        if x.ndim == 2 and (not exporting or torch.onnx.is_in_onnx_export()):
            return torch.addmm(parameters["bias"], x, parameters["weight"])
        return F.linear(x, parameters["weight"].t(), parameters["bias"])  # ncnn and XNNPACK have no addmm


def add_product(tokens: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return ``tokens + x @ weight``.

    Args:
        tokens: ``(B·M, out)``, or ``(B, M, out)`` in exported graphs.
        x: ``(B·M, in)`` or ``(B, M, in)``.
        weight: ``(in, out)``.

    Returns:
        The sum, with the shape of ``tokens``.
    """
    if tokens.ndim == 2:
        return torch.addmm(tokens, x, weight)
    return tokens + F.linear(x, weight.t())


class InferenceNorm(InferenceModule, nn.LayerNorm):
    """LayerNorm over the last axis.

    Args:
        weight: ``(d,)``.
        bias: ``(d,)``.
        eps: value added to the variance.
    """

    def __init__(self, weight: Tensor, bias: Tensor, eps: float):
        nn.LayerNorm.__init__(self, weight.shape, eps, device="meta")
        self.weight, self.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(…, d)`` over the last axis, then apply the weight and the bias."""
        parameters = self._parameters
        return torch.layer_norm(x, self.normalized_shape, parameters["weight"], parameters["bias"], self.eps)


class InferenceConv(InferenceModule):
    """Convolution with bias, optionally followed by ReLU6.

    On a CPU, PyTorch's convolution converts the weight to oneDNN's layout at every call. For a map of few positions,
    the conversion takes half the time of the convolution itself. This class converts the weight only at the first call.
    A pointwise convolution is computed as a linear layer that is applied to every position, because this has less
    overhead.

    Args:
        weight: ``(out, in / groups, kernel, kernel)``.
        bias: ``(out,)``.
        stride: stride along both axes of the map.
        padding: zero padding on each side of the map, in positions.
        groups: number of groups.
        relu6: apply ReLU6 to the output.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, *, stride: int = 1, padding: int = 0, groups: int = 1, relu6: bool = False
    ):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        self.stride, self.padding, self.groups, self.relu6 = (stride, stride), (padding, padding), groups, relu6
        self._activation = ("hardtanh", [0.0, 6.0], "") if relu6 else ("none", [], "")
        self._is_linear = weight.shape[2:] == (1, 1) and (stride, padding, groups) == (1, 0, 1)
        # For each part of the weight: its state, and the part in oneDNN's layout.
        self._packed: dict[int, tuple] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Convolve a map ``(B, in, H, W)``. The output is ``(B, out, H', W')``."""
        return self._convolve(x, self._parameters["weight"], self._parameters["bias"], self.groups)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor, groups: int, part: int = 0) -> Tensor:
        """Convolve a map with the whole weight and bias or a part of them, and apply the activation function.

        Args:
            x: input map, ``(B, in, H, W)``.
            weight: the weight, or a part of it that computes some of the output channels.
            bias: the bias of these output channels.
            groups: number of groups of the convolution with ``weight``.
            part: number of the part, 0 for the whole weight. The weight in oneDNN's layout is stored under this number.
        """
        if _runs_onednn(x) and not _needs_gradients(x, weight, bias):
            packed = self._packed_weight(weight, x, groups, part)
            if self._is_linear:
                out = torch.ops.mkldnn._linear_pointwise(x.permute(0, 2, 3, 1), packed, bias, *self._activation)
                return out.permute(0, 3, 1, 2)
            return torch.ops.mkldnn._convolution_pointwise(
                x, packed, bias, self.padding, self.stride, (1, 1), groups, *self._activation
            )
        out = F.conv2d(x, weight, bias, self.stride, self.padding, 1, groups)
        return F.hardtanh(out, 0.0, 6.0, inplace=True) if self.relu6 else out

    def _packed_weight(self, weight: Tensor, x: Tensor, groups: int, part: int) -> Tensor:
        state = weight.data_ptr(), groups, None if weight.is_inference() else weight._version
        if self._packed.get(part, (None,))[0] != state:
            if self._is_linear:
                packed = torch.ops.mkldnn._reorder_linear_weight(weight[:, :, 0, 0], x.numel() // x.shape[1])
            else:
                packed = torch.ops.mkldnn._reorder_convolution_weight(
                    weight, self.padding, self.stride, (1, 1), groups, x.shape
                )
            self._packed[part] = state, packed
        return self._packed[part][1]

    def _apply(self, *args, **kwargs) -> "InferenceConv":
        self._packed = {}  # the weight moves or changes its type
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_packed": {}}  # a packed weight cannot be copied or pickled


def gelu(x: Tensor) -> Tensor:
    """Apply GELU to tokens ``(B·M, d)``."""
    # PyTorch calls oneDNN for a contiguous tensor, which takes five times as long for a few tokens.
    return F.gelu(x) if torch.compiler.is_compiling() or _tracing_state() else F.gelu(x.mT).mT


def _needs_gradients(*tensors: Tensor) -> bool:
    """Return whether autograd records operations on any of the given tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _runs_onednn(x: Tensor) -> bool:
    """Return whether oneDNN's operators can be called with the tensor ``x``.

    The operators support neither export nor fake tensors nor autocast.
    """
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
