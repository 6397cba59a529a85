"""Start a detector from weights: of a classifier with its backbone, or of a detector."""

import logging
from pathlib import Path

from torch import nn

from detection.models.backbone import load_pretrained_backbone
from mobile_former.errors import InputError
from mobile_former.weights.files import read_weights

_logger = logging.getLogger(__name__)

_BY_CLASS = ("classify", "class_labels_classifier")  # names of the layers that predict classes


def load_detector_weights(detector: nn.Module, path: str | Path) -> None:
    """Load a weights file into a detector, in place.

    Of a classifier (the authors' file, or this project's) the backbone is taken. Of a detector of the same name and
    options everything is taken, less what predicts classes where their number differs, which a logged warning says.

    Args:
        detector: as :func:`detection.create_detector` builds it.
        path: the file: ``.pth``, ``.pth.tar``, ``.ckpt`` or ``.safetensors``.

    Raises:
        FileNotFoundError: no such file.
        InputError: not a weights file, or one of another model.
    """
    path = Path(path)
    state, _ = read_weights(path)
    expected = detector.state_dict()
    # A detector has more than a backbone and `classifier.…`.
    if not {name.split(".")[0] for name in state} & ({name.split(".")[0] for name in expected} - {"backbone"}):
        load_pretrained_backbone(detector.backbone, detector.backbone_name, path)
        return
    differing = {name for name in state.keys() & expected.keys() if state[name].shape != expected[name].shape}
    by_class = {name for name in expected if name.rsplit(".", 2)[-2] in _BY_CLASS}
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unknown or differing - by_class:
        told = [
            (f"it lacks {len(missing)}", missing),
            (f"it has {len(unknown)} unknown", unknown),
            ("shapes differ", sorted(differing - by_class)),
        ]
        raise InputError(
            f"{path} does not fit this detector: "
            + "; ".join(f"{what} entries, first {names[0]!r}" for what, names in told if names)
            + ". Give the weights of a detector of the same name and options, or of a classifier with its backbone, "
            + detector.backbone_name
        )
    if differing:
        _logger.warning(
            "%s tells other classes, or tells them in another way (focal): loaded all but what predicts classes, which "
            "starts afresh",
            path,
        )
    detector.load_state_dict(state | {name: expected[name] for name in differing})
    _logger.info("loaded the weights in %s", path)
