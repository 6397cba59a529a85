"""``python -m detection.predict`` as a user types it."""

import csv
import json
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from detection import create_detector
from detection.data.module import DetectionData
from detection.models.e2e_mf import E2EMobileFormer
from detection.module import DetectionModule
from detection.predict import load_detector
from detection.predict import predict as predict_files
from tests.conftest import run_module
from tests.mobile_former.training.prediction.test_video import read_frames, write_video
from tests.test_start import TRAINING, run

NAMES = ["red $5 & $x^2$", "[green], 猫", "blue"]
# Height and width of an image, its rectangle's colour, and its box, xyxy in pixels
RECTANGLES = [
    ((200, 300), 0, (40, 60, 200, 180)),
    ((300, 150), 2, (0, 100, 75, 300)),
    ((97, 211), 1, (120, 7, 211, 50)),
]
STRONG, WEAK = np.exp(4) / (np.exp(4) + 3), 0.5  # scores of what RectangleFinder detects


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """What ``detection.fit`` would leave of an untrained model, in images of 128 pixels."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "best.ckpt"
    module = DetectionModule(NAMES, name="e2e_mf_52m")
    torch.save(
        {
            "state_dict": module.state_dict(),
            "hyper_parameters": dict(module.hparams),
            "datamodule_hyper_parameters": dict(DetectionData("scenes").hparams),
        },
        path,
    )
    return path


def write_rectangle(path, size, colour, box):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.zeros((*size, 3), np.uint8)
    left, top, right, bottom = box
    image[top:bottom, left:right, colour] = 255
    Image.fromarray(image).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the rectangles, the last one in a folder of its own under the name of the first."""
    root = tmp_path_factory.mktemp("images") / "bilder ä"
    for name, rectangle in zip(("a.png", "b.png", "deeper/a.png"), RECTANGLES, strict=True):
        write_rectangle(root / name, *rectangle)
    return root


def find_rectangle(module, images, padding_mask=None):
    """In place of the model: detects the bright rectangle, and with less confidence all of the image as red.

    Knows images as the model gets them: normalised, resized, padded.
    """
    assert abs(images.mean()) < 3  # bytes would be far beyond
    if padding_mask is None:
        padding_mask = torch.zeros_like(images[:, 0], dtype=torch.bool)
    boxes, logits = [], []
    for image, mask in zip(images, padding_mask, strict=True):
        height, width = (~mask).any(1).sum().item(), (~mask).any(0).sum().item()
        bright = image[:, :height, :width] > 0
        colour = bright.sum((1, 2)).argmax().item()
        rows, columns = bright[colour].any(1).nonzero(), bright[colour].any(0).nonzero()
        top, bottom = rows.min().item() / height, (rows.max().item() + 1) / height
        left, right = columns.min().item() / width, (columns.max().item() + 1) / width
        boxes.append([[0.5, 0.5, 1, 1], [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]])
        strong = [0.0] * 4
        strong[colour] = 4
        logits.append([[np.log(3), 0, 0, 0], strong])
    return {"logits": torch.tensor(logits), "boxes": torch.tensor(boxes)}


@pytest.fixture
def predict(monkeypatch, capfd, tmp_path, checkpoint):
    """Run the command in this process, in a folder of its own, with a model that finds rectangles."""
    monkeypatch.setattr(E2EMobileFormer, "forward", find_rectangle)

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        arguments = [*arguments, *(() if "--ckpt_path" in arguments else ("--ckpt_path", checkpoint))]
        monkeypatch.setattr(sys, "argv", ["detection.predict", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_module("detection.predict", run_name="__main__", alter_sys=False)
        output = capfd.readouterr()
        assert "Traceback" not in output.err
        return SimpleNamespace(status=end.value.code, out=output.out, err=output.err)

    return run


def read_csv(path):
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# What is detected


def test_boxes_are_in_the_pixels_of_each_image_whatever_its_shape_and_the_batch(predict, folder, tmp_path):
    for batch_size in ("1", "2", "8"):
        result = predict(folder, "--output", "out.json", "--batch_size", batch_size)
        assert (result.status, result.err) == (0, "")
        content = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
        assert content.keys() == {"images", "annotations", "categories"}
        assert content["categories"] == [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)]
        paths = [str(folder / name) for name in ("a.png", "b.png", "deeper/a.png")]
        for image, path, ((height, width), colour, box) in zip(content["images"], paths, RECTANGLES, strict=True):
            assert image == {"id": image["id"], "file_name": path, "width": width, "height": height}
            strong, weak = (row for row in content["annotations"] if row["image_id"] == image["id"])
            assert strong.keys() == weak.keys() == {
                "id", "image_id", "category_id", "bbox", "area", "iscrowd", "score",
            }  # fmt: skip
            assert (strong["category_id"], weak["category_id"]) == (colour + 1, 1)
            assert strong["score"] == pytest.approx(STRONG, abs=1e-5)
            assert weak["score"] == pytest.approx(WEAK, abs=1e-5)
            left, top, right, bottom = box
            # A pixel of the image that the model sees, at 128 pixels of its shorter side
            pixel = min(height, width) / 128 + 0.1
            assert strong["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=2 * pixel)
            assert weak["bbox"] == pytest.approx([0, 0, width, height], abs=0.01)


def test_the_command_agrees_with_the_model_called_by_hand_wherever_its_checkpoint_lies(checkpoint, tmp_path):
    moved = tmp_path / "elsewhere" / "model.ckpt"
    moved.parent.mkdir()
    shutil.copy(checkpoint, moved)
    image = np.random.default_rng(0).integers(0, 256, (9, 15, 3), dtype=np.uint8)
    image = Image.fromarray(image).resize((150, 90), Image.Resampling.BICUBIC)
    name = f"{'long ' * 30}name.png"
    image.save(tmp_path / name)
    result = run_module(
        "detection.predict", name, "--ckpt_path", "elsewhere/model.ckpt", "--output", "new/out.json",
        "--score_threshold", "0", cwd=tmp_path,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert name in result.stdout  # in one piece, though no terminal is as wide
    content = json.loads((tmp_path / "new" / "out.json").read_text(encoding="utf-8"))

    detector = create_detector("e2e_mf_52m", num_classes=3)
    state = torch.load(checkpoint)["state_dict"]
    detector.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    # 90 pixels become 128; 150 become 213, padded to 224.
    planes = np.zeros((1, 3, 128, 224), np.float32)
    seen = np.asarray(image.resize((213, 128), Image.Resampling.BILINEAR)) / 255
    planes[0, :, :, :213] = ((seen - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)
    padding = torch.zeros((1, 128, 224), dtype=torch.bool)
    padding[..., 213:] = True
    with torch.no_grad():
        boxes = detector.eval()(torch.from_numpy(planes), padding)["boxes"][0].numpy() * [150, 90, 150, 90]
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    corners = corners.clip(0, [150, 90, 150, 90])
    found = np.array([row["bbox"] for row in content["annotations"]])
    found[:, 2:] += found[:, :2]
    assert found.shape == corners.shape
    distances = np.abs(found[:, None] - corners).max(-1)  # an untrained model's order is a matter of rounding
    assert distances.min(0).max() < 1
    assert distances.min(1).max() < 1


@pytest.mark.parametrize(("threshold", "scores"), [("0", 2), ("0.49", 2), ("0.51", 1), ("0.95", 0), (None, 2)])
def test_only_detections_from_the_threshold_on_are_told(threshold, scores, predict, folder):
    given = () if threshold is None else ("--score_threshold", threshold)
    result = predict(folder / "a.png", "--output", "out.csv", "--drawings", "drawn", *given)
    assert result.status == 0
    assert len(read_csv("out.csv")) == scores
    row = next(line for line in result.out.splitlines() if "a.png" in line)
    assert f" {scores} " in row
    assert (f"{NAMES[0]} {STRONG:.3f}" in row) == (scores > 0)
    assert ("0.500" in row) == (scores == 2)
    plain = Image.open(folder / "a.png").resize((640, 427), Image.Resampling.LANCZOS)
    assert (Image.open("drawn/a.png").tobytes() != plain.tobytes()) == (scores > 0)


# What is written


def test_csv_has_a_row_for_each_detection(predict, folder):
    assert predict(folder, "--output", "out.csv").status == 0
    rows = read_csv("out.csv")
    assert list(rows[0]) == ["path", "class", "score", "left", "top", "right", "bottom", "error"]
    assert len(rows) == 6
    for row, (size, colour, box) in zip(rows[::2], RECTANGLES, strict=True):
        assert row["class"] == NAMES[colour]
        assert float(row["score"]) == pytest.approx(STRONG, abs=1e-5)
        assert [float(row[side]) for side in ("left", "top", "right", "bottom")] == pytest.approx(
            box, abs=2 * min(size) / 128
        )
        assert row["error"] == ""


def test_files_folders_and_globs_are_taken_once_each_in_the_order_given(predict, folder):
    result = predict(folder / "b.png", folder / "*.png", folder / "deeper", folder, "--output", "out.json")
    assert result.status == 0
    images = json.loads(Path("out.json").read_text(encoding="utf-8"))["images"]
    assert [image["file_name"] for image in images] == [
        str(folder / name) for name in ("b.png", "a.png", "deeper/a.png")
    ]


def test_drawings_have_names_of_their_own_and_their_images_aspect(predict, folder, tmp_path):
    for name in ("a.jpg", "a.tif"):
        Image.open(folder / "b.png").save(tmp_path / name)
    result = predict(folder, "a.jpg", "a.tif", "--drawings", "new/drawn")
    assert result.status == 0
    assert "new/drawn" in result.out
    drawn = {path.name: Image.open(path) for path in Path("new/drawn").iterdir()}
    sizes = {
        "a.png": (640, 427),
        "b.png": (320, 640),
        "deeper-a.png": (640, 294),
        "a.jpg": (320, 640),
        "a.tif.png": (320, 640),
    }
    assert {name: picture.size for name, picture in drawn.items()} == sizes
    assert {picture.format for name, picture in drawn.items() if name.endswith(".png")} == {"PNG"}
    assert drawn["a.jpg"].format == "JPEG"


def test_drawings_never_replace_an_image(predict, folder, tmp_path):
    shutil.copy(folder / "a.png", tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    result = predict("a.png", "--drawings", ".")
    assert result.status == 1
    assert "would replace the image a.png" in result.err
    assert (tmp_path / "a.png").read_bytes() == before


def test_an_unreadable_image_leaves_the_others_their_detections(predict, folder, tmp_path):
    root = tmp_path / "images"
    shutil.copytree(folder, root)
    (root / "aa.jpg").write_bytes(b"\xff\xd8 no more of it")
    (root / "ab.png").symlink_to("nowhere")
    result = predict("images", "--output", "out.json", "--drawings", "drawn")
    assert result.status == 1
    assert "2 of 5 images" in result.err
    assert "images/aa.jpg" in result.err
    assert "images/ab.png" in result.err
    content = json.loads(Path("out.json").read_text(encoding="utf-8"))
    assert [image["file_name"] for image in content["images"]] == [
        f"images/{name}" for name in ("a.png", "b.png", "deeper/a.png")
    ]
    assert {row["image_id"] for row in content["annotations"]} == {image["id"] for image in content["images"]}
    assert [error["file_name"] for error in content["errors"]] == ["images/aa.jpg", "images/ab.png"]
    assert len(list(Path("drawn").iterdir())) == 3
    assert predict("images", "--output", "out.csv").status == 1
    assert [row["path"] for row in read_csv("out.csv") if row["error"]] == ["images/aa.jpg", "images/ab.png"]
    assert sum(bool(row["class"]) for row in read_csv("out.csv")) == 6


def test_images_that_are_all_unreadable_are_told(predict, tmp_path):
    (tmp_path / "x.png").touch()
    result = predict("x.png", "--output", "out.json", "--drawings", "drawn")
    assert result.status == 1
    assert "x.png: an empty file" in result.err
    assert json.loads(Path("out.json").read_text())["annotations"] == []


def test_a_path_that_is_no_text_is_written_all_the_same(predict, folder, tmp_path):
    path = tmp_path / "caf\udce9.png"  # Latin-1 on a disk in UTF-8
    shutil.copy(folder / "a.png", path)
    for output in ("out.json", "out.csv"):
        assert predict(tmp_path, "--output", output).status == 0
        Path(output).read_bytes().decode("utf-8")
    assert json.loads(Path("out.json").read_text())["images"][0]["file_name"] == str(path)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("nowhere/*.jpg",), "nowhere/*.jpg"),
        (("empty",), "no images"),
        (("a.png", "--output", "out.txt"), ".json or .csv"),
        (("a.png", "--score_threshold", "1.5"), "--score_threshold is 1.5"),
        (("a.png", "--score_threshold", "-0.1"), "--score_threshold is -0.1"),
        (("a.png", "--batch_size", "0"), "--batch_size"),
        (("a.png", "--output", "a.png/out.json"), "cannot write a.png/out.json"),
        (("a.png", "--output", "folder.json"), "cannot write folder.json"),
        (("a.png", "--drawings", "a.png"), "cannot write a.png"),
        (("a.png", "--ckpt_path", "nowhere.ckpt"), "nowhere.ckpt"),
        (("a.png", "--ckpt_path", "a.png"), "a.png"),
    ],
)
def test_what_cannot_be_used_is_told_before_any_work(arguments, expected, predict, folder, tmp_path):
    shutil.copy(folder / "a.png", tmp_path / "a.png")
    for name in ("empty", "folder.json"):
        (tmp_path / name).mkdir()
    result = predict(*arguments)
    assert result.status == 1
    assert result.err.startswith("error: ")
    assert expected in result.err
    assert result.out == ""


def test_a_misspelt_option_is_told_with_the_nearest(predict):
    result = predict("a.png", "--threshold", "0.5")
    assert result.status == 2
    assert "--score_threshold" in result.err


def test_results_use_the_category_ids_of_the_data_and_load_as_a_coco_data_set(predict, folder, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["category_ids"] = [7, 3, 90]
    torch.save(content, tmp_path / "ids.ckpt")
    result = predict(folder, "--output", "out.json", "--ckpt_path", tmp_path / "ids.ckpt")
    assert (result.status, result.err) == (0, "")
    coco = COCO(str(tmp_path / "out.json"))
    assert coco.getCatIds() == [7, 3, 90]
    found = {row["category_id"] for row in coco.loadAnns(coco.getAnnIds())}
    assert found == {[7, 3, 90][colour] for _, colour, _ in RECTANGLES}
    assert len(coco.loadRes(coco.dataset["annotations"]).getAnnIds()) == len(coco.getAnnIds())


def test_predict_loads_no_library_of_training(checkpoint, folder, tmp_path):
    status, loaded, output = run("detection.predict", folder / "a.png", "--ckpt_path", checkpoint, cwd=tmp_path)
    assert status == 0, output
    assert "torch" in loaded
    assert not loaded & (TRAINING | {"torch._dynamo"})


def test_the_inference_form_has_the_boxes_of_the_model(checkpoint, folder):
    paths = sorted(folder.rglob("*.png"))
    plain, fast = (
        predict_files(load_detector(checkpoint, inference_form=form), paths, score_threshold=0)
        for form in (False, True)
    )
    for expected, found in zip(plain, fast, strict=True):
        boxes, others = (np.array([each["box"] for each in one["detections"]]) for one in (expected, found))
        scores, other_scores = (np.array([each["score"] for each in one["detections"]]) for one in (expected, found))
        assert np.abs(boxes[:, None] - others).max(-1).min(1).max() < 0.05  # equal scores come in any order
        np.testing.assert_allclose(other_scores, scores, atol=1e-4)


def test_the_objects_in_the_frames_of_a_video_are_found_and_drawn(predict, folder, tmp_path):
    frames = [np.asarray(Image.open(folder / "b.png"))[..., ::-1]] * 5
    write_video(tmp_path / "clip.mp4", frames, rate=25)
    result = predict("clip.mp4", folder / "b.png", "--output", "out.json", "--drawings", "drawn", "--batch_size", "2")
    assert (result.status, result.err) == (0, "")
    assert "6 frames in" in result.out
    content = json.loads((tmp_path / "out.json").read_text())
    assert [image.get("frame") for image in content["images"]] == [0, 1, 2, 3, 4, None]
    assert [image.get("seconds") for image in content["images"][:3]] == pytest.approx([0, 0.04, 0.08])
    strong = [row for row in content["annotations"] if row["score"] > 0.9]
    for row in strong:  # the frames have the box of the image, up to the losses of the video
        assert row["bbox"] == pytest.approx([0, 100, 75, 200], abs=12)
    assert len(strong) == 6
    drawn = read_frames(tmp_path / "drawn" / "clip.mp4")
    assert len(drawn) == 5
    assert drawn[0].shape == (640, 320, 3)
    assert predict("clip.mp4", "--max_frames", "2", "--output", "out.csv").status == 0
    assert {row["frame"] for row in read_csv("out.csv")} == {"0", "1"}
