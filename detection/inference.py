"""Build a detector from the options of its training run, and detect objects with it, without Lightning."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detection.data.batch import pad
from detection.models.ablation import ablate
from detection.models.factory import create_detector
from detection.models.variants import E2E_VARIANTS
from mobile_former.errors import InputError
from mobile_former.training.baselines import is_baseline
from mobile_former.training.data.images import normalise


def configured_detector(
    class_names: Sequence[str],
    name: str = "e2e_mf_294m",
    backbone: str | None = None,
    ablation: str | None = None,
    num_queries: int | None = None,
    max_detections: int | None = None,
    checkpoint_gradients: bool = False,
    **options,
) -> nn.Module:
    """Build the detector that the options of a run describe, with random weights.

    The arguments are those of :class:`detection.module.DetectionModule`. Arguments that only affect training are
    ignored.

    Raises:
        InputError: the name is unknown, a value is out of range, or an option does not apply to the detector.
    """
    # Other detectors ignore the options of E2E-MF, so that one config serves all.
    parts = ("focal", "refine_boxes", "dense_head", "choose_queries") if name in E2E_VARIANTS else ()
    model = create_detector(
        name,
        num_classes=len(class_names),
        backbone=backbone,
        num_queries=num_queries,
        max_detections=max_detections,
        **{part: options.get(part, False) for part in parts},
    )
    if is_baseline(model.backbone_name):
        for option, given in (("ablation", ablation), ("checkpoint_gradients", checkpoint_gradients)):
            if given:
                raise InputError(f"--model.{option} is for Mobile-Former, not for {model.backbone_name}: leave it out")
    if ablation is not None:
        ablate(model, ablation)
    return model


@torch.inference_mode()
def detect(
    model: nn.Module,
    images: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    mean: Sequence[float],
    std: Sequence[float],
) -> list[dict[str, Tensor]]:
    """Detect objects in images that were resized by :func:`detection.data.resizing.resize_to_fit`.

    Args:
        model: detector in evaluation mode, or its inference form (:func:`mobile_former.deploy`).
        images: list of images of any sizes, each ``(3, H, W)`` uint8.
        sizes: list with a tuple (height, width) for each image, usually its original size. Boxes are scaled to this
            size.
        mean: mean of each channel for the normalisation, in 0..1.
        std: standard deviation of each channel for the normalisation, in 0..1.

    Returns:
        List with one dictionary for each image, on the CPU: ``boxes`` ``(n, 4)``, xyxy in pixels of the image size in
        ``sizes``, ``scores`` ``(n,)`` and ``labels`` ``(n,)``. Detections are sorted by descending score.
    """
    parameter = next(model.parameters())
    batch, padding_mask = pad(list(images))
    batch = normalise(batch.to(parameter.device), mean, std, parameter.dtype)
    outputs = model(batch, None if padding_mask is None else padding_mask.to(parameter.device))
    return [{name: values.cpu() for name, values in found.items()} for found in model.postprocess(outputs, sizes)]


def category_ids(options: Mapping[str, Any]) -> list[int]:
    """Return a list with the COCO category id of each class, in the order of the labels.

    The ids are 1, 2, 3 and so on, if ``options`` has no ``category_ids``.

    Args:
        options: hyperparameters of a detector, with ``class_names``.
    """
    return list(options.get("category_ids") or range(1, len(options["class_names"]) + 1))
