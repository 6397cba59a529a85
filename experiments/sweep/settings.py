"""Group trials that differ only in their seed into settings, and compare each setting with a baseline."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial
from scipy.stats import t as student_t

from experiments.sweep.plan import REPEATS, Plan


@dataclass(frozen=True)
class Setting:
    """Complete trials that differ only in the options that repeat a setting, such as the seed.

    Attributes:
        params: dictionary from the name of each other hyperparameter to its value in all these trials.
        trials: dictionary from the repetition as text, such as "0" for seed 0, to its trial.
    """

    params: dict
    trials: dict[str, FrozenTrial]

    @property
    def values(self) -> dict[str, float]:
        """A dictionary from the repetition to the score."""
        return {repetition: trial.value for repetition, trial in self.trials.items()}

    @property
    def cost(self) -> list[int] | None:
        """The model's parameters and its multiply-adds for one image; None if they were not computed."""
        return next((trial.user_attrs["cost"] for trial in self.trials.values() if "cost" in trial.user_attrs), None)


def group(trials: Sequence[FrozenTrial], plan: Plan) -> list[Setting]:
    """Return the settings of complete trials, in the order of their first trials; empty if nothing is repeated."""
    repeats = [name for name in plan.space if name in REPEATS]
    settings: dict[str, Setting] = {}
    for trial in trials if repeats else ():
        params = {name: trial.params[name] for name in plan.space if name not in repeats}
        setting = settings.setdefault(json.dumps(params), Setting(params, {}))
        setting.trials[", ".join(str(trial.params[name]) for name in repeats)] = trial
    return list(settings.values())


def baseline(plan: Plan) -> dict:
    """Return the setting with which a grid is compared: None for each option that allows it, else the first value."""
    values = {name: [point[name] for point in plan.points] for name in plan.space if name not in REPEATS}
    return {name: None if None in choices else choices[0] for name, choices in values.items()}


def difference(setting: Setting, reference: Setting) -> dict | None:
    """Subtract the scores of the setting ``reference`` from the scores of ``setting``, paired by repetition.

    Returns:
        A dictionary with the mean difference (``mean``), its 95 % confidence interval by Student's t (``interval``;
        None for a single repetition), and the differences by repetition (``values``). None if the settings have no
        repetition in common.
    """
    known, own = reference.values, setting.values
    values = {repetition: value - known[repetition] for repetition, value in own.items() if repetition in known}
    if not values:
        return None
    mean, interval = statistics.mean(values.values()), None
    if len(values) > 1:
        error = statistics.stdev(values.values()) / math.sqrt(len(values))
        reach = float(student_t.ppf(0.975, len(values) - 1)) * error
        interval = (mean - reach, mean + reach)
    return {"mean": mean, "interval": interval, "values": values}


def differences(plan: Plan, settings: Sequence[Setting]) -> list[dict | None]:
    """Return the :func:`difference` of each setting of a grid from its baseline; None for the baseline itself.

    All are None if the baseline has no complete trial, or if the sweep is not a grid.
    """
    found = [setting for setting in settings if setting.params == baseline(plan)] if plan.sampler == "grid" else []
    return [difference(setting, found[0]) if found and setting is not found[0] else None for setting in settings]
