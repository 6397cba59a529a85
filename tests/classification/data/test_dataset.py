"""Images that cannot be read, in training and evaluation."""

import pytest
import torch

from mobile_former.errors import InputError
from tests.classification.data.conftest import Watcher, data_of, fit
from tests.conftest import trainer_with


def spoil(path):
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_training_image_is_replaced_and_reported_once(folder, workers, caplog):
    broken = folder / "train" / "green" / "1.jpg"
    spoil(broken)
    data = data_of(folder, num_workers=workers, batch_size=3)
    module = fit(data, epochs=3)
    warnings = [record.getMessage() for record in caplog.records if record.name == "mobile_former.training.data.module"]
    assert len(warnings) == 1
    assert str(broken) in warnings[0]
    assert "training continues without it" in warnings[0]
    assert len(data.skipped) == 1
    assert str(broken) in next(iter(data.skipped))
    assert len(module.trained) == 9
    for epoch in range(3):  # the next image, green/2.jpg, replaces it
        labels = torch.cat([batch["label"] for batch in module.trained[3 * epoch : 3 * epoch + 3]])
        assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert all(len(batch["image"]) == 3 for batch in module.trained)


def test_the_first_image_replaces_an_unreadable_last_one(folder):
    spoil(folder / "train" / "red" / "2.jpg")
    data = data_of(folder, batch_size=9)
    (batch,) = fit(data).trained
    assert sorted(batch["label"].tolist()) == [0, 0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_validation_image_stops_the_evaluation(folder, workers):
    spoil(folder / "val" / "red" / "0.jpg")
    with pytest.raises(InputError, match=r"val/red/0\.jpg.*change the score"):
        trainer_with().validate(Watcher(), data_of(folder, num_workers=workers), verbose=False)


def test_an_unreadable_validation_image_stops_the_training(folder):
    spoil(folder / "val" / "red" / "0.jpg")
    with pytest.raises(InputError, match=r"val/red/0\.jpg.*change the score"):
        fit(data_of(folder))


def test_a_batch_of_only_unreadable_validation_images_stops_the_run(folder):
    for path in (folder / "val").rglob("*.jpg"):
        spoil(path)
    with pytest.raises(InputError, match=r"val/blue/0\.jpg"):
        fit(data_of(folder))


@pytest.mark.parametrize("workers", [0, 2])
def test_it_is_an_error_if_no_training_image_can_be_read(folder, workers):
    for path in (folder / "train").rglob("*.jpg"):
        spoil(path)
    with pytest.raises(InputError, match=r"none of the 9 training images can be read; the first: .*\.jpg"):
        fit(data_of(folder, num_workers=workers))
