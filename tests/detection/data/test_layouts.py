"""Folders of annotated images, as the tools write them.

The archives in ``exports`` were written by datumaro 1.13.12, supervision 0.31.2, label-studio-converter 0.0.59, LabelMe
6.3.1 and Ultralytics 8.4.190 from one COCO data set of four images, ``TRUTH``. Label Studio and its converter write no
splits.
"""

import json
import re
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from detection.data.coco_dataset import CocoDataset
from detection.data.layouts.find import find_layout
from detection.data.module import DetectionData
from detection.evaluation import CocoAP
from mobile_former.errors import InputError
from mobile_former.training.data.images import ImageError

EXPORTS = Path(__file__).parent / "exports"
WIDTH, HEIGHT = 48, 36
TRUTH = {  # image: objects, each a class and [left, top, width, height]
    "train": {
        "a 1": [("white cell", [3, 2, 20, 10]), ("cell", [30, 14, 11, 17])],
        "b": [("cell", [0, 5, 7, 9])],
        "none": [],
    },
    "val": {"c": [("cell", [10, 10, 25, 20]), ("white cell", [1, 1, 4, 4])]},
}
NAMES = {
    "datumaro_coco": "COCO",
    "datumaro_darknet": "YOLO (Darknet)",
    "datumaro_labelme_xml": "Pascal VOC",
    "datumaro_voc": "Pascal VOC",
    "datumaro_voc_one_based": "Pascal VOC",
    "datumaro_yolo": "YOLO (data.yaml)",
    "label_studio_coco": "COCO (Label Studio)",
    "label_studio_voc": "Pascal VOC",
    "label_studio_yolo": "YOLO",
    "labelme": "LabelMe",
    "supervision_coco": "COCO (Roboflow)",
    "supervision_labelme": "LabelMe",
    "supervision_voc": "Pascal VOC",
    "supervision_yolo": "YOLO (data.yaml)",
    "ultralytics_yolo": "YOLO (data.yaml)",
}


def unpack(name, folder):
    with zipfile.ZipFile(EXPORTS / f"{name}.zip") as archive:
        archive.extractall(folder)
    return folder


def write_image(path, value=90, width=WIDTH, height=HEIGHT):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((height, width, 3), value, np.uint8))


def objects(data):
    """Return the objects of a data set by the stem of their image, sorted."""
    truth = data.ground_truth()
    names = {row["id"]: row["name"] for row in truth["categories"]}
    images = {row["id"]: Path(row["file_name"]).stem for row in truth["images"]}
    found = {stem: [] for stem in images.values()}
    for row in truth["annotations"]:
        found[images[row["image_id"]]].append((names[row["category_id"]], row["bbox"]))
    return {stem: sorted(own) for stem, own in found.items()}


def assert_same(found, expected, tolerance=0.01):
    assert found.keys() == expected.keys()
    for stem, own in expected.items():
        assert [name for name, _ in found[stem]] == [name for name, _ in sorted(own)], stem
        for (_, box), (_, wanted) in zip(found[stem], sorted(own), strict=True):
            np.testing.assert_allclose(box, wanted, atol=tolerance)


def read(root, split="train"):
    return CocoDataset.open(find_layout(root).splits[split])


def data_of(root, **options):
    small = {"short_sides": (64,), "short_side": 64, "longest": 128, "batch_size": 2, "num_workers": 0}
    return DetectionData("coco", str(root), **(small | options))


@pytest.mark.parametrize("export", sorted(NAMES))
def test_the_exports_of_the_tools_are_recognised_and_have_the_boxes_of_their_source(export, tmp_path):
    root = unpack(export, tmp_path / "my data")
    layout = find_layout(root)
    assert layout.name == NAMES[export]
    expected = TRUTH if "label_studio" not in export else {"train": TRUTH["train"] | TRUTH["val"]}
    assert layout.splits.keys() == expected.keys()
    tolerance = 1 if export == "label_studio_voc" else 0.01  # the converter cuts decimals, also of 6.999999
    for split, truth in expected.items():
        data = CocoDataset.open(layout.splits[split])
        assert_same(objects(data), truth, tolerance)
        assert set(data.class_names) == {"cell", "white cell"}
        assert 0 not in [row["id"] for row in data.ground_truth()["annotations"]]
        for index in range(len(data)):
            assert data.read(index).shape == (HEIGHT, WIDTH, 3)


def test_every_export_is_tested():
    assert {path.stem for path in EXPORTS.glob("*.zip")} == NAMES.keys()


@pytest.mark.parametrize("export", ["datumaro_voc", "labelme", "ultralytics_yolo", "supervision_coco"])
def test_ap_is_that_of_the_coco_version(export, tmp_path):
    generator = np.random.default_rng(0)
    moved = {
        stem: [(name, np.array(box) + generator.uniform(-2, 2, 4), score) for (name, box), score in
               zip(own, generator.random(len(own)), strict=True)]
        for stem, own in (TRUTH["train"] | TRUTH["val"]).items()
    }  # fmt: skip

    def score(root):
        data = data_of(root)
        data.setup("fit")
        source = data.train_source
        metric, found = CocoAP(source.ground_truth(), source.category_ids), []
        for index in range(len(source)):
            own = moved[Path(source.name(index)).stem]
            boxes = torch.tensor(np.array([[*box[:2], *(box[:2] + box[2:])] for _, box, _ in own]).reshape(-1, 4))
            labels = torch.tensor([source.class_names.index(name) for name, *_ in own], dtype=torch.long)
            found.append({"boxes": boxes, "scores": torch.tensor([score for *_, score in own]), "labels": labels})
        metric.update(found, [source.image_id(index) for index in range(len(source))])
        return metric.compute()

    own, reference = (score(unpack(name, tmp_path / name)) for name in (export, "datumaro_coco"))
    assert 0 < reference["AP"] < 1
    assert own.pop("per_class") == pytest.approx(reference.pop("per_class"))
    assert own == pytest.approx(reference)


# COCO


def write_roboflow(root):
    """As Roboflow documents it: ids from 0, and a parent category 0 without objects."""
    for split, folder in (("train", "train"), ("val", "valid")):
        images, annotations = [], []
        for number, (stem, own) in enumerate(TRUTH[split].items()):
            write_image(root / folder / f"{stem}.jpg", 20 * number + ord(stem[0]) % 50)
            images.append({"id": number, "file_name": f"{stem}.jpg", "width": WIDTH, "height": HEIGHT})
            for name, box in own:
                row = {"id": len(annotations), "image_id": number, "category_id": 1 + (name == "cell"), "bbox": box}
                annotations.append(row | {"area": box[2] * box[3], "iscrowd": 0, "segmentation": []})
        categories = [{"id": 0, "name": "cell", "supercategory": "none"}]
        categories += [{"id": n, "name": name} for n, name in ((1, "white cell"), (2, "cell"))]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / folder / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def test_roboflows_parent_category_is_no_class_and_its_annotation_0_counts(tmp_path):
    data = data_of(write_roboflow(tmp_path / "cells"))
    data.setup("fit")
    assert data.class_names == ["white cell", "cell"]
    assert data.category_ids == [1, 2]
    assert data.val_set.source.class_names == ["white cell", "cell"]
    assert_same(objects(data.train_source), TRUTH["train"])
    assert data.notes()[0] == "layout COCO (Roboflow)"
    assert data.notes()[1].startswith("empty  no object of 'cell (0)': left out")
    kept = data_of(tmp_path / "cells", keep_empty_classes=True)
    assert kept.class_names == ["cell (0)", "white cell", "cell (2)"]
    kept.setup("fit")
    assert len(kept.notes()) == 1


def test_a_class_with_objects_in_the_validation_images_only_is_kept(tmp_path):
    root = write_roboflow(tmp_path)
    path = root / "valid" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 0
    path.write_text(json.dumps(content))
    data = data_of(root)
    assert data.class_names == ["cell (0)", "white cell", "cell (2)"]
    data.setup("fit")


def coco_folder(root):
    return unpack("datumaro_coco", root)


def test_images_may_be_in_folders_of_their_split_or_in_data_beside_labels(tmp_path):
    root = coco_folder(tmp_path / "fiftyone")
    for split in ("train", "val"):
        (root / "images" / split).rename(root / split)
        (root / split / "data").mkdir()
        for path in [path for path in (root / split).iterdir() if path.is_file()]:
            path.rename(root / split / "data" / path.name)
        (root / "annotations" / f"instances_{split}.json").rename(root / split / "labels.json")
    shutil.rmtree(root / "annotations")
    assert find_layout(root).name == "COCO (FiftyOne)"
    assert_same(objects(read(root)), TRUTH["train"])
    assert_same(objects(read(root, "val")), TRUTH["val"])


@pytest.mark.parametrize(("train", "val"), [("Train", "Validation"), ("train2017", "val2017"), ("training", "valid")])
def test_files_may_have_other_names_of_the_splits(train, val, tmp_path):
    root = coco_folder(tmp_path)
    for split, name in (("train", train), ("val", val)):
        (root / "annotations" / f"instances_{split}.json").rename(root / "annotations" / f"instances_{name}.json")
        (root / "images" / split).rename(root / "images" / name)
    assert_same(objects(read(root)), TRUTH["train"])
    assert_same(objects(read(root, "val")), TRUTH["val"])


def test_a_single_coco_file_of_any_name_is_found_by_its_content(tmp_path):
    root = coco_folder(tmp_path)
    (root / "annotations" / "instances_train.json").rename(root / "my cells.json")
    shutil.rmtree(root / "annotations")
    (root / "settings.json").write_text("{}")
    layout = find_layout(root)
    assert layout.splits.keys() == {"train"}
    assert_same(objects(CocoDataset.open(layout.splits["train"])), TRUTH["train"])


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("instances_default.json", "images/default"), ("annotations/instances.json", "images"),
        ("annotations/instances_default.json", "images/default"), ("annotations.json", "JPEGImages"),
        ("labels.json", "data"), ("coco.json", "."), ("my train set.json", "deep/er"),
        ("train/annotations/cells.json", "train/images"), ("train.json", "train"),
    ],
)  # fmt: skip
def test_a_coco_file_and_its_images_may_be_at_many_places(file, images, tmp_path):
    source, root = coco_folder(tmp_path / "source"), tmp_path / "cells"
    shutil.copytree(source / "images" / "train", root / images)
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "annotations" / "instances_train.json", root / file)
    assert find_layout(root).splits.keys() == {"train"}
    assert_same(objects(read(root)), TRUTH["train"])


@pytest.mark.parametrize(
    "written", ["images\\train\\{}", "https://host/data/{}?x=1", "/data/upload/1/{}", "../images/train/{}"]
)
def test_images_are_found_by_their_name_if_the_path_is_that_of_another_machine(written, tmp_path):
    root = coco_folder(tmp_path)
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for record in content["images"]:
        record["file_name"] = written.format(record["file_name"])
    path.write_text(json.dumps(content))
    assert_same(objects(read(root)), TRUTH["train"])


@pytest.mark.parametrize("missing", [{"width": None, "height": None}, {"width": None}, {}])
def test_a_missing_size_is_read_from_the_image(missing, tmp_path):
    root = coco_folder(tmp_path)
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for record in content["images"]:
        if missing:
            record |= missing
        else:
            del record["width"], record["height"]
    path.write_text(json.dumps(content))
    data = read(root)
    assert [data.size(index) for index in range(3)] == [(HEIGHT, WIDTH)] * 3
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(data.name(0), exif=turned)
    assert read(root).size(0) == (WIDTH, HEIGHT)
    Path(data.name(0)).write_bytes(b"no image")
    with pytest.raises(ImageError, match=re.escape(data.name(0))):
        read(root)


def test_annotations_with_iscrowd_are_told_with_the_tools_and_may_be_objects(tmp_path, caplog):
    root = coco_folder(tmp_path)
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for row in content["annotations"]:
        row["iscrowd"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"crowd regions with iscrowd 1 \(3\); datumaro .*--data\.crowd_as_objects"):
        data_of(root).setup("fit")
    assert "supervision" in caplog.text
    data = data_of(root, crowd_as_objects=True)
    data.setup("fit")
    assert data.object_counts.tolist() == [2, 1, 0]
    assert {row["iscrowd"] for row in data.train_source.ground_truth()["annotations"]} == {0}


# YOLO


def write_yolo(root, lines, image="images/train/a.jpg", config="train: images/train\nval: images/val\nnames: [x, y]\n"):
    write_image(root / image)
    write_image(root / image.replace("train", "val"), 10)
    label = root / image.replace("images", "labels").replace(".jpg", ".txt")
    label.parent.mkdir(parents=True, exist_ok=True)
    label.write_text(lines)
    if config:
        (root / "data.yaml").write_text(config)
    return root


def test_boxes_polygons_rotated_boxes_and_confidences_are_boxes(tmp_path):
    lines = [
        "0 0.5 0.5 0.5 0.5",
        "1.0 0.5 0.5 0.25 0.5 0.97",
        "1 0.25 0.25 0.5 0.25 0.5 0.75",
        "0 0.1 0.5 0.5 0.1 0.9 0.5 0.5 0.9",
        "",
    ]
    data = read(write_yolo(tmp_path, "\r\n".join(lines)))
    boxes = [(name, np.array(box) / [WIDTH, HEIGHT, WIDTH, HEIGHT]) for name, box in objects(data)["a"]]
    expected = [
        ("x", [0.1, 0.1, 0.8, 0.8]), ("x", [0.25, 0.25, 0.5, 0.5]),
        ("y", [0.25, 0.25, 0.25, 0.5]), ("y", [0.375, 0.25, 0.25, 0.5]),
    ]  # fmt: skip
    for (name, box), (wanted, corners) in zip(boxes, expected, strict=True):
        assert name == wanted
        np.testing.assert_allclose(box, corners, atol=1e-9)


def test_keypoints_of_a_pose_are_left_out(tmp_path):
    config = "train: images/train\nval: images/val\nnames: {0: x}\nkpt_shape: [2, 3]\n"
    data = read(write_yolo(tmp_path, "0 0.5 0.5 0.5 0.5 0.1 0.1 2 0.9 0.9 2", config=config))
    np.testing.assert_allclose(objects(data)["a"][0][1], [WIDTH / 4, HEIGHT / 4, WIDTH / 2, HEIGHT / 2])


@pytest.mark.parametrize(
    "config",
    [
        "train: images/train\nval: images/val\nnames: [x, 'no']\n",
        "train: ../images/train\nval: ../images/val\nnames: {0: x, 1: no}\n",
        "path: .\ntrain: [images/train]\nvalidation: images/val\nnames:\n  0: x\n  1: no\n",
        "path: ../elsewhere\ntrain: images/train\nval: images/val\nnc: 2\nnames: ['x', 'no']\n",
        "path: {root}\ntrain: images/train\nval: images/val\nnames: ['x', 'no']\n",
        "train: {root}/images/train\nval: {root}/images/val\nnames: ['x', 'no']\n",
        "train: train.txt\nval: val.txt\nnames: ['x', 'no']\n",
        "path: gone\ntrain: gone/train\nval: gone/val\nnames: ['x', 'no']\n",
    ],
)
def test_paths_and_names_in_the_yaml_file_have_many_forms(config, tmp_path):
    root = write_yolo(tmp_path / "set", "1 0.5 0.5 0.5 0.5", config=config.replace("{root}", str(tmp_path / "set")))
    write_image(root / "images" / "train" / "sub folder" / "b.webp")
    (root / "train.txt").write_text("./images/train/a.jpg\nimages/train/sub folder/b.webp\n")
    (root / "val.txt").write_text(f"{root}/images/val/a.jpg\n")
    layout = find_layout(root)
    assert layout.splits.keys() == {"train", "val"}
    found = objects(CocoDataset.open(layout.splits["train"]))
    assert found == {"a": [("no", [WIDTH / 4, HEIGHT / 4, WIDTH / 2, HEIGHT / 2])], "b": []}
    assert objects(CocoDataset.open(layout.splits["val"])) == {"a": []}


def test_a_yaml_file_may_be_beside_the_folder_of_its_data(tmp_path):
    write_yolo(tmp_path / "inner", "1 0.5 0.5 0.5 0.5", config=None)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [x, y]\n")
    assert read(tmp_path).class_names == ["x", "y"]


def test_paths_of_another_machine_in_a_list_of_images_are_found_by_their_end(tmp_path):
    root = write_yolo(tmp_path, "0 0.5 0.5 0.5 0.5", config="train: train.txt\nval: val.txt\nnames: [x]\n")
    (root / "train.txt").write_text("/content/cells/images/train/a.jpg\n")
    (root / "val.txt").write_text("C:\\cells\\images\\val\\a.jpg\n")
    layout = find_layout(root)
    for split in ("train", "val"):
        assert CocoDataset.open(layout.splits[split]).name(0) == str(root / "images" / split / "a.jpg")
    (root / "val.txt").write_text("/content/gone.jpg\n")
    with pytest.raises(InputError, match=r"val\.txt lists /content/gone\.jpg, which does not exist"):
        find_layout(root)


def test_a_path_in_the_yaml_file_that_does_not_exist_is_in_the_note(tmp_path):
    config = "train: [images/train, more/train]\nval: gone/val\nnames: [x]\n"
    layout = find_layout(write_yolo(tmp_path, "0 0.5 0.5 0.5 0.5", config=config))
    assert layout.splits.keys() == {"train"}
    assert layout.note() == "more/train does not exist and is left out; gone/val does not exist and is left out"


def test_a_yaml_file_without_any_label_file_is_no_layout(tmp_path):
    root = write_yolo(tmp_path, "0 0.5 0.5 0.5 0.5")
    (root / "labels").rename(root / "annotations")
    with pytest.raises(FileNotFoundError, match=r"labels/ beside images/.*There is annotations/ \(train/\), data.yaml"):
        find_layout(root)


def test_classes_of_one_name_stay_apart(tmp_path):
    config = "train: images/train\nval: images/val\nnames: [x, y, x]\n"
    root = write_yolo(tmp_path, "0 0.5 0.5 0.5 0.5\n2 0.5 0.5 0.5 0.5", config=config)
    assert [name for name, _ in objects(read(root))["a"]] == ["x (0)", "x (2)"]
    assert find_layout(root).note() == "several classes are called x: their numbers are added to the name"


def test_names_of_classes_must_be_text(tmp_path):
    config = "train: images/train\nnames: {0: {name: x}}\n"
    with pytest.raises(InputError, match=r"data\.yaml: names has \{'name': 'x'\}: give the name of each class as text"):
        find_layout(write_yolo(tmp_path, "0 0.5 0.5 0.5 0.5", config=config))


@pytest.mark.parametrize("place", ["classes.txt", "labels/classes.txt"])
def test_folders_without_a_yaml_file_have_class_names_in_a_text_file(place, tmp_path):
    root = write_yolo(tmp_path, "1 0.5 0.5 0.5 0.5", image="images/a.jpg", config=None)
    (root / place).write_text("x\ny y\n")
    layout = find_layout(root)
    assert (layout.name, layout.note()) == ("YOLO", "")
    assert objects(read(root))["a"][0][0] == "y y"
    (root / place).unlink()
    assert "no file has class names" in find_layout(root).note()
    assert read(root).class_names == ["1"]


def test_splits_may_contain_images_and_labels_and_text_files_may_be_beside_images(tmp_path):
    root = tmp_path / "parts"
    write_image(root / "train" / "images" / "a.jpg")
    (root / "train" / "labels").mkdir()
    (root / "train" / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    write_image(root / "valid" / "images" / "b.jpg")
    (root / "valid" / "labels").mkdir()
    (root / "valid" / "labels" / "b.txt").write_text("")
    assert find_layout(root).splits.keys() == {"train", "val"}
    beside = tmp_path / "beside"
    write_image(beside / "a.jpg")
    (beside / "a.txt").write_text("1 0.5 0.5 0.5 0.5")
    (beside / "classes.txt").write_text("x\ny")
    assert objects(read(beside))["a"][0][0] == "y"


def test_the_size_of_a_rotated_photograph_is_that_after_rotation(tmp_path):
    root = write_yolo(tmp_path, "0 0.5 0.5 1 1")
    turned = Image.Exif()
    turned[0x0112] = 8
    for suffix, kind in ((".jpg", "JPEG"), (".png", "PNG"), (".webp", "WEBP")):
        path = root / "images" / "train" / f"turned{suffix}"
        Image.new("RGB", (40, 30)).save(path, kind, exif=turned)
        data = read(root)
        index = [data.name(n) for n in range(len(data))].index(str(path))
        assert data.size(index) == (40, 30)
        assert data.read(index).shape == (40, 30, 3)
        path.unlink()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("0 0.5 0.5\n", r"a\.txt, line 1 is '0 0\.5 0\.5': give the number of a class"),
        ("0 0.5 0.5 0.5 0.5\nx 0 0 1 1", r"a\.txt, line 2 is"),
        ("0.5 0.5 0.5 0.5 0.5", "line 1 is"),
        ("0 nan 0.5 0.5 0.5", "line 1 is"),
        ("7 0.5 0.5 0.5 0.5", r"has class 7, but the classes are \[0, 1\]"),
        ("0 20 20 10 10", "line 1 has 20: YOLO's coordinates are fractions"),
    ],
)
def test_faulty_lines_are_named(lines, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read(write_yolo(tmp_path, lines))


# Pascal VOC


VOC = """<annotation><folder>x</folder><filename>{name}</filename>
<size><width>{width}</width><height>{height}</height><depth>3</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{0}</xmin><ymin>{1}</ymin>
<xmax>{2}</xmax><ymax>{3}</ymax></bndbox><part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax>
<ymax>2</ymax></bndbox></part></object>"""


def write_voc(root, corners=(1, 1, WIDTH, HEIGHT), difficult=0, size=(WIDTH, HEIGHT), name="dog", sets=True):
    for stem in ("2007_1", "2007_2", "sub/empty one"):
        write_image(root / "JPEGImages" / f"{stem}.jpg")
        if stem != "sub/empty one":
            path = root / "Annotations" / f"{stem}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            text = OBJECT.format(*corners, name=name, difficult=difficult)
            path.write_text(VOC.format(name=f"{stem}.jpg", width=size[0], height=size[1], objects=text))
    if sets:
        main = root / "ImageSets" / "Main"
        main.mkdir(parents=True)
        (main / "train.txt").write_text("2007_1\nsub/empty one\n")
        (main / "val.txt").write_text("2007_2\n")
        (main / "trainval.txt").write_text("2007_1\n2007_2\nsub/empty one\n")
        (main / "dog_train.txt").write_text("2007_1  1\n")
    return root


def test_corners_count_from_1_and_the_last_pixel_belongs_to_the_box(tmp_path):
    root = write_voc(tmp_path)
    layout = find_layout(root)
    assert layout.splits.keys() == {"train", "val"}
    assert layout.note() == "corners count pixels from 1, as Pascal VOC defines"
    assert objects(read(root)) == {"2007_1": [("dog", [0, 0, WIDTH, HEIGHT])], "empty one": []}
    assert objects(read(root, "val")) == {"2007_2": [("dog", [0, 0, WIDTH, HEIGHT])]}


def test_a_corner_at_0_shows_that_corners_count_from_0(tmp_path):
    root = write_voc(tmp_path, corners=(0, 3, 20, 20))
    assert objects(read(root))["2007_1"] == [("dog", [0, 3, 20, 17])]
    assert "from 0" in find_layout(root).note()


def test_corners_of_fiftyone_count_from_0(tmp_path):
    root = write_voc(tmp_path, corners=(4, 3, 20, 20), sets=False)
    (root / "JPEGImages").rename(root / "data")
    (root / "Annotations").rename(root / "labels")
    assert objects(read(root))["2007_1"] == [("dog", [4, 3, 16, 17])]


def test_the_devkit_and_folders_without_sets_are_found(tmp_path):
    write_voc(tmp_path / "VOCdevkit" / "VOC2007")
    assert find_layout(tmp_path).name == find_layout(tmp_path / "VOCdevkit").name == "Pascal VOC"
    write_voc(tmp_path / "VOCdevkit" / "VOC2012")
    with pytest.raises(InputError, match="several data sets, VOC2007, VOC2012"):
        find_layout(tmp_path)
    root = write_voc(tmp_path / "plain", sets=False)
    (root / "JPEGImages").rename(root / "images")
    (root / "Annotations").rename(root / "annotations")
    assert objects(read(root)).keys() == {"2007_1", "2007_2", "empty one"}


def test_difficult_objects_are_not_learned_and_detections_of_them_not_scored(tmp_path, caplog):
    write_voc(tmp_path, difficult=1)
    data = read(tmp_path)
    assert data.left_out == {"difficult objects": 1}
    assert "difficult objects (1)" in caplog.text
    assert "datumaro" not in caplog.text
    assert data.ground_truth()["annotations"][0]["iscrowd"] == 1
    kept = data_of(tmp_path, crowd_as_objects=True)
    kept.setup("fit")
    assert kept.object_counts.sum() == 1


def test_sizes_that_are_missing_in_the_xml_file_are_those_of_the_image(tmp_path):
    assert read(write_voc(tmp_path, size=(0, 0))).size(0) == (HEIGHT, WIDTH)


def test_faults_of_voc_files_are_named(tmp_path):
    root = write_voc(tmp_path / "a", corners=("x", 1, 2, 3))
    with pytest.raises(InputError, match=r"2007_1\.xml: object 1 needs a name and a bndbox"):
        read(root)
    (root / "Annotations" / "2007_1.xml").write_text("<annotation>")
    with pytest.raises(InputError, match=r"2007_1\.xml is not XML"):
        read(root)
    root = write_voc(tmp_path / "b")
    (root / "ImageSets" / "Main" / "train.txt").write_text("gone\n")
    with pytest.raises(InputError, match=r"train\.txt lists 'gone'"):
        find_layout(root)
    root = write_voc(tmp_path / "c")
    (root / "JPEGImages" / "2007_1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"no image in .* for .*2007_1\.xml"):
        find_layout(root)


def test_a_class_of_validation_images_only_is_a_class_of_the_model(tmp_path):
    root = write_voc(tmp_path)
    path = root / "Annotations" / "2007_2.xml"
    path.write_text(path.read_text().replace("<name>dog</name>", "<name>cat</name>"))
    data = data_of(root)
    data.setup("fit")
    assert data.class_names == ["cat", "dog"]


# LabelMe


def shape(kind, points, label="dog", group=None):
    return {"label": label, "points": points, "shape_type": kind, "group_id": group, "flags": {}}


def write_labelme(root, shapes, written="a.jpg", **entries):
    write_image(root / "a.jpg")
    write_image(root / "unlabelled.jpg", 3)
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": written, "imageData": None}
    content |= {"imageHeight": HEIGHT, "imageWidth": WIDTH} | entries
    (root / "a.json").write_text(json.dumps(content))
    return root


def test_shapes_are_boxes_and_groups_are_one_object(tmp_path):
    shapes = [
        shape("rectangle", [[20, 30], [10, 12]]),
        shape("polygon", [[1, 2], [3.5, 2], [2, 9]], "cat"),
        shape("circle", [[20, 20], [23, 24]]),
        shape("polygon", [[1, 1], [2, 1], [2, 2]], "man", group=4),
        shape("rectangle", [[30, 20], [31, 25]], "man", group=4),
        shape("rectangle", [[5, 5], [6, 6]], "dog", group=4),
        shape("point", [[5, 5]]),
        shape("linestrip", [[5, 5], [6, 6]]),
    ]
    found = objects(read(write_labelme(tmp_path, shapes)))
    assert found == {
        "a": [
            ("cat", [1, 2, 2.5, 7]), ("dog", [5, 5, 1, 1]), ("dog", [10, 12, 10, 18]), ("dog", [15, 15, 10, 10]),
            ("man", [1, 1, 30, 24]),
        ],
        "unlabelled": [],
    }  # fmt: skip


@pytest.mark.parametrize("written", ["..\\photos\\a.jpg", "../photos/a.jpg", "/home/me/photos/a.jpg", "", None])
def test_an_image_is_found_beside_its_file_if_its_path_is_that_of_another_machine(written, tmp_path):
    root = write_labelme(tmp_path / "photos", [shape("rectangle", [[1, 1], [9, 9]])], written, imageWidth=None)
    found = objects(read(tmp_path / "photos"))
    assert found == {"a": [("dog", [1, 1, 8, 8])], "unlabelled": []}
    (root / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"no image .*a.* for .*a\.json"):
        read(root)


def test_faulty_shapes_are_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.json: shape 1 has the label None"):
        read(write_labelme(tmp_path, [shape("rectangle", [[1, 1], [2, 2]], None)]))
    with pytest.raises(InputError, match=r"a\.json: shape 2 has .* the points \[\[1, 1\]\]"):
        read(write_labelme(tmp_path, [shape("point", [[1, 1]]), shape("rectangle", [[1, 1]])]))


# Nothing known


def test_an_unknown_layout_is_refused_with_what_was_looked_for_and_what_is_there(tmp_path):
    write_image(tmp_path / "photos" / "a.jpg")
    (tmp_path / "more").mkdir()
    (tmp_path / "boxes.xlsx").write_text("x")
    with pytest.raises(FileNotFoundError) as error:
        find_layout(tmp_path)
    message = str(error.value)
    for part in ("instances_train.json", "_annotations.coco.json", "data.yaml", "Pascal VOC", "LabelMe", "labels.json",
                 "boxes.xlsx, more/ (empty), photos/ (a.jpg)", "--data.annotations.train"):  # fmt: skip
        assert part in message
    assert "\n" not in message
    with pytest.raises(FileNotFoundError, match=r"no folder .*gone \(--data\.root\)"):
        find_layout(tmp_path / "gone")


def test_the_folder_of_an_unpacked_archive_and_a_yaml_file_are_taken_too(tmp_path):
    unpack("ultralytics_yolo", tmp_path / "archive" / "cells")
    (tmp_path / "archive" / "__MACOSX").mkdir()
    (tmp_path / "archive" / "readme.txt").write_text("mine")
    for root in (tmp_path / "archive", tmp_path / "archive" / "cells" / "data.yaml"):
        assert_same(objects(read(root)), TRUTH["train"])
    data = data_of(tmp_path / "archive" / "cells" / "data.yaml", val_fraction=0.5)
    data.setup("fit")
    assert len(data.train_set) + len(data.val_set) == 3


def test_files_given_by_option_replace_those_found(tmp_path):
    root = coco_folder(tmp_path / "data")
    (root / "annotations" / "instances_val.json").rename(tmp_path / "other.json")
    (root / "images" / "val").rename(tmp_path / "photos")
    options = {"annotations": {"val": str(tmp_path / "other.json")}, "images": {"val": str(tmp_path / "photos")}}
    data = data_of(root, **options)
    data.setup("fit")
    assert_same(objects(data.train_source), TRUTH["train"])
    assert_same(objects(data.val_set.source), TRUTH["val"])
    with pytest.raises(InputError, match=r"no images for --data\.annotations\.val"):
        DetectionData("coco", annotations=options["annotations"]).setup("validate")


# Held-out validation images


def test_without_validation_images_a_part_of_the_training_images_is_held_out(tmp_path):
    root = write_roboflow(tmp_path / "cells")
    shutil.rmtree(root / "valid")
    data = data_of(root, split_seed=3)
    data.keep_split(tmp_path / "split.json", None)
    data.setup("fit")
    assert (len(data.train_set), len(data.val_set)) == (2, 1)
    assert data.notes()[-1].startswith(
        "split  2 training and 1 validation images: 0.2 of the images, stratified, seed 3"
    )
    train, val = objects(data.train_source), objects(data.val_set.source)
    assert train | val == {stem: sorted(own) for stem, own in TRUTH["train"].items()}
    written = json.loads((tmp_path / "split.json").read_text())
    assert [Path(name).stem for name in written["val"]] == list(val)
    again = data_of(root, split_seed=99)
    again.keep_split(None, tmp_path / "split.json")
    again.setup("fit")
    assert objects(again.val_set.source) == val
    kept = DetectionData(**dict(data.hparams))
    kept.class_names = data.class_names
    kept.setup("validate")
    assert objects(kept.val_set.source) == val


def test_the_folds_of_the_training_images_are_disjoint_and_complete(tmp_path):
    root = write_roboflow(tmp_path / "cells")
    found = []
    for fold in (1, 2, 3):
        data = data_of(root, folds=3, fold=fold)
        data.setup("fit")
        found += objects(data.val_set.source)
        assert len(data.train_set) == 2
    assert sorted(found) == sorted(TRUTH["train"])


def test_groups_stay_together(tmp_path):
    root = tmp_path / "cells"
    coco_folder(root)
    (root / "annotations" / "instances_val.json").unlink()
    (root / "groups.csv").write_text("image,group\na 1.jpg,p\nb.png,q\nnone.jpg,p\n")
    for seed in range(5):
        data = data_of(root, split_seed=seed, val_fraction=0.5)
        data.setup("fit")
        assert {"a 1", "none"} in ({*objects(data.train_source)}, {*objects(data.val_set.source)})
    (root / "groups.csv").write_text("image,group\na 1.jpg,p\n")
    with pytest.raises(InputError, match="no group for 2 of 3 images"):
        data_of(root).setup("fit")


def test_images_of_both_splits_are_counted(tmp_path, caplog):
    root = write_roboflow(tmp_path)
    shutil.copy(root / "train" / "b.jpg", root / "valid" / "c.jpg")
    data_of(root).setup("fit")
    assert "1 of 1 validation images are also training images" in caplog.text
    assert "valid/c.jpg and" in caplog.text
