"""The LightningDataModule of classification."""

import logging
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from albumentations.core.serialization import Serializable
from torch.utils.data import DataLoader

from classification.data.dataset import Source, collate, make_sample
from classification.data.image_folder import ImageFolder, list_classes
from classification.data.shards import (
    BatchDraw,
    ShardBatches,
    ShardIndex,
    ShardSampler,
    ShardSource,
    collate_shards,
    holds_shards,
    is_url,
)
from classification.data.transforms import custom_transform, eval_transform, train_transform
from classification.digits import Digits
from mobile_former.errors import InputError
from mobile_former.model import MIN_SIZE
from mobile_former.training.data.dataset import EvaluationImages, TrainingImages
from mobile_former.training.data.module import ImageData, over_processes
from mobile_former.training.data.sampler import rank_and_world_size
from mobile_former.training.run.figures import image_sheet
from mobile_former.weights.usage import IMAGENET_MEAN, IMAGENET_STD

_logger = logging.getLogger(__name__)


class ClassificationData(ImageData):
    """Labelled images for training and evaluation.

    Args:
        dataset: "folder" (train/<class>/* and val/<class>/* under root), "shards" (written by classification.shard)
            or "digits" (embedded).
        root: the folder with train/ and val/; of shards also a URL, or pipe: and a command that prints the file whose
            name takes the place of {} in it.
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
        skip_damaged_shards: train on other samples in place of those of a shard that is missing or damaged, which is
            an error otherwise.

    Raises:
        InputError: a number out of range, "folder" or "shards" without root, or "folder" with the root of shards.
    """

    def __init__(
        self,
        dataset: Literal["folder", "shards", "digits"] = "folder",
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
        skip_damaged_shards: bool = False,
    ):
        super().__init__(
            root=None if dataset == "digits" or root is None else Path(root),
            batch_size=batch_size,
            num_workers=num_workers,
            std=std,
            collate=collate_shards if dataset == "shards" else collate,
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
        if dataset == "shards" and root is None:
            raise InputError("no shards: give --data.root, the folder or URL that python -m classification.shard wrote")
        if dataset == "folder" and holds_shards(root):
            raise InputError(f"--data.root {root} is a place of shards: give --data.dataset shards as well")
        if skip_damaged_shards and dataset != "shards":
            raise InputError(f"--data.skip_damaged_shards goes with --data.dataset shards, and this is {dataset!r}")
        # What evaluation needs travels in the checkpoint, as plain types.
        self.save_hyperparameters(
            {
                "dataset": dataset,
                "root": root if root is None or is_url(root) else os.path.abspath(root),
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
        self.skip_damaged_shards = skip_damaged_shards
        self.skipped_shards: set[str] = set()  # messages about those in whose place others were read
        self.lanes: int | None = None  # those of the resumed run, see ShardBatches
        self._class_names: list[str] | None = None

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of their labels; those of the training images, unless set before."""
        if self._class_names is None:
            if self.hparams.dataset == "digits":
                self._class_names = list(Digits.class_names)
            elif self.hparams.dataset == "shards":
                self._class_names = list(self.shard_index.class_names)
            else:
                self._class_names = list_classes(self.root, "train")
        return self._class_names

    @class_names.setter
    def class_names(self, names: list[str]) -> None:
        self._class_names = list(names)

    @property
    def dataset_name(self) -> str:
        """A short name for tables and folders."""
        if self.hparams.dataset == "digits":
            return "digits"
        if is_url(self.hparams.root):
            # The last name in it: of a folder or bucket, or else the host's.
            return (re.findall(r"\w[\w.-]*", self.hparams.root.split("{}")[0]) or ["shards"])[-1]
        return self.root.resolve().name

    @cached_property
    def shard_index(self) -> ShardIndex:
        """What the index of the shards says."""
        return ShardIndex.read(self.hparams.root)

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
            self.test_split = "test" if self._has_test() else "val"
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

    def skipped_counts(self) -> dict[str, int]:
        """What training went on without; all processes have to ask."""
        counts = super().skipped_counts()
        if self.hparams.dataset == "shards":
            counts["skipped_shards"] = len(over_processes(self.skipped_shards))
        return counts

    def train_dataloader(self) -> DataLoader:
        """Batches of augmented images; from shards as :class:`ShardBatches` says."""
        if self.hparams.dataset != "shards":
            return super().train_dataloader()
        first = BatchDraw(self.first_batch, self.first_epoch)
        return self._shard_loader(self.train_set, self._train_lanes, first)

    def on_before_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        """Tell of images and shards that could not be read."""
        for damage in set(batch.pop("damages", ())) - self.skipped_shards:
            self.skipped_shards.add(damage)
            _logger.warning("%s; training goes on with the samples of others in its place", damage)
        return super().on_before_batch_transfer(batch, dataloader_idx)

    def state_dict(self) -> dict:
        """Where the run that is saved goes on, and on what the order of the batches depends."""
        lanes = {"lanes": self._train_lanes} if self.hparams.dataset == "shards" else {}
        return super().state_dict() | lanes

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on in the order of before, also with another number of workers."""
        super().load_state_dict(state_dict)
        self.lanes = state_dict.get("lanes")

    @property
    def _train_lanes(self) -> int:
        return self.lanes or max(1, self.num_workers)

    def _evaluation_loader(self, dataset: EvaluationImages) -> DataLoader:
        if self.hparams.dataset != "shards":
            return super()._evaluation_loader(dataset)
        return self._shard_loader(dataset, max(1, self.num_workers), BatchDraw(0, 0))

    def _shard_loader(self, dataset: TrainingImages | EvaluationImages, lanes: int, first: BatchDraw) -> DataLoader:
        rank, world_size = rank_and_world_size()
        size = self.hparams.batch_size
        batches = ShardBatches(dataset, batch_size=size, lanes=lanes, rank=rank, world_size=world_size)
        return self.loader(batches, batch_size=None, sampler=ShardSampler(len(batches), first))

    def _has_test(self) -> bool:
        if self.hparams.dataset == "shards":
            return "test" in self.shard_index.splits
        return self.root is not None and (self.root / "test").is_dir()

    def _source(self, split: str) -> Source:
        if self.hparams.dataset == "digits":
            return Digits("train" if split == "train" else "val")
        if self.hparams.dataset == "shards":
            # An evaluation on other images would give another score.
            skip = self.skip_damaged_shards and split == "train"
            return ShardSource(self.shard_index, split, self.class_names, skip_damaged=skip)
        return ImageFolder(self.root, split, self.class_names)
