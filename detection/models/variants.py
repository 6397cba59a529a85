"""Configurations of the detectors, by name (Chen et al., Mobile-Former, CVPR 2022, section 4.2)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class E2EVariant:
    """Configuration of E2E-MF, the DETR-like detector of the Mobile-Former paper.

    Attributes:
        backbone: name of the Mobile-Former that is the backbone.
        width: channels of the feature maps in the head.
        queries: number of object queries.
        query_dim: dimension of a query.
        blocks: one tuple (stride, expansion) for each block of the head, from first to last. ``stride`` is the stride
            of the feature map that the block works on, 32, 16 or 8. It never increases from block to block.
            ``expansion`` is the expansion ratio of the block's inverted bottleneck.
        separable: whether the convolutions of the dense head are depthwise separable. If not, the dense head of a large
            detector costs more than all of its other parts together.
    """

    backbone: str
    width: int
    queries: int
    query_dim: int
    blocks: tuple[tuple[int, int], ...]
    separable: bool = True


# The paper's expansions are not public. These expansions stay within its published parameters and multiply-adds.
_NINE_BLOCKS = ((32, 6),) * 5 + ((16, 5),) * 2 + ((8, 5),) * 2
# For small data sets and few CPU cores. More blocks learn no better in the same time (experiments/README.md).
_TWO_BLOCKS = ((16, 5), (8, 3))

E2E_VARIANTS: dict[str, E2EVariant] = {
    "e2e_mf_26m": E2EVariant("mobile_former_26m", 64, 50, 128, _TWO_BLOCKS, separable=False),
    "e2e_mf_52m": E2EVariant("mobile_former_52m", 64, 50, 128, _TWO_BLOCKS, separable=False),
    "e2e_mf_151m": E2EVariant("mobile_former_151m", 128, 100, 256, _NINE_BLOCKS),
    "e2e_mf_214m": E2EVariant("mobile_former_214m", 160, 100, 256, _NINE_BLOCKS),
    "e2e_mf_294m": E2EVariant("mobile_former_294m", 192, 100, 256, _NINE_BLOCKS),
    "e2e_mf_508m": E2EVariant("mobile_former_508m", 256, 100, 256, _NINE_BLOCKS),
}


@dataclass(frozen=True)
class RetinaNetVariant:
    """Configuration of a RetinaNet.

    Attributes:
        backbone: name of the Mobile-Former that is the backbone.
        width: channels of the feature pyramid and of the prediction towers (stacks of convolutions).
        depth: number of convolutions in a prediction tower.
        base: side of the smallest square anchor of a feature map, divided by the stride of the map.
    """

    backbone: str
    width: int
    depth: int
    base: float


RETINANET_VARIANTS: dict[str, RetinaNetVariant] = {
    # For small data sets and few CPU cores.
    "retinanet_mf_26m": RetinaNetVariant("mobile_former_26m", 64, 2, 2.5),
    "retinanet_mf_52m": RetinaNetVariant("mobile_former_52m", 64, 2, 2.5),
    "retinanet_mf_151m": RetinaNetVariant("mobile_former_151m", 256, 4, 4),
    "retinanet_mf_214m": RetinaNetVariant("mobile_former_214m", 256, 4, 4),
    "retinanet_mf_294m": RetinaNetVariant("mobile_former_294m", 256, 4, 4),
    "retinanet_mf_508m": RetinaNetVariant("mobile_former_508m", 256, 4, 4),
}


@dataclass(frozen=True)
class DetrVariant:
    """Configuration of a DETR.

    Attributes:
        resnet: name of the backbone, a ResNet of the transformers library.
        queries: number of object queries.
    """

    resnet: str
    queries: int


DETR_VARIANTS: dict[str, DetrVariant] = {"detr_r50": DetrVariant("resnet50", 100)}
