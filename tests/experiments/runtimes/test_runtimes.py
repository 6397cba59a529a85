"""Trained weights give the same logits and the same accuracy in every runtime that is installed."""

import numpy as np
import pytest
import torch

import mobile_former
from experiments.runtimes.digits import digit_images, fit_to_digits
from experiments.runtimes.runtimes import NCNN, RUNTIMES, write_file
from tests.conftest import run_module

SIDE = 32
# OpenVINO's bfloat16 needs a processor that has it, and is only meant to give the same classes.
LOGITS = {"OpenVINO bf16": 0.05}


@pytest.fixture(scope="module")
def trained():
    """A model that was fitted to the embedded digits."""
    return fit_to_digits("mobile_former_26m")


@pytest.fixture(scope="module")
def written(trained, tmp_path_factory):
    """Return a function that writes a file of the trained model, once for each suffix."""
    folder = tmp_path_factory.mktemp("files")

    def write(suffix):
        path = folder / f"model{suffix}"
        if not path.exists():
            write_file(mobile_former.deploy(trained), torch.zeros(1, 3, SIDE, SIDE), path)
        return path

    return write


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_gives_pytorch_s_logits_and_accuracy(runtimes, trained, written, runtime):
    pytest.importorskip(RUNTIMES[runtime].package)
    if RUNTIMES[runtime].suffix == NCNN:
        pytest.importorskip("pnnx")
    run = RUNTIMES[runtime].open(written(RUNTIMES[runtime].suffix))
    images, labels = digit_images("val", SIDE)
    with torch.no_grad():
        expected = trained(images).numpy()
    found = np.concatenate([run(image[None].numpy()) for image in images])
    assert np.abs(found - expected).max() <= LOGITS.get(runtime, 1e-4) * np.abs(expected).max()
    right = [(logits.argmax(1) == labels.numpy()).mean() for logits in (found, expected)]
    assert right[1] > 0.8
    assert abs(right[0] - right[1]) <= (0.01 if runtime in LOGITS else 0)


@pytest.mark.slow
def test_the_command_prints_a_row_for_each_runtime(tmp_path):
    result = run_module(
        "experiments.runtimes", "--runtimes", "ONNX Runtime", "OpenCV", "--images", "8", "--rounds", "2", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.stdout.splitlines()]
    assert header == ["model", "runtime", "MB", "difference", "same class", "top1", "ms"]
    assert [row[1] for row in rows] == ["ONNX Runtime", "OpenCV"]
    for row in rows:
        assert float(row[3]) < 1e-4
        assert row[4] == "1.000"


def test_an_unknown_runtime_is_reported_in_one_line(tmp_path):
    result = run_module("experiments.runtimes", "--runtimes", "Caffe", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("error: --runtimes Caffe: give some of ONNX Runtime, ")
