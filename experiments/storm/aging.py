"""Train a tiny run for many epochs, and report whether later epochs need more time or memory.

    python -m experiments.storm.aging                   # 2000 epochs
    python -m experiments.storm.aging --epochs 300

The report compares the last hundred epochs with the second hundred (epochs 101 to 200): median processor time of an
epoch, and median resident memory. In a run of less than 400 epochs, quarters of the run replace the hundreds. The
report also lists the files that have grown since the second hundred. The time to resume this run is compared with the
time to resume a run of ten epochs. This command needs Linux.
"""

import argparse
import csv
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer

from mobile_former.training.cli.command import run_command

_OPTIONS = (
    "--data.image_size", "32", "--data.batch_size", "4", "--trainer.limit_train_batches", "2",
    "--trainer.limit_val_batches", "1", "--trainer.accelerator", "cpu", "--ckpt_path", "auto",
)  # fmt: skip
_GROWING = ("metrics.csv", "tensorboard/")  # files that must grow, because they have a row for each epoch
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Age(Callback):
    """Callback that writes ``age.csv``, with the processor time, memory use and file sizes of each epoch."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the row of the previous epoch. Its time includes validation and the writing of checkpoints."""
        # Processor time, which other processes on the machine lengthen less than they delay an epoch.
        now, folder = time.process_time(), Path(trainer.default_root_dir)
        if trainer.current_epoch > 0 and hasattr(self, "_start"):
            memory = int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
            with (folder / "age.csv").open("a") as file:
                file.write(f"{trainer.current_epoch},{now - self._start:.4f},{memory},{_sizes(folder)}\n")
        self._start = time.process_time()


def main() -> None:
    """Train, and print the report."""
    parser = argparse.ArgumentParser(prog="python -m experiments.storm.aging", description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=2000, help="number of epochs (default: 2000)")
    parser.add_argument("--output", type=Path, default=Path("runs") / "aging", help="folder; default: runs/aging")
    options = parser.parse_args()
    shutil.rmtree(options.output, ignore_errors=True)
    for name, epochs in (("young", 10), ("old", options.epochs)):
        fit(options.output, name, epochs, "--trainer.callbacks", "experiments.storm.aging.Age")
    print(report(options.output / "classification" / "old" / "age.csv"))
    starts: dict[str, list[float]] = {"young": [], "old": []}
    for _ in range(3):  # in turns, because other processes on the machine then slow both
        for name, epochs in (("young", 10), ("old", options.epochs)):
            starts[name].append(fit(options.output, name, epochs))
    young, old = (statistics.median(seconds) for seconds in starts.values())
    print(f"seconds until training starts again: {old:.2f} after {options.epochs} epochs, {young:.2f} after 10")


def report(table: Path) -> str:
    """Return a text of a few lines that compares the last hundred epochs in ``age.csv`` with the second hundred."""
    with table.open() as file:
        rows = list(csv.reader(file))
    count = min(100, len(rows) // 4)
    second, last = rows[count : 2 * count], rows[-count:]
    lines = []
    for name, column, unit in (("processor seconds an epoch", 1, 1.0), ("resident memory in MB", 2, 1e6)):
        before, after = (statistics.median(float(row[column]) / unit for row in part) for part in (second, last))
        values = f"{before:.4g} in epochs {count + 1} to {2 * count}, {after:.4g} in the last {count}"
        lines.append(f"{name}: {values}: {after / before:.3f}")
    before, after = (dict(item.split("=") for item in part[0][3].split(";")) for part in (second, last))
    grown = sorted(name for name in after if int(after[name]) > 1.05 * int(before.get(name, 0)))
    lines.append(f"files that have grown: {', '.join(grown)}")
    unexpected = [name for name in grown if not name.startswith(_GROWING)]
    lines.append(f"of these not expected: {', '.join(unexpected) or 'none'}")
    return "\n".join(lines)


def _sizes(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "age.csv")
    return ";".join(f"{path.relative_to(folder).as_posix()}={path.stat().st_size}" for path in files)


def fit(output: Path, name: str, epochs: int, *more: str) -> float:
    """Start or resume a run, and train it to its end. Return the seconds that pass before training starts.

    Args:
        output: folder of the runs.
        name: name of the run.
        epochs: number of epochs.
        *more: further command-line options of ``classification.fit``.
    """
    options = (*_OPTIONS, "--runs_folder", str(output), "--name", name, "--trainer.max_epochs", str(epochs), *more)
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, "-m", "classification.fit", *options], stdout=-1, text=True) as process:
        for line in process.stdout:
            if line.startswith("run "):
                seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(process.returncode)
    return seconds


if __name__ == "__main__":
    run_command(main)
