import shutil

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn

from classification.data.image_folder import ImageFolder, list_classes
from classification.data.module import ClassificationData
from classification.digits import Digits
from mobile_former.errors import InputError
from tests.conftest import write_image_folder

CLASSES = ("blue", "green", "red")


class Watcher(LightningModule):
    """A linear layer that keeps the batches it is given."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.trained, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.trained.append(batch)
        return nn.functional.cross_entropy(self.layer(batch["image"].mean((2, 3))), batch["label"])

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def data_of(root, **options):
    options = {"image_size": 32, "batch_size": 4, "num_workers": 0} | options
    return ClassificationData("folder", str(root), **options)


def trainer(**options):
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


def fit(data, epochs=1):
    module = Watcher()
    trainer(max_epochs=epochs).fit(module, data)
    return module


@pytest.fixture
def folder(tmp_path):
    """A folder of one's own, to damage: nine training and six validation images."""
    return write_image_folder(tmp_path / "photos", CLASSES, train=3, val=2, side=40)


# The folder


def test_labels_follow_the_order_of_the_class_names_given(image_folder):
    images = ImageFolder(image_folder, "train", ["red", "purple", "blue", "green"])
    assert len(images) == len(images.labels) == 24
    order = {"red": 0, "blue": 2, "green": 3}
    assert [order[path.parent.name] for path in images.paths] == images.labels
    assert {str(path) for path in images.paths} == {images.name(index) for index in range(24)}
    colour = images.read(images.labels.index(2)).mean((0, 1))
    np.testing.assert_allclose(colour, cv2.imread(images.name(images.labels.index(2)))[..., ::-1].mean((0, 1)), atol=2)


def test_classes_are_the_folders_of_the_training_images_sorted(folder):
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


def test_images_may_lie_in_folders_within_a_classs_folder(folder):
    (folder / "train" / "red" / "2024").mkdir()
    (folder / "train" / "red" / "0.jpg").rename(folder / "train" / "red" / "2024" / "0.JPG")
    assert ImageFolder(folder, "train", list(CLASSES)).labels == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_class_without_validation_images_is_no_error(folder):
    shutil.rmtree(folder / "val" / "green")
    assert ImageFolder(folder, "val", list(CLASSES)).labels == [0, 0, 2, 2]


def break_nothing(folder):
    shutil.rmtree(folder)


def break_train(folder):
    (folder / "train").rename(folder / "training")


def break_classes(folder):
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()


def break_empty(folder):
    for path in (folder / "train" / "green").iterdir():
        path.unlink()


def break_val(folder):
    shutil.rmtree(folder / "val")


def break_unknown(folder):
    (folder / "val" / "green").rename(folder / "val" / "teal")


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (break_nothing, FileNotFoundError, r"no folder .*photos \(--data\.root\): expected DIR/train/<class>"),
        (break_train, FileNotFoundError, r"photos has no folder 'train' \(it has 'training', 'val'\): expected DIR"),
        (break_classes, InputError, r"photos/train has no class folders: expected DIR"),
        (break_empty, InputError, r"photos/train/green holds no images"),
        (break_val, FileNotFoundError, r"photos has no folder 'val' \(it has 'train'\)"),
        (break_unknown, InputError, r"photos/val has the class 'teal'.*it knows 'blue', 'green', 'red'"),
    ],
)
def test_a_folder_of_another_layout_is_refused_with_what_was_found_and_expected(folder, damage, kind, message):
    damage(folder)
    with pytest.raises(kind, match=message):
        data_of(folder).setup("fit")


def test_many_class_names_are_abridged_in_a_message(folder):
    with pytest.raises(InputError, match=r"'c9' and 90 more\)") as error:
        ImageFolder(folder, "train", [f"c{index}" for index in range(100)])
    assert "'c10'" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 31}, "image_size is 31.*32"),
        ({"batch_size": 0}, "batch_size is 0.*at least 1"),
        ({"crop_fraction": 0.0}, "crop_fraction is 0"),
        ({"crop_fraction": 1.1}, "crop_fraction is 1.1"),
        ({"root": None}, "--data.root"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, message):
    with pytest.raises(InputError, match=message):
        ClassificationData(**({"root": "photos"} | options))


# Class names


def test_class_names_are_those_of_the_training_images_unless_a_model_brings_its_own(folder):
    data = data_of(folder)
    assert data.class_names == list(CLASSES)
    data = data_of(folder)
    data.class_names = ("red", "green", "blue", "purple")
    assert data.class_names == ["red", "green", "blue", "purple"]
    data.setup("validate")
    assert data.val_set.source.labels == [0, 0, 1, 1, 2, 2]


def test_validating_with_a_models_class_names_needs_no_training_images(folder):
    shutil.rmtree(folder / "train")
    data = data_of(folder)
    data.class_names = CLASSES
    data.setup("validate")
    assert len(data.val_set) == 6


def test_testing_takes_the_test_images_where_there_are_some(folder):
    data = data_of(folder)
    data.setup("test")
    assert (data.test_split, len(data.test_set)) == ("val", 6)
    shutil.copytree(folder / "val" / "red", folder / "test" / "red")
    data = data_of(folder)
    data.setup("test")
    assert (data.test_split, data.test_set.source.labels) == ("test", [2, 2])


def test_the_data_set_is_named_after_its_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert data_of(folder).dataset_name == data_of(".").dataset_name == "photos"
    assert ClassificationData("digits").dataset_name == "digits"


# Digits


def test_digits_are_split_without_overlap_into_all_that_scikit_learn_has():
    from sklearn.datasets import load_digits

    train, val = Digits("train"), Digits("val")
    assert (len(train), len(val)) == (1437, 360)
    original = sorted(
        (image / 16).round(4).tobytes() + bytes([label])
        for image, label in zip(*load_digits(return_X_y=True), strict=True)
    )
    kept = []
    for split in (train, val):
        for image, label in zip(split.images, split.labels, strict=True):
            sixteenths = np.round(image.astype(float) * 16 / 255)
            kept.append((sixteenths.ravel() / 16).round(4).tobytes() + bytes([label]))
    assert sorted(kept) == original


def test_digits_hold_out_a_fifth_of_each_class():
    train, val = (np.bincount(Digits(split).labels, minlength=10) for split in ("train", "val"))
    assert np.abs(val / (train + val) - 0.2).max() < 0.005


def test_digits_are_the_same_under_every_seed():
    np.random.seed(0), torch.manual_seed(0)
    first = Digits("val")
    np.random.seed(1), torch.manual_seed(1)
    again = Digits("val")
    assert first.labels == again.labels
    np.testing.assert_array_equal(first.images, again.images)
    # Another split would have old checkpoints scored on digits that they were trained on.
    assert first.labels[:20] == [1, 4, 8, 6, 5, 9, 9, 1, 3, 2, 2, 2, 0, 7, 4, 8, 1, 5, 3, 9]


def test_a_digit_is_an_enlarged_grey_rgb_image():
    digits = Digits("train")
    image = digits.read(0)
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert (image == image[..., :1]).all()
    likeness = []
    for border in range(3):  # whatever may have been laid around it
        small = cv2.resize(image[..., 0], (8 + 2 * border,) * 2, interpolation=cv2.INTER_AREA).astype(int)
        small = small[border : border + 8, border : border + 8]
        likeness.append(np.corrcoef(small.ravel(), digits.images[0].ravel())[0, 1])
    assert max(likeness) > 0.95


# Images that cannot be read


def spoil(path):
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_image_that_cannot_be_read_is_replaced_and_told_once(folder, workers, caplog):
    broken = folder / "train" / "green" / "1.jpg"
    spoil(broken)
    data = data_of(folder, num_workers=workers, batch_size=3)
    module = fit(data, epochs=3)
    warnings = [record.getMessage() for record in caplog.records if record.name == "mobile_former.training.data.module"]
    assert len(warnings) == 1
    assert str(broken) in warnings[0]
    assert "training goes on without it" in warnings[0]
    assert len(data.skipped) == 1
    assert str(broken) in next(iter(data.skipped))
    assert len(module.trained) == 9
    for epoch in range(3):  # the next image, green/2.jpg, stands in
        labels = torch.cat([batch["label"] for batch in module.trained[3 * epoch : 3 * epoch + 3]])
        assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert all(len(batch["image"]) == 3 for batch in module.trained)


def test_after_the_last_image_the_first_stands_in(folder):
    spoil(folder / "train" / "red" / "2.jpg")
    data = data_of(folder, batch_size=9)
    (batch,) = fit(data).trained
    assert sorted(batch["label"].tolist()) == [0, 0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_validation_image_that_cannot_be_read_stops_the_evaluation(folder, workers):
    spoil(folder / "val" / "red" / "0.jpg")
    with pytest.raises(InputError, match=r"val/red/0\.jpg.*change the score"):
        trainer().validate(Watcher(), data_of(folder, num_workers=workers), verbose=False)


def test_a_validation_image_that_cannot_be_read_stops_a_training(folder):
    spoil(folder / "val" / "red" / "0.jpg")
    with pytest.raises(InputError, match=r"val/red/0\.jpg.*change the score"):
        fit(data_of(folder))


def test_a_batch_of_nothing_but_broken_validation_images_stops_the_run(folder):
    for path in (folder / "val").rglob("*.jpg"):
        spoil(path)
    with pytest.raises(InputError, match=r"val/blue/0\.jpg"):
        fit(data_of(folder))


@pytest.mark.parametrize("workers", [0, 2])
def test_training_images_none_of_which_can_be_read_are_an_error(folder, workers):
    for path in (folder / "train").rglob("*.jpg"):
        spoil(path)
    with pytest.raises(InputError, match=r"none of the 9 training images can be read; the first: .*\.jpg"):
        fit(data_of(folder, num_workers=workers))


# Batches


def test_a_batch_is_bytes_until_it_is_on_its_device(image_folder):
    data = data_of(image_folder, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        batch = next(iter(loader))
        assert batch["image"].shape == (4, 3, 32, 32)
        assert batch["image"].dtype == torch.uint8
        assert batch["label"].dtype == torch.int64
        data.trainer = trainer()
        data.trainer.strategy.connect(Watcher())
        normalised = data.on_after_batch_transfer(data.on_before_batch_transfer(dict(batch), 0), 0)
        reference = A.Compose([A.Normalize(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))])
        expected = [reference(image=image.permute(1, 2, 0).numpy())["image"] for image in batch["image"]]
        torch.testing.assert_close(normalised["image"].permute(0, 2, 3, 1), torch.from_numpy(np.stack(expected)))
        assert set(normalised) == {"image", "label"}


def test_what_the_model_gets_is_normalised_by_imagenets_statistics(image_folder):
    module = fit(data_of(image_folder, batch_size=24, crop_fraction=1.0))
    images = torch.cat([batch["image"] for batch in module.validated])
    paths = ImageFolder(image_folder, "val", list(CLASSES)).paths
    means = np.array([cv2.imread(str(path))[..., ::-1].mean((0, 1)) / 255 for path in paths])
    expected = (means - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(images.mean((2, 3)).numpy(), expected, atol=0.01)


@pytest.mark.parametrize(("batch_size", "sizes"), [(9, [9]), (4, [4, 4]), (5, [5]), (10, [9]), (100, [9])])
def test_the_smaller_last_training_batch_is_left_out_unless_it_is_the_only_one(folder, batch_size, sizes):
    module = fit(data_of(folder, batch_size=batch_size))
    assert [len(batch["label"]) for batch in module.trained] == sizes


@pytest.mark.parametrize(("batch_size", "sizes"), [(6, [6]), (4, [4, 2]), (5, [5, 1]), (100, [6])])
def test_every_validation_image_is_evaluated_once_and_in_order(folder, batch_size, sizes):
    module = fit(data_of(folder, batch_size=batch_size))
    assert [len(batch["label"]) for batch in module.validated] == sizes
    assert torch.cat([batch["label"] for batch in module.validated]).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("seed", [0, 1])
def test_two_fits_of_one_seed_see_the_same_images_with_and_without_workers(folder, seed):
    seen = []
    for workers in (0, 2):
        torch.manual_seed(seed)
        module = fit(data_of(folder, num_workers=workers, rand_augment=True, random_erasing=0.5), epochs=2)
        seen.append(torch.stack([batch["image"] for batch in module.trained]))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0][:2], seen[0][2:]), "the second epoch should draw anew"


def test_another_seed_shows_other_images(folder):
    seen = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        seen.append(torch.stack([batch["image"] for batch in fit(data_of(folder)).trained]))
    assert not torch.equal(*seen)


def test_the_sheet_of_augmented_images_is_written(folder):
    data = data_of(folder)
    data.setup("fit")
    data.draw_augmented(folder / "augmented.png")
    picture = cv2.imread(str(folder / "augmented.png")).astype(int)
    for number in range(3):  # the folder's three colours, in the order of channels in which it was written
        colour = np.array([number * 85, 128, 255 - number * 85])
        assert (np.abs(picture - colour).max(2) < 40).mean() > 0.05


def test_a_line_describes_the_data(folder):
    data = data_of(folder)
    data.setup("fit")
    assert data.describe() == ("photos: 9 training and 6 validation images of 3 classes, 32x32 pixels, batches of 4")
