"""Trials that differ only in their seed, and their differences from a baseline."""

import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from experiments.sweep.plan import ANY_SEED, Plan, _grid_points
from experiments.sweep.settings import baseline, group

SPACE = {"model.ablation": CategoricalDistribution(["relu", None, "tokens=1"]), "seed_everything": ANY_SEED}
POINTS = _grid_points({"model.ablation": ["relu", None, "tokens=1"], "seed_everything": [0, 1, 2, 7, 8]})


def plan(**more):
    return Plan("classification", "", SPACE, POINTS, **({"sampler": "grid"} | more))


def trials(ablation, values, state=TrialState.COMPLETE):
    return [
        create_trial(
            params={"model.ablation": ablation, "seed_everything": seed}, distributions=SPACE, value=value, state=state
        )
        for seed, value in values.items()
    ]


def grouped(trials, plan):
    return group(dict(enumerate(trials)), plan)


def differences(trials, plan):
    return [setting.difference for setting in grouped(trials, plan)]


NONE = trials(None, {0: 0.5, 1: 0.6, 2: 0.7, 7: 0.1})
RELU = trials("relu", {2: 0.9, 1: 0.6, 0: 0.6, 8: 0.9})


def test_differences_from_the_baseline_are_paired_by_seed():
    settings = grouped([*RELU, *NONE, *trials("tokens=1", {0: 0.4996})], plan())
    assert [setting.trials for setting in settings] == [
        {"2": 0, "1": 1, "0": 2, "8": 3}, {"0": 4, "1": 5, "2": 6, "7": 7}, {"0": 8},
    ]  # fmt: skip
    found, itself, single = [setting.difference for setting in settings]
    assert itself is None
    # Differences 0.2, 0 and 0.1: standard deviation 0.1. The 97.5 % quantile of Student's t (2 degrees) is 4.30265.
    assert found["values"] == pytest.approx({"2": 0.2, "1": 0.0, "0": 0.1})
    assert found["mean"] == pytest.approx(0.1)
    assert found["interval"] == pytest.approx((0.1 - 0.248414, 0.1 + 0.248414), abs=1e-6)
    assert single["interval"] is None
    assert single["values"] == pytest.approx({"0": -0.0004})


def test_without_a_common_seed_or_a_baseline_there_is_no_difference():
    assert differences([*RELU, *NONE], plan(sampler="tpe")) == [None, None]  # of a grid only
    assert differences(RELU, plan()) == [None]  # the baseline is not trained yet
    assert differences([*trials("relu", {3: 0.5}), *NONE], plan()) == [None, None]


def test_only_complete_trials_are_grouped_and_only_if_something_is_repeated():
    pruned = trials("relu", {0: 0.5}, TrialState.PRUNED)
    assert [len(setting.trials) for setting in grouped([*pruned, *NONE], plan())] == [4]
    single = Plan("classification", "", {"model.ablation": SPACE["model.ablation"]}, [{}])
    assert grouped(NONE, single) == []


def test_the_baseline_is_null_if_it_is_a_choice_and_otherwise_the_first_value():
    points = _grid_points({"model.ablation": ["relu", None], "model.dropout": [0.2, 0.0], "seed_everything": [0]})
    space = dict.fromkeys(("model.ablation", "model.dropout", "seed_everything"), ANY_SEED)
    assert baseline(Plan("classification", "", space, points)) == {"model.ablation": None, "model.dropout": 0.2}
