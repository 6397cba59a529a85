"""Annotations of one split, read from files of any layout into a dictionary in COCO format."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from mobile_former.training.data.images import image_size

CROWD = "crowd regions with iscrowd 1"


class Annotations(NamedTuple):
    """Annotations of one split.

    Attributes:
        path: path of the file or folder with the annotations. It is used in messages.
        read: function that reads the annotations. It returns a tuple (dictionary in COCO format, image folder). The
            file names in the dictionary are relative to this folder.
        crowd: what messages call the annotations with ``iscrowd`` 1, such as "difficult objects".
    """

    path: Path
    read: Callable[[], tuple[dict, Path]]
    crowd: str = CROWD


class Layout(NamedTuple):
    """The recognised layout of a data folder, and its annotations.

    Attributes:
        name: name of the layout, such as "YOLO".
        splits: dictionary from a split ("train", "val" or "test") to its annotations. If the data is not divided into
            splits, all images are in "train".
        note: function that returns a note for the user on how the files are read, or an empty text. The call can take
            as long as reading all annotations.
    """

    name: str
    splits: dict[str, Annotations]
    note: Callable[[], str] = str


class LabelledObject(NamedTuple):
    """One object in an image: its class and its bounding box.

    Attributes:
        name: class name.
        corners: left, top, right and bottom in pixels.
        ignored: True if a detection of this object counts neither as right nor as false.
    """

    name: str
    corners: tuple[float, float, float, float]
    ignored: bool = False


class LabelledImage(NamedTuple):
    """One image: its path, its size (height, width) after EXIF rotation, and its objects."""

    path: Path
    size: tuple[int, int]
    objects: list[LabelledObject]


def to_coco(images: Iterable[LabelledImage], folder: Path, class_names: Sequence[str] = ()) -> tuple[dict, Path]:
    """Convert images with objects to a dictionary in COCO format. Return a tuple (dictionary, ``folder``).

    Args:
        images: images with their objects.
        folder: data folder. The file names in the dictionary are relative to it. Images outside the folder have
            absolute paths.
        class_names: names of the classes in the order of the category ids. The ids start at 1. Names that only occur in
            ``images`` are added at the end, in alphabetical order.
    """
    images = list(images)
    found = {known.name for image in images for known in image.objects}
    names = [*dict.fromkeys(class_names), *sorted(found - set(class_names))]
    ids = {name: number for number, name in enumerate(names, 1)}
    records, annotations = [], []
    for image_id, image in enumerate(images, 1):
        inside = image.path.is_relative_to(folder)
        name = (image.path.relative_to(folder) if inside else image.path.absolute()).as_posix()
        height, width = image.size
        records.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for known in image.objects:
            left, top, right, bottom = known.corners
            box = [left, top, right - left, bottom - top]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[known.name],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(known.ignored),
                }
            )
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    return {"images": records, "annotations": annotations, "categories": categories}, folder


def class_names(images: Mapping[str, Callable[[], Iterable[LabelledImage]]], split: str) -> list[str]:
    """Return the sorted names of all classes that occur in ``split``, in the split "train" or in the split "val".

    This function is for layouts without a list of classes. Three splits are read, because a single split may lack
    objects of a class.

    Args:
        images: dictionary from a split to a function that reads the images of the split.
        split: name of a split.
    """
    splits = [each for each in dict.fromkeys(("train", "val", split)) if each in images]
    return sorted({known.name for each in splits for image in images[each]() for known in image.objects})


def size_of(image: Path, width: object, height: object) -> tuple[int, int]:
    """Return the height and width of an image in pixels.

    ``width`` and ``height`` are the values in the annotation file. They are used if both are positive numbers.
    Otherwise the size is read from the image file.

    Raises:
        ImageError: the size must be read from the image file, but the file cannot be read.
    """
    try:
        size = int(float(height)), int(float(width))
    except (TypeError, ValueError, OverflowError):
        return image_size(image)
    return size if min(size) > 0 else image_size(image)


def progress(paths: Sequence[Path], folder: Path) -> Iterable[Path]:
    """Yield each of ``paths``, and show a progress bar with the name of ``folder`` if the output is a terminal."""
    console = Console(stderr=True)
    return track(paths, f"reading {folder.name}", console=console, transient=True, disable=not sys.stderr.isatty())


def enclosing(points: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of the smallest box that contains all points ``(x, y)``."""
    columns = list(zip(*points, strict=True))
    return min(columns[0]), min(columns[1]), max(columns[0]), max(columns[1])
