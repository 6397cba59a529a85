"""Recognise the layout of a data folder."""

from pathlib import Path

from detection.data.layouts import coco, labelme, voc, yolo
from detection.data.layouts.annotations import Layout
from mobile_former.training.data.splits import only_folder

_FINDERS = (coco.find_coco, yolo.find_yolo, voc.find_voc, labelme.find_labelme, coco.find_any_coco)
_LOOKED_FOR = (*coco.LOOKED_FOR, *yolo.LOOKED_FOR, *voc.LOOKED_FOR, *labelme.LOOKED_FOR)
_SHOWN = 12  # names in an error message


def find_layout(root: Path) -> Layout:
    """Recognise and return the layout of a data folder: COCO, YOLO, Pascal VOC or LabelMe.

    Variants of these layouts that common tools write are recognised too. No file is changed. If a folder fits several
    layouts, one with training images is preferred. If a folder only contains another folder, as unpacked archives often
    do, the inner folder is examined.

    Args:
        root: path of the folder, or of the YAML file in a folder with YOLO's layout.

    Raises:
        FileNotFoundError: the folder does not exist, or no layout is recognised. The message contains the layouts that
            were looked for, and the content of the folder.
        InputError: a file that describes the layout cannot be read.
    """
    if root.is_file() and root.suffix in {".yaml", ".yml"} and (layout := yolo.find_yolo(root)):
        return layout
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root} (--data.root): give the folder of images and annotations")
    found = []
    for find in _FINDERS:
        layout = find(root)
        if layout is not None and "train" in layout.splits:
            return layout
        found += [layout] if layout is not None else []
    if found:
        return found[0]
    if inner := only_folder(root):
        return find_layout(inner)
    raise FileNotFoundError(
        f"{root} (--data.root) has no layout that is recognised. Looked for {'; '.join(_LOOKED_FOR)}. There is "
        f"{contents(root)}. Other COCO files are given as --data.annotations.train FILE and --data.images.train DIR"
    )


def contents(root: Path) -> str:
    """Return a list of the files and subfolders in a folder, two levels deep, as text for error messages."""
    names = []
    for path in sorted(root.iterdir()):
        if path.is_dir():
            inside = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
            names.append(f"{path.name}/ ({_listed(inside, 4) or 'empty'})")
        else:
            names.append(path.name)
    return _listed(names, _SHOWN) or "nothing"


def _listed(names: list[str], most: int) -> str:
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)
