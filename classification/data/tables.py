"""Read labelled images from tables: CSV files of paths and labels, and the metadata files of Hugging Face."""

import csv
import json
import logging
from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

from classification.data.image_folder import Labelled, abridged
from mobile_former.errors import InputError
from mobile_former.training.data.images import IMAGE_SUFFIXES, find_images
from mobile_former.training.data.splits import GROUP_COLUMNS, GROUP_FILE, split_folders, split_of

_logger = logging.getLogger(__name__)

METADATA = ("metadata.csv", "metadata.jsonl", "_classes.csv")  # of Hugging Face, and of Roboflow
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")

_IMAGE_COLUMNS = (
    "file_name", "filename", "file", "path", "filepath", "file_path", "image_path", "img_path", "image", "img",
    "image_name", "image_id", "img_id", "id", "name",
)  # fmt: skip
_LABEL_COLUMNS = (
    "label", "labels", "class", "class_name", "class_label", "category", "target", "y", "species", "breed", "diagnosis",
)  # fmt: skip
_SPLIT_COLUMNS = ("split", "set", "subset", "partition", "dataset")
_VALIDATION_COLUMN = ["is_valid"]  # of fastai: whether an image is in the validation split
_MARKS = {"1": True, "1.0": True, "0": False, "0.0": False}
_SPLIT_OF_MARK = {"true": "val", "false": "train"} | {mark: "val" if own else "train" for mark, own in _MARKS.items()}


class Columns(NamedTuple):
    """Names of the columns as given by the user. None: the column is found by usual names, such as "label"."""

    image: str | None = None
    label: str | None = None
    group: str | None = None


class Table(NamedTuple):
    """Content of a table.

    Attributes:
        path: path of the file.
        columns: names of the columns.
        rows: one dictionary from column name to text for each row, in the order of the file.
    """

    path: Path
    columns: list[str]
    rows: list[dict[str, str]]


def read_table(path: Path) -> Table:
    """Read a CSV file, a TSV file or a file of JSON lines.

    The delimiter of a CSV file is a comma, a semicolon or a tab. If the first row contains the name of an image
    file, the file has no header, and the columns are called 1, 2 and so on.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            records = [json.loads(line) for line in text.splitlines() if line.strip()]
            rows = [{key: str(value) for key, value in record.items() if value is not None} for record in records]
            return Table(path, list(dict.fromkeys(key for row in rows for key in row)), rows)
    except (UnicodeDecodeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} cannot be read as a table ({error}): write it again") from error
    lines = text.splitlines()
    delimiter = max(",;\t", key=(lines[0] if lines else "").count)
    cells = [row for row in csv.reader(lines, delimiter=delimiter) if any(cell.strip() for cell in row)]
    if not cells:
        return Table(path, [], [])
    columns = [cell.strip() for cell in cells[0]]
    if any(Path(cell).suffix.lower() in IMAGE_SUFFIXES for cell in columns):
        columns = [str(number) for number in range(1, len(columns) + 1)]
    else:
        cells = cells[1:]
    return Table(path, columns, [dict(zip(columns, map(str.strip, row), strict=False)) for row in cells])


def find_tables(root: Path, columns: Columns) -> dict[str, list[tuple[Table, list[int]]]]:
    """Find the tables of labelled images in the folder ``root``, or in its subfolders for the splits.

    Returns:
        A dictionary from a split to a list with one tuple (table, indices of the rows of this split). The dictionary is
        empty if there is no table with labels.

    Raises:
        InputError: it is not clear which of several tables to use, no table has a column that ``columns`` names, or a
            table cannot be read.
    """
    named: dict[str, list[Table]] = defaultdict(list)
    for split, folder in split_folders(root).items():
        named[split] += [read_table(folder / name) for name in METADATA if (folder / name).is_file()]
    unsplit: list[Table] = []
    for path in sorted(path for path in root.iterdir() if path.suffix in TABLE_SUFFIXES and path.name != GROUP_FILE):
        if "submission" in path.stem.lower():
            continue  # Kaggle's form for predictions
        table = read_table(path)
        words = [path.stem, *path.stem.lower().replace("-", "_").split("_")]
        split = next((split for word in words if (split := split_of(word))), None)
        (named[split] if split else unsplit).append(table)
    found = {split: own for split, tables in named.items() if (own := [t for t in tables if has_labels(t, columns)])}
    if not found:
        for table in [*unsplit, *(table for tables in named.values() for table in tables)]:
            _require_columns(table, columns)
        unsplit = [table for table in unsplit if has_labels(table, columns)]
        if len(unsplit) > 1:
            names = abridged([table.path.name for table in unsplit])
            raise InputError(f"{root} has the tables {names}: give one of them as --data.root")
        return divided(unsplit[0]) if unsplit else {}
    for split, tables in found.items():
        if len(tables) > 1:
            names = abridged([table.path.name for table in tables])
            raise InputError(f"{root} has the tables {names} of {split!r}: give one of them as --data.root")
    return {split: [(tables[0], list(range(len(tables[0].rows))))] for split, tables in found.items()}


def divided(table: Table) -> dict[str, list[tuple[Table, list[int]]]]:
    """Divide the rows of a table by its column of splits, and return a dictionary like :func:`find_tables`.

    All rows are training images if there is no such column, or if an entry of the column is not the name of a split.
    """
    splits: list[str | None] = [None]
    if column := _column(table, _SPLIT_COLUMNS):
        splits = [split_of(row.get(column, "")) for row in table.rows]
    elif column := _column(table, _VALIDATION_COLUMN):
        splits = [_SPLIT_OF_MARK.get(row.get(column, "").lower()) for row in table.rows]
    if None in splits:
        splits = ["train"] * len(table.rows)
    numbers: dict[str, list[int]] = defaultdict(list)
    for number, split in enumerate(splits):
        numbers[split].append(number)
    return {split: [(table, own)] for split, own in numbers.items()}


def has_labels(table: Table, columns: Columns) -> bool:
    """Return whether a table has a column of images, and either a column of labels or one column for each class."""
    image = _image_column(table, columns)
    return bool(table.rows) and image is not None and _labels(table, image, columns) is not None


def read_labelled(table: Table, numbers: Sequence[int], split: str, columns: Columns) -> Labelled:
    """Return the images in the rows ``numbers`` of a table, which belong to ``split``.

    Rows without a label are left out, with a warning.

    Raises:
        FileNotFoundError: an image does not exist.
        InputError: the table lacks the column of images, labels or groups, or the name of an image fits several files.
    """
    _require_columns(table, columns)
    image = _image_column(table, columns)
    names = _labels(table, image, columns) if image else None
    if names is None:
        raise InputError(
            f"{table.path} has the columns {abridged(table.columns)}: name those of images and labels with "
            "--data.image_column and --data.label_column"
        )
    given, numbers = numbers, [number for number in numbers if names[number]]
    if missing := len(given) - len(numbers):
        _logger.warning("%s: rows without a label are left out: %d", table.path, missing)
    paths = _find_all([table.rows[number].get(image, "") for number in numbers], table.path, split)
    known = {name for name in names if name}
    classes = sorted(known, key=int) if all(name.isdecimal() for name in known) else sorted(known)
    group = _column(table, [columns.group] if columns.group else GROUP_COLUMNS)
    groups: list[Hashable | None] | None = [table.rows[n].get(group) or None for n in numbers] if group else None
    return Labelled(table.path, paths, [names[number] for number in numbers], classes, groups)


def _require_columns(table: Table, columns: Columns) -> None:
    for option, name in zip(("--data.image_column", "--data.label_column", "--data.groups"), columns, strict=True):
        if name is not None and not _column(table, [name]):
            raise InputError(f"{table.path} has no column {name!r} ({option}): it has {abridged(table.columns)}")


def _column(table: Table, names: Sequence[str]) -> str | None:
    known = {column.lower(): column for column in reversed(table.columns)}
    return next((known[name.lower()] for name in names if name.lower() in known), None)


def _image_column(table: Table, columns: Columns) -> str | None:
    if columns.image is not None:
        return _column(table, [columns.image])
    first = table.rows[0] if table.rows else {}
    with_suffix = [name for name in table.columns if Path(first.get(name, "")).suffix.lower() in IMAGE_SUFFIXES]
    return _column(
        table, [name for name in _IMAGE_COLUMNS if not with_suffix or name in map(str.lower, with_suffix)]
    ) or (with_suffix[0] if with_suffix else None)


def _labels(table: Table, image: str, columns: Columns) -> list[str] | None:
    """Return a list with the class name of each row, or None if the table has no labels.

    ``image`` is the name of the column of images. A class name is empty if the row has no label.

    Raises:
        InputError: the table has one column for each class, and an image has several classes.
    """
    label = _column(table, [columns.label] if columns.label else _LABEL_COLUMNS)
    others = [name for name in table.columns if name != image]
    if label is None and columns.label is None and len(others) == 1:
        label = others[0]
    if label is not None and label != image:
        return [_plain(row.get(label, "")) for row in table.rows]
    if columns.label is not None or len(others) < 2:
        return None
    # One column for each class, with 1 in the column of the image's class.
    if any(row.get(name, "") not in _MARKS for row in table.rows for name in others):
        return None
    chosen = [[name for name in others if _MARKS[row[name]]] for row in table.rows]
    if several := next((row[image] for row, own in zip(table.rows, chosen, strict=True) if len(own) > 1), None):
        count = sum(len(own) > 1 for own in chosen)
        raise InputError(
            f"{table.path} marks several classes for {count} of {len(chosen)} images, such as {several}, but an image "
            "has one class here: leave these images out, or give the table a column of labels"
        )
    return ["".join(own) for own in chosen]  # without a label if no class is marked


def _plain(label: str) -> str:
    """Remove the ending ".0", which pandas adds to whole numbers, from a label."""
    return label.removesuffix(".0") if label.removesuffix(".0").isdecimal() else label


def _find_all(written: Sequence[str], table: Path, split: str) -> list[Path]:
    """Return a list with the path of each image in a table.

    Args:
        written: the table's entry for each image. An entry is a path relative to the table, or a file name with or
            without suffix.
        table: path of the table.
        split: split of the images. If an entry fits several files, the file in the folder of this split is chosen.
    """
    folder = table.parent
    paths: list[Path | None] = [_existing(folder, name) for name in written]
    if None not in paths:
        return paths
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in find_images(folder).images:
        by_name[path.name].append(path)
        by_name[path.stem].append(path)
    own = split_folders(folder).get(split)
    names = [name.replace("\\", "/").rpartition("/")[2] for name in written]
    for number, path in enumerate(paths):
        if path is not None:
            continue
        name = written[number].replace("\\", "/")
        found = by_name.get(names[number], [])
        if len(found) > 1:
            found = [path for path in found if path.as_posix().endswith(f"/{name}")] or found
        if len(found) > 1 and own is not None:
            found = [path for path in found if path.is_relative_to(own)] or found
        if not found:
            missing = sum(path is None and not by_name.get(name) for path, name in zip(paths, names, strict=True))
            more = f", like {missing - 1} other images" if missing > 1 else ""
            raise FileNotFoundError(
                f"{table} names the image {written[number]!r}, which is not in {folder}{more}: restore them, or remove "
                "their rows"
            )
        if len(found) > 1:
            raise InputError(
                f"{table} names the image {written[number]!r}, but {found[0]} and {found[1]} have this name"
            )
        paths[number] = found[0]
    return paths


def _existing(folder: Path, name: str) -> Path | None:
    path = folder / name.replace("\\", "/")
    return path if name and path.is_file() else None
