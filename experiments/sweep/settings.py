"""Group trials that differ only in their seed, and compare each group with a baseline."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial
from scipy.stats import t as student_t

from experiments.sweep.plan import Plan


@dataclass
class Setting:
    """A group of complete trials that differ only in their seed.

    Attributes:
        params: dictionary from the name of a hyperparameter to its value in all these trials. It leaves out the seed.
        values: the score of each trial.
        seeds: the seed of each trial.
        cost: a tuple with the model's number of parameters and its number of multiply-adds for one image. None if the
            cost was not computed.
    """

    params: dict
    values: list[float]
    seeds: list[int]
    cost: tuple[int, int] | None

    @property
    def deviation(self) -> float | None:
        """The standard deviation of the scores; None for a single seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass
class Difference:
    """The scores of one group of trials minus the scores of a reference group, paired by seed.

    Attributes:
        mean: the mean difference over the seeds that both groups have.
        interval: the 95 % confidence interval of the mean by Student's t; None for a single seed.
        values: dictionary from a seed that both groups have to the difference.
    """

    mean: float
    interval: tuple[float, float] | None
    values: dict[int, float]


def group_by_seed(trials: Sequence[FrozenTrial], names: Sequence[str]) -> list[Setting]:
    """Group trials that differ only in their seed.

    Args:
        trials: the complete trials.
        names: the names of the hyperparameters, including the seed.

    Returns:
        List with one :class:`Setting` for each group, in the order of the groups' first trials.
    """
    settings: dict[str, Setting] = {}
    for trial in trials:
        params = {name: trial.params[name] for name in names if name != "seed_everything"}
        cost = tuple(trial.user_attrs["cost"]) if "cost" in trial.user_attrs else None
        setting = settings.setdefault(json.dumps(params), Setting(params, [], [], cost))
        setting.values.append(trial.value)
        setting.seeds.append(trial.params["seed_everything"])
    return list(settings.values())


def baseline(plan: Plan) -> dict:
    """Return a dictionary with the hyperparameters of a grid search's baseline, without the seed.

    If the grid lists None among the values of a hyperparameter, the baseline uses None. Otherwise it uses the first
    listed value.
    """
    domains = {name: domain for name, domain in plan.space.items() if name != "seed_everything"}
    values = {name: domain if isinstance(domain, list) else domain.values() for name, domain in domains.items()}
    return {name: None if None in choices else choices[0] for name, choices in values.items()}


def difference(setting: Setting, reference: Setting) -> Difference | None:
    """Subtract the scores of the group ``reference`` from the scores of the group ``setting``, paired by seed.

    Returns:
        The differences, or None if the two groups have no seed in common.
    """
    known = dict(zip(reference.seeds, reference.values, strict=True))
    pairs = zip(setting.seeds, setting.values, strict=True)
    values = {seed: value - known[seed] for seed, value in pairs if seed in known}
    if not values:
        return None
    mean, interval = statistics.mean(values.values()), None
    if len(values) > 1:
        error = statistics.stdev(values.values()) / math.sqrt(len(values))
        reach = float(student_t.ppf(0.975, len(values) - 1)) * error
        interval = (mean - reach, mean + reach)
    return Difference(mean, interval, values)


def differences(plan: Plan, settings: Sequence[Setting]) -> list[Difference | None]:
    """Compare each group of trials with the baseline of a grid.

    Returns:
        List with a difference or None for each group. It is None for the baseline itself, and for a group that has no
        seed in common with the baseline. All differences are None if the baseline has no complete trial, or if the
        sweep is not a grid.
    """
    found = [setting for setting in settings if setting.params == baseline(plan)] if plan.sampler == "grid" else []
    if not found:
        return [None] * len(settings)
    return [None if setting is found[0] else difference(setting, found[0]) for setting in settings]
