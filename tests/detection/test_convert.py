import json
import runpy
import sys

import pytest

from tests.conftest import run_module
from tests.detection.data.test_layouts import TRUTH, assert_same, objects, read, unpack, write_roboflow
from tests.detection.test_commands import SMALL


@pytest.fixture
def convert(monkeypatch, capsys):
    """Run the command in this process: exit status, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_module("detection.convert", run_name="__main__")
        output = capsys.readouterr()
        return end.value.code, output.out, output.err

    return run


def test_a_coco_folder_is_written(convert, tmp_path):
    root = unpack("datumaro_voc", tmp_path / "voc")
    status, out, _ = convert(root, tmp_path / "coco")
    assert status == 0
    assert out.splitlines() == [
        "layout Pascal VOC: corners count pixels from 0, as the files show",
        "train: 3 images with 3 objects",
        "val: 1 images with 2 objects",
        f"written: {tmp_path / 'coco'}/: annotations/, images/",
    ]
    for split, truth in TRUTH.items():
        assert_same(objects(read(tmp_path / "coco", split)), truth)
        assert objects(read(tmp_path / "coco", split)) == objects(read(root, split))
    images = {path.relative_to(tmp_path / "coco") for path in (tmp_path / "coco" / "images").rglob("*.*")}
    assert {path.as_posix() for path in images} == {
        "images/train/JPEGImages/a 1.jpg", "images/train/JPEGImages/b.png", "images/train/JPEGImages/none.jpg",
        "images/val/JPEGImages/c.jpg",
    }  # fmt: skip


def test_annotations_are_numbered_from_1(convert, tmp_path):
    convert(write_roboflow(tmp_path / "roboflow"), tmp_path / "coco")
    content = json.loads((tmp_path / "coco" / "annotations" / "instances_train.json").read_text())
    assert [row["id"] for row in content["annotations"]] == [1, 2, 3]


def test_a_file_without_annotations_stays_one(convert, tmp_path):
    root = unpack("datumaro_coco", tmp_path / "source")
    content = json.loads((root / "annotations" / "instances_val.json").read_text())
    del content["annotations"]
    (root / "annotations" / "instances_val.json").unlink()
    (root / "annotations" / "image_info_test-dev.json").write_text(json.dumps(content))
    (root / "images" / "val").rename(root / "images" / "test-dev")
    _, out, _ = convert(root, tmp_path / "coco")
    assert "test: 1 images, without annotations" in out
    assert not read(tmp_path / "coco", "test").annotated


def test_an_existing_folder_and_one_inside_the_data_are_refused(convert, tmp_path):
    root = write_roboflow(tmp_path / "roboflow")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    status, _, err = convert(root, tmp_path / "taken")
    assert (status, (tmp_path / "taken" / "mine.txt").read_text()) == (1, "mine")
    assert "exists already: give a new folder" in err
    status, _, err = convert(root, root / "coco")
    assert status == 1
    assert "is inside" in err
    status, _, err = convert(tmp_path / "taken", tmp_path / "coco")
    assert status == 1
    assert "no layout that is recognised" in err


@pytest.mark.slow
@pytest.mark.parametrize("export", ["datumaro_voc", "label_studio_yolo", "labelme"])
def test_an_export_is_trained_on_and_scored_by_its_folder(export, tmp_path):
    root = unpack(export, tmp_path / "my export")
    result = run_module(
        "detection.fit", "--data.root", str(root), *SMALL, "--trainer.max_epochs", "1", "--name", "x", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert "\nlayout " in result.stdout
    held_out = "label_studio" in export
    assert ("\nsplit  3 training and 1 validation images: " in result.stdout) is held_out
    folder = tmp_path / "runs" / "detection" / "x"
    assert (folder / "split.json").is_file() is held_out
    final = json.loads((folder / "metrics.json").read_text())
    best = ("--ckpt_path", str(folder / "checkpoints" / "best.ckpt"))
    test = ("detection.test", *best, "--data.split", "val", "--output")
    assert run_module(*test, "own", cwd=tmp_path).returncode == 0
    assert run_module("detection.convert", str(root), "coco", cwd=tmp_path).returncode == 0
    assert run_module(*test, "other", "--data.root", "coco", cwd=tmp_path).returncode == 0
    own, other = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("own", "other"))
    assert own["test/AP"] == pytest.approx(final["val/AP"], abs=1e-6)
    if not held_out:  # the converted folder has other names, so none of its images are held out
        assert {name: own[name] for name in own if name.startswith("test/")} == pytest.approx(
            {name: other[name] for name in other if name.startswith("test/")}
        )
