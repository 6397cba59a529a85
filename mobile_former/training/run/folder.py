"""The folder of a training run: its path, its files, and the Lightning classes that write these files."""

import contextlib
import csv
import io
import json
import os
import shutil
from pathlib import Path

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from mobile_former.errors import InputError
from mobile_former.training.run.lock import LOCK, InUseError, lock_folder, release_folder
from mobile_former.whole_file import write_whole

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
REQUEUED = "hpc_ckpt_*.ckpt"  # checkpoints in the run folder that Lightning's own handler for SLURM has written
_ARRAY_TASK = "# SLURM array task "  # begins the first line of config.yaml in an array job


class RunFolder:
    """The folder ``<runs>/<task>/<name>/``, which contains the files of one training run.

    Args:
        path: path of the folder.
    """

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def create(cls, runs: Path, task: str, name: str) -> "RunFolder":
        """Create, lock and return a new run folder.

        If the name is taken, ``name-2``, ``name-3``, … are tried, so that no run is overwritten.

        Args:
            runs: folder of all runs.
            task: ``"classification"`` or ``"detection"``, the name of a subfolder of ``runs``.
            name: name of the run and its folder.

        Raises:
            InputError: ``name`` is not a valid folder name, or the folder cannot be created.
        """
        _require_folder_name(name)
        number = 1
        while True:
            folder = cls(runs / task / (name if number == 1 else f"{name}-{number}"))
            try:
                folder._make()  # fails if it exists, so that runs that start at the same time never share a folder
                folder.lock()
                return folder
            except (FileExistsError, InUseError):
                number += 1

    @classmethod
    def restart(cls, runs: Path, task: str, name: str) -> "RunFolder":
        """Create, lock and return a run folder. An existing folder ``name`` without results is emptied and reused.

        A folder has no results if it is empty or its run stopped before the first checkpoint. If the existing folder
        has results, it is kept, and the new folder gets a number, see :meth:`create`.

        Raises:
            InputError: see :meth:`create` and :meth:`lock`.
        """
        _require_folder_name(name)
        folder = cls(runs / task / name)
        with contextlib.suppress(FileExistsError):
            folder._make()
        folder.lock()
        if folder._holds_no_results:
            for path in folder._contents():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            return folder
        folder.release()
        return cls.create(runs, task, name)

    @classmethod
    def resume(cls, runs: Path, task: str, name: str) -> "RunFolder":
        """Return the folder of the existing run ``name``. The run must have a checkpoint to resume from.

        Raises:
            InputError: ``name`` is not a valid folder name.
            FileNotFoundError: the run has no checkpoint to resume from.
        """
        _require_folder_name(name)
        folder = cls(runs / task / name)
        if not folder.has_checkpoint:
            others = sorted(path.parts[-3] for path in (runs / task).glob("*/checkpoints/last.ckpt"))
            known = f"runs with a checkpoint: {', '.join(others)}" if others else f"no run in {runs / task} has one"
            raise FileNotFoundError(
                f"no checkpoint to resume from: {folder.last}. Choose the run with --name ({known})"
            )
        return folder

    def _make(self) -> None:
        """Create the folder. Raise FileExistsError if it exists, and InputError if it cannot be created."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir()
        except FileExistsError:
            if not self.path.is_dir():
                raise InputError(f"cannot create the run folder {self.path}: a file has that name") from None
            raise
        except OSError as error:
            raise InputError(
                f"cannot create the run folder {self.path}: {error.strerror}; choose another --runs_folder"
            ) from error

    def lock(self) -> None:
        """Lock the folder, so that no other process writes into it, until :meth:`release` or the end of this process.

        Raises:
            InUseError: another process has locked the folder.
        """
        lock_folder(self.path)

    def release(self) -> None:
        """Release the lock of the folder."""
        release_folder(self.path)

    @property
    def checkpoints(self) -> Path:
        """Path of the folder that contains the checkpoints."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """Path of the checkpoint with the best validation score."""
        return self.checkpoints / BEST

    @property
    def last(self) -> Path:
        """Path of the last checkpoint. A resumed run starts from this file."""
        return self.checkpoints / LAST

    @property
    def previous(self) -> Path:
        """Path of the checkpoint before the last one.

        A resumed run starts from this file if the last checkpoint is missing or damaged.
        """
        return self.checkpoints / PREVIOUS

    @property
    def has_checkpoint(self) -> bool:
        """Whether the run has a checkpoint to resume from."""
        return self.last.is_file() or self.previous.is_file() or bool(self.requeued)

    @property
    def requeued(self) -> list[Path]:
        """List of paths of the checkpoints that Lightning's own SLURM handler has written, the newest first."""
        return sorted(self.path.glob(REQUEUED), key=lambda path: path.stat().st_mtime, reverse=True)

    @property
    def metrics_csv(self) -> Path:
        """Path of the CSV file that contains all logged metrics. A row is added each time metrics are logged."""
        return self.path / "metrics.csv"

    @property
    def metrics_json(self) -> Path:
        """Path of the JSON file of the final metrics."""
        return self.path / "metrics.json"

    @property
    def is_finished(self) -> bool:
        """Whether the run has written its final metrics."""
        return self.metrics_json.is_file()

    @property
    def _holds_no_results(self) -> bool:
        """Whether the folder is empty, or belongs to a run that stopped before its first checkpoint."""
        by_a_run = (self.path / "config.yaml").is_file() or not self._contents()
        return by_a_run and not self.is_finished and not any(self.checkpoints.glob("*.ckpt")) and not self.requeued

    def _contents(self) -> list[Path]:
        return [path for path in self.path.iterdir() if path.name != LOCK]

    def require_same_array_task(self) -> None:
        """If this process belongs to a SLURM array job, check that no other task of this job started the run.

        The tasks of an array usually have different options, such as seeds. The tasks of a later array job are allowed
        to resume the run.

        Raises:
            InputError: another task of this job started the run.
        """
        config, mine = self.path / "config.yaml", array_task()
        if mine is None or not config.is_file():
            return
        with config.open() as file:
            line = file.readline().strip()
        theirs = line.removeprefix(_ARRAY_TASK)
        if line.startswith(_ARRAY_TASK) and theirs != mine and theirs.split("_")[0] == mine.split("_")[0]:
            raise InputError(
                f"the run {self.path} is that of SLURM's array task {theirs}, but this is task {mine}: give each task "
                f"its own --name, or none"
            )

    def history(self) -> list[dict[str, float]]:
        """Return the rows of ``metrics.csv`` as a list of dictionaries from metric name to value.

        Empty cells and an incomplete last row are left out. If the file does not exist, the list is empty.
        """
        if not self.metrics_csv.is_file():
            return []
        text = self.metrics_csv.read_text()
        rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
        return [{key: float(value) for key, value in row.items() if value} for row in rows]

    def write_config(self, config: str, *, resumed: bool) -> None:
        """Write the options of the run to ``config.yaml``, or to ``config.resumed.yaml`` if the run is resumed.

        In a SLURM array job, the first line of the file has the id of the array task.
        """
        if task := array_task():
            config = f"{_ARRAY_TASK}{task}\n{config}"
        write_whole(self.path / ("config.resumed.yaml" if resumed else "config.yaml"), config.encode())

    def write_metrics(self, metrics: dict) -> None:
        """Write the final metrics to ``metrics.json``.

        A run is regarded as finished if this file exists.
        """
        write_whole(self.metrics_json, (json.dumps(metrics, indent=2) + "\n").encode())


class RunCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint for run folders that can be moved.

    A resumed run keeps the best score so far, even if its folder was moved after the checkpoint was written.
    """

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Return whether the current checkpoint should replace the best one.

        A score below 0 means that nothing could be measured. If both the current score and the best score so far are
        below 0, the current checkpoint replaces the best one.
        """
        unmeasured = current is not None and current < 0 and all(score < 0 for score in self.best_k_models.values())
        return unmeasured or super().check_monitor_top_k(trainer, current)

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore the state of the callback from a checkpoint.

        The checkpoint paths in the state are changed to the current checkpoint folder of the run.
        """

        def here(path: str) -> str:
            return str(Path(self.dirpath) / Path(path).name) if path else path

        paths = {name: here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | paths | {"best_k_models": best, "dirpath": self.dirpath})


class ContinuedCSVLogger(CSVLogger):
    """Lightning's CSVLogger that keeps the earlier rows of a run folder's ``metrics.csv`` if the run is resumed.

    Args:
        folder: folder of the run.
        resumed_step: optimiser step from which the run resumes. Rows of this step and later steps are dropped, because
            the resumed run repeats these steps. None: the run is new, and no row is kept.
    """

    def __init__(self, folder: RunFolder, resumed_step: int | None = None):
        # Each row is written at once: rows in memory would be lost with the process.
        super().__init__(
            save_dir=str(folder.path.parent), name=folder.path.name, version="", flush_logs_every_n_steps=1
        )
        self._kept = [] if resumed_step is None else [row for row in folder.history() if row["step"] < resumed_step]

    @property
    def experiment(self) -> ExperimentWriter:
        """Object that writes ``metrics.csv``. It is created on first use.

        In a resumed run, the file begins with the rows that were logged before the checkpoint was written.
        """
        if self._experiment is None and rank_zero_only.rank == 0:
            self._experiment = _WholeWriter(self.log_dir, self._kept)
        return super().experiment


class _WholeWriter(ExperimentWriter):
    """Writer of ``metrics.csv`` that rewrites the file atomically, so that a crash does not lose earlier rows."""

    def __init__(self, log_dir: str, kept: list[dict[str, float]]):
        super().__init__(log_dir)
        self.metrics_keys = sorted(set().union(*kept))
        if kept:
            self._write(kept)
        else:
            Path(self.metrics_file_path).unlink(missing_ok=True)

    def _check_log_dir_exists(self) -> None:
        """Do nothing. Lightning's method would delete an existing ``metrics.csv``."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with open(self.metrics_file_path, newline="") as file:
            self._write(list(csv.DictReader(file)))

    def _write(self, rows: list[dict]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.metrics_keys)
        writer.writeheader()
        writer.writerows(rows)
        write_whole(Path(self.metrics_file_path), text.getvalue().encode())


def array_task() -> str | None:
    """Return the id of this process's SLURM array task, such as ``"100_7"``, or None outside an array job."""
    job, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{job}_{task}" if job and task else None


def _require_folder_name(name: str) -> None:
    if not name or Path(name).name != name or name in {".", ".."}:
        raise InputError(f"--name {name!r} must be the name of one folder, without slashes")
