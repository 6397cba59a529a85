"""Export as a user types it, and prediction from what it wrote."""

import json
import re
import runpy
import sys

import cv2
import numpy as np
import onnx
import pytest
import torch

from classification.data.module import ClassificationData
from classification.data.transforms import eval_transform
from classification.export.exported_classifier import ExportedClassifier, resize_and_crop
from classification.module import ClassificationModule
from mobile_former.training.export.onnx_file import OnnxModel
from tests.conftest import run_module

NAMES = ["blue", "green", "red"]


def save_checkpoint(path, root, name="mobile_former_26m"):
    """As fit writes one, of weights drawn so that images get different probabilities."""
    torch.manual_seed(0)
    module = ClassificationModule(NAMES, name)
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "datamodule_hyper_parameters": dict(ClassificationData(root=str(root), image_size=64).hparams),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(image_folder, tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints" / "best.ckpt", image_folder)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Images of several sizes, none of them the model's."""
    folder = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for number, (height, width) in enumerate(((90, 120), (151, 77), (40, 300), (73, 74), (33, 33))):
        small = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))
    return folder


@pytest.fixture
def command(monkeypatch, capfd, tmp_path):
    """Run a command in this process, in a folder of its own; returns its status and what it wrote."""

    def call(module, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_module(module, run_name="__main__", alter_sys=False)
        output = capfd.readouterr()
        assert "Traceback" not in output.err
        return end.value.code, output.out, output.err

    return call


@pytest.fixture
def predictions(command, photographs, tmp_path):
    """What predict tells of the photographs, from a checkpoint or a file."""

    def predict(*arguments):
        status, _, errors = command(
            "classification.predict", photographs, "--output", "x.json", "--batch_size", 3, *arguments
        )
        assert (status, errors) == (0, "")
        return json.loads((tmp_path / "x.json").read_text())

    return predict


def assert_same_predictions(found, expected, tolerance=2e-6):
    assert len(found) == len(expected) == 5
    for one, other in zip(found, expected, strict=True):
        assert (one["path"], one["class"]) == (other["path"], other["class"])
        probabilities = [{top["class"]: top["probability"] for top in each["top_k"]} for each in (one, other)]
        assert probabilities[0] == pytest.approx(probabilities[1], abs=tolerance)


def test_export_checks_on_the_runs_validation_images_and_predict_from_the_file_tells_the_same(
    command, predictions, checkpoint
):
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


def test_the_graphs_own_preparation_is_evaluations(photographs):
    transform = eval_transform(64, 0.875)
    sides = np.random.default_rng(0).integers(33, 200, (20, 2)).tolist()
    for height, width in [(64, 64), (73, 73), (73, 300), *sides]:
        image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        found = resize_and_crop(torch.from_numpy(image).permute(2, 0, 1)[None], 64, 0.875)
        assert np.array_equal(found[0].permute(1, 2, 0).numpy(), transform(image=image)["image"]), (height, width)


@pytest.mark.slow
def test_with_the_preparation_inside_the_file_takes_images_as_they_are(
    command, predictions, checkpoint, photographs, tmp_path
):
    status, output, errors = command(
        "classification.export", "--ckpt_path", checkpoint, "--preprocessing", "true", "--dynamic_size", "true",
        "--dynamic_batch", "true", "--output", "new/x.onnx", "--images", photographs,
    )  # fmt: skip
    assert (status, errors) == (0, "")
    assert "on 5 images: the images given" in output
    assert "top1" not in output
    assert float(re.search(r"where nothing is resized.*?│\s+│ (\S+)", output)[1]) < 1e-5
    model = OnnxModel(tmp_path / "new" / "x.onnx", "classification")
    assert model.inputs == {"images": ("batch", "height", "width", 3)}
    assert model.metadata["input"] == "uint8 (batch, height, width, 3), RGB of 0..255"
    expected = predictions("--ckpt_path", checkpoint)
    # ONNX's Resize rounds some values to the neighbouring level.
    assert_same_predictions(predictions("--onnx", tmp_path / "new" / "x.onnx"), expected, tolerance=5e-3)


@pytest.mark.slow
def test_a_dynamic_file_takes_other_batches_and_sizes(command, predictions, checkpoint, tmp_path):
    arguments = ("--dynamic_batch", "true", "--dynamic_size", "true", "--output", "x.onnx")
    assert command("classification.export", "--ckpt_path", checkpoint, *arguments)[0] == 0
    model = OnnxModel(tmp_path / "x.onnx", "classification")
    assert model.inputs == {"images": ("batch", 3, "height", "width")}
    module = ClassificationModule(NAMES, "mobile_former_26m").eval()
    module.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    for shape in ((1, 3, 32, 32), (3, 3, 65, 97), (2, 3, 128, 33)):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = module(images).numpy()
        assert np.abs(model(images.numpy())["logits"] - expected).max() < 1e-5 * np.abs(expected).max()
    assert_same_predictions(predictions("--onnx", tmp_path / "x.onnx"), predictions("--ckpt_path", checkpoint))


@pytest.mark.slow
def test_int8_is_calibrated_on_the_training_images_and_tells_what_it_loses(
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
def test_another_librarys_model_is_exported_alike(command, predictions, image_folder, tmp_path):
    pytest.importorskip("transformers")
    checkpoint = save_checkpoint(tmp_path / "other.ckpt", image_folder, "transformers/mobilenet_v2_0.35")
    status, _, errors = command("classification.export", "--ckpt_path", checkpoint)
    assert (status, errors) == (0, "")
    assert_same_predictions(predictions("--onnx", tmp_path / "model.onnx"), predictions("--ckpt_path", checkpoint))


@pytest.mark.slow
def test_without_the_runs_images_embedded_digits_stand_in_but_not_for_int8(command, predictions, tmp_path):
    checkpoint = save_checkpoint(tmp_path / "lost.ckpt", tmp_path / "gone")
    status, _, errors = command("classification.export", "--ckpt_path", checkpoint, "--int8", "true")
    assert status == 1
    assert "--calibration_images" in errors
    assert str(tmp_path / "gone") in errors
    options = ("--check_images", 6, "--preprocessing", "true", "--batch_size", 4, "--image_size", 64)
    status, output, _ = command("classification.export", "--ckpt_path", checkpoint, *options)
    assert status == 0
    assert "on 6 images: embedded digits" in output
    # Bytes of the model's size in a fixed batch, which five photographs do not fill.
    assert OnnxModel(tmp_path / "model.onnx", "classification").inputs == {"images": (4, 64, 64, 3)}
    assert_same_predictions(predictions("--onnx", tmp_path / "model.onnx"), predictions("--ckpt_path", checkpoint))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_program_for_executorch_gives_what_the_checkpoint_gives(checkpoint, tmp_path):
    pytest.importorskip("executorch")
    result = run_module(
        "classification.export", "--ckpt_path", str(checkpoint), "--output", "x.pte", cwd=tmp_path, timeout=800
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert float(re.search(r"greatest difference.*?│\s+│ (\S+)", result.stdout)[1]) < 1e-5


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output", "x.txt"), r"\.onnx or \.pte"),
        (("--batch_size", "0"), "--batch_size is 0"),
        (("--batch_size", "2", "--dynamic_batch", "true"), "give one of the two"),
        (("--image_size", "31"), "from 32 pixels up"),
        (("--calibration_images", "."), "--int8 true"),
        (("--output", "x.pte", "--int8", "true"), "for ONNX files"),
        (("--output", "."), r"\.onnx or \.pte"),
        (("--data.root", "nowhere"), "nowhere"),
        (("--images", "nowhere/*.jpg"), "nowhere"),
        (("--output", "file/x.onnx"), "cannot write"),
    ],
)
def test_mistakes_are_told_in_a_line(command, checkpoint, tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    status, output, errors = command("classification.export", "--ckpt_path", checkpoint, *arguments)
    assert (status, output) == (1, "")
    assert re.fullmatch(f"error: .*{message}.*\n", errors)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_whose_logits_are_not_the_checkpoints_is_not_written(command, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "mobile_former.deploy", lambda model: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12288, 3)).eval()
    )
    status, _, errors = command("classification.export", "--ckpt_path", checkpoint, "--output", "x.onnx")
    assert status == 1
    assert "differ from PyTorch's" in errors
    assert not list(tmp_path.iterdir())


def test_predict_takes_either_a_checkpoint_or_a_file(command, checkpoint, photographs, tmp_path):
    for arguments in ((), ("--ckpt_path", checkpoint, "--onnx", "x.onnx")):
        status, _, errors = command("classification.predict", photographs, *arguments)
        assert status == 1
        assert "either --ckpt_path" in errors
    for content in (b"", b"no ONNX"):
        (tmp_path / "x.onnx").write_bytes(content)
        status, _, errors = command("classification.predict", photographs, "--onnx", "x.onnx")
        assert status == 1
        assert "x.onnx is no ONNX file, or damaged" in errors
