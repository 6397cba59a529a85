"""The extra that the commands need, and the order of imports that they rely on."""

import configparser
import os
import subprocess
import sys
from importlib.metadata import packages_distributions

import pytest
import yaml
from packaging.requirements import Requirement

from mobile_former.training import REQUIRED
from tests.conftest import ROOT, run_module

# A finder that does not find one package, as if it were not installed.
WITHOUT = """
from importlib.machinery import PathFinder
find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, *place: None if name == "webdataset" else find_spec(name, *place)
"""


def test_required_modules_are_those_of_the_extra():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.extras_require"]["train"].split("\n")
    packages = {Requirement(line).name.lower() for line in lines if line and not line.startswith("#")}
    modules = packages_distributions()
    assert {modules[name][0].lower() for name in REQUIRED} == packages


@pytest.mark.parametrize(
    "command",
    ["classification.fit", "classification.export", "detection.fit", "detection.predict", "experiments.benchmark"],
)
def test_a_command_without_the_extra_names_it_in_one_line(tmp_path, command):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    result = subprocess.run(
        [sys.executable, "-m", command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert "webdataset" in line
    assert "pip install 'mobile-former[train]'" in line


def test_an_import_without_the_extra_raises_and_the_backbone_still_imports(tmp_path):
    program = "import mobile_former\ntry:\n    import detection\nexcept ImportError as error:\n    print(error)"
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT + program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "pip install 'mobile-former[train]'" in result.stdout


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_a_number_of_batches_stays_a_number_and_a_fraction_a_fraction(tmp_path, task):
    """typing caches the order of a union: imported in another order, 1 batch becomes 1.0, which means all batches."""
    options = ("--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1.0")
    result = run_module(f"{task}.fit", *options, "--print_config", cwd=tmp_path)
    trainer = yaml.safe_load(result.stdout)["trainer"]
    assert type(trainer["limit_train_batches"]) is int
    assert type(trainer["limit_val_batches"]) is float
