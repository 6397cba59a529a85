"""The LightningDataModule of object detection."""

import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from albumentations.core.serialization import Serializable
from torch.utils.data import Sampler

from detection.data.batch import ShapeBatchSampler, Source, collate, make_sample
from detection.data.coco_dataset import CocoDataset, find_split
from detection.data.scenes import SIDE, Scenes
from detection.pictures import draw_sheet
from detection.transforms import LONGEST, SHORT_SIDE, SHORT_SIDES, TransformOptions, resized, scenes_transform
from mobile_former.errors import InputError
from mobile_former.training.data.dataset import EvaluationImages, TrainingImages
from mobile_former.training.data.module import ImageData
from mobile_former.training.data.sampler import Draw, EpochSampler, WeightedEpochSampler
from mobile_former.weights.usage import IMAGENET_MEAN, IMAGENET_STD

_logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")


class DetectionData(ImageData):
    """Images with boxes for training and evaluation.

    Args:
        dataset: "coco" (a folder in COCO format) or "scenes" (built-in synthetic images: handwritten digits on
            photographs).
        root: data folder. It contains annotations/instances_{train,val,test}.json and images/. In COCO's own layout,
            it contains annotations/instances_{train,val,test}2017.json and {train,val,test}2017/ instead.
        annotations: dictionary from a split ("train", "val" or "test") to its annotation file, if outside root.
        images: dictionary from a split to its image folder, if outside root.
        batch_size: number of images per batch in each process.
        num_workers: number of processes that load data. Default: number of cores minus one (1 to 16); 0 for scenes.
        short_sides: lengths in pixels. The shorter side of a training image is resized to one of them, chosen at
            random.
        short_side: length in pixels of the shorter side in evaluation. It has no effect on scenes, which keep their
            size.
        longest: maximum length in pixels of the longer side.
        flip: probability of a horizontal flip.
        crop: probability of a random crop.
        train_transforms: albumentations transforms of image and boxes that replace flip, crop and resizing. Default:
            flip, crop and resizing.
        repeat_threshold: fraction t of the images. An image with a class that occurs in a smaller fraction f of the
            images is drawn more often, in proportion to the square root of t/f of its rarest class. 0: an epoch has
            every image once. LVIS uses 0.001; a data set of few classes needs more, such as 0.3.
        group_shapes: whether to build batches of images with similar aspect ratios. Such batches need less padding.
        split: split to score: "val", "test" or "train". Default: ``validate`` scores "val", and ``test`` scores "test"
            or, without a test split, "val".
        mean: mean of each channel that normalisation subtracts, for pixel values in [0, 1].
        std: standard deviation of each channel that normalisation divides by, for pixel values in [0, 1].

    Raises:
        InputError: a value is out of range, "coco" is given without data, or options contradict each other.
    """

    def __init__(
        self,
        dataset: Literal["coco", "scenes"] = "coco",
        root: str | None = None,
        annotations: dict[str, str] | None = None,
        images: dict[str, str] | None = None,
        batch_size: int = 2,
        num_workers: int | None = None,
        short_sides: Sequence[int] = SHORT_SIDES,
        short_side: int = SHORT_SIDE,
        longest: int = LONGEST,
        flip: float = 0.5,
        crop: float = 0.5,
        train_transforms: list[Serializable] | None = None,
        repeat_threshold: float = 0.0,
        group_shapes: bool = False,
        split: Literal["val", "test", "train"] | None = None,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ):
        super().__init__(
            root=None if dataset == "scenes" else Path(root or "."),
            batch_size=batch_size,
            num_workers=num_workers,
            std=std,
            collate=collate,
        )
        if dataset == "scenes":
            short_side = SIDE
        if train_transforms is not None or dataset == "scenes":
            short_sides = (short_side,)  # unused then, so any value of the user is accepted
        transforms = TransformOptions(tuple(short_sides), short_side, longest, flip, crop)
        _require_place(dataset, root, annotations, images)
        if not 0 <= repeat_threshold <= 1:
            raise InputError(f"--data.repeat_threshold is {repeat_threshold}: give a fraction from 0 to 1")
        # Saved in the checkpoint, as plain types: what evaluation needs. short_sides must fit short_side and longest.
        self.save_hyperparameters(
            {
                "dataset": dataset,
                "root": None if root is None else os.path.abspath(root),
                "annotations": _absolute(annotations),
                "images": _absolute(images),
                "batch_size": batch_size,
                "short_sides": list(short_sides),
                "short_side": short_side,
                "longest": longest,
                "mean": list(mean),
                "std": list(std),
            },
            logger=False,
        )
        self.repeat_threshold = repeat_threshold
        self.group_shapes = group_shapes
        self.split = split
        self._resizes = dataset == "coco" and train_transforms is None
        embedded = scenes_transform() if dataset == "scenes" and train_transforms is None else None
        self.train_transforms = embedded or transforms.training(train_transforms)
        self.eval_transforms = transforms.evaluation()
        self._sources: dict[tuple, Source] = {}  # cached, so that annotations are read and warnings logged once

    def training_classes(self) -> list[str]:
        """Return the class names of the training data in the order of their labels."""
        return list(self.train_source.class_names)

    @property
    def category_ids(self) -> list[int]:
        """List of the COCO category ids of the training data, in the order of the labels."""
        return list(self.train_source.category_ids)

    @property
    def train_source(self) -> Source:
        """Data set of the training images. Its classes come from the training data, not from a trained model."""
        return self._source("train", None)

    def train_sampler(self) -> EpochSampler:
        """Build the sampler of training images.

        With ``repeat_threshold``, the weights of the images are the repeat factors of Gupta et al., LVIS: A Dataset for
        Large Vocabulary Instance Segmentation (arXiv 1908.03195, appendix B).
        """
        if not self.repeat_threshold:
            return super().train_sampler()
        source = self.train_set.source
        classes = [np.unique(source.labels(index)) for index in range(len(source))]
        counts = np.bincount(np.concatenate(classes), minlength=len(source.class_names))
        factors = np.sqrt(np.maximum(1, self.repeat_threshold * len(source) / np.maximum(1, counts)))
        weights = [factors[present].max(initial=1) for present in classes]
        sampler = WeightedEpochSampler(weights, self.train_set.seed)
        sampler.set_epoch(self.first_epoch)
        return sampler

    @cached_property
    def object_counts(self) -> np.ndarray:
        """Array ``(N,)`` int64 with the number of objects in each training image. It is computed once and cached."""
        source = self.train_source
        return np.array([len(source.labels(index)) for index in range(len(source))], dtype=np.int64)

    @property
    def dataset_name(self) -> str:
        """Short name of the data set, for tables and names of folders."""
        if self.hparams.dataset == "scenes":
            return "scenes"
        if self.hparams.root is not None:
            return Path(self.hparams.root).name
        return Path(next(iter(self.hparams.annotations.values()))).stem

    def setup(self, stage: str) -> None:
        """Create the data sets of a Lightning stage: ``"fit"``, ``"validate"`` or ``"test"``."""
        if stage == "fit":
            if self.split is not None:
                raise InputError(
                    f"--data.split is {self.split}, but training validates on 'val': leave it out; "
                    "python -m detection.validate and test take it"
                )
            require_annotations(self.train_source, "training learns from it")
            self._require_objects()
            # seed_everything has set the seed of the process.
            self.train_set = TrainingImages(self.train_source, self.train_transforms, make_sample, torch.initial_seed())
        if stage in {"fit", "validate"}:
            self.val_split = (stage == "validate" and self.split) or "val"
            self.val_set = self._evaluation_set(self.val_split)
            source = self.val_set.source
            if stage == "fit":
                require_annotations(source, "training validates on it")
            if stage == "fit" and not any(len(source.labels(index)) for index in range(len(source))):
                _logger.warning(
                    "%s: no validation image has an object, so AP cannot be measured; best.ckpt is then the last epoch",
                    self.dataset_name,
                )
        if stage == "test":
            self.test_split = self.split or ("test" if self._has_test() else "val")
            self.test_set = self._evaluation_set(self.test_split)

    def train_batches(self, sampler: EpochSampler) -> Sampler[list[Draw]]:
        """Return a sampler of the training batches of an epoch.

        If ``group_shapes`` is set, images of similar aspect ratio share a batch.

        Args:
            sampler: sampler that yields the images one at a time. These images are combined into batches.
        """
        if not self.group_shapes:
            return super().train_batches(sampler)
        size = self.hparams.batch_size
        return ShapeBatchSampler(sampler, self.train_source, size, drop_last=len(sampler) >= size)

    def describe(self) -> str:
        """Return one line with the data set's name, its numbers of images, objects and classes, and the batch size."""
        return (
            f"{self.dataset_name}: {len(self.train_set)} training images with {self.object_counts.sum()} objects and "
            f"{len(self.val_set)} validation images, of {len(self.class_names)} classes, batches of "
            f"{self.hparams.batch_size}"
        )

    def draw_augmented(self, path: Path) -> None:
        """Draw a grid of up to 12 augmented training images with their boxes, and save it as the image ``path``."""
        samples = self.samples_to_draw(12)
        draw_sheet(
            [sample["image"].permute(1, 2, 0).numpy() for sample in samples],
            [sample["target"] for sample in samples],
            self.class_names,
            path,
            title="training images as the model sees them, with their boxes",
        )

    def _require_objects(self) -> None:
        """Log a warning if resizing makes training objects smaller than a pixel. Such objects are not learned.

        Raises:
            InputError: no training image has an object, or all objects become smaller than a pixel.
        """
        source, total = self.train_source, int(self.object_counts.sum())
        if not total:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in source.left_out.items())
            raise InputError(
                f"{self.dataset_name}: no image of the training data has an object to learn"
                + (f"; left out are {reasons}" if reasons else "")
            )
        if not self._resizes:
            return
        corners = np.concatenate([source.boxes(index) for index in range(len(source))])
        sides = corners[:, 2:] - corners[:, :2]  # width and height
        sizes = np.array([source.size(index) for index in range(len(source))])

        def too_small(short_side: int) -> int:
            resized_sizes = [resized(*size, short_side, self.hparams.longest) for size in sizes.tolist()]
            scales = (np.array(resized_sizes) / sizes)[:, ::-1]
            return int((sides * scales.repeat(self.object_counts, axis=0) < 1).any(1).sum())

        small, large = min(self.hparams.short_sides), max(self.hparams.short_sides)
        lost = too_small(small)
        if not lost:
            return
        lost_at_large = too_small(large)
        remedy = "raise --data.short_sides, --data.short_side and --data.longest, or cut the images into tiles"
        if lost_at_large == total:
            raise InputError(
                f"{self.dataset_name}: all {total} training objects are less than a pixel wide or high in images "
                f"with a shorter side of {large} pixels: {remedy}"
            )
        _logger.warning(
            "%s: of %d training objects, %d are less than a pixel wide or high in images with a shorter side of %d "
            "pixels, and %d with one of %d; they are not learned there: %s",
            self.dataset_name,
            total,
            lost,
            small,
            lost_at_large,
            large,
            remedy,
        )

    def _has_test(self) -> bool:
        if self.hparams.dataset == "scenes":
            return False
        if "test" in (self.hparams.annotations or {}):
            return True
        try:
            annotations, _ = find_split(*self._paths("test"))
        except (FileNotFoundError, InputError):
            return False
        return not annotations.name.startswith("image_info")  # which cannot be scored, so --data.split must ask for it

    def _evaluation_set(self, split: str) -> EvaluationImages:
        return EvaluationImages(self._source(split, self.class_names), self.eval_transforms, make_sample)

    def _source(self, split: str, class_names: Sequence[str] | None) -> Source:
        scenes = self.hparams.dataset == "scenes"
        if scenes and split == "test":
            raise InputError("scenes have no 'test' split: give --data.split train or val")
        key = split, None if class_names is None else tuple(class_names)
        if key not in self._sources:
            self._sources[key] = Scenes(split) if scenes else CocoDataset(*find_split(*self._paths(split)), class_names)
        return self._sources[key]

    def _paths(self, split: str) -> tuple[Path | None, str, Path | None, Path | None]:
        """Return the four arguments of :func:`find_split`: root, split, annotation file and image folder."""
        given = [(paths or {}).get(split) for paths in (self.hparams.annotations, self.hparams.images)]
        root = self.hparams.root
        return None if root is None else Path(root), split, *(None if path is None else Path(path) for path in given)


def require_annotations(source: Source, reason: str) -> None:
    """Raise InputError if a data set has no annotations.

    ``reason`` is a part of the error message. It explains why annotations are needed.
    """
    if not source.annotated:
        raise InputError(
            f"{source.path} has no list 'annotations', but {reason}: give a file with annotations; "
            "python -m detection.test --results FILE.json detects objects in images without annotations"
        )


def _absolute(paths: dict[str, str] | None) -> dict[str, str] | None:
    return None if paths is None else {split: os.path.abspath(path) for split, path in paths.items()}


def _require_place(
    dataset: str, root: str | None, annotations: dict[str, str] | None, images: dict[str, str] | None
) -> None:
    """Raise InputError if the path of the data is missing, a split is unknown, or the options contradict each other."""
    for name, paths in (("annotations", annotations), ("images", images)):
        if unknown := set(paths or {}) - set(SPLITS):
            raise InputError(f"--data.{name} names {sorted(unknown)}: the splits are {', '.join(SPLITS)}")
    if dataset == "scenes" and (root, annotations, images) != (None, None, None):
        raise InputError(
            "--data.dataset scenes is embedded and takes no --data.root, --data.annotations or --data.images: to "
            "train on your own data, leave it out and give --config detection/configs/finetune.yaml"
        )
    if dataset == "coco" and root is None and not annotations:
        raise InputError(
            "no data: give --data.root DIR, a folder with annotations/instances_train.json, "
            "annotations/instances_val.json and images/ (detection/configs/finetune.yaml is made for it)"
        )
