"""Feed thousands of damaged and hostile files to the readers of the commands.

    python -m experiments.fuzz                           # 10 000 files: images, configs, COCO data sets, weights
    python -m experiments.fuzz --kinds weights --seed 3

A reader is a function that reads one file. It must return a result, or raise an error that the commands print in one
line. Anything else is a defect: another exception, a crash of the process, more time or memory than the limits allow,
or execution of code from the file. The readers run in a separate process, so that a crash can be detected. The content
of a file depends only on the seed, the kind of file and the file's number. There is one exception: torch's older layout
of weights files orders the tensors by their memory addresses. Files that cause a defect are kept in the output folder,
and failures.txt lists the defects. Linux only.
"""

import argparse
import contextlib
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from experiments.fuzz.readers import KINDS, Kind
from experiments.fuzz.worker import SECONDS, Worker
from mobile_former.training.cli.command import run_command


@dataclass(frozen=True)
class Defect:
    """A file that a reader does not handle correctly.

    Attributes:
        path: the kept copy of the file.
        reader: name of the reader.
        what: description of the defect.
    """

    path: Path
    reader: str
    what: str


def main() -> None:
    """Feed the files to the readers and print the defects; exit with status 1 if there are defects."""
    parser = argparse.ArgumentParser(prog="python -m experiments.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=10_000, help="total number of files (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the files (default: 0)")
    parser.add_argument("--kinds", choices=list(KINDS), nargs="+", default=list(KINDS), help="default: all")
    parser.add_argument(
        "--output", type=Path, default=Path("runs") / "fuzz", help="folder of the kept files; default: runs/fuzz"
    )
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
    """Make and read files of each kind in turn; keep a copy of each file that reveals a defect; return the defects.

    Args:
        kinds: kinds of files by name.
        files: total number of files.
        seed: random seed of the files.
        output: folder of the kept files and of ``failures.txt``.
        seconds: time limit of a reader for one file.
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
    """Copy the current file to the output folder and return the path of the copy.

    Args:
        current: the folder that holds only the current file.
        path: the first part of the copy's path; a hyphen and the name of the file are appended.
    """
    for file in current.iterdir():
        path = path.with_name(f"{path.name}-{file.name}")
        shutil.copy(file, path)
    return path


if __name__ == "__main__":
    run_command(main)
