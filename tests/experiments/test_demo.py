"""Stopping `make demo` and continuing it. What it trains is tested in test_layout.py."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import demo
from tests.conftest import ROOT


def stopped(folder: Path, at: str) -> tuple[str, int]:
    """Start the demo in a folder, press Ctrl-C when it prints a text; return its output and its status."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "experiments.demo"],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        printed = ""
        for line in process.stdout:
            printed += line
            if at in line:
                at = "never again"
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    return printed, process.returncode


@pytest.mark.slow
def test_a_stopped_demo_says_how_to_continue_and_continues(tmp_path):
    first, status = stopped(tmp_path, "epoch 1/30")
    assert status == 130
    assert "the demo was stopped; make demo continues it" in first
    assert "Traceback" not in first
    second, status = stopped(tmp_path, "epoch ")
    assert status == 130
    assert "from   runs/classification/demo/checkpoints/last.ckpt" in second
    assert "epoch 1/30" not in second


def test_a_finished_demo_is_not_continued(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert demo.run_name() == "demo"
    drawings = Path("runs", "detection", "demo", "drawings")
    drawings.mkdir(parents=True)
    assert demo.run_name() == "demo"
    for number in range(demo.IMAGES):
        (drawings / f"{number}.png").touch()
    assert demo.run_name() == "demo-2"


def test_a_command_that_fails_ends_the_demo_with_its_status():
    with pytest.raises(SystemExit) as end:
        demo.run("tests.there_is_no_such_module")
    assert end.value.code == 1
