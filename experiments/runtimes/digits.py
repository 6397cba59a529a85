"""Fit classifiers to the embedded digits within seconds, so that equal classes in two runtimes mean something."""

import numpy as np
import torch
import torch.nn.functional as F

import mobile_former
from classification.data.digits import Digits

MEAN = STD = 127.5  # of pixel values


def digit_images(split: str, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the embedded digits as images ``(N, 3, side, side)`` in -1..1, and their labels ``(N,)``."""
    digits = Digits(split)
    planes = torch.from_numpy(np.stack([digits.read(index) for index in range(len(digits))])).permute(0, 3, 1, 2)
    images = F.interpolate(planes.float(), (side, side), mode="bilinear", antialias=True)
    return (images - MEAN) / STD, torch.as_tensor(digits.labels)


@torch.no_grad()
def fit_to_digits(name: str, *, side: int = 32) -> torch.nn.Module:
    """Build a classifier for the embedded digits without gradient steps. Return it in evaluation mode.

    The statistics of BatchNorm are those of the training images. The last linear layer is fitted to the features of the
    other, random layers by ridge regression.

    Args:
        name: name of the model.
        side: height and width of the training images in pixels.
    """
    torch.manual_seed(0)
    model = mobile_former.create_model(name, 10)
    images, labels = digit_images("train", side)
    batches = images[torch.randperm(len(images))].split(128)
    for batch in batches[:10]:
        model(batch)
    model.eval()
    features: list[torch.Tensor] = []
    layer = model.classifier.logits
    handle = layer.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    for batch in images.split(128):
        model(batch)
    handle.remove()
    x, y = torch.cat(features).double(), F.one_hot(labels, 10).double()
    mean = x.mean(0)
    scatter = (x - mean).T @ (x - mean)
    scatter += 1e-2 * scatter.trace() / len(scatter) * torch.eye(len(scatter))
    weight = torch.linalg.solve(scatter, (x - mean).T @ y)
    layer.weight.copy_(10 * weight.T)
    layer.bias.copy_(10 * (y.mean(0) - mean @ weight))
    return model
