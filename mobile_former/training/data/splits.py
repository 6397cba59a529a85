"""Splits of a data set: names of their folders, choice of validation images, and files that are in two splits."""

import csv
import hashlib
import itertools
import json
import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mobile_former.errors import InputError
from mobile_former.whole_file import write_whole

SPLITS = ("train", "val", "test")
FRACTION = 0.2  # fraction of the images that is held out for validation, if the data has no validation split
SPLIT_FILE = "split.json"  # in the folder of a run
GROUP_FILE = "groups.csv"  # in the data folder
GROUP_COLUMNS = ("group", "group_id")

_NAMES = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}
_CHECKED = 200_000  # maximum number of files to compare, because getting the size of each file takes time


def split_of(name: str) -> str | None:
    """Return the split that a folder or file name stands for: ``"train"``, ``"val"`` or ``"test"``, or None if none.

    Upper and lower case are not distinguished. A number at the end is ignored, as in ``train2017``.
    """
    word = name.strip().lower().rstrip("0123456789").rstrip("-_ ")
    return next((split for split, names in _NAMES.items() if word in names), None)


def split_folders(root: Path) -> dict[str, Path]:
    """Return a dictionary from each split to its subfolder of ``root``, such as ``valid`` for ``"val"``.

    If several subfolders have usual names of the same split, the one whose name comes first in ``_NAMES`` is chosen.

    Raises:
        InputError: two subfolders have the same name except for upper and lower case, such as ``val`` and ``Val``.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        if (split := split_of(path.name)) and path.is_dir():
            found[split].append(path)
    chosen = {}
    for split in SPLITS:
        if split in found:
            ranks = [_rank(path.name, split) for path in found[split]]
            first, *others = [path for path, rank in zip(found[split], ranks, strict=True) if rank == min(ranks)]
            if others:
                raise InputError(f"{root} has the folders {first.name!r} and {others[0].name!r}: rename one of them")
            chosen[split] = first
    return chosen


def only_folder(root: Path) -> Path | None:
    """Return the only subfolder of ``root``, or None if there is no subfolder or more than one.

    Hidden folders and macOS's ``__MACOSX`` are not counted.
    """
    folders = [path for path in root.iterdir() if path.is_dir() and path.name[:1] != "." and path.name != "__MACOSX"]
    return folders[0] if len(folders) == 1 else None


def _rank(name: str, split: str) -> int:
    return _NAMES[split].index(name.strip().lower().rstrip("0123456789").rstrip("-_ "))


@dataclass(frozen=True)
class HoldOut:
    """Options that determine which training images are held out for validation.

    Args:
        fraction: fraction of the images to hold out, above 0 and below 1. None: 0.2.
        folds: number of parts for cross-validation, at least 2. None: no cross-validation.
        fold: number of the part to hold out, from 1 to ``folds``.
        seed: seed of the random choice.

    Raises:
        InputError: a value is out of range, or the options contradict each other.
    """

    fraction: float | None = None
    folds: int | None = None
    fold: int | None = None
    seed: int = 0

    def __post_init__(self):
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise InputError(f"--data.val_fraction is {self.fraction}: give a number above 0 and below 1, such as 0.2")
        if self.folds is not None and self.folds < 2:
            raise InputError(f"--data.folds is {self.folds}: give at least 2")
        if (self.folds is None) != (self.fold is None):
            raise InputError("--data.folds and --data.fold belong together: --data.folds 5 --data.fold 1, then 2 to 5")
        if self.folds is not None and self.fraction is not None:
            raise InputError("--data.val_fraction and --data.folds exclude each other: leave one of them out")
        if self.folds is not None and not 1 <= self.fold <= self.folds:
            raise InputError(f"--data.fold is {self.fold}: give a number from 1 to {self.folds}")

    @property
    def is_asked_for(self) -> bool:
        """True if the user has set an option, so that images are held out even if the data has a validation split."""
        return self.fraction is not None or self.folds is not None

    @property
    def text(self) -> str:
        """Description of the images that are held out, such as "fold 1 of 5, stratified, seed 0"."""
        if self.folds is not None:
            return f"fold {self.fold} of {self.folds}, stratified, seed {self.seed}"
        return f"{self.fraction or FRACTION:.3g} of the images, stratified, seed {self.seed}"

    def choose(self, counts: np.ndarray, groups: Sequence[Hashable | None] | None = None) -> np.ndarray:
        """Choose the validation images. The same arguments give the same choice.

        Args:
            counts: ``(images, classes)``, how often each class occurs in each image.
            groups: group of each image. Either all images of a group are chosen, or none. An image whose group is None
                is a group of its own. Default: every image is a group of its own.

        Returns:
            Array ``(images,)`` bool, True for the validation images.

        Raises:
            InputError: there are fewer groups than parts.
        """
        fraction = self.fraction or FRACTION
        shares = [1 / self.folds] * self.folds if self.folds else [1 - fraction, fraction]
        parts = stratified_parts(counts, shares, self.seed, groups)
        return parts == (self.fold - 1 if self.folds else 1)


def stratified_parts(
    counts: np.ndarray, shares: Sequence[float], seed: int, groups: Sequence[Hashable | None] | None = None
) -> np.ndarray:
    """Divide images at random into parts with similar class frequencies. No part is empty.

    This is iterative stratification (Sechidis et al., "On the Stratification of Multi-Label Data", 2011). It also works
    for images with several classes. The images of the rarest class are distributed first. Each is added to the part
    that lacks most objects of this class. If every part lacks less than one object of the class, the image goes to the
    part that lacks most images.

    Args:
        counts: ``(images, classes)``, how often each class occurs in each image.
        shares: fraction of the images in each part; the sum is 1.
        seed: seed of the random order.
        groups: see :meth:`HoldOut.choose`.

    Returns:
        Array ``(images,)`` with the number of the part of each image, from 0.

    Raises:
        InputError: there are fewer groups than parts.
    """
    images = len(counts)
    keys = range(images) if groups is None else [("own", n) if g is None else g for n, g in enumerate(groups)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    group_of = np.array([numbers[key] for key in keys], dtype=np.int64)
    total, parts = len(numbers), len(shares)
    if total < parts:
        kind = "images" if groups is None else "groups of images"
        raise InputError(f"{total} {kind} cannot be divided into {parts} parts: give more, or fewer --data.folds")
    table = np.zeros((total, counts.shape[1] + 1))  # the last column counts the images
    np.add.at(table, group_of, np.column_stack([counts, np.ones(images)]))
    order = np.random.default_rng(seed).permutation(total)
    occurring = (table > 0).sum(0)
    labels = [*sorted(range(counts.shape[1]), key=lambda label: occurring[label]), counts.shape[1]]
    lacking = np.outer(shares, table.sum(0)).tolist()
    part_of = np.full(total, -1)
    seen, sizes = 0.0, [0.0] * parts  # images so far, in all parts and in each
    for label in labels:
        members = order[(part_of[order] < 0) & (table[order, label] > 0)]
        members = members[np.argsort(-table[members, label], kind="stable")]
        seen += table[members, -1].sum()
        for group in members.tolist():
            part = max(range(parts), key=lambda part: lacking[part][label])
            if lacking[part][label] < 1 - 1e-9:
                part = max(range(parts), key=lambda part: shares[part] * seen - sizes[part])
            part_of[group] = part
            row = table[group].tolist()
            lacking[part] = [before - own for before, own in zip(lacking[part], row, strict=True)]
            sizes[part] += row[-1]
    for part in range(parts):
        if not (part_of == part).any():
            largest = np.bincount(part_of, minlength=parts).argmax()
            part_of[order[part_of[order] == largest][0]] = part
    return part_of[group_of]


def write_split(path: Path, text: str, names: Sequence[str], held_out: np.ndarray) -> None:
    """Write the names of the training and the validation images to a JSON file.

    Args:
        path: path of the file.
        text: description of how the validation images were chosen.
        names: name of each image.
        held_out: ``(images,)`` bool, True for the validation images.
    """
    content = {"held_out": text, "train": [], "val": []}
    for name, held in zip(names, held_out.tolist(), strict=True):
        content["val" if held else "train"].append(name)
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def read_split(path: Path, names: Sequence[str], *, share: float = 0.5) -> np.ndarray | None:
    """Read a file that :func:`write_split` has written.

    Images that the file does not list are training images.

    Args:
        path: path of the file.
        names: name of each image.
        share: minimum fraction of the images listed in the file that must be among ``names``.

    Returns:
        Array ``(images,)`` bool, True for the validation images. None if the file does not exist or belongs to other
        images. The latter is assumed if ``names`` contains none of the validation images that the file lists, or less
        than the fraction ``share`` of all images that it lists.

    Raises:
        InputError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        held, trained = set(content["val"]), set(content["train"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}): restore it, or start a new run") from error
    known = set(names)
    if not held & known or len((held | trained) & known) < share * len(held | trained):
        return None
    return np.array([name in held for name in names])


def read_groups(path: Path) -> dict[str, str]:
    """Read a CSV file with one image and its group in each row, and return a dictionary from image path to group.

    The first row of the file contains the column names. The column of the groups is called ``group`` or ``group_id``.
    The first other column, which can have any name, contains the paths of the images.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file does not have these columns.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path} (--data.groups): give a CSV file with the columns image and group")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        group = next((name for name in columns if name.strip().lower() in GROUP_COLUMNS), None)
        image = next((name for name in columns if name != group), None)
        if group is None or image is None:
            raise InputError(f"{path} has the columns {columns}: give image and group")
        return {Path(row[image]).as_posix(): row[group] for row in reader if row[image]}


def groups_of(names: Sequence[str], root: Path, given: str | None) -> list[str | None] | None:
    """Read the groups file. Return a list with the group of each image, or None if there is no such file.

    Args:
        names: name of each image relative to ``root``. The file can also list names without their folder.
        root: data folder. Its file ``groups.csv`` is used if ``given`` is None.
        given: value of ``--data.groups``, a path.

    Raises:
        InputError: one of the images is missing in the file.
    """
    path = Path(given) if given is not None else root / GROUP_FILE
    if given is None and not path.is_file():
        return None
    known = read_groups(path)
    groups = [known.get(name, known.get(name.rpartition("/")[2])) for name in names]
    if missing := [name for name, group in zip(names, groups, strict=True) if group is None]:
        raise InputError(
            f"{path} has no group for {len(missing)} of {len(names)} images (the first: {missing[0]}): add them"
        )
    return groups


def same_files(first: Iterable[str], second: Iterable[str]) -> list[tuple[str, str]]:
    """Return a list of tuples (path in ``first``, path in ``second``) of files with the same content.

    Each file of ``second`` is in at most one pair. Only files of the same size are read. If there are more than 200 000
    files, they are not compared, and the list is empty.
    """
    first, second = list(first), list(second)
    if len(first) + len(second) > _CHECKED:
        return []
    sizes: dict[int, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for side, path in itertools.chain(((0, path) for path in first), ((1, path) for path in second)):
        try:
            sizes[os.stat(path).st_size][side].append(path)
        except OSError:  # reported when the image is read
            continue
    pairs = []
    for ones, others in sizes.values():
        if ones and others:
            contents = {_digest(path): path for path in reversed(ones)}
            pairs += [(contents[key], path) for path in others if (key := _digest(path)) in contents]
    return pairs


def _digest(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:
        return path.encode()
