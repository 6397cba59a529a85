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
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from experiments.fuzz.readers import (
    KINDS,
    Kind,
)
from experiments.fuzz.worker import (
    SECONDS,
    Worker,
)
from mobile_former.training.cli.command import run_command


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


if __name__ == "__main__":
    run_command(main)
