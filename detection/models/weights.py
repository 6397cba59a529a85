"""Load weights into a detector from a file that belongs to a detector or a classifier."""

import logging
from pathlib import Path

from torch import nn

from detection.models.backbone import load_pretrained_backbone
from mobile_former.errors import InputError
from mobile_former.weights.files import read_weights
from mobile_former.weights.sources import local_file

_logger = logging.getLogger(__name__)

_CLASS_LAYERS = ("classify", "classify_many", "class_labels_classifier")


def load_detector_weights(detector: nn.Module, path: str | Path) -> None:
    """Load a weights file into a detector, in place.

    From the file of a classifier (by the paper's authors or this project), only the backbone is loaded. The file of a
    detector must come from a detector of the same name and options, and is loaded completely. There is one exception:
    the number of classes and ``focal`` may differ. In this case, the layers that predict classes keep their initial
    weights, and a warning is logged.

    Args:
        detector: a detector built by :func:`detection.create_detector`.
        path: weights file (``.pth``, ``.pth.tar``, ``.ckpt`` or ``.safetensors``), or a source of one as in
            :func:`mobile_former.load_weights`.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file is not a weights file, or belongs to another model.
    """
    path = local_file(path)
    state, _ = read_weights(path)
    expected = detector.state_dict()
    # A detector's file has entries that are neither `backbone.…` nor `classifier.…`.
    if not {name.split(".")[0] for name in state} & ({name.split(".")[0] for name in expected} - {"backbone"}):
        load_pretrained_backbone(detector.backbone, detector.backbone_name, path)
        return
    differing = {name for name in state.keys() & expected.keys() if state[name].shape != expected[name].shape}
    of_classes = {name for name in expected if name.rsplit(".", 2)[-2] in _CLASS_LAYERS}
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    misshapen = sorted(differing - of_classes)
    if missing or unknown or misshapen:
        problems = [
            (f"it lacks {len(missing)}", missing),
            (f"it has {len(unknown)} unknown", unknown),
            (f"it has {len(misshapen)} differently shaped", misshapen),
        ]
        raise InputError(
            f"{path} does not fit this detector: "
            + "; ".join(f"{problem} entries, first {names[0]!r}" for problem, names in problems if names)
            + ". Give the weights of a detector of the same name and options, or of a classifier of its backbone, "
            + detector.backbone_name
        )
    if differing:
        _logger.warning(
            "%s has another number of classes or another focal option: loaded everything except the layers that "
            "predict classes, which keep their initial weights",
            path,
        )
    detector.load_state_dict(state | {name: expected[name] for name in differing})
    _logger.info("loaded the weights in %s", path)
