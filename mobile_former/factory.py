"""Functions that build the published models."""

from pathlib import Path

from mobile_former.errors import InputError
from mobile_former.model import MobileFormer
from mobile_former.variants import VARIANTS
from mobile_former.weights.loading import load_weights
from mobile_former.weights.sources import local_file


def list_models() -> list[str]:
    """Return the list of the published models' names, from the smallest model to the largest."""
    return list(VARIANTS)


def create_model(
    name: str,
    num_classes: int = 1000,
    in_chans: int = 3,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    spatial_dynamic_relu: bool = False,
    pretrained: str | Path | None = None,
    sha256: str | None = None,
) -> MobileFormer:
    """Build a published Mobile-Former classifier.

    Args:
        name: name of the model, one of :func:`list_models`.
        num_classes: number of classes.
        in_chans: number of image channels.
        dropout: dropout rate before the last linear layer, in ``[0, 1)``.
        drop_path: stochastic depth rate of the last block, in ``[0, 1)``. The rate increases linearly with depth.
        spatial_dynamic_relu: True for the spatially aware dynamic ReLU of the detectors' backbone, whose slopes differ
            between positions; False for the same slopes at all positions.
        pretrained: path of a weights file for :func:`mobile_former.load_weights`, ``hf://owner/name`` for a repository
            of the Hugging Face Hub, or an ``https://`` URL; None for random weights.
        sha256: SHA-256 of the file at a URL, see :func:`mobile_former.weights.sources.local_file`.

    Raises:
        InputError: the name is unknown, a number is out of range, or the weights do not fit.
        FileNotFoundError: the weights file does not exist.
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
            raise InputError(
                f"pretrained is {pretrained}: there are no default weights; give a weights file, hf://owner/name, an "
                "https:// URL, or None"
            )
        load_weights(model, local_file(pretrained, sha256))
    return model


def mobile_former_26m(**options) -> MobileFormer:
    """Build Mobile-Former-26M, whose pointwise convolutions are grouped.

    The options are the arguments of :func:`create_model` after ``name``.
    """
    return create_model("mobile_former_26m", **options)


def mobile_former_52m(**options) -> MobileFormer:
    """Build Mobile-Former-52M. The options are the arguments of :func:`create_model` after ``name``."""
    return create_model("mobile_former_52m", **options)


def mobile_former_96m(**options) -> MobileFormer:
    """Build Mobile-Former-96M. The options are the arguments of :func:`create_model` after ``name``."""
    return create_model("mobile_former_96m", **options)


def mobile_former_151m(**options) -> MobileFormer:
    """Build Mobile-Former-151M. The options are the arguments of :func:`create_model` after ``name``."""
    return create_model("mobile_former_151m", **options)


def mobile_former_214m(**options) -> MobileFormer:
    """Build Mobile-Former-214M. The options are the arguments of :func:`create_model` after ``name``."""
    return create_model("mobile_former_214m", **options)


def mobile_former_294m(**options) -> MobileFormer:
    """Build Mobile-Former-294M. The options are the arguments of :func:`create_model` after ``name``."""
    return create_model("mobile_former_294m", **options)


def mobile_former_508m(**options) -> MobileFormer:
    """Build Mobile-Former-508M. The options are the arguments of :func:`create_model` after ``name``."""
    return create_model("mobile_former_508m", **options)
