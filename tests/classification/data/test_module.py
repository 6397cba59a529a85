import shutil
from types import SimpleNamespace

import albumentations as A
import cv2
import numpy as np
import pytest
import torch

from classification.data.image_folder import ImageFolder
from classification.data.module import ClassificationData
from mobile_former.errors import InputError
from tests.classification.data.conftest import CLASSES, Watcher, data_of, fit
from tests.conftest import trainer_with, write_image_folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 31}, "image_size is 31.*32"),
        ({"batch_size": 0}, "batch_size is 0.*at least 1"),
        ({"crop_fraction": 0.0}, "crop_fraction is 0"),
        ({"crop_fraction": 1.1}, "crop_fraction is 1.1"),
        ({"root": None}, "--data.root"),
        ({"class_balance": 1.5}, "class_balance is 1.5"),
        ({"class_balance": 0.5, "dataset": "shards"}, "class_balance does not apply to shards"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(InputError, match=message):
        ClassificationData(**({"root": "photos"} | options))


@pytest.mark.parametrize(("balance", "exponent"), [(1.0, 0.0), (0.5, 0.5)])
def test_class_balance_evens_out_the_frequencies_of_the_classes(tmp_path, balance, exponent):
    root = write_image_folder(tmp_path / "some", ("few", "many"), train=32, val=1, side=32)
    for path in sorted((root / "train" / "few").iterdir())[2:]:
        path.unlink()
    data = data_of(root, class_balance=balance)
    data.setup("fit")
    sampler, counts = data.train_sampler(), np.zeros(2)
    for epoch in range(100):
        sampler.set_epoch(epoch)
        counts += np.bincount([data.train_set.source.labels[draw.index] for draw in sampler], minlength=2)
    shares = np.array([2.0, 32.0]) ** exponent
    assert counts.sum() == 3400
    np.testing.assert_allclose(counts / 3400, shares / shares.sum(), atol=0.05)  # 5 standard deviations are 0.043


def test_the_class_names_are_those_of_the_training_images_or_of_a_model(folder):
    data = data_of(folder)
    assert data.class_names == list(CLASSES)
    data = data_of(folder)
    data.class_names = ("red", "green", "blue", "purple")
    assert data.class_names == ["red", "green", "blue", "purple"]
    data.setup("validate")
    source = data.val_set.source
    assert {(path.parent.name, label) for path, label in zip(source.paths, source.labels, strict=True)} == {
        ("red", 0),
        ("green", 1),
        ("blue", 2),
    }


def test_validation_with_the_class_names_of_a_model_needs_no_training_images(folder):
    shutil.rmtree(folder / "train")
    data = data_of(folder)
    data.class_names = CLASSES
    data.setup("validate")
    assert len(data.val_set) == 6


def test_the_test_stage_uses_the_test_images_if_they_exist(folder):
    data = data_of(folder)
    data.setup("test")
    assert (data.test_split, len(data.test_set)) == ("val", 6)
    shutil.copytree(folder / "val" / "red", folder / "test" / "red")
    data = data_of(folder)
    data.setup("test")
    assert (data.test_split, data.test_set.source.labels) == ("test", [2, 2])


def test_the_data_set_has_the_name_of_its_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert data_of(folder).dataset_name == data_of(".").dataset_name == "photos"
    assert ClassificationData("digits").dataset_name == "digits"


def test_batches_are_normalised_only_on_the_device(image_folder):
    data = data_of(image_folder, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        batch = next(iter(loader))
        assert batch["image"].shape == (4, 3, 32, 32)
        assert batch["image"].dtype == torch.uint8
        assert batch["label"].dtype == torch.int64
        data.trainer = trainer_with()
        data.trainer.strategy.connect(Watcher())
        normalised = data.on_after_batch_transfer(data.on_before_batch_transfer(dict(batch), 0), 0)
        reference = A.Compose([A.Normalize(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))])
        expected = [reference(image=image.permute(1, 2, 0).numpy())["image"] for image in batch["image"]]
        torch.testing.assert_close(normalised["image"].permute(0, 2, 3, 1), torch.from_numpy(np.stack(expected)))
        assert set(normalised) == {"image", "label", "name"}


def test_the_model_gets_images_normalised_with_the_statistics_of_imagenet(image_folder):
    module = fit(data_of(image_folder, batch_size=24, crop_fraction=1.0))
    images = torch.cat([batch["image"] for batch in module.validated])
    paths = ImageFolder(image_folder, "val", list(CLASSES)).paths
    means = np.array([cv2.imread(str(path))[..., ::-1].mean((0, 1)) / 255 for path in paths])
    expected = (means - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(images.mean((2, 3)).numpy(), expected, atol=0.01)


@pytest.mark.parametrize(("batch_size", "sizes"), [(9, [9]), (4, [4, 4]), (5, [5]), (10, [9]), (100, [9])])
def test_an_incomplete_last_training_batch_is_dropped_unless_it_is_the_only_one(folder, batch_size, sizes):
    module = fit(data_of(folder, batch_size=batch_size))
    assert [len(batch["label"]) for batch in module.trained] == sizes


@pytest.mark.parametrize(("batch_size", "sizes"), [(6, [6]), (4, [4, 2]), (5, [5, 1]), (100, [6])])
def test_every_validation_image_is_evaluated_once_and_in_order(folder, batch_size, sizes):
    module = fit(data_of(folder, batch_size=batch_size))
    assert [len(batch["label"]) for batch in module.validated] == sizes
    assert torch.cat([batch["label"] for batch in module.validated]).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("seed", [0, 1])
def test_two_fits_with_the_same_seed_see_the_same_images_with_and_without_workers(folder, seed):
    seen = []
    for workers in (0, 2):
        torch.manual_seed(seed)
        module = fit(data_of(folder, num_workers=workers, rand_augment=True, random_erasing=0.5), epochs=2)
        seen.append(torch.stack([batch["image"] for batch in module.trained]))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0][:2], seen[0][2:]), "the second epoch should draw other images"


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
    for number in range(3):  # the three colours of the folder, in the channel order of the written files
        colour = np.array([number * 85, 128, 255 - number * 85])
        assert (np.abs(picture - colour).max(2) < 40).mean() > 0.05


def test_the_data_is_described_in_one_line(folder):
    data = data_of(folder)
    data.setup("fit")
    assert data.describe() == ("photos: 9 training and 6 validation images of 3 classes, 32x32 pixels, batches of 4")


def test_files_that_are_left_out_are_counted_once_in_a_run(folder, caplog):
    (folder / "val" / "red" / "notes.txt").write_text("mine")
    data = data_of(folder)
    data.class_names = list(CLASSES)
    for stage in ("fit", "validate", "test"):
        data.setup(stage)
    assert caplog.text.count("1 .txt") == 1


@pytest.mark.parametrize(("batches", "more"), [(2, 0), (2, None), (0, 1)])
def test_a_run_resumes_with_the_same_images_or_between_epochs(image_folder, batches, more):
    data = resumed(image_folder)
    images = {} if more is None else {"images": len(data.train_set) + more}  # older checkpoints lack it
    data.load_state_dict({"epoch": 1, "batches": batches, "shares": [4, 1]} | images)
    assert (data.first_epoch, data.first_batch) == (1, batches)


def test_a_run_does_not_resume_within_an_epoch_of_other_images(image_folder):
    data = resumed(image_folder)
    count = len(data.train_set)
    with pytest.raises(InputError, match=f"within epoch 2 of {count + 1} training images, but now there are {count}:"):
        data.load_state_dict({"epoch": 1, "batches": 2, "shares": [4, 1], "images": count + 1})


def resumed(image_folder):
    """A data module of a run that is about to resume."""
    data = data_of(image_folder, batch_size=4)
    data.class_names = list(CLASSES)
    data.setup("fit")
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), world_size=1)
    return data
