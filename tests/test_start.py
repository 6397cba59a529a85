"""What the commands import: help and inference do without the libraries of training."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

COMMANDS = [
    "classification.predict", "classification.export", "classification.publish", "classification.shard",
    "detection.predict", "detection.export",
]  # fmt: skip
TRAINING = {"pytorch_lightning", "lightning_fabric", "albumentations", "sklearn", "scipy", "matplotlib", "torchmetrics"}
# Runs a command and prints its exit status and all loaded top-level modules.
PROGRAM = """
import json, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__")
except SystemExit as end:
    loaded = sorted({name.partition(".")[0] for name in sys.modules} | {"torch._dynamo"} & sys.modules.keys())
    print()
    print(json.dumps([end.code, loaded]))
"""


def run(*arguments, cwd=ROOT):
    """Return the exit status and the modules of a command, and its output."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    status, loaded = json.loads(result.stdout.splitlines()[-1])
    return status, set(loaded), result.stdout + result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_neither_pytorch_nor_a_library_of_images(command):
    status, loaded, output = run(command, "--help")
    assert status == 0
    assert f"usage: python -m {command}" in output
    assert not loaded & (TRAINING | {"torch", "numpy", "cv2", "PIL", "rich"})


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_an_error_in_the_options_is_found_before_pytorch_is_loaded(task):
    status, loaded, output = run(f"{task}.predict", "x.jpg", "--ckpt_path", "x", "--batch_size", "0")
    assert status == 1
    assert "--batch_size is 0" in output
    assert "torch" not in loaded
