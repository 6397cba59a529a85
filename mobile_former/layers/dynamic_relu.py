"""Dynamic ReLU: the activation whose two slopes the tokens decide (Chen et al., Dynamic ReLU, ECCV 2020)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobile_former.layers.linear import linear


class DynamicReLU(nn.Module):
    """``max(a₁·x, a₂·x)`` with slopes per channel that a small perceptron reads off the tokens.

    ``θ = hsigmoid(W₂·relu(W₁·z))``, its halves ``θ₁`` and ``θ₂``; ``a₁ = 2(θ₁ − ½) + 1``, ``a₂ = 2(θ₂ − ½)``. Spatially
    shared, ``z`` is the first token; spatially aware, each position mixes the ``θ`` of all tokens.

    Args:
        channels: of the map.
        token_dim: width of a token.
    """

    def __init__(self, channels: int, token_dim: int):
        super().__init__()
        self.reduce = linear(token_dim, token_dim // 4)
        self.slopes = linear(token_dim // 4, 2 * channels)

    def forward(self, x: Tensor, tokens: Tensor, mixing: Tensor | None = None) -> Tensor:
        """Activate a map.

        Args:
            x: ``(B, C, H, W)``.
            tokens: ``(B, M, d)``; without ``mixing`` only the first is read, which may then come alone, ``(B, d)``.
            mixing: ``(B, M, H, W)``, the weight of each token at each position, summing to 1 over the tokens; makes the
                activation spatially aware.

        Returns:
            ``(B, C, H, W)``.
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
    """``max(slope1·x, slope2·x)``, with gradients that take less time and memory than those of the three operations.

    Args:
        x: ``(B, C, H, W)``.
        slope1: ``(B, C, 1, 1)`` or ``(B, C, H, W)``.
        slope2: the same shape.

    Returns:
        ``(B, C, H, W)``.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # a compiler derives and fuses by itself
        return torch.maximum(slope1 * x, slope2 * x)
    return _LargerProduct.apply(x, slope1, slope2)


class _LargerProduct(torch.autograd.Function):
    """Keeps the map alone for the gradients, and neither product.

    Where the products are equal, as at 0, the gradients are those of the second. They are made without masks, which on
    a CPU take twenty times as long as products.
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
        of_first = torch.ops.aten.threshold_backward(gradient, difference * x, 0)  # 0 but where the first is larger
        of_x = (gradient * slope2).addcmul_(of_first, difference)
        of_slope1 = (of_first * x).sum_to_size(slope1.shape)
        return of_x, of_slope1, (gradient * x).sum_to_size(slope2.shape) - of_slope1


def guiding_tokens(tokens: Tensor, mixing: Tensor | None) -> Tensor:
    """What dynamic ReLU reads of its tokens: the first, ``(B, d)``, or with ``mixing`` all, ``(B, M, d)``."""
    return tokens[:, 0] if mixing is None and tokens.ndim == 3 else tokens
