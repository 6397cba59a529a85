"""The LightningDataModule of image classification."""

import logging
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Literal

import pytorch_lightning  # noqa: F401  # before albumentations, see mobile_former.training.data.digits

# isort: split
import numpy as np
import torch
from albumentations.core.serialization import Serializable
from torch.utils.data import DataLoader

from classification.data.dataset import Source, collate, make_sample
from classification.data.digits import Digits
from classification.data.image_folder import LAYOUT, Labelled, LabelledImages, abridged
from classification.data.layouts import Layout, find_layout
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
from classification.data.tables import Columns
from classification.data.transforms import TransformOptions
from mobile_former.errors import InputError
from mobile_former.training.data.dataset import EvaluationImages, TrainingImages
from mobile_former.training.data.module import ImageData, over_processes
from mobile_former.training.data.sampler import EpochSampler, WeightedEpochSampler, rank_and_world_size
from mobile_former.training.data.splits import HoldOut
from mobile_former.training.run.figures import image_sheet
from mobile_former.weights.usage import IMAGENET_MEAN, IMAGENET_STD

_logger = logging.getLogger(__name__)


class ClassificationData(ImageData):
    """Labelled images for training and evaluation.

    Args:
        dataset: "folder" (images in the folder ``root``), "shards" (tar files written by the command
            classification.shard) or "digits" (scikit-learn's handwritten digits, which need no ``root``).
        root: folder of the images or shards. The layout of the images is recognised: one folder per class, with or
            without a folder per split, or a table of paths and labels. ``root`` can also be the path of the table. For
            shards, ``root`` can be a URL, or "pipe:" followed by a shell command that prints a file. In the URL or
            command, {} is replaced by the name of the file to read. If there is no {}, a slash and the name are
            appended.
        val_fraction: fraction of the training images that is held out for validation. Default: 0.2 if ``root`` has no
            validation images, otherwise 0.
        folds: number of parts for cross-validation. One part is held out for validation, see ``fold``.
        fold: number of the part that is held out, from 1 to the value of ``folds``.
        split_seed: random seed for choosing the images that are held out. Default: the seed of the run.
        groups: path of a CSV file with the columns "image" and "group", or name of a column of the table. Either all
            images of a group are held out, or none. Default: groups.csv in ``root`` or the column "group" of the table,
            if one of them exists.
        image_column: name of the table's column of image paths. Default: a usual name, such as file_name or path.
        label_column: name of the table's column of class names. Default: a usual name, such as label or class.
        keep_empty_classes: whether the model also has an output for each class that has no image.
        image_size: side of the square input in pixels.
        batch_size: number of images per batch in each process.
        num_workers: number of processes that load data. Default: number of cores minus one (1 to 16); 0 for digits.
        crop_scale: smallest and largest fraction of the image area that a random crop covers.
        flip: probability of a horizontal flip.
        rand_augment: whether to apply RandAugment (2 operations, magnitude 9, standard deviation 0.5).
        random_erasing: probability that noise replaces a rectangle of the image.
        class_balance: degree to which an epoch balances the classes, from 0 to 1. 0: an epoch has every image once.
            Above 0, images are drawn at random, some repeatedly, so that the frequency of a class with n images is
            proportional to n to the power of 1 - ``class_balance``. 1: all classes are equally frequent. Not for
            shards.
        train_transforms: albumentations transforms that replace crop, flip, RandAugment and erasing. The transformed
            image is resized if its size is not ``image_size``. Default: crop, flip, RandAugment and erasing.
        crop_fraction: fraction of the shorter side that the centre crop of evaluation covers.
        mean: mean of each channel that normalisation subtracts, for pixel values in [0, 1].
        std: standard deviation of each channel that normalisation divides by, for pixel values in [0, 1].
        skip_damaged_shards: whether training replaces the samples of a missing or damaged shard by those of another
            shard. If off, a missing or damaged shard is an error.

    Raises:
        InputError: a value is out of range, or ``dataset``, ``root`` and ``skip_damaged_shards`` contradict each other.
    """

    def __init__(
        self,
        dataset: Literal["folder", "shards", "digits"] = "folder",
        root: str | None = None,
        val_fraction: float | None = None,
        folds: int | None = None,
        fold: int | None = None,
        split_seed: int | None = None,
        groups: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        keep_empty_classes: bool = False,
        image_size: int = 224,
        batch_size: int = 64,
        num_workers: int | None = None,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        flip: float = 0.5,
        rand_augment: bool = False,
        random_erasing: float = 0.0,
        class_balance: float = 0.0,
        train_transforms: list[Serializable] | None = None,
        crop_fraction: float = 0.875,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        skip_damaged_shards: bool = False,
    ):
        split_seed = torch.initial_seed() % 2**32 if split_seed is None else split_seed
        hold_out = HoldOut(val_fraction, folds, fold, split_seed)
        column_of_groups = groups is not None and not Path(groups).suffix
        super().__init__(
            root=None if dataset == "digits" or root is None else Path(root),
            batch_size=batch_size,
            num_workers=num_workers,
            std=std,
            collate=collate_shards if dataset == "shards" else collate,
            hold_out=hold_out,
            groups=None if column_of_groups else groups,
        )
        _require_matching_source(dataset, root, skip_damaged_shards)
        if dataset != "folder" and hold_out.is_asked_for:
            raise InputError(
                f"--data.val_fraction and --data.folds need images in folders, not --data.dataset {dataset}"
            )
        self._columns = Columns(image_column, label_column, groups if column_of_groups else None)
        if not 0 <= class_balance <= 1:
            raise InputError(f"--data.class_balance is {class_balance}: give a number from 0 to 1")
        if class_balance and dataset == "shards":
            raise InputError("--data.class_balance does not apply to shards, which are read in sequence: leave it out")
        transforms = TransformOptions(image_size, crop_scale, flip, rand_augment, random_erasing, crop_fraction)
        self.train_transforms = transforms.training(train_transforms)
        self.eval_transforms = transforms.evaluation()
        # The options that evaluation needs are saved in the checkpoint, as plain types.
        self.save_hyperparameters(
            {
                "dataset": dataset,
                "root": root if root is None or is_url(root) else os.path.abspath(root),
                "val_fraction": val_fraction,
                "folds": folds,
                "fold": fold,
                "split_seed": split_seed,
                "groups": groups if groups is None or column_of_groups else os.path.abspath(groups),
                "image_column": image_column,
                "label_column": label_column,
                "keep_empty_classes": keep_empty_classes,
                "image_size": image_size,
                "batch_size": batch_size,
                "crop_fraction": crop_fraction,
                "mean": list(mean),
                "std": list(std),
            },
            logger=False,
        )
        self.training_options = {
            "crop_scale": list(crop_scale),
            "flip": flip,
            "rand_augment": rand_augment,
            "random_erasing": random_erasing,
            "class_balance": class_balance,
            "train_transforms": train_transforms,
        }
        self.class_balance = class_balance
        self.skip_damaged_shards = skip_damaged_shards
        self._sources: dict[tuple, LabelledImages] = {}  # so that files are listed and warnings are logged once
        self._parts: dict[str, Labelled] | None = None  # training images, and validation images that are held out
        self.skipped_shards: set[str] = set()  # messages about damaged shards, which were replaced
        self.lanes: int | None = None  # number of lanes of a resumed run, see ShardBatches

    def training_classes(self) -> list[str]:
        """Return a list of the class names of the training data, in the order of the labels.

        Raises:
            InputError: all images of a folder or table are of one class.
        """
        if self.hparams.dataset == "digits":
            return list(Digits.class_names)
        if self.hparams.dataset == "shards":
            return list(self.shard_index.class_names)
        labelled = self._labelled("train")
        empty = self._empty_classes(labelled)
        names = [name for name in labelled.classes if name not in empty]
        if len(names) < 2:
            raise InputError(
                f"{self.root} (--data.root, read as {self.layout.name}) has images of only one class, {names[0]!r}: "
                "give two classes or more; images with boxes are for detection.fit"
            )
        return names

    @cached_property
    def layout(self) -> Layout:
        """Recognised layout of the images in ``root``, such as folders of classes.

        Raises:
            FileNotFoundError: no layout is recognised.
            InputError: a table of images cannot be read or lacks a column.
        """
        return find_layout(self.root, self._columns)

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.hparams.image_size

    @property
    def dataset_name(self) -> str:
        """Short name of the data set, for tables and folder names."""
        if self.hparams.dataset == "digits":
            return "digits"
        if is_url(self.hparams.root):
            # The last word of the URL: the name of a folder or bucket, or else of the host.
            return (re.findall(r"\w[\w.-]*", self.hparams.root.split("{}")[0]) or ["shards"])[-1]
        return self.root.resolve().stem if self.root.is_file() else self.root.resolve().name

    @cached_property
    def shard_index(self) -> ShardIndex:
        """The :class:`ShardIndex` of the data set, read from the index file in ``root`` on first use."""
        return ShardIndex.read(self.hparams.root)

    def setup(self, stage: str) -> None:
        """Create the data sets of a Lightning stage: ``"fit"``, ``"validate"`` or ``"test"``.

        The stage ``"test"`` uses the validation split if the data has no test split.
        """
        if stage == "fit":
            # The seed is that of the process, which seed_everything has set.
            self.train_set = TrainingImages(
                self._source("train"), self.train_transforms, make_sample, torch.initial_seed()
            )
        if stage in {"fit", "validate"}:
            self.val_set = EvaluationImages(self._source("val"), self.eval_transforms, make_sample)
        if stage == "fit" and self.hparams.dataset == "folder":
            self.warn_of_same_files(*(list(map(str, self._source(each).paths)) for each in ("train", "val")))
        if stage == "test":
            self.test_split = "test" if self._has_test() else "val"
            self.test_set = EvaluationImages(self._source(self.test_split), self.eval_transforms, make_sample)

    def describe(self) -> str:
        """Return one line of text: name of the data set, numbers of images and classes, image size and batch size."""
        size = self.hparams.image_size
        return (
            f"{self.dataset_name}: {len(self.train_set)} training and {len(self.val_set)} validation images of "
            f"{len(self.class_names)} classes, {size}x{size} pixels, batches of {self.hparams.batch_size}"
        )

    def notes(self) -> list[str]:
        """Return a list of lines about the data: layout, classes without images, and choice of validation images."""
        if self.hparams.dataset != "folder":
            return []
        lines = [f"layout {self.layout.name}"]
        if "train" in self.layout.splits and (empty := self._empty_classes(self._labelled("train"))):
            lines.append(
                f"empty  no image of {abridged(empty)}: left out of the classes (--data.keep_empty_classes true keeps "
                "such classes)"
            )
        return lines + super().notes()

    def draw_augmented(self, path: Path) -> None:
        """Draw a grid of up to 24 augmented training images with class names, and save it as the image ``path``."""
        samples = self.samples_to_draw(24)
        image_sheet(
            [sample["image"].permute(1, 2, 0).numpy() for sample in samples],
            [self.class_names[sample["label"]] for sample in samples],
            path,
            title="training images as the model sees them",
        )

    def skipped_counts(self) -> dict[str, int]:
        """Return a dictionary with the number of training images and the number of shards that were skipped.

        The keys are ``skipped_images`` and, if the data set consists of shards, ``skipped_shards``. An image or shard
        is counted once, even if several processes skipped it. Every process must call this method.
        """
        counts = super().skipped_counts()
        if self.hparams.dataset == "shards":
            counts["skipped_shards"] = len(over_processes(self.skipped_shards))
        return counts

    def class_counts(self) -> np.ndarray:
        """Return the number of training images of each class, ``(K,)``.

        Raises:
            InputError: the data set consists of shards, whose labels are not known before they are read.
        """
        if self.hparams.dataset == "shards":
            raise InputError("the images of each class cannot be counted in shards: give --model.class_weights a list")
        return np.bincount(self.train_set.source.labels, minlength=len(self.class_names))

    def train_sampler(self) -> EpochSampler:
        """Build the sampler of training images.

        If ``class_balance`` is above 0, it changes how often the images of each class are drawn. With
        ``q = 1 - class_balance``, the frequency of a class with ``n`` images is proportional to ``n**q`` (Kang et al.,
        Decoupling Representation and Classifier for Long-Tailed Recognition, arXiv 1910.09217).
        """
        if not self.class_balance:
            return super().train_sampler()
        # The weight of an image is the frequency of its class divided by the number of images in the class.
        weights = self.class_counts().astype(float)[self.train_set.source.labels] ** -self.class_balance
        sampler = WeightedEpochSampler(weights, self.train_set.seed)
        sampler.set_epoch(self.first_epoch)
        return sampler

    def train_dataloader(self) -> DataLoader:
        """Build the loader of augmented training batches. Shards are loaded by :class:`ShardBatches`."""
        if self.hparams.dataset != "shards":
            return super().train_dataloader()
        first = BatchDraw(self.first_batch, self.first_epoch)
        return self._shard_loader(self.train_set, self._train_lanes, first)

    def on_before_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        """Remove the messages about damaged shards from a batch, and log one warning for each damaged shard.

        Afterwards, :meth:`ImageData.on_before_batch_transfer` handles the unreadable images of the batch.
        """
        for damage in set(batch.pop("damages", ())) - self.skipped_shards:
            self.skipped_shards.add(damage)
            _logger.warning("%s; training continues with the samples of another shard", damage)
        return super().on_before_batch_transfer(batch, dataloader_idx)

    def state_dict(self) -> dict:
        """Return the state for a checkpoint: a dictionary that contains the position in the training data.

        For shards, it also contains the number of lanes (parts of the data that are loaded independently). The order of
        the images depends on this number, see :class:`ShardBatches`.
        """
        lanes = {"lanes": self._train_lanes} if self.hparams.dataset == "shards" else {}
        return super().state_dict() | lanes

    def load_state_dict(self, state_dict: dict) -> None:
        """Set the position in the training data to the position that :meth:`state_dict` returned.

        The images that follow keep their order, even if the number of loading workers has changed since.
        """
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
        return self.hparams.dataset == "folder" and "test" in self.layout.splits

    def _source(self, split: str) -> Source:
        if self.hparams.dataset == "digits":
            return Digits("train" if split == "train" else "val")
        if self.hparams.dataset == "shards":
            # Evaluation never skips: other images would give another score.
            skip = self.skip_damaged_shards and split == "train"
            return ShardSource(self.shard_index, split, self.class_names, skip_damaged=skip)
        key = split, tuple(self.class_names)
        if key not in self._sources:
            self._sources[key] = LabelledImages(self._part(split), self.class_names)
        return self._sources[key]

    def _part(self, split: str) -> Labelled:
        """Return the images of a split. Images that are held out for validation are in "val", not in "train"."""
        splits = self.layout.splits
        divides = self.hold_out.is_asked_for or ("val" not in splits and "train" in splits)
        if split == "test" or not divides:
            return self._labelled(split)
        if self._parts is None:
            images = self._labelled("train")
            numbers = {name: number for number, name in enumerate(images.classes)}
            counts = np.zeros((len(images.paths), len(numbers)))
            counts[range(len(counts)), [numbers[name] for name in images.names]] = 1
            held = self.held_out(list(map(str, images.paths)), counts, images.groups, has_val="val" in splits)
            if held is None:  # these are not the data of training
                self._parts = {"train": images, "val": self._labelled("val") if "val" in splits else images}
            else:
                train, val = (images.subset(np.flatnonzero(chosen).tolist()) for chosen in (~held, held))
                self._parts = {"train": train, "val": val}
        return self._parts[split]

    def _labelled(self, split: str) -> Labelled:
        """Return all images of a split in the data folder, before validation images are held out."""
        if split not in self.layout.splits:
            found = ", ".join(map(repr, self.layout.splits))
            raise FileNotFoundError(f"{self.root} has no {split!r} images (it has {found}): {LAYOUT}")
        return self.layout.splits[split]()

    def _empty_classes(self, labelled: Labelled) -> list[str]:
        """Return the names of the classes that have neither training nor validation images.

        The list is empty if ``keep_empty_classes`` is set, or if there are no images at all.
        """
        present = set(labelled.names)
        empty = [name for name in labelled.classes if name not in present]
        if empty and "val" in self.layout.splits:
            present = set(self._labelled("val").names)
            empty = [name for name in empty if name not in present]
        return [] if self.hparams.keep_empty_classes or len(empty) == len(labelled.classes) else empty


def _require_matching_source(dataset: str, root: str | None, skip_damaged_shards: bool) -> None:
    if dataset == "folder" and root is None:
        raise InputError(
            "no images: give --data.root DIR, a folder with train/<class>/* and val/<class>/*, or another layout "
            "(classification/configs/finetune.yaml is made for it)"
        )
    if dataset == "shards" and root is None:
        raise InputError("no shards: give --data.root, the folder or URL that python -m classification.shard wrote")
    if dataset == "folder" and holds_shards(root):
        raise InputError(f"--data.root {root} contains shards: give --data.dataset shards as well")
    if skip_damaged_shards and dataset != "shards":
        raise InputError(f"--data.skip_damaged_shards needs --data.dataset shards, but the data set is {dataset!r}")
