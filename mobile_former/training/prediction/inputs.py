"""Inputs of a prediction: image files, URLs, videos and cameras."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import numpy as np

from mobile_former.errors import first_line
from mobile_former.training.data.images import ImageError, decode_image, expand, read_image

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"})

_IMAGE_SCHEMES, _STREAM_SCHEMES = ("http", "https"), ("rtsp", "rtmp", "udp", "tcp")
_CAMERA = re.compile(r"camera:(\d+)|/dev/video(\d+)")
_TIMEOUT = 30  # seconds without an answer
_MOST_BYTES = 256 * 2**20  # of a download


class Input(NamedTuple):
    """One input of a prediction.

    Attributes:
        name: path, URL, or ``camera:N`` with the number N of a camera.
        kind: ``"file"`` (an image file), ``"url"`` (URL of an image), ``"video"`` (file or URL of a video) or
            ``"camera"``.
    """

    name: str
    kind: Literal["file", "url", "video", "camera"]

    @property
    def moves(self) -> bool:
        """Whether the input is a video or a camera, which both have frames."""
        return self.kind in {"video", "camera"}

    @property
    def file_name(self) -> str:
        """Name of the input without folders, from which names of output files are built."""
        if self.kind == "camera":
            return self.name.replace(":", "-")
        name = unquote(urlsplit(self.name).path) if _scheme(self.name) else self.name
        return Path(name).name or "download"

    def read(self) -> np.ndarray:
        """Read an image file, or download an image. Return it as an array ``(H, W, 3)`` uint8 RGB.

        Raises:
            FileNotFoundError: the file does not exist.
            ImageError: the image cannot be read.
        """
        return decode_image(_download(self.name), self.name) if self.kind == "url" else read_image(self.name)


def as_input(name: str | Path) -> Input:
    """Return the :class:`Input` for a path, a URL or ``camera:N``. The function does not check that it exists."""
    name = str(name)
    if camera := _CAMERA.fullmatch(name):
        return Input(f"camera:{camera[1] or camera[2]}", "camera")
    scheme = _scheme(name)
    is_video = Path(urlsplit(name).path if scheme else name).suffix.lower() in VIDEO_SUFFIXES
    if scheme in _STREAM_SCHEMES or is_video:
        return Input(name, "video")
    return Input(name, "url" if scheme else "file")


def find_inputs(patterns: Sequence[str]) -> list[Input]:
    """Expand paths, folders and globs to image files and videos.

    URLs and cameras are returned without checking that they exist.

    Args:
        patterns: paths of image files, videos or folders, globs, URLs, or ``camera:N`` with the number of a camera.

    Returns:
        List of inputs without duplicates, in the order of ``patterns``.

    Raises:
        FileNotFoundError: a path or glob matches nothing.
        InputError: a folder has no images.
    """
    found: dict[Input, None] = {}
    for pattern in patterns:
        single = as_input(pattern)
        local = single.kind == "file" or (single.kind == "video" and not _scheme(pattern))
        found |= dict.fromkeys(map(as_input, expand([pattern])) if local else [single])
    return list(found)


def _scheme(name: str) -> str | None:
    scheme, separator, _ = name.partition("://")
    return scheme.lower() if separator and scheme.lower() in (*_IMAGE_SCHEMES, *_STREAM_SCHEMES) else None


def _download(url: str) -> bytes:
    """Download an image.

    Raises:
        ImageError: the server cannot be reached, does not answer in time, or sends no image.
    """
    try:
        with urlopen(Request(url, headers={"User-Agent": "mobile-former"}), timeout=_TIMEOUT) as answer:
            kind = answer.headers.get_content_type()
            length = answer.headers["Content-Length"]
            data = answer.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # URLError and HTTPError too; ValueError: not a valid URL
        raise ImageError(f"{url}: cannot be downloaded ({first_line(error)}); check the address") from error
    except Exception as error:  # http.client raises its own types for answers that are cut short
        raise ImageError(f"{url}: the download broke off ({first_line(error)}); try again") from error
    if kind == "text/html":
        raise ImageError(f"{url}: a web page, not an image; give the address of the image itself")
    if len(data) > _MOST_BYTES:
        raise ImageError(f"{url}: more than {_MOST_BYTES >> 20} MiB, the most that is downloaded")
    if length is not None and len(data) < int(length):
        raise ImageError(f"{url}: the download broke off after {len(data)} of {length} bytes; try again")
    return data
