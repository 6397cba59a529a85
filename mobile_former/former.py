"""Former: the transformer layer over the few global tokens."""

from torch import Tensor, nn

from mobile_former.bridge import located
from mobile_former.layers.linear import linear
from mobile_former.layers.stochastic_depth import StochasticDepth

HEADS = 4


class Former(nn.Module):
    """Self-attention whose keys and values are the tokens without projection, then a feed-forward layer; post-norm.

    Args:
        token_dim: width of a token.
        drop_path: rate of stochastic depth on the attention.
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
        """Let the tokens ``(B, M, d)`` exchange what they gathered; returns ``(B, M, d)``.

        ``position`` ``(B, M, d)`` is added to the tokens where they serve as queries and keys.
        """
        tokens = self.attend(tokens, position)
        return self.ffn_norm(tokens + self.ffn(tokens))

    def attend(self, tokens: Tensor, position: Tensor | None) -> Tensor:
        """The attention alone, which the feed-forward layer follows."""
        placed = located(tokens, position)
        query = self._split(self.query(placed))  # (B, heads, M, d/heads)
        logits = (query * query.shape[-1] ** -0.5) @ self._split(placed).transpose(2, 3)
        gathered = (logits.softmax(-1) @ self._split(tokens)).transpose(1, 2).flatten(2)
        return self.attention_norm(tokens + self.drop_path(self.output(gathered)))

    @staticmethod
    def _split(tokens: Tensor) -> Tensor:
        return tokens.unflatten(2, (HEADS, -1)).transpose(1, 2)
