import json
import logging

import cv2
import numpy as np
import pytest
from PIL import Image

from detection.data.coco_dataset import CocoDataset
from mobile_former.errors import InputError
from mobile_former.training.data.images import ImageError

CATEGORIES = [{"id": 40, "name": "dog"}, {"id": 7, "name": "cat"}, {"id": 90, "name": "unicorn"}]
IMAGES = [
    {"id": 501, "file_name": "b.png", "width": 60, "height": 40},
    {"id": 12, "file_name": "a.png", "width": 50, "height": 50},
    {"id": 13, "file_name": "empty.png", "width": 30, "height": 20},
]
ANNOTATIONS = [
    {"id": 3, "image_id": 12, "category_id": 40, "bbox": [10, 5.5, 20, 10], "area": 130.5, "iscrowd": 0},
    {"id": 9, "image_id": 501, "category_id": 7, "bbox": [0, 0, 60, 40], "area": 2000, "iscrowd": 0},
    {"id": 4, "image_id": 12, "category_id": 7, "bbox": [0, 0, 50, 50], "area": 900, "iscrowd": 1},
    {"id": 5, "image_id": 12, "category_id": 7, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
]


@pytest.fixture
def content():
    """A data set of three images, to damage."""
    return json.loads(json.dumps({"images": IMAGES, "annotations": ANNOTATIONS, "categories": CATEGORIES}))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    for number, record in enumerate(IMAGES):
        image = np.full((record["height"], record["width"], 3), 10 * number, np.uint8)
        cv2.imwrite(str(tmp_path / "images" / record["file_name"]), image)
    return tmp_path


def load(folder, content, **options):
    path = folder / "annotations" / "instances_train.json"
    path.write_text(json.dumps(content))
    return CocoDataset(path, folder / "images", **options)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_labels_are_contiguous_in_the_order_of_category_ids_and_lead_back_to_them(folder, content):
    data = load(folder, content)
    assert data.category_ids == [7, 40, 90]
    assert data.class_names == ["cat", "dog", "unicorn"]
    assert data.labels(1).tolist() == [1, 0]
    assert [data.category_ids[label] for label in data.labels(1)] == [40, 7]


def test_images_come_in_the_order_of_the_file_with_their_records(folder, content, caplog):
    data = load(folder, content)
    assert len(data) == 3
    assert [data.image_id(index) for index in range(3)] == [501, 12, 13]
    assert [data.size(index) for index in range(3)] == [(40, 60), (50, 50), (20, 30)]
    assert data.name(1) == str(folder / "images" / "a.png")
    for index in range(3):
        image = data.read(index)
        assert image.shape == (*data.size(index), 3)
        assert (image == 10 * index).all()
    (warning,) = warnings(caplog)
    assert "boxes are left out of training: crowd regions with iscrowd 1 (1) (the first: annotation 4 of" in warning


def test_boxes_are_corners_and_crowd_regions_are_not_trained_on(folder, content):
    data = load(folder, content)
    np.testing.assert_array_equal(data.boxes(0), [[0, 0, 60, 40]])
    np.testing.assert_array_equal(data.boxes(1), [[10, 5.5, 30, 15.5], [1, 2, 4, 6]])


def test_an_image_without_boxes_is_kept(folder, content):
    data = load(folder, content)
    assert data.boxes(2).shape == (0, 4)
    assert data.labels(2).shape == (0,)
    content["annotations"] = []
    assert [load(folder, content).boxes(index).shape for index in range(3)] == [(0, 4)] * 3


def test_the_ground_truth_is_what_the_file_says_crowd_regions_and_bad_boxes_included(folder, content):
    content["annotations"].append(
        {"id": 6, "image_id": 13, "category_id": 90, "bbox": [9, 9, 0, 0], "area": 0, "iscrowd": 0}
    )
    truth = load(folder, content).ground_truth()
    assert truth["annotations"] == content["annotations"]
    assert sorted(truth["categories"], key=lambda c: c["id"]) == sorted(CATEGORIES, key=lambda c: c["id"])
    assert truth["images"] == IMAGES
    assert json.loads(json.dumps(truth)) == truth


def test_what_annotations_may_lack_is_filled_in(folder, content):
    for annotation in content["annotations"]:
        for name in ("id", "area", "iscrowd"):
            del annotation[name]
    data = load(folder, content)
    rows = data.ground_truth()["annotations"]
    assert [(row["id"], row["area"], row["iscrowd"]) for row in rows] == [
        (1, 200, 0), (2, 2400, 0), (3, 2500, 0), (4, 12, 0)
    ]  # fmt: skip
    assert len(data.boxes(1)) == 3


def test_a_models_class_names_decide_the_labels_by_name(folder, content):
    data = load(folder, content, class_names=["unicorn", "cat", "dog"])
    assert data.class_names == ["unicorn", "cat", "dog"]
    assert data.category_ids == [90, 7, 40]
    assert data.labels(1).tolist() == [2, 1]


@pytest.mark.parametrize("names", [["cat", "dog"], ["cat", "dog", "horse"]])
def test_categories_that_a_model_does_not_share_are_refused_if_they_have_objects(folder, content, names):
    data = load(folder, content, class_names=names)
    assert data.class_names == names
    assert data.labels(1).tolist() == [1, 0]
    content["annotations"][0]["category_id"] = 90
    with pytest.raises(InputError, match="differ in their categories") as error:
        load(folder, content, class_names=names)
    message = str(error.value)
    assert (
        "the file has 'unicorn', which the model does not have; the model has " + ", ".join(map(repr, names))
    ) in message
    assert "instances_train.json" in message


def test_a_file_may_have_fewer_categories_than_the_model(folder, content):
    data = load(folder, content, class_names=["cat", "yak", "dog", "unicorn", "emu"])
    assert data.category_ids == [7, 91, 40, 90, 92]
    assert data.labels(1).tolist() == [2, 0]
    assert [row["name"] for row in data.ground_truth()["categories"]] == ["cat", "yak", "dog", "unicorn", "emu"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("iscrowd", "0", "has 'iscrowd' '0': give the number 0 or 1"),
        ("iscrowd", None, "has 'iscrowd' None: give the number 0 or 1"),
        ("iscrowd", 2, "has 'iscrowd' 2: give the number 0 or 1"),
        ("area", "900", "has the area '900': give a number of pixels"),
    ],
)
def test_fields_of_another_type_are_refused(folder, content, name, value, message):
    content["annotations"][0][name] = value
    with pytest.raises(InputError, match=f"annotation 3 .*{message}"):
        load(folder, content)


def test_classes_of_which_crowd_regions_leave_no_object_are_named(folder, content, caplog):
    for row in content["annotations"]:
        row["iscrowd"] = int(row["category_id"] == 7)
    data = load(folder, content)
    assert data.left_out == {"crowd regions with iscrowd 1": 3}
    (warning,) = warnings(caplog)
    assert "crowd regions with iscrowd 1 (3)" in warning
    assert warning.endswith("no object is left of 'cat'")


def test_categories_of_one_name_are_told_apart_by_their_ids(folder, content):
    content["categories"][2]["name"] = "cat"
    assert load(folder, content).class_names == ["cat (7)", "dog", "cat (90)"]


def test_boxes_that_leave_their_image_or_have_no_area_are_clipped_or_dropped_with_one_warning(folder, content, caplog):
    content["annotations"] += [
        {"id": 20, "image_id": 13, "category_id": 7, "bbox": [-5, 10, 10, 50], "area": 500, "iscrowd": 0},
        {"id": 21, "image_id": 13, "category_id": 7, "bbox": [25, 5, 10, 5], "area": 50, "iscrowd": 0},
        {"id": 22, "image_id": 13, "category_id": 7, "bbox": [5, 5, 0, 5], "area": 0, "iscrowd": 0},
        {"id": 23, "image_id": 13, "category_id": 40, "bbox": [30, 5, 4, 4], "area": 16, "iscrowd": 0},
        {"id": 24, "image_id": 13, "category_id": 40, "bbox": [9, 9, -4, -4], "area": 16, "iscrowd": 0},
        {"id": 25, "image_id": 13, "category_id": 40, "bbox": [9, 9, 4, 4], "area": 16, "iscrowd": 0},
        {"id": 26, "image_id": 13, "category_id": 40, "bbox": [-9, 9, 400, 4], "area": 16, "iscrowd": 1},
    ]
    data = load(folder, content)
    np.testing.assert_array_equal(data.boxes(2), [[0, 10, 5, 20], [25, 5, 30, 10], [9, 9, 13, 13]])
    assert data.labels(2).tolist() == [0, 0, 1]
    (warning,) = warnings(caplog)
    assert "instances_train.json" in warning
    assert "clipped to their image (2)" in warning
    assert "left out of training: no area in their image (3)" in warning
    assert "crowd regions with iscrowd 1 (2) (the first: annotation 4 of" in warning
    assert str(folder / "images" / "a.png") in warning


def test_a_warning_names_the_id_of_the_file_also_if_ids_begin_with_0(folder, content, caplog):
    content["annotations"] = [
        {"id": number, "image_id": 12, "category_id": 7, "bbox": box, "area": 100, "iscrowd": 0}
        for number, box in enumerate([[5, 5, 10, 10], [5, 5, 10, 10], [45, 5, 10, 10]])
    ]
    load(folder, content)
    (warning,) = warnings(caplog)
    assert f"(the first: annotation 2 of {folder / 'images' / 'a.png'})" in warning


def test_decimals_that_pass_the_border_by_rounding_are_no_matter_for_a_warning(folder, content, caplog):
    content["annotations"][0]["bbox"] = [29.9, 0, 20.1000000001, 50]
    assert load(folder, content).boxes(1)[0].tolist() == pytest.approx([29.9, 0, 50, 50], abs=1e-5)
    (warning,) = warnings(caplog)  # of the crowd region in the file
    assert "clipped" not in warning


def test_annotations_are_numbered_from_1_if_one_has_the_id_0(folder, content, caplog):
    for row, number in zip(content["annotations"], (0, 7, 3, 2), strict=True):
        row["id"] = number
    data = load(folder, content)
    assert [row["id"] for row in data.ground_truth()["annotations"]] == [1, 2, 3, 4]
    assert len(warnings(caplog)) == 1  # of the crowd region


def test_an_image_of_another_size_than_its_record_is_an_error_when_it_is_read(folder, content):
    cv2.imwrite(str(folder / "images" / "a.png"), np.zeros((25, 26, 3), np.uint8))
    data = load(folder, content)
    with pytest.raises(InputError, match=r"a\.png is 26x25 pixels, but image 12 in .*\.json is recorded as 50x50"):
        data.read(1)


def exif_image(path, width, height, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height)).save(path, exif=exif)


def test_the_size_of_an_image_is_that_after_its_exif_rotation(folder, content):
    content["images"][0]["file_name"] = "b.jpg"
    exif_image(folder / "images" / "b.jpg", 40, 60, orientation=6)
    assert load(folder, content).read(0).shape == (40, 60, 3)
    exif_image(folder / "images" / "b.jpg", 60, 40, orientation=6)
    with pytest.raises(InputError, match=r"b\.jpg is 40x60 pixels after EXIF rotation, but .* 60x40: .*without EXIF"):
        load(folder, content).read(0)


def test_a_damaged_image_is_an_image_error(folder, content):
    path = folder / "images" / "a.png"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ImageError, match=r"a\.png"):
        load(folder, content).read(1)


def test_images_may_lie_in_folders_within_the_folder(folder, content):
    (folder / "images" / "2024").mkdir()
    (folder / "images" / "a.png").rename(folder / "images" / "2024" / "a.png")
    content["images"][1]["file_name"] = "2024/a.png"
    assert (load(folder, content).read(1) == 10).all()


def change(path, value):
    """Damage one place of a file's content; ``None`` removes it."""

    def damage(content):
        *parents, last = path
        for name in parents:
            content = content[name]
        if value is None:
            del content[last]
        else:
            content[last] = value

    return damage


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (change(["images"], None), InputError, r"has no list 'images' \(it has 'annotations', 'categories'\)"),
        (change(["annotations"], {}), InputError, r"has no list 'annotations'.*COCO annotation file holds"),
        (change(["categories"], []), InputError, "lists no categories"),
        (change(["images"], []), InputError, "lists no images"),
        (change(["images", 0], "a.png"), InputError, "number 0 of 'images' is 'a.png'"),
        (change(["images", 0, "id"], None), InputError, r"image number 0 \(without id\) has 'id' None"),
        (change(["images", 0, "id"], "x"), InputError, "image x has 'id' 'x', where a whole number"),
        (change(["images", 0, "id"], 12), InputError, "two of 'images' have the id 12"),
        (change(["images", 0, "width"], "60"), InputError, "image 501 has 'width' '60'"),
        (change(["images", 0, "width"], 0), InputError, r"image 501 \(b\.png\) is recorded as 0x40"),
        (change(["images", 0, "file_name"], None), InputError, "image 501 has no 'file_name'"),
        (change(["images", 0, "file_name"], "c.png"), FileNotFoundError, r"no file .*c\.png for image 501 of"),
        (change(["annotations", 0, "id"], 9), InputError, "two of 'annotations' have the id 9"),
        (change(["annotations", 0, "image_id"], 99), InputError, "annotation 3 belongs to image 99, which"),
        (
            change(["annotations", 0, "category_id"], 8),
            InputError,
            r"annotation 3 \(of image 12\) has category 8.*7, 40",
        ),
        (change(["annotations", 0, "bbox"], None), InputError, r"annotation 3 \(of image 12\) has the bbox None"),
        (change(["annotations", 0, "bbox"], [1, 2, 3]), InputError, r"annotation 3 .*bbox \[1, 2, 3\]: give"),
        (change(["annotations", 0, "bbox", 0], float("nan")), InputError, r"annotation 3 .*bbox \[nan"),
        (change(["annotations", 0, "bbox", 0], 10**400), InputError, r"annotation 3 .*bbox \[1000"),
        (change(["images", 0, "id"], 10**400), InputError, r"has 'id' 1000.*\.\.\..*, where a whole number"),
        (change(["images", 0, "height"], "x" * 9999), InputError, r"image 501 has 'height' 'x+\.\.\.x+', where"),
        (change(["annotations", 0, "bbox"], [0] * 9999), InputError, r"the bbox \[0, 0, 0, 0, 0, 0, \.\.\.\]: give"),
        (change(["annotations", 0], [0] * 9999), InputError, r"number 0 of 'annotations' is \[0, .{,20}\.\.\.\]"),
        (change(["categories", 0, "id"], 7), InputError, "two of 'categories' have the id 7"),
        (change(["categories", 0, "name"], None), InputError, "category 40 has no name"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused_with_the_place_and_the_fix(folder, content, damage, kind, message):
    damage(content)
    with pytest.raises(kind, match=message) as error:
        load(folder, content)
    assert "instances_train.json" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', r"is not JSON \(.*line 1"),
        ("[" * 100_000, "is not JSON .maximum recursion depth"),
        ('{"images": ' + "[" * 100_000 + "]" * 100_000 + "}", "is not JSON .maximum recursion depth"),
        ("[]", "holds a list, as detection results are"),
        ("3", "holds a int"),
        ("{}", "has no list 'images' .it has nothing"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "is not JSON"),
    ],
)
def test_a_file_that_is_not_coco_is_refused(tmp_path, text, message):
    path = tmp_path / "instances.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        CocoDataset(path, tmp_path)


def test_missing_files_and_folders_are_named(folder, content):
    with pytest.raises(FileNotFoundError, match=r"no annotation file .*none\.json"):
        CocoDataset(folder / "none.json", folder)
    load(folder, content)
    with pytest.raises(FileNotFoundError, match=r"no folder of images .*pictures"):
        CocoDataset(folder / "annotations" / "instances_train.json", folder / "pictures")
    for name in ("a.png", "empty.png"):
        (folder / "images" / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.png for image 12 of .* \(1 more are missing\)"):
        load(folder, content)
