"""Recognise and read data folders in LabelMe's layout: a JSON file with the shapes of each image."""

import json
import math
from collections import Counter
from functools import cache, partial
from pathlib import Path, PureWindowsPath
from reprlib import repr as brief

from detection.data.layouts.annotations import (
    Annotations,
    LabelledImage,
    LabelledObject,
    Layout,
    class_names,
    enclosing,
    progress,
    size_of,
    to_coco,
)
from mobile_former.errors import InputError
from mobile_former.training.data.images import IMAGE_SUFFIXES, find_images, image_size
from mobile_former.training.data.splits import split_folders

LOOKED_FOR = ("LabelMe: a JSON file with 'shapes' and 'imagePath' for each image, with or without train/ and val/",)

_WITHOUT_AREA = ("point", "points", "line", "linestrip")  # shapes that are not read as objects
_EXAMINED = 5  # number of JSON files in a folder that are read to recognise the layout


def find_labelme(root: Path) -> Layout | None:
    """Return the :class:`Layout` of a folder in LabelMe's layout, or None for any other folder."""
    folders = {split: own for split, own in split_folders(root).items() if _holds_shapes(own)}
    if not folders and _holds_shapes(root):
        folders = {"train": root}
    if not folders:
        return None
    parsed = {split: cache(partial(_parse, own)) for split, own in folders.items()}

    def read(split: str) -> tuple[dict, Path]:
        return to_coco(parsed[split](), root, class_names(parsed, split))

    return Layout("LabelMe", {split: Annotations(own, partial(read, split)) for split, own in folders.items()})


def _holds_shapes(folder: Path) -> bool:
    for path, _ in zip(sorted(folder.rglob("*.json")), range(_EXAMINED), strict=False):
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict) and isinstance(content.get("shapes"), list):
            return True
    return False


def _parse(folder: Path) -> list[LabelledImage]:
    images: dict[Path, LabelledImage] = {}
    for path in progress(sorted(folder.rglob("*.json")), folder):
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not JSON ({error}): save or copy it again") from error
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            continue  # another program's file
        image = _image_of(path, content)
        if image in images:
            raise InputError(f"{path}: another JSON file has the same image {image}: remove one of them")
        size = size_of(image, content.get("imageWidth"), content.get("imageHeight"))
        images[image] = LabelledImage(image, size, _objects(content["shapes"], path))
    labelled = {image.resolve() for image in images}
    others = (path for path in find_images(folder).images if path.resolve() not in labelled)
    unlabelled = [LabelledImage(path, image_size(path), []) for path in others]
    return sorted([*images.values(), *unlabelled], key=lambda image: image.path)


def _image_of(path: Path, content: dict) -> Path:
    """Return the path of the image that a JSON file annotates.

    The entry ``imagePath`` gives this path, relative to the JSON file. If that file is missing, an image with the same
    name in the folder of the JSON file is used.

    Raises:
        FileNotFoundError: there is no such image.
    """
    written = content.get("imagePath")
    written = PureWindowsPath(written).as_posix() if isinstance(written, str) and written else ""
    beside = [path.parent / written, path.parent / Path(written).name]
    beside += [path.with_suffix(suffix) for suffix in sorted(IMAGE_SUFFIXES)]
    for candidate in beside if written else beside[2:]:
        if candidate.is_file():
            # "folder/../images" would be another path for the same image
            return Path(*candidate.parts) if ".." not in candidate.parts else candidate.resolve()
    raise FileNotFoundError(f"no image {written or path.stem} for {path}: put it beside the file")


def _objects(shapes: list, path: Path) -> list[LabelledObject]:
    """Return a list of the objects of an image. Shapes with equal ``label`` and ``group_id`` form one object.

    ``shapes`` is the list in the JSON file. ``path`` is the path of the file, for error messages.
    """
    parts: dict[object, tuple[str, list]] = {}
    skipped: Counter[str] = Counter()
    for number, shape in enumerate(shapes, 1):
        known = shape if isinstance(shape, dict) else {}
        name, kind, points = known.get("label"), known.get("shape_type") or "polygon", known.get("points")
        if kind in _WITHOUT_AREA:
            skipped[kind] += 1
            continue
        if not isinstance(name, str) or not name or not _are_points(points) or len(points) < 2:
            raise InputError(
                f"{path}: shape {number} has the label {brief(name)} and the points {brief(points)}: give a label and "
                "at least two points [x, y]"
            )
        if kind == "circle":  # its centre and a point on it
            (x, y), (a, b) = points[:2]
            radius = math.hypot(a - x, b - y)
            points = [[x - radius, y - radius], [x + radius, y + radius]]
        group = known.get("group_id")
        key = number if group is None else (name, brief(group))
        parts.setdefault(key, (name, []))[1].extend(points)
    return [LabelledObject(name, enclosing(points)) for name, points in parts.values()]


def _are_points(points: object) -> bool:
    return isinstance(points, list) and all(
        isinstance(point, list) and len(point) == 2 and all(isinstance(value, int | float) for value in point)
        for point in points
    )
