"""Build a detector by its name."""

from pathlib import Path

from torch import nn

from detection.models.detr import Detr
from detection.models.e2e_mf import E2EMobileFormer
from detection.models.retinanet import RetinaNet
from detection.models.variants import DETR_VARIANTS, E2E_VARIANTS, RETINANET_VARIANTS
from detection.models.weights import load_detector_weights
from mobile_former.errors import InputError, nearest


def list_detectors() -> list[str]:
    """Names of the detectors: E2E-MF's, RetinaNet's, each the smallest first, and the baseline DETR's."""
    return [*E2E_VARIANTS, *RETINANET_VARIANTS, *DETR_VARIANTS]


def create_detector(
    name: str,
    num_classes: int,
    *,
    focal: bool = False,
    refine_boxes: bool = False,
    dense_head: bool = False,
    choose_queries: bool = False,
    backbone: str | None = None,
    pretrained: str | Path | None = None,
) -> nn.Module:
    """Build a detector.

    Args:
        name: one of :func:`list_detectors`.
        num_classes: number of classes K.
        focal: E2E-MF's option, see :class:`detection.models.e2e_mf.E2EMobileFormer`; so are the next three.
        refine_boxes: boxes corrected block by block.
        dense_head: predictions of every position.
        choose_queries: queries from the best of these.
        backbone: in place of the detector's own, see :func:`detection.models.backbone.create_backbone`.
        pretrained: a weights file, read by :func:`detection.load_detector_weights`.

    Returns:
        A module whose ``forward(images, padding_mask)`` gives outputs for its ``loss(outputs, targets)`` and
        ``postprocess(outputs, image_sizes)``.

    Raises:
        InputError: unknown name, no class, a library that cannot be imported, options that do not go together, or a
            weights file that does not fit.
        FileNotFoundError: no such weights file.
    """
    if name not in list_detectors():
        raise InputError(f"no detector is named {name!r}: {nearest(name, list_detectors())}")
    if num_classes < 1:
        raise InputError(f"num_classes is {num_classes}: a detector needs at least 1")
    options = {
        "focal": focal,
        "refine_boxes": refine_boxes,
        "dense_head": dense_head,
        "choose_queries": choose_queries,
    }
    if name in E2E_VARIANTS:
        model = E2EMobileFormer(E2E_VARIANTS[name], num_classes, backbone=backbone, **options)
    elif given := [option for option, value in options.items() if value]:
        raise InputError(f"{name} takes no {', '.join(given)}: leave out what is E2E-MF's")
    elif name in RETINANET_VARIANTS:
        model = RetinaNet(RETINANET_VARIANTS[name], num_classes, backbone)
    elif backbone is not None:
        raise InputError(f"{name} takes no other backbone: leave out {backbone}")
    else:
        model = Detr(DETR_VARIANTS[name], num_classes)
    if pretrained is not None:
        load_detector_weights(model, pretrained)
    return model
