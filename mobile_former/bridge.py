"""The two-way bridge between the local map and the global tokens.

Both directions are cross-attention. The map's side has no projections, because projections would cost most there
(Chen et al., Mobile-Former, section 3.1).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobile_former.layers.linear import linear
from mobile_former.layers.stochastic_depth import StochasticDepth

HEADS = 2


class MobileToFormer(nn.Module):
    """Mobile→Former: cross-attention from the tokens to the map.

    Only the queries are projected: the keys and values are the map itself.

    Args:
        channels: channels of the map.
        token_dim: dimension of a token.
        drop_path: stochastic depth rate.
        gated: scale the attention output by a gate that is computed from the tokens, as in the backbone.
    """

    def __init__(self, channels: int, token_dim: int, drop_path: float = 0.0, gated: bool = True):
        super().__init__()
        self.query = linear(token_dim, channels)
        self.attention = nn.Softmax(dim=-1)  # over the positions; a module, so that hooks can read the attention
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
            x: map, ``(B, C, H, W)``.
            tokens: ``(B, M, d)``.
            padding: ``(B, 1, H, W)`` bool, True on padding. The attention ignores padded positions.
            token_position: position embedding of the queries, ``(B, M, d)``, if any.
            map_position: position embedding of the keys, ``(B or 1, C, H, W)``, if any.
            focus: bias that is added to the attention logits of every head, ``(B, M, H·W)``, if any.

        Returns:
            The updated tokens ``(B, M, d)``, and the scaled attention logits ``(B, heads, M, H·W)``. The logits are
            returned before the focus, the padding mask and the softmax are applied.
        """
        keys, values = self.keys_and_values(x, map_position)
        query = _split_features(self.query(add_position(tokens, token_position)))  # (B, heads, M, C/heads)
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
        """Return the keys (map plus position embedding) and the values (map), each ``(B, heads, C/heads, H·W)``."""
        values = split_channels(x)
        return values if map_position is None else split_channels(x + map_position), values


class FormerToMobile(nn.Module):
    """Former→Mobile: cross-attention from the map to the tokens.

    Only the keys and values are projected: the queries are the map itself, and there is no output projection.

    Args:
        channels: channels of the map.
        token_dim: dimension of a token.
        drop_path: stochastic depth rate.
    """

    def __init__(self, channels: int, token_dim: int, drop_path: float = 0.0):
        super().__init__()
        self.key = linear(token_dim, channels)
        self.value = linear(token_dim, channels)
        self.attention = nn.Softmax(dim=2)  # over the tokens; a module, so that hooks can read the attention
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x: Tensor, tokens: Tensor, token_position: Tensor | None = None) -> Tensor:
        """Update the map from the tokens.

        Args:
            x: map, ``(B, C, H, W)``.
            tokens: ``(B, M, d)``.
            token_position: position embedding of the keys, ``(B, M, d)``, if any.

        Returns:
            ``(B, C, H, W)``.
        """
        key = _split_features(self.key(add_position(tokens, token_position)))  # (B, heads, M, C/heads)
        value = _split_features(self.value(tokens))
        logits = (key * key.shape[-1] ** -0.5) @ split_channels(self.queries(x))  # (B, heads, M, H·W)
        gathered = value.transpose(2, 3) @ self.attention(logits)  # (B, heads, C/heads, H·W)
        return x + self.drop_path(self.output(gathered.reshape(x.shape)))

    def queries(self, x: Tensor) -> Tensor:
        """Return the map ``(B, C, H, W)`` unchanged as the queries. A subclass can add a projection here."""
        return x

    def output(self, gathered: Tensor) -> Tensor:
        """Return the attention output ``(B, C, H, W)`` unchanged. A subclass can add a projection here."""
        return gathered


def add_position(x: Tensor, position: Tensor | None) -> Tensor:
    """Add a position embedding, if any, to tokens or a map."""
    return x if position is None else x + position


def split_channels(x: Tensor) -> Tensor:
    """Reshape ``(B, C, H, W)`` to ``(B, heads, C/heads, H·W)``; a head is a contiguous chunk of channels."""
    return x.flatten(2).unflatten(1, (HEADS, -1))


def mask_logits(logits: Tensor, padding: Tensor) -> Tensor:
    """Set the attention logits of padded positions to the lowest finite number.

    With -inf, the softmax of a row that is all padding would be NaN.
    """
    return logits.masked_fill(padding, torch.finfo(logits.dtype).min)


def _split_features(tokens: Tensor) -> Tensor:
    """Reshape ``(B, M, C)`` to ``(B, heads, M, C/heads)``."""
    return tokens.unflatten(2, (HEADS, -1)).transpose(1, 2)
