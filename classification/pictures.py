"""Draw a grid of images, each with the class that a classifier predicts."""

from pathlib import Path

import torch
from torch import nn

from classification.data.module import ClassificationData
from mobile_former.training.data.dataset import indices_to_look_at
from mobile_former.training.data.images import normalise
from mobile_former.training.run.figures import RIGHT, WRONG, image_sheet


def draw_predictions(model: nn.Module, data: ClassificationData, path: Path, most: int = 24) -> None:
    """Draw a grid of validation images with captions: green for right predictions, orange for wrong ones.

    Args:
        model: model that maps images ``(B, 3, H, W)`` to logits. It is set to evaluation mode.
        data: data module that is set up for validation.
        path: path of the image file to write.
        most: maximum number of images. They are spaced evenly over the validation set. If the set consists of tar
            shards, only images of the first shards are drawn, because reading all shards takes too long.
    """
    dataset = data.val_set
    samples = [dataset[index] for index in indices_to_look_at(dataset.source, most)]
    parameter = next(model.parameters())
    images = torch.stack([sample["image"] for sample in samples])
    model.eval()
    with torch.inference_mode():
        normalised = normalise(images.to(parameter.device), data.hparams.mean, data.hparams.std, parameter.dtype)
        probabilities = model(normalised).float().softmax(1).cpu()
    names, captions, colours = data.class_names, [], []
    for sample, scores in zip(samples, probabilities, strict=True):
        predicted, label = int(scores.argmax()), sample["label"]
        right = predicted == label
        captions.append(f"{names[predicted]}  {scores[predicted]:.0%}" + ("" if right else f"\nis {names[label]}"))
        colours.append(RIGHT if right else WRONG)
    image_sheet(
        list(images.permute(0, 2, 3, 1).numpy()),
        captions,
        path,
        title="validation images and predictions (mistakes name the true class)",
        colours=colours,
    )
