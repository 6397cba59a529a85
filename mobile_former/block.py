"""The Mobile-Former block: convolutions (Mobile) and a transformer layer (Former), connected by a two-way bridge."""

from torch import Tensor, nn

from mobile_former.bridge import FormerToMobile, MobileToFormer
from mobile_former.former import Former
from mobile_former.layers.checkpointing import recomputable
from mobile_former.layers.padding import halve
from mobile_former.mobile import DownsamplingMobile, Mobile
from mobile_former.variants import BlockSpec


class MobileFormerBlock(nn.Module):
    """Mobile-Former block, which updates a feature map and a few tokens.

    1. Mobile→Former updates the tokens from the input map by cross-attention.
    2. Former updates the tokens by self-attention and a feed-forward network.
    3. Mobile convolves the map. The slopes of its activation function, dynamic ReLU, are computed from the tokens.
    4. Former→Mobile updates the convolved map from the tokens by cross-attention.

    Args:
        spec: specification of the block, with its kind (``"same"`` for stride 1 or ``"down"`` for stride 2), output
            channels and expansion ratios.
        in_channels: channels of the input map.
        token_dim: dimension of a token.
        groups: groups of the pointwise convolutions.
        drop_path: stochastic depth rate of the residual branches.
        spatial_dynamic_relu: True for the spatially aware dynamic ReLU, whose slopes differ between positions; False
            for the same slopes at all positions.
    """

    def __init__(
        self,
        spec: BlockSpec,
        in_channels: int,
        token_dim: int,
        *,
        groups: int = 1,
        drop_path: float = 0.0,
        spatial_dynamic_relu: bool = False,
    ):
        super().__init__()
        self.to_former = MobileToFormer(in_channels, token_dim, drop_path)
        self.former = Former(token_dim, drop_path)
        if spec.kind == "down":
            self.mobile = DownsamplingMobile(
                in_channels, spec.out_channels, spec.expansions, token_dim, groups=groups, drop_path=drop_path
            )
        else:
            self.mobile = Mobile(
                in_channels, spec.out_channels, *spec.expansions, token_dim, groups=groups, drop_path=drop_path
            )
        self.to_mobile = FormerToMobile(spec.out_channels, token_dim, drop_path)
        self.downsamples = spec.kind == "down"
        self.spatial_dynamic_relu = spatial_dynamic_relu

    @recomputable
    def forward(
        self, x: Tensor, tokens: Tensor, padding: Tensor | None = None, out_padding: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Update the feature map and the tokens.

        Args:
            x: input map, ``(B, C, H, W)``.
            tokens: ``(B, M, d)``.
            padding: ``(B, 1, H, W)`` bool, True where the input map is padding; None for no padding.
            out_padding: ``(B, 1, H', W')`` bool, True where the output map is padding; None for no padding.

        Returns:
            The output map ``(B, C', H', W')`` and the updated tokens ``(B, M, d)``.
        """
        tokens, logits = self.to_former(x, tokens, padding)
        tokens = self.former(tokens)
        mixing = self._mixing(logits, x, padding) if self.spatial_dynamic_relu else None
        if self.downsamples:
            x = self.mobile(x, tokens, mixing, padding, out_padding)
        else:
            x = self.mobile(x, tokens, mixing, padding)
        return self.to_mobile(x, tokens), tokens

    def _mixing(self, logits: Tensor, x: Tensor, padding: Tensor | None) -> Tensor:
        """Compute the weight of each token at each output position, for the spatially aware dynamic ReLU.

        The attention logits are averaged over the heads. If the block has stride 2, they are also average-pooled. The
        weights are the softmax of these averages over the tokens.

        Args:
            logits: attention logits of the Mobile→Former bridge, ``(B, heads, M, H·W)``.
            x: input map of the block, ``(B, C, H, W)``.
            padding: ``(B, 1, H, W)`` bool, True where the input map is padding; None for no padding.

        Returns:
            The weights, ``(B, M, H', W')``.
        """
        logits = logits.mean(1).unflatten(2, x.shape[2:])
        if self.downsamples:
            logits = halve(logits, padding)
        return logits.softmax(1)
