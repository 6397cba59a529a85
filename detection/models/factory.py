"""Functions that list the names of the detectors and build a detector from its name."""

from pathlib import Path

from torch import nn

from detection.models.detr import Detr
from detection.models.e2e_mf import E2EMobileFormer
from detection.models.retinanet import RetinaNet
from detection.models.variants import DETR_VARIANTS, E2E_VARIANTS, RETINANET_VARIANTS
from detection.models.weights import load_detector_weights
from mobile_former.errors import InputError, nearest


def list_detectors() -> list[str]:
    """Return the list of detector names: E2E-MF and RetinaNet, each from small to large, and DETR.

    E2E-MF is the DETR-like detector of the Mobile-Former paper.
    """
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

    ``focal``, ``refine_boxes``, ``dense_head`` and ``choose_queries`` are options of E2E-MF detectors only, see
    :class:`detection.models.e2e_mf.E2EMobileFormer`.

    Args:
        name: one of the names in :func:`list_detectors`.
        num_classes: number of classes K.
        focal: predict classes by sigmoids with focal loss and a focal matching cost. If false, a softmax with the class
            "no object" is used.
        refine_boxes: each block corrects the boxes of the previous block.
        dense_head: add a head that predicts at every position of the feature maps.
        choose_queries: initialise the object queries from the best positions of the dense head.
        backbone: name of a backbone that replaces the detector's own, see
            :func:`detection.models.backbone.create_backbone`; not for DETR. None: the detector's own.
        pretrained: weights file, loaded by :func:`detection.load_detector_weights`. None: random weights.

    Returns:
        A module with ``forward(images, padding_mask)``, ``loss(outputs, targets)`` and
        ``postprocess(outputs, image_sizes)``, where ``outputs`` is the result of ``forward``.

    Raises:
        InputError: the name is unknown, there is less than one class, the options do not fit the detector or each
            other, a library cannot be imported, or the weights file does not fit.
        FileNotFoundError: the weights file does not exist.
    """
    if name not in list_detectors():
        raise InputError(f"no detector is named {name!r}: {nearest(name, list_detectors())}")
    if num_classes < 1:
        raise InputError(f"num_classes is {num_classes}: give at least 1")
    options = {"focal": focal, "refine_boxes": refine_boxes, "dense_head": dense_head, "choose_queries": choose_queries}
    if name in E2E_VARIANTS:
        model = E2EMobileFormer(E2E_VARIANTS[name], num_classes, backbone=backbone, **options)
    elif given := [option for option, value in options.items() if value]:
        raise InputError(f"{name} takes no {', '.join(given)}: leave out the options of E2E-MF")
    elif name in RETINANET_VARIANTS:
        model = RetinaNet(RETINANET_VARIANTS[name], num_classes, backbone)
    elif backbone is not None:
        raise InputError(f"{name} takes no other backbone: leave out backbone={backbone}")
    else:
        model = Detr(DETR_VARIANTS[name], num_classes)
    if pretrained is not None:
        load_detector_weights(model, pretrained)
    return model
