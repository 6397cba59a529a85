"""The two-way bridge between a feature map, with local features, and a few tokens, with global features.

Both directions are cross-attention. Only the tokens are projected. The feature map is not projected, because
projections of the map would be the most expensive ones (Chen et al., Mobile-Former, section 3.1).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobile_former.layers.eager import is_channels_last
from mobile_former.layers.linear import linear
from mobile_former.layers.stochastic_depth import StochasticDepth

HEADS = 2


class MobileToFormer(nn.Module):
    """Mobile→Former: cross-attention that updates the tokens from the feature map.

    Linear layers project the queries and the output. The keys and values are the feature map itself.

    Args:
        channels: channels of the feature map.
        token_dim: dimension of a token.
        drop_path: stochastic depth rate of the attention branch.
        gated: multiply the attention output by a gate that is computed from the tokens, as in the backbone.
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
        """Update the tokens by cross-attention to the feature map.

        Args:
            x: feature map, ``(B, C, H, W)``.
            tokens: ``(B, M, d)``.
            padding: ``(B, 1, H, W)`` bool, True on padding, which the attention ignores; None for no padding.
            token_position: position embedding of the queries, ``(B, M, d)``; None for no embedding.
            map_position: position embedding of the keys, ``(B or 1, C, H, W)``; None for no embedding.
            focus: bias that is added to the attention logits of every head, ``(B, M, H·W)``; None for no bias.

        Returns:
            The updated tokens ``(B, M, d)``, and the scaled attention logits ``(B, heads, M, H·W)``. Neither the focus,
            nor the padding mask, nor the softmax has been applied to these logits.
        """
        keys, values = self.keys_and_values(x, map_position)
        query = _split_features(self.query(add_position(tokens, token_position)))  # (B, heads, M, C/heads)
        logits = attention_logits(query * query.shape[-1] ** -0.5, keys)
        visible = logits if focus is None else logits + focus[:, None].to(logits.dtype)
        if padding is not None:
            visible = mask_logits(visible, padding.flatten(2)[:, None])
        gathered = weighted_sums(self.attention(visible), values).transpose(1, 2).flatten(2)  # (B, M, C)
        if self.gate is not None:
            gathered = gathered * (2 * F.hardsigmoid(self.gate(tokens)))
        return self.norm(tokens + self.drop_path(self.output(gathered))), logits

    def keys_and_values(self, x: Tensor, map_position: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the keys (feature map plus position embedding) and the values (feature map), both ``(B, C, H, W)``."""
        return add_position(x, map_position), x


class FormerToMobile(nn.Module):
    """Former→Mobile: cross-attention that updates the feature map from the tokens.

    Linear layers project the keys and values. The queries are the feature map itself, and the output is not projected.

    Args:
        channels: channels of the feature map.
        token_dim: dimension of a token.
        drop_path: stochastic depth rate of the attention branch.
    """

    def __init__(self, channels: int, token_dim: int, drop_path: float = 0.0):
        super().__init__()
        self.key = linear(token_dim, channels)
        self.value = linear(token_dim, channels)
        self.attention = nn.Softmax(dim=2)  # over the tokens; a module, so that hooks can read the attention
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x: Tensor, tokens: Tensor, token_position: Tensor | None = None) -> Tensor:
        """Update the feature map by cross-attention to the tokens.

        Args:
            x: feature map, ``(B, C, H, W)``.
            tokens: ``(B, M, d)``.
            token_position: position embedding of the keys, ``(B, M, d)``; None for no embedding.

        Returns:
            The updated feature map, ``(B, C, H, W)``.
        """
        key = _split_features(self.key(add_position(tokens, token_position)))  # (B, heads, M, C/heads)
        value = _split_features(self.value(tokens))
        queries = self.queries(x)
        logits = attention_logits(key * key.shape[-1] ** -0.5, queries)  # (B, heads, M, H·W)
        gathered = distributed(self.attention(logits), value, queries)
        return x + self.drop_path(self.output(gathered))

    def queries(self, x: Tensor) -> Tensor:
        """Return the feature map ``(B, C, H, W)`` unchanged as the queries. A subclass can add a projection here."""
        return x

    def output(self, gathered: Tensor) -> Tensor:
        """Return the attention output ``(B, C, H, W)`` unchanged. A subclass can add a projection here."""
        return gathered


def add_position(x: Tensor, position: Tensor | None) -> Tensor:
    """Add the embedding ``position`` to the tokens or feature map ``x``. If it is None, return ``x`` unchanged."""
    return x if position is None else x + position


def split_channels(x: Tensor) -> Tensor:
    """Reshape ``(B, C, H, W)`` to ``(B, heads, C/heads, H·W)``. Each attention head has contiguous channels."""
    return x.flatten(2).unflatten(1, (HEADS, -1))


def attention_logits(tokens: Tensor, positions: Tensor) -> Tensor:
    """Compute the scalar product of each token and the features at each position of a map, for each attention head.

    Args:
        tokens: ``(B, heads, M, C/heads)``.
        positions: feature map, ``(B, C, H, W)``. Each head uses its own C/heads channels.

    Returns:
        The products, ``(B, heads, M, H·W)``.
    """
    if not is_channels_last(positions):
        return tokens @ split_channels(positions)
    # The heads of a channels-last map cannot be multiplied together without copies. With positions first, the
    # gradient of the map is channels-last too.
    by_head = zip(_position_rows(positions), tokens.unbind(1), strict=True)
    return torch.stack([(rows @ head.transpose(1, 2)).transpose(1, 2) for rows, head in by_head], dim=1)


def weighted_sums(weights: Tensor, positions: Tensor) -> Tensor:
    """Compute weighted sums over the positions of a feature map for each attention head.

    Args:
        weights: weights of the positions for each of M tokens, ``(B, heads, M, H·W)``.
        positions: feature map, ``(B, C, H, W)``. Each head sums its own C/heads channels.

    Returns:
        The sums, ``(B, heads, M, C/heads)``.
    """
    if not is_channels_last(positions):
        return weights @ split_channels(positions).transpose(2, 3)
    by_head = zip(weights.unbind(1), _position_rows(positions), strict=True)
    return torch.stack([head @ rows for head, rows in by_head], dim=1)


def distributed(weights: Tensor, tokens: Tensor, like: Tensor) -> Tensor:
    """Compute the weighted sum of the tokens at each position of a feature map for each attention head.

    Args:
        weights: weight of each token at each position, ``(B, heads, M, H·W)``.
        tokens: ``(B, heads, M, C/heads)``.
        like: feature map ``(B, C, H, W)``. The result has the shape and memory layout of this map.

    Returns:
        The sums as a feature map, ``(B, C, H, W)``.
    """
    if not is_channels_last(like):
        return (tokens.transpose(2, 3) @ weights).reshape(like.shape)
    by_head = zip(weights.unbind(1), tokens.unbind(1), strict=True)
    rows = torch.cat([each.transpose(1, 2) @ head for each, head in by_head], dim=2)  # (B, H·W, C)
    return rows.transpose(1, 2).unflatten(2, like.shape[2:])


def _position_rows(x: Tensor) -> tuple[Tensor, ...]:
    """View a channels-last map as a tuple of matrices ``(B, H·W, C/heads)``, one for each attention head."""
    return x.flatten(2).transpose(1, 2).chunk(HEADS, dim=2)


def mask_logits(logits: Tensor, padding: Tensor) -> Tensor:
    """Set the attention logits of padded positions to the lowest finite number of their dtype.

    This number is used instead of -inf, because with -inf the softmax over an image that consists only of padding would
    be NaN.
    """
    return logits.masked_fill(padding, torch.finfo(logits.dtype).min)


def _split_features(tokens: Tensor) -> Tensor:
    """Split the last axis into attention heads: reshape ``(B, M, C)`` to ``(B, heads, M, C/heads)``."""
    return tokens.unflatten(2, (HEADS, -1)).transpose(1, 2)
