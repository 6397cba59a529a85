"""Every command and every piece of code in the README does what it says."""

import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request

import pytest
import torch
import yaml

import detection
import mobile_former
from detection.scenes import write_coco
from tests.conftest import ROOT, run_module, write_image_folder, write_onnx_peer

README = (ROOT / "README.md").read_text()

# A few steps instead of hundreds; everything else stays as printed.
SHORTER = {
    "--trainer.limit_train_batches": "2",
    "--trainer.limit_val_batches": "2",
    "--trainer.devices": "1",
    "--data.batch_size": "4",
}
COMPARED = ("--data.image_size", "32", "--data.num_workers", "0", "--trainer.limit_train_batches", "2")
TIMED = ("--models", "mobile_former_26m", "--forms", "eager", "deployed", "--image_size", "32", "--rounds", "1")
SMALLER = {"--data.short_sides": "[96]", "--data.short_side": "96"}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    lines = [line.strip() for text in blocks("bash") for line in text.replace("\\\n", " ").splitlines()]
    return [line.split(" # ")[0].strip() for line in lines if line]


def visit(words, cwd):
    """Start the command that serves a page, fetch the page from the address that it prints, and stop it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", *words], cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            address = re.match(r"open (http://\S+)", process.stdout.readline())[1]
            with urllib.request.urlopen(address, timeout=60) as response:
                assert "Mobile-Former" in response.read().decode()
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """The folder of somebody who follows the README: his images and the authors' weights where it says."""
    folder = tmp_path_factory.mktemp("reader")
    write_image_folder(folder / "path" / "to" / "images", ("cat", "dog"), train=6, val=3)
    write_image_folder(folder / "path" / "to" / "imagenet", ("n01", "n02"), train=6, val=3)
    write_coco(folder / "path" / "to" / "coco", "train", 6)
    write_coco(folder / "path" / "to" / "coco", "val", 3)
    write_onnx_peer(folder / "path" / "to" / "onnx_files" / "peer.onnx", side=32)
    # Stands for the authors' file, which is read alike (test_weights.py, test_reference.py).
    model = mobile_former.mobile_former_294m()
    torch.save({"state_dict": model.state_dict()}, folder / "path" / "to" / "mobile_former_294m.pth.tar")
    return folder


@pytest.mark.timeout(900)
def test_the_commands_of_the_readme_run_in_its_order(reader):
    ran = []
    for command in commands():
        words = shlex.split(command)
        if words[0] in {"make", "pip"} or "venv" in command:
            continue  # test_house.py
        assert words[:2] == ["python", "-m"], command
        if words[2].endswith(".fit"):
            for option, value in (SHORTER | (SMALLER if words[2] == "detection.fit" else {})).items():
                words += [option, value]
            # The run that goes on has one epoch more than the one that it goes on from.
            words += ["--trainer.max_epochs", "2" if "last" in words else "1"]
        if words[2].endswith(".export"):
            words += ["--check_images", "4"]
            if words[2] == "detection.export":  # open sizes take minutes, see test_export.py
                words += ["--image_size", "[96, 96]"]
        if words[2] == "experiments.compare":
            words = [*words[: words.index("--seeds")], "--seeds", "0", "--trainer.max_epochs", "1", *COMPARED]
        if words[2] == "experiments.sweep":
            words += ["--trials", "1", "--trainer.max_epochs", "1", *COMPARED]
        if words[2] == "experiments.benchmark":
            words += TIMED
        if words[2] == "experiments.app":
            visit(words[2:], cwd=reader)
            ran.append(words[2])
            continue
        result = run_module(*words[2:], cwd=reader)
        assert result.returncode == 0, f"{command}\n{result.stderr}"
        ran.append(words[2])
    commands_of_a_task = ("fit", "validate", "test", "predict")
    assert {f"{task}.{name}" for task in ("classification", "detection") for name in commands_of_a_task} <= {*ran}
    assert {"classification.export", "detection.export"} <= {*ran}
    assert (reader / "predictions.csv").is_file()
    assert (reader / "predictions.png").is_file()
    assert len(list((reader / "drawings").glob("*.png"))) == 9
    assert json.loads((reader / "found.json").read_text())["images"]
    assert isinstance(json.loads((reader / "detections.json").read_text()), list)


def test_the_code_of_the_readme_runs(reader, monkeypatch):
    monkeypatch.chdir(reader)
    for text in blocks("python"):
        exec(compile(text, "README.md", "exec"), {})
    assert (reader / "mobile_former_294m.safetensors").is_file()


def test_the_yaml_of_the_readme_is_a_config(reader):
    (reader / "augment.yaml").write_text(blocks("yaml")[0])
    arguments = ("--config", "finetune.yaml", "--config", "augment.yaml", "--data.root", "path/to/images")
    result = run_module("classification.fit", *arguments, "--print_config", cwd=reader)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    steps = yaml.safe_load(result.stdout)["data"]["train_transforms"]
    assert [step["class_path"].rsplit(".", 1)[1] for step in steps] == ["RandomResizedCrop", "ColorJitter"]


def test_every_option_that_the_readme_names_exists():
    named = set(re.findall(r"--(?:model|data|trainer)\.\w+", README))
    known = "".join(run_module(f"{task}.fit", "--help", cwd=ROOT).stdout for task in ("classification", "detection"))
    known += run_module("detection.test", "--help", cwd=ROOT).stdout
    assert not {option for option in named if option not in known}


def test_the_table_of_models_is_true():
    rows = re.findall(r"\| `(mobile_former_\w+)` \| ([\d ]+) \| ([\d.]+) M", README)
    assert [name for name, _, _ in rows] == mobile_former.list_models()
    for name, params, madds in rows:
        cost = mobile_former.cost(mobile_former.create_model(name))
        assert cost.params == int(params.replace(" ", ""))
        assert round(cost.madds / 1e6, 2) == float(madds)


@pytest.mark.slow
def test_the_table_of_detectors_is_true():
    rows = re.findall(r"\| `((?:e2e|retinanet)_mf_\w+)` \| ([\d.]+) M \| ([\d.]+) G", README)
    (detr,) = re.findall(r"`(detr_r50)` is .*?: ([\d.]+) M\s+parameters, ([\d.]+) G at 800.1056", README)
    assert [name for name, _, _ in [*rows, detr]] == detection.list_detectors()
    for name, params, madds in [*rows, detr]:
        size = (800, 1280) if name.startswith("retinanet") else (800, 1056)
        cost = mobile_former.cost(detection.create_detector(name, 80), size)
        assert f"{cost.params / 1e6:.1f}" == params
        assert f"{cost.madds / 1e9:.1f}" == madds


def test_every_file_and_folder_that_the_readme_links_or_names_exists():
    linked = [target for target in re.findall(r"\]\(([^)]+)\)", README) if not target.startswith("http")]
    named = re.findall(r"`((?:mobile_former|classification|detection|experiments|tests)/[\w./]*)`", README)
    assert len(named) > 5
    assert not [name for name in [*linked, *named] if not (ROOT / name).exists()]
