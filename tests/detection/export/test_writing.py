"""``python -m detection.export`` and ``predict --onnx`` as a user types them."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detection.data.module import DetectionData
from detection.data.scenes import write_coco
from detection.export.exported_detector import ExportedDetector
from detection.export.writing import differences, within_tolerance, worst_difference
from detection.module import DetectionModule
from mobile_former.training.export.onnx_file import OnnxModel
from tests.conftest import run_module

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

ALL = {"focal": True, "refine_boxes": True, "dense_head": True, "choose_queries": True}


def save_checkpoint(path: Path, data: DetectionData, names: list[str], name: str, **options) -> Path:
    """What ``detection.fit`` would leave of a model whose weights make it tell something of every image."""
    torch.manual_seed(0)
    module = DetectionModule(names, name=name, **options)
    if name.startswith("retinanet"):
        torch.nn.init.normal_(module.model.classify.weight, std=0.3)
        torch.nn.init.normal_(module.model.box.weight, std=0.1)
        torch.nn.init.constant_(module.model.classify.bias, -2)
    with torch.no_grad():  # BatchNorm's statistics are those of its inputs
        for _ in range(20):
            module.train()(torch.randn(2, 3, 96, 128))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "state_dict": module.state_dict(),
            "hyper_parameters": dict(module.hparams),
            "datamodule_hyper_parameters": dict(data.hparams),
        },
        path,
    )
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Scenes, and parts of them in other shapes: wide, high, small, and one grey area without anything."""
    root = tmp_path_factory.mktemp("images")
    write_coco(root, "val", 4)
    first, *_ = sorted((root / "images").iterdir())
    scene = cv2.imread(str(first))
    cv2.imwrite(str(root / "images" / "wide.png"), cv2.resize(scene, (333, 97)))
    cv2.imwrite(str(root / "images" / "high.png"), cv2.resize(scene, (90, 301)))
    cv2.imwrite(str(root / "images" / "small.png"), scene[:33, :40])
    cv2.imwrite(str(root / "images" / "grey.png"), np.full((130, 170, 3), 128, np.uint8))
    (root / "square").mkdir()
    for path in (root / "images").glob("val_*.png"):
        shutil.copy(path, root / "square")
    return root / "images"


def test_what_differs_counts_whatever_its_order():
    boxes = torch.tensor([[0, 0, 10, 10], [20, 20, 40, 40.0]])
    expected = {"boxes": boxes, "scores": torch.tensor([0.5, 0.50001]), "labels": torch.tensor([0, 1])}
    swapped = {name: values.flip(0) for name, values in expected.items()}
    assert differences(swapped, expected, 100) == (0, 0)
    moved = expected | {"boxes": boxes + 0.25, "scores": torch.tensor([0.5, 0.6])}
    box, score = differences(moved, expected, 100)
    assert (box, score) == (0.25, pytest.approx(0.09999, abs=1e-6))
    other = expected | {"labels": torch.tensor([0, 2])}
    assert differences(other, expected, 100)[1] > 0.4
    fewer = {name: values[:1] for name, values in expected.items()}
    assert differences(fewer, expected, 100)[1] == pytest.approx(0.45, abs=1e-4)
    assert differences(fewer, expected | {"boxes": boxes * torch.nan}, 100) == (np.inf, np.inf)
    nothing = {name: values[:0] for name, values in expected.items()}
    assert differences(fewer, expected, 1)[1] == pytest.approx(1e-5, abs=1e-6)  # the full list ends at 0.5
    assert differences(nothing, nothing, 100) == (0, 0)
    low = expected | {"scores": expected["scores"] * 0.01}  # not told of where lists end before
    assert differences(low, nothing, 100) == (0, 0)
    assert differences(low, nothing, 100, complete=True)[1] == pytest.approx(low["scores"].max().item())
    assert differences(low, low | {"labels": torch.tensor([0, 2])}, 100, complete=True)[1] < 1e-6
    assert differences(expected, other, 100, complete=True)[1] > 0.4


def test_one_of_several_images_may_differ_if_queries_are_chosen():
    same, other = (0.01, 1e-6), (300.0, 0.1)
    assert worst_difference([same] * 7 + [other], allow_one=True) == same
    for found, allow_one in (
        ([same] * 7 + [other], False),
        ([same] * 6 + [other] * 2, True),
        ([same] * 2 + [other], True),
        ([same] * 7 + [(np.inf, np.inf)] * 2, True),
    ):
        assert not within_tolerance(worst_difference(found, allow_one=allow_one))
    assert not within_tolerance((np.nan, 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image_size", "[100, 128]"], "multiples of 32"),
        (["--batch_size", "2", "--dynamic_batch", "true"], "give one of them"),
        (["--calibration_images", "x"], "--int8 true"),
        (["--output", "model.pt"], "ends in .onnx"),
        (["--output", "x.mlpackage"], "--decode false"),
    ],
)
def test_options_that_do_not_fit_are_told_before_the_work(command, arguments, message):
    status, error = command("detection.export", "--ckpt_path", "none.ckpt", *arguments)
    assert status == 1
    assert message in error


def test_predict_wants_either_a_checkpoint_or_a_file(command, images):
    for given in ([], ["--ckpt_path", "a.ckpt", "--onnx", "a.onnx"]):
        status, error = command("detection.predict", images, *given)
        assert status == 1
        assert "either --ckpt_path" in error
    status, error = command("detection.predict", images, "--onnx", "a.onnx")
    assert status == 1
    assert "no ONNX file a.onnx" in error


@pytest.fixture
def command(monkeypatch, capfd, tmp_path):
    """Run a command in this process: its status, and what it told of errors."""

    def run(module, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.delitem(sys.modules, module, raising=False)  # or Python warns that it runs it a second time
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_module(module, run_name="__main__", alter_sys=False)
        error = capfd.readouterr().err
        assert "Traceback" not in error
        return end.value.code, error

    return run


def predictions(images, *arguments, cwd) -> dict:
    """What ``detection.predict`` writes of a folder's images."""
    result = run_module(
        "detection.predict", str(images), *arguments, "--output", "out.json", "--score_threshold", "0", cwd=cwd
    )
    assert result.returncode == 0, result.stderr
    return json.loads((cwd / "out.json").read_text(encoding="utf-8"))


def assert_same_predictions(found: dict, expected: dict) -> None:
    assert (found["images"], found["categories"]) == (expected["images"], expected["categories"])
    for image in expected["images"]:
        lists = []
        for content in (found, expected):
            rows = [row for row in content["annotations"] if row["image_id"] == image["id"]]
            lists.append(
                {
                    "boxes": torch.tensor([row["bbox"] for row in rows]).reshape(-1, 4),
                    "scores": torch.tensor([row["score"] for row in rows]),
                    "labels": torch.tensor([row["category_id"] for row in rows]),
                }
            )
        box, score = differences(*lists, 100)
        assert box <= 0.1
        assert score <= 1e-4


FORMS = {
    "all sizes open": ("retinanet_mf_26m", {}, ["--dynamic_batch", "true"]),
    "fixed and raw": (
        "e2e_mf_26m",
        ALL,
        ["--image_size", "[128, 160]", "--batch_size", "2", "--preprocessing", "true", "--decode", "false"],
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("form", FORMS)
def test_a_file_is_checked_on_real_images_and_predicts_what_its_checkpoint_does(form, images, tmp_path):
    name, model_options, arguments = FORMS[form]
    data = DetectionData("scenes")
    checkpoint = save_checkpoint(
        tmp_path / "run" / "checkpoints" / "best.ckpt", data, data.class_names, name, **model_options
    )
    result = run_module(
        "detection.export", "--ckpt_path", str(checkpoint), "--check_images", "6", *arguments, cwd=tmp_path, timeout=600
    )
    assert result.returncode == 0, result.stderr
    assert "largest difference of boxes" in result.stdout
    written = tmp_path / "run" / "model.onnx"
    assert not list(written.parent.glob(".export*"))
    model = OnnxModel(written, "detection")
    assert model.metadata["class_names"] == list(data.class_names)
    assert model.metadata["input"]
    assert ExportedDetector(model).decoded == ("--decode" not in arguments)
    if "--image_size" in arguments:
        images = images.parent / "square"  # which fit, and are not resized
    expected = predictions(images, "--ckpt_path", str(checkpoint), cwd=tmp_path)
    assert_same_predictions(predictions(images, "--onnx", str(written), cwd=tmp_path), expected)
    assert any(expected["annotations"])
