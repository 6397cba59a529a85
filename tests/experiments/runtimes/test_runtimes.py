"""A trained model gives the same logits and the same accuracy in every runtime that is installed."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mobile_former
from classification.data.digits import Digits
from classification.data.module import ClassificationData
from classification.module import ClassificationModule
from experiments.runtimes.__main__ import main, parse
from experiments.runtimes.classifiers import MEAN, STD, digit_images
from experiments.runtimes.runtimes import NCNN, RUNTIMES, write_file
from mobile_former.errors import InputError
from mobile_former.training.export.formats import IMPLEMENTATIONS

SIDE = 32
STEPS, BATCH = 120, 64  # five epochs
FLOAT32 = [name for name in RUNTIMES if name != "OpenVINO bf16"]


@pytest.fixture(scope="module")
def module():
    """A classifier that was trained on the embedded digits for 10 seconds."""
    torch.manual_seed(0)
    module = ClassificationModule(list(Digits.class_names), "mobile_former_26m")
    images, labels = digit_images("train", SIDE), torch.tensor(Digits("train").labels)
    optimizer = torch.optim.AdamW(module.model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.003, total_steps=STEPS)
    for _ in range(STEPS):
        chosen = torch.randint(len(images), (BATCH,))
        optimizer.zero_grad()
        F.cross_entropy(module.model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
        schedule.step()
    return module.eval()


@pytest.fixture(scope="module")
def digits(module):
    """Half of the held-out digits: images, labels, and PyTorch's logits, whose accuracy is above 0.9."""
    images, labels = digit_images("val", SIDE)[::2], np.array(Digits("val").labels)[::2]
    with torch.no_grad():
        logits = module.model(images).numpy()
    assert (logits.argmax(1) == labels).mean() > 0.9
    return images.numpy(), labels, logits


@pytest.fixture(scope="module")
def written(module, tmp_path_factory):
    """Return a function that writes a file of the model, once for each suffix."""
    folder = tmp_path_factory.mktemp("files")

    def write(suffix):
        path = folder / f"model{suffix}"
        if not path.exists():
            write_file(mobile_former.deploy(module.model), torch.zeros(1, 3, SIDE, SIDE), path)
        return path

    return write


@pytest.mark.slow
@pytest.mark.parametrize("runtime", FLOAT32)
def test_a_runtime_gives_pytorch_s_logits_and_accuracy(runtimes, digits, written, runtime):
    if not RUNTIMES[runtime].is_installed():
        pytest.skip(f"{RUNTIMES[runtime].package} is not installed")
    if RUNTIMES[runtime].suffix == NCNN:
        pytest.importorskip("pnnx")
    assert_same(RUNTIMES[runtime].open(written(RUNTIMES[runtime].suffix)), *digits)


@pytest.mark.slow
def test_the_program_of_a_core_ml_package_gives_pytorch_s_logits_and_accuracy(runtimes, module, digits, tmp_path):
    """Core ML runs on Apple's systems only. PyTorch runs the program before its conversion."""
    pytest.importorskip("coremltools")
    implementation = IMPLEMENTATIONS[".mlpackage"]
    metadata = {"task": "classification", "model": "", "class_names": module.hparams.class_names}
    implementation.write(
        mobile_former.deploy(module.model), [torch.zeros(1, 3, SIDE, SIDE)], tmp_path / "x.mlpackage",
        input_names=["images"], output_names=["logits"],
        metadata=metadata | {"mean": MEAN, "std": STD},
    )  # fmt: skip
    model = implementation.read(tmp_path / "x.mlpackage", "classification")
    assert_same(lambda images: model(images)["logits"], *digits)


def assert_same(run, images, labels, expected):
    found = np.concatenate([run(image[None]) for image in images])
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert (found.argmax(1) == labels).mean() == (expected.argmax(1) == labels).mean()


@pytest.mark.slow
def test_the_command_prints_a_row_for_each_runtime(module, tmp_path, monkeypatch, capsys):
    data = ClassificationData(dataset="digits", image_size=SIDE, crop_fraction=1.0, mean=MEAN, std=STD)
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "datamodule_hyper_parameters": dict(data.hparams),
    }
    torch.save(content, tmp_path / "best.ckpt")
    options = ["--ckpt_path", str(tmp_path / "best.ckpt"), "--runtimes", "ONNX Runtime", "OpenCV", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["experiments.runtimes", *options])
    main()
    lines = capsys.readouterr().out.splitlines()
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert header == ["model", "runtime", "MB", "difference", "same class", "top1", "PyTorch", "ms"]
    assert [row[1] for row in rows] == ["ONNX Runtime", "OpenCV"]
    for row in rows:
        assert float(row[3]) < 1e-4
        assert row[4] == "1.000"
        assert float(row[5]) == float(row[6]) > 0.8


def test_onnx_runtime_web_without_its_package_is_an_error_that_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    runtime = RUNTIMES["ONNX Runtime Web"]
    assert not runtime.is_installed()
    with pytest.raises(InputError, match="npm install onnxruntime-web"):
        runtime.open(tmp_path / "x.onnx")


def test_an_unknown_runtime_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["experiments.runtimes", "--runtimes", "Caffe"])
    with pytest.raises(InputError, match=r"^--runtimes Caffe: give some of ONNX Runtime, "):
        parse()
