"""The configs of sweeps."""

import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from experiments.sweep.plan import read_plan
from mobile_former import InputError
from tests.conftest import ROOT
from tests.experiments.sweep.conftest import write_config

SWEEPS = ("sweep_", "ablation_", "cross_validation_")
CONFIGS = [path for path in (ROOT / "experiments" / "configs").glob("*.yaml") if path.stem.startswith(SWEEPS)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"spaces": {}}, "'spaces' is not known: did you mean 'space'"),
        ({"space": {}}, "lacks space"),
        ({"task": "segmentation"}, "task is 'segmentation'"),
        ({"sampler": "tpa"}, "sampler is 'tpa': did you mean 'tpe'"),
        ({"direction": "up"}, "direction is 'up'"),
        ({"trials": 0}, "trials is 0: give a whole number of at least 1"),
        ({"seed": -1}, "seed is -1: give a whole number of at least 0"),
        ({"space": {"a": {"low": 1}}}, "space, a: .*'high'; give the numbers low and high"),
        ({"space": {"a": {"low": 1, "hihg": 2}}}, "space, a: .*'hihg'"),
        ({"space": {"a": {"low": 2, "high": 1}}}, "space, a: .*low.*high"),
        ({"space": {"a": {"low": 0, "high": 1, "log": True}}}, "space, a: .*log"),
        ({"space": {"a": {"low": "x", "high": 1}}}, "space, a: .*give the numbers low and high"),
        ({"space": {"a": []}}, "at least one value, and no value twice"),
        ({"space": {"a": 3}}, "give a list of values"),
        ({"space": {"a": [1]}, "options": {"a": 2}}, "a is in both space and options"),
        ({"sampler": "grid", "trials": "absent"}, "a grid needs a step"),
        ({"sampler": "grid", "space": {"a": [1]}}, "a grid has one trial for each of its points"),
        ({"pruner": {"warmup": 1}}, "pruner is .*'warmup'.*: give true, false, or startup_trials, warmup_epochs"),
        ({"pruner": {"warmup_epochs": 0.5}}, "pruner: warmup_epochs is 0.5: give a whole number"),
        ({"pruner": 3}, "pruner is 3"),
    ],
)
def test_an_invalid_config_is_reported_in_one_line(content, message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        read_plan(write_config(tmp_path / "plan.yaml", **content))
    assert "\n" not in str(error.value)


def test_numbers_that_yaml_reads_as_strings_are_numbers(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(
        "task: detection\nconfig: scenes.yaml\nspace: {model.learning_rate: {low: 1e-4, high: 1e-2, log: true}}"
    )
    plan = read_plan(path)
    assert plan.space == {"model.learning_rate": FloatDistribution(1e-4, 1e-2, log=True)}
    assert (plan.metric, plan.direction, len(plan.points)) == ("val/AP", "maximize", 20)


def test_a_grid_has_all_points_and_the_seeds_last(tmp_path):
    space = {
        "seed_everything": [0, 1],
        "model.ablation": [None, "relu"],
        "data.batch_size": {"low": 8, "high": 16, "step": 8},
    }
    config = write_config(tmp_path / "grid.yaml", space=space, sampler="grid", trials="absent")
    plan = read_plan(config)
    assert [tuple(point.values()) for point in plan.points] == [
        (seed, ablation, size) for seed in (0, 1) for ablation in (None, "relu") for size in (8, 16)
    ]
    assert read_plan(config, trials=3).points == plan.points[:3]
    assert plan.space["data.batch_size"] == IntDistribution(8, 16, step=8)
    with pytest.raises(InputError, match="--trials is 0"):
        read_plan(config, trials=0)


@pytest.mark.parametrize("path", sorted(CONFIGS), ids=lambda path: path.stem)
def test_the_repositorys_sweeps_can_be_read(path):
    plan = read_plan(path)
    if path.stem.startswith("sweep_"):
        assert plan.points == [{}] * 20
    elif path.stem.startswith("cross_validation_"):
        assert [point["data.fold"] for point in plan.points] == list(range(1, plan.options["data.folds"] + 1))
        assert plan.space.keys() == {"data.fold"}
    else:
        ablations, seeds = ({point[name] for point in plan.points} for name in ("model.ablation", "seed_everything"))
        assert len(plan.points) == len(ablations) * len(seeds)
        assert len(seeds) >= 3
        assert None in ablations
