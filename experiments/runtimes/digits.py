"""The images and the classifiers that the runtimes are compared on."""

import numpy as np
import torch
import torch.nn.functional as F

import mobile_former
from classification.data.digits import Digits

MEAN = STD = 127.5  # of pixel values


def digit_images(split: str, side: int) -> torch.Tensor:
    """Return the embedded digits as images ``(N, 3, side, side)`` in -1..1."""
    digits = Digits(split)
    planes = torch.from_numpy(np.stack([digits.read(index) for index in range(len(digits))])).permute(0, 3, 1, 2)
    images = F.interpolate(planes.float(), (side, side), mode="bilinear", antialias=True)
    return (images - MEAN) / STD


def spread_classifier(name: str) -> torch.nn.Module:
    """Build a classifier with random weights that give different images different classes, in evaluation mode."""
    torch.manual_seed(0)
    model = mobile_former.create_model(name, 10)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    return model.eval()
