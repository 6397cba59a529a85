"""Whether any file can bring a command down: thousands of damaged and hostile ones, through the commands' readers.

    python -m experiments.fuzz                           # 10 000 files: images, configs, COCO data sets, weights
    python -m experiments.fuzz --kinds weights --seed 3

What must come of every file is a result, or an error of the kind that the commands print in one line. Anything else is
a defect: another exception, a process that ends, time or memory beyond limits, code run from the file. Readers work in
a process of their own, so that a file that ends it is known. A file depends on seed, kind and number alone (but torch's
older layout orders tensors by their addresses); those that brought out a defect are kept in the output folder, with a
line each in failures.txt. Linux only.
"""

import argparse
import contextlib
import io
import logging
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.progress import track

import classification.fit
import classification.predict
import classification.transforms
import detection
import detection.fit
import detection.predict
import detection.transforms
import mobile_former
from classification.module import ClassificationModule
from detection.data import DetectionData
from detection.evaluation import CocoAP
from detection.module import DetectionModule
from detection.weights import load_detector_weights
from experiments import damage
from mobile_former.errors import InputError
from mobile_former.training.checkpoint import load_checkpoint
from mobile_former.training.cli import FitCLI
from mobile_former.training.command import run_command
from mobile_former.training.images import ImageFiles, read_image
from mobile_former.training.sampler import Draw

SECONDS = 20.0  # that a reader may take for a file
GIGABYTES = 4.0  # an image of the most pixels that are read, with transparency, takes 2.7
LONGEST_MESSAGE = 5_000  # characters

# Reads a file; returns what it told about it, if anything.
Reader = Callable[[Path], str | None]


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Attributes:
        make: draws a file.
        readers: what reads it, by name.
    """

    make: Callable[[random.Random], damage.File]
    readers: dict[str, Reader]


@dataclass(frozen=True)
class Defect:
    """What a reader did that it must not.

    Attributes:
        path: the file, as kept.
        reader: its name.
        what: it did.
    """

    path: Path
    reader: str
    what: str


def main() -> None:
    """Read the files, and tell of the defects; exit status 1 if any."""
    parser = argparse.ArgumentParser(prog="python -m experiments.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=10_000, help="how many, of all kinds together (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the files (default: 0)")
    parser.add_argument("--kinds", choices=list(KINDS), nargs="+", default=list(KINDS), help="default: all")
    parser.add_argument("--output", type=Path, default=Path("runs") / "fuzz", help="folder; default: runs/fuzz")
    options = parser.parse_args()
    kinds = {name: KINDS[name] for name in options.kinds}
    defects = fuzz(kinds, options.files, options.seed, options.output)
    for defect in defects:
        print(f"{defect.path}: {defect.reader} {defect.what}")
    if defects:
        print(f"error: {len(defects)} defects, see {options.output}", file=sys.stderr)
        sys.exit(1)
    print(f"{options.files} files ({', '.join(kinds)}; seed {options.seed}): no defect")


def fuzz(kinds: dict[str, Kind], files: int, seed: int, output: Path, seconds: float = SECONDS) -> list[Defect]:
    """Read files, kinds in turn, and keep those that bring out a defect.

    Args:
        kinds: by name.
        files: how many, of all kinds together.
        seed: of the files.
        output: folder for the files that are kept, and ``failures.txt``.
        seconds: that a reader may take for a file.
    """
    output.mkdir(parents=True, exist_ok=True)
    failures = output / "failures.txt"
    failures.write_text("")
    defects = []
    names = list(kinds)
    terminal = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Worker(kinds, Path(folder))) as worker:
        numbers = track(range(files), "reading", console=terminal, disable=not terminal.is_terminal)
        for number in numbers:
            kind = names[number % len(names)]
            for reader, what in worker.read(kind, f"{seed} {kind} {number}", seconds):
                path = keep(worker.current, output / f"{kind}-{number:06d}")
                defects.append(Defect(path, reader, what))
                with failures.open("a") as log:
                    log.write(f"{path.name}: {reader} {what}\n")
    return defects


def keep(current: Path, path: Path) -> Path:
    """Copy the file that was read last out of its folder; returns the copy's path, which ends in its name."""
    for file in current.iterdir():
        path = path.with_name(f"{path.name}-{file.name}")
        shutil.copy(file, path)
    return path


class Worker:
    """A process that makes and reads files, started afresh whenever a file has ended it.

    Args:
        kinds: by name.
        folder: to work in.
    """

    def __init__(self, kinds: dict[str, Kind], folder: Path):
        self.kinds = kinds
        self.folder = folder
        self.current = folder / "current"  # holds the file that is read
        self.process: multiprocessing.Process | None = None

    def read(self, kind: str, seed: str, seconds: float) -> Iterator[tuple[str, str]]:
        """Make and read a file; yields readers and what they did wrong."""
        if self.process is None:
            self._start()
        self.connection.send((kind, seed))
        reader = "the maker of files"
        while True:
            if not self.connection.poll(seconds):
                self.close()
                yield reader, f"took more than {seconds:g} s"
                return
            try:
                what, content = self.connection.recv()
            except EOFError:
                self.process.join()
                yield reader, f"ended the process with status {self.process.exitcode}"
                self.close()
                return
            if what == "reader":
                reader = content
            elif what == "defect":
                yield reader, content
            else:
                return

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
            self.process = None

    def _start(self) -> None:
        # Forked, so that libraries need not be imported again
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, self.kinds, self.folder), daemon=True)
        self.process.start()
        theirs.close()


def serve(connection: Connection, kinds: dict[str, Kind], folder: Path) -> None:
    """What the process does: make files and read them, as it is told by the connection."""
    limit_memory()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    logging.disable(logging.CRITICAL)
    workplace, current = folder / "workplace", folder / "current"
    workplace.mkdir(exist_ok=True)
    os.chdir(workplace)
    damage.write_coco_images(folder / "images")
    while True:
        name, seed = connection.recv()
        kind = kinds[name]
        file = kind.make(random.Random(seed))
        shutil.rmtree(current, ignore_errors=True)
        current.mkdir()
        path = current / file.name
        path.write_bytes(file.data)
        for reader, read in kind.readers.items():
            connection.send(("reader", reader))
            for defect in (attempt(read, path), too_much_memory(), code_that_ran()):
                if defect:
                    connection.send(("defect", defect))
        connection.send(("done", None))


def attempt(read: Reader, path: Path) -> str | None:
    """Read a file; returns what is wrong with the way it failed, if anything."""
    reset_peak()
    try:
        message = read(path)
    except (InputError, OSError, MisconfigurationException) as error:  # as run_command
        message = str(error)
    except Exception as error:
        place = error.__traceback__
        while place.tb_next:
            place = place.tb_next
        where = f"{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}"
        return f"raised {type(error).__name__}: {str(error)[:300]!r} at {where}"
    if message is None:
        return None
    if not message.strip():
        return "failed without a message"
    if len(message) > LONGEST_MESSAGE:
        return f"failed with a message of {len(message)} characters: {message[:100]!r}…"
    return None


def limit_memory() -> None:
    """Let allocations far beyond the limit fail, so that the machine stays usable."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = int(pages * resource.getpagesize() + (GIGABYTES + 2) * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def reset_peak() -> None:
    """Count the peak of memory from here."""
    Path("/proc/self/clear_refs").write_text("5")


def too_much_memory() -> str | None:
    """Tells of a peak since `reset_peak` that is above the limit."""
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 2**20
    return f"took {peak:.1f} GB of memory" if peak > GIGABYTES else None


def code_that_ran() -> str | None:
    """Tells of what a file's code has left, and removes it."""
    traces = [damage.CANARY in os.environ, Path(damage.CANARY).exists()]
    os.environ.pop(damage.CANARY, None)
    if Path(damage.CANARY).is_dir():
        Path(damage.CANARY).rmdir()
    Path(damage.CANARY).unlink(missing_ok=True)
    return "ran code from the file" if any(traces) else None


# The readers


def read_for_classification(path: Path) -> str | None:
    """An image as predict takes it, and as training does."""
    sample = ImageFiles([path], classification.transforms.eval_transform(224))[0]
    if isinstance(sample, str):
        return sample
    classification.transforms.train_transform(224, rand_augment=True)(image=read_image(path))
    return None


def read_for_detection(path: Path) -> str | None:
    """An image as predict takes it, and as training does."""
    boxes = {"bboxes": np.zeros((0, 4)), "labels": []}
    sample = ImageFiles([path], detection.transforms.eval_transform(), **boxes)[0]
    if isinstance(sample, str):
        return sample
    detection.transforms.train_transform()(image=read_image(path), **boxes)
    return None


class Unfitted(FitCLI):
    """fit's command line up to data and model."""

    def instantiate_trainer(self, **kwargs) -> None:
        """No run."""

    def fit(self) -> None:
        """No training."""


def parse_config(path: Path, *options: str) -> str | None:
    """A config as fit takes it, of the task that its name begins with."""
    fit = {"classification": classification.fit, "detection": detection.fit}[path.name.partition("-")[0]]
    told = io.StringIO()
    with (
        mock.patch.object(fit, "FitCLI", Unfitted),
        mock.patch.object(sys, "argv", ["fit", "--config", str(path), *options]),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(told),
    ):
        try:
            fit.main()
        except SystemExit as status:
            return None if status.code == 0 else told.getvalue()
    return None


def print_config(path: Path) -> str | None:
    """A config as ``--print_config`` writes it."""
    return parse_config(path, "--print_config")


def read_coco(path: Path) -> str | None:
    """A data set as fit and validate take it: a training and a validation sample of each image, and the evaluation."""
    files, folders = ({split: str(value) for split in ("train", "val")} for value in (path, path.parents[1] / "images"))
    data = DetectionData(
        annotations=files, images=folders, short_sides=(64,), short_side=64, longest=128, num_workers=0
    )
    data.setup("fit")
    truth = data.val_set.source.ground_truth()
    average_precision = CocoAP(truth, data.val_set.source.category_ids)
    for index in range(min(5, len(data.val_set))):
        samples = data.train_set[Draw(index, 0)], data.val_set[index]
        for sample in samples:
            if "--data.train_transforms failed" in sample.get("error", ""):
                raise AssertionError(sample["error"])  # none were given
        told = [message for sample in samples for message in (sample.get("error"), *sample["failures"]) if message]
        if told:
            return told[0]
        found = {"boxes": torch.tensor([[1.0, 1, 20, 20]]), "scores": torch.ones(1), "labels": torch.zeros(1).long()}
        average_precision.update([found], [samples[1]["image_id"]])
    average_precision.compute()
    return None


def load_classifier(path: Path) -> None:
    """Weights as ``--model.pretrained`` of a classifier takes them."""
    mobile_former.load_weights(_models()[0], path)


def load_detector(path: Path) -> None:
    """Weights as ``--model.pretrained`` of a detector takes them."""
    load_detector_weights(_models()[1], path)


@cache
def _models() -> tuple[torch.nn.Module, torch.nn.Module]:
    return mobile_former.mobile_former_26m(num_classes=2), detection.create_detector("e2e_mf_26m", num_classes=2)


def predict_classes(path: Path) -> None:
    """A checkpoint as classification.predict takes it."""
    module, options = load_checkpoint(path, ClassificationModule, "classification")
    classifier = classification.predict.CheckpointClassifier(module, options)
    classification.predict.predict(classifier, [path.parents[1] / "images" / "1.png"])


def predict_boxes(path: Path) -> None:
    """A checkpoint as detection.predict takes it."""
    module, options = load_checkpoint(path, DetectionModule, "detection")
    detector = detection.predict.CheckpointDetector(module, options)
    list(detection.predict.predict(detector, [path.parents[1] / "images" / "1.png"]))


KINDS = {
    "images": Kind(
        damage.image,
        {"classification's reader": read_for_classification, "detection's reader": read_for_detection},
    ),
    "configs": Kind(damage.config, {"fit": parse_config, "fit --print_config": print_config}),
    "coco": Kind(damage.coco, {"detection's data": read_coco}),
    "weights": Kind(
        damage.weights,
        {
            "load_weights": load_classifier,
            "load_detector_weights": load_detector,
            "classification.predict": predict_classes,
            "detection.predict": predict_boxes,
        },
    ),
}


if __name__ == "__main__":
    run_command(main)
