"""A run's folder: where it lies, and what it holds."""

import csv
import json
import shutil
import warnings
from pathlib import Path

from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from mobile_former.errors import InputError

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


class RunFolder:
    """``<runs>/<task>/<name>/``.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def create(cls, runs: Path, task: str, name: str) -> "RunFolder":
        """Make a new folder; where the name is taken, ``name-2``, ``name-3``, …, so that no run is overwritten.

        Raises:
            InputError: a name that is no single folder's, or a place where none can be made.
        """
        _require_plain(name)
        number = 1
        while True:
            path = runs / task / (name if number == 1 else f"{name}-{number}")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.mkdir()  # fails where it exists, so two runs started at once never share a folder
                return cls(path)
            except FileExistsError:
                if not path.is_dir():
                    raise InputError(f"cannot make the run's folder {path}: something else has that name") from None
                number += 1
            except OSError as error:
                raise InputError(
                    f"cannot make the run's folder {path}: {error.strerror}; choose --runs_folder"
                ) from error

    @classmethod
    def restart(cls, runs: Path, task: str, name: str) -> "RunFolder":
        """Make a folder anew where a run of that name was stopped before its first checkpoint; else as :meth:`create`.

        Raises:
            InputError: as of :meth:`create`.
        """
        _require_plain(name)
        folder = cls(runs / task / name)
        begun = folder.is_finished or any(folder.checkpoints.glob("*.ckpt"))
        if folder.path.is_dir() and not begun and folder._is_a_runs_own:
            shutil.rmtree(folder.path)
        return cls.create(runs, task, name)

    @classmethod
    def resume(cls, runs: Path, task: str, name: str) -> "RunFolder":
        """The existing folder of an interrupted run.

        Raises:
            FileNotFoundError: it holds no checkpoint to go on from.
        """
        _require_plain(name)
        folder = cls(runs / task / name)
        if not folder.has_checkpoint:
            others = sorted(path.parts[-3] for path in (runs / task).glob("*/checkpoints/last.ckpt"))
            known = f"runs with one: {', '.join(others)}" if others else f"no run in {runs / task} has one"
            raise FileNotFoundError(f"nothing to go on from: no {folder.last}. Choose the run by --name ({known})")
        return folder

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """The checkpoint with the best score."""
        return self.checkpoints / BEST

    @property
    def last(self) -> Path:
        """The checkpoint that a run goes on from."""
        return self.checkpoints / LAST

    @property
    def previous(self) -> Path:
        """The one before, should the last be damaged."""
        return self.checkpoints / PREVIOUS

    @property
    def is_finished(self) -> bool:
        """Whether the run has left its final figures."""
        return self.metrics_json.is_file()

    @property
    def metrics_json(self) -> Path:
        """The final figures."""
        return self.path / "metrics.json"

    @property
    def _is_a_runs_own(self) -> bool:
        """Whether a run made the folder, and no one else."""
        return (self.path / "config.yaml").is_file() or not any(self.path.iterdir())

    @property
    def metrics_csv(self) -> Path:
        """All logged figures, a row a logging."""
        return self.path / "metrics.csv"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        return self.last.is_file() or self.previous.is_file()

    def history(self) -> list[dict[str, float]]:
        """The rows of ``metrics.csv``, each with the figures that it holds."""
        if not self.metrics_csv.is_file():
            return []
        with self.metrics_csv.open(newline="") as file:
            return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]

    def write_metrics(self, metrics: dict) -> None:
        """Write the final figures, which also mark the run as finished."""
        self.metrics_json.write_text(json.dumps(metrics, indent=2) + "\n")


class RunCheckpoint(ModelCheckpoint):
    """Lightning's checkpoint callback, which goes on comparing scores where the run's folder was moved meanwhile."""

    def load_state_dict(self, state_dict: dict) -> None:
        """Take up a checkpoint's state, its paths led to this run's folder."""

        def here(path: str) -> str:
            return str(Path(self.dirpath) / Path(path).name) if path else path

        paths = {name: here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | paths | {"best_k_models": best, "dirpath": self.dirpath})


class ContinuedCSVLogger(CSVLogger):
    """Lightning's CSV logger, writing ``metrics.csv`` into a run's folder and going on with the file that is there.

    Args:
        folder: the run's folder.
        resumed_step: optimiser steps that the resumed checkpoint has taken; rows from there on tell of steps that the
            run takes again, and are dropped. None for a new run.
    """

    def __init__(self, folder: RunFolder, resumed_step: int | None = None):
        # Written at once: rows that wait in memory would be lost with the process.
        super().__init__(
            save_dir=str(folder.path.parent), name=folder.path.name, version="", flush_logs_every_n_steps=1
        )
        self._kept = [] if resumed_step is None else [row for row in folder.history() if row["step"] < resumed_step]

    @property
    def experiment(self) -> ExperimentWriter:
        """The writer, which starts with the rows kept."""
        if self._experiment is None:
            with warnings.catch_warnings():
                # It announces that it deletes the file of before, which is put back below.
                warnings.filterwarnings("ignore", message="Experiment logs directory")
                writer = super().experiment
            if self._kept:
                writer.metrics.extend(self._kept)
                writer.save()
        return super().experiment


def _require_plain(name: str) -> None:
    if not name or Path(name).name != name or name in {".", ".."}:
        raise InputError(f"--name {name!r} must be the name of one folder, without slashes")
