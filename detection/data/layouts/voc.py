"""Recognise and read data folders in the layout of Pascal VOC: an XML file for each image."""

import re
from collections import defaultdict
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

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
from mobile_former.training.data.images import find_images, image_size
from mobile_former.training.data.splits import split_folders, split_of

LOOKED_FOR = (
    "Pascal VOC: Annotations/*.xml, JPEGImages/ (or images/) and optionally ImageSets/Main/train.txt and val.txt",
    "Pascal VOC of Roboflow and LabelImg: XML files beside the images, with or without train/, valid/ and test/",
)

_ANNOTATION_FOLDERS = ("Annotations", "annotations", "Annotation", "xmls", "labels")
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs", "data")
_ZERO_BASED_TOOL = "label studio"


class _Parsed(NamedTuple):
    """Images of one split, and evidence on whether their XML files number the first pixel 0 or 1."""

    images: list[LabelledImage]  # with the corners as written in the files
    from_zero: bool  # a corner is below 1, or the tool is known to count from 0
    decimals: bool  # a corner has decimals


def find_voc(root: Path) -> Layout | None:
    """Return the :class:`Layout` of a Pascal VOC data set in ``root`` or a subfolder, or None if there is none.

    Raises:
        InputError: several folders in ``root`` have this layout.
    """
    bases = [root] if _annotation_folder(root) else [*root.glob("VOC*"), *root.glob("VOCdevkit/VOC*")]
    bases = [base for base in bases if _annotation_folder(base)]
    if len(bases) > 1:
        names = ", ".join(sorted(base.name for base in bases))
        raise InputError(f"{root} contains several data sets, {names}: give one of them as --data.root")
    base = bases[0] if bases else root
    if bases:
        pairs = _splits_of_sets(base)
    else:
        folders = {split: folder for split, folder in split_folders(root).items() if _holds_annotations(folder)}
        if not folders and any(root.glob("*.xml")) and _is_voc(next(iter(sorted(root.glob("*.xml"))))):
            folders = {"train": root}
        pairs = {split: _pairs(_annotation_folder(own) or own, _image_folder(own)) for split, own in folders.items()}
    if not pairs:
        return None
    parsed = {split: cache(partial(_parse, images, base)) for split, images in pairs.items()}

    @cache
    def origin() -> int:
        """Return the number of the first pixel: 1 as in Pascal VOC, or 0 if the files seem to count from 0."""
        found = [own() for own in parsed.values()]
        zero = any(own.from_zero for own in found) or _by_fiftyone(base)
        return int(not (zero or (_by_datumaro(base) and any(own.decimals for own in found))))

    def read(split: str) -> tuple[dict, Path]:
        names = class_names({each: partial(_images, own) for each, own in parsed.items()}, split)
        return to_coco((_shifted(image, origin()) for image in parsed[split]().images), base, names)

    def note() -> str:
        reason = "as Pascal VOC defines" if origin() else "as the files show"
        return f"corners count pixels from {origin()}, {reason}"

    splits = {split: Annotations(base, partial(read, split), "difficult objects") for split in pairs}
    return Layout("Pascal VOC", splits, note)


def _images(parsed: Callable[[], _Parsed]) -> list[LabelledImage]:
    return parsed().images


def _annotation_folder(base: Path) -> Path | None:
    folders = (base / name for name in _ANNOTATION_FOLDERS)
    return next((folder for folder in folders if folder.is_dir() and _first_xml(folder)), None)


def _first_xml(folder: Path) -> Path | None:
    return next(iter(folder.rglob("*.xml")), None)


def _holds_annotations(folder: Path) -> bool:
    path = _first_xml(folder)
    return path is not None and _is_voc(path)


def _is_voc(path: Path) -> bool:
    try:
        return ElementTree.parse(path).getroot().tag == "annotation"
    except ElementTree.ParseError:
        return True  # reported with its place when it is read


def _image_folder(base: Path) -> Path:
    return next((base / name for name in _IMAGE_FOLDERS if (base / name).is_dir()), base)


def _pairs(annotations: Path, images: Path) -> list[tuple[Path, Path | None]]:
    """Return a list of tuples (path of an image, path of its XML file or None), one for each image.

    ``annotations`` is the folder of the XML files, and ``images`` is the folder of the images.
    """
    found = find_images(images).images
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in found:
        by_stem[path.relative_to(images).with_suffix("").as_posix()].append(path)
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in found:
        by_name[path.stem].append(path)
    xml_of: dict[Path, Path] = {}
    for path in sorted(annotations.rglob("*.xml")):
        stem = path.relative_to(annotations).with_suffix("").as_posix()
        candidates = by_stem.get(stem) or by_name.get(path.stem) or []
        if len(candidates) != 1:
            name = (_parse_xml(path).findtext("filename") or "").strip().replace("\\", "/")
            last = name.rpartition("/")[2]
            candidates = [image for image in candidates or found if image.name == last or image.stem == last][:1]
        if not candidates:
            raise FileNotFoundError(f"no image in {images} for {path}: put it there, or remove the XML file")
        xml_of[candidates[0]] = path
    return [(path, xml_of.get(path)) for path in found]


def _splits_of_sets(base: Path) -> dict[str, list[tuple[Path, Path | None]]]:
    annotations, images = _annotation_folder(base), _image_folder(base)
    lists = {path.stem: path for path in sorted((base / "ImageSets" / "Main").glob("*.txt"))}
    chosen: dict[str, Path] = {}
    for stem, path in sorted(lists.items(), key=lambda item: item[0].lower() == "trainval"):
        if split := split_of(stem) or ("train" if stem.lower() in {"default", "all"} else None):
            chosen.setdefault(split, path)
    pairs = _pairs(annotations, images)
    if not chosen:
        folders = split_folders(images)
        inside = {split: [pair for pair in pairs if pair[0].is_relative_to(own)] for split, own in folders.items()}
        return {split: own for split, own in inside.items() if own} or {"train": pairs}
    known = {image.relative_to(images).with_suffix("").as_posix(): (image, xml) for image, xml in pairs}
    return {split: _in_list(path, known) for split, path in chosen.items()}


def _in_list(path: Path, known: dict[str, tuple[Path, Path | None]]) -> list[tuple[Path, Path | None]]:
    found = []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        name = line.strip()
        if not name:
            continue
        candidates = [name, name.strip("\"'"), re.sub(r"\s+-?[01]$", "", name).strip("\"'")]
        candidates += [str(Path(candidate).with_suffix("")) for candidate in candidates]
        pair = next((known[candidate] for candidate in candidates if candidate in known), None)
        if pair is None:
            raise InputError(f"{path} lists {name!r}, but there is no such image: restore it, or remove the line")
        found.append(pair)
    return found


def _by_datumaro(base: Path) -> bool:
    """Return whether datumaro or CVAT wrote the folder. In their files, the first pixel has the number 0."""
    path = base / "labelmap.txt"
    return path.is_file() and path.read_text(encoding="utf-8", errors="replace").startswith("# label:color_rgb")


def _by_fiftyone(base: Path) -> bool:
    """Return whether FiftyOne wrote the folder. In its files, the first pixel has the number 0."""
    return (base / "labels").is_dir() and _image_folder(base).name == "data"


def _parse_xml(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise InputError(f"{path} is not XML ({error}): write or copy it again") from error


def _parse(pairs: list[tuple[Path, Path | None]], base: Path) -> _Parsed:
    if not pairs:
        raise InputError(f"{base} has a split without images")
    images, from_zero, decimals = [], False, False
    xml_of = dict(pairs)
    for image in progress(list(xml_of), base):
        if (xml := xml_of[image]) is None:
            images.append(LabelledImage(image, image_size(image), []))
            continue
        root = _parse_xml(xml)
        size = size_of(image, root.findtext("size/width"), root.findtext("size/height"))
        objects = []
        from_zero |= (root.findtext("owner/name") or "").strip().lower() == _ZERO_BASED_TOOL
        for position, element in enumerate(root.iter("object"), 1):
            name, texts = (element.findtext("name") or "").strip(), _corner_texts(element)
            try:
                corners = [float(text) for text in texts]
            except (TypeError, ValueError):
                corners = []
            if not name or len(corners) < 4:
                raise InputError(f"{xml}: object {position} needs a name and a bndbox with xmin, ymin, xmax and ymax")
            corners = enclosing([corners[:2], corners[2:]])
            from_zero |= min(corners[:2]) < 1 or element.find("bndbox") is None  # the XML of LabelMe's first versions
            decimals |= any("." in text for text in texts)
            objects.append(
                LabelledObject(name, corners, (element.findtext("difficult") or "").strip() in {"1", "true"})
            )
        images.append(LabelledImage(image, size, objects))
    return _Parsed(images, from_zero, decimals)


def _corner_texts(element: ElementTree.Element) -> list[str]:
    """Return left, top, right and bottom of an object as they are written in the XML file.

    They come from the element ``bndbox`` or, if it is missing, from the polygon. If the object has neither, the list is
    empty.
    """
    if element.find("bndbox") is not None:
        return [element.findtext(f"bndbox/{name}") or "" for name in ("xmin", "ymin", "xmax", "ymax")]
    points: dict[str, list[str]] = {"x": [], "y": []}
    for point in element.findall("polygon//*"):
        if point.tag[:1] in points and point.text and point.text.strip():
            points[point.tag[:1]].append(point.text)
    sides = [sorted(own, key=float) for own in points.values()]
    return [sides[0][0], sides[1][0], sides[0][-1], sides[1][-1]] if all(sides) else []


def _shifted(image: LabelledImage, origin: int) -> LabelledImage:
    """Return a copy of an image in which the corners of the objects are coordinates that start at 0.

    If ``origin`` is 0, nothing is changed. If ``origin`` is 1, the corners in the file are pixel numbers: those of the
    first and the last pixel of the object. Pixel n extends from coordinate n - 1 to n, so 1 is subtracted only from
    left and top.
    """
    shifted = [
        known._replace(corners=(known.corners[0] - origin, known.corners[1] - origin, *known.corners[2:]))
        for known in image.objects
    ]
    return image._replace(objects=shifted)
