"""The LightningDataModule of object detection."""

import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import pytorch_lightning  # noqa: F401  # before albumentations, see mobile_former.training.data.digits

# isort: split
import numpy as np
import torch
from albumentations.core.serialization import Serializable
from torch.utils.data import Sampler

from detection.data.batch import ShapeBatchSampler, Source, collate, make_sample
from detection.data.coco_dataset import CROWD_ADVICE, CocoDataset
from detection.data.layouts.annotations import CROWD, Annotations, Layout
from detection.data.layouts.coco import coco_files
from detection.data.layouts.find import find_layout
from detection.data.scenes import SIDE, Scenes
from detection.pictures import draw_sheet
from detection.transforms import LONGEST, SHORT_SIDE, SHORT_SIDES, TransformOptions, resized, scenes_transform
from mobile_former.errors import InputError
from mobile_former.training.data.dataset import EvaluationImages, TrainingImages
from mobile_former.training.data.module import ImageData
from mobile_former.training.data.sampler import Draw, EpochSampler, WeightedEpochSampler
from mobile_former.training.data.splits import SPLITS, HoldOut
from mobile_former.weights.usage import IMAGENET_MEAN, IMAGENET_STD

_logger = logging.getLogger(__name__)


class DetectionData(ImageData):
    """Images with boxes for training and evaluation.

    Args:
        dataset: "coco" (a folder of images with boxes) or "scenes" (built-in synthetic images: handwritten digits on
            photographs).
        root: data folder. Its layout is recognised: COCO (also of Roboflow, CVAT, Label Studio, datumaro and FiftyOne),
            YOLO, Pascal VOC or LabelMe.
        annotations: dictionary from a split ("train", "val" or "test") to the path of its COCO file. Needed for files
            that are not found in ``root``.
        images: dictionary from a split to the image folder of its COCO file. Needed for folders that are not found in
            ``root``.
        val_fraction: fraction of the training images that is held out for validation. Default: 0.2 if ``root`` has no
            validation images, otherwise 0.
        folds: number of parts for cross-validation. One part is held out for validation, see ``fold``.
        fold: number of the part that is held out, from 1 to the value of ``folds``.
        split_seed: random seed for choosing the images that are held out. Default: the seed of the run.
        groups: path of a CSV file with the columns "image" and "group". Either all images of a group are held out, or
            none. Default: groups.csv in ``root`` if it exists, or the entry "group" of the images in a COCO file.
        keep_empty_classes: whether the model also has an output for each category that has no object.
        crowd_as_objects: whether annotations with iscrowd 1 (in Pascal VOC: difficult objects) are learned and scored
            like other objects. Default: they are left out of training, and detections of them are not scored.
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
        repeat_threshold: number t from 0 to 1. A class is rare if the fraction f of images in which it occurs is below
            t. An image with a rare class is drawn √(t/f) times as often, where f belongs to the rarest class of the
            image. 0: an epoch has every image once. LVIS uses 0.001. A data set of few classes needs a higher value,
            such as 0.3.
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
        val_fraction: float | None = None,
        folds: int | None = None,
        fold: int | None = None,
        split_seed: int | None = None,
        groups: str | None = None,
        keep_empty_classes: bool = False,
        crowd_as_objects: bool = False,
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
        split_seed = torch.initial_seed() % 2**32 if split_seed is None else split_seed
        super().__init__(
            root=None if dataset == "scenes" else Path(root or "."),
            batch_size=batch_size,
            num_workers=num_workers,
            std=std,
            collate=collate,
            hold_out=HoldOut(val_fraction, folds, fold, split_seed),
            groups=groups,
        )
        if dataset == "scenes":
            short_side = SIDE
        if train_transforms is not None or dataset == "scenes":
            short_sides = (short_side,)  # not used in these cases, so the user's value is not checked
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
                "val_fraction": val_fraction,
                "folds": folds,
                "fold": fold,
                "split_seed": split_seed,
                "groups": None if groups is None else os.path.abspath(groups),
                "keep_empty_classes": keep_empty_classes,
                "crowd_as_objects": crowd_as_objects,
                "batch_size": batch_size,
                "short_sides": list(short_sides),
                "short_side": short_side,
                "longest": longest,
                "mean": list(mean),
                "std": list(std),
            },
            logger=False,
        )
        self.training_options = {
            "flip": flip,
            "crop": crop,
            "repeat_threshold": repeat_threshold,
            "group_shapes": group_shapes,
            "train_transforms": train_transforms,
        }
        self.repeat_threshold = repeat_threshold
        self.group_shapes = group_shapes
        self.split = split
        self._resizes = dataset == "coco" and train_transforms is None
        embedded = scenes_transform() if dataset == "scenes" and train_transforms is None else None
        self.train_transforms = embedded or transforms.training(train_transforms)
        self.eval_transforms = transforms.evaluation()
        self._sources: dict[tuple, Source] = {}  # cached, so that annotations are read and warnings logged once
        self._held: np.ndarray | None = None  # whether each training image is held out for validation
        self.empty_classes: list[str] = []  # categories without objects, which are left out

    def training_classes(self) -> list[str]:
        """Return a list of the class names of the training data, in the order of the labels."""
        return list(self._training_images.class_names)

    @property
    def category_ids(self) -> list[int]:
        """List of the COCO category ids of the training data, in the order of the labels."""
        return list(self._training_images.category_ids)

    @property
    def train_source(self) -> Source:
        """Data set of the training images. Its classes come from the training data, not from a trained model."""
        return self._source("train", None)

    def train_sampler(self) -> EpochSampler:
        """Build the sampler of training images.

        If ``repeat_threshold`` is above 0, each image is drawn with a weight, the repeat factor of Gupta et al., LVIS:
        A Dataset for Large Vocabulary Instance Segmentation (arXiv 1908.03195, appendix B).
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
    def _training_images(self) -> Source:
        """All training images, including those that are held out for validation."""
        return Scenes("train") if self.hparams.dataset == "scenes" else self._read("train", None)

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
            root = Path(self.hparams.root)
            return (root.parent if root.is_file() else root).name
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
                if self.hparams.dataset != "scenes":
                    self.warn_of_same_files(
                        *([own.name(index) for index in range(len(own))] for own in (self.train_source, source))
                    )
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
        """Return one line of text: name of the data set, numbers of images, objects and classes, and batch size."""
        return (
            f"{self.dataset_name}: {len(self.train_set)} training images with {self.object_counts.sum()} objects and "
            f"{len(self.val_set)} validation images, of {len(self.class_names)} classes, batches of "
            f"{self.hparams.batch_size}"
        )

    def notes(self) -> list[str]:
        """Return a list of lines about the data: layout, classes without objects, and choice of validation images."""
        if self.hparams.dataset == "scenes":
            return []
        note = self.layout.note()
        lines = [f"layout {self.layout.name}" + (f": {note}" if note else "")]
        if self.empty_classes:
            lines.append(
                f"empty  no object of {', '.join(map(repr, self.empty_classes))}: left out of the classes "
                "(--data.keep_empty_classes true keeps such classes)"
            )
        return lines + super().notes()

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
                + (f"; {CROWD_ADVICE}" if CROWD in source.left_out else "")
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

    @cached_property
    def layout(self) -> Layout:
        """Layout of the data. The options ``annotations`` and ``images`` replace paths found in the data folder.

        Raises:
            FileNotFoundError: no layout is recognised.
            InputError: the files that describe the layout cannot be used.
        """
        given = [(own or {}).items() for own in (self.hparams.annotations, self.hparams.images)]
        files, images = ({split: Path(path) for split, path in own} for own in given)
        if self.hparams.root is None:
            if missing := files.keys() - images.keys():
                split = min(missing)
                raise InputError(
                    f"no images for --data.annotations.{split}: give --data.images.{split} DIR, or --data.root DIR"
                )
            return Layout("COCO", coco_files(None, files, images))
        root = Path(self.hparams.root)
        try:
            found = find_layout(root)
        except FileNotFoundError:
            if not files or not root.is_dir():
                raise
            found = Layout("COCO", {})
        own = {split: known.path for split, known in found.splits.items() if known.path.is_file() and split in images}
        return found._replace(splits=found.splits | coco_files(root, own | files, images))

    @property
    def _divides(self) -> bool:
        """Whether the validation images are taken out of the training images."""
        return self.hold_out.is_asked_for or ("val" not in self.layout.splits and "train" in self.layout.splits)

    def _has_test(self) -> bool:
        if self.hparams.dataset == "scenes":
            return False
        known = self.layout.splits.get("test")
        # A file without annotations cannot be scored, so --data.split must ask for it.
        return known is not None and (
            "test" in (self.hparams.annotations or {}) or not known.path.name.startswith("image_info")
        )

    def _evaluation_set(self, split: str) -> EvaluationImages:
        return EvaluationImages(self._source(split, self.class_names), self.eval_transforms, make_sample)

    def _source(self, split: str, class_names: Sequence[str] | None) -> Source:
        scenes = self.hparams.dataset == "scenes"
        if scenes and split == "test":
            raise InputError("scenes have no 'test' split: give --data.split train or val")
        names = None if class_names is None else tuple(class_names)
        if (split, names) not in self._sources:
            if scenes:
                self._sources[split, names] = Scenes(split)
            elif (split, names) == ("train", None) and not self._divides:
                self._sources[split, names] = self._training_images
            elif split != "test" and self._divides:
                self._sources |= self._divided(names)
            else:
                self._sources[split, names] = self._read(split, names)
        return self._sources[split, names]

    def _divided(self, names: tuple[str, ...] | None) -> dict[tuple, CocoDataset]:
        """Divide the training images into two data sets, one for training and one for validation.

        ``names`` are the class names of the model; None: those of the data. Return a dictionary from the keys
        ``("train", names)`` and ``("val", names)`` to the data sets.
        """
        images = self._training_images if names is None else self._read("train", names)
        if self._held is None:
            paths = [images.name(index) for index in range(len(images))]
            has_val = "val" in self.layout.splits
            self._held = self.held_out(paths, images.class_counts(), images.groups, has_val=has_val)
        if self._held is None:  # these are not the data of training
            val = self._read("val", names) if "val" in self.layout.splits else images
            return {("train", names): images, ("val", names): val}
        parts = {"train": images.subset(np.flatnonzero(~self._held)), "val": images.subset(np.flatnonzero(self._held))}
        return {(split, names): part for split, part in parts.items()}

    def _read(self, split: str, names: Sequence[str] | None) -> CocoDataset:
        """Return the data set of all images of a split. If ``names`` is None, classes without objects are left out."""
        data = CocoDataset.open(self._annotations(split), names, crowd_as_objects=self.hparams.crowd_as_objects)
        if names is not None or not data.annotated or self.hparams.keep_empty_classes:
            return data
        empty = _without_objects(data)
        if not empty or len(empty) == len(data.class_names):
            return data
        if split == "train" and "val" in self.layout.splits and not self.hold_out.is_asked_for:
            other = CocoDataset.open(self._annotations("val"))
            empty = [name for name in empty if name not in other.class_names or name in _without_objects(other)]
        self.empty_classes = empty
        return data.without(empty) if empty else data

    def _annotations(self, split: str) -> Annotations:
        splits = self.layout.splits
        if split in splits:
            return splits[split]
        place = "no --data.root is given" if self.hparams.root is None else f"{self.hparams.root} ({self.layout.name})"
        raise FileNotFoundError(
            f"no {split!r} data: {place} has {', '.join(map(repr, splits)) or 'none'}; give "
            f"--data.annotations.{split} FILE and --data.images.{split} DIR for other COCO files"
        )


def _without_objects(data: CocoDataset) -> list[str]:
    counts = data.class_counts().sum(0)
    return [name for name, count in zip(data.class_names, counts, strict=True) if not count]


def require_annotations(source: Source, reason: str) -> None:
    """Raise InputError if a data set has no annotations.

    ``reason`` is the part of the error message that explains why annotations are needed.
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
            "no data: give --data.root DIR, a folder in a layout of COCO, YOLO, Pascal VOC or LabelMe "
            "(detection/configs/finetune.yaml is made for it)"
        )
