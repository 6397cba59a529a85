"""The export command, and predictions from its files."""

import re

import onnx
import pytest
import torch

from classification.export.exported_classifier import ExportedClassifier
from mobile_former.training.export.onnx_file import OnnxModel
from tests.classification.conftest import NAMES, save_checkpoint
from tests.classification.export.conftest import assert_same_predictions
from tests.conftest import run_module


def test_export_compares_on_the_validation_images_and_the_file_predicts_the_same(command, predictions, checkpoint):
    status, output, errors = command("classification.export", "--ckpt_path", checkpoint)
    path = checkpoint.parents[1] / "model.onnx"
    assert (status, errors) == (0, "")
    assert output.endswith(f"written: {path}\n")
    assert "mobile_former_26m on 12 images: val of colours" in output
    assert float(re.search(r"greatest difference.*?│\s+│ (\S+)", output)[1]) < 1e-5
    assert re.search(r"same class\s+│\s+│ 1\.0000", output)
    assert re.search(r"top1\s+│ (\S+)\s+│ \1 ", output)
    assert [entry.name for entry in path.parent.iterdir() if entry.is_file()] == ["model.onnx"]

    metadata = OnnxModel(path, "classification").metadata
    assert metadata["model"] == "mobile_former_26m"
    assert metadata["class_names"] == NAMES
    assert metadata["image_size"] == 64
    assert metadata["input"].startswith("float32 (1, 3, 64, 64), planes of RGB")
    assert (metadata["mean"], metadata["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

    expected = predictions("--ckpt_path", checkpoint)
    assert len({prediction["probability"] for prediction in expected}) == 5
    assert_same_predictions(predictions("--onnx", path), expected)


@pytest.mark.slow
def test_int8_is_calibrated_on_the_training_images_and_compared(
    command, checkpoint, image_folder, photographs, tmp_path
):
    status, output, errors = command(
        "classification.export", "--ckpt_path", checkpoint, "--int8", "true", "--data.root", image_folder
    )
    assert (status, errors) == (0, "")
    path = checkpoint.parents[1] / "model_int8.onnx"
    assert f"written: {path}" in output
    plain, small = map(float, re.search(r"MB\s+│\s+│ (\S+)\s+│ (\S+)", output).groups())
    assert small < plain / 2
    assert re.search(r"top1\s+│ [\d.]+\s+│ [\d.]+\s+│ [\d.]+", output)
    assert 1e-4 < float(re.search(r"greatest difference.*?│\s+│ \S+\s+│ (\S+)", output)[1]) < 0.5
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(path).graph.node}
    assert ExportedClassifier(OnnxModel(path, "classification")).class_names == NAMES


@pytest.mark.slow
def test_a_model_of_another_library_is_exported(command, predictions, image_folder, tmp_path):
    pytest.importorskip("transformers")
    checkpoint = save_checkpoint(tmp_path / "other.ckpt", image_folder, "transformers/mobilenet_v2_0.35")
    status, _, errors = command("classification.export", "--ckpt_path", checkpoint)
    assert (status, errors) == (0, "")
    assert_same_predictions(predictions("--onnx", tmp_path / "model.onnx"), predictions("--ckpt_path", checkpoint))


@pytest.mark.slow
def test_embedded_digits_replace_missing_images_but_not_for_int8(command, predictions, tmp_path):
    checkpoint = save_checkpoint(tmp_path / "lost.ckpt", tmp_path / "gone")
    status, _, errors = command("classification.export", "--ckpt_path", checkpoint, "--int8", "true")
    assert status == 1
    assert "--calibration_images" in errors
    assert str(tmp_path / "gone") in errors
    options = ("--check_images", 6, "--preprocessing", "true", "--batch_size", 4, "--image_size", 64)
    status, output, _ = command("classification.export", "--ckpt_path", checkpoint, *options)
    assert status == 0
    assert "on 6 images: embedded digits" in output
    # uint8 images of the size of the model, in a fixed batch, which five photographs do not fill.
    assert OnnxModel(tmp_path / "model.onnx", "classification").inputs == {"images": (4, 64, 64, 3)}
    assert_same_predictions(predictions("--onnx", tmp_path / "model.onnx"), predictions("--ckpt_path", checkpoint))


@pytest.mark.slow
def test_a_program_of_torch_export_gives_the_logits_of_the_checkpoint(command, checkpoint, tmp_path):
    status, output, errors = command(
        "classification.export", "--ckpt_path", checkpoint, "--output", "x.pt2", "--preprocessing", "true"
    )
    assert (status, errors) == (0, "")
    assert float(re.search(r"greatest difference.*?│\s+│ (\S+)", output)[1]) < 1e-5
    assert (tmp_path / "x.pt2").is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_executorch_program_gives_the_logits_of_the_checkpoint(checkpoint, tmp_path):
    pytest.importorskip("executorch")
    result = run_module(
        "classification.export", "--ckpt_path", str(checkpoint), "--output", "x.pte", cwd=tmp_path, timeout=800
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert float(re.search(r"greatest difference.*?│\s+│ (\S+)", result.stdout)[1]) < 1e-5


# Invalid arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output", "x.txt"), r"\.onnx, .* or \.mlpackage"),
        (("--batch_size", "0"), "--batch_size is 0"),
        (("--batch_size", "2", "--dynamic_batch", "true"), "give one of them"),
        (("--image_size", "31"), "from 32 pixels up"),
        (("--calibration_images", "."), "--int8 true"),
        (("--output", "x.pte", "--int8", "true"), "only for ONNX files"),
        (("--output", "x.pt2", "--dynamic_size", "true"), "only for ONNX files"),
        (("--output", "x.mlpackage", "--preprocessing", "true"), "takes one image and normalises it"),
        (("--output", "."), r"\.onnx, .* or \.mlpackage"),
        (("--data.root", "nowhere"), "nowhere"),
        (("--images", "nowhere/*.jpg"), "nowhere"),
        (("--output", "file/x.onnx"), "cannot write"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(command, checkpoint, tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    status, output, errors = command("classification.export", "--ckpt_path", checkpoint, *arguments)
    assert (status, output) == (1, "")
    assert re.fullmatch(f"error: .*{message}.*\n", errors)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_with_other_logits_than_the_checkpoint_is_not_written(command, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "mobile_former.deploy", lambda model: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12288, 3)).eval()
    )
    status, _, errors = command("classification.export", "--ckpt_path", checkpoint, "--output", "x.onnx")
    assert status == 1
    assert "differ from PyTorch's" in errors
    assert not list(tmp_path.iterdir())
