"""The repository as a house: what may import what, what is installed, what make does."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("mobile_former", "classification", "detection", "experiments")


def imports(path):
    """Names of the modules that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def sources(package):
    return [path for path in (ROOT / package).rglob("*.py") if ".venv" not in path.parts]


def test_imports_run_one_way():
    for path in sources("mobile_former"):
        in_training = "training" in path.relative_to(ROOT).parts
        for name in imports(path):
            assert name.split(".")[0] not in {"classification", "detection", "experiments", "tests"}, path
            if not in_training:
                assert (
                    name.split(".")[0] in {"mobile_former", "torch", "safetensors", "numpy"} | sys.stdlib_module_names
                ), path
                assert not name.startswith("mobile_former.training"), path
    for task, other in (("classification", "detection"), ("detection", "classification")):
        for path in sources(task):
            assert not {name.split(".")[0] for name in imports(path)} & {other, "experiments", "tests"}, path


def test_torchvision_timm_and_transformers_are_needed_nowhere():
    for package in PACKAGES:
        for path in sources(package):
            assert not {name.split(".")[0] for name in imports(path)} & {"torchvision", "timm", "transformers"}, path
    pins = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"^(torchvision|timm)\b", pins, re.MULTILINE)
    assert re.search(r"^torch==2\.13\.0$", pins, re.MULTILINE)


def test_every_dependency_is_pinned_in_the_tested_set():
    setup = (ROOT / "setup.cfg").read_text()
    section = re.search(r"install_requires =\n(.*?)\n\n", setup, re.DOTALL)[1]
    extras = re.search(r"\[options.extras_require\]\n(.*?)\n\n", setup, re.DOTALL)[1]
    names = re.findall(r"^    ([\w-]+)", section + "\n" + extras, re.MULTILINE)
    pinned = {
        re.sub(r"[-_.]+", "-", name).lower()
        for name in re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    }
    assert len(names) > 10
    # timm needs torchvision; dev takes the other extras by this project's name.
    assert {name for name in names if name.lower() not in pinned} == {"timm", "mobile-former"}


@pytest.mark.slow
def test_the_wheel_holds_packages_and_configs_and_works_elsewhere(tmp_path):
    """Built and unpacked far from the repository, the commands find their configs."""
    source = tmp_path / "source"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(source)],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    names = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"mobile_former", "classification", "detection"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "PYTHONPATH": str(site)
    }
    where = "import classification; print(classification.__file__)"
    found = subprocess.run([sys.executable, "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert Path(found.stdout.strip()).is_relative_to(site)
    configs = [
        ("classification", ("finetune.yaml", "classification/configs/imagenet_26m.yaml", "digits.yaml")),
        ("detection", ("finetune.yaml", "detection/configs/coco_e2e_mf_508m.yaml", "scenes.yaml")),
    ]
    for task, config in ((task, config) for task, names in configs for config in names):
        data = () if config in {"digits.yaml", "scenes.yaml"} else ("--data.root", "path/to/images")
        result = subprocess.run(
            [sys.executable, "-m", f"{task}.fit", "--config", config, *data, "--print_config"],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert "learning_rate" in result.stdout


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_make_demo_trains_validates_predicts_and_says_where_everything_lies(tmp_path):
    """As on a fresh machine: a clean checkout, in which make sets everything up."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "clone")], check=True)
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    result = subprocess.run(
        ["make", "demo"], cwd=tmp_path / "clone", env=environment, capture_output=True, text=True, timeout=2400
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    told = result.stdout.split("written:")[-1]  # after the last step
    checkpoints = re.findall(r"^checkpoint\s+(runs/\S+)$", told, re.MULTILINE)
    assert [checkpoint.split("/")[1] for checkpoint in checkpoints] == ["classification", "detection"]
    pictures = [
        f"{folder}/{name}"
        for folder, names in re.findall(r"^pictures\s+(runs/\S+)/: (.*)$", told, re.MULTILINE)
        for name in names.split(", ")
    ]
    assert {Path(picture).name for picture in pictures} > {"curves.png", "predictions.png", "confusion_matrix.png"}
    for named in (*checkpoints, *pictures):
        assert (tmp_path / "clone" / named).is_file(), named
    (drawings,) = re.findall(r"^\s+(runs/\S+/drawings)/", told, re.MULTILINE)
    assert len(list((tmp_path / "clone" / drawings).iterdir())) == 12
    # What `fit` alone, without options, promises of both tasks.
    for task, least in (("classification", {"top1": 0.98}), ("detection", {"AP": 0.50, "AP50": 0.80})):
        final = json.loads((tmp_path / "clone" / "runs" / task / "demo" / "metrics.json").read_text())
        for score, value in least.items():
            assert final[f"val/{score}"] >= value, final
    again = subprocess.run(["make", "venv"], cwd=tmp_path / "clone", env=environment, capture_output=True, text=True)
    assert "Nothing to be done" in again.stdout
