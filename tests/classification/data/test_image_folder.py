import shutil

import cv2
import numpy as np
import pytest

from classification.data.image_folder import ImageFolder, list_classes
from mobile_former.errors import InputError
from tests.classification.data.conftest import CLASSES, data_of


def test_labels_follow_the_order_of_the_given_class_names(image_folder):
    images = ImageFolder(image_folder, "train", ["red", "purple", "blue", "green"])
    assert len(images) == len(images.labels) == 24
    order = {"red": 0, "blue": 2, "green": 3}
    assert [order[path.parent.name] for path in images.paths] == images.labels
    assert {str(path) for path in images.paths} == {images.name(index) for index in range(24)}
    colour = images.read(images.labels.index(2)).mean((0, 1))
    np.testing.assert_allclose(colour, cv2.imread(images.name(images.labels.index(2)))[..., ::-1].mean((0, 1)), atol=2)


def test_the_classes_are_the_sorted_class_folders(folder):
    for name in ("Ähre", "10", "9"):
        shutil.copytree(folder / "train" / "red", folder / "train" / name)
    assert list_classes(folder, "train") == ["10", "9", "blue", "green", "red", "Ähre"]


def test_hidden_folders_and_stray_files_are_ignored(folder):
    shutil.copytree(folder / "train" / "red", folder / "train" / ".cache")
    (folder / "train" / "notes.txt").write_text("mine")
    (folder / "train" / "red" / "labels.csv").write_text("mine")
    (folder / "train" / "red" / "._0.jpg").write_bytes(b"mac")
    assert list_classes(folder, "train") == list(CLASSES)
    assert len(ImageFolder(folder, "train", list(CLASSES))) == 9


def test_files_that_are_no_images_are_counted_by_suffix(folder, caplog):
    for name in ("red/1.heic2", "red/notes.txt", "blue/notes.TXT", "blue/readme"):
        (folder / "train" / name).write_text("mine")
    (folder / "train" / "red" / "0.jpg").rename(folder / "train" / "red" / "photo")
    assert len(ImageFolder(folder, "train", list(CLASSES))) == 9
    assert f"{folder / 'train'}: 4 of 13 files are left out: 2 .txt, 1 without a suffix, 1 .heic2" in caplog.text
    caplog.clear()
    assert len(ImageFolder(folder, "val", list(CLASSES))) > 0
    assert not caplog.text


def test_images_in_subfolders_of_a_class_folder_are_found(folder):
    (folder / "train" / "red" / "2024").mkdir()
    (folder / "train" / "red" / "0.jpg").rename(folder / "train" / "red" / "2024" / "0.JPG")
    assert ImageFolder(folder, "train", list(CLASSES)).labels == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_class_may_have_no_validation_images(folder):
    shutil.rmtree(folder / "val" / "green")
    assert ImageFolder(folder, "val", list(CLASSES)).labels == [0, 0, 2, 2]


def remove_root(folder):
    shutil.rmtree(folder)


def remove_classes(folder):
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()


def rename_class(folder):
    (folder / "val" / "green").rename(folder / "val" / "teal")


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (remove_root, FileNotFoundError, r"photos does not exist \(--data\.root\): expected DIR/train/<class>"),
        (remove_classes, InputError, r"photos/train has no class folders: expected DIR"),
        (rename_class, InputError, r"photos/val has the class 'teal'.*it has 'blue', 'green', 'red'"),
    ],
)
def test_another_layout_is_refused_with_the_found_and_expected_folders(folder, damage, kind, message):
    damage(folder)
    with pytest.raises(kind, match=message):
        data_of(folder).setup("fit")


def test_messages_abridge_many_class_names(folder):
    with pytest.raises(InputError, match=r"'c9' and 90 more\)") as error:
        ImageFolder(folder, "train", [f"c{index}" for index in range(100)])
    assert "'c10'" not in str(error.value)
