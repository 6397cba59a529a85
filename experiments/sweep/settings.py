"""Group trials that differ only in their seed or fold into settings, and compare each setting with a baseline."""

import json
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from experiments.sweep.plan import REPEATS, Plan
from experiments.tables import paired_difference


@dataclass(frozen=True)
class Setting:
    """Group of complete trials that differ only in their repetition, which is their seed, their fold, or both.

    Attributes:
        params: dictionary from the name of each other parameter to its value, which is the same in all these trials.
        trials: dictionary from the repetition as text, such as "0" for seed 0, to the number of its trial.
        values: dictionary from the repetition to the score of its trial.
        cost: list of the numbers of the model's parameters and of its multiply-adds for one image; None if unknown.
        difference: difference of ``values`` from the scores of a grid's baseline, see
            :func:`~experiments.tables.paired_difference`. None for the baseline itself, and outside a grid.
    """

    params: dict
    trials: dict[str, int]
    values: dict[str, float]
    cost: list[int] | None
    difference: dict | None


def group(trials: dict[int, FrozenTrial], plan: Plan) -> list[Setting]:
    """Group the complete trials into settings, in the order of their first trials.

    The list is empty if the search space has no seed or fold.

    Args:
        trials: dictionary from the number of a trial to its last attempt.
        plan: config of the sweep.
    """
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
    """Return the parameters of the baseline of a grid, to which its other settings are compared.

    The value of each option is None if the grid has this value for the option, otherwise the option's first value.
    """
    values = {name: [point[name] for point in plan.points] for name in plan.space if name not in REPEATS}
    return {name: None if None in choices else choices[0] for name, choices in values.items()}
