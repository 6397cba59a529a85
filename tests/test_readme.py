"""The commands, code, tables and names in the README and in the documentation are correct."""

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
from detection.data.scenes import write_coco
from tests.conftest import ROOT, run_module, write_image_folder, write_onnx_peer
from tests.test_docs import PAGES

README = (ROOT / "README.md").read_text()
TEXTS = {"README.md": README} | PAGES

# A few steps instead of hundreds. Everything else runs as printed.
SHORTER = {
    "--trainer.limit_train_batches": "2",
    "--trainer.limit_val_batches": "2",
    "--trainer.devices": "1",
    "--data.batch_size": "4",
}
COMPARED = ("--data.image_size", "32", "--data.num_workers", "0", "--trainer.limit_train_batches", "2")
TIMED = ("--models", "mobile_former_26m", "--forms", "eager", "deployed", "--image_size", "32", "--rounds", "1")
SMALLER = {"--data.short_sides": "[96]", "--data.short_side": "96"}


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands():
    """Yield the commands of the README, then of the pages in the order of the navigation; each command once."""
    known = set()
    for page, text in TEXTS.items():
        for line in "".join(blocks(text, "bash")).replace("\\\n", " ").splitlines():
            words = tuple(shlex.split(line, comments=True))
            if words and words not in known:
                known.add(words)
                yield page, list(words)


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
    """The folder of a reader, with images and the authors' weights at the paths that the pages name."""
    folder = tmp_path_factory.mktemp("reader")
    write_image_folder(folder / "path" / "to" / "images", ("cat", "dog"), train=6, val=3)
    write_image_folder(folder / "path" / "to" / "imagenet", ("n01", "n02"), train=6, val=3)
    write_coco(folder / "path" / "to" / "coco", "train", 6)
    write_coco(folder / "path" / "to" / "coco", "val", 3)
    annotations = folder / "path" / "to" / "coco" / "annotations"
    content = json.loads((annotations / "instances_val.json").read_text())
    del content["annotations"]
    (annotations / "image_info_test-dev.json").write_text(json.dumps(content))
    write_onnx_peer(folder / "path" / "to" / "onnx_files" / "peer.onnx", side=32)
    # A stand-in for the authors' file, which is read in the same way (test_loading.py, test_reference.py).
    model = mobile_former.mobile_former_294m()
    torch.save({"state_dict": model.state_dict()}, folder / "path" / "to" / "mobile_former_294m.pth.tar")
    (folder / "path/to/mobile-former").symlink_to(ROOT)
    return folder


def run_commands(reader):
    """Run all commands in the reader's folder; return the names of the modules that ran."""
    ran = []
    for page, words in commands():
        if words[0] in {"make", "pip", "tensorboard"} or ".venv" in words[0] or "venv" in words:
            continue  # installation: test_layout.py; TensorBoard's log: below
        assert words[:2] == ["python", "-m"], f"{page}: {words}"
        if words[2].endswith(".fit"):
            for option, value in (SHORTER | (SMALLER if words[2] == "detection.fit" else {})).items():
                words += [option, value]
            # The resumed run trains one epoch more than the run before.
            words += ["--trainer.max_epochs", "2" if "last" in words else "1"]
        if words[2].endswith(".export"):
            words += ["--check_images", "4"]
            if words[2] == "detection.export":  # a file for any size takes minutes, see test_export.py
                words += ["--image_size", "[96, 96]"]
        if words[2] == "experiments.compare":
            words = [*words[: words.index("--seeds")], "--seeds", "0", "--trainer.max_epochs", "1", *COMPARED]
        if words[2] == "experiments.sweep":
            words += ["--trials", "1", "--trainer.max_epochs", "1", *COMPARED]
        if words[2] == "experiments.benchmark":
            words += TIMED
        if words[2] == "experiments.runtimes":
            words += ["--runtimes", "OpenCV", "--images", "2", "--rounds", "1"]
        if words[2] == "experiments.app":
            visit(words[2:], cwd=reader)
        else:
            result = run_module(*words[2:], cwd=reader)
            assert result.returncode == 0, f"{page}: {shlex.join(words)}\n{result.stderr}"
        ran.append(words[2])
    return ran


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_run_in_their_order_and_then_the_code(reader, monkeypatch, request):
    modules = run_commands(reader)
    commands_of_a_task = ("fit", "validate", "test", "predict")
    assert {f"{task}.{name}" for task in ("classification", "detection") for name in commands_of_a_task} <= {*modules}
    assert {"classification.export", "detection.export", "classification.shard", "classification.publish"} <= {*modules}
    tools = ("app", "attention", "benchmark", "compare", "sweep")
    assert {f"experiments.{name}" for name in tools} <= {*modules}
    assert len(modules) >= 29
    assert (reader / "predictions.csv").is_file()
    assert (reader / "predictions.png").is_file()
    assert len(list((reader / "drawings").glob("*.png"))) == 9
    assert json.loads((reader / "found.json").read_text())["images"]
    assert isinstance(json.loads((reader / "detections.json").read_text()), list)
    assert list(reader.glob("runs/classification/*/tensorboard/events.*"))

    monkeypatch.chdir(reader)
    for page, text in TEXTS.items():
        for code in blocks(text, "python"):
            if "import timm" in code:
                try:
                    request.getfixturevalue("timm")
                except pytest.skip.Exception:
                    continue
            exec(compile(code, page, "exec"), {})
    assert (reader / "mobile_former_294m.safetensors").is_file()


@pytest.mark.parametrize(
    ("page", "group", "option"),
    [("training/options.md", "data", "train_transforms"), ("training/callbacks.md", "trainer", "callbacks")],
)
def test_the_yaml_of_a_page_is_a_config(page, group, option, tmp_path):
    (config,) = blocks(TEXTS[page], "yaml")
    (tmp_path / "mine.yaml").write_text(config)
    arguments = ("--config", "finetune.yaml", "--config", "mine.yaml", "--data.root", "path/to/images")
    result = run_module("classification.fit", *arguments, "--print_config", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    given, read = (
        [part["class_path"].rpartition(".")[2] for part in yaml.safe_load(text)[group][option]]
        for text in (config, result.stdout)
    )
    assert read == given
    assert len(given) == 2


def test_every_yaml_of_the_pages_is_tested():
    assert [page for page, text in TEXTS.items() if "```yaml" in text] == [
        "training/options.md", "training/callbacks.md"
    ]  # fmt: skip


def test_the_table_of_models_is_true():
    rows = re.findall(r"\| `(mobile_former_\w+)` \| ([\d ]+) \| ([\d.]+) M", README)
    assert [name for name, _, _ in rows] == mobile_former.list_models()
    for name, params, madds in rows:
        cost = mobile_former.cost(mobile_former.create_model(name))
        assert cost.params == int(params.replace(" ", ""))
        assert round(cost.madds / 1e6, 2) == float(madds)


@pytest.mark.slow
def test_the_table_of_detectors_is_true():
    rows = re.findall(r"\| `((?:e2e|retinanet)_mf_\w+)` \| ([\d.]+) M \| ([\d.]+) G \| (\d+).(\d+)", README)
    sentence = r"`(detr_r50)` is .*?: ([\d.]+) M\s+parameters, ([\d.]+) G at (\d+).(\d+)"
    (detr,) = re.findall(sentence, PAGES["detection/detectors.md"])
    assert [name for name, *_ in [*rows, detr]] == detection.list_detectors()
    for name, params, madds, height, width in [*rows, detr]:
        assert (height, width) == (("800", "1280") if name.startswith("retinanet") else ("800", "1056"))
        cost = mobile_former.cost(detection.create_detector(name, 80), (int(height), int(width)))
        assert f"{cost.params / 1e6:.1f}" == params
        assert f"{cost.madds / 1e9:.1f}" == madds
    options = {"focal": True, "refine_boxes": True, "dense_head": True, "choose_queries": True}
    costs = re.findall(r"\| `(e2e_mf_\w+)` \| ([\d.]+) M \| ([\d.]+) G \|\n", PAGES["detection/detectors.md"])
    assert [name for name, *_ in costs] == [name for name in detection.list_detectors() if name.startswith("e2e")]
    for name, params, madds in costs:
        cost = mobile_former.cost(detection.create_detector(name, 80, **options), (800, 1056))
        assert (f"{cost.params / 1e6:.1f}", f"{cost.madds / 1e9:.1f}") == (params, madds)


def test_every_file_and_folder_that_the_readme_links_or_a_page_names_exists():
    linked = [target for target in re.findall(r"\]\(([^)]+)\)", README) if not target.startswith("http")]
    assert len(linked) > 20
    pattern = r"`((?:mobile_former|classification|detection|experiments|tests)/[\w./]*)`"
    named = [name for text in TEXTS.values() for name in re.findall(pattern, text)]
    assert len(named) > 10
    assert not [name for name in [*linked, *named] if not (ROOT / name).exists()]
