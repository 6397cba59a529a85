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

LAST_WITH_QUEUE = "dc3481e"  # last commit with the earlier format of the database, which had a separate queue


class Sweep:
    """A sweep: its trials in the database, and the folders of their runs.

    If the worker of a trial was stopped or killed, or its training failed, the trial is attempted again. Each attempt
    is an entry in the database. All attempts at a trial have the same trial number (a user attribute), parameters and
    run folder. Only the last attempt counts.

    Args:
        plan: config of the sweep.
        name: the name of the study in the database.
        output: the folder of the report, and of the runs unless ``plan.runs`` names another folder.
        url: the SQLAlchemy URL of the database.
        others: further command-line options of every trial.
        may_begin: whether to begin a new sweep if the database has no sweep of this name. If False, this is an error.

    Raises:
        InputError: the database cannot be opened or lacks the sweep, or the sweep was begun with another config or by
            an earlier version of the command.
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
        """Return a dictionary from trial number to the trial's last attempt, for all trials that were begun."""
        own = [each for each in self.study.get_trials(False) if each.system_attrs["fixed_params"] in self.plan.points]
        return dict(sorted({trial.user_attrs["number"]: trial for trial in own}.items()))

    def training(self, trial: FrozenTrial | optuna.Trial) -> Training:
        """Return the training run of a trial. If a trial is attempted again, the attempts share this run."""
        plan, params = self.plan, {name: trial.params[name] for name in self.plan.space}
        name, runs = plan.run_name(trial.user_attrs["number"], params), Path(plan.runs) if plan.runs else self.output
        log = runs / "logs" / plan.task / f"{name}.log"
        return Training(plan.task, RunFolder(runs / plan.task / name), [*plan.arguments(params), *self.others], log)

    def progress(self) -> tuple[int, int]:
        """Return a tuple (number of ended trials, number of all trials, begun or not)."""
        states = [state_of(trial) for trial in self.last_attempts().values()]
        return len(states) - states.count("unfinished"), max(len(states), len(self.plan.points))

    def claim(self) -> optuna.Trial | None:
        """Take the next trial for this worker and return it with all of its parameters. Return None if none is free.

        A lock ensures that only one worker at a time takes a trial. Therefore no trial is taken twice, and there are
        never more trials than planned. Trials whose worker was stopped or killed are taken before new ones.
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
        """Queue a new attempt at each trial whose last attempt ended in ``state``, "failed" or "unfinished"."""
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
        begun = (self.output / "options.json").is_file()  # written by an earlier version of a comparison
        if sqlalchemy.inspect(self.storage.engine).has_table("mobile_former_plans"):
            with self.storage.engine.connect() as connection:
                begun |= self.name in connection.scalars(sqlalchemy.text("SELECT study FROM mobile_former_plans")).all()
        if begun:
            raise InputError(
                f"{self.name!r} was begun by an earlier version of this command: finish it with that version (git "
                f"checkout {LAST_WITH_QUEUE}), or give another --output or --storage"
            )


def state_of(trial: FrozenTrial) -> str:
    """Return the state of an attempt at a trial: "complete", "pruned", "failed" (an error) or "unfinished"."""
    if trial.state == TrialState.FAIL and not trial.user_attrs.get("error"):  # its worker was stopped or killed
        return "unfinished"
    states = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    return states.get(trial.state, "unfinished")
