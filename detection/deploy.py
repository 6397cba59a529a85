"""The inference form of E2E-MF's head, see :func:`mobile_former.deploy`."""

from torch import Tensor, nn

from detection.e2e_mf import E2EMobileFormer, HeadBlock
from mobile_former.deploy import inference_form
from mobile_former.deployed_mobile import DeployedMobile


class DeployedHeadBlock(nn.Module):
    """:class:`detection.e2e_mf.HeadBlock` for inference.

    Args:
        block: the trained block.

    Attributes:
        is_last: whether nothing reads the map and the positions that it gives, so that they are left as they are.
    """

    def __init__(self, block: HeadBlock):
        super().__init__()
        self.to_former = block.to_former
        self.former = block.former
        self.mobile = DeployedMobile(block.mobile, flat=False)
        self.to_mobile = block.to_mobile
        self.adapt = block.adapt
        self.is_last = False

    def forward(
        self,
        x: Tensor,
        content: Tensor,
        position: Tensor,
        encoding: Tensor,
        padding: Tensor | None,
        looking: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As the trained block."""
        content, _ = self.to_former(x, content, padding, token_position=position, map_position=encoding, focus=looking)
        content = self.former(content, position)
        if self.is_last:
            return x, content, position
        x = self.mobile(x, content.mean(1), padding=padding)
        x = self.to_mobile(x, content, position)
        return x, content, position + self.adapt(content)


@inference_form.register
def _(module: HeadBlock) -> nn.Module:
    return DeployedHeadBlock(module)


@inference_form.register
def _(module: E2EMobileFormer) -> nn.Module:
    module = inference_form.dispatch(nn.Module)(module)
    module.blocks[-1].is_last = True
    return module
