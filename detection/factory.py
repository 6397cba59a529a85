"""Build a detector by its name."""

from detection.e2e_mf import E2EMobileFormer
from detection.variants import E2E_VARIANTS
from mobile_former.errors import InputError, nearest


def list_detectors() -> list[str]:
    """Names of the detectors, the smallest first."""
    return list(E2E_VARIANTS)


def create_detector(name: str, num_classes: int) -> E2EMobileFormer:
    """Build a detector.

    Args:
        name: one of :func:`list_detectors`.
        num_classes: number of classes K.

    Raises:
        InputError: unknown name, or no class.
    """
    if name not in E2E_VARIANTS:
        raise InputError(f"no detector is named {name!r}: {nearest(name, E2E_VARIANTS)}")
    if num_classes < 1:
        raise InputError(f"num_classes is {num_classes}: a detector needs at least 1")
    return E2EMobileFormer(E2E_VARIANTS[name], num_classes)
