"""Dynamic ReLU: an activation function with slopes that depend on the image (Chen et al., Dynamic ReLU, ECCV 2020).

In Mobile-Former, the slopes are computed from the tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobile_former.layers.linear import linear


class DynamicReLU(nn.Module):
    """The activation ``max(a₁·x, a₂·x)``, whose two slopes for each channel are computed by an MLP from tokens.

    The MLP has two layers and computes ``θ = hsigmoid(W₂·relu(W₁·z))`` from a token ``z``. With ``θ`` split into halves
    ``θ₁`` and ``θ₂``, the slopes are ``a₁ = 2(θ₁ − ½) + 1`` and ``a₂ = 2(θ₂ − ½)``. The spatially shared variant uses
    the ``θ`` of the first token at all positions. The spatially aware variant computes ``θ`` for every token. At each
    position, it uses a weighted mean of the ``θ`` of all tokens.

    Args:
        channels: channels of the feature map.
        token_dim: dimension of a token.
    """

    def __init__(self, channels: int, token_dim: int):
        super().__init__()
        self.reduce = linear(token_dim, token_dim // 4)
        self.slopes = linear(token_dim // 4, 2 * channels)

    def forward(self, x: Tensor, tokens: Tensor, mixing: Tensor | None = None) -> Tensor:
        """Apply the activation.

        Args:
            x: feature map, ``(B, C, H, W)``.
            tokens: ``(B, M, d)``. If ``mixing`` is None, the first token ``(B, d)`` is enough.
            mixing: weight of each token at each position, ``(B, M, H, W)``, for the spatially aware variant. The
                weights sum to 1 over the tokens. It is None for the spatially shared variant.

        Returns:
            The output map, ``(B, C, H, W)``.
        """
        theta = self._theta(guiding_tokens(tokens, mixing))
        if mixing is None:
            theta = theta[:, :, None, None]  # (B, 2C, 1, 1)
        else:
            theta = theta.transpose(1, 2) @ mixing.flatten(2)  # (B, 2C, H·W)
            theta = theta.unflatten(2, mixing.shape[2:])
        theta1, theta2 = theta.chunk(2, dim=1)
        return larger_product(x, 2 * theta1, 2 * theta2 - 1)

    def _theta(self, tokens: Tensor) -> Tensor:
        return F.hardsigmoid(self.slopes(F.relu(self.reduce(tokens))))


def larger_product(x: Tensor, slope1: Tensor, slope2: Tensor) -> Tensor:
    """Compute ``max(slope1·x, slope2·x)`` with a backward pass that needs less time and memory than autograd's.

    Args:
        x: feature map, ``(B, C, H, W)``.
        slope1: first slope, ``(B, C, 1, 1)`` or ``(B, C, H, W)``.
        slope2: second slope, in the shape of ``slope1``.

    Returns:
        The elementwise maximum, ``(B, C, H, W)``.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # a compiler derives the gradients itself
        return torch.maximum(slope1 * x, slope2 * x)
    return _LargerProduct.apply(x, slope1, slope2)


class _LargerProduct(torch.autograd.Function):
    """Autograd function of :func:`larger_product`, which computes ``max(slope1·x, slope2·x)``.

    The function saves ``x`` and the slopes for the backward pass, but not the products ``slope1·x`` and ``slope2·x``.
    If the two products are equal, for example at ``x = 0``, the gradients are those of the second product. The backward
    pass uses no boolean masks, because on a CPU they take twenty times as long as products.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, slope1: Tensor, slope2: Tensor) -> Tensor:
        return torch.maximum(slope1 * x, slope2 * x)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, slope1, slope2 = (saved.to(gradient.dtype) for saved in ctx.saved_tensors)
        difference = slope1 - slope2
        of_first = torch.ops.aten.threshold_backward(gradient, difference * x, 0)  # 0 unless the first is larger
        of_x = (gradient * slope2).addcmul_(of_first, difference)
        of_slope1 = (of_first * x).sum_to_size(slope1.shape)
        return of_x, of_slope1, (gradient * x).sum_to_size(slope2.shape) - of_slope1


def guiding_tokens(tokens: Tensor, mixing: Tensor | None) -> Tensor:
    """Return the tokens from which dynamic ReLU computes its slopes.

    Args:
        tokens: all tokens, ``(B, M, d)``. If ``mixing`` is None, the first token ``(B, d)`` is enough.
        mixing: weight of each token at each position for the spatially aware variant; None for the spatially shared
            variant.

    Returns:
        All tokens ``(B, M, d)`` for the spatially aware variant, the first token ``(B, d)`` for the other one.
    """
    return tokens[:, 0] if mixing is None and tokens.ndim == 3 else tokens
