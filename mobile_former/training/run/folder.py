"""The folder of a training run: its path, its files, and the Lightning classes that write these files."""

import csv
import json
import shutil
import warnings
from pathlib import Path

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from torch import Tensor

from mobile_former.errors import InputError
from mobile_former.whole_file import write_whole

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


class RunFolder:
    """The folder ``<runs>/<task>/<name>/``, which contains the files of one training run.

    Args:
        path: path of the folder.
    """

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def create(cls, runs: Path, task: str, name: str) -> "RunFolder":
        """Create and return a new run folder.

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
            path = runs / task / (name if number == 1 else f"{name}-{number}")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.mkdir()  # fails if it exists, so that runs that start at the same time never share a folder
                return cls(path)
            except FileExistsError:
                if not path.is_dir():
                    raise InputError(f"cannot create the run folder {path}: a file has that name") from None
                number += 1
            except OSError as error:
                raise InputError(
                    f"cannot create the run folder {path}: {error.strerror}; choose another --runs_folder"
                ) from error

    @classmethod
    def restart(cls, runs: Path, task: str, name: str) -> "RunFolder":
        """Create and return a new run folder. Replace an existing folder ``name`` if it has no results.

        A folder has no results if it is empty or its run stopped before the first checkpoint. If the existing folder
        has results, it is kept, and the new folder gets a number, see :meth:`create`.

        Raises:
            InputError: see :meth:`create`.
        """
        _require_folder_name(name)
        folder = cls(runs / task / name)
        if folder.path.is_dir() and folder._holds_no_results:
            shutil.rmtree(folder.path)
        return cls.create(runs, task, name)

    @classmethod
    def resume(cls, runs: Path, task: str, name: str) -> "RunFolder":
        """Return the folder of the existing run ``name``, which must have a checkpoint to resume from.

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
        return self.last.is_file() or self.previous.is_file()

    @property
    def metrics_csv(self) -> Path:
        """Path of the CSV file of all logged metrics. A row is added each time metrics are logged."""
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
        by_a_run = (self.path / "config.yaml").is_file() or not any(self.path.iterdir())
        return by_a_run and not self.is_finished and not any(self.checkpoints.glob("*.ckpt"))

    def history(self) -> list[dict[str, float]]:
        """Return the rows of ``metrics.csv`` as a list of dictionaries from metric name to value.

        Empty cells are left out. If the file does not exist, the list is empty.
        """
        if not self.metrics_csv.is_file():
            return []
        with self.metrics_csv.open(newline="") as file:
            return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]

    def write_config(self, config: str, *, resumed: bool) -> None:
        """Write the options of the run to ``config.yaml``, or to ``config.resumed.yaml`` if the run is resumed."""
        write_whole(self.path / ("config.resumed.yaml" if resumed else "config.yaml"), config.encode())

    def write_metrics(self, metrics: dict) -> None:
        """Write the final metrics to ``metrics.json``.

        A run is regarded as finished if this file exists.
        """
        write_whole(self.metrics_json, (json.dumps(metrics, indent=2) + "\n").encode())


class RunCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint for run folders that may be moved.

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
        """Object that writes ``metrics.csv``.

        In a resumed run, the file begins with the rows that were logged before the checkpoint was written.
        """
        if self._experiment is None:
            with warnings.catch_warnings():
                # The writer warns that it deletes the old file. The rows of this file are written again below.
                warnings.filterwarnings("ignore", message="Experiment logs directory")
                writer = super().experiment
            if self._kept:
                writer.metrics.extend(self._kept)
                writer.save()
        return super().experiment


def _require_folder_name(name: str) -> None:
    if not name or Path(name).name != name or name in {".", ".."}:
        raise InputError(f"--name {name!r} must be the name of one folder, without slashes")
