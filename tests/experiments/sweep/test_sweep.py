"""``python -m experiments.sweep``: its tables, figures and errors."""

import json
import re
import sys
from collections import Counter

import cv2
import pytest

from experiments import runs
from experiments.sweep.__main__ import main
from mobile_former import InputError
from tests.experiments.sweep.conftest import RATE, listed, records, write_config


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


def test_a_metric_that_fit_does_not_log_is_an_error_with_the_nearest_name(sweeping, tmp_path):
    status, _, err = sweeping("--config", str(write_config(tmp_path / "rates.yaml", metric="val/top", trials=1)))
    assert status == 1
    assert "metric 'val/top' is not a column of metrics.csv: did you mean 'val/top1'?" in err


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


def test_seeds_of_a_setting_are_grouped_and_may_be_added(sweeping, tmp_path):
    space, path = {"model.learning_rate": [1e-3, 1e-2], "seed_everything": [0, 1]}, tmp_path / "seeds.yaml"
    config = write_config(path, space=space, sampler="grid", trials="absent", score="last")
    assert sweeping("--config", str(config))[0] == 0
    write_config(path, space=space | {"seed_everything": [0, 1, 2]}, sampler="grid", trials="absent", score="last")
    status, out, _ = sweeping("--config", str(config))
    assert status == 0
    assert "| 0.001 | 1.0100 ± 0.0100 | 3 | 0, 1, 2 |  |" in out
    assert "| against 0.001, seed by seed |" in out
    lower = "−0.250"  # noqa: RUF001
    assert f"| {lower} (95 %: {lower} to {lower}); {lower}, {lower}, {lower} |" in out
    output = tmp_path / "runs/sweep/seeds"
    settings = json.loads((output / "sweep.json").read_text())["settings"]
    assert [setting["params"] for setting in settings] == [{"model.learning_rate": rate} for rate in (1e-3, 1e-2)]
    assert settings[1]["values"] == pytest.approx({"0": 0.75, "1": 0.76, "2": 0.77})
    assert len(listed(tmp_path)) == 12
    for name in ("ablation", "importances", "parallel_coordinates"):
        assert cv2.imread(str(output / f"{name}.png")).std() > 5, name


def test_a_list_of_repeats_alone_is_one_setting(sweeping, tmp_path):
    config = write_config(
        tmp_path / "seeds.yaml",
        space={"seed_everything": [0, 2]},
        options={"model.learning_rate": 1e-3},
        sampler="grid",
        trials="absent",
    )
    status, out, _ = sweeping("--config", str(config), "--workers", "2")
    assert status == 0
    assert "| val/top1, best epoch | n | seeds |" in out
    assert "| 1.0100 ± 0.0141 | 2 | 0, 2 |" in out
    assert cv2.imread(str(tmp_path / "runs/sweep/seeds/ablation.png")).std() > 5


def test_the_folds_of_a_cross_validation_are_one_setting(sweeping, tmp_path):
    options = {"model.learning_rate": 1e-3, "data.folds": 3}
    space, path = {"data.fold": [1, 2, 3]}, tmp_path / "folds.yaml"
    config = write_config(path, space=space, options=options, sampler="grid", trials="absent", score="last")
    status, out, _ = sweeping("--config", str(config))
    assert status == 0
    assert "| val/top1, last epoch | n | folds |" in out
    assert " | 3 | 1, 2, 3 |" in out
    assert "Mean ± standard deviation over the folds." in out
    assert [line for line in listed(tmp_path) if "finished" in line] == [f"trial-{n} finished" for n in range(3)]


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


def test_the_number_of_trials_may_be_raised_and_the_report_repeated(sweeping, tmp_path):
    config = write_config(tmp_path / "rates.yaml", trials=2)
    assert sweeping("--config", str(config))[0] == 0
    status, out, _ = sweeping("--config", str(config), "--trials", "3", "--data.root", "elsewhere", "--workers", "0")
    assert status == 0
    assert "1 of 3 trials are not finished: run the same command again to continue" in out
    assert sweeping("--config", str(config), "--trials", "3", "--data.root", "elsewhere")[0] == 0
    assert len(records(tmp_path / "runs/sweep/rates")) == 3


def test_a_report_of_a_missing_sweep_is_refused_and_writes_no_file(sweeping, tmp_path):
    config = write_config(tmp_path / "rates.yaml")
    with pytest.raises(InputError, match=r"runs/sweep/rates/study\.db does not exist"):
        sweeping("--config", str(config), "--workers", "0")
    assert not (tmp_path / "runs").exists()


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
    with pytest.raises(InputError, match="--workers is -1"):
        sweeping("--config", str(config), "--workers", "-1")


def test_a_sweep_on_windows_is_refused_with_the_supported_systems(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sweep", "--config", str(write_config(tmp_path / "rates.yaml"))])
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(InputError, match="runs on Linux and macOS"):
        main()
