"""Group trials that differ only in their seed into settings, and compare each setting with a baseline."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState
from scipy.stats import t as student_t

from experiments.sweep.plan import REPEATS, Plan


@dataclass(frozen=True)
class Setting:
    """Complete trials that differ only in the options that repeat a setting, such as the seed.

    Attributes:
        params: dictionary from the name of each other parameter to its value in all these trials.
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


def group(trials: Iterable[FrozenTrial], plan: Plan) -> list[Setting]:
    """Return the settings of the complete trials, in the order of their first trials; empty if nothing is repeated."""
    repeats = [name for name in plan.space if name in REPEATS]
    settings: dict[str, Setting] = {}
    for trial in [trial for trial in trials if repeats and trial.state == TrialState.COMPLETE]:
        params = {name: trial.params[name] for name in plan.space if name not in repeats}
        setting = settings.setdefault(json.dumps(params), Setting(params, {}))
        setting.trials[", ".join(str(trial.params[name]) for name in repeats)] = trial
    return list(settings.values())


def baseline(plan: Plan) -> dict:
    """Return the setting with which a grid is compared: None for each option that allows it, else the first value."""
    values = {name: [point[name] for point in plan.points] for name in plan.space if name not in REPEATS}
    return {name: None if None in choices else choices[0] for name, choices in values.items()}


def differences(plan: Plan, settings: Sequence[Setting]) -> list[dict | None]:
    """Subtract the scores of a grid's baseline from the scores of each setting, paired by repetition.

    Returns:
        List with a dictionary for each setting: the mean difference (``mean``), its 95 % confidence interval by
        Student's t (``interval``; None for a single repetition), and the differences by repetition (``values``). None
        instead of a dictionary for the baseline itself, and if the two have no repetition in common.
    """
    reference = [setting for setting in settings if plan.sampler == "grid" and setting.params == baseline(plan)]
    known, found = reference[0].values if reference else {}, []
    for setting in settings:
        values = {name: value - known[name] for name, value in setting.values.items() if name in known}
        if not values or setting is reference[0]:
            found.append(None)
            continue
        mean, interval = statistics.mean(values.values()), None
        if len(values) > 1:
            error = statistics.stdev(values.values()) / math.sqrt(len(values))
            reach = float(student_t.ppf(0.975, len(values) - 1)) * error
            interval = (mean - reach, mean + reach)
        found.append({"mean": mean, "interval": interval, "values": values})
    return found
