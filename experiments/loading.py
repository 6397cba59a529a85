"""Compare how fast one core loads images of ImageNet's size with this project's image reader and with Pillow.

    python -m experiments.loading                     # photographs from scikit-learn and matplotlib, at 500×375
    python -m experiments.loading --folder DIR        # the images of a folder, at most 200

The timing covers all steps from files to a batch of normalised float32 tensors:

- "ours" loads images as this project does in training: `read_image`, the transforms, `to_planes`, batching of uint8
  images, and `normalise` on the batch. Training on a GPU calls `normalise` on the GPU.
- "Pillow" loads images as most training scripts do: ``np.asarray(Image.open(path).convert("RGB"))``, the same
  transforms with the same random numbers, albumentations' ``Normalize`` and ``ToTensorV2``, and batching of float
  images.

"ours" and "Pillow" take turns in one process, so other processes on the machine slow both. Times are medians over the
rounds. The command prints the median ratio of the two speeds, once for all steps and once without batching.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import matplotlib.cbook
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images
from torch.utils.data import default_collate

from classification.data.transforms import train_transform
from mobile_former.training.data.images import find_images, normalise, read_image, to_planes
from mobile_former.weights.usage import IMAGENET_MEAN, IMAGENET_STD

BATCH = 12

Stage = Callable[[Any], Any]


@dataclass
class Side:
    """The steps of one way to load images: this project's, or the usual one with Pillow.

    Each step is a function that is timed separately.

    Attributes:
        image: the steps for a single image, as a dictionary from name to function in the order of execution.
        batch: the steps for a batch, as a dictionary from name to function in the order of execution.
    """

    image: dict[str, Stage]
    batch: dict[str, Stage]


def main() -> None:
    """Time image loading by this project and by Pillow for each set of augmentations, and print the times."""
    parser = argparse.ArgumentParser(prog="python -m experiments.loading", description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="folder of images to load (default: sample photographs, 500x375)")
    parser.add_argument("--recipe", choices=["basic", "full"], nargs="+", default=["basic", "full"])
    parser.add_argument("--rounds", type=int, default=30, help="how often each side loads all images (default: 30)")
    options = parser.parse_args()

    # one core, as for a worker of a DataLoader
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        paths = find_images(options.folder).images if options.folder else write_samples(Path(scratch))
        if not paths:
            parser.error(f"--folder {options.folder} has no images")
        paths = paths[:: len(paths) // 200 + 1]
        size = sum(os.path.getsize(path) for path in paths) / len(paths)
        print(f"{len(paths)} images of {size / 1000:.0f} kB on average, {options.rounds} rounds, one core\n")
        for recipe in options.recipe:
            report(recipe, paths, options.rounds)


def sides(recipe: str) -> dict[str, Side]:
    """Return the steps of image loading by this project ("ours") and by Pillow.

    Args:
        recipe: augmentation, "basic" (crop and flip) or "full" (also RandAugment and random erasing).

    Returns:
        Dictionary with the keys "ours" and "Pillow", and with a :class:`Side` for each.
    """

    def transforms(crop: A.BasicTransform | None) -> dict[str, Stage]:
        """Return a dictionary from the name of each training transform to a function that applies it to an image.

        The random generators of the transforms are seeded with the same number in every call.

        Args:
            crop: random crop that replaces the first of the project's transforms. None: nothing is replaced.
        """
        full = {"rand_augment": True, "random_erasing": 0.2} if recipe == "full" else {}
        compose = train_transform(224, **full)
        chain = A.Compose([crop or compose.transforms[0], *compose.transforms[1:]])
        chain.set_random_state(np.random.default_rng(0), random.Random(0))
        return {type(step).__name__: lambda image, step=step: step(image=image)["image"] for step in chain.transforms}

    to_float = A.Compose([A.Normalize(IMAGENET_MEAN, IMAGENET_STD), ToTensorV2()])
    ours = Side(
        {"decode": read_image, **transforms(None), "to planes": to_planes},
        {"batch": default_collate, "normalise": lambda batch: normalise(batch, IMAGENET_MEAN, IMAGENET_STD)},
    )
    pillow = Side(
        {
            "decode": lambda path: np.asarray(Image.open(path).convert("RGB")),
            **transforms(A.RandomResizedCrop((224, 224))),
            "normalise": lambda image: to_float(image=image)["image"],
        },
        {"batch": default_collate},
    )
    return {"ours": ours, "Pillow": pillow}


def report(recipe: str, paths: list[Path], rounds: int) -> None:
    """Time image loading by this project and by Pillow, and print the time per image, speed ratio and time per step.

    Args:
        recipe: augmentation, see :func:`sides`.
        paths: paths of the images.
        rounds: number of times that each of the two loads all images. An untimed warm-up round precedes them.
    """
    ways = sides(recipe)
    times = {name: [] for name in ways}  # milliseconds of each stage, one dictionary per round
    for _ in range(rounds + 1):
        for name, side in ways.items():
            times[name].append(stage_times(side, paths))
    for rows in times.values():
        del rows[0]  # warm-up: caches and lazy imports

    def ratio(without: str | None = None) -> str:
        totals = {
            name: [sum(value for stage, value in row.items() if stage != without) for row in rows]
            for name, rows in times.items()
        }
        ratios = [theirs / ours for ours, theirs in zip(totals["ours"], totals["Pillow"], strict=True)]
        return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"

    print(f"{recipe}: ours is {ratio()} times as fast, without batching {ratio(without='batch')}")
    for name, rows in times.items():
        total = statistics.median(sum(row.values()) for row in rows)
        print(f"  {name:<30}{total:7.3f} ms per image, {1000 / total:5.0f} images per second")
        for stage in rows[0]:
            share = statistics.median(row[stage] for row in rows)
            print(f"    {stage:<28}{share:7.3f} ms {share / total:6.0%}")
    print()


def stage_times(side: Side, paths: list[Path]) -> dict[str, float]:
    """Load every image once, in batches, and time each step of ``side``.

    Returns:
        Dictionary from the name of a step to its mean time per image in milliseconds.
    """
    seconds = dict.fromkeys([*side.image, *side.batch], 0.0)

    def timed(name: str, stage: Stage, value):
        start = time.perf_counter()
        value = stage(value)
        seconds[name] += time.perf_counter() - start
        return value

    for first in range(0, len(paths), BATCH):
        images = []
        for value in paths[first : first + BATCH]:
            for name, stage in side.image.items():
                value = timed(name, stage, value)
            images.append(value)
        for name, stage in side.batch.items():
            images = timed(name, stage, images)
    return {name: 1000 * total / len(paths) for name, total in seconds.items()}


def write_samples(folder: Path) -> list[Path]:
    """Write twelve JPEG files, and return a list of their paths.

    The size of the images (500×375 pixels), the chroma subsampling (4:2:0) and the file size (about 75 kB) are similar
    to those of ImageNet. The images are crops of sample photographs from scikit-learn and matplotlib.
    """
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        photographs = [*load_sample_images().images, np.asarray(Image.open(file).convert("RGB"))]
    paths = []
    for index, photograph in enumerate(photographs):
        for zoom in (1.0, 0.9, 0.8, 0.7):
            image = Image.fromarray(photograph)
            image = ImageOps.fit(image, (500, 375), Image.Resampling.LANCZOS, bleed=(1 - zoom) / 2)
            paths.append(folder / f"{index}_{zoom}.jpg")
            image.save(paths[-1], quality=95, subsampling="4:2:0")
    return paths


if __name__ == "__main__":
    main()
