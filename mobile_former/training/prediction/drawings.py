"""Output files of drawings: a picture for each image, a video for each video."""

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from mobile_former.errors import InputError
from mobile_former.training.prediction.inputs import Input
from mobile_former.training.prediction.loading import Loaded
from mobile_former.training.prediction.video import VideoWriter

_PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})  # images whose drawings keep their file names


def drawing_paths(inputs: Sequence[Input], folder: Path) -> dict[Input, Path]:
    """Return a dictionary from each input to the path of its drawing, a file in ``folder``.

    The drawing of a JPEG or PNG image has the same file name as the image. For an image of another format, ``.png`` is
    appended to the file name. The drawing of a video or camera is an MP4 file. If two drawings would have the same
    name, the names of the input's parent folders, or a number, are put in front of the name of the second one.

    Raises:
        InputError: a drawing would replace one of the inputs.
    """
    files = {Path(each.name).resolve() for each in inputs}
    taken: set[str] = set()
    drawings = {}
    for each in inputs:
        path = Path(each.file_name)
        if each.moves:
            name = f"{path.stem}.mp4"
        else:
            name = path.name if path.suffix.lower() in _PICTURE_SUFFIXES else f"{path.name}.png"
        folders = Path(each.name).absolute().parts[1:-1] if each.kind in {"file", "video"} else ()
        candidates = itertools.chain(
            ("-".join((*folders[len(folders) - depth :], name)) for depth in range(len(folders) + 1)),
            (f"{number}-{name}" for number in itertools.count(2)),
        )
        # Some file systems do not distinguish A.jpg from a.jpg.
        chosen = next(candidate for candidate in candidates if candidate.casefold() not in taken)
        taken.add(chosen.casefold())
        drawing = folder / chosen
        if drawing.resolve() in files:
            raise InputError(f"--drawings {folder} would replace the image {drawing}: give another folder")
        drawings[each] = drawing
    return drawings


class Drawings:
    """Writer of the drawings of a prediction. It is a context manager that closes the last video at the end.

    Args:
        paths: output path of each input, see :func:`drawing_paths`.
    """

    def __init__(self, paths: dict[Input, Path]):
        self.paths = paths
        self.written: dict[Path, None] = {}
        self._video: tuple[Input, VideoWriter] | None = None
        self._open = ExitStack()

    def add(self, loaded: Loaded, picture: Image.Image) -> None:
        """Save the drawing of an image, or append the drawing of a frame to the video of its input.

        Args:
            loaded: the image or frame.
            picture: the drawing.

        Raises:
            OSError: the file cannot be written.
        """
        path = self.paths[loaded.source]
        self.written[path] = None
        if loaded.frame is None:
            save_picture(picture, path)
            return
        if self._video is None or self._video[0] != loaded.source:
            self._open.close()  # frames of different videos do not alternate
            self._video = loaded.source, self._open.enter_context(VideoWriter(path, loaded.frame.rate))
        self._video[1].write(np.asarray(picture))

    def __enter__(self) -> "Drawings":
        return self

    def __exit__(self, *_) -> None:
        self._open.close()


def save_picture(picture: Image.Image, path: Path) -> None:
    """Save a drawing. The suffix of ``path`` determines the format."""
    # JPEG: without colour subsampling, which blurs thin lines and letters
    picture.save(path, quality=92, subsampling=0)
