import sys
import time

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from classification.data.digits import Digits
from detection import scenes as module
from detection.data.coco_dataset import CocoDataset
from detection.data.layouts.find import find_layout
from detection.data.scenes import Scenes, write_coco


@pytest.fixture(scope="module", params=["train", "val"])
def scenes(request):
    return Scenes(request.param)


def test_a_scene_depends_on_split_and_index_alone(scenes):
    again = Scenes(scenes.split, count=10)
    for index in (7, 0, 3):
        np.testing.assert_array_equal(scenes.read(index), again.read(index))
        np.testing.assert_array_equal(scenes.boxes(index), again.boxes(index))
        np.testing.assert_array_equal(scenes.labels(index), again.labels(index))
    again.boxes(1)
    np.testing.assert_array_equal(scenes.read(7), again.read(7))
    assert (scenes.read(0) != scenes.read(1)).any()


def test_scenes_stay_the_same_from_one_version_to_the_next():
    # Other scenes would make old scores and new ones incomparable.
    assert [Scenes("val").labels(index).tolist() for index in range(5)] == [[1, 0, 8], [6], [3], [3], [9, 1]]
    assert Scenes("train").boxes(0).tolist() == [
        [43, 52, 62, 87],
        [88, 80, 105, 103],
        [72, 11, 94, 43],
        [24, 21, 49, 61],
        [5, 72, 25, 111],
    ]


def test_held_out_scenes_show_the_digits_that_the_digits_classifier_holds_out(scenes):
    assert scenes._ink_labels == Digits(scenes.split).labels
    likeness = []
    for ink, original in zip(scenes._inks, Digits(scenes.split).images, strict=True):
        rows, columns = np.nonzero(original > 100)
        cut = original[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        small = cv2.resize(ink, cut.shape[::-1], interpolation=cv2.INTER_AREA)
        likeness.append(np.corrcoef(small.ravel(), cut.ravel())[0, 1])
    assert np.mean(likeness) > 0.8


def test_training_and_held_out_scenes_share_no_part_of_a_photograph():
    for left, right, whole in zip(
        Scenes("train")._photographs, Scenes("val")._photographs, load_sample_images().images, strict=True
    ):
        np.testing.assert_array_equal(np.concatenate([left, right], axis=1), whole)


def test_a_scene_has_one_to_five_digits_of_20_to_56_pixels_within_128(scenes):
    counts = []
    for index in range(300):
        image, boxes, labels = scenes.read(index), scenes.boxes(index), scenes.labels(index)
        assert image.shape == (128, 128, 3)
        assert image.dtype == np.uint8
        assert scenes.size(index) == (128, 128)
        assert boxes.shape == (len(labels), 4)
        assert boxes.min() >= 0
        assert boxes.max() <= 128
        longer = (boxes[:, 2:] - boxes[:, :2]).max(1)
        assert longer.min() >= 20
        assert longer.max() <= 56
        counts.append(len(labels))
    assert set(counts) == {1, 2, 3, 4, 5}
    seen = np.bincount(np.concatenate([scenes.labels(index) for index in range(300)]), minlength=10)
    assert len(seen) == 10
    assert seen.min() > 0.4 * seen.mean()


def painted(scenes, index):
    """How much each pixel of a scene differs from its photograph, ``(128, 128)``."""
    background = scenes._background(scenes._draw(index, "picture")).astype(int)
    return np.abs(scenes.read(index) - background).mean(2), background


def test_boxes_are_tight_around_the_ink(scenes):
    for index in range(100):
        difference, _ = painted(scenes, index)
        if len(scenes.labels(index)) == 1:
            rows, columns = np.nonzero(difference > 0.5 * difference.max())
            extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(scenes.boxes(index)[0], extent, atol=1.01)


def test_digits_stand_out_from_their_background(scenes):
    contrasts = []
    for index in range(100):
        difference, _ = painted(scenes, index)
        for left, top, right, bottom in scenes.boxes(index).astype(int):
            inside = difference[top:bottom, left:right]
            contrasts.append(inside[inside > 0.5 * inside.max()].mean())
    assert min(contrasts) > 60
    assert np.mean(contrasts) > 100


def test_boxes_overlap_little(scenes):
    for index in range(300):
        boxes = scenes.boxes(index)
        for number, first in enumerate(boxes):
            for second in boxes[:number]:
                grid = np.zeros((2, 128, 128), bool)
                for layer, (left, top, right, bottom) in zip(
                    grid, (first.astype(int), second.astype(int)), strict=True
                ):
                    layer[top:bottom, left:right] = True
                assert grid.all(0).sum() <= 0.1 * grid.sum((1, 2)).min() + 1e-9


def test_a_scene_is_made_in_a_millisecond_or_so(scenes):
    spent = []
    for start in range(0, 150, 30):
        begin = time.process_time()
        for index in range(start, start + 30):
            scenes.read(index), scenes.boxes(index), scenes.labels(index)
        spent.append((time.process_time() - begin) / 30)
    assert min(spent) < 3e-3  # 0.3 ms where nothing else runs


def test_scenes_written_as_coco_are_read_back_as_they_were(tmp_path):
    for split in ("train", "val"):
        write_coco(tmp_path, split, 12)
        scenes, data = Scenes(split, 12), CocoDataset.open(find_layout(tmp_path).splits[split])
        assert len(data) == len(scenes) == 12
        assert data.class_names == list(scenes.class_names)
        assert data.category_ids == list(scenes.category_ids)
        assert data.ground_truth() == scenes.ground_truth()
        for index in range(12):
            np.testing.assert_array_equal(data.read(index), scenes.read(index))
            np.testing.assert_array_equal(data.boxes(index), scenes.boxes(index))
            np.testing.assert_array_equal(data.labels(index), scenes.labels(index))
            assert data.image_id(index) == scenes.image_id(index)
            assert data.size(index) == scenes.size(index)


def test_the_command_writes_both_splits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scenes", str(tmp_path / "scenes"), "--limit", "3"])
    module.main()
    assert capsys.readouterr().out.splitlines() == [
        f"3 {split} scenes in {tmp_path / 'scenes'}/" for split in ("train", "val")
    ]
    assert len(list((tmp_path / "scenes" / "images").glob("*.png"))) == 6
