"""The worker of a sweep: trains trials, each in a process of its own, and reports their epochs to Optuna."""

import contextlib
import json
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages._heartbeat import get_heartbeat_thread
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from experiments.runs import MODULES, Training, last_error, trained_model
from experiments.sweep.plan import shown_params
from experiments.sweep.study import Sweep
from mobile_former.errors import InputError, first_line, nearest
from mobile_former.multiply_adds import cost
from mobile_former.training.processors import available_cores

PAUSE = 0.5  # seconds between two looks at a training, or for a free trial
PATIENCE = 60  # seconds that a training has to write its checkpoint after SIGTERM
TETHERED = Path(__file__).with_name("tethered.py")


def run_trials(sweep: Sweep, count: int) -> None:
    """Run trials until all trials of the sweep have ended, also those of other workers.

    Ctrl-C and SIGTERM let the running trainings write their last checkpoints. The next worker resumes them.

    Args:
        sweep: the sweep.
        count: the number of trials to run at a time.

    Raises:
        InputError: the database failed.
    """
    worker = _Worker(sweep, count)
    previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with ThreadPoolExecutor(count) as pool:
            threads = [pool.submit(worker.run) for _ in range(count)]
            try:
                for thread in threads:
                    thread.result()
            finally:
                worker.stopped.set()  # after Ctrl-C, SIGTERM or an error in one thread
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = first_line(error.__cause__ or error)
        raise InputError(f"the database failed: {reason}; run the same command again to continue") from error
    finally:
        signal.signal(signal.SIGTERM, previous)


class _Worker:
    """Runs trials in several threads, one trial at a time in each."""

    def __init__(self, sweep: Sweep, count: int):
        self.sweep, self.plan, self.count = sweep, sweep.plan, count
        self.stopped = threading.Event()

    def run(self) -> None:
        """Run trials until all have ended or the worker is stopped."""
        try:
            while not self.stopped.is_set():
                if (trial := self.sweep.claim()) is not None:
                    with get_heartbeat_thread(trial._trial_id, self.sweep.storage):
                        self._run(trial)
                elif len(set(self.sweep.progress())) == 1:
                    return
                else:
                    self.stopped.wait(PAUSE)
        except BaseException:
            self.stopped.set()  # for the other threads
            raise

    def _run(self, trial: optuna.Trial) -> None:
        training = self.sweep.training(trial)
        known = {"host": socket.gethostname(), "folder": str(training.folder.path), "log": str(training.log)}
        try:
            for name, value in {**known, "error": None}.items():
                trial.set_user_attr(name, value)
            try:
                state, score, result = self._train(trial, training)
            except InputError as error:
                reason = str(error).removeprefix("error: ")
                trial.set_user_attr("error", reason)
                state, score, result = TrialState.FAIL, None, f"failed: {reason} (see {training.log})"
            self.sweep.study.tell(trial, score, state, skip_if_finished=True)
        except UpdateFinishedTrialError:  # this machine was suspended, or lost its connection
            result = "was taken by another worker, because its heartbeats were missing"
        params = shown_params({name: trial.params[name] for name in self.plan.space})
        head = f"[{'/'.join(map(str, self.sweep.progress()))}] trial {trial.user_attrs['number']}: {params}"
        print(f"{head}  {self.plan.metric} {result}", flush=True)

    def _train(self, trial: optuna.Trial, training: Training) -> tuple[TrialState, float | None, str]:
        """Train a trial until it ends, is pruned or the worker is stopped. A finished run is not trained again.

        Returns:
            A tuple of the trial's state, its score, and both as text.

        Raises:
            InputError: the training failed, or its folder has another run.
        """
        training.require_same_options()
        folder, pruned, status, seen = training.folder, False, 0, 0
        reported = {*self.sweep.study.get_trials(deepcopy=False)[trial.number].intermediate_values}
        if not folder.is_finished:
            if folder.has_checkpoint:
                print(f"trial {trial.user_attrs['number']} resumes from its last checkpoint", flush=True)
            process = _start(training, self.count)
            try:
                while process.poll() is None and not pruned and not self.stopped.wait(PAUSE):
                    changed = folder.metrics_csv.stat().st_mtime_ns if folder.metrics_csv.is_file() else 0
                    if changed != seen:
                        seen, pruned = changed, self._report(trial, training, reported)
            finally:
                _end(process)
            status = process.returncode
        self._report(trial, training, reported)
        values = list(self._values(training).values())
        trial.set_user_attr("epochs", len(values))
        if folder.is_finished and status == 0:
            score = self._score(values, training)
            trial.set_user_attr("seconds", json.loads(folder.metrics_json.read_text())["seconds"])
            if {f"model.{option}" for option in MODULES[self.plan.task].architecture} & self.plan.space.keys():
                # Without the data on this machine, the score counts without its cost.
                with contextlib.suppress(InputError, OSError):
                    module, image = trained_model(training)
                    used = cost(module.model, tuple(image.shape[2:]))
                    trial.set_user_attr("cost", [used.params, used.madds])
            return TrialState.COMPLETE, score, f"{score:.4f}"
        if pruned:
            return TrialState.PRUNED, None, f"{values[-1]:.4f} after epoch {len(values)}: pruned"
        if self.stopped.is_set():
            return TrialState.FAIL, None, "stopped"  # without an error: the next worker repeats it
        raise InputError(last_error(training.log))

    def _values(self, training: Training) -> dict[int, float]:
        """Return a dictionary from an epoch, counted from 1, to the metric."""
        rows = [row for row in training.folder.history() if self.plan.metric in row]
        return {int(row["epoch"]) + 1: row[self.plan.metric] for row in rows}

    def _report(self, trial: optuna.Trial, training: Training, reported: set[int]) -> bool:
        """Report new epochs to Optuna, and return whether its pruner wants to stop the trial."""
        try:
            is_whole = training.folder.metrics_csv.read_bytes().endswith(b"\n")
            values = self._values(training) if is_whole else {}
        except (OSError, ValueError, TypeError):  # read while it is being written
            values = {}
        new = sorted(values.keys() - reported)
        for epoch in new:
            trial.report(values[epoch], epoch)
            reported.add(epoch)
        return bool(new) and trial.should_prune()

    def _score(self, values: list[float], training: Training) -> float:
        if not values:
            columns = sorted({name for row in training.folder.history() for name in row if "/" in name})
            hint = nearest(self.plan.metric, columns)
            raise InputError(f"metric {self.plan.metric!r} is not a column of metrics.csv: {hint}")
        if self.plan.score == "best":
            best = max if self.plan.direction == "maximize" else min
            values = [best([value for value in values if not math.isnan(value)] or values)]
        if math.isnan(values[-1]):
            raise InputError(f"{self.plan.metric} is not a number (NaN)")
        return values[-1]


def _start(training: Training, count: int) -> subprocess.Popen:
    """Start a training in its own process, which ends with this one (see ``tethered.py``)."""
    cores = available_cores() // count  # without this limit, every training would use all cores
    environment = {"OMP_NUM_THREADS": str(max(1, cores))} | os.environ if count > 1 else None
    tether = [sys.executable, str(TETHERED), str(training.log.with_suffix(".lock")), str(training.folder.metrics_json)]
    with training.log.open("a") as log:
        log.write(f"$ {shlex.join(training.command)}\n")
        log.flush()
        return subprocess.Popen(
            [*tether, *training.command[2:]], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
            env=environment, start_new_session=True,  # so that Ctrl-C reaches the worker only
        )  # fmt: skip


def _end(process: subprocess.Popen) -> None:
    """Let a training write its last checkpoint and end; kill it after ``PATIENCE`` seconds."""
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdin.close()
