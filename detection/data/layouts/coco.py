"""Recognise data folders with COCO files as COCO, Roboflow, CVAT, Label Studio, datumaro and FiftyOne write them."""

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from reprlib import repr as brief
from urllib.parse import unquote

from detection.data.layouts.annotations import Annotations, Layout
from mobile_former.errors import InputError
from mobile_former.training.data.splits import split_folders, split_of

COCO = 'a COCO annotation file holds {"images": [...], "annotations": [...], "categories": [...]}'
LOOKED_FOR = (
    "COCO: annotations/instances_train.json or annotations/instances_train2017.json with images/, images/train/ or "
    "train2017/",
    "COCO of Roboflow: train/_annotations.coco.json beside the images",
    "COCO of FiftyOne: train/labels.json and train/data/",
    "COCO of Label Studio, LabelMe and others: one COCO file, such as result.json",
)

_UNSPLIT = ("default", "all")
_KNOWN = {  # single files without a split in their name, and the tools that write them
    "_annotations.coco.json": "Roboflow",
    "labels.json": "FiftyOne",
    "result.json": "Label Studio",
    "result_coco.json": "Label Studio",
    "annotations.json": "LabelMe",
}
_MOST_FILES = 20  # JSON files with other names: a folder with more is not searched for COCO files
_SAMPLED = 20  # images whose paths are checked in each candidate for the image folder
_MOST_FOLDERS = 1000  # folders that are searched for images


def find_coco(root: Path) -> Layout | None:
    """Return the :class:`Layout` of a folder whose COCO files have usual names, or None for any other folder."""
    files: dict[str, Path] = {}
    tools: list[str] = []
    for path in sorted((root / "annotations").glob("*.json"), key=_preference):
        split = _split_of_file(path.stem)
        usual = path.stem.lower().startswith(("instances", "image_info"))
        if split and split not in files and (usual or _looks_like_coco(path)):
            files[split] = path
    for split, folder in split_folders(root).items():
        for name, tool in _KNOWN.items():
            if split not in files and (folder / name).is_file():
                files[split] = folder / name
                tools.append(tool)
    if "train" not in files:
        for name, tool in _KNOWN.items():
            path = root / name
            # LabelMe's own files have other names, and FiftyOne's labels.json may be of classification.
            if path.is_file() and _looks_like_coco(path):
                files["train"] = path
                tools.append(tool)
                break
    return _layout(root, files, tools)


def find_any_coco(root: Path) -> Layout | None:
    """Return the :class:`Layout` of a folder with COCO files of any names, or None for any other folder.

    COCO files are recognised by their content.
    """
    files: dict[str, Path] = {}
    for folder in (root, root / "annotations", root / "labels"):
        for path in _coco_files(folder):
            if split := _split_of_file(path.stem):
                files.setdefault(split, path)
        if not files and len(single := list(_coco_files(folder))) == 1:
            files["train"] = single[0]
    for split, folder in split_folders(root).items():
        for place in (folder, folder / "annotations"):
            if split not in files and len(single := list(_coco_files(place))) == 1:
                files[split] = single[0]
    return _layout(root, files, [])


def coco_files(root: Path | None, files: dict[str, Path], images: dict[str, Path]) -> dict[str, Annotations]:
    """Return a dictionary from each split in ``files`` to its :class:`Annotations`. No file is read yet.

    Args:
        root: folder to search for the images. None: search the folder of the annotation file.
        files: dictionary from a split to the path of its COCO file.
        images: dictionary from a split to its image folder. For a split that is missing here, the images are searched
            for in ``root``.
    """
    return {
        split: Annotations(path, partial(_read, path, split, path.parent if root is None else root, images.get(split)))
        for split, path in files.items()
    }


def load_coco(path: Path) -> dict[str, list]:
    """Read a COCO file as a dictionary, and check that the entries of its lists are JSON objects.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file cannot be read, or is not in COCO format.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no annotation file {path}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a COCO annotation file") from error
    except (ValueError, RecursionError) as error:  # invalid JSON or UTF-8; lists nested too deeply
        raise InputError(f"{path} is not JSON ({error}): {COCO}; write or copy it again") from error
    if not isinstance(content, dict):
        kind = "a list, as detection results are" if isinstance(content, list) else f"a {type(content).__name__}"
        raise InputError(f"{path} holds {kind}, not a data set: {COCO}")
    for name in ("images", "annotations", "categories"):
        if name == "annotations" and name not in content:
            continue
        if not isinstance(content.get(name), list):
            has = ", ".join(map(repr, content)) or "nothing"
            raise InputError(f"{path} has no list {name!r} (it has {has}): {COCO}")
        for position, record in enumerate(content[name]):
            if not isinstance(record, dict):
                raise InputError(f"{path}: number {position} of {name!r} is {brief(record)}, not an object: {COCO}")
    return content


def _layout(root: Path, files: dict[str, Path], tools: list[str]) -> Layout | None:
    if not files:
        return None
    tool = f" ({tools[0]})" if tools else ""
    return Layout(f"COCO{tool}", coco_files(root, files, {}))


def _split_of_file(stem: str) -> str | None:
    """Return the split that a COCO file name contains, such as "train" for ``instances_train2017``.

    Return None if there is no split in ``stem``, the file name without suffix. COCO's ``image_info`` files have no
    annotations. For them, the only possible split is "test".
    """
    if stem.lower().startswith("image_info"):
        return "test" if re.search(r"test(-dev)?(2017)?$", stem) else None
    kind, separator, rest = stem.partition("_")
    if separator and kind.lower() in {"captions", "panoptic", "stuff"}:
        return None
    words = [rest, *re.split(r"[_\-. ]", stem)] if separator else [stem, *re.split(r"[\-. ]", stem)]
    found = next((split for word in words if (split := split_of(word))), None)
    return found or ("train" if words[0].lower() in _UNSPLIT else None)


def _preference(path: Path) -> tuple:
    """Return a sort key that puts ``instances_*`` files first, and names without a year before names with one."""
    stem = path.stem.lower()
    kinds = ("instances_", "", "person_keypoints", "image_info")
    kind = max((number for number, start in enumerate(kinds) if stem.startswith(start)), default=1)
    kind = 0 if stem.startswith("instances_") else kind
    word = stem.rpartition("_")[2]
    return kind, word in _UNSPLIT, "trainval" in word, word[-1:].isdigit(), len(stem), stem


def _coco_files(folder: Path) -> Iterator[Path]:
    paths = sorted(folder.glob("*.json"))
    if len(paths) <= _MOST_FILES:
        yield from filter(_looks_like_coco, paths)


def _looks_like_coco(path: Path) -> bool:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and all(isinstance(content.get(name), list) for name in ("images", "categories"))


def _read(path: Path, split: str, root: Path, images: Path | None) -> tuple[dict, Path]:
    content = load_coco(path)
    names = [record.get("file_name") for record in content["images"]]
    if images is not None and not images.is_dir():
        return content, images
    folders = _image_folders(path, split, root) if images is None else [images]
    sampled = [name for name in names[:: max(1, len(names) // _SAMPLED)] if isinstance(name, str) and name]
    inner = [] if images else (Path(place) for place, _, _ in itertools.islice(os.walk(root), _MOST_FOLDERS))
    likely = itertools.product((str, _with_slashes, _last_part), folders)
    unlikely = ((rewritten, folder) for folder in inner for rewritten in (str, _last_part))
    for rewritten, folder in itertools.chain(likely, unlikely):
        if sampled and all(os.path.isfile(os.path.join(folder, rewritten(name))) for name in sampled):
            return _renamed(content, rewritten), folder
    # Some images are missing: the folder that has most of the images gives the best error message.
    hits = {folder: sum(os.path.isfile(folder / name) for name in sampled) for folder in folders}
    best = max(folders, key=hits.__getitem__)
    return content, best if hits[best] or images else root / "images"


def _image_folders(path: Path, split: str, root: Path) -> list[Path]:
    """Return a list of the folders that may contain the images of an annotation file, the likeliest first.

    Args:
        path: path of the annotation file.
        split: split of the images.
        root: data folder.
    """
    own = path.stem.rpartition("_")[2]
    folders = [root / "images" / own, root / "images", root / own]
    if own[-1:].isdigit():
        folders.reverse()
    folders += [path.parent / name for name in ("data", "images", "")]
    folders += [folder / name for folder in [split_folders(root).get(split)] if folder for name in ("", "images")]
    folders += [split_folders(root / "images").get(split, root), root, root / "JPEGImages", root / "data"]
    found = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
    return found or [root / "images"]


def _with_slashes(name: str) -> str:
    return name.replace("\\", "/")


def _last_part(name: str) -> str:
    """Return the file name at the end of ``name``, the path or URL of an image in a COCO file."""
    return PurePosixPath(unquote(_with_slashes(name).partition("?")[0])).name


def _renamed(content: dict, rewritten: Callable[[str], str]) -> dict:
    if rewritten is str:
        return content
    images = [
        record | {"file_name": rewritten(record["file_name"])} if isinstance(record.get("file_name"), str) else record
        for record in content["images"]
    ]
    if len({record.get("file_name") for record in images}) < len(images):
        return content
    return content | {"images": images}
