"""The Mobile-Former block: Mobile and Former in parallel, connected by a two-way bridge."""

from torch import Tensor, nn

from mobile_former.bridge import FormerToMobile, MobileToFormer
from mobile_former.former import Former
from mobile_former.layers.checkpointing import recomputable
from mobile_former.layers.padding import halve
from mobile_former.mobile import DownsamplingMobile, Mobile
from mobile_former.variants import BlockSpec


class MobileFormerBlock(nn.Module):
    """A Mobile-Former block: Mobile→Former, Former, Mobile, Former→Mobile.

    Mobile→Former updates the tokens from the input map. Former updates the tokens by self-attention. Mobile convolves
    the map; the slopes of Mobile's dynamic ReLU are computed from the tokens. Former→Mobile updates the output map of
    Mobile from the tokens.

    Args:
        spec: kind (``"same"`` or ``"down"``), output channels and expansion ratios of the block.
        in_channels: channels of the input map.
        token_dim: dimension of a token.
        groups: groups of the pointwise convolutions.
        drop_path: stochastic depth rate of the residual branches.
        spatial_dynamic_relu: use the spatially aware dynamic ReLU instead of the shared one.
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
        """Update the map and the tokens.

        Args:
            x: input map, ``(B, C, H, W)``.
            tokens: ``(B, M, d)``.
            padding: ``(B, 1, H, W)`` bool, True where the input map is padding.
            out_padding: ``(B, 1, H', W')`` bool, True where the output map is padding.

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
        """Return the weight of each token at each output position, ``(B, M, H', W')``, summing to 1 over the tokens."""
        logits = logits.mean(1).unflatten(2, x.shape[2:])
        if self.downsamples:
            logits = halve(logits, padding)
        return logits.softmax(1)
