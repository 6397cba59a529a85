"""The trials of a sweep in the database: each is taken by one worker, and again if its worker dies."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from experiments.sweep import storage
from experiments.sweep.study import state_of
from mobile_former import InputError
from tests.experiments.sweep.conftest import RATE, open_sweep, write_config

SEEDS = {"model.ablation": [None, "relu"], "seed_everything": [0, 1]}


def fail(sweep, trial, error=None):
    trial.set_user_attr("error", error)
    sweep.study.tell(trial, state=TrialState.FAIL)


def test_workers_that_start_together_take_each_trial_once(url, tmp_path):
    config = write_config(tmp_path / "rates.yaml", trials=24)

    def work(_):
        sweep, numbers = open_sweep(config, url), []
        while (trial := sweep.claim()) is not None:
            numbers.append(trial.user_attrs["number"])
            sweep.study.tell(trial, 0.5)
        return numbers

    with ThreadPoolExecutor(6) as pool:
        taken = Counter(number for numbers in pool.map(work, range(6)) for number in numbers)
    assert taken == dict.fromkeys(range(24), 1)
    sweep = open_sweep(config, url)
    assert sweep.progress() == (24, 24)
    assert [trial.state for trial in sweep.study.trials] == [TrialState.COMPLETE] * 24  # and nothing else


def test_a_trial_without_heartbeats_is_taken_with_the_same_number_parameters_and_reports(url, tmp_path, monkeypatch):
    config = write_config(tmp_path / "rates.yaml", trials=1)
    dead = open_sweep(config, url)
    first = dead.claim()
    first.report(0.25, 1)
    monkeypatch.setattr(storage, "GRACE", 1)
    sweep = open_sweep(config, url)
    deadline = time.monotonic() + 60
    while (trial := sweep.claim()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert trial.number != first.number
    assert trial.user_attrs["number"] == first.user_attrs["number"] == 0
    assert trial.params == first.params
    assert sweep.study.trials[trial.number].intermediate_values == {1: 0.25}
    assert sweep.training(trial).command == dead.training(first).command
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        first.report(0.5, 2)  # its worker notices that it has lost the trial


def test_a_trial_has_a_heartbeat_from_its_start(url, tmp_path):
    sweep = open_sweep(write_config(tmp_path / "rates.yaml"), url)
    trial = sweep.claim()
    with sweep.storage.engine.connect() as connection:
        beats = connection.scalars(sqlalchemy.text("SELECT trial_id FROM trial_heartbeats")).all()
    assert beats == [trial._trial_id]


def test_stopped_trials_come_before_new_ones_and_failed_ones_wait_for_the_next_call(url, tmp_path):
    sweep = open_sweep(write_config(tmp_path / "rates.yaml", trials=3), url)
    stopped, failed = sweep.claim(), sweep.claim()
    fail(sweep, stopped)
    fail(sweep, failed, "out of memory")
    again = sweep.claim()
    assert (again.user_attrs["number"], again.params) == (0, stopped.params)
    assert sweep.claim().user_attrs["number"] == 2
    assert sweep.claim() is None
    assert sweep.progress() == (1, 3)
    assert [state_of(trial) for trial in sweep.last_attempts().values()] == ["unfinished", "failed", "unfinished"]
    sweep.repeat("failed")
    repeated = sweep.claim()
    assert (repeated.user_attrs["number"], repeated.params) == (1, failed.params)
    assert sweep.progress() == (0, 3)


def test_the_points_of_a_grid_are_taken_in_order_and_repeated_after_a_failure(url, tmp_path):
    sweep = open_sweep(write_config(tmp_path / "grid.yaml", space=SEEDS, sampler="grid", trials="absent"), url)
    fail(sweep, sweep.claim())
    points = []
    while (trial := sweep.claim()) is not None:
        points.append((trial.user_attrs["number"], trial.params["seed_everything"], trial.params["model.ablation"]))
        sweep.study.tell(trial, 0.5)
    assert points == [(0, 0, None), (1, 0, "relu"), (2, 1, None), (3, 1, "relu")]


def test_seeds_and_trials_may_be_added_later(url, tmp_path):
    path = tmp_path / "grid.yaml"
    for seeds in ([0], [0, 1], [1, 0, 5]):
        sweep = open_sweep(
            write_config(path, space=SEEDS | {"seed_everything": seeds}, sampler="grid", trials="absent"), url
        )
        while (trial := sweep.claim()) is not None:
            sweep.study.tell(trial, 0.5)
    assert [trial.params["seed_everything"] for trial in sweep.last_attempts().values()] == [0, 0, 1, 1, 5, 5]
    fewer = open_sweep(write_config(path, space=SEEDS | {"seed_everything": [5]}, sampler="grid", trials="absent"), url)
    assert list(fewer.last_attempts()) == [4, 5]


def test_another_config_in_the_same_study_is_refused(tmp_path):
    url, path = f"sqlite:///{tmp_path}/study.db", tmp_path / "rates.yaml"
    open_sweep(write_config(path), url)
    open_sweep(path, url, ["--data.root", "here", "--data.num_workers=3"])
    open_sweep(write_config(path, trials=7, runs="elsewhere"), url, may_begin=False)
    with pytest.raises(InputError, match=r"command line was .*, now .*--trainer\.max_epochs 3"):
        open_sweep(path, url, ["--trainer.max_epochs", "3"])
    write_config(path, space={"model.learning_rate": RATE | {"high": 1.0}})
    for may_begin in (True, False):
        with pytest.raises(InputError, match=r"begun with another config \(space was .* give another --output"):
            open_sweep(path, url, may_begin=may_begin)


def test_a_missing_study_has_nothing_to_report(tmp_path):
    config = write_config(tmp_path / "rates.yaml")
    url = f"sqlite:///{tmp_path}/folder/study.db"
    with pytest.raises(InputError, match=r"folder/study\.db does not exist"):
        open_sweep(config, url, may_begin=False)
    assert not (tmp_path / "folder").exists()
    open_sweep(write_config(tmp_path / "other.yaml"), url)
    with pytest.raises(InputError, match="'rates' was not begun in this database"):
        open_sweep(config, url, may_begin=False)


def test_a_study_whose_worker_was_killed_at_its_start_continues(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(storage=storage.open_storage(url), study_name="rates", direction="maximize")
    assert open_sweep(write_config(tmp_path / "rates.yaml"), url).claim() is not None


def test_a_study_of_an_earlier_version_is_refused_with_the_way_to_finish_it(url, tmp_path):
    """Earlier versions had tables of their own, and a comparison's options in a file."""
    config = write_config(tmp_path / "rates.yaml")
    with storage.open_storage(url).engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE mobile_former_plans (study VARCHAR(200), plan TEXT)"))
        connection.execute(sqlalchemy.text("INSERT INTO mobile_former_plans VALUES ('rates', '{}')"))
    message = r"'rates' was begun by an earlier version .*: finish it with that version \(git checkout \w+\), or give"
    with pytest.raises(InputError, match=message):
        open_sweep(config, url)
    open_sweep(write_config(tmp_path / "new.yaml"), url)  # in the same database
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "options.json").write_text("{}")
    with pytest.raises(InputError, match="was begun by an earlier version"):
        open_sweep(config, f"sqlite:///{tmp_path}/another.db")
