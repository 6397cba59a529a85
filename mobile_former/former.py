"""Former: the transformer layer over the tokens of a Mobile-Former block."""

from torch import Tensor, nn

from mobile_former.bridge import add_position
from mobile_former.layers.linear import linear
from mobile_former.layers.stochastic_depth import StochasticDepth

HEADS = 4


class Former(nn.Module):
    """Post-norm transformer layer: self-attention, then a feed-forward network.

    Linear layers project the queries and the output of the attention. The keys and values are the tokens themselves.

    Args:
        token_dim: dimension of a token.
        drop_path: stochastic depth rate of the attention branch.
    """

    def __init__(self, token_dim: int, drop_path: float = 0.0):
        super().__init__()
        self.query = linear(token_dim, token_dim)
        self.output = linear(token_dim, token_dim)
        self.attention_norm = nn.LayerNorm(token_dim)
        self.ffn = nn.Sequential(linear(token_dim, 2 * token_dim), nn.GELU(), linear(2 * token_dim, token_dim))
        self.ffn_norm = nn.LayerNorm(token_dim)
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, tokens: Tensor, position: Tensor | None = None) -> Tensor:
        """Update the tokens by self-attention and the feed-forward network.

        Args:
            tokens: ``(B, M, d)``.
            position: position embedding of the queries and keys, ``(B, M, d)``; None for no embedding.

        Returns:
            The updated tokens, ``(B, M, d)``.
        """
        tokens = self.attend(tokens, position)
        return self.ffn_norm(tokens + self.ffn(tokens))

    def attend(self, tokens: Tensor, position: Tensor | None) -> Tensor:
        """Update the tokens by self-attention with its residual connection and LayerNorm.

        The arguments are those of :meth:`forward`.
        """
        keys = add_position(tokens, position)
        query = self._split(self.query(keys))  # (B, heads, M, d/heads)
        logits = (query * query.shape[-1] ** -0.5) @ self._split(keys).transpose(2, 3)
        gathered = (logits.softmax(-1) @ self._split(tokens)).transpose(1, 2).flatten(2)
        return self.attention_norm(tokens + self.drop_path(self.output(gathered)))

    @staticmethod
    def _split(tokens: Tensor) -> Tensor:
        return tokens.unflatten(2, (HEADS, -1)).transpose(1, 2)
