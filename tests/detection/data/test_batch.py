from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from lightning_fabric.utilities.data import _set_sampler_epoch
from torch.utils.data import DataLoader

from detection.boxes.geometry import cxcywh_to_xyxy
from detection.data.batch import ShapeBatchSampler, collate, make_sample, pad
from detection.data.coco_dataset import CocoDataset
from detection.data.layouts.find import find_layout
from detection.data.scenes import Scenes, write_coco
from detection.transforms import custom_transform, eval_transform, train_transform
from mobile_former.errors import InputError
from mobile_former.training.data import sampler as sampler_module
from mobile_former.training.data.dataset import EvaluationImages, TrainingImages
from mobile_former.training.data.images import ImageError
from mobile_former.training.data.sampler import Draw, EpochSampler


class Made:
    """Black images of given sizes, each with white boxes; some cannot be read."""

    class_names = ("thing", "other")
    category_ids = (1, 2)

    def __init__(self, sizes, broken=(), wrong=()):
        self.sizes, self.broken, self.wrong = sizes, broken, wrong

    def __len__(self):
        return len(self.sizes)

    def read(self, index):
        if index in self.broken:
            raise ImageError(f"{self.name(index)}: cut short")
        if index in self.wrong:
            raise InputError(f"{self.name(index)} is of another size")
        image = np.zeros((*self.sizes[index], 3), np.uint8)
        for left, top, right, bottom in self.boxes(index).astype(int):
            image[top:bottom, left:right] = 255
        return image

    def boxes(self, index):
        height, width = self.sizes[index]
        boxes = [[0, 0, width // 2, height // 4], [width // 2, height // 2, width, height]]
        return np.array(boxes[: index % 3], dtype=np.float32).reshape(-1, 4)

    def labels(self, index):
        return np.array([1, 0][: index % 3], dtype=np.int64)

    def image_id(self, index):
        return 100 + index

    def size(self, index):
        return self.sizes[index]

    def name(self, index):
        return f"image{index}.jpg"


UNCHANGED = custom_transform([])
SIZES = [(50, 70), (40, 30), (64, 20), (33, 90), (60, 60), (10, 96)]


def test_images_are_padded_right_and_below_to_a_multiple_of_32_and_the_mask_tells_where():
    source = Made(SIZES)
    dataset = EvaluationImages(source, UNCHANGED, make_sample)
    batch = collate([dataset[index] for index in range(6)])
    assert batch["image"].shape == (6, 3, 64, 96)
    assert batch["image"].dtype == torch.uint8
    assert batch["padding_mask"].shape == (6, 64, 96)
    assert batch["padding_mask"].dtype == torch.bool
    for index, (height, width) in enumerate(SIZES):
        expected = torch.ones(64, 96, dtype=torch.bool)
        expected[:height, :width] = False
        assert torch.equal(batch["padding_mask"][index], expected)
        image = torch.from_numpy(source.read(index)).permute(2, 0, 1)
        assert torch.equal(batch["image"][index, :, :height, :width], image)
        assert not batch["image"][index][:, expected].any()
    assert batch["image_ids"].tolist() == [100, 101, 102, 103, 104, 105]
    assert [tuple(size) for size in batch["image_sizes"].tolist()] == SIZES
    assert batch["failures"] == batch["errors"] == []


@pytest.mark.parametrize(("size", "padded"), [((1, 1), (32, 32)), ((32, 64), (32, 64)), ((33, 64), (64, 64))])
def test_a_single_image_is_padded_too(size, padded):
    images, mask = pad([torch.full((3, *size), 7, dtype=torch.uint8)])
    assert images.shape == (1, 3, *padded)
    if size == padded:
        assert mask is None  # nothing has to be masked
    else:
        assert mask.shape == (1, *padded)
        assert (~mask).sum() == size[0] * size[1]


def test_boxes_are_shares_of_the_image_without_its_padding():
    dataset = EvaluationImages(Made(SIZES), UNCHANGED, make_sample)
    batch = collate([dataset[index] for index in range(6)])
    for index, (target, (height, width)) in enumerate(zip(batch["targets"], SIZES, strict=True)):
        assert target["labels"].tolist() == [1, 0][: index % 3]
        assert target["labels"].dtype == torch.int64
        assert target["boxes"].shape == (index % 3, 4)
        assert target["boxes"].dtype == torch.float32
        corners = cxcywh_to_xyxy(target["boxes"]) * torch.tensor([width, height, width, height])
        np.testing.assert_allclose(corners, Made(SIZES).boxes(index), atol=1e-4)
        white = torch.zeros(height, width, dtype=torch.bool)
        for left, top, right, bottom in corners.round().long():
            white[top:bottom, left:right] = True
        assert torch.equal(batch["image"][index, 0, :height, :width] == 255, white)


def test_shares_stay_the_same_when_an_image_is_resized_and_its_original_size_is_told():
    source = Made([(60, 80)] * 3)
    sample = EvaluationImages(source, eval_transform(120, 1333), make_sample)[2]
    assert sample["image"].shape == (3, 120, 160)
    assert sample["size"] == (60, 80)
    expected = [[0.25, 0.125, 0.5, 0.25], [0.75, 0.75, 0.5, 0.5]]
    np.testing.assert_allclose(sample["target"]["boxes"], expected, atol=1e-6)


def test_in_place_of_a_training_image_that_cannot_be_read_comes_the_next_and_the_failure_is_told():
    dataset = TrainingImages(Made(SIZES, broken={4, 5, 0}), UNCHANGED, make_sample, seed=0)
    batch = collate([dataset[Draw(4, 0)], dataset[Draw(2, 0)]])
    assert batch["image_ids"].tolist() == [101, 102]
    assert [message.split(":")[0] for message in batch["failures"]] == ["image4.jpg", "image5.jpg", "image0.jpg"]
    assert batch["errors"] == []


def test_an_evaluation_image_that_cannot_be_read_is_told_and_no_other_takes_its_place():
    dataset = EvaluationImages(Made(SIZES, broken={1}), UNCHANGED, make_sample)
    batch = collate([dataset[index] for index in range(3)])
    assert batch["image_ids"].tolist() == [100, 102]
    assert batch["failures"] == ["image1.jpg: cut short"]
    assert collate([dataset[1]]) == {"failures": ["image1.jpg: cut short"], "errors": []}


def test_what_has_to_stop_a_run_is_told_as_an_error():
    source = Made(SIZES, broken={2}, wrong={3})
    for sample in (
        EvaluationImages(source, UNCHANGED, make_sample)[3],
        TrainingImages(source, UNCHANGED, make_sample, seed=0)[Draw(2, 0)],
    ):
        assert collate([sample])["errors"] == ["image3.jpg is of another size"]
    dataset = TrainingImages(Made(SIZES, broken=range(6)), UNCHANGED, make_sample, seed=0)
    (error,) = collate([dataset[Draw(3, 0)]])["errors"]
    assert error == "none of the 6 training images can be read; the first: image3.jpg: cut short"


def loader(workers, seed=0, epoch=0):
    source = Made([(60, 80), (80, 60), (70, 70), (50, 90)])
    dataset = TrainingImages(source, train_transform((64, 96, 128), 200), make_sample, seed)
    sampler = EpochSampler(4, seed)
    sampler.set_epoch(epoch)
    return DataLoader(dataset, 2, sampler=sampler, num_workers=workers, collate_fn=collate)


def test_training_batches_are_the_same_with_and_without_workers():
    for first, second in zip(loader(0), loader(2), strict=True):
        for name in ("image", "padding_mask", "image_ids", "image_sizes"):
            assert torch.equal(first[name], second[name])
        for mine, other in zip(first["targets"], second["targets"], strict=True):
            assert torch.equal(mine["boxes"], other["boxes"])
            assert torch.equal(mine["labels"], other["labels"])


def test_another_epoch_draws_anew():
    first, second = next(iter(loader(0))), next(iter(loader(0, epoch=1)))
    assert first["image"].shape != second["image"].shape or not torch.equal(first["image"], second["image"])


def shapes(count=403):
    generator = np.random.default_rng(0)
    return [(480, 640) if upright else (640, 480 + int(more)) for upright, more in
            zip(generator.random(count) < 0.7, generator.integers(0, 100, count), strict=True)]  # fmt: skip


def batches(epoch=0, seed=3, count=403, **options):
    sampler = EpochSampler(count, seed)
    sampler.set_epoch(epoch)
    return ShapeBatchSampler(sampler, Made(shapes(count)), 4, **options)


def test_batches_by_shape_hold_each_image_once_an_epoch():
    for drop_last, count, expected in ((False, 403, 101), (True, 403, 100), (True, 404, 101), (False, 3, 1)):
        found = list(batches(count=count, drop_last=drop_last))
        assert len(found) == len(batches(count=count, drop_last=drop_last)) == expected
        indices = [draw.index for batch in found for draw in batch]
        assert len(set(indices)) == len(indices) == (count // 4 * 4 if drop_last else count)
        assert all(draw.epoch == 0 for batch in found for draw in batch)
        assert sum(len(batch) < 4 for batch in found) == (count % 4 > 0 and not drop_last)


def test_batches_by_shape_depend_on_seed_and_epoch_alone():
    assert list(batches()) == list(batches())
    torch.manual_seed(5), np.random.seed(5)
    assert list(batches()) == list(batches())
    indices = [[draw.index for batch in found for draw in batch] for found in (batches(), batches(1), batches(seed=4))]
    assert indices[0] != indices[1]
    assert indices[0] != indices[2]


def padding(found):
    """Share of pixels that are padding."""
    sizes = np.array(shapes())
    used = sum(sizes[draw.index].prod() for batch in found for draw in batch)
    laid = sum(len(batch) * sizes[[draw.index for draw in batch]].max(0).prod() for batch in found)
    return 1 - used / laid


def test_batches_by_shape_have_much_less_padding():
    order = list(EpochSampler(403, 3))
    assert padding(batches()) < 0.2 * padding([order[first : first + 4] for first in range(0, 403, 4)])


def test_batches_by_shape_come_in_random_order():
    sizes = shapes()
    upright = [sizes[batch[0].index] == (480, 640) for batch in batches()]
    assert 15 < sum(first != second for first, second in pairwise(upright)) < 70


def test_processes_share_the_images_and_have_equally_many_batches(monkeypatch):
    seen = []
    for rank in range(2):
        monkeypatch.setattr(sampler_module, "rank_and_world_size", lambda rank=rank: (rank, 2))
        found = list(batches(count=402))
        assert len(found) == len(batches(count=402)) == 51
        seen.append([draw.index for batch in found for draw in batch])
    assert sorted(seen[0] + seen[1]) == list(range(402))


def test_lightning_tells_the_batches_their_epoch():
    dataset = TrainingImages(Made(shapes()), UNCHANGED, make_sample, 3)
    batched = DataLoader(dataset, batch_sampler=batches(), collate_fn=collate)
    _set_sampler_epoch(batched, 7)
    assert next(iter(batched.batch_sampler))[0].epoch == 7


def test_an_image_on_disk_becomes_a_batch(tmp_path):
    write_coco(tmp_path, "val", 3)
    source = CocoDataset.open(find_layout(tmp_path).splits["val"])
    batch = collate([EvaluationImages(source, UNCHANGED, make_sample)[index] for index in range(3)])
    assert batch["image"].shape == (3, 3, 128, 128)
    assert batch["padding_mask"] is None
    assert torch.equal(batch["image"][1].permute(1, 2, 0), torch.from_numpy(Scenes("val").read(1)))
    picture = cv2.imread(source.name(1))[:, :, ::-1]
    np.testing.assert_array_equal(batch["image"][1].permute(1, 2, 0), picture)
