"""Read labelled images from folders: ``train/<class>/*`` and ``val/<class>/*``, or ``<class>/*`` without a split."""

from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

from mobile_former.errors import InputError
from mobile_former.training.data.dataset import ListedImages
from mobile_former.training.data.images import find_images, warn_of_others
from mobile_former.training.data.splits import split_folders

LAYOUT = "expected DIR/train/<class>/<images> and DIR/val/<class>/<images>"


class Labelled(NamedTuple):
    """Image files of one split with their classes.

    Attributes:
        place: path of the image folder or of the table of images, for use in error messages.
        paths: path of each image.
        names: class name of each image.
        classes: all class names in the order of the labels, including the names of classes without images.
        groups: group of each image, or None if there are no groups.
    """

    place: Path
    paths: list[Path]
    names: list[str]
    classes: list[str]
    groups: list[Hashable | None] | None = None

    def subset(self, indices: Sequence[int]) -> "Labelled":
        """Return the images at ``indices``, in this order, with the same classes."""
        groups = self.groups and [self.groups[index] for index in indices]
        paths, names = ([own[index] for index in indices] for own in (self.paths, self.names))
        return self._replace(paths=paths, names=names, groups=groups)


class LabelledImages(ListedImages):
    """Labelled images of one split, sorted by label.

    Args:
        labelled: the image files with their classes.
        class_names: class names in the order of the labels. A class may have no images in the split.

    Attributes:
        labels: list with the integer label of each image.

    Raises:
        InputError: an image has a class that is not in ``class_names``, or there are no images.
    """

    def __init__(self, labelled: Labelled, class_names: Sequence[str]):
        label_of = {name: label for label, name in enumerate(class_names)}
        if unknown := [name for name in dict.fromkeys(labelled.names) if name not in label_of]:
            raise InputError(
                f"{labelled.place} has the class{'es' * (len(unknown) > 1)} {', '.join(map(repr, unknown))}, "
                f"which the model does not have (it has {abridged(class_names)}): rename or remove the folder, "
                "or train with it"
            )
        if not labelled.paths:
            raise InputError(f"{labelled.place} contains no images: add images")
        labels = [label_of[name] for name in labelled.names]
        order = sorted(range(len(labels)), key=labels.__getitem__)
        super().__init__([labelled.paths[index] for index in order])
        self.labels = [labels[index] for index in order]


class ImageFolder(LabelledImages):
    """Labelled images of one split. The images of a class are the files in ``root/split/<class>/``.

    Args:
        root: folder that contains the splits.
        split: ``"train"``, ``"val"`` or ``"test"``. The folder of the split can also have another usual name, such as
            ``valid``.
        class_names: class names in the order of the labels. A class may have no images in the split.

    Attributes:
        labels: list with the integer label of each image.

    Raises:
        FileNotFoundError: ``root`` or the folder of the split does not exist.
        InputError: the split has no class folder, or a class folder is not in ``class_names``.
    """

    def __init__(self, root: Path, split: str, class_names: list[str]):
        super().__init__(read_classes(split_folder(root, split)), class_names)


def read_classes(folder: Path) -> Labelled:
    """Find the images in the class folders of ``folder``. Return their paths with their class names.

    Raises:
        InputError: there is no class folder.
    """
    paths: list[Path] = []
    names: list[str] = []
    left_out: Counter[str] = Counter()
    classes = class_folders(folder)
    for name in classes:
        own, others = find_images(folder / name)
        left_out += others
        paths += own
        names += [name] * len(own)
    warn_of_others(folder, len(paths) + left_out.total(), left_out)
    return Labelled(folder, paths, names, classes)


def list_classes(root: Path, split: str) -> list[str]:
    """Return the class names of a split: the sorted names of its class folders.

    Raises:
        FileNotFoundError: ``root`` or the folder of the split does not exist.
        InputError: the split has no class folder.
    """
    return class_folders(split_folder(root, split))


def split_folder(root: Path, split: str) -> Path:
    """Return the path of the folder of a split. For ``"val"``, this can be ``root/valid``.

    Raises:
        FileNotFoundError: ``root`` or the folder of the split does not exist.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} does not exist (--data.root): {LAYOUT}")
    folder = split_folders(root).get(split)
    if folder is None:
        found = sorted(path.name for path in root.iterdir() if path.is_dir())
        raise FileNotFoundError(
            f"{root} has no folder {split!r} (it has {abridged(found) if found else 'no folders'}): {LAYOUT}"
        )
    return folder


def class_folders(folder: Path) -> list[str]:
    """Return a sorted list of the names of all subfolders, except hidden ones.

    Raises:
        InputError: there is no subfolder, or all of them are hidden.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise InputError(f"{folder} has no class folders: {LAYOUT}")
    return names


def abridged(names: Sequence[str], most: int = 10) -> str:
    """Return the first ``most`` names in quotes, as one text that ends with "and N more" if N names are left out."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + rest
