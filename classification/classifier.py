"""Build the classifier that the options of a run describe. This module does not import Lightning."""

from torch import nn

import mobile_former
from classification.baselines import create_baseline
from mobile_former.ablation import ablate
from mobile_former.errors import InputError
from mobile_former.training.baselines import is_baseline


def create_classifier(
    name: str,
    num_classes: int,
    *,
    ablation: str | None = None,
    pretrained: str | None = None,
    checkpoint_gradients: bool = False,
    image_size: int | None = None,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> nn.Module:
    """Build a Mobile-Former, or a classifier of timm or Hugging Face Transformers.

    The arguments are those of :class:`classification.module.ClassificationModule`.

    Returns:
        A module that maps normalised images ``(B, 3, H, W)`` to logits ``(B, num_classes)``.

    Raises:
        InputError: the model is unknown, a value is out of range, an option does not apply to the model, or a weights
            file does not fit.
        FileNotFoundError: the weights file does not exist.
    """
    options = {"num_classes": num_classes, "dropout": dropout, "drop_path": drop_path}
    if is_baseline(name):
        for option, given in (("ablation", ablation is not None), ("checkpoint_gradients", checkpoint_gradients)):
            if given:
                raise InputError(f"--model.{option} applies only to Mobile-Former, not to {name}: leave it out")
        return create_baseline(name, pretrained=pretrained, image_size=image_size, **options)
    model = mobile_former.create_model(name, **options)
    if ablation is not None:
        ablate(model, ablation)
    if pretrained is not None:
        mobile_former.load_weights(model, pretrained)
    if checkpoint_gradients:
        mobile_former.checkpoint_gradients(model)
    return model
