"""Recognise how the images and labels in a folder are arranged (its layout)."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from classification.data.image_folder import LAYOUT, Labelled, abridged, read_classes
from classification.data.tables import (
    METADATA,
    TABLE_SUFFIXES,
    Columns,
    divided,
    find_tables,
    read_labelled,
    read_table,
)
from mobile_former.training.data.images import IMAGE_SUFFIXES, find_images
from mobile_former.training.data.splits import only_folder, split_folders

_LOOKED_FOR = (
    f"{LAYOUT.removeprefix('expected ')} (also valid, validation, testing)",
    "DIR/<class>/<images>",
    "a CSV file with a column of paths and a column of labels",
    "metadata.csv with file_name and label, as Hugging Face's imagefolder has it",
)


class Layout(NamedTuple):
    """The recognised layout of a data folder, and functions that read its images.

    Attributes:
        name: description of the layout, such as "folders of classes".
        splits: dictionary from a split ("train", "val" or "test") to the function that returns the images of the split.
            If the data is not divided into splits, all images are in "train".
    """

    name: str
    splits: dict[str, Callable[[], Labelled]]


def find_layout(root: Path, columns: Columns | None = None) -> Layout:
    """Recognise and return the layout of a folder of labelled images, or of a table such as a CSV file.

    If a folder only contains another folder, as unpacked archives often do, the inner folder is examined.

    Args:
        root: path of the folder or the table.
        columns: names of the columns, if the images are listed in a table. None: the usual names.

    Raises:
        FileNotFoundError: ``root`` does not exist, or no layout is recognised. The message contains the layouts that
            were looked for, and the content of the folder.
        InputError: a table cannot be used, or it is not clear which of several tables to use.
    """
    columns = columns or Columns()
    if root.is_file() and root.suffix in TABLE_SUFFIXES:
        return _of_tables(divided(read_table(root)), columns)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} does not exist (--data.root): {LAYOUT}")
    present = split_folders(root)
    folders = {split: folder for split, folder in present.items() if _has_folders(folder)}
    # If the folders of the splits have no class folders, a table can name the images in them.
    if (not folders or any(map(_has_metadata, folders.values()))) and (tables := find_tables(root, columns)):
        return _of_tables(tables, columns)
    empty = {split: folder for split, folder in present.items() if split not in folders and not _has_images(folder)}
    if folders or len(empty) == len(present) > 0:
        # Reading an empty folder of a split raises an error.
        read = {split: cache(partial(read_classes, own)) for split, own in (folders | empty).items()}
        return Layout("folders of classes", read)
    if (inner := only_folder(root)) and not any(path.suffix.lower() in IMAGE_SUFFIXES for path in inner.iterdir()):
        return find_layout(inner, columns)  # an unpacked archive
    classes = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if any(_has_images(path) for path in classes if path not in present.values()):  # splits without classes are none
        return Layout("one folder of classes", {"train": cache(partial(read_classes, root))})
    found = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    raise FileNotFoundError(
        f"{root} (--data.root) has no layout that is recognised. Looked for {'; '.join(_LOOKED_FOR)}. There is "
        f"{abridged(found) if found else 'nothing'}; the columns of a table are named with --data.image_column and "
        "--data.label_column"
    )


def _of_tables(tables: dict, columns: Columns) -> Layout:
    read = {}
    for split, [(table, numbers)] in tables.items():
        read[split] = cache(partial(read_labelled, table, numbers, split, columns))
        name = table.path.name
    return Layout(f"table ({name})", read)


def _has_folders(folder: Path) -> bool:
    return any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir()) or _has_metadata(folder)


def _has_metadata(folder: Path) -> bool:
    return any((folder / name).is_file() for name in METADATA)


def _has_images(folder: Path) -> bool:
    return bool(find_images(folder).images)
