"""Feed thousands of damaged and hostile files to the functions with which the commands read files.

    python -m experiments.fuzz                           # 10 000 files: images, configs, COCO data sets, weights
    python -m experiments.fuzz --kinds weights --seed 3

Such a function is called a reader. It must return a result, or raise an error that the commands print in one line.
Anything else is a defect: another exception, a crash of the process, more time or memory than the limits allow, or
execution of code from the file. The readers run in a separate process, so that a crash can be detected. Files that
cause a defect are kept in the output folder, with a list of the defects, failures.txt. This command needs Linux.

The content of a file depends only on the seed, the kind of file and the file's number. There is one exception: torch's
older layout of weights files orders the tensors by their memory addresses.
"""

import argparse
import contextlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from experiments.fuzz.readers import KINDS, Kind
from experiments.fuzz.worker import SECONDS, Worker
from mobile_former.training.cli.command import run_command


class Defect(NamedTuple):
    """A file that a reader does not handle correctly.

    Attributes:
        path: path of the copy in the output folder.
        reader: name of the function that reads the file.
        what: description of the defect.
    """

    path: Path
    reader: str
    what: str


def main() -> None:
    """Fuzz the readers of the chosen kinds of files, and print the defects. Exit with status 1 if there are any."""
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
    """Make damaged files, pass each to all functions that read its kind of file, and return a list of the defects.

    The kinds of files take turns. A copy of each file that causes a defect is kept.

    Args:
        kinds: dictionary from the name of a kind of file to the :class:`~experiments.fuzz.readers.Kind`.
        files: total number of files.
        seed: random seed of the files.
        output: folder for the copies and for ``failures.txt``, which lists the defects.
        seconds: time limit in seconds for one function to read one file.
    """
    output.mkdir(parents=True, exist_ok=True)
    failures = output / "failures.txt"
    failures.write_text("")
    defects, names = [], list(kinds)
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
    """Copy the only file in the folder ``current``. Return the path of the copy.

    Args:
        current: a folder that contains exactly one file.
        path: beginning of the copy's path. It is followed by a hyphen and the name of the original file.
    """
    for file in current.iterdir():
        path = path.with_name(f"{path.name}-{file.name}")
        shutil.copy(file, path)
    return path


if __name__ == "__main__":
    run_command(main)
