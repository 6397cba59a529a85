"""Reading videos and cameras with OpenCV, and writing annotated videos."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mobile_former.errors import InputError
from mobile_former.training.data.images import ImageError
from mobile_former.training.prediction.inputs import Input

_CODEC = "mp4v"  # MPEG-4, which OpenCV's wheels can write on all systems
_RATE = 30.0  # frames per second, for streams that do not report their frame rate


class VideoFrame(NamedTuple):
    """A frame of a video.

    Attributes:
        number: number of the frame, from 0.
        seconds: time from the start of the video.
        image: ``(H, W, 3)`` uint8 RGB, rotated upright.
        rate: frame rate of the video, in frames per second.
    """

    number: int
    seconds: float
    image: np.ndarray
    rate: float


def read_video(source: Input, max_frames: int | None = None) -> Iterator[VideoFrame]:
    """Read the frames of a video or a camera one after another.

    Args:
        source: video or camera.
        max_frames: maximum number of frames to read. None: read a video to its end, and a camera until the iterator is
            closed.

    Raises:
        ImageError: the video or camera cannot be opened, or has no frames.
    """
    camera = source.kind == "camera"
    capture = cv2.VideoCapture(int(source.name.partition(":")[2]) if camera else source.name)
    try:
        if not capture.isOpened():
            remedy = "check its number and that no other program uses it" if camera else "check the path and the format"
            raise ImageError(f"{source.name}: cannot be opened as a {'camera' if camera else 'video'}; {remedy}")
        rate = capture.get(cv2.CAP_PROP_FPS)
        rate = rate if 0 < rate < 1000 else _RATE
        number = 0
        while max_frames is None or number < max_frames:
            found, image = capture.read()
            if not found:
                break
            yield VideoFrame(number, number / rate, cv2.cvtColor(image, cv2.COLOR_BGR2RGB), rate)
            number += 1
        if number == 0:
            raise ImageError(f"{source.name}: no frame could be read; the file is damaged, or its format is unknown")
        count = 0 if camera or max_frames is not None else int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if number < count - 1:  # a container may count one frame too many
            print(f"warning: {source.name} ends after {number} of {count} frames; is it cut short?", file=sys.stderr)
    finally:
        capture.release()


class VideoWriter:
    """Writer of an MP4 video. It is a context manager that closes the file at the end.

    Args:
        path: path of the file.
        rate: frame rate, in frames per second.
    """

    def __init__(self, path: Path, rate: float):
        self.path, self.rate = path, rate
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def write(self, image: np.ndarray) -> None:
        """Append a frame ``(H, W, 3)`` uint8 RGB. All frames must have the size of the first one.

        Raises:
            InputError: the file cannot be written.
        """
        height, width = (side // 2 * 2 for side in image.shape[:2])  # the codec takes even sizes only
        if self._writer is None:
            self._size = (width, height)
            self._writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter_fourcc(*_CODEC), self.rate, self._size)
            if not self._writer.isOpened():
                raise InputError(f"cannot write the video {self.path}: check the folder and the free space")
        self._writer.write(cv2.cvtColor(image[: self._size[1], : self._size[0]], cv2.COLOR_RGB2BGR))

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_) -> None:
        if self._writer is not None:
            self._writer.release()
