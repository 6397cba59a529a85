"""Ablations of detectors: those of their backbones, and of what E2E-MF adds."""

from torch import Tensor, nn

from detection.models.e2e_mf import E2EMobileFormer, HeadBlock, Queries, QueryStart
from mobile_former.ablation import ABLATIONS, Ablated, Ablation, apply_ablations, share_slopes
from mobile_former.errors import InputError


def ablate(detector: nn.Module, names: str) -> None:
    """Take parts out of a detector, in place.

    Args:
        detector: freshly built, before weights are loaded.
        names: one or several with commas between: those of :func:`mobile_former.ablation.ablate` (``no_bridge`` and
            ``tokens=N`` of the backbone, the others of E2E-MF's head as well), ``shared_dynamic_relu`` (the backbone's
            spatially shared instead of aware); of E2E-MF alone ``no_position_adaption`` (queries' positions stay what
            they start from) and ``scales=32`` or ``scales=32+16`` (blocks of finer maps work on the finest that is
            left).

    Raises:
        InputError: another name or number, or a detector that has nothing that could be taken out.
    """
    apply_ablations(detector, names, DETECTOR_ABLATIONS)


class FixedPosition(Ablated, nn.Module):
    """In place of the layers by which a block moves its queries."""

    def forward(self, content: Tensor) -> Tensor:
        """What is added to the positions, whatever the contents ``(B, Q, d)``: zero."""
        return content.new_zeros(())


class FixedStart(Ablated, QueryStart):
    """Queries whose positions stay where they began, though their boxes are corrected.

    Args:
        part: in whose place it stands.
    """

    def __init__(self, part: QueryStart):
        nn.Module.__init__(self)
        self.__dict__.update(part.__dict__)

    def move(self, queries: Queries, boxes: Tensor) -> Queries:
        """Leave positions; see :meth:`QueryStart.move`."""
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
    left = [scale for scale in detector.scales if str(scale) in value.split("+")]
    if not left or left != detector.scales[: len(left)] or "+".join(map(str, left)) != value:
        choices = ["+".join(map(str, detector.scales[: count + 1])) for count in range(len(detector.scales))]
        raise InputError(f"ablation 'scales={value}': give {' or '.join(choices)}, from the coarsest to the finest")
    gone = [str(scale) for scale in detector.scales[len(left) :]]
    parts = [detector.project, detector.merge]
    if detector.dense is not None:
        parts += [detector.dense.merge, detector.dense.towers]
        detector.dense.strides = left
    for scale in gone:
        for part in parts:
            del part[scale]
    detector.scales = left
    detector.strides = [max(stride, left[-1]) for stride in detector.strides]
    return bool(gone)


DETECTOR_ABLATIONS: dict[str, Ablation] = ABLATIONS | {
    "shared_dynamic_relu": Ablation(_shared_dynamic_relu),
    "no_position_adaption": Ablation(_no_position_adaption),
    "scales": Ablation(_scales, takes="the strides that are left"),
}
