"""Reading image files as RGB arrays, resizing, and normalising batches."""

import glob
import importlib.util
import io
import logging
import os
import struct
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError, features

from mobile_former.errors import InputError

_logger = logging.getLogger(__name__)

# Pillow reads further formats. They are left out, because they run other programs (EPS) or do not contain photographs.
_SUFFIXES = {
    "JPEG": {".jpg", ".jpeg", ".jfif"},
    "PNG": {".png"},
    "WEBP": {".webp"},
    "BMP": {".bmp"},
    "TIFF": {".tif", ".tiff"},
    "GIF": {".gif"},
    "PPM": {".ppm", ".pgm"},
}
if features.check("avif"):  # from Pillow 11.3, if it was built with libavif
    _SUFFIXES["AVIF"] = {".avif"}
_HEIF_SUFFIXES = {".heic", ".heif"}
if importlib.util.find_spec("pillow_heif"):
    import pillow_heif

    pillow_heif.register_heif_opener()
    _SUFFIXES["HEIF"] = _HEIF_SUFFIXES

IMAGE_SUFFIXES = frozenset().union(*_SUFFIXES.values())
_FORMATS = tuple(_SUFFIXES)


class ImageError(InputError):
    """Error for an image file that cannot be used. The message names the file, the fault and the remedy."""


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read an image file.

    See :func:`decode_image` for colours, bit depth and orientation.

    Args:
        path: path of the file. The format is detected from the content, not from the name.

    Returns:
        An array ``(H, W, 3)`` uint8 RGB, contiguous and writable.

    Raises:
        FileNotFoundError: the file does not exist.
        ImageError: the file cannot be opened, is not an image, or is incomplete.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            data = file.read()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{os.fspath(path)}: no such image file (looked from {os.getcwd()})") from error
    except IsADirectoryError as error:
        raise ImageError(f"{os.fspath(path)}: a folder, not an image; give the images in it") from error
    except PermissionError as error:
        raise ImageError(f"{os.fspath(path)}: no permission to read it; try `chmod u+r` on the file") from error
    except OSError as error:
        raise ImageError(f"{os.fspath(path)}: cannot be read ({error.strerror}); check path and disk") from error
    return decode_image(data, os.fspath(path))


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decode the bytes of an image file.

    - The pixels are identical to those that Pillow returns.
    - EXIF and XMP orientations are applied.
    - Transparent pixels are blended with white.
    - 16-bit values are reduced to their high byte.
    - Animations are reduced to their first frame.
    - Embedded colour profiles are ignored, as is usual for training data.

    Args:
        data: content of the file.
        name: name of the image in error messages.

    Returns:
        An array ``(H, W, 3)`` uint8 RGB, contiguous and writable.

    Raises:
        ImageError: the bytes are not an image that can be decoded, or the image is incomplete.
    """
    if not data:
        raise ImageError(f"{name}: an empty file (0 bytes); copy or download it again, or remove it")
    image = decode_jpeg(data) if data.startswith(b"\xff\xd8") else None
    return _decode_with_pillow(data, name) if image is None else image


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Return the height and width of an image in pixels, after its EXIF rotation. The pixels are not decoded.

    Raises:
        ImageError: the file cannot be opened or is not an image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS) as image:
                width, height = image.size
                turned = _may_be_turned(image, path) and _orientation(image) in {5, 6, 7, 8}
    except OSError as error:  # a missing file, too
        raise ImageError(f"{os.fspath(path)}: its size cannot be read ({error}); restore or remove it") from error
    except Exception as error:  # as in _decode_with_pillow
        raise ImageError(f"{os.fspath(path)}: damaged ({error}); copy or download it again, or remove it") from error
    return (width, height) if turned else (height, width)


def _may_be_turned(image: Image.Image, path: str | os.PathLike) -> bool:
    """Return False for a PNG file without metadata on its orientation, otherwise True."""
    if image.format != "PNG":
        return True
    data = Path(path).read_bytes()
    return any(mark in data for mark in (b"eXIf", b"Raw profile type", b"xmpmeta"))


class FoundFiles(NamedTuple):
    """Files that :func:`find_images` has found.

    Attributes:
        images: sorted paths of the image files.
        others: dictionary from a lower-case suffix, such as ``".txt"``, to the number of files with this suffix that
            are not images.
    """

    images: list[Path]
    others: Counter[str]


def find_images(folder: str | os.PathLike) -> FoundFiles:
    """Find the image files in a folder and its subfolders, and count the other files by suffix.

    Image files have a suffix in ``IMAGE_SUFFIXES``, or no suffix and the content of an image. Links to folders are
    followed. Hidden files and folders are skipped, including the ``._name.jpg`` files that macOS adds to archives.

    Returns:
        A :class:`FoundFiles` tuple.

    Raises:
        FileNotFoundError: the folder does not exist.
        InputError: the path is a file.
    """
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            raise InputError(f"{os.fspath(folder)}: a file; give the folder of the images")
        raise FileNotFoundError(f"{os.fspath(folder)}: no such folder of images (looked from {os.getcwd()})")
    images, others = [], Counter()
    for path in map(Path, _walk(os.fspath(folder))):
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES or (not suffix and image_format(path)):
            images.append(path)
        else:
            others[suffix] += 1
    return FoundFiles(images, others)


def image_format(path: Path) -> str | None:
    """Return Pillow's name for the format of an image file, such as ``"JPEG"``, or None if the file is not an image."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return image.format
    except Exception:  # as in _decode_with_pillow, damaged bytes raise many types
        return None


def warn_of_others(place: str | os.PathLike, files: int, others: Mapping[str, int]) -> None:
    """Log a warning with the number of files in a folder that are not images, if there are any.

    Args:
        place: path of the folder.
        files: number of all files in the folder.
        others: dictionary from a suffix to the number of files with this suffix that are not images.
    """
    if others:
        _logger.warning("%s: %d of %d files are left out: %s", place, sum(others.values()), files, list_others(others))


def list_others(others: Mapping[str, int]) -> str:
    """Return a text with the numbers of files that are not images, such as ``"3 .txt, 1 .csv"``.

    If there are HEIC files, the text also names the package that reads them.

    Args:
        others: dictionary from a suffix to the number of files with this suffix that are not images.
    """
    counts = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    text = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in counts)
    return text + "; HEIC files are read with pip install pillow-heif" * bool(_HEIF_SUFFIXES & others.keys())


def expand(patterns: Sequence[str]) -> list[Path]:
    """Expand paths of files, paths of folders and globs to a list of image paths.

    Args:
        patterns: paths of files, paths of folders, or globs.

    Returns:
        A list of image paths without duplicates, in the order of ``patterns``.

    Raises:
        FileNotFoundError: a path or glob matches nothing.
        InputError: a folder has no images.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        matches = [path] if path.exists() else sorted(map(Path, glob.glob(pattern, recursive=True)))
        if not matches:
            raise FileNotFoundError(f"no image, folder or glob match: {pattern}")
        for match in matches:
            images, others = find_images(match) if match.is_dir() else FoundFiles([match], Counter())
            if not images and match == path:
                has = f" (it has {list_others(others)})" if others else ""
                raise InputError(f"the folder {match} has no images{has}")
            warn_of_others(match, len(images) + others.total(), others)
            found |= dict.fromkeys(images)
    return list(found)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image with antialiased bilinear interpolation.

    Published models are trained and evaluated with Pillow's ``resize(..., BILINEAR)``. This function takes a third of
    Pillow's time. Its pixel values, in 0..255, differ from Pillow's by at most 1. OpenCV's ``INTER_LINEAR`` reads only
    four pixels and aliases when it shrinks an image. OpenCV's ``INTER_AREA`` is slower, and blocky for factors below 2.

    Args:
        image: ``(H, W, 3)`` uint8, or several images of one size, ``(B, H, W, 3)``.
        height: height of the result in pixels.
        width: width of the result in pixels.

    Returns:
        An array ``(height, width, 3)`` or ``(B, height, width, 3)`` uint8, contiguous. If the size does not change,
        this is ``image`` itself.
    """
    if image.shape[-3:-1] == (height, width):
        return image
    # A dimension for the batch comes first, so that PyTorch takes the pixels for channels_last, for which it is faster.
    pixels = torch.from_numpy(np.ascontiguousarray(image)).view(-1, *image.shape[-3:]).permute(0, 3, 1, 2)
    pixels = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True).permute(0, 2, 3, 1)
    return np.ascontiguousarray(pixels.numpy()).reshape(*image.shape[:-3], height, width, 3)


def to_planes(image: np.ndarray) -> torch.Tensor:
    """Convert an image ``(H, W, 3)`` uint8 to a contiguous tensor ``(3, H, W)`` uint8.

    Images stay uint8 until they are normalised on the device. A uint8 image takes a quarter of the memory of a float32
    image.

    Raises:
        InputError: the array does not have this shape and type.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(
            f"the transforms return an array of shape {image.shape} and type {image.dtype}, but (H, W, 3) and uint8 "
            "are needed: leave out Normalize, ToFloat and ToTensorV2 (images are normalised on the device), and keep 3 "
            "channels for greyscale"
        )
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, list(planes))
    return torch.from_numpy(planes)


def normalise(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Scale uint8 images to 0..1, then subtract the mean and divide by the standard deviation of each channel.

    Args:
        images: ``(..., 3, H, W)`` uint8.
        mean: mean of each channel, in 0..1.
        std: standard deviation of each channel, in 0..1.
        dtype: type of the result.

    Returns:
        A tensor ``(..., 3, H, W)``, contiguous if ``images`` is contiguous.
    """
    scale, offset = _scale_and_offset(mean, std, images.device, dtype)
    return images.to(dtype).mul_(scale[:, None, None]).add_(offset[:, None, None])


def to_batch(
    images: Sequence[np.ndarray], mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Stack images of one size, and normalise them as :func:`normalise` does.

    Args:
        images: images ``(H, W, 3)`` uint8.
        mean: mean of each channel, in 0..1.
        std: standard deviation of each channel, in 0..1.
        device: device of the result.

    Returns:
        A tensor ``(B, 3, H, W)`` float32 in the memory format channels_last.
    """
    batch = torch.from_numpy(np.stack(images)).to(device)
    # Whole rows of pixels: PyTorch is slow where the innermost dimension has only three values.
    rows = batch.flatten(2).float()
    scale, offset = (each.repeat(batch.shape[2]) for each in _scale_and_offset(mean, std, rows.device, rows.dtype))
    return rows.mul_(scale).add_(offset).view(batch.shape).permute(0, 3, 1, 2)


def _scale_and_offset(
    mean: Sequence[float], std: Sequence[float], device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scale and offset ``(3,)`` for which ``(x / 255 - mean) / std`` is ``x * scale + offset``."""
    mean, std = torch.tensor([list(mean), list(std)], dtype=torch.float64)
    return (1 / (255 * std)).to(device, dtype), (-mean / std).to(device, dtype)


def decode_jpeg(data: bytes) -> np.ndarray | None:
    """Decode a JPEG to an array ``(H, W, 3)`` uint8 RGB with simplejpeg, and apply its orientation.

    Return None if the bytes must be decoded with Pillow instead. This holds for CMYK, very large or damaged images, and
    for other formats.

    simplejpeg and Pillow use the same library and settings, so they return the same pixels. simplejpeg is faster: it
    reads the whole file at once and writes into the array, without intermediate buffers.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        # simplejpeg ignores that Adobe inverts CMYK values, Pillow does not
        if colours not in ("YCbCr", "Gray", "RGB"):
            return None
        # Pillow's guard against decompression bombs
        if Image.MAX_IMAGE_PIXELS is not None and height * width > Image.MAX_IMAGE_PIXELS:
            return None
        # strict: a truncated file is an error, not a picture with a grey rest
        image = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError:
        return None
    if not _may_hold_orientation(data):
        return image
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as header:
                return _upright(image, _orientation(header))
    except Exception:
        return None


def _may_hold_orientation(data: bytes) -> bool:
    """Return whether a JPEG may have an orientation other than upright, in an APP1 segment (EXIF or XMP).

    Only the segments before the first scan are searched, so this check is fast. Reading the EXIF data with Pillow takes
    longer than decoding a small image.
    """
    position = 2
    while True:
        segment = data[position : position + 4]
        if len(segment) < 4 or segment[0] != 0xFF:
            return True
        if segment[1] == 0xDA:
            return False
        end = position + 2 + int.from_bytes(segment[2:], "big")
        if segment[1] == 0xE1 and _names_orientation(data[position + 4 : end]):
            return True
        position = end


def _names_orientation(content: bytes) -> bool:
    """Return whether the content of an APP1 segment may have an orientation other than upright."""
    if not content.startswith(b"Exif\0\0"):
        return b"Orientation" in content
    try:  # the first directory of a TIFF file
        order = {b"II": "<", b"MM": ">"}[content[6:8]]
        start = 6 + struct.unpack_from(order + "I", content, 10)[0]
        end = start + 2 + 12 * struct.unpack_from(order + "H", content, start)[0]
        entries = struct.iter_unpack(order + "HHIHxx", content[start + 2 : end])  # tag, type, count, value
        return end > len(content) or any(tag == 0x0112 and rest != [3, 1, 1] for tag, *rest in entries)
    except (KeyError, struct.error):  # damaged
        return True


def _decode_with_pillow(data: bytes, name: str) -> np.ndarray:
    remedy = "copy or download it again, or remove it"
    # Pillow accepts a file with all pixels, but a file without its last chunk is truncated
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data.rfind(b"IEND\xaeB`\x82") < 0:
        raise ImageError(f"{name}: a PNG file that is cut short; {remedy}")
    try:
        # Pillow warns of faulty metadata and of large photographs, which are harmless.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                image.load()
                return _upright(_to_rgb(image, name), _orientation(image))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name}: not an image in a supported format ({', '.join(_FORMATS)}), or damaged in its first bytes, "
            f"which are {data[:16]!r}; convert it to JPEG or PNG, or remove it"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: more than {2 * Image.MAX_IMAGE_PIXELS} pixels, the most that are read; scale it down"
        ) from error
    except Exception as error:
        # Pillow's readers raise many types for damaged bytes: OSError, SyntaxError, ValueError, struct.error,
        # zlib.error, IndexError, ... The bytes are their only input, so any exception means damaged bytes.
        raise ImageError(f"{name}: cut short or damaged ({error}); {remedy}") from error


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """Convert a loaded Pillow image to an array ``(H, W, 3)`` uint8, contiguous and writable."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = Image.fromarray(_high_byte(image))
    if image.mode in ("I", "F", "LAB"):
        kinds = {"I": "32-bit integers", "F": "floating-point numbers", "LAB": "CIELAB colours"}
        raise ImageError(f"{name}: its pixels are {kinds[image.mode]}; convert it to 8 or 16-bit greyscale or RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _high_byte(image: Image.Image) -> np.ndarray:
    """Convert a greyscale image of up to 16 bits to an array ``(H, W)`` uint8 with the high 8 bits of each pixel.

    Pillow itself keeps the high 8 bits of 16-bit colour images. In 16-bit greyscale images, it would clip all values
    above 255.
    """
    tags = getattr(image, "tag_v2", {})  # TIFF
    bits = tags.get(258, (16,))[0]  # BitsPerSample: 12-bit cameras
    grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    return 255 - grey if tags.get(262) == 0 else grey  # PhotometricInterpretation: white is zero, as in X-ray scans


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation number of an image, or 1 (upright) if it is missing or the EXIF data is damaged."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:
        return 1


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate or flip an image ``(H, W, C)`` upright, as its EXIF orientation requires.

    The result is contiguous. Its shape is ``(W, H, C)`` if the orientation swaps width and height.
    """
    turn = {
        2: lambda x: cv2.flip(x, 1),
        3: lambda x: cv2.rotate(x, cv2.ROTATE_180),
        4: lambda x: cv2.flip(x, 0),
        5: cv2.transpose,
        6: lambda x: cv2.rotate(x, cv2.ROTATE_90_CLOCKWISE),
        7: lambda x: cv2.rotate(cv2.transpose(x), cv2.ROTATE_180),
        8: lambda x: cv2.rotate(x, cv2.ROTATE_90_COUNTERCLOCKWISE),
    }.get(orientation)
    return image if turn is None else turn(image)


def _walk(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        entries = sorted(entries, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            # a link to one of its own parents would recurse without end
            if not (entry.is_symlink() and Path(folder).resolve().is_relative_to(Path(entry.path).resolve())):
                yield from _walk(entry.path)
        else:
            yield entry.path
