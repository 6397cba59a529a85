"""Build a published model by its name."""

from pathlib import Path

from mobile_former.errors import InputError
from mobile_former.model import MobileFormer
from mobile_former.variants import VARIANTS
from mobile_former.weights.loading import load_weights


def list_models() -> list[str]:
    """Names of the published models, the smallest first."""
    return list(VARIANTS)


def create_model(
    name: str,
    num_classes: int = 1000,
    in_chans: int = 3,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    spatial_dynamic_relu: bool = False,
    pretrained: str | Path | None = None,
) -> MobileFormer:
    """Build a published model.

    Args:
        name: one of :func:`list_models`.
        num_classes: number of logits.
        in_chans: channels of an image.
        dropout: rate before the last linear.
        drop_path: stochastic depth's rate at the last block.
        spatial_dynamic_relu: spatially aware dynamic ReLU, as in the detectors' backbone.
        pretrained: a weights file, read by :func:`mobile_former.load_weights`.

    Raises:
        InputError: unknown name, a number out of range, or a weights file that does not fit.
        FileNotFoundError: no such weights file.
    """
    model = MobileFormer(
        name,
        num_classes=num_classes,
        in_chans=in_chans,
        dropout=dropout,
        drop_path=drop_path,
        spatial_dynamic_relu=spatial_dynamic_relu,
    )
    if pretrained is not None:
        if isinstance(pretrained, bool):
            raise InputError(f"pretrained is {pretrained}: nothing is downloaded; give a weights file, or None")
        load_weights(model, pretrained)
    return model


def mobile_former_26m(**options) -> MobileFormer:
    """Mobile-Former-26M (grouped pointwise convolutions); options as in :func:`create_model`."""
    return create_model("mobile_former_26m", **options)


def mobile_former_52m(**options) -> MobileFormer:
    """Mobile-Former-52M; options as in :func:`create_model`."""
    return create_model("mobile_former_52m", **options)


def mobile_former_96m(**options) -> MobileFormer:
    """Mobile-Former-96M; options as in :func:`create_model`."""
    return create_model("mobile_former_96m", **options)


def mobile_former_151m(**options) -> MobileFormer:
    """Mobile-Former-151M; options as in :func:`create_model`."""
    return create_model("mobile_former_151m", **options)


def mobile_former_214m(**options) -> MobileFormer:
    """Mobile-Former-214M; options as in :func:`create_model`."""
    return create_model("mobile_former_214m", **options)


def mobile_former_294m(**options) -> MobileFormer:
    """Mobile-Former-294M; options as in :func:`create_model`."""
    return create_model("mobile_former_294m", **options)


def mobile_former_508m(**options) -> MobileFormer:
    """Mobile-Former-508M; options as in :func:`create_model`."""
    return create_model("mobile_former_508m", **options)
