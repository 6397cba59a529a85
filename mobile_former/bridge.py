"""The two-way bridge between the local map and the global tokens.

Both directions are cross-attention with the projections left out on the map's side, where they would cost most
(Chen et al., Mobile-Former, section 3.1).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobile_former.layers.linear import linear
from mobile_former.layers.stochastic_depth import StochasticDepth

HEADS = 2


class MobileToFormer(nn.Module):
    """Tokens gather from the map: keys and values are the map itself, without projection.

    Args:
        channels: of the map.
        token_dim: width of a token.
        drop_path: rate of stochastic depth.
        gated: whether the tokens gate what they gathered, as in the backbone.
    """

    def __init__(self, channels: int, token_dim: int, drop_path: float = 0.0, gated: bool = True):
        super().__init__()
        self.query = linear(token_dim, channels)
        self.attention = nn.Softmax(dim=-1)  # a module, so that a hook can tell where tokens look
        self.gate = linear(token_dim, channels) if gated else None
        self.output = linear(channels, token_dim)
        self.norm = nn.LayerNorm(token_dim)
        self.drop_path = StochasticDepth(drop_path)

    def forward(
        self,
        x: Tensor,
        tokens: Tensor,
        padding: Tensor | None = None,
        *,
        token_position: Tensor | None = None,
        map_position: Tensor | None = None,
        focus: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Update the tokens from the map.

        Args:
            x: ``(B, C, H, W)``.
            tokens: ``(B, M, d)``.
            padding: ``(B, 1, H, W)`` bool, True where a position is padding and must not be looked at.
            token_position: ``(B, M, d)``, added to the tokens where they serve as queries.
            map_position: ``(B or 1, C, H, W)``, added to the map where it serves as keys.
            focus: ``(B, M, H·W)``, added to the logits of every head: where each token shall look.

        Returns:
            The tokens ``(B, M, d)``, and the scaled logits of the attention ``(B, heads, M, H·W)`` before any softmax,
            mask or focus.
        """
        keys, values = self.keys_and_values(x, map_position)
        query = _split_features(self.query(located(tokens, token_position)))  # (B, heads, M, C/heads)
        logits = (query * query.shape[-1] ** -0.5) @ keys
        visible = logits if focus is None else logits + focus[:, None].to(logits.dtype)
        if padding is not None:
            visible = mask_logits(visible, padding.flatten(2)[:, None])
        gathered = self.attention(visible) @ values.transpose(2, 3)
        gathered = gathered.transpose(1, 2).flatten(2)  # (B, M, C)
        if self.gate is not None:
            gathered = gathered * (2 * F.hardsigmoid(self.gate(tokens)))
        return self.norm(tokens + self.drop_path(self.output(gathered))), logits

    def keys_and_values(self, x: Tensor, map_position: Tensor | None) -> tuple[Tensor, Tensor]:
        """The map itself as both, with its position as keys: each ``(B, heads, C/heads, H·W)``."""
        values = split_channels(x)
        return values if map_position is None else split_channels(x + map_position), values


class FormerToMobile(nn.Module):
    """The map gathers from the tokens: the query is the map itself, and there is no output projection.

    Args:
        channels: of the map.
        token_dim: width of a token.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, channels: int, token_dim: int, drop_path: float = 0.0):
        super().__init__()
        self.key = linear(token_dim, channels)
        self.value = linear(token_dim, channels)
        self.attention = nn.Softmax(dim=2)  # over the tokens; a module, as above
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x: Tensor, tokens: Tensor, token_position: Tensor | None = None) -> Tensor:
        """Update the map ``(B, C, H, W)`` from the tokens ``(B, M, d)``; returns ``(B, C, H, W)``.

        ``token_position`` ``(B, M, d)`` is added to the tokens where they serve as keys.
        """
        key = _split_features(self.key(located(tokens, token_position)))  # (B, heads, M, C/heads)
        value = _split_features(self.value(tokens))
        logits = (key * key.shape[-1] ** -0.5) @ split_channels(self.queries(x))  # (B, heads, M, H·W)
        gathered = value.transpose(2, 3) @ self.attention(logits)  # (B, heads, C/heads, H·W)
        return x + self.drop_path(self.output(gathered.reshape(x.shape)))

    def queries(self, x: Tensor) -> Tensor:
        """What stands for the map ``(B, C, H, W)`` as queries: the map itself."""
        return x

    def output(self, gathered: Tensor) -> Tensor:
        """What of the gathered ``(B, C, H, W)`` is added to the map: all, as it is."""
        return gathered


def located(tokens: Tensor, position: Tensor | None) -> Tensor:
    """Tokens, or a map, with their positions, where they have some."""
    return tokens if position is None else tokens + position


def split_channels(x: Tensor) -> Tensor:
    """``(B, C, H, W)`` to ``(B, heads, C/heads, H·W)``: heads are contiguous chunks of channels."""
    return x.flatten(2).unflatten(1, (HEADS, -1))


def mask_logits(logits: Tensor, padding: Tensor) -> Tensor:
    """Keep attention off padding; the lowest finite number, so that all-padding rows stay free of NaN."""
    return logits.masked_fill(padding, torch.finfo(logits.dtype).min)


def _split_features(tokens: Tensor) -> Tensor:
    """``(B, M, C)`` to ``(B, heads, M, C/heads)``."""
    return tokens.unflatten(2, (HEADS, -1)).transpose(1, 2)
