"""The worker of a sweep.

The worker claims trials, trains each trial in its own process, reports the epochs to Optuna, and stops bad trials.
"""

import contextlib
import json
import math
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from experiments.runs import MODULES, Training, last_error, plain, validation_image
from experiments.sweep.plan import Plan, Range, identity, shown_params, trial_arguments, without_machine_options
from experiments.sweep.processes import PATIENCE, FolderInUseError, host, locked, start_training, stop_trainings
from experiments.sweep.trial_queue import BEAT, DONE, FAILED, WAITING, Claim, TrialQueue
from mobile_former.errors import InputError, first_line, nearest
from mobile_former.multiply_adds import cost
from mobile_former.training.run.checkpoint import load_checkpoint
from mobile_former.training.run.folder import RunFolder

optuna.logging.set_verbosity(optuna.logging.WARNING)  # the worker prints one line for each trial

PAUSE = 0.3  # seconds between two checks of the trainings


@dataclass
class Attempt:
    """A trial that this worker is training.

    Attributes:
        claim: this worker's claim to the trial.
        trial: Optuna's trial. Its study has a sampler and a pruner for this trial.
        params: dictionary from a parameter to its value, in the order of the search space.
        training: the training run of the trial.
        lock: the open lock file of the run's folder.
        reported: the epochs whose metric was reported to Optuna.
        process: the process of the training; None if the run was already finished.
        pruned: whether Optuna's pruner has stopped the training early.
        changed: the modification time of ``metrics.csv`` when it was last read, in nanoseconds.
        last_beat: the time of the last heartbeat, in seconds of the monotonic clock.
        deadline: the time at which a pruned training is killed, in seconds of the monotonic clock.
    """

    claim: Claim
    trial: optuna.Trial
    params: dict
    training: Training
    lock: TextIO
    reported: set[int]
    process: subprocess.Popen | None = None
    pruned: bool = False
    changed: int = 0
    last_beat: float = 0.0
    deadline: float = math.inf


class Sweep:
    """A sweep: its trials, which are in a database, and the training run of each trial.

    Args:
        plan: the sweep's config.
        name: the name of the sweep in the database.
        output: the folder of the report. It also holds the runs unless ``plan.runs`` names another folder.
        url: the SQLAlchemy URL of the database.
        others: further command-line options of every trial.
        may_begin: whether the sweep may be new. False: a sweep that is not in the database is an error.

    Raises:
        InputError: the database cannot be opened. If ``may_begin`` is False, the error is also raised if the sweep is
            not in the database or was begun with another config.
    """

    def __init__(self, plan: Plan, name: str, output: Path, url: str, others: Sequence[str], *, may_begin: bool = True):
        self.plan, self.name, self.output, self.others = plan, name, output, list(others)
        self.runs = Path(plan.runs) if plan.runs else output
        self.queue = TrialQueue(url, name, may_begin=may_begin)
        if not may_begin:
            self.queue.require_plan(identity(plan, others))
        self.is_new = not self.queue.states()

    def prepare(self) -> None:
        """Fill the queue: add the trials that it does not have yet, and let failed trials run again.

        Raises:
            InputError: the sweep was begun with another config.
        """
        self.queue.prepare(identity(self.plan, self.others), self.plan.points())
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        optuna.create_study(
            storage=self.queue.storage, study_name=self.name, direction=self.plan.direction, load_if_exists=True
        )
        self.queue.retry_failed()

    def trials(self) -> dict[int, FrozenTrial]:
        """Return a dictionary from a trial's number to the trial, for all trials that were begun.

        If a trial was tried several times, its last attempt is returned.

        Raises:
            InputError: no trial was begun.
        """
        try:
            study = optuna.load_study(study_name=self.name, storage=self.queue.storage)
        except KeyError:
            raise InputError(f"the sweep {self.name!r} has nothing to report: no trial was begun") from None
        found = {trial.user_attrs["number"]: trial for trial in study.get_trials(deepcopy=False)}
        return dict(sorted(found.items()))

    def work(self, count: int) -> None:
        """Run trials until no trial is waiting.

        Ctrl-C and SIGTERM stop the running trials. A later call can resume the stopped trials.

        Args:
            count: the number of trials to run at a time.

        Raises:
            InputError: the database failed.
        """
        active: list[Attempt] = []
        previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            self._work(active, count)
        except BaseException as error:
            stop_trainings(attempt.process for attempt in active)
            if isinstance(error, SQLAlchemyError | optuna.exceptions.StorageInternalError):
                reason = first_line(error.__cause__ or error)
                raise InputError(f"the database failed: {reason}; run the same command again to continue") from error
            for attempt in active:
                self.queue.release(attempt.claim, WAITING)
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _work(self, active: list[Attempt], count: int) -> None:
        elsewhere: set[int] = set()  # trials whose run another sweep is training
        waited = False
        while True:
            for attempt in list(active):
                if self._is_over(attempt):
                    active.remove(attempt)
            claim = self.queue.claim(elsewhere) if len(active) < count else None
            if claim is not None:
                try:
                    self._begin(claim, active, count)
                except FolderInUseError:
                    self.queue.release(claim, WAITING)
                    elsewhere.add(claim.number)
                continue
            if not active and not elsewhere:
                undecided = self.queue.undecided()
                if not undecided:
                    return
                if not waited:
                    print(f"waiting for heartbeats of {len(undecided)} trials on other machines", flush=True)
                    waited = True
            elsewhere.clear()
            time.sleep(PAUSE)

    def _begin(self, claim: Claim, active: list[Attempt], count: int) -> None:
        """Start or resume the training of a claimed trial. If the training is finished, only record its result."""
        sampler, pruner = _sampler(self.plan, claim.number), _pruner(self.plan)
        study = optuna.load_study(study_name=self.name, storage=self.queue.storage, sampler=sampler, pruner=pruner)
        known = self.trials().get(claim.number)
        if known is not None and known.state in (TrialState.COMPLETE, TrialState.PRUNED):
            self.queue.release(claim, DONE)  # its worker was killed between the two updates
            return
        if known is None or known.state == TrialState.FAIL:
            fixed = {"fixed_params": claim.fixed if known is None else known.params}
            template = create_trial(state=TrialState.RUNNING, system_attrs=fixed, user_attrs={"number": claim.number})
            trial = optuna.Trial(study, study._storage.create_new_trial(study._study_id, template_trial=template))
            reported = set()
        else:
            trial, reported = optuna.Trial(study, known._trial_id), {*known.intermediate_values}
        params = {name: _suggest(trial, name, domain) for name, domain in self.plan.space.items()}
        training = self._training(claim.number, params)
        attempt = Attempt(claim, trial, params, training, locked(training.log.with_suffix(".lock")), reported)
        trial.set_user_attr("host", host())
        trial.set_user_attr("folder", str(training.folder.path))
        trial.set_user_attr("log", str(training.log))
        active.append(attempt)
        if (reason := self._refusal(training)) is not None:
            self._fail(attempt, reason)
            active.remove(attempt)
        elif not training.folder.is_finished:
            if training.folder.has_checkpoint:
                print(f"trial {claim.number} resumes from its last checkpoint", flush=True)
            attempt.process = start_training(training, count, attempt.lock)
            self.queue.record_training(claim, attempt.process.pid)

    def _training(self, number: int, params: dict) -> Training:
        # In a folder that sweeps share, the same run needs the same name in every sweep.
        name = plain(shown_params(params)) if self.plan.runs else f"trial-{number}"
        arguments = trial_arguments(self.plan, params, self.others)
        folder = RunFolder(self.runs / self.plan.task / name)
        return Training(self.plan.task, folder, arguments, self.runs / "logs" / self.plan.task / f"{name}.log")

    def _refusal(self, training: Training) -> str | None:
        """Check that a training may use its folder, and record the options of the training.

        A folder may not be used if it has a run with other options, or a run whose options are not recorded. Options
        that may differ between machines are not compared.

        Returns:
            An error message if the folder may not be used, otherwise None.
        """
        path = training.log.with_suffix(".json")
        if training.folder.path.is_dir():
            known = json.loads(path.read_text()) if path.is_file() else None
            if known is None or without_machine_options(known) != without_machine_options(training.arguments):
                origin = "outside a sweep" if known is None else f"with {shlex.join(known)}"
                return f"error: {training.folder.path} was trained {origin}: delete it, or give another --output"
        path.write_text(json.dumps(training.arguments) + "\n")
        return None

    def _is_over(self, attempt: Attempt) -> bool:
        """Send a heartbeat, report new epochs to Optuna, and stop the training if Optuna's pruner asks for it.

        If the training has ended, the result is recorded.

        Returns:
            Whether this worker is done with the trial: the training has ended, or another worker has taken the trial.
        """
        if time.monotonic() - attempt.last_beat > BEAT:
            attempt.last_beat = time.monotonic()
            if not self.queue.beat(attempt.claim):
                print(f"trial {attempt.claim.number} went to another worker after missing heartbeats", flush=True)
                stop_trainings([attempt.process])
                attempt.lock.close()
                return True
        ended = attempt.process is None or attempt.process.poll() is not None  # before the last epochs are read
        for epoch, value in self._new_values(attempt):
            attempt.trial.report(value, epoch)
            attempt.reported.add(epoch)
            if not ended and not attempt.pruned and self.plan.pruner and attempt.trial.should_prune():
                attempt.pruned = True
                attempt.process.terminate()
                attempt.deadline = time.monotonic() + PATIENCE
        if not ended:
            if attempt.pruned and time.monotonic() > attempt.deadline:
                attempt.process.kill()
            return False
        self._close(attempt)
        return True

    def _new_values(self, attempt: Attempt) -> list[tuple[int, float]]:
        path = attempt.training.folder.metrics_csv
        try:
            changed = path.stat().st_mtime_ns
            if changed == attempt.changed or not path.read_bytes().endswith(b"\n"):
                return []
            rows = attempt.training.folder.history()
        except (OSError, ValueError, TypeError):  # read while it is being written
            return []
        attempt.changed = changed
        values = {int(row["epoch"]) + 1: row[self.plan.metric] for row in rows if self.plan.metric in row}
        return [(epoch, value) for epoch, value in sorted(values.items()) if epoch not in attempt.reported]

    def _close(self, attempt: Attempt) -> None:
        """Record the result of a trial, first in Optuna's tables and then in the queue."""
        folder, plan = attempt.training.folder, self.plan
        rows = folder.history()
        values = [row[plan.metric] for row in rows if plan.metric in row]
        finished = folder.is_finished and (attempt.process is None or attempt.process.returncode == 0)
        attempt.trial.set_user_attr("epochs", len({row["epoch"] for row in rows if plan.metric in row}))
        if attempt.pruned and not finished:
            attempt.trial.study.tell(attempt.trial, state=TrialState.PRUNED)
            self._release(attempt, DONE, f"{values[-1]:.4f} after epoch {len(values)}: pruned")
        elif not finished:
            self._fail(attempt, last_error(attempt.training.log))
        elif not values:
            known = nearest(plan.metric, sorted({name for row in rows for name in row if "/" in name}))
            self._fail(attempt, f"metric {plan.metric!r} is not a column of metrics.csv: {known}")
        else:
            if plan.score == "best":
                values = [value for value in values if not math.isnan(value)] or values
                values.sort(reverse=plan.direction == "minimize")
            if math.isnan(values[-1]):
                self._fail(attempt, f"{plan.metric} is not a number (NaN)")
                return
            attempt.trial.set_user_attr("seconds", json.loads(folder.metrics_json.read_text())["seconds"])
            if {f"model.{option}" for option in MODULES[plan.task].architecture} & plan.space.keys():
                # Without the checkpoint or the data on this machine, the score counts without its cost.
                with contextlib.suppress(InputError, OSError):
                    attempt.trial.set_user_attr("cost", _cost(attempt.training))
            attempt.trial.study.tell(attempt.trial, values[-1])
            self._release(attempt, DONE, f"{values[-1]:.4f}")

    def _fail(self, attempt: Attempt, reason: str) -> None:
        attempt.trial.set_user_attr("error", reason.removeprefix("error: "))
        attempt.trial.study.tell(attempt.trial, state=TrialState.FAIL)
        self._release(attempt, FAILED, f"failed: {reason} (see {attempt.training.log})")

    def _release(self, attempt: Attempt, state: str, result: str) -> None:
        self.queue.release(attempt.claim, state)
        attempt.lock.close()
        states = list(self.queue.states().values())
        over = sum(each in (DONE, FAILED) for each in states)
        head = f"[{over}/{len(states)}] trial {attempt.claim.number}: {shown_params(attempt.params)}"
        print(f"{head}  {self.plan.metric} {result}", flush=True)


def _suggest(trial: optuna.Trial, name: str, domain: Range | list) -> object:
    if isinstance(domain, list):
        return trial.suggest_categorical(name, domain)
    if domain.is_whole:
        return trial.suggest_int(name, domain.low, domain.high, step=domain.step or 1, log=domain.log)
    return trial.suggest_float(name, domain.low, domain.high, step=domain.step, log=domain.log)


def _sampler(plan: Plan, number: int) -> optuna.samplers.BaseSampler:
    # Every trial has its own seed: workers with the same seed would draw the same parameters.
    seed = (plan.seed * 1_000_003 + number) % 2**32
    if plan.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(plan: Plan) -> optuna.pruners.BasePruner:
    if plan.pruner is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(plan.pruner["startup_trials"], n_warmup_steps=plan.pruner["warmup_epochs"] + 1)


def _cost(training: Training) -> list[int]:
    """Return a list of two counts: a trained model's parameters, and its multiply-adds for a validation image."""
    module, data_options = load_checkpoint(training.folder.best, MODULES[training.task], training.task)
    used = cost(module.model, tuple(validation_image(training.task, data_options).shape[2:]))
    return [used.params, used.madds]
