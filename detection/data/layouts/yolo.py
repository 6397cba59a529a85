"""Recognise and read data folders in YOLO's layout: a text file with normalised boxes or polygons for each image."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import yaml

from detection.data.layouts.annotations import (
    Annotations,
    LabelledImage,
    LabelledObject,
    Layout,
    enclosing,
    progress,
    to_coco,
)
from mobile_former.errors import InputError
from mobile_former.training.data.images import find_images, image_size
from mobile_former.training.data.splits import only_folder, split_folders, split_of

LOOKED_FOR = (
    "YOLO: data.yaml with the paths of the images and the class names, and labels/ beside images/",
    "YOLO of Label Studio: classes.txt, images/ and labels/",
    "YOLO of CVAT (Darknet): obj.data, obj.names and train.txt",
)

_CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt", "data.names")
_LARGEST = 2.0  # larger coordinates are pixels; smaller ones above 1 are rounding errors


def find_yolo(root: Path) -> Layout | None:
    """Return the :class:`Layout` of a folder in YOLO's layout, or None for any other folder.

    Raises:
        InputError: the file with the class names cannot be read, or an image in a text file of image paths does not
            exist.
    """
    files = [root] if root.is_file() else sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    root = root.parent if root.is_file() else root
    for path in sorted(files, key=lambda path: path.stem != "data"):
        if content := _read_yaml(path):
            splits, missing = _splits_of_yaml(content, path, root)
            options = _names_in_yaml(content, path), _keypoints(content), missing
            if layout := _layout(f"YOLO ({path.name})", root, splits, *options):
                return layout
    if (darknet := root / "obj.data").is_file():
        options = dict(map(str.strip, line.split("=", 1)) for line in _lines(darknet) if "=" in line)
        splits = {split: _listed(value, root, root) for key, value in options.items() if (split := split_of(key))}
        names = _names_in_text(_existing(options.get("names", "obj.names"), [root]) or root / "obj.names")
        return _layout("YOLO (Darknet)", root, splits, names)
    splits = _standard_splits(root)
    places = [root, *split_folders(root).values(), *(folder.parent for folder in splits.values()), root / "labels"]
    found = next((path for place in places for name in _CLASS_FILES if (path := place / name).is_file()), None)
    if not splits and found:  # text files beside the images
        candidates = split_folders(root) or {"train": root}
        splits = {split: folder for split, folder in candidates.items() if _has_labels_beside_images(folder)}
    if not splits:
        return None
    images = {split: find_images(folder).images for split, folder in splits.items()}
    return _layout("YOLO", root, images, _names_in_text(found) if found else None)


def _layout(
    name: str,
    root: Path,
    splits: dict[str, list[Path]],
    names: dict[int, str] | None,
    keypoints: int = 0,
    missing: Sequence[str] = (),
) -> Layout | None:
    splits = {split: paths for split, paths in splits.items() if paths}
    if not any(_label_path(path) for paths in splits.values() for path in paths):
        return None
    notes = [] if names else ["no file has class names, so the names of the classes are their numbers"]
    counts = Counter((names or {}).values())
    if repeated := [each for each, count in counts.items() if count > 1]:
        names = {number: f"{each} ({number})" if counts[each] > 1 else each for number, each in names.items()}
        notes.append(f"several classes are called {', '.join(repeated)}: their numbers are added to the name")
    note = "; ".join([*notes, *(f"{entry} does not exist and is left out" for entry in missing)])
    read = {split: partial(_read, paths, root, names, keypoints) for split, paths in splits.items()}
    return Layout(name, {split: Annotations(root, own) for split, own in read.items()}, lambda: note)


def _read(paths: Sequence[Path], root: Path, names: dict[int, str] | None, keypoints: int) -> tuple[dict, Path]:
    images = (_read_image(path, names, keypoints) for path in progress(paths, root))
    numbers = {} if names else {str(number): number for number in range(1000)}
    content, folder = to_coco(images, root, [*(names or {}).values()])
    content["categories"].sort(key=lambda record: numbers.get(record["name"], -1))
    return content, folder


def _read_image(path: Path, names: dict[int, str] | None, keypoints: int) -> LabelledImage:
    height, width = image_size(path)
    label = _label_path(path)
    objects = []
    for number, line in enumerate(_lines(label) if label else (), 1):
        where = f"{label}, line {number}"
        try:
            kind, *values = map(float, line.split())
            known = int(kind) if kind == int(kind) and kind >= 0 else None
        except (ValueError, OverflowError):
            known, values = None, []
        if known is None or len(values) < 4 or not all(map(math.isfinite, values)):
            raise InputError(
                f"{where} is {line[:60]!r}: give the number of a class, and center x, center y, width and height in "
                "0..1, or the points of a polygon"
            )
        if names is not None and known not in names:
            raise InputError(f"{where} has class {known}, but the classes are {sorted(names)}: add its name")
        if max(values[:4]) > _LARGEST:
            raise InputError(f"{where} has {max(values[:4]):g}: YOLO's coordinates are fractions of the image, 0 to 1")
        if len(values) in {4, 5} or (keypoints and len(values) == 4 + keypoints):  # the fifth is a confidence
            x, y, w, h = values[:4]
            left, top, right, bottom = x - w / 2, y - h / 2, x + w / 2, y + h / 2
        else:
            left, top, right, bottom = enclosing(list(zip(values[::2], values[1::2], strict=False)))
        corners = (left * width, top * height, right * width, bottom * height)
        objects.append(LabelledObject(str(known) if names is None else names[known], corners))
    return LabelledImage(path, (height, width), objects)


def _label_path(image: Path) -> Path | None:
    """Return the path of the label file of an image, or None if it has none.

    The path of the label file is that of the image, with ``labels/`` instead of the last ``images/``. If there is no
    such file, a label file in the folder of the image is used.
    """
    parts = list(image.parts)
    for position in range(len(parts) - 2, -1, -1):
        if parts[position].lower() == "images":
            for name in ("labels", "Labels"):
                path = Path(*parts[:position], name, *parts[position + 1 :]).with_suffix(".txt")
                if path.is_file():
                    return path
            break
    path = image.with_suffix(".txt")
    return path if path.is_file() and path.name not in _CLASS_FILES else None


def _standard_splits(root: Path) -> dict[str, Path]:
    """Return a dictionary from each split to its image folder, such as ``images/train`` or ``train/images``."""
    if (root / "images").is_dir() and _has_labels(root / "labels"):
        return split_folders(root / "images") or {"train": root / "images"}
    return {
        split: folder / "images"
        for split, folder in split_folders(root).items()
        if (folder / "images").is_dir() and _has_labels(folder / "labels")
    }


def _has_labels(folder: Path) -> bool:
    return any(path.name not in _CLASS_FILES for path in folder.rglob("*.txt"))


def _has_labels_beside_images(folder: Path) -> bool:
    return any(path.with_suffix(".txt").is_file() for path in find_images(folder).images)


def _splits_of_yaml(content: dict, path: Path, root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Return a dictionary from each split in a YAML file to the paths of its images, and a list of missing paths.

    If no path in the file exists, the splits are those of :func:`_standard_splits`. A path can be relative to the
    file's entry ``path`` or to the folder of the file. If the path begins with ``../``, it is also tried without this
    beginning, because exports of Roboflow add ``../`` to paths that are relative to the folder of the file.

    Args:
        content: content of the file.
        path: path of the file.
        root: data folder, for :func:`_standard_splits`.
    """
    bases = [path.parent]
    if isinstance(content.get("path"), str) and content["path"]:
        bases = [path.parent / content["path"], *bases]
    splits: dict[str, list[Path]] = {}
    missing: list[str] = []
    for key, value in content.items():
        entries = value if isinstance(value, list) else [value]
        if not (split := split_of(str(key))) or not all(isinstance(entry, str) for entry in entries):
            continue
        for entry in filter(None, entries):
            if (place := _existing(entry, bases)) is None:
                missing.append(entry)
                continue
            images = _listed(str(place), path.parent, bases[0]) if place.is_file() else find_images(place).images
            splits[split] = list(dict.fromkeys([*splits.get(split, []), *images]))
    if missing and not splits:
        folders = _standard_splits(root) or _standard_splits(only_folder(root) or root)
        return {split: find_images(folder).images for split, folder in folders.items()}, []
    return splits, missing


def _existing(entry: str, bases: Sequence[Path]) -> Path | None:
    shortened = entry.replace("\\", "/")
    candidates = [base / shortened for base in bases]
    while shortened.startswith("../"):
        shortened = shortened.removeprefix("../")
        candidates += [base / shortened for base in bases]
    first, _, rest = shortened.partition("/")
    if first in {"data", "."} and rest:  # Darknet writes paths from its own folder
        candidates += [base / rest for base in bases]
    return next((path for path in candidates if path.exists()), None)


def _listed(entry: str, folder: Path, base: Path) -> list[Path]:
    """Return a list of the image paths in a text file, one per line. The list is empty if the file is missing.

    Args:
        entry: path of the text file. It can be relative to ``folder`` or ``base``.
        folder: first folder that relative paths can start from.
        base: second folder that relative paths can start from.

    Raises:
        InputError: an image does not exist.
    """
    path = _existing(entry, [folder, base])
    if path is None or not path.is_file():
        return []
    images, lines, bases = [], [line.strip() for line in _lines(path)], [path.parent, base, folder]
    for line in lines:
        image = _existing(line, bases) or _of_another_machine(line, bases)
        if image is None:
            raise InputError(f"{path} lists {line}, which does not exist: restore the image, or remove the line")
        images.append(image)
    return images


def _of_another_machine(entry: str, bases: Sequence[Path]) -> Path | None:
    """Find the file for a path that was written on another machine, where the data was in another folder.

    Leading folders are removed from the path ``entry``, one by one, until the rest is the path of a file in one of the
    folders ``bases``. Return the path of this file, or None if there is no such file.
    """
    parts = PurePosixPath(entry.replace("\\", "/")).parts
    endings = (Path(*parts[position:]) for position in range(1, len(parts)))
    return next((path for ending in endings for base in bases if (path := base / ending).is_file()), None)


def _read_yaml(path: Path) -> dict | None:
    try:
        # All values are text: YAML would read the class names no and on as booleans.
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())}): write it again") from error
    return content if isinstance(content, dict) and content.keys() & {"names", "nc"} else None


def _names_in_yaml(content: dict, path: Path) -> dict[int, str] | None:
    names = content.get("names")
    try:
        if isinstance(names, dict):
            names = dict(sorted((int(number), name) for number, name in names.items()))
        elif isinstance(names, list):
            names = dict(enumerate(names))
    except ValueError:
        raise InputError(f"{path}: names maps {list(names)} to classes: give their numbers 0, 1, …") from None
    if isinstance(names, dict):
        if other := next((name for name in names.values() if not isinstance(name, str)), None):
            raise InputError(f"{path}: names has {other}: give the name of each class as text")
        return names or None
    if isinstance(names, str) and (file := _existing(names, [path.parent])) and file.is_file():
        return _names_in_text(file)
    return None


def _names_in_text(path: Path) -> dict[int, str] | None:
    return dict(enumerate(line.strip() for line in _lines(path))) if path.is_file() else None


def _keypoints(content: dict) -> int:
    shape = content.get("kpt_shape")
    return math.prod(map(int, shape)) if isinstance(shape, list) and all(str(n).isdigit() for n in shape) else 0


def _lines(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8 ({error}): write it again") from error
    return (line for line in text.splitlines() if line.strip())
