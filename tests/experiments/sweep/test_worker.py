"""The workers of a sweep: stopped, killed, or many at a time, they train every trial once."""

import os
import re
import signal
import subprocess
import threading
import time

import pytest
import torch
from optuna.trial import TrialState

from experiments import runs
from experiments.storm.checks import same
from experiments.sweep import storage, worker
from experiments.sweep.study import state_of
from experiments.sweep.worker import run_trials
from mobile_former.training.run.folder import RunFolder
from tests.conftest import ROOT
from tests.experiments.sweep.conftest import listed, open_sweep, write_config


def wait_until(condition, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def finished(folder):
    return [line for line in listed(folder) if line.endswith("finished")]


def assert_each_trial_was_done_once(sweep, folder, count):
    complete = [trial for trial in sweep.study.trials if trial.state == TrialState.COMPLETE]
    assert sorted(trial.user_attrs["number"] for trial in complete) == list(range(count))
    assert sweep.progress() == (count, count)
    assert sorted(finished(folder)) == sorted(f"trial-{number} finished" for number in range(count))
    assert len({tuple(trial.params.values()) for trial in complete}) == count


@pytest.mark.slow
def test_two_workers_that_are_killed_four_times_finish_20_trials_and_none_twice(
    url, stand_in, start_worker, tmp_path, monkeypatch
):
    monkeypatch.setenv("STAND_IN_SECONDS", "0.1")
    config = write_config(tmp_path / "rates.yaml", trials=20, pruner=False)
    workers = [start_worker(config, url) for _ in range(2)]
    for kill in range(4):
        wait_until(lambda kill=kill: len(finished(tmp_path)) > 3 * kill)
        workers[kill % 2].kill()
        workers[kill % 2].join()
        workers[kill % 2] = start_worker(config, url)
    for each in workers:
        each.join(200)
    assert [each.exitcode for each in workers] == [0, 0]
    sweep = open_sweep(config, url)
    assert_each_trial_was_done_once(sweep, tmp_path, 20)
    starts = [re.findall(rf"^trial-{number} from (\d+)$", "\n".join(listed(tmp_path)), re.M) for number in range(20)]
    assert [own[0] for own in starts] == ["0"] * 20
    assert all(own == sorted(own) for own in starts)  # from the last checkpoint
    assert {trial.state for trial in sweep.study.trials} <= {TrialState.COMPLETE, TrialState.FAIL}


def test_eight_workers_take_each_of_60_trials_once(url, stand_in, start_worker, tmp_path, monkeypatch):
    def train(self, count):
        with (tmp_path / "list").open("a") as file:
            file.write(f"{self.folder.path.name} finished\n")
        return 0, False

    monkeypatch.setattr(storage, "GRACE", 300)  # however busy the machine is
    monkeypatch.setattr(worker._Attempt, "_train", train)
    monkeypatch.setattr(worker._Attempt, "_result", lambda self, *_: (TrialState.COMPLETE, 0.5, "0.5"))
    config = write_config(tmp_path / "rates.yaml", trials=60, sampler="random")
    workers = [start_worker(config, url) for _ in range(8)]
    for each in workers:
        each.join(200)
    assert [each.exitcode for each in workers] == [0] * 8
    sweep = open_sweep(config, url)
    assert_each_trial_was_done_once(sweep, tmp_path, 60)
    assert len(sweep.study.trials) == 60


def test_sigterm_lets_trainings_end_and_the_next_worker_resumes_them(stand_in, start_worker, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN_WAITS", "trial-0")
    url, config = f"sqlite:///{tmp_path}/study.db", write_config(tmp_path / "rates.yaml", trials=1)
    stopped = start_worker(config, url)
    table = tmp_path / "output/classification/trial-0/metrics.csv"
    wait_until(lambda: table.is_file() and len(table.read_text().splitlines()) == 3)
    stopped.terminate()
    stopped.join(200)
    assert stopped.exitcode == 143
    assert not finished(tmp_path)
    monkeypatch.delenv("STAND_IN_WAITS")
    sweep = open_sweep(config, url)
    assert sweep.last_attempts()[0].state == TrialState.FAIL  # it does not wait for missing heartbeats
    run_trials(sweep, 1)
    assert listed(tmp_path) == ["trial-0 from 0", "trial-0 from 2", "trial-0 finished"]


def test_a_training_ends_with_its_killed_worker(stand_in, start_worker, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN_WAITS", "trial-0")
    url, config = f"sqlite:///{tmp_path}/study.db", write_config(tmp_path / "rates.yaml", trials=1)
    killed = start_worker(config, url)
    wait_until(lambda: listed(tmp_path))
    killed.kill()
    killed.join()
    lock = tmp_path / "output/logs/classification/trial-0.lock"
    # The lock is free when the training has ended.
    subprocess.run(["flock", lock, "true"], check=True, timeout=200)
    assert not finished(tmp_path)


def test_a_run_that_another_sweep_is_training_is_waited_for_and_not_trained_again(stand_in, tmp_path):
    """The sweeps share a folder of runs."""
    arguments = {"space": {"model.learning_rate": [1e-3]}, "sampler": "grid", "trials": "absent", "runs": "shared"}
    sweeps = [
        open_sweep(write_config(tmp_path / f"{name}.yaml", **arguments), f"sqlite:///{tmp_path}/{name}.db")
        for name in ("one", "two")
    ]
    trials = [sweep.claim() for sweep in sweeps]
    trainings = [sweep.training(trial) for sweep, trial in zip(sweeps, trials, strict=True)]
    for training in trainings:
        training.require_same_options()
    processes = [training.start(1) for training in trainings]
    assert [process.wait(60) for process in processes] == [0, 0]
    for process in processes:
        process.stdin.close()
    assert listed(tmp_path) == ["learning_rate-0.001 from 0", "learning_rate-0.001 finished"]


def test_a_worker_that_has_lost_its_trial_stops_the_training(stand_in, tmp_path, monkeypatch, capsys):
    """As after a machine was suspended for longer than the grace period."""
    monkeypatch.setenv("STAND_IN_WAITS", "trial-0")
    sweep = open_sweep(write_config(tmp_path / "rates.yaml", trials=1), f"sqlite:///{tmp_path}/study.db")
    trial = sweep.claim()
    attempt = worker._Attempt(sweep, trial, threading.Event())
    sweep.study.tell(trial.number, state=TrialState.FAIL)
    attempt.run(1)
    assert "trial 0: learning_rate" in (printed := capsys.readouterr().out)
    assert "was taken by another worker" in printed
    assert listed(tmp_path) == []
    assert sweep.claim().user_attrs["number"] == 0


def test_an_error_of_the_database_is_reported_in_one_line(stand_in, tmp_path, monkeypatch):
    sweep = open_sweep(write_config(tmp_path / "rates.yaml", trials=1), f"sqlite:///{tmp_path}/study.db")
    with sweep.storage.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE trial_heartbeats")
    with pytest.raises(runs.InputError, match=r"the database failed: .*trial_heartbeats.*run the same command again"):
        run_trials(sweep, 2)


# Real trainings


def sweep_of_one(folder):
    """Write the config of a sweep of one training with all kinds of randomness; return it, the URL and the run."""
    options = {
        "model.name": "mobile_former_26m", "model.dropout": 0.3, "model.mixup_alpha": 0.2, "model.ema_decay": 0.9,
        "data.image_size": 32, "data.batch_size": 4, "data.num_workers": 0, "trainer.max_epochs": 3,
        "checkpoint_every_n_steps": 1, "trainer.callbacks+": "tests.experiments.sweep.holding.Holding",
    }  # fmt: skip
    config = write_config(
        folder / "rates.yaml", config="finetune.yaml", options=options, space={"model.learning_rate": [1e-3]},
        sampler="grid", trials="absent", pruner=False,
    )  # fmt: skip
    return config, f"sqlite:///{folder}/study.db", RunFolder(folder / "output/classification/trial-0")


def finish(config, url, run, others):
    """Run the sweep to its end; return the training's last weights and the score of each epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.delenv("HOLDING", raising=False)
        sweep = open_sweep(config, url, others)
        run_trials(sweep, 1)
    assert [state_of(trial) for trial in sweep.last_attempts().values()] == ["complete"]
    content = torch.load(run.last, map_location="cpu", weights_only=True)
    assert content["global_step"] == 15
    history = [row["val/top1"] for row in run.history() if "val/top1" in row]
    return {name: content[name] for name in ("state_dict", "current_model_state", "optimizer_states")}, history


@pytest.fixture(scope="module")
def undisturbed(two_colours, tmp_path_factory):
    return finish(*sweep_of_one(tmp_path_factory.mktemp("undisturbed")), ["--data.root", str(two_colours)])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL])
def test_a_trial_goes_on_from_its_last_checkpoint_to_the_weights_of_an_undisturbed_run(
    stop, undisturbed, two_colours, start_worker, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HOLDING", "true")
    config, url, run = sweep_of_one(tmp_path)
    others = ["--data.root", str(two_colours)]
    stopped = start_worker(config, url, others)
    wait_until(run.last.is_file, 600)
    os.kill(stopped.pid, stop)
    stopped.join(200)
    assert stopped.exitcode == (143 if stop == signal.SIGTERM else -stop)
    assert not run.is_finished
    weights, history = finish(config, url, run, others)
    assert "trial 0 resumes from its last checkpoint" in capsys.readouterr().out
    assert same(weights, undisturbed[0])
    assert history == undisturbed[1]
    attempts = open_sweep(config, url, others).study.trials
    assert [trial.state for trial in attempts] == [TrialState.FAIL, TrialState.COMPLETE]
    assert attempts[0].params == attempts[1].params
