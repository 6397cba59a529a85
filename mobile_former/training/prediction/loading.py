"""Loading images for prediction in background threads."""

import itertools
import queue
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch

from mobile_former.training.data.images import ImageError
from mobile_former.training.prediction.inputs import Input
from mobile_former.training.prediction.video import VideoFrame, read_video
from mobile_former.training.processors import available_cores

_READY = 2  # batches that wait for the model at most
_MOST_THREADS = 16
_SMALL = 2**18  # bytes; larger images are resized one by one, because stacking them takes longer than more calls


class Loaded(NamedTuple):
    """An image or a frame of a video that is prepared for the model, or the error message if it could not be read.

    Attributes:
        source: input from which the image or frame comes.
        image: image ``(H, W, 3)`` uint8 RGB, prepared for the model. None if it could not be read.
        size: height and width of the original image in pixels, ``(0, 0)`` if it could not be read.
        error: error message if the image could not be read, otherwise None.
        original: original image ``(H, W, 3)`` uint8 RGB, or None if it was not kept.
        frame: number, time and frame rate of a frame; the attribute ``image`` of this :class:`VideoFrame` is None.
            For an image, ``frame`` itself is None.
    """

    source: Input
    image: np.ndarray | None = None
    size: tuple[int, int] = (0, 0)
    error: str | None = None
    original: np.ndarray | None = None
    frame: VideoFrame | None = None

    def place(self) -> dict:
        """Return a dictionary with the entries of a prediction that identify its image.

        These are ``path`` and, for a frame, ``frame`` (number of the frame) and ``seconds`` (time of the frame).
        """
        place = {"path": self.source.name}
        if self.frame is not None:
            place |= {"frame": self.frame.number, "seconds": round(self.frame.seconds, 3)}
        return place


def load_batches(
    inputs: Sequence[Input],
    transform: Callable[[np.ndarray], np.ndarray],
    batch_size: int,
    *,
    keep_originals: bool = False,
    max_frames: int | None = None,
) -> Iterator[list[Loaded]]:
    """Load images in background threads, and yield them in batches, in the order of ``inputs``.

    While the model computes a batch, the threads read, decode and resize the images of the next batches. Decoding and
    resizing release Python's global interpreter lock. The threads end when the iterator is closed.

    Args:
        inputs: images, videos and cameras.
        transform: function that takes images of one size, ``(B, H, W, 3)`` uint8, and returns them prepared for the
            model, ``(B, H', W', 3)`` uint8.
        batch_size: number of images in a batch. The last batch may be smaller.
        keep_originals: whether to keep the original images, for drawings.
        max_frames: maximum number of frames to read from each video or camera. None: no limit.
    """
    batches: queue.Queue = queue.Queue(_READY)
    stop = threading.Event()

    def put(item: object) -> None:
        while not stop.is_set():
            try:
                return batches.put(item, timeout=0.1)
            except queue.Full:
                continue

    def produce() -> None:
        try:
            with closing(_load(inputs, transform, batch_size, keep_originals, max_frames)) as loaded:
                while not stop.is_set() and (batch := list(itertools.islice(loaded, batch_size))):
                    put(batch)
            put(None)
        except BaseException as error:  # raised again in the main thread
            put(error)

    threads = torch.get_num_threads()  # also fixes the number of the main thread, before the loading threads set theirs
    producer = threading.Thread(target=produce, name="loading", daemon=True)
    producer.start()
    try:
        while (batch := batches.get()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            yield batch
    finally:
        stop.set()
        producer.join()
        torch.set_num_threads(threads)


def _load(
    inputs: Iterable[Input],
    transform: Callable[[np.ndarray], np.ndarray],
    batch_size: int,
    keep_originals: bool,
    max_frames: int | None,
) -> Iterator[Loaded]:
    """Load images with a pool of threads, and yield them one by one in order. About two batches are in memory.

    The arguments are those of :func:`load_batches`.
    """

    def read(source: Input, frame: VideoFrame | ImageError | None) -> Loaded:
        try:
            if isinstance(frame, ImageError):
                raise frame
            image = source.read() if frame is None else frame.image
        except (ImageError, FileNotFoundError) as error:  # FileNotFoundError: a broken link
            return Loaded(source, error=str(error))
        return Loaded(source, image, image.shape[:2], None, image if keep_originals else None, frame)

    def prepare(chunk: list) -> list[Loaded]:
        loaded = list(itertools.starmap(read, chunk))
        groups = defaultdict(list)
        for number, each in enumerate(loaded):
            if each.image is not None:
                groups[each.size if each.image.nbytes < _SMALL else number].append(number)
        for numbers in groups.values():
            images = [loaded[number].image for number in numbers]
            images = transform(np.stack(images) if len(images) > 1 else images[0][None])
            for number, image in zip(numbers, images, strict=True):
                frame = loaded[number].frame
                loaded[number] = loaded[number]._replace(image=image, frame=frame and frame._replace(image=None))
        return loaded

    workers = min(_MOST_THREADS, max(1, available_cores() - 1))
    # A task for each image would cost more time in switches between threads than a small image takes to load.
    size = -(-batch_size // workers)
    images = _images(inputs, max_frames)
    # One thread for each operation: the images are spread over threads already.
    with ThreadPoolExecutor(workers, "loading", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pending: deque[Future[list[Loaded]]] = deque()
        while chunk := list(itertools.islice(images, size)):
            pending.append(pool.submit(prepare, chunk))
            if len(pending) >= 2 * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def _images(inputs: Iterable[Input], max_frames: int | None) -> Iterator[tuple[Input, VideoFrame | ImageError | None]]:
    """Yield a tuple (input, None) for each image, and a tuple (input, frame) for each frame of a video or camera.

    If a video or camera cannot be read, the tuple (input, error) is yielded.
    """
    for source in inputs:
        if not source.moves:
            yield source, None
            continue
        try:
            yield from ((source, frame) for frame in read_video(source, max_frames))
        except ImageError as error:
            yield source, error
