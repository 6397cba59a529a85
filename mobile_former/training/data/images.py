"""Image files of any kind as RGB arrays, and arrays as normalised batches."""

import glob
import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from mobile_former.errors import InputError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})

# Pillow also knows formats that run other programs (EPS) or hold no pictures; a photograph is in none of them.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")


class ImageError(InputError):
    """An image file that cannot be used; the message names it, says what is wrong and how to mend it."""


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads an image file; see `decode_image` for what comes of its colours, depth and orientation.

    Args:
        path: a file in any of the formats of `IMAGE_SUFFIXES`; its content decides which, not its name.

    Returns:
        (H, W, 3) uint8, RGB, contiguous and writable.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: the file cannot be opened, holds no image, or holds only part of one.
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
    """Decodes the bytes of an image file.

    Pixels are those that Pillow decodes, bit for bit. Orientations noted in EXIF or XMP are applied. Transparent
    pixels are laid on white, the page on which a viewer would show them. 16-bit values keep their high byte. Of
    an animation the first frame is taken. Embedded colour profiles are ignored, as classifiers' training data has
    always been read.

    Args:
        data: the content of a file in any of the formats of `IMAGE_SUFFIXES`.
        name: what error messages call the image.

    Returns:
        (H, W, 3) uint8, RGB, contiguous and writable.

    Raises:
        ImageError: the bytes are no image or only part of one.
    """
    if not data:
        raise ImageError(f"{name}: an empty file (0 bytes); copy or download it again, or remove it")
    image = _decode_jpeg(data) if data.startswith(b"\xff\xd8") else None
    return _decode_with_pillow(data, name) if image is None else image


def find_images(folder: str | os.PathLike) -> list[Path]:
    """Lists the image files in a folder and the folders in it, by their suffixes, in the order of their paths.

    Links to folders are followed. Hidden files and folders are left out: among them are the ``._name.jpg`` that
    macOS puts into archives and that hold no images.

    Raises:
        FileNotFoundError: there is no such folder.
        InputError: it is a file.
    """
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            raise InputError(f"{os.fspath(folder)}: a file; give the folder that holds the images")
        raise FileNotFoundError(f"{os.fspath(folder)}: no such folder of images (looked from {os.getcwd()})")
    return [Path(path) for path in _walk(os.fspath(folder))]


def expand(patterns: Sequence[str]) -> list[Path]:
    """The images that files, folders and globs name, each once, in the order given.

    Raises:
        FileNotFoundError: a pattern that names nothing.
        InputError: a folder without images.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        matches = [path] if path.exists() else sorted(map(Path, glob.glob(pattern, recursive=True)))
        if not matches:
            raise FileNotFoundError(f"no image, folder or glob match: {pattern}")
        for match in matches:
            images = find_images(match) if match.is_dir() else [match]
            if not images and match == path:
                raise InputError(f"the folder {match} holds no images")
            found |= dict.fromkeys(images)
    return list(found)


class ImageFiles(Dataset):
    """Image files, each made ready for a model, or the message of one that cannot be read.

    An item is ``(3, H, W)`` uint8 with the height and width of the file's image, or a message.

    Args:
        paths: the files.
        transforms: albumentations' of images.
        targets: what the transforms ask for besides the image.
    """

    def __init__(self, paths: Sequence[Path], transforms: Callable[..., dict], **targets):
        self.paths = paths
        self.transforms = transforms
        self.targets = targets

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, tuple[int, int]] | str:
        try:
            image = read_image(self.paths[index])
        except (ImageError, FileNotFoundError) as error:  # a link may lead nowhere
            return str(error)
        return to_planes(self.transforms(image=image, **self.targets)["image"]), image.shape[:2]


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear resizing that averages over all pixels where it shrinks.

    These are the pixels of Pillow's ``resize(..., BILINEAR)``, with which published models were trained and
    evaluated, to within 1 of 255, in a third of Pillow's time. OpenCV's ``INTER_LINEAR`` looks at four pixels only and
    so aliases where it shrinks; its ``INTER_AREA`` takes longer and looks blockier where it shrinks by less than two.

    Args:
        image: (H, W, 3) uint8.
        height: of the result, in pixels.
        width: of the result, in pixels.

    Returns:
        (height, width, 3) uint8, contiguous; the image itself if it has that size.
    """
    if image.shape[:2] == (height, width):
        return image
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    planes = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)[0]
    return cv2.merge(list(planes.numpy()))


def to_planes(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 as a contiguous (3, H, W) uint8 tensor, ready to be batched.

    Images stay bytes until they are on the device that normalises them: a quarter of the memory to copy on the way.

    Raises:
        InputError: an array of another shape or type.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(
            f"an image has become an array of shape {image.shape} and type {image.dtype}, where (H, W, 3) and uint8 "
            "are needed: leave Normalize, ToFloat and ToTensorV2 out of the transforms (they follow on the device), "
            "and let greyscale keep 3 channels"
        )
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, list(planes))
    return torch.from_numpy(planes)


def normalise(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Scales bytes to 0..1, subtracts the mean and divides by the standard deviation of each channel.

    Args:
        images: (..., 3, H, W) uint8.
        mean: of each channel, on the scale of 0..1.
        std: of each channel, on the scale of 0..1.
        dtype: of the result.

    Returns:
        (..., 3, H, W), contiguous where the input is.
    """
    mean, std = torch.tensor([list(mean), list(std)], dtype=torch.float64)[..., None, None]
    # (x / 255 - mean) / std in one multiplication and one addition
    scale, offset = (1 / (255 * std)).to(images.device, dtype), (-mean / std).to(images.device, dtype)
    return images.to(dtype).mul_(scale).add_(offset)


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """The fast way for ordinary JPEGs; None for whatever it does not read without any doubt, which is left to Pillow.

    simplejpeg and Pillow decode with the same library under the same settings, hence to the same pixels; but
    simplejpeg takes the file in one piece and writes into the array, without Pillow's buffers in between.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        # simplejpeg takes CMYK as it stands, where Pillow knows of Adobe's inverted values
        if colours not in ("YCbCr", "Gray", "RGB"):
            return None
        # Pillow guards against files that unfold into more memory than there is
        if Image.MAX_IMAGE_PIXELS is not None and height * width > Image.MAX_IMAGE_PIXELS:
            return None
        # strict: a file cut short is an error and not a picture that is grey from there on
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
    """Whether a JPEG has an APP1 segment, the one for EXIF and XMP, ahead of its first scan.

    A walk over some ten segments, as reading EXIF with Pillow costs a twentieth of the decoding.
    """
    position = 2
    while True:
        segment = data[position : position + 4]
        if len(segment) < 4 or segment[0] != 0xFF or segment[1] == 0xE1:
            return True
        if segment[1] == 0xDA:
            return False
        position += 2 + int.from_bytes(segment[2:], "big")


def _decode_with_pillow(data: bytes, name: str) -> np.ndarray:
    mend = "copy or download it again, or remove it"
    # Pillow is content once it has all pixels; but a file without its last chunk has lost its end
    if data.startswith(b"\x89PNG\r\n\x1a\n") and b"IEND\xaeB`\x82" not in data:
        raise ImageError(f"{name}: a PNG file that is cut short; {mend}")
    try:
        # Warnings are about metadata and about sizes that large photographs have; neither is a user's concern.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                image.load()
                return _upright(_to_rgb(image, name), _orientation(image))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name}: not an image in a format known here ({', '.join(_FORMATS)}), or damaged in its first bytes, "
            f"which are {data[:16]!r}; convert it to JPEG or PNG, or remove it"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: more than the {2 * Image.MAX_IMAGE_PIXELS} pixels up to which images are read; scale it down"
        ) from error
    except Exception as error:
        # On damaged bytes Pillow's readers raise whatever their parsing ran into: OSError, SyntaxError, ValueError,
        # struct.error, zlib.error, IndexError, ... Nothing but the bytes goes in, so all of these speak of them.
        raise ImageError(f"{name}: cut short or damaged ({error}); {mend}") from error


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """image: loaded. Returns (H, W, 3) uint8, contiguous and writable."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = Image.fromarray(_high_byte(image))
    if image.mode in ("I", "F", "LAB"):
        kinds = {"I": "32-bit integers", "F": "floating-point numbers", "LAB": "CIELAB colours"}
        raise ImageError(f"{name}: its pixels are {kinds[image.mode]}; convert it to 8 or 16-bit greyscale or RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _high_byte(image: Image.Image) -> np.ndarray:
    """Greyscale of up to 16 bits, (H, W), as 8 bits: what Pillow does to 16-bit colour, where its conversion of
    16-bit greyscale cuts off everything above 255."""
    tags = getattr(image, "tag_v2", {})  # of TIFF
    bits = tags.get(258, (16,))[0]  # BitsPerSample: 12-bit cameras
    grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    return 255 - grey if tags.get(262) == 0 else grey  # PhotometricInterpretation: white is zero, as in X-ray scans


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation: 1 is upright, also where there is none or the EXIF data is broken."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:
        return 1


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes an EXIF orientation. image: (H, W, C), returns (H, W, C) or (W, H, C), contiguous."""
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
            # a link to a folder around itself would go round for ever
            if not (entry.is_symlink() and Path(folder).resolve().is_relative_to(Path(entry.path).resolve())):
                yield from _walk(entry.path)
        elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
            yield entry.path
