"""A short storm, and the program that measures the age of a run."""

import math
import re
import sys

import pytest

from experiments.storm import aging, checks
from experiments.storm.__main__ import main
from experiments.storm.run import Run
from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_events_cost_no_run_anything(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["storm", "--events", "10", "--seed", "3", "--output", str(tmp_path)])
    main()
    output = capsys.readouterr().out
    assert "LOST" not in output
    assert re.search(r"^10 events: .*\n\d runs finished after \d+ starts; 0 losses$", output, re.MULTILINE)


def write_metrics(run, rates, epochs):
    run.folder.path.mkdir(parents=True)
    rows = [f"{epoch},{rate},{step}\r\n" for step, (rate, epoch) in enumerate(zip(rates, epochs, strict=True))]
    run.folder.metrics_csv.write_text("epoch,lr,step\r\n" + "".join(rows))


@pytest.mark.parametrize(
    ("rates", "epochs", "expected"),
    [
        ([0.0005, 0.001, 0.001, 0.0005], [0, 0, 1, 1], None),
        ([0.0005, 0.001, 0.001, 0.0006], [0, 0, 1, 1], "the rate of step 3 is 0.0006, not 0.0005"),
        ([0.0005, 0.001, 0.001], [0, 0, 1], "steps of each epoch"),
        ([0.0005, 0.001], [0, 0], "epochs in metrics.csv"),
    ],
)
def test_missing_steps_and_wrong_rates_of_a_run_are_found(tmp_path, rates, epochs, expected):
    run = Run("classification", tmp_path, tmp_path, "x", 1)
    run.epochs, run.segments = 2, [(0, 2, 2)]
    write_metrics(run, rates, epochs)
    if expected is None:
        checks.require_expected_steps(run)
    else:
        with pytest.raises(checks.LossError, match=expected):
            checks.require_expected_steps(run)


def test_the_rates_of_a_run_follow_the_batch_size_of_a_restart(tmp_path):
    run = Run("classification", tmp_path, tmp_path, "x", 1)
    run.epochs, run.segments = 3, [(0, 2, 2), (4, 3, 3)]
    late = [0.0005 * (1 + math.cos(math.pi * (position - 3) / 6)) for position in (6, 7, 8)]
    write_metrics(run, [0.0005, 0.001, 0.001, 0.0005, *late], [0, 0, 1, 1, 2, 2, 2])
    checks.require_expected_steps(run)


@pytest.mark.parametrize(
    ("status", "output"), [(0, "error: x\n"), (1, "error: x\nerror: y\n"), (1, "Traceback\nerror: x\n"), (2, "")]
)
def test_messages_of_more_than_one_line_are_found(status, output):
    with pytest.raises(checks.LossError):
        checks.require_plain(status, output, {0, 1})
    checks.require_plain(1, "error: x\n", {0, 1})


def test_the_report_of_an_old_run_names_what_has_grown(tmp_path):
    table = tmp_path / "age.csv"
    rows = [f"{epoch},{1 + epoch // 200},1000000,metrics.csv={epoch};leak.txt={epoch}" for epoch in range(1, 401)]
    table.write_text("\n".join(rows) + "\n")
    report = aging.report(table)
    assert "processor seconds an epoch: 1 in epochs 101 to 200, 2 in the last 100: 2.000" in report
    assert "of these not expected: leak.txt" in report


@pytest.mark.slow
def test_the_age_of_a_run_is_measured(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    aging.fit(tmp_path, "old", 9, "--trainer.callbacks", "experiments.storm.aging.Age")
    report = aging.report(tmp_path / "classification" / "old" / "age.csv")
    assert "resident memory in MB: " in report
    assert "of these not expected: none" in report
