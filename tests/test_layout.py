"""The package layout: what imports what, what is installed, what make does."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("mobile_former", "classification", "detection", "experiments")
COMMANDS = ("fit", "validate", "test", "predict", "evaluate", "export", "shard", "publish", "convert")
LARGEST_FOLDER = 14  # modules


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def imports(path):
    """Yield every name that a file imports, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


IMPORTS = {name: set(imports(path)) for name, path in MODULES.items()}
GRAPH = {
    name: {other for other in imported if other in MODULES and other != name} for name, imported in IMPORTS.items()
}


def inside(name, *packages):
    """Whether a module is one of the packages or in one of them."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def crossings(sources, targets):
    """Return the imports from a module in ``sources`` of a module in ``targets``."""
    return [
        (name, other)
        for name, others in GRAPH.items()
        for other in others
        if inside(name, *sources) and inside(other, *targets)
    ]


def test_no_folder_has_too_many_modules():
    counts = Counter(path.parent for path in MODULES.values() if path.name != "__init__.py")
    assert len(counts) > 20
    assert not [folder for folder, count in counts.items() if count > LARGEST_FOLDER]


def test_no_modules_import_each_other_in_a_circle():
    assert sum(map(len, GRAPH.values())) > 300
    TopologicalSorter(GRAPH).prepare()  # raises CycleError with the modules of a circle


def test_imports_run_one_way():
    lower = ("mobile_former", "classification", "detection")
    assert not crossings(lower, ("experiments",))
    assert not crossings(("mobile_former",), ("classification", "detection"))
    assert not crossings(("classification",), ("detection",))
    assert not crossings(("detection",), ("classification",))
    assert not [name for name, imported in IMPORTS.items() if any(inside(other, "tests") for other in imported)]
    backbone = [
        name for name in MODULES if inside(name, "mobile_former") and not inside(name, "mobile_former.training")
    ]
    assert not [edge for edge in crossings(("mobile_former",), ("mobile_former.training",)) if edge[0] in backbone]
    for name in backbone:
        needed = {other.split(".")[0] for other in IMPORTS[name]} - sys.stdlib_module_names
        optional = {"mobile_former.timm": "timm", "mobile_former.layers.dynamic_relu_triton": "triton"}
        assert needed <= {"mobile_former", "torch", "safetensors", "numpy", optional.get(name)}, name


def test_the_subpackages_of_a_task_do_not_import_its_commands():
    for task, subpackages in (("classification", ("data",)), ("detection", ("boxes", "data", "losses", "models"))):
        commands = [f"{task}.{command}" for command in COMMANDS]
        assert not crossings([f"{task}.{subpackage}" for subpackage in subpackages], commands)
    assert not crossings(("detection.boxes",), ("detection.losses", "detection.models"))
    assert not crossings(("detection.losses",), ("detection.models",))


def test_torchvision_timm_triton_and_transformers_are_needed_nowhere():
    for name, imported in IMPORTS.items():
        libraries = {other.split(".")[0] for other in imported} & {"torchvision", "timm", "transformers"}
        assert libraries == ({"timm"} if name == "mobile_former.timm" else set()), name
    assert not crossings(PACKAGES, ("mobile_former.timm", "mobile_former.layers.dynamic_relu_triton"))
    pins = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"^(torchvision|timm)\b", pins, re.MULTILINE)
    assert re.search(r"^torch==2\.13\.0$", pins, re.MULTILINE)


def test_every_dependency_is_pinned_in_the_tested_set():
    setup = (ROOT / "setup.cfg").read_text()
    section = re.search(r"install_requires =\n(.*?)\n\n", setup, re.DOTALL)[1]
    extras = re.search(r"\[options.extras_require\]\n(.*?)\n\n", setup, re.DOTALL)[1]
    assert re.findall(r"^    ([\w-]+)", section, re.MULTILINE) == ["torch", "safetensors", "numpy"]
    names = re.findall(r"^    ([\w-]+)", section + "\n" + extras, re.MULTILINE)
    pinned = {
        re.sub(r"[-_.]+", "-", name).lower()
        for name in re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    }
    assert len(names) > 10
    # timm needs a torchvision that fits torch. Extras include other extras by the name of this project.
    assert {name for name in names if name.lower() not in pinned} == {"timm", "mobile-former"}


@pytest.mark.slow
def test_the_wheel_holds_packages_and_configs_and_works_elsewhere(tmp_path):
    """The commands find their configs when the wheel is unpacked outside the repository."""
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
    code = "import classification; print(classification.__file__)"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
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
def test_make_demo_trains_validates_predicts_and_lists_its_files(tmp_path):
    """As on a fresh machine: make installs everything in a clean checkout."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "clone")], check=True)
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    result = subprocess.run(
        ["make", "demo"], cwd=tmp_path / "clone", env=environment, capture_output=True, text=True, timeout=2400
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    summary = result.stdout.split("written:")[-1]  # after the last step
    checkpoints = re.findall(r"^checkpoint\s+(runs/\S+)$", summary, re.MULTILINE)
    assert [checkpoint.split("/")[1] for checkpoint in checkpoints] == ["classification", "detection"]
    pictures = [
        f"{folder}/{name}"
        for folder, names in re.findall(r"^pictures\s+(runs/\S+)/: (.*)$", summary, re.MULTILINE)
        for name in names.split(", ")
    ]
    assert {Path(picture).name for picture in pictures} > {"curves.png", "predictions.png", "confusion_matrix.png"}
    for named in (*checkpoints, *pictures):
        assert (tmp_path / "clone" / named).is_file(), named
    (drawings,) = re.findall(r"^\s+(runs/\S+/drawings)/", summary, re.MULTILINE)
    assert len(list((tmp_path / "clone" / drawings).iterdir())) == 12
    # The scores that `fit` reaches without options.
    for task, least in (("classification", {"top1": 0.98}), ("detection", {"AP": 0.72, "AP50": 0.90})):
        final = json.loads((tmp_path / "clone" / "runs" / task / "demo" / "metrics.json").read_text())
        for score, value in least.items():
            assert final[f"val/{score}"] >= value, final
    again = subprocess.run(["make", "venv"], cwd=tmp_path / "clone", env=environment, capture_output=True, text=True)
    assert "Nothing to be done" in again.stdout
