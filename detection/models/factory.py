"""Functions that list the names of the detectors and build a detector from its name."""

from dataclasses import replace
from pathlib import Path

from torch import nn

from detection.models.detr import Detr
from detection.models.e2e_mf import E2EMobileFormer
from detection.models.retinanet import DETECTIONS, RetinaNet
from detection.models.variants import DETR_VARIANTS, E2E_VARIANTS, RETINANET_VARIANTS, DetrVariant, E2EVariant
from detection.models.weights import load_detector_weights
from mobile_former.errors import InputError, nearest


def list_detectors() -> list[str]:
    """Return the list of detector names: first E2E-MF, then RetinaNet, then DETR.

    The detectors of one kind are ordered from small to large. E2E-MF is the DETR-like detector of the Mobile-Former
    paper.
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
    num_queries: int | None = None,
    max_detections: int | None = None,
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
        num_queries: number of object queries of E2E-MF or DETR, the maximum number of detections in an image. None: the
            number in :data:`detection.models.variants.E2E_VARIANTS` or ``DETR_VARIANTS``.
        max_detections: maximum number of detections of RetinaNet in an image. None: 100.
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
    for option, value in (("num_queries", num_queries), ("max_detections", max_detections)):
        if value is not None and value < 1:
            raise InputError(f"{option} is {value}: give at least 1")
    options = {"focal": focal, "refine_boxes": refine_boxes, "dense_head": dense_head, "choose_queries": choose_queries}
    given = options | {"backbone": backbone, "num_queries": num_queries, "max_detections": max_detections}
    if name in E2E_VARIANTS:
        accepted = {*options, "backbone", "num_queries"}
    else:
        accepted = {"backbone", "max_detections"} if name in RETINANET_VARIANTS else {"num_queries"}
    if unknown := [option for option, value in given.items() if value and option not in accepted]:
        raise InputError(f"{name} takes no {', '.join(unknown)}: leave out {'it' if len(unknown) == 1 else 'them'}")
    if name in E2E_VARIANTS:
        model = E2EMobileFormer(
            _with_queries(E2E_VARIANTS[name], num_queries), num_classes, backbone=backbone, **options
        )
    elif name in RETINANET_VARIANTS:
        model = RetinaNet(RETINANET_VARIANTS[name], num_classes, backbone, max_detections or DETECTIONS)
    else:
        model = Detr(_with_queries(DETR_VARIANTS[name], num_queries), num_classes)
    if pretrained is not None:
        load_detector_weights(model, pretrained)
    return model


def _with_queries(variant: E2EVariant | DetrVariant, num_queries: int | None) -> E2EVariant | DetrVariant:
    return variant if num_queries is None else replace(variant, queries=num_queries)
