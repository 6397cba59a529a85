"""Trials grouped by their settings, and the differences between settings over the same seeds."""

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
    """All trials that differ in their seed alone.

    Attributes:
        params: of all of them, without the seed.
        values: the score of each that is complete.
        seeds: of these.
        cost: parameters and multiply-adds of an image; None where the model is the same for all.
    """

    params: dict
    values: list[float]
    seeds: list[int]
    cost: tuple[int, int] | None


@dataclass
class Difference:
    """What a setting's scores are above those of another one.

    Attributes:
        mean: over the seeds that both have.
        interval: 95 % of it by Student's t; None of one seed.
        values: by seed.
    """

    mean: float
    interval: tuple[float, float] | None
    values: dict[int, float]


def group_by_seed(trials: dict[int, FrozenTrial], names: Sequence[str]) -> list[Setting]:
    """Complete trials by all of their parameters but the seed, in the order of their numbers."""
    found: dict[str, Setting] = {}
    for trial in trials.values():
        if trial.state == TrialState.COMPLETE:
            params = {name: trial.params[name] for name in names if name != "seed_everything"}
            cost = tuple(trial.user_attrs["cost"]) if "cost" in trial.user_attrs else None
            setting = found.setdefault(json.dumps(params), Setting(params, [], [], cost))
            setting.values.append(trial.value)
            setting.seeds.append(trial.params["seed_everything"])
    return list(found.values())


def baseline(plan: Plan) -> dict:
    """The parameters, less the seed, that others are compared with: of each option null if a choice, else the first."""
    domains = {name: domain for name, domain in plan.space.items() if name != "seed_everything"}
    values = {name: domain if isinstance(domain, list) else domain.values() for name, domain in domains.items()}
    return {name: None if None in choices else choices[0] for name, choices in values.items()}


def difference(setting: Setting, reference: Setting) -> Difference | None:
    """The difference of two settings, paired by seed; None where they have no seed in common."""
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
    """Of each setting of a grid the difference from the baseline; None for that one, and where there is none."""
    if plan.sampler != "grid":
        return [None] * len(settings)
    reference = next((setting for setting in settings if setting.params == baseline(plan)), None)
    if reference is None:
        return [None] * len(settings)
    return [None if setting is reference else difference(setting, reference) for setting in settings]


def _is_complete(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE
