"""Group trials that differ only in their seed into settings, and compare each setting with a baseline."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState
from scipy.stats import t as student_t

from experiments.sweep.plan import Plan


@dataclass
class Setting:
    """Complete trials that differ only in their seed.

    Attributes:
        params: the parameters of the setting, without the seed.
        values: the score of each trial.
        seeds: the seed of each trial.
        cost: the model's number of parameters and of multiply-adds for one image; None if the cost was not computed.
    """

    params: dict
    values: list[float]
    seeds: list[int]
    cost: tuple[int, int] | None


@dataclass
class Difference:
    """The scores of a setting minus the scores of a reference setting, paired by seed.

    Attributes:
        mean: the mean difference over the seeds that both settings have.
        interval: the 95 % confidence interval of the mean by Student's t; None for a single seed.
        values: the difference for each seed that both settings have.
    """

    mean: float
    interval: tuple[float, float] | None
    values: dict[int, float]


def group_by_seed(trials: dict[int, FrozenTrial], names: Sequence[str]) -> list[Setting]:
    """Group complete trials whose parameters are equal except for the seed.

    Args:
        trials: the trials by number; their order is kept.
        names: the names of the parameters, including the seed.
    """
    settings: dict[str, Setting] = {}
    for trial in trials.values():
        if is_complete(trial):
            params = {name: trial.params[name] for name in names if name != "seed_everything"}
            cost = tuple(trial.user_attrs["cost"]) if "cost" in trial.user_attrs else None
            setting = settings.setdefault(json.dumps(params), Setting(params, [], [], cost))
            setting.values.append(trial.value)
            setting.seeds.append(trial.params["seed_everything"])
    return list(settings.values())


def baseline(plan: Plan) -> dict:
    """Return the parameters of the baseline of a grid, without the seed.

    If the grid lists None among the values of a parameter, the baseline has None; otherwise it has the first value.
    """
    domains = {name: domain for name, domain in plan.space.items() if name != "seed_everything"}
    values = {name: domain if isinstance(domain, list) else domain.values() for name, domain in domains.items()}
    return {name: None if None in choices else choices[0] for name, choices in values.items()}


def difference(setting: Setting, reference: Setting) -> Difference | None:
    """Return the scores of ``setting`` minus those of ``reference``, paired by seed; None if no seed is in both."""
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
    """Return each setting's difference from the baseline of a grid.

    The difference is None for the baseline itself, and for a setting that has no seed in common with the baseline. All
    differences are None if the baseline has no complete trial, or if the sweep is not a grid.
    """
    if plan.sampler != "grid":
        return [None] * len(settings)
    reference = next((setting for setting in settings if setting.params == baseline(plan)), None)
    if reference is None:
        return [None] * len(settings)
    return [None if setting is reference else difference(setting, reference) for setting in settings]


def is_complete(trial: FrozenTrial) -> bool:
    """Whether the trial was trained to its end and has a score."""
    return trial.state == TrialState.COMPLETE
