"""Write the images of a folder to WebDataset shards, which are tar files."""

import hashlib
import io
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from classification.data.image_folder import ImageFolder
from classification.data.shards import INDEX, Shard, ShardIndex, unpack
from mobile_former.errors import InputError
from mobile_former.training.cli.command import exit_if_unreadable
from mobile_former.training.data.images import ImageError, decode_image, image_format
from mobile_former.whole_file import write_whole


class Planned(NamedTuple):
    """One image to write to a shard: its number in the split, path and label."""

    number: int  # number of the image in the split, and key of its sample
    path: Path
    label: int


class Job(NamedTuple):
    """Input of :func:`write_shard`: path of the shard to write, its images, and whether to skip unreadable images."""

    target: Path
    planned: list[Planned]
    skip_unreadable: bool


class Outcome(NamedTuple):
    """Result of :func:`write_shard`: index entry of the shard, whether it was written, and unreadable images."""

    shard: Shard | None  # None: no image is readable, or an image is unreadable and may not be skipped
    written: bool  # False: the same file already existed, or ``shard`` is None
    unreadable: list[str]  # messages about unreadable images


def plan_shards(
    images: ImageFolder, folder: Path, *, seed: int, size: int, samples: int | None, skip_unreadable: bool
) -> list[Job]:
    """Distribute the images of a split over shards in random order.

    Validation and test images are shuffled too. This does not change the scores, and each shard is then a random sample
    of the split.

    Args:
        images: images of the split.
        folder: folder in which the shards of the split are written.
        seed: random seed for the order of the images.
        size: maximum size of a shard in bytes. A shard with a single image may be larger.
        samples: number of images in each shard except the last. None: ``size`` limits the shards.
        skip_unreadable: whether to leave out images that cannot be read. If False, such images are reported as errors
            when the shards are written.

    Returns:
        List with one :class:`Job` for each shard.
    """
    shards: list[list[Planned]] = []
    room = 0
    for number in np.random.default_rng(seed).permutation(len(images)).tolist():
        path = images.paths[number]
        # A broken link has size 0 here and is reported when it is read. Headers and padding of a sample take 2 KB.
        cost = 1 if samples else (path.stat().st_size if path.exists() else 0) + 2048
        if cost > room:
            shards.append([])
            room = samples or size
        shards[-1].append(Planned(number, path, images.labels[number]))
        room -= cost
    return [Job(folder / f"{number:06d}.tar", planned, skip_unreadable) for number, planned in enumerate(shards)]


def write_shards(output: Path, class_names: list[str], jobs: dict[str, list[Job]], *, workers: int) -> None:
    """Write the shards that do not exist yet, and the index file that lists all shards.

    Args:
        output: folder of the index file.
        class_names: class names in the order of the labels.
        jobs: dictionary from the name of a split to a list with one :class:`Job` for each shard of the split.
        workers: number of writing processes.

    Raises:
        InputError: a written shard cannot be read back without errors, or a split has no readable image.
        SystemExit: an image is unreadable, and ``skip_unreadable`` is False in its job. No index file is written.
    """
    for split in jobs:
        (output / split).mkdir(parents=True, exist_ok=True)
    (output / INDEX).unlink(missing_ok=True)  # an old index would not match the shards
    flat = [job for shards in jobs.values() for job in shards]
    outcomes = _run(flat, workers)
    total = sum(len(job.planned) for job in flat)
    unreadable = [message for outcome in outcomes for message in outcome.unreadable]
    if unreadable and not flat[0].skip_unreadable:
        print("no index is written: fix these images, or leave them out with --skip_unreadable true", file=sys.stderr)
        exit_if_unreadable(unreadable, total)
    for message in unreadable:
        print(f"left out: {message}", file=sys.stderr)
    written = [outcome.shard for outcome in outcomes if outcome.shard]
    splits = {split: [shard for shard in written if shard.file.startswith(f"{split}/")] for split in jobs}
    for split, shards in splits.items():
        if not shards:
            raise InputError(f"none of the images of {split} can be read")
        for path in sorted((output / split).glob("*.tar")):
            if f"{split}/{path.name}" not in {shard.file for shard in shards}:
                print(f"{path} is from an earlier run and not in the index: it can be removed", file=sys.stderr)
    ShardIndex(str(output), class_names, splits).write()
    for split, shards in splits.items():
        images, size = sum(shard.samples for shard in shards), sum(shard.bytes for shard in shards)
        print(f"{split}: {images} images in {len(shards)} shard{'s' * (len(shards) > 1)}, {size / 1e6:.1f} MB")
    kept = sum(outcome.shard is not None and not outcome.written for outcome in outcomes)
    print(f"written: {output / INDEX}", *([f"{kept} shards already existed"] if kept else []), sep="; ")
    if unreadable:
        print(f"{len(unreadable)} of {total} images could not be read and are left out")


def write_shard(job: Job) -> Outcome:
    """Write one shard, unless a file with the same bytes already exists.

    The shard is written to a temporary file. This file is read back and checked before it is renamed.

    Raises:
        InputError: the data that is read back differs from the data that was written.
    """
    found = job.target.read_bytes() if job.target.is_file() else None
    contents, unreadable = {}, []
    for planned in job.planned:
        try:
            contents[planned] = planned.path.read_bytes()
        except OSError as error:
            unreadable.append(f"{planned.path}: cannot be read ({error.strerror}); check the file")
    packed = _pack(contents)
    if unreadable or packed != found:  # the images of an existing shard were decoded when it was written
        unreadable += _undecodable(contents)
        if not contents or (unreadable and not job.skip_unreadable):
            return Outcome(None, False, unreadable)
        packed = _pack(contents)
    checksum = hashlib.sha256(packed).hexdigest()
    shard = Shard(f"{job.target.parent.name}/{job.target.name}", len(contents), len(packed), checksum)
    if packed == found:
        return Outcome(shard, False, unreadable)

    def check(written: Path) -> None:
        back = written.read_bytes()
        samples = [(sample.data, sample.label) for sample in unpack(back, str(written))]
        wanted = [(content, planned.label) for planned, content in contents.items()]
        if hashlib.sha256(back).hexdigest() != checksum or samples != wanted:
            raise InputError(f"{job.target}: the written file differs when it is read back; check the disk")

    write_whole(job.target, packed, kind="the shard ", before_replace=check)
    return Outcome(shard, True, unreadable)


def _run(jobs: list[Job], workers: int) -> list[Outcome]:
    """Write the shards in parallel processes. Return a list with the outcome of each job, in the order of ``jobs``."""
    with ProcessPoolExecutor(workers) as pool:
        # Submitted before the progress bar starts: its thread would not survive a fork.
        futures = {pool.submit(write_shard, job): len(job.planned) for job in jobs}
        try:
            with _progress() as progress:
                task = progress.add_task("images", total=sum(futures.values()))
                for future in as_completed(futures):
                    future.result()
                    progress.advance(task, futures[future])
        except BrokenProcessPool as error:
            raise InputError(
                "a writing process was killed, perhaps for lack of memory: give fewer --workers"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _undecodable(contents: dict[Planned, bytes]) -> Iterator[str]:
    """Remove the images that cannot be decoded from ``contents``, in place, and yield an error message for each.

    Args:
        contents: dictionary from each image to the bytes of its file.
    """
    for planned, content in list(contents.items()):
        try:
            decode_image(content, str(planned.path))
        except ImageError as error:
            del contents[planned]
            yield str(error)


def _pack(contents: dict[Planned, bytes]) -> bytes:
    """Build a shard, and return the bytes of its tar file.

    The same images always give the same bytes.

    Args:
        contents: dictionary from each image to the bytes of its file.
    """
    from webdataset.writer import TarWriter  # here, because the import takes a second

    packed = io.BytesIO()
    with TarWriter(packed, encoder=False, mtime=0) as writer:
        for planned, content in contents.items():
            label = str(planned.label).encode()
            writer.write({"__key__": f"{planned.number:09d}", _extension(planned.path): content, "cls": label})
    return packed.getvalue()


def _extension(path: Path) -> str:
    return path.suffix[1:].lower() or image_format(path).lower()


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
