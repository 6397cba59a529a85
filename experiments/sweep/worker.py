"""What runs a sweep's trials: takes one that waits, trains it in a process of its own, reports epochs, prunes."""

import contextlib
import ctypes
import fcntl
import functools
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from experiments.runs import MODULES, Training, last_error, plain, validation_image
from experiments.sweep.plan import Plan, Range, identity, trial_arguments, without_places
from experiments.sweep.trial_queue import BEAT, DONE, FAILED, RUNNING, WAITING, Claim, TrialQueue, host
from mobile_former.cost import cost
from mobile_former.errors import InputError, nearest
from mobile_former.training.run.checkpoint import load_checkpoint
from mobile_former.training.run.folder import RunFolder

optuna.logging.set_verbosity(optuna.logging.WARNING)  # each trial is told here in a line

PAUSE = 0.3  # seconds between two looks at the trainings
PATIENCE = 60  # seconds for a training that was told to stop


@dataclass
class Attempt:
    """A trial that is being trained.

    Attributes:
        claim: by which it is this worker's.
        study: with the trial's own sampler and pruner.
        trial: of Optuna.
        params: of the trial, in the plan's order.
        training: its run.
        lock: held while the run's folder is this worker's.
        process: the training; None where the run was finished before.
        told: epochs that Optuna has been told of.
        pruned: whether it has been told to stop.
        changed: when ``metrics.csv`` last changed.
        beaten: when the last sign of life was given.
        deadline: of the end of a pruned one.
    """

    claim: Claim
    study: optuna.Study
    trial: optuna.Trial
    params: dict
    training: Training
    lock: TextIO
    process: subprocess.Popen | None = None
    told: set[int] = field(default_factory=set)
    pruned: bool = False
    changed: int = 0
    beaten: float = 0.0
    deadline: float = math.inf


class FolderInUseError(Exception):
    """Another sweep trains the run that this one would."""


class Sweep:
    """A study, its trials and their runs.

    Args:
        plan: what is searched.
        name: of the study.
        output: folder of the reports, and of the runs unless the plan has another.
        url: of the database.
        others: options of every trial from the command line.
        may_begin: whether there may be no such study yet.

    Raises:
        InputError: the database cannot be opened, or there has to be a study, and it is none or another.
    """

    def __init__(self, plan: Plan, name: str, output: Path, url: str, others: Sequence[str], *, may_begin: bool = True):
        self.plan, self.name, self.output, self.others = plan, name, output, list(others)
        self.runs = Path(plan.runs) if plan.runs else output
        self.queue = TrialQueue(url, name, may_begin=may_begin)
        if not may_begin:
            self.queue.require_plan(identity(plan, others))
        self.is_new = not self.queue.states()

    def prepare(self) -> None:
        """Write down the trials, where that was not done before; failed ones get another chance.

        Raises:
            InputError: the study was begun with another config.
        """
        self.queue.prepare(identity(self.plan, self.others), self.plan.points())
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        optuna.create_study(
            storage=self.queue.storage, study_name=self.name, direction=self.plan.direction, load_if_exists=True
        )
        self.queue.retry_failed()

    def trials(self) -> dict[int, FrozenTrial]:
        """By number what Optuna knows of each trial that was begun, of one that failed the last attempt."""
        try:
            study = optuna.load_study(study_name=self.name, storage=self.queue.storage)
        except KeyError:
            raise InputError(f"there is nothing to report of the sweep {self.name!r}: no trial was begun") from None
        found = {trial.user_attrs["number"]: trial for trial in study.get_trials(deepcopy=False)}
        return dict(sorted(found.items()))

    def work(self, count: int) -> None:
        """Run trials, ``count`` at a time, until none waits; on Ctrl-C and SIGTERM, let all go on another time."""
        active: list[Attempt] = []
        previous = signal.signal(signal.SIGTERM, _stop)
        try:
            self._work(active, count)
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            _end(active)
            reason = str(error.__cause__ or error).splitlines()[0]
            raise InputError(f"the database of the sweep failed: {reason}; the same command goes on") from error
        except BaseException:
            _end(active)
            for attempt in active:
                self.queue.release(attempt.claim, WAITING)
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _work(self, active: list[Attempt], count: int) -> None:
        elsewhere: set[int] = set()  # trials whose runs another sweep trains at this moment
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
                    print(f"listening whether the workers of {len(undecided)} trials elsewhere live", flush=True)
                    waited = True
            elsewhere.clear()
            time.sleep(PAUSE)

    def _begin(self, claim: Claim, active: list[Attempt], count: int) -> None:
        """Start a claimed trial, or go on with it; what was over already is only written down as such."""
        study = optuna.load_study(
            study_name=self.name,
            storage=self.queue.storage,
            sampler=_sampler(self.plan, claim.number),
            pruner=_pruner(self.plan),
        )
        known = self.trials().get(claim.number)
        if known is not None and known.state in (TrialState.COMPLETE, TrialState.PRUNED):
            self.queue.release(claim, DONE)  # its worker was killed between writing the one and the other
            return
        if known is None or known.state == TrialState.FAIL:
            fixed = {"fixed_params": claim.fixed if known is None else known.params}
            template = create_trial(state=TrialState.RUNNING, system_attrs=fixed, user_attrs={"number": claim.number})
            trial_id = study._storage.create_new_trial(study._study_id, template_trial=template)
        else:
            trial_id = known._trial_id
        trial = optuna.Trial(study, trial_id)
        params = {name: _suggest(trial, name, domain) for name, domain in self.plan.space.items()}
        training = self._training(claim.number, params)
        attempt = Attempt(claim, study, trial, params, training, locked(training.log.with_suffix(".lock")))
        attempt.told = set() if known is None or known.state == TrialState.FAIL else {*known.intermediate_values}
        trial.set_user_attr("host", host())
        trial.set_user_attr("folder", str(training.folder.path))
        trial.set_user_attr("log", str(training.log))
        active.append(attempt)
        if (told := self._strange(training)) is not None:
            self._fail(attempt, told)
            active.remove(attempt)
        elif not training.folder.is_finished:
            if training.folder.has_checkpoint:
                print(f"trial {claim.number} goes on from its last checkpoint", flush=True)
            attempt.process = _start(training, count, attempt.lock)
            self.queue.tell_training(claim, attempt.process.pid)

    def _training(self, number: int, params: dict) -> Training:
        name = f"trial-{number}"
        if self.plan.runs:  # in which the same run has the same name in every sweep
            name = plain(shown_params(params))
        arguments = trial_arguments(self.plan, params, self.others)
        folder = RunFolder(self.runs / self.plan.task / name)
        return Training(self.plan.task, folder, arguments, self.runs / "logs" / self.plan.task / f"{name}.log")

    def _strange(self, training: Training) -> str | None:
        """Write down the options of a run; what is wrong where its folder is of a run with others."""
        path = training.log.with_suffix(".json")
        if training.folder.path.is_dir():
            known = json.loads(path.read_text()) if path.is_file() else None
            if known is None or without_places(known) != without_places(training.arguments):
                whose = "by somebody else" if known is None else f"with {shlex.join(known)}"
                return f"error: {training.folder.path} was trained {whose}: delete it, or give another --output"
        path.write_text(json.dumps(training.arguments) + "\n")
        return None

    def _is_over(self, attempt: Attempt) -> bool:
        """Look after a training: give a sign of life, report new epochs, prune, and close it where it has ended."""
        if time.monotonic() - attempt.beaten > BEAT:
            attempt.beaten = time.monotonic()
            if not self.queue.beat(attempt.claim):
                print(f"trial {attempt.claim.number} was given to another worker, as this one was silent", flush=True)
                _end([attempt])
                attempt.lock.close()
                return True
        ended = attempt.process is None or attempt.process.poll() is not None  # asked before the last look
        for epoch, value in self._new_values(attempt):
            attempt.trial.report(value, epoch)
            attempt.told.add(epoch)
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
        except (OSError, ValueError, TypeError):  # caught while it is being written
            return []
        attempt.changed = changed
        values = {int(row["epoch"]) + 1: row[self.plan.metric] for row in rows if self.plan.metric in row}
        return [(epoch, value) for epoch, value in sorted(values.items()) if epoch not in attempt.told]

    def _close(self, attempt: Attempt) -> None:
        """Write down how a trial ended, in Optuna's tables and then in the queue's."""
        folder, plan = attempt.training.folder, self.plan
        rows = folder.history()
        values = [row[plan.metric] for row in rows if plan.metric in row]
        finished = folder.is_finished and (attempt.process is None or attempt.process.returncode == 0)
        attempt.trial.set_user_attr("epochs", len({row["epoch"] for row in rows if plan.metric in row}))
        if attempt.pruned and not finished:
            attempt.study.tell(attempt.trial, state=TrialState.PRUNED)
            self._release(attempt, DONE, f"{_figure(values[-1])} after epoch {len(values)}: pruned")
        elif not finished:
            self._fail(attempt, last_error(attempt.training.log))
        elif not values:
            scores = {name for row in rows for name in row if "/" in name}
            known = nearest(plan.metric, sorted(scores))
            self._fail(attempt, f"metric {plan.metric!r} is no figure of metrics.csv: {known}")
        else:
            if plan.score == "best":
                values = [value for value in values if not math.isnan(value)] or values
                values.sort(reverse=plan.direction == "minimize")
            value = values[-1]
            if math.isnan(value):
                self._fail(attempt, f"{plan.metric} is no number")
                return
            attempt.trial.set_user_attr("seconds", json.loads(folder.metrics_json.read_text())["seconds"])
            if {f"model.{option}" for option in MODULES[plan.task].architecture} & plan.space.keys():
                with contextlib.suppress(
                    InputError, OSError
                ):  # no checkpoint or data here; the score counts all the same
                    attempt.trial.set_user_attr("cost", _cost(attempt.training))
            attempt.study.tell(attempt.trial, value)
            self._release(attempt, DONE, _figure(value))

    def _fail(self, attempt: Attempt, reason: str) -> None:
        attempt.trial.set_user_attr("error", reason.removeprefix("error: "))
        attempt.study.tell(attempt.trial, state=TrialState.FAIL)
        self._release(attempt, FAILED, f"failed: {reason} (see {attempt.training.log})")

    def _release(self, attempt: Attempt, state: str, told: str) -> None:
        self.queue.release(attempt.claim, state)
        attempt.lock.close()
        states = list(self.queue.states().values())
        over = sum(each not in (WAITING, RUNNING) for each in states)
        head = f"[{over}/{len(states)}] trial {attempt.claim.number}: {shown_params(attempt.params)}"
        print(f"{head}  {self.plan.metric} {told}", flush=True)


def short_names(names: Sequence[str]) -> list[str]:
    """The last parts of options' names, where these tell them apart."""
    last = [name.rpartition(".")[2] for name in names]
    return [short if last.count(short) == 1 else name for name, short in zip(names, last, strict=True)]


def shown_params(params: dict) -> str:
    """Parameters and their values in a line."""
    names = short_names(list(params))
    return ", ".join(f"{name} {shown_value(value)}" for name, value in zip(names, params.values(), strict=True))


def shown_value(value: object) -> str:
    """A parameter's value as text."""
    if value is None:
        return "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _figure(value: float) -> str:
    return f"{value:.4f}"


def _suggest(trial: optuna.Trial, name: str, domain: Range | list) -> object:
    if isinstance(domain, list):
        return trial.suggest_categorical(name, domain)
    if domain.is_whole:
        return trial.suggest_int(name, domain.low, domain.high, step=domain.step or 1, log=domain.log)
    return trial.suggest_float(name, domain.low, domain.high, step=domain.step, log=domain.log)


def _sampler(plan: Plan, number: int) -> optuna.samplers.BaseSampler:
    # Of the trial's own seed: workers that share one would draw the same.
    seed = (plan.seed * 1_000_003 + number) % 2**32
    if plan.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(plan: Plan) -> optuna.pruners.BasePruner:
    if plan.pruner is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(plan.pruner["startup_trials"], n_warmup_steps=plan.pruner["warmup_epochs"] + 1)


def _start(training: Training, count: int, lock: TextIO) -> subprocess.Popen:
    """Start a training that a killed worker takes with it; where it outlives the worker, its run stays locked."""
    environment = dict(os.environ)
    if count > 1:  # or each would take all cores, and wait for the others
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    with training.log.open("a") as log:
        log.write(f"$ {shlex.join(training.command)}\n")
        log.flush()
        return subprocess.Popen(
            training.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(lock.fileno(),),  # a worker killed before tell_training leaves no other sign of a training
            start_new_session=True,  # Ctrl-C is this process' to hear
            preexec_fn=functools.partial(_die_with, os.getpid()) if sys.platform == "linux" else None,
        )


def _die_with(parent: int) -> None:
    """In a new process: have the kernel end it where its parent is killed (elsewhere, whoever takes over ends it)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _end(active: Sequence[Attempt]) -> None:
    """Have trainings write their last checkpoints and end."""
    processes = [attempt.process for attempt in active if attempt.process is not None]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _stop(*_) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def locked(path: Path, *, wait: bool = False) -> TextIO:
    """An open file on which this process has a lock until it is closed.

    Raises:
        FolderInUseError: another process has it, and it is not waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        raise FolderInUseError from None
    return file


def _cost(training: Training) -> list[int]:
    """Parameters and multiply-adds of a trained model, of an image of its validation."""
    module, data_options = load_checkpoint(training.folder.best, MODULES[training.task], training.task)
    spent = cost(module.model, tuple(validation_image(training.task, data_options).shape[2:]))
    return [spent.params, spent.madds]
