"""The LightningDataModule of classification."""

import os
from pathlib import Path
from typing import Literal

import torch
from albumentations.core.serialization import Serializable

from classification.dataset import Source, collate, make_sample
from classification.digits import Digits
from classification.image_folder import ImageFolder, list_classes
from classification.transforms import custom_transform, eval_transform, train_transform
from mobile_former.errors import InputError
from mobile_former.model import MIN_SIZE
from mobile_former.training.data import ImageData
from mobile_former.training.dataset import EvaluationImages, TrainingImages
from mobile_former.training.figures import image_sheet
from mobile_former.training.images import IMAGENET_MEAN, IMAGENET_STD


class ClassificationData(ImageData):
    """Labelled images for training and evaluation.

    Args:
        dataset: "folder" (train/<class>/* and val/<class>/* under root) or "digits" (embedded).
        root: the folder with train/ and val/.
        image_size: side in pixels of the square that the model sees.
        batch_size: images in a batch of one process.
        num_workers: loading processes; default: one for each core but one, at most 16, and none for digits.
        crop_scale: smallest and largest share of the area that a random crop takes.
        flip: probability of a horizontal flip.
        rand_augment: whether to apply RandAugment (2 operations, magnitude 9, standard deviation 0.5).
        random_erasing: probability that noise replaces a rectangle.
        train_transforms: albumentations transforms in place of crop, flip, RandAugment and erasing; resizing to
            image_size, where they give another size, follows.
        crop_fraction: share of the shorter side that evaluation sees.
        mean: of the channels, in 0..1.
        std: of the channels, in 0..1.

    Raises:
        InputError: a number out of range, or "folder" without root.
    """

    def __init__(
        self,
        dataset: Literal["folder", "digits"] = "folder",
        root: str | None = None,
        image_size: int = 224,
        batch_size: int = 64,
        num_workers: int | None = None,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        flip: float = 0.5,
        rand_augment: bool = False,
        random_erasing: float = 0.0,
        train_transforms: list[Serializable] | None = None,
        crop_fraction: float = 0.875,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ):
        super().__init__(
            root=None if dataset == "digits" or root is None else Path(root),
            batch_size=batch_size,
            num_workers=num_workers,
            std=std,
            collate=collate,
        )
        if image_size < MIN_SIZE:
            raise InputError(f"--data.image_size is {image_size}: the model takes images from {MIN_SIZE} pixels up")
        if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise InputError(f"--data.crop_scale is {list(crop_scale)}: give two shares, 0 < smallest <= largest <= 1")
        for name, value in (("flip", flip), ("random_erasing", random_erasing)):
            if not 0 <= value <= 1:
                raise InputError(f"--data.{name} is {value}: give a probability from 0 to 1")
        if not 0 < crop_fraction <= 1:
            raise InputError(f"--data.crop_fraction is {crop_fraction}: give a share above 0, at most 1")
        if dataset == "folder" and root is None:
            raise InputError(
                "no images: give --data.root DIR, a folder with train/<class>/* and val/<class>/* "
                "(classification/configs/finetune.yaml is made for it)"
            )
        # What evaluation needs travels in the checkpoint, as plain types.
        self.save_hyperparameters(
            {
                "dataset": dataset,
                "root": None if root is None else os.path.abspath(root),
                "image_size": image_size,
                "batch_size": batch_size,
                "crop_fraction": crop_fraction,
                "mean": list(mean),
                "std": list(std),
            },
            logger=False,
        )
        if train_transforms is None:
            self.train_transforms = train_transform(
                image_size,
                crop_scale=crop_scale,
                flip=flip,
                rand_augment=rand_augment,
                random_erasing=random_erasing,
            )
        else:
            self.train_transforms = custom_transform(train_transforms, image_size)
        self.eval_transforms = eval_transform(image_size, crop_fraction)
        self._class_names: list[str] | None = None

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of their labels; those of the training images, unless set before."""
        if self._class_names is None:
            digits = self.hparams.dataset == "digits"
            self._class_names = list(Digits.class_names) if digits else list_classes(self.root, "train")
        return self._class_names

    @class_names.setter
    def class_names(self, names: list[str]) -> None:
        self._class_names = list(names)

    @property
    def dataset_name(self) -> str:
        """A short name for tables and folders."""
        return "digits" if self.hparams.dataset == "digits" else self.root.resolve().name

    def setup(self, stage: str) -> None:
        """List the images that a stage (``"fit"``, ``"validate"`` or ``"test"``) needs."""
        if stage == "fit":
            # The process's seed, which seed_everything has set before.
            self.train_set = TrainingImages(
                self._source("train"), self.train_transforms, make_sample, torch.initial_seed()
            )
        if stage in {"fit", "validate"}:
            self.val_set = EvaluationImages(self._source("val"), self.eval_transforms, make_sample)
        if stage == "test":
            self.test_split = "test" if self.root is not None and (self.root / "test").is_dir() else "val"
            self.test_set = EvaluationImages(self._source(self.test_split), self.eval_transforms, make_sample)

    def describe(self) -> str:
        """What is loaded, in a line."""
        size = self.hparams.image_size
        return (
            f"{self.dataset_name}: {len(self.train_set)} training and {len(self.val_set)} validation images of "
            f"{len(self.class_names)} classes, {size}x{size} pixels, batches of {self.hparams.batch_size}"
        )

    def draw_augmented(self, path: Path) -> None:
        """Write a sheet of training images as the model sees them."""
        samples = self.samples_to_draw(24)
        image_sheet(
            [sample["image"].permute(1, 2, 0).numpy() for sample in samples],
            [self.class_names[sample["label"]] for sample in samples],
            path,
            title="training images as the model sees them",
        )

    def _source(self, split: str) -> Source:
        if self.hparams.dataset == "digits":
            return Digits("train" if split == "train" else "val")
        return ImageFolder(self.root, split, self.class_names)
