"""``python -m experiments.sweep``: trials of a search space, run by several workers, each trial once."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace

import cv2
import optuna
import pytest
import yaml

from experiments import runs
from experiments.sweep import __main__ as sweep
from experiments.sweep import processes, trial_queue
from experiments.sweep.__main__ import main
from experiments.sweep.plan import Plan, Range, read_plan
from experiments.sweep.processes import FolderInUseError, locked, process_identity
from experiments.sweep.settings import Setting, baseline, differences
from experiments.sweep.trial_queue import DONE, FAILED, RUNNING, TrialQueue, open_storage
from mobile_former import InputError
from mobile_former.training.run.folder import RunFolder
from tests.conftest import ROOT, run_module
from tests.experiments.stand_in import stand_in_for_fit

RATE = {"low": 1e-5, "high": 1e-1, "log": True}
CONFIGS = [
    path for path in (ROOT / "experiments" / "configs").glob("*.yaml") if path.stem.startswith(("sweep_", "abl"))
]


def write_config(path, **content):
    default = {"task": "classification", "config": "digits.yaml", "space": {"model.learning_rate": RATE}, "trials": 4}
    content = {name: value for name, value in (default | content).items() if value != "absent"}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture
def sweeping(tmp_path, monkeypatch, capsys):
    """Run sweeps in this process with stand-in trainings; a run returns exit status, output and errors."""
    monkeypatch.setattr(runs.Training, "command", runs.Training.command)
    monkeypatch.setattr(sweep, "require_options", sweep.require_options)
    stand_in_for_fit()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STAND_IN_LIST", str(tmp_path / "list"))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def listed(folder):
    """Return the list that the stand-in trainings wrote."""
    return (folder / "list").read_text().splitlines()


def records(output):
    return list(csv.DictReader((output / "trials.csv").open(newline="")))


def test_a_sweep_runs_each_trial_once_and_writes_tables_the_best_command_and_figures(sweeping, tmp_path):
    space = {"model.learning_rate": RATE, "model.dropout": [0.0, 0.2], "data.crop_scale": [[0.5, 1.0], [0.7, 1.0]]}
    config = write_config(tmp_path / "rates.yaml", space=space, trials=6, options={"model.name": "mobile_former_26m"})
    status, out, _ = sweeping("--config", str(config), "--workers", "3", "--data.num_workers", "0")
    assert status == 0
    output = tmp_path / "runs" / "sweep" / "rates"
    starts = Counter(line.split()[0] for line in listed(tmp_path) if " from " in line)
    assert starts == {f"trial-{number}": 1 for number in range(6)}
    assert (
        len(re.findall(r"^\[\d+/6\] trial \d+: learning_rate .*, dropout .*  val/top1 0\.\d+", out, re.MULTILINE)) == 6
    )
    rows = records(output)
    assert [int(row["trial"]) for row in rows] == list(range(6))
    assert {row["state"] for row in rows} <= {"complete", "pruned"}
    content = json.loads((output / "sweep.json").read_text())
    complete = [row for row in rows if row["state"] == "complete"]
    assert content["best"]["value"] == max(float(row["value"]) for row in complete)
    words = content["best"]["command"].split()
    assert words[:3] == ["python", "-m", "classification.fit"]
    best_rate = content["best"]["params"]["model.learning_rate"]
    assert float(words[words.index("--model.learning_rate") + 1]) == best_rate
    table = (output / "sweep.md").read_text()
    assert table in out
    assert table.splitlines()[2].startswith(f"| {content['best']['trial']} |")
    for name in ("history", "parallel_coordinates", "importances"):
        assert cv2.imread(str(output / f"{name}.png")).std() > 5, name

    again, out, _ = sweeping("--config", str(config), "--data.num_workers", "0")
    assert again == 0
    assert Counter(line.split()[0] for line in listed(tmp_path) if " from " in line) == starts  # no trial was left


def test_bad_trials_are_pruned(sweeping, tmp_path, monkeypatch):
    rates = [1e-3, 1.1e-3, 1.2e-3, 0.9e-3, 0.8e-3, 1e-1]
    config = write_config(
        tmp_path / "pruned.yaml", space={"model.learning_rate": rates}, sampler="grid", trials="absent",
        pruner={"startup_trials": 2, "warmup_epochs": 1},
    )  # fmt: skip
    monkeypatch.setenv("STAND_IN_WAITS", "trial-5")
    status, out, _ = sweeping("--config", str(config))
    assert status == 0
    assert re.search(r"trial 5: learning_rate 0.1  val/top1 0\.\d+ after epoch 2: pruned", out)
    assert [row["state"] for row in records(tmp_path / "runs/sweep/pruned")][-1] == "pruned"
    assert "trial-5 finished" not in listed(tmp_path)


def test_a_failed_trial_does_not_stop_the_others_and_is_tried_again_by_the_next_call(sweeping, tmp_path):
    config = write_config(
        tmp_path / "rates.yaml", space={"model.learning_rate": [1e-3, -1.0, 1e-2]}, sampler="grid", trials="absent"
    )
    for call in (1, 2):
        status, _, err = sweeping("--config", str(config))
        assert status == 1
        assert re.search(
            r"^error: trial 1 failed: the learning rate is negative \(see .*trial-1\.log\)$", err, re.MULTILINE
        )
        assert Counter(line for line in listed(tmp_path) if " from " in line)["trial-1 from 0"] == call
    assert Counter(row["state"] for row in records(tmp_path / "runs/sweep/rates")) == {"complete": 2, "failed": 1}


@pytest.mark.parametrize(
    ("last_attempt", "message"),
    [
        (b"ValueError: new\nafterwards\n", "ValueError: new"),
        (b"epoch 1\n\xff killed\n", "\N{REPLACEMENT CHARACTER} killed"),
        (b"", "it ended without any output"),
    ],
)
def test_a_failure_is_reported_from_the_last_attempts_output_only(last_attempt, message, tmp_path):
    log = tmp_path / "trial-0.log"
    log.write_bytes(b"$ python -m fit\nerror: old\n$ python -m fit\n" + last_attempt)
    assert runs.last_error(log) == message


def test_seeds_of_a_setting_are_grouped(sweeping, tmp_path):
    space = {"model.learning_rate": [1e-3, 1e-2], "seed_everything": [0, 1, 2]}
    config = write_config(tmp_path / "seeds.yaml", space=space, sampler="grid", trials="absent", score="last")
    assert [point["seed_everything"] for point in read_plan(config).points()] == [0, 0, 1, 1, 2, 2]
    status, _, _ = sweeping("--config", str(config), "--trials", "3")
    assert status == 0
    status, out, _ = sweeping("--config", str(config))
    assert status == 0
    assert "| 0.001 | 1.0100 ± 0.0100 | 3 | 0, 1, 2 |  |" in out
    assert "| against 0.001, seed by seed |" in out
    lower = "−0.250"  # noqa: RUF001
    assert f"| {lower} (95 %: {lower} to {lower}); {lower}, {lower}, {lower} |" in out
    settings = json.loads((tmp_path / "runs/sweep/seeds/sweep.json").read_text())["settings"]
    assert [setting["params"] for setting in settings] == [{"model.learning_rate": rate} for rate in (1e-3, 1e-2)]
    assert settings[0]["standard_deviation"] == pytest.approx(0.01)
    assert cv2.imread(str(tmp_path / "runs/sweep/seeds/ablation.png")).std() > 5
    assert "importances.png is not drawn" not in out


def test_differences_from_the_baseline_are_paired_by_seed():
    none = Setting({"model.ablation": None}, [0.5, 0.6, 0.7, 0.1], [0, 1, 2, 7], None)
    relu = Setting({"model.ablation": "relu"}, [0.9, 0.6, 0.6, 0.9], [2, 1, 0, 8], None)
    tokens = Setting({"model.ablation": "tokens=1"}, [0.4996], [0], None)
    plan = Plan(
        "classification", "", {"model.ablation": ["relu", None, "tokens=1"], "seed_everything": [0, 1, 2, 7, 8]}
    )
    assert differences(plan, [relu, none, tokens]) == [None] * 3  # of a grid only
    found, itself, single = differences(replace(plan, sampler="grid"), [relu, none, tokens])
    assert itself is None
    # Differences 0.2, 0 and 0.1: standard deviation 0.1. The 97.5 % quantile of Student's t (2 degrees) is 4.30265.
    assert found.values == pytest.approx({2: 0.2, 1: 0.0, 0: 0.1})
    assert found.mean == pytest.approx(0.1)
    assert found.interval == pytest.approx((0.1 - 0.248414, 0.1 + 0.248414), abs=1e-6)
    assert single.interval is None
    assert single.values == pytest.approx({0: -0.0004})
    assert differences(replace(plan, sampler="grid"), [relu, tokens]) == [None, None]  # the baseline is not trained yet
    assert differences(replace(plan, sampler="grid"), [replace(relu, seeds=[3, 4, 5, 6]), none]) == [None, None]


def test_the_baseline_is_null_if_it_is_a_choice_and_otherwise_the_first_value():
    space = {"model.ablation": ["relu", None], "model.dropout": [0.2, 0.0], "data.batch_size": Range(8, 32, step=8)}
    assert baseline(Plan("classification", "", space | {"seed_everything": [0, 1]})) == {
        "model.ablation": None, "model.dropout": 0.2, "data.batch_size": 8,
    }  # fmt: skip


def test_sweeps_that_share_a_folder_of_runs_train_a_run_once(sweeping, tmp_path):
    for name, rates in (("one", [1e-3, 1e-2]), ("two", [1e-3, 1e-4])):
        config = write_config(
            tmp_path / f"{name}.yaml",
            space={"model.learning_rate": rates},
            sampler="grid",
            trials="absent",
            runs="shared",
        )
        assert sweeping("--config", str(config))[0] == 0
    finished = Counter(line.split()[0] for line in listed(tmp_path) if line.endswith("finished"))
    assert finished == {"learning_rate-0.001": 1, "learning_rate-0.01": 1, "learning_rate-0.0001": 1}
    assert [row["value"] for row in records(tmp_path / "runs/sweep/two")] == ["1.0", "0.75"]


def test_a_run_of_another_sweep_is_not_taken_for_this_ones(sweeping, tmp_path):
    config = write_config(tmp_path / "rates.yaml", trials=1)
    assert sweeping("--config", str(config))[0] == 0
    (tmp_path / "runs/sweep/rates/study.db").unlink()
    write_config(config, trials=1, seed=1)
    status, _, err = sweeping("--config", str(config))
    assert status == 1
    assert re.search(r"trial-0 was trained with .*delete it, or give another --output", err)


def test_another_config_in_the_same_study_is_refused_except_for_more_trials(sweeping, tmp_path):
    config = write_config(tmp_path / "rates.yaml", trials=2)
    assert sweeping("--config", str(config))[0] == 0
    write_config(config, trials=2, space={"model.learning_rate": RATE | {"high": 1.0}})
    with pytest.raises(InputError, match=r"begun with another config \(space was .* give another --output"):
        sweeping("--config", str(config))
    write_config(config, trials=2)
    with pytest.raises(InputError, match="command line was"):
        sweeping("--config", str(config), "--trainer.max_epochs", "3")
    assert sweeping("--config", str(config), "--trials", "3", "--data.root", "elsewhere")[0] == 0
    assert len(records(tmp_path / "runs/sweep/rates")) == 3


def test_a_report_of_another_config_is_refused(sweeping, tmp_path):
    config = write_config(tmp_path / "rates.yaml", trials=1)
    assert sweeping("--config", str(config))[0] == 0
    assert sweeping("--config", str(config), "--workers", "0")[0] == 0
    write_config(config, trials=1, space={"model.learning_rate": RATE, "model.dropout": [0.0, 0.2]})
    with pytest.raises(InputError, match="begun with another config"):
        sweeping("--config", str(config), "--workers", "0")


def test_a_report_of_a_missing_sweep_is_refused_and_writes_no_file(sweeping, tmp_path):
    config = write_config(tmp_path / "rates.yaml")
    with pytest.raises(InputError, match=r"runs/sweep/rates/study\.db does not exist"):
        sweeping("--config", str(config), "--workers", "0")
    assert not (tmp_path / "runs").exists()
    url = f"sqlite:///{tmp_path}/shared.db"
    TrialQueue(url, "another").prepare({}, [{}])
    with pytest.raises(InputError, match="'rates' was not begun in this database"):
        sweeping("--config", str(config), "--workers", "0", "--storage", url)
    assert not (tmp_path / "runs").exists()


def test_a_sweep_that_was_killed_before_its_trials_were_recorded_continues(sweeping, tmp_path):
    config = write_config(tmp_path / "rates.yaml", trials=2)
    url = f"sqlite:///{tmp_path}/runs/sweep/rates/study.db"
    storage = open_storage(url)
    optuna.create_study(storage=storage, study_name="rates", direction="maximize")
    status, _, _ = sweeping("--config", str(config))
    assert status == 0
    assert len(records(tmp_path / "runs/sweep/rates")) == 2


def test_options_unknown_to_fit_are_reported_before_any_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path / "rates.yaml", space={"model.learning_rat": RATE})
    monkeypatch.setattr(sys, "argv", ["sweep", "--config", str(config)])
    with pytest.raises(SystemExit):
        main()
    assert "did you mean '--model.learning_rate'" in capsys.readouterr().err
    assert not (tmp_path / "runs/sweep/rates/classification").exists()


def test_options_that_the_sweep_sets_are_refused(sweeping, tmp_path):
    config = write_config(tmp_path / "rates.yaml")
    with pytest.raises(InputError, match=r"--model\.learning_rate is set by the sweep"):
        sweeping("--config", str(config), "--model.learning_rate", "1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"spaces": {}}, "'spaces' is not known: did you mean 'space'"),
        ({"space": {}}, "lacks space"),
        ({"task": "segmentation"}, "task is 'segmentation'"),
        ({"sampler": "tpa"}, "sampler is 'tpa': did you mean 'tpe'"),
        ({"direction": "up"}, "direction is 'up'"),
        ({"trials": 0}, "trials is 0: give a whole number of at least 1"),
        ({"space": {"a": {"low": 1}}}, "space, a lacks high"),
        ({"space": {"a": {"low": 1, "hihg": 2}}}, "'hihg' is not known: did you mean 'high'"),
        ({"space": {"a": {"low": 2, "high": 1}}}, "low 2 must be less than high 1"),
        ({"space": {"a": {"low": 0, "high": 1, "log": True}}}, "log needs a low above 0"),
        ({"space": {"a": {"low": "x", "high": 1}}}, "low is 'x': give a number"),
        ({"space": {"a": []}}, "at least one value, and no value twice"),
        ({"space": {"a": 3}}, "give a list of values"),
        ({"space": {"a": [1]}, "options": {"a": 2}}, "a is in both space and options"),
        ({"sampler": "grid", "trials": "absent"}, "a grid needs a step"),
        ({"sampler": "grid", "space": {"a": [1]}}, "a grid has one trial for each of its points"),
        ({"pruner": {"warmup": 1}}, "pruner: 'warmup' is not known: did you mean 'warmup_epochs'"),
        ({"pruner": 3}, "pruner is 3"),
    ],
)
def test_an_invalid_config_is_reported_in_one_line(content, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_plan(write_config(tmp_path / "plan.yaml", **content))


def test_numbers_that_yaml_reads_as_strings_are_numbers(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(
        "task: detection\nconfig: scenes.yaml\nspace: {model.learning_rate: {low: 1e-4, high: 1e-2, log: true}}"
    )
    plan = read_plan(path)
    assert plan.space == {"model.learning_rate": Range(1e-4, 1e-2, log=True)}
    assert (plan.metric, plan.direction, plan.trials) == ("val/AP", "maximize", 20)


@pytest.mark.parametrize("path", sorted(CONFIGS), ids=lambda path: path.stem)
def test_the_repositorys_sweeps_can_be_read(path):
    plan = read_plan(path)
    if path.stem.startswith("sweep_"):
        assert len(plan.points()) == 20
    else:
        assert len(plan.points()) == len(plan.space["model.ablation"]) * len(plan.space["seed_everything"])
        assert len(plan.space["seed_everything"]) >= 3
        assert None in plan.space["model.ablation"]


def test_a_trial_is_claimed_by_one_of_many_workers(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    TrialQueue(url, "s").prepare({}, [{}] * 40)
    claimed, errors = [], []

    def work():
        try:
            queue = TrialQueue(url, "s")
            while (claim := queue.claim()) is not None:
                claimed.append(claim.number)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(claimed) == list(range(40))


def test_trials_are_recorded_once_by_workers_that_start_together(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    threads = [threading.Thread(target=lambda: TrialQueue(url, "s").prepare({"a": 1}, [{}] * 5)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(TrialQueue(url, "s").states()) == 5


def claimed_by(queue, monkeypatch, host, process):
    with monkeypatch.context() as patch:
        patch.setattr(trial_queue, "host", lambda: host)
        patch.setattr(trial_queue, "process_identity", lambda pid: process)
        return queue.claim()


def test_a_dead_workers_trial_is_claimed_at_once_on_its_machine(tmp_path, monkeypatch):
    queue = TrialQueue(f"sqlite:///{tmp_path}/study.db", "s")
    queue.prepare({}, [{}])
    here, own = trial_queue.host(), process_identity(os.getpid())
    held = claimed_by(queue, monkeypatch, here, own)
    assert queue.claim() is None  # the worker is alive
    queue.release(held, "waiting")
    number, _, started = own.partition(" ")
    # The same process id, but another start time.
    claimed_by(queue, monkeypatch, here, f"{number} {started}0")
    again = queue.claim()
    assert again is not None
    assert not queue.beat(held)
    assert queue.beat(again)


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps")
def test_without_proc_ps_identifies_a_process_in_any_language_and_time_zone(monkeypatch):
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        identity = processes.identity_from_ps(sleeper.pid)
        assert re.fullmatch(rf"{sleeper.pid} \w+ +\w+ +\d+ [\d:]+ \d{{4}}", identity)
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
        assert processes.identity_from_ps(sleeper.pid) == identity
        sleeper.kill()
        deadline = time.monotonic() + 10
        while processes.identity_from_ps(sleeper.pid):  # until it has ended, though its parent has not waited for it
            assert time.monotonic() < deadline
    finally:
        sleeper.kill()
        sleeper.wait()
    assert processes.identity_from_ps(sleeper.pid) == ""


def test_a_sweep_on_windows_is_refused_with_the_supported_systems(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sweep", "--config", str(write_config(tmp_path / "rates.yaml"))])
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(InputError, match="run on Linux and macOS"):
        main()


def test_a_silent_workers_trial_is_claimed_on_another_machine(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/study.db"
    queue = TrialQueue(url, "s")
    queue.prepare({}, [{}])
    theirs = claimed_by(queue, monkeypatch, "elsewhere", "1 then")
    monkeypatch.setattr(trial_queue, "SILENCE", 1.5)
    other = TrialQueue(url, "s")
    assert other.claim() is None
    assert other.undecided() == [0]
    queue.beat(theirs)
    assert other.undecided() == []  # a heartbeat
    time.sleep(1.7)
    assert other.claim() is not None
    assert not queue.beat(theirs)


def test_a_training_that_outlives_its_worker_is_killed_before_another_starts(tmp_path, monkeypatch):
    queue = TrialQueue(f"sqlite:///{tmp_path}/study.db", "s")
    queue.prepare({}, [{}])
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    claim = claimed_by(queue, monkeypatch, trial_queue.host(), "1 then")
    queue.record_training(claim, orphan.pid)
    assert queue.claim() is not None
    assert orphan.wait(5) == -signal.SIGKILL


def test_a_run_stays_locked_while_its_training_outlives_its_worker(tmp_path, monkeypatch):
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(runs.Training, "command", property(lambda training: command))
    training = runs.Training("classification", RunFolder(tmp_path / "run"), [], tmp_path / "run.log")
    lock = locked(tmp_path / "run.lock")
    process = processes.start_training(training, 1, lock)
    lock.close()
    with pytest.raises(FolderInUseError):
        locked(tmp_path / "run.lock")
    process.kill()
    process.wait()
    locked(tmp_path / "run.lock").close()


def test_a_training_that_ends_just_before_it_is_killed_is_no_error(monkeypatch):
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    identity, kill = process_identity(sleeper.pid), os.kill

    def too_late(pid, number):
        sleeper.kill()
        sleeper.wait()
        kill(pid, number)

    monkeypatch.setattr(sleeper, "send_signal", lambda number: kill(sleeper.pid, number))
    monkeypatch.setattr(os, "kill", too_late)
    processes.end_process(identity)
    assert not processes.lives(identity)


def test_a_urls_password_is_never_printed():
    with pytest.raises(InputError) as error:
        open_storage("postgresql+psycopg2://me:geheim@127.0.0.1:1/none")
    assert "geheim" not in str(error.value)
    assert "127.0.0.1" in str(error.value)


def test_a_missing_driver_is_named_with_its_package():
    with pytest.raises(InputError, match=r"needs pg8000: pip install pg8000"):
        open_storage("postgresql+pg8000://me:geheim@host/none")
    with pytest.raises(InputError, match="is not a database URL"):
        open_storage("study.db")
    with pytest.raises(InputError, match="is lost when the process ends"):
        open_storage("sqlite://")


@pytest.mark.slow
def test_two_workers_that_are_killed_repeatedly_finish_20_trials_and_none_twice(tmp_path):
    config = write_config(tmp_path / "rates.yaml", trials=20, pruner=False)
    url = f"sqlite:///{tmp_path}/study.db"
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "STAND_IN_LIST": str(tmp_path / "list"), "STAND_IN_SECONDS": "0.5",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.experiments.stand_in", "--config", str(config), "--storage", url]

    def start():
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def states():
        return TrialQueue(url, "rates").states() if (tmp_path / "study.db").is_file() else {}

    kills = 0
    workers = [start(), start()]
    deadline = time.monotonic() + 280
    while any(worker.poll() is None for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(1.0)
        if kills < 4 and sum(state == DONE for state in states().values()) > 3 * kills:
            victim = workers[kills % 2]
            if victim.poll() is None:
                victim.kill()
                victim.communicate()
                kills += 1
                workers[workers.index(victim)] = start()
    printed = [worker.communicate() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], printed
    assert kills == 4
    assert states() == dict.fromkeys(range(20), DONE)
    study = optuna.load_study(study_name="rates", storage=open_storage(url))
    assert sorted(trial.user_attrs["number"] for trial in study.trials) == list(range(20))
    assert {trial.state for trial in study.trials} == {optuna.trial.TrialState.COMPLETE}
    lines = listed(tmp_path)
    assert Counter(line for line in lines if line.endswith("finished")) == {f"trial-{n} finished": 1 for n in range(20)}
    again = Counter(line.split()[0] for line in lines if " from " in line)
    assert sum(again.values()) <= 20 + kills  # only the trials of killed workers were started again
    assert len({row["trial"] for row in records(tmp_path / "runs/sweep/rates")}) == 20
    assert FAILED not in states().values()
    assert RUNNING not in states().values()


@pytest.mark.slow
def test_real_trainings_are_stopped_by_sigterm_and_resume(tmp_path):
    options = {
        "data.image_size": 32, "data.num_workers": 0, "trainer.limit_train_batches": 2,
        "trainer.limit_val_batches": 1, "trainer.max_epochs": 3,
    }  # fmt: skip
    config = write_config(tmp_path / "rates.yaml", trials=2, options=options, pruner=False)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "experiments.sweep", "--config", str(config), "--workers", "2"]
    worker = subprocess.Popen(command, cwd=tmp_path, env=environment)
    output = tmp_path / "runs/sweep/rates"
    deadline = time.monotonic() + 120
    while not list(output.glob("classification/*/checkpoints/last.ckpt")):
        assert worker.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker.terminate()
    assert worker.wait(90) == 143
    result = run_module("experiments.sweep", "--config", str(config), "--workers", "2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [row["state"] for row in records(output)] == ["complete"] * 2
    for row in records(output):
        rows = RunFolder(tmp_path / row["folder"]).history()
        assert [row["epoch"] for row in rows if "val/top1" in row] == [0, 1, 2]
    best = json.loads((output / "sweep.json").read_text())["best"]
    assert best["command"].startswith("python -m classification.fit --config digits.yaml")
