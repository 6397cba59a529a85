"""Group trials that differ only in seed or fold into a setting, and compare the settings with a baseline."""

import json
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from experiments.sweep.plan import REPEATS, Plan
from experiments.tables import paired_difference


@dataclass(frozen=True)
class Setting:
    """Group of complete trials that repeat the same training with other seeds, other folds, or both.

    Attributes:
        params: dictionary from the name of each parameter except seed and fold to its value in these trials.
        trials: dictionary from the seed or fold of each trial, as text such as "0", to the number of the trial.
        values: dictionary from the seed or fold of each trial, as text, to the score of the trial.
        cost: list of two integers, number of the model's parameters and number of multiply-adds for one image; None if
            unknown.
        difference: result of :func:`~experiments.tables.paired_difference` for ``values`` and the scores of the
            baseline. None for the baseline itself, and if the sweep is not a grid.
    """

    params: dict
    trials: dict[str, int]
    values: dict[str, float]
    cost: list[int] | None
    difference: dict | None


def group(trials: dict[int, FrozenTrial], plan: Plan) -> list[Setting]:
    """Group the complete trials into a list of settings, in the order of their first trials.

    The list is empty if the search space has no seed or fold.

    Args:
        trials: dictionary from the number of a trial to its last attempt, see :class:`Sweep`.
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
    """Return the parameters of a grid's baseline, with which the other settings of the grid are compared.

    They are a dictionary from option to value. If None is among the values of an option in the grid, the baseline has
    None, otherwise the first of the values.
    """
    values = {name: [point[name] for point in plan.points] for name in plan.space if name not in REPEATS}
    return {name: None if None in choices else choices[0] for name, choices in values.items()}
