"""Data set of images with boxes, read from files in COCO format. It converts category ids to labels and back."""

import copy
import itertools
import logging
import os
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from reprlib import repr as brief

import numpy as np

from detection.data.layouts.annotations import CROWD, Annotations
from detection.data.layouts.coco import COCO, load_coco
from mobile_former.errors import InputError
from mobile_former.training.data.images import image_size, read_image

_logger = logging.getLogger(__name__)

CROWD_ADVICE = (
    "datumaro (masks) and supervision (masks in pieces or with holes) mark ordinary objects with iscrowd 1: "
    "--data.crowd_as_objects true learns and scores them"
)

# A box that exceeds its image by less is a rounding error, not a fault of the file.
_TOLERANCE = 1e-3  # pixels


class CocoDataset:
    """Images and boxes of one COCO annotation file.

    Labels start at 0. They follow the order of ``class_names`` if given, and otherwise the order of the category ids.
    Every category of the file is a class, even if the file has no box of this category. :meth:`without` returns a copy
    without given classes.

    In training, boxes are clipped to their image. Crowd regions and boxes without area are left out.
    :meth:`ground_truth` keeps the original boxes and the crowd regions. If an annotation has the id 0, all annotations
    are numbered from 1, because pycocotools counts a correct detection of annotation 0 as a false positive.

    Args:
        annotations: path of the JSON file. If ``content`` is given, the path is only used in messages.
        images: image folder. The file names in the JSON file are relative to this folder.
        class_names: class names of a trained model in the order of its labels. A class may be missing in the file. A
            category of the file that is not in the list must have no objects. None: the categories of the file are the
            classes.
        content: content of the file, a dictionary in COCO format. None: read the file.
        crowd: name for annotations with ``iscrowd`` 1 in messages, such as "difficult objects".
        crowd_as_objects: whether annotations with ``iscrowd`` 1 are treated as normal objects.

    Attributes:
        annotated: whether the file has the list ``annotations``. COCO's files for test images have none.
        left_out: dictionary from a reason to the number of boxes that it excludes from training.
        groups: list with the value of the entry ``group`` of each image, or None if no image has this entry.

    Raises:
        FileNotFoundError: the file, the folder or an image is missing.
        InputError: the file is not in COCO format, contradicts itself, or has objects of a category that is not in
            ``class_names``.
    """

    def __init__(
        self,
        annotations: Path,
        images: Path,
        class_names: Sequence[str] | None = None,
        *,
        content: dict | None = None,
        crowd: str = CROWD,
        crowd_as_objects: bool = False,
    ):
        self.path, self.folder = Path(annotations), Path(images)
        self._crowd, self._crowd_as_objects = crowd, crowd_as_objects
        content = load_coco(self.path) if content is None else content
        self.annotated = "annotations" in content
        self._read_categories(content["categories"], class_names, content.get("annotations", []))
        self._read_images(content["images"])
        self._read_annotations(content.get("annotations", []))
        self._choose_training_boxes()

    @classmethod
    def open(
        cls, annotations: Annotations, class_names: Sequence[str] | None = None, *, crowd_as_objects: bool = False
    ) -> "CocoDataset":
        """Read the annotations of a split, and return the data set of the split.

        For ``class_names``, ``crowd_as_objects`` and the exceptions, see the docstring of the class.
        """
        content, folder = annotations.read()
        return cls(
            annotations.path,
            folder,
            class_names,
            content=content,
            crowd=annotations.crowd,
            crowd_as_objects=crowd_as_objects,
        )

    def __len__(self) -> int:
        return len(self._image_ids)

    def read(self, index: int) -> np.ndarray:
        """Read an image ``(H, W, 3)``, uint8 RGB, with its EXIF rotation applied.

        Raises:
            ImageError: the file cannot be read.
            InputError: the size of the image differs from the size in the annotation file.
        """
        image = read_image(self.name(index))
        found, expected = image.shape[:2], self.size(index)
        if found != expected:
            turned = found == expected[::-1]
            raise InputError(
                f"{self.name(index)} is {found[1]}x{found[0]} pixels{' after EXIF rotation' * turned}, but image "
                f"{self._image_ids[index]} in {self.path} is recorded as {expected[1]}x{expected[0]}: "
                + (
                    "if the boxes were drawn before EXIF rotation, save the image without EXIF data; if after it, "
                    "exchange width and height in the record"
                    if turned
                    else "restore the image that was annotated, or scale its boxes and its record to the new size"
                )
            )
        return image

    def boxes(self, index: int) -> np.ndarray:
        """Return the boxes of an image for training: ``(n, 4)`` float32, xyxy in pixels, clipped to the image."""
        return self._boxes[self._first[index] : self._first[index + 1]]

    def labels(self, index: int) -> np.ndarray:
        """Return the class labels of an image's boxes, in the order of :meth:`boxes`: ``(n,)`` int64."""
        return self._labels[self._first[index] : self._first[index + 1]]

    def image_id(self, index: int) -> int:
        """Return the COCO id of an image. The annotation file and COCO results contain this id."""
        return self._image_ids[index]

    def size(self, index: int) -> tuple[int, int]:
        """Return the height and width of an image in pixels, from the annotation file."""
        return self._sizes[index]

    def name(self, index: int) -> str:
        """Return the path of an image as a string. Error messages use it as the name of the image."""
        return os.path.join(self.folder, self._file_names[index])

    def class_counts(self) -> np.ndarray:
        """Return how often each class occurs in each image, crowd regions included: ``(images, classes)`` int64."""
        counts = np.zeros((len(self), len(self.class_names)), np.int64)
        np.add.at(counts, (self._annotations["image"], self._annotations["label"]), 1)
        return counts

    def without(self, class_names: Collection[str]) -> "CocoDataset":
        """Return a copy with the same images, but without the classes in ``class_names``.

        The data set must have no object of these classes. The labels of the other classes are renumbered from 0.
        """
        kept = [label for label, name in enumerate(self.class_names) if name not in class_names]
        other = copy.copy(self)
        other.category_ids = [self.category_ids[label] for label in kept]
        other.class_names = _distinct({self.category_ids[label]: self._raw_names[label] for label in kept})
        other._raw_names = [self._raw_names[label] for label in kept]
        labels = np.full(len(self.class_names), -1, np.int64)
        labels[kept] = np.arange(len(kept))
        other._annotations = self._annotations | {"label": labels[self._annotations["label"]]}
        other._labels = labels[self._labels]
        return other

    def subset(self, indices: Sequence[int]) -> "CocoDataset":
        """Return a data set of the images at ``indices``, in this order. Its classes are the same."""
        other = copy.copy(self)
        other._image_ids = [self._image_ids[index] for index in indices]
        other._file_names = [self._file_names[index] for index in indices]
        other._sizes = [self._sizes[index] for index in indices]
        other.groups = self.groups and [self.groups[index] for index in indices]
        place = np.full(len(self), -1, np.int64)
        place[list(indices)] = np.arange(len(indices))
        images = place[self._annotations["image"]]
        other._annotations = {name: column[images >= 0] for name, column in self._annotations.items()}
        other._annotations["image"] = images[images >= 0]
        other._boxes = np.concatenate([self.boxes(index) for index in indices])
        other._labels = np.concatenate([self.labels(index) for index in indices])
        counts = [len(self.labels(index)) for index in indices]
        other._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        return other

    def ground_truth(self) -> dict[str, list[dict]]:
        """Return the ground truth for scoring, as a dictionary in COCO format.

        It has all images, categories and annotations, including crowd regions.
        """
        return {
            "images": [
                {"id": image_id, "file_name": name, "height": height, "width": width}
                for image_id, name, (height, width) in zip(self._image_ids, self._file_names, self._sizes, strict=True)
            ],
            "annotations": [
                {
                    "id": annotation_id,
                    "image_id": self._image_ids[image],
                    "category_id": self.category_ids[label],
                    "bbox": box,
                    "area": area,
                    "iscrowd": crowd,
                }
                for annotation_id, image, label, box, area, crowd in zip(
                    *(column.tolist() for column in self._annotations.values()), strict=True
                )
            ],
            "categories": [
                {"id": category_id, "name": name}
                for category_id, name in zip(self.category_ids, self.class_names, strict=True)
            ],
        }

    def _read_categories(self, records: list, class_names: Sequence[str] | None, annotations: list) -> None:
        names: dict[int, str] = {}
        for position, record in enumerate(records):
            what = f"{self.path}: category {_id_or_position(record, position)}"
            category_id = _whole(record, "id", what)
            if not isinstance(record.get("name"), str):
                raise InputError(f"{what} has no name: give every category a 'name' in quotes")
            if category_id in names:
                raise InputError(_duplicate(self.path, "categories", category_id))
            names[category_id] = record["name"]
        if not names:
            raise InputError(f"{self.path} lists no categories: {COCO}")
        if class_names is None:
            self.category_ids = sorted(names)
        else:
            names = self._shared(names, class_names, annotations)
            ids = {name: category_id for category_id, name in names.items()}
            # Classes that the file does not list take free ids, so that detections of them can be written.
            free = itertools.count(max(names, default=0) + 1)
            self.category_ids = [ids[name] if name in ids else next(free) for name in class_names]
            names = dict(zip(self.category_ids, class_names, strict=True))
        self._raw_names = [names[category_id] for category_id in self.category_ids]
        self.class_names = _distinct(dict(zip(self.category_ids, self._raw_names, strict=True)))

    def _shared(self, names: dict[int, str], class_names: Sequence[str], annotations: list) -> dict[int, str]:
        """Select the categories of the file that are classes of a model. Return a dictionary from id to name.

        Args:
            names: dictionary from the id of each category in the file to its name.
            class_names: class names of the model.
            annotations: annotations in the file. They show which categories have objects.

        Raises:
            InputError: a category with objects is not a class of the model, or no category of the file is one.
        """
        distinct = dict(zip(names, _distinct(names), strict=True))
        if set(distinct.values()) <= set(class_names):
            return distinct
        used = {record["category_id"] for record in annotations if _is_number(record.get("category_id"))}
        with_objects = {category_id: name for category_id, name in names.items() if category_id in used}
        with_objects = dict(zip(with_objects, _distinct(with_objects), strict=True))
        unknown = set(with_objects.values()) - set(class_names)
        if not unknown and not set(distinct.values()) & set(class_names) and not with_objects:
            unknown = set(distinct.values())  # data of another kind
        if unknown:
            raise InputError(
                f"{self.path} and the model differ in their categories: the file has {_listed(sorted(unknown))}, "
                f"which the model does not have; the model has {_listed(class_names)}. Give data with categories "
                "of the model (ids and order may differ, names may not), or train on this file"
            )
        taken = set(with_objects.values())
        known = {category_id: name for category_id, name in distinct.items() if name in class_names}
        return with_objects | {id_: name for id_, name in known.items() if id_ not in used and name not in taken}

    def _read_images(self, records: list) -> None:
        self._image_ids: list[int] = []
        self._file_names: list[str] = []
        self._sizes: list[tuple[int, int]] = []
        unknown_sizes = []
        for position, record in enumerate(records):
            what = f"{self.path}: image {_id_or_position(record, position)}"
            self._image_ids.append(_whole(record, "id", what))
            if not isinstance(record.get("file_name"), str) or not record["file_name"]:
                raise InputError(f"{what} has no 'file_name': give the path of its file within {self.folder}")
            self._file_names.append(record["file_name"])
            if record.get("height") is None or record.get("width") is None:  # Label Studio, if it has no labels
                unknown_sizes.append(position)
                self._sizes.append((0, 0))
                continue
            size = _whole(record, "height", what), _whole(record, "width", what)
            if min(size) < 1:
                raise InputError(
                    f"{what} ({record['file_name']}) is recorded as {size[1]}x{size[0]}: give its width and height in "
                    "pixels, or null to read them from the file"
                )
            self._sizes.append(size)
        groups = [record.get("group") for record in records]
        self.groups = groups if any(group is not None for group in groups) else None
        if not records:
            raise InputError(f"{self.path} lists no images: {COCO}")
        self._index = {image_id: index for index, image_id in enumerate(self._image_ids)}
        if len(self._index) < len(records):
            repeated = next(image_id for image_id, count in Counter(self._image_ids).items() if count > 1)
            raise InputError(_duplicate(self.path, "images", repeated))
        self._find_files()
        for position in unknown_sizes:
            self._sizes[position] = image_size(self.name(position))

    def _find_files(self) -> None:
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"no folder of images {self.folder} for {self.path}: give --data.images.<split> DIR"
            )
        # Listing a folder once is faster than checking each file.
        parents = {os.path.dirname(name) for name in self._file_names}
        folders = {parent: os.path.join(self.folder, parent) for parent in parents}
        present = {parent: set(os.listdir(path)) for parent, path in folders.items() if os.path.isdir(path)}
        missing = [
            index
            for index, name in enumerate(self._file_names)
            if os.path.basename(name) not in present.get(os.path.dirname(name), ())
            and not os.path.isfile(self.name(index))  # case-insensitive file systems
        ]
        if missing:
            others = f" ({len(missing) - 1} more are missing)" if len(missing) > 1 else ""
            raise FileNotFoundError(
                f"no file {self.name(missing[0])} for image {self._image_ids[missing[0]]} of {self.path}{others}: put "
                "it there, remove its record, or name the folder of the images with --data.images.<split> DIR"
            )

    def _read_annotations(self, records: list) -> None:
        labels = {category_id: label for label, category_id in enumerate(self.category_ids)}
        rows = []
        for position, record in enumerate(records):
            what = f"{self.path}: annotation {_id_or_position(record, position)}"
            image_id, category_id = _whole(record, "image_id", what), _whole(record, "category_id", what)
            if image_id not in self._index:
                raise InputError(
                    f"{what} belongs to image {image_id}, which 'images' does not list: add the image's record, or "
                    "remove the annotation"
                )
            if category_id not in labels:
                raise InputError(
                    f"{what} (of image {image_id}) has category {category_id}, which 'categories' does not list (it "
                    f"has {_listed(sorted(labels))}): add the category, or correct the annotation"
                )
            box = record.get("bbox")
            if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
                raise InputError(
                    f"{what} (of image {image_id}) has the bbox {brief(box)}: give [left, top, width, height]"
                )
            area = record.get("area")
            if area is not None and not _is_number(area):
                raise InputError(f"{what} (of image {image_id}) has the area {brief(area)}: give a number of pixels")
            crowd = record.get("iscrowd", 0)
            if crowd not in (0, 1):  # True and False are accepted too
                raise InputError(f"{what} (of image {image_id}) has 'iscrowd' {brief(crowd)}: give the number 0 or 1")
            rows.append(
                (
                    position + 1 if "id" not in record else _whole(record, "id", what),
                    self._index[image_id],
                    labels[category_id],
                    box,
                    box[2] * box[3] if area is None else area,
                    0 if self._crowd_as_objects else int(crowd),
                )
            )
        names = ("id", "image", "label", "box", "area", "crowd")
        kinds = (np.int64, np.int64, np.int64, np.float64, np.float64, np.int64)
        columns = zip(*rows, strict=True) if rows else [[]] * 6
        self._annotations = {
            name: np.array(column, dtype=kind) for name, kind, column in zip(names, kinds, columns, strict=True)
        }
        self._annotations["box"] = self._annotations["box"].reshape(-1, 4)
        ids, counts = np.unique(self._annotations["id"], return_counts=True)
        if (counts > 1).any():
            raise InputError(_duplicate(self.path, "annotations", int(ids[counts > 1][0])))
        self._given_ids = self._annotations["id"]
        if 0 in ids:  # pycocotools counts detections that match an annotation with the id 0 as false
            self._annotations["id"] = np.arange(1, len(rows) + 1)

    def _choose_training_boxes(self) -> None:
        """Select the boxes for training, clip them to their images, and store them in private attributes.

        Crowd regions and boxes without area are left out. A warning reports how many boxes are clipped or left out.

        Raises:
            InputError: no box reaches beyond 1 pixel, so the coordinates seem to be normalised to 0..1.
        """
        annotations, crowd = self._annotations, self._annotations["crowd"] == 1
        limits = np.array(self._sizes, dtype=np.float64)[annotations["image"]][:, [1, 0, 1, 0]]
        corners = annotations["box"].copy()
        corners[:, 2:] += corners[:, :2]
        if len(corners) and corners.max() <= 1:
            raise InputError(
                f"{self.path}: no box reaches beyond 1 pixel, so the boxes seem to be normalised. COCO's [left, "
                "top, width, height] are pixels: multiply them by width and height of their image"
            )
        boxes = np.clip(corners, 0, limits)
        has_area = (annotations["box"][:, 2:] > 0).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        kept = has_area & ~crowd
        clipped = kept & (np.abs(boxes - corners).max(1, initial=0) > _TOLERANCE)
        reasons = {"no area in their image": ~has_area & ~crowd, self._crowd: crowd}
        self.left_out = {reason: int(chosen.sum()) for reason, chosen in reasons.items() if chosen.any()}
        if changed := np.flatnonzero(clipped | ~kept).tolist():
            effects = [f"clipped to their image ({clipped.sum()})"] if clipped.any() else []
            effects += [f"left out of training: {reason} ({count})" for reason, count in self.left_out.items()]
            gone = sorted(set(annotations["label"].tolist()) - set(annotations["label"][kept].tolist()))
            _logger.warning(
                "%s: boxes are %s (the first: annotation %d of %s)%s%s",
                self.path,
                " and ".join(effects),
                self._given_ids[changed[0]],
                self.name(int(annotations["image"][changed[0]])),
                f"; {CROWD_ADVICE}" if crowd.any() and self._crowd == CROWD else "",
                f"; no object is left of {_listed(self.class_names[label] for label in gone)}" if gone else "",
            )
        order = np.flatnonzero(kept)
        order = order[np.argsort(annotations["image"][order], kind="stable")]
        self._boxes = boxes[order].astype(np.float32)
        self._labels = annotations["label"][order]
        counts = np.bincount(annotations["image"][order], minlength=len(self))
        self._first = np.concatenate([[0], np.cumsum(counts)])


def _distinct(names: Mapping[int, str]) -> list[str]:
    """Return a list of the category names. If several categories share a name, the id of each is added to its name.

    A category can have the name of its parent category. ``names`` is a dictionary from id to name.
    """
    counts = Counter(names.values())
    return [name if counts[name] == 1 else f"{name} ({category_id})" for category_id, name in names.items()]


def _id_or_position(record: dict, position: int) -> str:
    return brief(record["id"]).strip("'") if "id" in record else f"number {position} (without id)"


def _whole(record: dict, name: str, what: str) -> int:
    """Return the field ``name`` of the JSON object ``record`` as an integer.

    Raise InputError if the field is not a whole number. ``what`` is the name of the object in the error message.
    """
    value = record.get(name)
    if not _is_number(value) or value != int(value) or abs(value) >= 2**63:
        raise InputError(f"{what} has {name!r} {brief(value)}, where a whole number is needed")
    return int(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _duplicate(path: Path, name: str, repeated: int) -> str:
    return f"{path}: two of {name!r} have the id {repeated}: give each its own id, and correct the references to them"


def _listed(names) -> str:
    return ", ".join(map(repr, names))
