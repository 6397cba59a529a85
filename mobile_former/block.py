"""The Mobile-Former block: Mobile and Former in parallel, joined by the bridge."""

from torch import Tensor, nn

from mobile_former.bridge import FormerToMobile, MobileToFormer
from mobile_former.former import Former
from mobile_former.layers.checkpointing import recomputable
from mobile_former.layers.padding import halve
from mobile_former.mobile import DownsamplingMobile, Mobile
from mobile_former.variants import BlockSpec


class MobileFormerBlock(nn.Module):
    """Tokens gather from the map and exchange; the map is convolved under their guidance and gathers from them.

    Args:
        spec: the block's kind (``"same"`` or ``"down"``), width and expansions.
        in_channels: of the input map.
        token_dim: width of a token.
        groups: of the pointwise convolutions.
        drop_path: rate of stochastic depth.
        spatial_dynamic_relu: whether dynamic ReLU is spatially aware.
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
        """Update map and tokens.

        Args:
            x: ``(B, C, H, W)``.
            tokens: ``(B, M, d)``.
            padding: ``(B, 1, H, W)`` bool, True where the input map is padding.
            out_padding: the same for the output map.

        Returns:
            The map ``(B, C', H', W')`` and the tokens ``(B, M, d)``.
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
        """How much each position of the output listens to each token: ``(B, M, H', W')``, summing to 1 over tokens."""
        logits = logits.mean(1).unflatten(2, x.shape[2:])
        if self.downsamples:
            logits = halve(logits, padding)
        return logits.softmax(1)
