"""Data set of images with boxes, read from files in COCO format. It converts category ids to labels and back."""

import itertools
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as brief

import numpy as np

from mobile_former.errors import InputError
from mobile_former.training.data.images import read_image

_logger = logging.getLogger(__name__)

_LAYOUT = (
    "expected DIR/annotations/instances_<split>.json and DIR/images/, "
    "or COCO's DIR/annotations/instances_<split>2017.json and DIR/<split>2017/"
)
_COCO = 'a COCO annotation file holds {"images": [...], "annotations": [...], "categories": [...]}'

# Boxes that leave their image by less are rounding, not an error in the file.
_TOLERANCE = 1e-3  # pixels


class CocoDataset:
    """Images and boxes of one COCO annotation file.

    Labels start at 0. They follow the order of ``class_names`` if given, and otherwise the order of the category ids.
    Every category of the file is a class, even if the file has no box of this category.

    In training, boxes are clipped to their image. Crowd regions and boxes without area are left out.
    :meth:`ground_truth` keeps the original boxes and the crowd regions.

    Args:
        annotations: path of the JSON file.
        images: image folder. The file names in the JSON file are relative to this folder.
        class_names: class names of a trained model in the order of its labels. The file may have fewer categories.
            None: the categories of the file.

    Attributes:
        annotated: whether the file has the list ``annotations``. COCO's files of test images lack it.
        left_out: dictionary from a reason to the number of boxes that it excludes from training.

    Raises:
        FileNotFoundError: the file, the folder or an image is missing.
        InputError: the file is not in COCO format, contradicts itself, or has a category that is not in
            ``class_names``.
    """

    def __init__(self, annotations: Path, images: Path, class_names: Sequence[str] | None = None):
        self.path, self.folder = Path(annotations), Path(images)
        content = _load(self.path)
        self._read_categories(content["categories"], class_names)
        self._read_images(content["images"])
        self.annotated = "annotations" in content
        self._read_annotations(content.get("annotations", []))
        self._choose_training_boxes()

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
        """Return the path of an image, for messages."""
        return os.path.join(self.folder, self._file_names[index])

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

    def _read_categories(self, records: list, class_names: Sequence[str] | None) -> None:
        names = {}
        for position, record in enumerate(records):
            what = f"{self.path}: category {_id_or_position(record, position)}"
            category_id = _whole(record, "id", what)
            if not isinstance(record.get("name"), str):
                raise InputError(f"{what} has no name: give every category a 'name' in quotes")
            if category_id in names:
                raise InputError(_duplicate(self.path, "categories", category_id))
            names[category_id] = record["name"]
        if not names:
            raise InputError(f"{self.path} lists no categories: {_COCO}")
        # Some exports give a parent category the name of its only child.
        counts = Counter(names.values())
        names = {
            category_id: name if counts[name] == 1 else f"{name} ({category_id})" for category_id, name in names.items()
        }
        if class_names is None:
            self.category_ids = sorted(names)
        else:
            if unknown := set(names.values()) - set(class_names):
                raise InputError(
                    f"{self.path} and the model differ in their categories: the file has {_listed(sorted(unknown))}, "
                    f"which the model does not have; the model has {_listed(class_names)}. Give data with categories "
                    "of the model (ids and order may differ, names may not), or train on this file"
                )
            ids = {name: category_id for category_id, name in names.items()}
            # Classes that the file does not list take free ids, so that detections of them can be written.
            free = itertools.count(max(names) + 1)
            self.category_ids = [ids[name] if name in ids else next(free) for name in class_names]
            names |= dict(zip(self.category_ids, class_names, strict=True))
        self.class_names = [names[category_id] for category_id in self.category_ids]

    def _read_images(self, records: list) -> None:
        self._image_ids: list[int] = []
        self._file_names: list[str] = []
        self._sizes: list[tuple[int, int]] = []
        for position, record in enumerate(records):
            what = f"{self.path}: image {_id_or_position(record, position)}"
            self._image_ids.append(_whole(record, "id", what))
            if not isinstance(record.get("file_name"), str) or not record["file_name"]:
                raise InputError(f"{what} has no 'file_name': give the path of its file within {self.folder}")
            self._file_names.append(record["file_name"])
            size = _whole(record, "height", what), _whole(record, "width", what)
            if min(size) < 1:
                raise InputError(f"{what} is recorded as {size[1]}x{size[0]}: give its width and height in pixels")
            self._sizes.append(size)
        if not records:
            raise InputError(f"{self.path} lists no images: {_COCO}")
        self._index = {image_id: index for index, image_id in enumerate(self._image_ids)}
        if len(self._index) < len(records):
            repeated = next(image_id for image_id, count in Counter(self._image_ids).items() if count > 1)
            raise InputError(_duplicate(self.path, "images", repeated))
        self._find_files()

    def _find_files(self) -> None:
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no folder of images {self.folder} (--data.root): {_LAYOUT}")
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
                "it there, remove its record, or name the folder of the images"
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
                    int(crowd),
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
        if 0 in ids:
            _logger.warning(
                "%s: an annotation has the id 0. pycocotools counts a correct detection of it as a false positive: "
                "number annotations from 1",
                self.path,
            )

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
        reasons = {"no area in their image": ~has_area & ~crowd, "crowd regions with iscrowd 1": crowd}
        self.left_out = {reason: int(chosen.sum()) for reason, chosen in reasons.items() if chosen.any()}
        if changed := np.flatnonzero(clipped | ~kept).tolist():
            effects = [f"clipped to their image ({clipped.sum()})"] if clipped.any() else []
            effects += [f"left out of training: {reason} ({count})" for reason, count in self.left_out.items()]
            gone = sorted(set(annotations["label"].tolist()) - set(annotations["label"][kept].tolist()))
            _logger.warning(
                "%s: boxes are %s (the first: annotation %d of image %d)%s",
                self.path,
                " and ".join(effects),
                annotations["id"][changed[0]],
                self._image_ids[annotations["image"][changed[0]]],
                f"; no object is left of {_listed(self.class_names[label] for label in gone)}" if gone else "",
            )
        order = np.flatnonzero(kept)
        order = order[np.argsort(annotations["image"][order], kind="stable")]
        self._boxes = boxes[order].astype(np.float32)
        self._labels = annotations["label"][order]
        counts = np.bincount(annotations["image"][order], minlength=len(self))
        self._first = np.concatenate([[0], np.cumsum(counts)])


def find_split(
    root: Path | None, split: str, annotations: Path | None = None, images: Path | None = None
) -> tuple[Path, Path]:
    """Return the paths of the annotation file and the image folder of a split.

    The annotation file of the split ``"test"`` may also be ``image_info_test.json``, ``image_info_test2017.json``,
    ``image_info_test-dev.json`` or ``image_info_test-dev2017.json``. COCO gives such names to files without
    annotations.

    Args:
        root: data folder. It contains ``annotations/instances_<split>.json`` and ``images/``. In COCO's own layout, it
            contains ``annotations/instances_<split>2017.json`` and ``<split>2017/`` instead. ``root`` may be None if
            ``annotations`` and ``images`` are given.
        split: ``"train"``, ``"val"`` or ``"test"``.
        annotations: path of the annotation file. None: search in ``root``.
        images: path of the image folder. None: search in ``root``.

    Raises:
        FileNotFoundError: ``root`` or its annotation file does not exist.
        InputError: ``root`` is None, and ``annotations`` or ``images`` is None too.
    """
    if annotations is not None and images is not None:
        return Path(annotations), Path(images)
    if root is None:
        raise InputError(
            f"no {split} data: give --data.root DIR ({_LAYOUT}), or both --data.annotations.{split} FILE and "
            f"--data.images.{split} DIR"
        )
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root} (--data.root): {_LAYOUT}")
    names = [f"instances_{split}", *(["image_info_test", "image_info_test-dev"] if split == "test" else [])]
    files = [root / "annotations" / f"{name}{year}.json" for name in names for year in ("", "2017")]
    folders = [root / "images", root / f"{split}2017"]
    if annotations is None:
        annotations = next((file for file in files if file.is_file()), None)
        if annotations is None:
            present = sorted(path.name for path in (root / "annotations").glob("*.json"))
            raise FileNotFoundError(
                f"no file {files[0]} (there is {_listed(present) if present else 'no annotation file'}): {_LAYOUT}"
            )
    if images is None:
        if Path(annotations).stem.endswith("2017"):
            folders.reverse()
        images = next((folder for folder in folders if folder.is_dir()), folders[0])
    return Path(annotations), Path(images)


def _load(path: Path) -> dict[str, list]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no annotation file {path}: {_LAYOUT}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a COCO annotation file") from error
    except (ValueError, RecursionError) as error:  # invalid JSON or UTF-8; lists nested too deeply
        raise InputError(f"{path} is not JSON ({error}): {_COCO}; write or copy it again") from error
    if not isinstance(content, dict):
        kind = "a list, as detection results are" if isinstance(content, list) else f"a {type(content).__name__}"
        raise InputError(f"{path} holds {kind}, not a data set: {_COCO}")
    for name in ("images", "annotations", "categories"):
        if name == "annotations" and name not in content:
            continue
        if not isinstance(content.get(name), list):
            raise InputError(f"{path} has no list {name!r} (it has {_listed(content) or 'nothing'}): {_COCO}")
        for position, record in enumerate(content[name]):
            if not isinstance(record, dict):
                raise InputError(f"{path}: number {position} of {name!r} is {brief(record)}, not an object: {_COCO}")
    return content


def _id_or_position(record: dict, position: int) -> str:
    return brief(record["id"]).strip("'") if "id" in record else f"number {position} (without id)"


def _whole(record: dict, name: str, what: str) -> int:
    """Return the field ``name`` of a JSON object as an integer. Raise InputError if it is not a whole number."""
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
