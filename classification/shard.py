"""``python -m classification.shard``: an image folder as WebDataset shards, which are read in one piece each."""

import hashlib
import io
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from classification.data.image_folder import ImageFolder, list_classes
from classification.data.shards import INDEX, Shard, ShardIndex, unpack
from mobile_former.errors import InputError
from mobile_former.training.cli.command import Parser, run_command, tell_unreadable
from mobile_former.training.data.images import ImageError, decode_image
from mobile_former.training.data.module import default_workers

SPLITS = ("train", "val", "test")
MEGABYTES = 64  # a shard: long reads for disk and network, and little memory for each loading process


class Planned(NamedTuple):
    """An image that a shard is to hold."""

    number: int  # in the split, which is the sample's key
    path: Path
    label: int


class Job(NamedTuple):
    """A shard to write."""

    target: Path
    planned: list[Planned]
    skip_unreadable: bool


class Outcome(NamedTuple):
    """What became of a shard: None where it would be empty, or was not written for unreadable images."""

    shard: Shard | None
    written: bool
    unreadable: list[str]


def main() -> None:
    """Write shards by the command line's options."""
    parser = Parser(prog="python -m classification.shard", description="Write an image folder as WebDataset shards.")
    parser.add_argument("folder", type=Path, help="train/<class>/* and val/<class>/* (and test/<class>/*)")
    parser.add_argument("output", type=Path, help="where to write train/000000.tar, …, and shards.json")
    parser.add_argument("--shard_megabytes", type=float, default=MEGABYTES, help="size of a shard, in 10^6 bytes")
    parser.add_argument("--shard_samples", type=int | None, default=None, help="images in a shard, in place of a size")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which images are put into shards")
    parser.add_argument("--workers", type=int, default=default_workers(), help="processes that write")
    parser.add_argument("--skip_unreadable", type=bool, default=False, help="leave out images that cannot be read")
    options = parser.parse_args()
    if options.shard_megabytes <= 0:
        raise InputError(f"--shard_megabytes is {options.shard_megabytes}: give more than 0")
    for name in ("shard_samples", "workers"):
        if options[name] is not None and options[name] < 1:
            raise InputError(f"--{name} is {options[name]}: give at least 1")
    if options.seed < 0:
        raise InputError(f"--seed is {options.seed}: give 0 or more")
    if options.output.resolve().is_relative_to(options.folder.resolve()):
        raise InputError(f"the output {options.output} lies in {options.folder} itself: give a place outside it")

    class_names = list_classes(options.folder, "train")
    jobs = {
        split: plan_shards(
            ImageFolder(options.folder, split, class_names),
            options.output / split,
            seed=options.seed,
            size=int(options.shard_megabytes * 1e6),
            samples=options.shard_samples,
            skip_unreadable=options.skip_unreadable,
        )
        for split in SPLITS
        if split != "test" or (options.folder / split).is_dir()
    }
    write_shards(options.output, class_names, jobs, workers=options.workers)


def plan_shards(
    images: ImageFolder, folder: Path, *, seed: int, size: int, samples: int | None, skip_unreadable: bool
) -> list[Job]:
    """Put the images of a split into shards.

    Evaluation's are shuffled too, which changes no score: any shard then shows what the split is like.

    Args:
        images: of the split.
        folder: where its shards will lie.
        seed: of the order.
        size: bytes at which a shard is full; each holds an image or more.
        samples: images in a shard, in place of ``size``.
        skip_unreadable: whether to leave out what cannot be read.
    """
    shards: list[list[Planned]] = []
    room = 0
    for number in np.random.default_rng(seed).permutation(len(images)).tolist():
        path = images.paths[number]
        # A link may lead nowhere, which is told when it is read. A sample's two headers and its padding are 2 KB.
        cost = 1 if samples else (path.stat().st_size if path.exists() else 0) + 2048
        if cost > room:
            shards.append([])
            room = samples or size
        shards[-1].append(Planned(number, path, images.labels[number]))
        room -= cost
    return [Job(folder / f"{number:06d}.tar", planned, skip_unreadable) for number, planned in enumerate(shards)]


def write_shards(output: Path, class_names: list[str], jobs: dict[str, list[Job]], *, workers: int) -> None:
    """Write what is not there yet, check it, and write the index, by which alone shards are read.

    Args:
        output: folder of the index.
        class_names: in the order of the labels.
        jobs: the shards of each split.
        workers: processes.

    Raises:
        InputError: a shard does not read back as it was written, or a split has no readable image.
    """
    for split in jobs:
        (output / split).mkdir(parents=True, exist_ok=True)
    (output / INDEX).unlink(missing_ok=True)  # it would speak of other shards until all are written
    outcomes = _run(jobs, workers)
    total = sum(len(job.planned) for shards in jobs.values() for job in shards)
    done = [outcome for split in outcomes.values() for outcome in split]
    unreadable = [message for outcome in done for message in outcome.unreadable]
    skipping = next(job.skip_unreadable for shards in jobs.values() for job in shards)
    if unreadable and not skipping:
        print("no index is written; mend these images, or leave them out by --skip_unreadable true", file=sys.stderr)
        tell_unreadable(unreadable, total)
    for message in unreadable:
        print(f"left out: {message}", file=sys.stderr)
    splits = {split: [outcome.shard for outcome in found if outcome.shard] for split, found in outcomes.items()}
    for split, shards in splits.items():
        if not shards:
            raise InputError(f"none of the images of {split} can be read")
        for path in sorted((output / split).glob("*.tar")):
            if f"{split}/{path.name}" not in {shard.file for shard in shards}:
                print(f"{path} is of an earlier run and not in the index: it can be removed", file=sys.stderr)
    ShardIndex(str(output), class_names, splits).write()
    for split, shards in splits.items():
        images, size = sum(shard.samples for shard in shards), sum(shard.bytes for shard in shards)
        print(f"{split}: {images} images in {len(shards)} shard{'s' * (len(shards) > 1)}, {size / 1e6:.1f} MB")
    kept = sum(outcome.shard is not None and not outcome.written for outcome in done)
    print(f"written: {output / INDEX}", *([f"{kept} shards were there already"] if kept else []), sep="; ")
    if unreadable:
        print(f"{len(unreadable)} of {total} images could not be read and are left out")


def write_shard(job: Job) -> Outcome:
    """Write one shard beside its place, read it back, and put it there; one that is there and right stays.

    Raises:
        InputError: it does not read back as it was written.
    """
    found = job.target.read_bytes() if job.target.is_file() else None
    contents, unreadable = {}, []
    for planned in job.planned:
        try:
            contents[planned] = planned.path.read_bytes()
        except OSError as error:
            unreadable.append(f"{planned.path}: cannot be read ({error.strerror}); check the file")
    packed = _pack(contents)
    if unreadable or packed != found:  # what was written before has been decoded before
        unreadable += _undecodable(contents)
        if not contents or (unreadable and not job.skip_unreadable):
            return Outcome(None, False, unreadable)
        packed = _pack(contents)
    checksum = hashlib.sha256(packed).hexdigest()
    shard = Shard(f"{job.target.parent.name}/{job.target.name}", len(contents), len(packed), checksum)
    if packed == found:
        return Outcome(shard, False, unreadable)
    part = job.target.with_suffix(".part")
    try:
        with part.open("wb") as file:
            file.write(packed)
            file.flush()
            os.fsync(file.fileno())
        back = part.read_bytes()
        samples = [(sample.data, sample.label) for sample in unpack(back, str(part))]
        wanted = [(content, planned.label) for planned, content in contents.items()]
        if hashlib.sha256(back).hexdigest() != checksum or samples != wanted:
            raise InputError(f"{job.target}: does not read back as it was written; check the disk")
        part.replace(job.target)
    finally:
        part.unlink(missing_ok=True)
    return Outcome(shard, True, unreadable)


def _run(jobs: dict[str, list[Job]], workers: int) -> dict[str, list[Outcome]]:
    """What becomes of each shard, in their order."""
    total = sum(len(job.planned) for shards in jobs.values() for job in shards)
    with ProcessPoolExecutor(workers) as pool:
        # Before the bar, whose thread would not outlive a fork.
        futures = {split: [pool.submit(write_shard, job) for job in shards] for split, shards in jobs.items()}
        sizes = {
            future: len(job.planned)
            for split, shards in jobs.items()
            for future, job in zip(futures[split], shards, strict=True)
        }
        try:
            with _progress() as progress:
                task = progress.add_task("images", total=total)
                for future in as_completed(sizes):
                    future.result()
                    progress.advance(task, sizes[future])
        except BrokenProcessPool as error:
            raise InputError("a writing process was killed, perhaps for memory: give fewer --workers") from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return {split: [future.result() for future in found] for split, found in futures.items()}


def _undecodable(contents: dict[Planned, bytes]) -> Iterator[str]:
    """Take out what cannot be decoded, and say what is wrong with it."""
    for planned, content in list(contents.items()):
        try:
            decode_image(content, str(planned.path))
        except ImageError as error:
            del contents[planned]
            yield str(error)


def _pack(contents: dict[Planned, bytes]) -> bytes:
    """The bytes of a shard, the same whenever they are made."""
    from webdataset.writer import TarWriter  # a second's import

    packed = io.BytesIO()
    with TarWriter(packed, encoder=False, mtime=0) as writer:
        for planned, content in contents.items():
            label = str(planned.label).encode()
            writer.write({"__key__": f"{planned.number:09d}", planned.path.suffix[1:].lower(): content, "cls": label})
    return packed.getvalue()


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())


if __name__ == "__main__":
    run_command(main)
