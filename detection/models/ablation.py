"""Ablations of detectors. Each ablation removes a part of the Mobile-Former backbone or of the detection head."""

from torch import Tensor, nn

from detection.models.e2e_mf import E2EMobileFormer, HeadBlock, Queries, QueryStart
from mobile_former.ablation import ABLATIONS, Ablated, Ablation, apply_ablations, share_slopes
from mobile_former.errors import InputError


def ablate(detector: nn.Module, names: str) -> None:
    """Apply ablations to a detector: remove or replace some of its parts in place.

    The ablations of :func:`mobile_former.ablation.ablate` apply to the backbone. All of these except ``no_bridge`` and
    ``tokens=N`` also apply to the head of E2E-MF, the DETR-like detector of the Mobile-Former paper. Detectors have
    three more ablations:

    - ``shared_dynamic_relu``: the backbone's dynamic ReLU is spatially shared instead of spatially aware.
    - ``no_position_adaption`` (E2E-MF): the position embeddings of the queries stay the same in all blocks.
    - ``scales=32`` or ``scales=32+16`` (E2E-MF): the head uses only the feature maps at these strides. Blocks that
      used a removed map use the finest remaining map instead.

    Args:
        detector: newly built detector, before weights are loaded.
        names: name of an ablation, or several names separated by commas.

    Raises:
        InputError: a name or value is unknown, or the detector does not have the part to remove.
    """
    apply_ablations(detector, names, DETECTOR_ABLATIONS)


class FixedPosition(Ablated, nn.Module):
    """Module that leaves the position embeddings of queries unchanged. It replaces ``adapt`` in :class:`HeadBlock`."""

    def forward(self, content: Tensor) -> Tensor:
        """Return the scalar 0, for any query features ``content`` ``(B, Q, d)``.

        The result is added to the position embeddings, which therefore do not change.
        """
        return content.new_zeros(())


class FixedStart(Ablated, QueryStart):
    """Replacement of :class:`QueryStart` that keeps the position embeddings of the queries the same in all blocks.

    The blocks still correct the boxes of the queries.

    Args:
        part: the :class:`QueryStart` to replace. The new module shares its parameters.
    """

    def __init__(self, part: QueryStart):
        nn.Module.__init__(self)
        self.__dict__.update(part.__dict__)

    def move(self, queries: Queries, boxes: Tensor) -> Queries:
        """Return new queries whose reference boxes are the predicted ``boxes`` ``(B, Q, 4)``.

        The position embeddings do not change. Queries without reference boxes are returned unchanged. This method
        overrides :meth:`QueryStart.move`.
        """
        if self.embed is None:
            return queries
        return Queries(queries.content, queries.position, boxes.detach())


def _shared_dynamic_relu(detector: nn.Module, _: str) -> bool:
    return share_slopes(detector.backbone)


def _no_position_adaption(detector: nn.Module, _: str) -> bool:
    blocks = [part for part in detector.modules() if isinstance(part, HeadBlock)]
    for block in blocks:
        block.adapt = FixedPosition()
    if blocks:
        detector.start = FixedStart(detector.start)
    return bool(blocks)


def _scales(detector: nn.Module, value: str) -> bool:
    if not isinstance(detector, E2EMobileFormer):
        return False
    prefixes = [detector.scales[:count] for count in range(1, len(detector.scales) + 1)]
    choices = {"+".join(map(str, scales)): scales for scales in prefixes}
    if value not in choices:
        raise InputError(f"ablation 'scales={value}': give {' or '.join(choices)}, from the coarsest to the finest")
    kept = choices[value]
    removed = [str(scale) for scale in detector.scales if scale not in kept]
    parts = [detector.project, detector.merge]
    if detector.dense is not None:
        parts += [detector.dense.merge, detector.dense.class_towers, detector.dense.box_towers]
        detector.dense.strides = kept
    for scale in removed:
        for part in parts:
            del part[scale]
    detector.scales = kept
    detector.strides = [max(stride, kept[-1]) for stride in detector.strides]
    return bool(removed)


DETECTOR_ABLATIONS: dict[str, Ablation] = ABLATIONS | {
    "shared_dynamic_relu": Ablation(_shared_dynamic_relu),
    "no_position_adaption": Ablation(_no_position_adaption),
    "scales": Ablation(_scales, takes="the strides to keep"),
}
