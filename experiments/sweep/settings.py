"""Settings: trials that differ only in their seed, grouped, and compared with a baseline seed by seed."""

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
    """The complete trials of one setting, which differ only in their seed.

    Attributes:
        params: the parameters of the setting, without the seed.
        values: the score of each trial.
        seeds: the seed of each trial.
        cost: the model's parameters and its multiply-adds for one image; None if they were not computed.
    """

    params: dict
    values: list[float]
    seeds: list[int]
    cost: tuple[int, int] | None


@dataclass
class Difference:
    """The difference between the scores of a setting and of another one, paired by seed.

    Attributes:
        mean: the mean difference over the seeds that both settings have.
        interval: the 95 % confidence interval of the mean by Student's t; None for a single seed.
        values: the difference for each seed.
    """

    mean: float
    interval: tuple[float, float] | None
    values: dict[int, float]


def group_by_seed(trials: dict[int, FrozenTrial], names: Sequence[str]) -> list[Setting]:
    """Group complete trials whose parameters ``names`` are equal except for the seed, in the order of their numbers."""
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
    """Return the baseline's parameters without the seed: None for each option that allows it, else the first value."""
    domains = {name: domain for name, domain in plan.space.items() if name != "seed_everything"}
    values = {name: domain if isinstance(domain, list) else domain.values() for name, domain in domains.items()}
    return {name: None if None in choices else choices[0] for name, choices in values.items()}


def difference(setting: Setting, reference: Setting) -> Difference | None:
    """Return the difference of two settings, paired by seed; None if they have no seed in common."""
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

    The difference is None for the baseline itself, for a setting without a seed in common, without a trained baseline,
    and for a sweep that is not a grid.
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
