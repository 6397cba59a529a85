"""Read labelled images from folders in ImageNet's layout: ``train/<class>/*`` and ``val/<class>/*``."""

from collections import Counter
from pathlib import Path

from mobile_former.errors import InputError
from mobile_former.training.data.dataset import ListedImages
from mobile_former.training.data.images import find_images, list_others, warn_of_others

_LAYOUT = "expected DIR/train/<class>/<images> and DIR/val/<class>/<images>"


class ImageFolder(ListedImages):
    """Labelled images of one split. The images of a class are the files in ``root/split/<class>/``.

    Args:
        root: folder that contains the splits.
        split: name of the split's folder, such as ``train`` or ``val``.
        class_names: class names in the order of the labels. The split may lack some of these classes.

    Attributes:
        labels: list of the labels, one per image.

    Raises:
        FileNotFoundError: ``root`` or ``root/split`` does not exist.
        InputError: the split has no class folder, or a class folder is not in ``class_names`` or has no images.
    """

    def __init__(self, root: Path, split: str, class_names: list[str]):
        self.folder = root / split
        present = list_classes(root, split)
        if unknown := sorted(set(present) - set(class_names)):
            raise InputError(
                f"{self.folder} has the class{'es' * (len(unknown) > 1)} {', '.join(map(repr, unknown))}, "
                f"which the model does not have (it has {_abridged(class_names)}): rename or remove the folder, "
                "or train with it"
            )
        paths: list[Path] = []
        left_out: Counter[str] = Counter()
        self.labels: list[int] = []
        for label, name in enumerate(class_names):
            if name not in present:
                continue
            own, others = find_images(self.folder / name)
            if not own:
                has = f" (but {list_others(others)})" if others else ""
                raise InputError(f"{self.folder / name} contains no images{has}: add images, or remove the folder")
            left_out += others
            paths += own
            self.labels += [label] * len(own)
        warn_of_others(self.folder, len(paths) + left_out.total(), left_out)
        super().__init__(paths)


def list_classes(root: Path, split: str) -> list[str]:
    """Return the class names of a split: the sorted names of the folders in ``root/split``.

    Raises:
        FileNotFoundError: ``root`` or ``root/split`` does not exist.
        InputError: the split has no class folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} does not exist (--data.root): {_LAYOUT}")
    folder = root / split
    if not folder.is_dir():
        found = sorted(path.name for path in root.iterdir() if path.is_dir())
        raise FileNotFoundError(
            f"{root} has no folder {split!r} (it has {_abridged(found) if found else 'no folders'}): {_LAYOUT}"
        )
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise InputError(f"{folder} has no class folders: {_LAYOUT}")
    return names


def _abridged(names: list[str], most: int = 10) -> str:
    """Return the quoted names as text. If there are more than ``most`` names, "and N more" replaces the last N."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + rest
