"""Modules of the inference form that Python gets through quickly.

For one small image, Python's own work takes as long as the arithmetic: of ``nn.Module``, a call looks for hooks, and
each part's name is looked up in vain before the dictionary in which the part is. The parts of an inference form, some
170 of them, are therefore called directly, so that hooks on them never run (on the whole model they do), and stand
under their names as plain attributes too. Parameters do not, as exporters put others in their place.
"""

from typing import Any

import torch
from torch import Tensor, nn


class InferenceModule(nn.Module):
    """A part of an inference form, which takes no hooks."""

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        cls.__call__ = cls.forward

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__.pop(name, None)
        super().__setattr__(name, value)
        if isinstance(value, nn.Module):
            self.__dict__[name] = value

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self.__dict__.pop(name, None)


class InferenceLinear(InferenceModule, nn.Linear):
    """A linear with bias.

    Args:
        weight: ``(out, in)``.
        bias: ``(out,)``.
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        nn.Linear.__init__(self, weight.shape[1], weight.shape[0], device="meta")
        # A product of few rows, as tokens are, reads its second factor faster on a CPU where it lies as (in, out):
        # where it comes from memory, by up to a third.
        self.weight = nn.Parameter(weight.detach().t().contiguous().t())
        self.bias = nn.Parameter(bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """``(…, in)`` to ``(…, out)``."""
        parameters = self._parameters
        return nn.functional.linear(x, parameters["weight"], parameters["bias"])


class InferenceNorm(InferenceModule, nn.LayerNorm):
    """A LayerNorm over the last axis.

    Args:
        weight: ``(d,)``.
        bias: ``(d,)``.
        eps: added to the variance.
    """

    def __init__(self, weight: Tensor, bias: Tensor, eps: float):
        nn.LayerNorm.__init__(self, weight.shape, eps, device="meta")
        self.weight, self.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """``(…, d)`` of any mean and variance to such of mean 0 and variance 1, scaled and moved by the parameters."""
        parameters = self._parameters
        return torch.layer_norm(x, self.normalized_shape, parameters["weight"], parameters["bias"], self.eps)
