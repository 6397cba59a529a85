"""The worker of a sweep: trains trials, each in a process of its own, and reports their epochs to Optuna."""

import contextlib
import json
import signal
import socket
import sys
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages._heartbeat import get_heartbeat_thread
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from experiments.runs import MODULES, last_error, stop
from experiments.sweep.study import Sweep
from experiments.tables import shown_params
from mobile_former.errors import InputError, first_line
from mobile_former.multiply_adds import cost

PAUSE = 0.5  # seconds between two looks at a training, or for a free trial


def run_trials(sweep: Sweep, count: int) -> None:
    """Run up to ``count`` trials at a time, and return when all trials of the sweep have ended.

    The function also waits for the trials that other workers run. If Ctrl-C or SIGTERM stops it, the running trainings
    write checkpoints, and the next worker resumes these trainings.

    Raises:
        InputError: the database failed.
    """
    stopped = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with ThreadPoolExecutor(count) as pool:
            threads = [pool.submit(_run_trials, sweep, count, stopped) for _ in range(count)]
            try:
                wait(threads, return_when=FIRST_EXCEPTION)
            finally:
                stopped.set()
        for thread in threads:
            thread.result()
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = first_line(error.__cause__ or error)
        raise InputError(f"the database failed: {reason}; run the same command again to continue") from error
    finally:
        signal.signal(signal.SIGTERM, previous)


def _run_trials(sweep: Sweep, count: int, stopped: threading.Event) -> None:
    """Run one trial at a time until all trials have ended or ``stopped`` is set. ``count`` threads do this."""
    while not stopped.is_set():
        if (trial := sweep.claim()) is not None:
            with get_heartbeat_thread(trial._trial_id, sweep.storage):
                _Attempt(sweep, trial, stopped).run(count)
        elif len(set(sweep.progress())) == 1:
            return
        else:
            stopped.wait(PAUSE)


class _Attempt:
    """One attempt to run a trial. It ends when the trial ends or the worker is stopped."""

    def __init__(self, sweep: Sweep, trial: optuna.Trial, stopped: threading.Event):
        self.sweep, self.trial, self.stopped, self.training = sweep, trial, stopped, sweep.training(trial)
        self.plan, self.folder, self.number = sweep.plan, self.training.folder, trial.user_attrs["number"]
        self.reported = {*sweep.study.get_trials(deepcopy=False)[trial.number].intermediate_values}  # epochs

    def run(self, count: int) -> None:
        """Train the trial and record its result. ``count`` is the number of trainings that run at the same time."""
        known = {"host": socket.gethostname(), "folder": str(self.folder.path), "log": str(self.training.log)}
        try:
            for name, value in {**known, "error": None}.items():
                self.trial.set_user_attr(name, value)
            try:
                self.training.require_same_options()
                state, score, result = self._result(*self._train(count))
            except InputError as error:
                reason = str(error).removeprefix("error: ")
                self.trial.set_user_attr("error", reason)
                state, score, result = TrialState.FAIL, None, f"failed: {reason} (see {self.training.log})"
            self.sweep.study.tell(self.trial, score, state, skip_if_finished=True)
        except UpdateFinishedTrialError:  # this machine was suspended, or lost its connection
            result = "was taken by another worker, because its heartbeats were missing"
        over, total = self.sweep.progress()
        params = shown_params({name: self.trial.params[name] for name in self.plan.space})
        print(f"[{over}/{total}] trial {self.number}: {params}  {self.plan.metric} {result}", flush=True)

    def _train(self, count: int) -> tuple[int, bool]:
        """Train until the trial ends, is pruned or is stopped. Return a tuple (exit status, whether it is pruned)."""
        status, pruned, seen = 0, False, None
        if not self.folder.is_finished:
            if self.folder.has_checkpoint:
                print(f"trial {self.number} resumes from its last checkpoint", flush=True)
            process, table = self.training.start(count), self.folder.metrics_csv
            try:
                while process.poll() is None and not pruned and not self.stopped.wait(PAUSE):
                    changed = table.stat().st_mtime_ns if table.is_file() else None
                    if changed != seen:
                        seen, pruned = changed, self._report()
            finally:
                stop(process)
            status = process.returncode
        self._report()
        return status, pruned

    def _report(self) -> bool:
        """Report new epochs to Optuna, and return whether its pruner wants to stop the trial."""
        values = {}
        with contextlib.suppress(OSError, ValueError, TypeError):  # read while it is being written
            if self.folder.metrics_csv.read_bytes().endswith(b"\n"):
                values = self.training.values(self.plan.metric)
        new = sorted(values.keys() - self.reported)
        for epoch in new:
            self.trial.report(values[epoch], epoch)
        self.reported.update(new)
        return bool(new) and self.trial.should_prune()

    def _result(self, status: int, pruned: bool) -> tuple[TrialState, float | None, str]:
        """Return a tuple (state, score, text of both). Raise :class:`InputError` if the training failed."""
        values = list(self.training.values(self.plan.metric).values())
        self.trial.set_user_attr("epochs", len(values))
        if self.folder.is_finished and status == 0:
            score = self.training.score(self.plan.metric, self.plan.score, self.plan.direction)
            self.trial.set_user_attr("seconds", json.loads(self.folder.metrics_json.read_text())["seconds"])
            if {f"model.{option}" for option in MODULES[self.plan.task].architecture} & self.plan.space.keys():
                with contextlib.suppress(InputError, OSError):  # the data is not on this machine
                    module, image = self.training.model()
                    used = cost(module.model, tuple(image.shape[2:]))
                    self.trial.set_user_attr("cost", [used.params, used.madds])
            return TrialState.COMPLETE, score, f"{score:.4f}"
        if pruned:
            return TrialState.PRUNED, None, f"{values[-1]:.4f} after epoch {len(values)}: pruned"
        if self.stopped.is_set():
            return TrialState.FAIL, None, "stopped"  # without an error: the next worker repeats it
        raise InputError(last_error(self.training.log))
