"""The trials of a sweep, in an Optuna study that all workers share."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from experiments.options import without_machine_options
from experiments.runs import Training
from experiments.sweep.plan import Plan
from experiments.sweep.storage import alone, open_storage, retry
from mobile_former.errors import InputError
from mobile_former.training.run.folder import RunFolder

LAST_WITH_QUEUE = "dc3481e"  # the last commit whose sweeps had a queue of their own in the database


class Sweep:
    """A sweep: its trials in the database, and the folders of their runs.

    A trial may have several attempts in the database, because its worker was stopped or killed, or its training failed.
    All of them have the same number (a user attribute), parameters and folder. Only the last one counts.

    Args:
        plan: the sweep's config.
        name: the name of the study in the database.
        output: the folder of the report, and of the runs unless ``plan.runs`` names another folder.
        url: the SQLAlchemy URL of the database.
        others: further command-line options of every trial.
        may_begin: whether the sweep may be new.

    Raises:
        InputError: the database cannot be opened, has no such sweep, or has one of another config or earlier version.
    """

    def __init__(self, plan: Plan, name: str, output: Path, url: str, others: Sequence[str], *, may_begin: bool = True):
        self.plan, self.name, self.output, self.url, self.others = plan, name, output, url, list(others)
        self.storage = open_storage(url, may_begin=may_begin)
        self._refuse_earlier_version()
        pruner = optuna.pruners.NopPruner() if plan.pruner is None else optuna.pruners.MedianPruner(**plan.pruner)
        with alone(url):
            if not may_begin and name not in optuna.get_all_study_names(self.storage):
                raise InputError(f"the sweep {name!r} was not begun in this database: there is nothing to report")
            self.study = optuna.create_study(
                storage=self.storage, pruner=pruner, study_name=name, direction=plan.direction, load_if_exists=True
            )
            self._record_config()

    def last_attempts(self) -> dict[int, FrozenTrial]:
        """Return a dictionary from a trial's number to its last attempt, for all trials that were begun."""
        own = [each for each in self.study.get_trials(False) if each.system_attrs["fixed_params"] in self.plan.points]
        return dict(sorted({trial.user_attrs["number"]: trial for trial in own}.items()))

    def training(self, trial: FrozenTrial | optuna.Trial) -> Training:
        """Return the training run of a trial, which is the same for all attempts."""
        plan, params = self.plan, {name: trial.params[name] for name in self.plan.space}
        name, runs = plan.run_name(trial.user_attrs["number"], params), Path(plan.runs) if plan.runs else self.output
        log = runs / "logs" / plan.task / f"{name}.log"
        return Training(plan.task, RunFolder(runs / plan.task / name), [*plan.arguments(params), *self.others], log)

    def progress(self) -> tuple[int, int]:
        """Return a tuple of two counts: the trials that have ended, and all trials, also those that were not begun."""
        states = [state_of(trial) for trial in self.last_attempts().values()]
        return len(states) - states.count("unfinished"), max(len(states), len(self.plan.points))

    def claim(self) -> optuna.Trial | None:
        """Take the next trial and return it with all of its parameters, or None if no trial is free.

        Only one worker at a time takes a trial, so that no trial is taken twice, and no more are added than planned.
        Trials whose worker was stopped or killed are taken before new trials.
        """
        with alone(self.url):
            optuna.storages.fail_stale_trials(self.study)
            self.repeat("unfinished")
            if not (waiting := self._waiting() or self._add_trial()):
                return None
            # Optuna never fails a running trial without any heartbeat, so the trial gets one before it is running.
            self.storage.record_heartbeat(waiting[0]._trial_id)
            # Every trial has its own seed: workers with the same seed would draw the same parameters.
            seed = (self.plan.seed * 1_000_003 + waiting[0].user_attrs["number"]) % 2**32
            self.study.sampler = optuna.samplers.RandomSampler(seed=seed)
            if self.plan.sampler == "tpe":
                self.study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            return self.study.ask(self.plan.space)

    def repeat(self, state: str) -> None:
        """Queue the trials in ``state`` ("failed" or "unfinished") again, except those that are waiting or running."""
        for trial in self.last_attempts().values():
            if trial.state == TrialState.FAIL and state_of(trial) == state:
                retry(self.study, copy.deepcopy(trial))

    def _waiting(self) -> list[FrozenTrial]:
        return self.study.get_trials(False, (TrialState.WAITING,))

    def _add_trial(self) -> list[FrozenTrial]:
        remaining, numbers = list(self.plan.points), [trial.user_attrs["number"] for trial in self.study.get_trials()]
        for trial in self.last_attempts().values():
            if trial.system_attrs["fixed_params"] in remaining:
                remaining.remove(trial.system_attrs["fixed_params"])
        if remaining:
            self.study.enqueue_trial(remaining[0], user_attrs={"number": 1 + max(numbers, default=-1)})
        return self._waiting()

    def _record_config(self) -> None:
        new = self.plan.identity() | {"command line": " ".join(without_machine_options(self.others))}
        known = self.study.user_attrs.get("plan", new)
        if changed := [name for name in known | new if known.get(name) != new.get(name)]:
            changes = [f"{name} was {json.dumps(known.get(name))}, now {json.dumps(new.get(name))}" for name in changed]
            hint = "give another --output or --storage"
            raise InputError(f"the study {self.name!r} was begun with another config ({'; '.join(changes)}): {hint}")
        if "plan" not in self.study.user_attrs:
            self.study.set_user_attr("plan", new)

    def _refuse_earlier_version(self) -> None:
        begun = (self.output / "options.json").is_file()  # of a comparison
        if sqlalchemy.inspect(self.storage.engine).has_table("mobile_former_plans"):
            with self.storage.engine.connect() as connection:
                begun |= self.name in connection.scalars(sqlalchemy.text("SELECT study FROM mobile_former_plans")).all()
        if begun:
            raise InputError(
                f"{self.name!r} was begun by an earlier version of this command: finish it with that version (git "
                f"checkout {LAST_WITH_QUEUE}), or give another --output or --storage"
            )


def state_of(trial: FrozenTrial) -> str:
    """Return "complete", "pruned", "failed" (its training ended with an error), or "unfinished"."""
    if trial.state == TrialState.FAIL and not trial.user_attrs.get("error"):  # its worker was stopped or killed
        return "unfinished"
    states = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    return states.get(trial.state, "unfinished")
