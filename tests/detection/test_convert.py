import json
from functools import partial

import pytest

from tests.detection.data.test_layouts import NAMES, TRUTH, assert_same, objects, read, unpack, write_roboflow
from tests.detection.test_commands import SMALL


@pytest.fixture
def convert(call):
    """Run the command in this process."""
    return partial(call, "detection.convert")


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


def as_cvat(root):
    for split, name in (("train", "Train"), ("val", "Validation")):
        (root / "annotations" / f"instances_{split}.json").rename(root / "annotations" / f"instances_{name}.json")
        (root / "images" / split).rename(root / "images" / name)


def as_fiftyone(root):
    for split in ("train", "val"):
        (root / split).mkdir()
        (root / "images" / split).rename(root / split / "data")
        (root / "annotations" / f"instances_{split}.json").rename(root / split / "labels.json")


def as_roboflow(root):
    for path in root.glob("*/_annotations.coco.json"):
        content = json.loads(path.read_text())
        content["categories"].insert(0, {"id": 0, "name": "cells", "supercategory": "none"})
        for row in content["images"] + content["annotations"]:
            row["id"] -= 1
        for row in content["annotations"]:
            row["image_id"] -= 1
        path.write_text(json.dumps(content))
    (root / "val").rename(root / "valid")


def as_polygons(root):
    for path in root.glob("labels/*/*.txt"):
        rows = [[float(word) for word in line.split()] for line in path.read_text().splitlines()]
        boxes = [(int(kind), x - w / 2, y - h / 2, x + w / 2, y + h / 2) for kind, x, y, w, h in rows]
        path.write_text("".join(f"{kind} {x} {y} {z} {y} {z} {v} {x} {v}\n" for kind, x, y, z, v in boxes))


def with_crowd(root):
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][-1]["iscrowd"] = 1
    path.write_text(json.dumps(content))


def with_difficult(root):
    path = root / "Annotations" / "b.xml"
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1"))


def as_exported(root):
    """Change nothing."""


# Further data sets: the export from which each is made, and the change.
CHANGED = {
    "cvat": ("datumaro_coco", as_cvat),
    "fiftyone": ("datumaro_coco", as_fiftyone),
    "roboflow": ("supervision_coco", as_roboflow),
    "yolo_polygons": ("ultralytics_yolo", as_polygons),
    "coco_crowd": ("datumaro_coco", with_crowd),
    "voc_difficult": ("datumaro_voc", with_difficult),
}
# The COCO version of a data set, if it is not datumaro_coco: for images without splits, or with an ignored object.
# The converter for label_studio_voc cuts decimals, so some of its boxes differ by a pixel.
COCO_VERSIONS = {"label_studio_yolo": "label_studio_coco", "voc_difficult": "coco_crowd"}
OTHERS = {*COCO_VERSIONS.values(), "label_studio_voc"}


@pytest.mark.slow
def test_each_format_is_trained_on_and_has_the_ap_of_its_coco_version(call, tmp_path):
    def work(*arguments):
        result = call(*arguments)
        assert result.status == 0, f"{arguments}: {result.err}"
        return result.out

    for name in [*NAMES, *CHANGED]:
        export, change = CHANGED.get(name, (name, as_exported))
        change(unpack(export, tmp_path / name))
    work("detection.convert", tmp_path / "datumaro_voc", tmp_path / "converted")
    long = ("--trainer.max_epochs", "60", "--model.learning_rate", "1e-3", "--trainer.check_val_every_n_epoch", "60")
    work(
        "detection.fit", "--data.root", tmp_path / "datumaro_coco", *SMALL, "--data.flip", "0", *long, "--name", "long"
    )
    best = tmp_path / "runs" / "detection" / "long" / "checkpoints" / "best.ckpt"
    scores = {}
    for name in [*NAMES, *CHANGED, "converted"]:
        root = ("--data.root", tmp_path / name)
        short = ("--trainer.max_epochs", "1", "--trainer.logger", "false", "--name", f"short {name}")
        out = work("detection.fit", *root, *SMALL, *short)
        held_out = "label_studio" in name
        assert "\nlayout " in out
        assert ("\nsplit  3 training and 1 validation images: " in out) is held_out
        run = tmp_path / "runs" / "detection" / f"short {name}"
        assert (run / "split.json").is_file() is held_out
        if held_out:  # the checkpoint is scored on the images that were held out
            trained = ("--ckpt_path", run / "checkpoints" / "best.ckpt")
            work("detection.test", *trained, "--data.split", "val", "--output", f"own {name}")
            own, final = (
                json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / f"own {name}", run)
            )
            assert own["test/loss"] == pytest.approx(final["val/loss"], abs=1e-4)
        work("detection.test", "--ckpt_path", best, *root, "--data.split", "train", "--output", f"scores {name}")
        found = json.loads((tmp_path / f"scores {name}" / "ap.json").read_text())
        scores[name] = found | found.pop("per_class")
    assert 0.1 < scores["datumaro_coco"]["AP"] < 0.9
    for name in scores.keys() - OTHERS:
        assert scores[name] == pytest.approx(scores[COCO_VERSIONS.get(name, "datumaro_coco")], abs=1e-6), name
