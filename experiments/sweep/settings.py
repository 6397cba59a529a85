"""Group trials that differ only in their seed into settings, and compare each setting with a baseline."""

import json
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from experiments.sweep.plan import REPEATS, Plan
from experiments.tables import paired_difference


@dataclass(frozen=True)
class Setting:
    """A combination of parameters, and its complete trials, which differ only in the repetition: seed, fold or both.

    Attributes:
        params: dictionary from the name of a parameter to its value, without seed and fold.
        trials: dictionary from the repetition as text, such as "0" for seed 0, to the number of its trial.
        values: dictionary from the repetition to the score.
        cost: the model's parameters and its multiply-adds for one image; None if they were not computed.
        difference: the :func:`~experiments.tables.paired_difference` from a grid's baseline; None for the baseline.
    """

    params: dict
    trials: dict[str, int]
    values: dict[str, float]
    cost: list[int] | None
    difference: dict | None


def group(trials: dict[int, FrozenTrial], plan: Plan) -> list[Setting]:
    """Group complete trials into settings, ordered by first trial. The list is empty without seeds and folds."""
    repeats = [name for name in plan.space if name in REPEATS]
    complete = {n: trial for n, trial in trials.items() if repeats and trial.state == TrialState.COMPLETE}
    groups: dict[str, dict[str, int]] = {}
    for number, trial in complete.items():
        params = json.dumps({name: trial.params[name] for name in plan.space if name not in repeats})
        groups.setdefault(params, {})[", ".join(str(trial.params[name]) for name in repeats)] = number
    values = {key: {each: complete[number].value for each, number in own.items()} for key, own in groups.items()}
    reference = json.dumps(baseline(plan)) if plan.sampler == "grid" else None
    settings = []
    for key, own in groups.items():
        cost = next((attrs["cost"] for n in own.values() if "cost" in (attrs := complete[n].user_attrs)), None)
        difference = paired_difference(values[key], values.get(reference, {})) if key != reference else None
        settings.append(Setting(json.loads(key), own, values[key], cost, difference))
    return settings


def baseline(plan: Plan) -> dict:
    """Return a grid's baseline: for each parameter None if the grid has this value, otherwise the first value."""
    values = {name: [point[name] for point in plan.points] for name in plan.space if name not in REPEATS}
    return {name: None if None in choices else choices[0] for name, choices in values.items()}
