"""Build a detector by its name."""

from pathlib import Path

from detection.e2e_mf import E2EMobileFormer
from detection.variants import E2E_VARIANTS
from detection.weights import load_detector_weights
from mobile_former.errors import InputError, nearest


def list_detectors() -> list[str]:
    """Names of the detectors, the smallest first."""
    return list(E2E_VARIANTS)


def create_detector(name: str, num_classes: int, pretrained: str | Path | None = None, **options) -> E2EMobileFormer:
    """Build a detector.

    Args:
        name: one of :func:`list_detectors`.
        num_classes: number of classes K.
        pretrained: a weights file, read by :func:`detection.load_detector_weights`.
        **options: of :class:`detection.e2e_mf.E2EMobileFormer`: what helps it converge.

    Raises:
        InputError: unknown name, no class, options that do not go together, or a weights file that does not fit.
        FileNotFoundError: no such weights file.
    """
    if name not in E2E_VARIANTS:
        raise InputError(f"no detector is named {name!r}: {nearest(name, E2E_VARIANTS)}")
    if num_classes < 1:
        raise InputError(f"num_classes is {num_classes}: a detector needs at least 1")
    model = E2EMobileFormer(E2E_VARIANTS[name], num_classes, **options)
    if pretrained is not None:
        load_detector_weights(model, pretrained)
    return model
