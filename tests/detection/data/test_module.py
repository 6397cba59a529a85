import json
import shutil

import albumentations as A
import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from torch import nn

from detection.boxes.geometry import cxcywh_to_xyxy
from detection.data.module import DetectionData
from detection.transforms import ResizeShortSide
from mobile_former.errors import InputError
from tests.detection.conftest import write_shapes


class Watcher(LightningModule):
    """A linear layer that keeps the batches it is given."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.trained, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.trained.append(batch)
        return self.layer(batch["image"].mean((2, 3))).sum()

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def data_of(root, **options):
    small = {"short_sides": (64, 80), "short_side": 64, "longest": 128, "crop": 0.0, "batch_size": 2, "num_workers": 0}
    return DetectionData("coco", None if root is None else str(root), **(small | options))


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


def fit(data, epochs=1, seed=0):
    seed_everything(seed, verbose=False)
    module = Watcher()
    trainer(max_epochs=epochs).fit(module, data)
    return module


def same(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


# What comes out


@pytest.mark.parametrize("group_shapes", [False, True])
def test_the_same_seed_gives_the_same_batches_with_and_without_loading_processes(shapes, group_shapes):
    options = {"group_shapes": group_shapes, "crop": 0.5}
    runs = [fit(data_of(shapes, num_workers=workers, **options), epochs=2) for workers in (0, 2)]
    assert len(runs[0].trained) == 6
    assert same(runs[0].trained, runs[1].trained)
    assert same(runs[0].validated, runs[1].validated)
    other = fit(data_of(shapes, **options), seed=1)
    assert not same(runs[0].trained[:3], other.trained)
    assert not same(runs[0].trained[:3], runs[0].trained[3:]), "the second epoch should draw anew"


@pytest.mark.parametrize("group_shapes", [False, True])
def test_images_with_rare_classes_are_drawn_more_often(tmp_path, group_shapes):
    root = write_shapes(tmp_path, train=10, val=1)
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    first, second = (category["id"] for category in content["categories"])
    for row in content["annotations"]:  # the second class is in one of ten images
        row["category_id"] = second if row["image_id"] == content["images"][3]["id"] else first
    path.write_text(json.dumps(content))
    data = data_of(root, repeat_threshold=0.9, group_shapes=group_shapes)
    data.setup("fit")
    loader, counts = data.train_dataloader(), np.zeros(10)
    for epoch in range(300):
        loader.batch_sampler.sampler.set_epoch(epoch)
        counts += np.bincount([draw.index for batch in loader.batch_sampler for draw in batch], minlength=10)
    assert counts.sum() == 3000
    # √(0.9 / 0.1) = 3 times as often as the others, whose class is in nine of ten images
    expected = np.where(np.arange(10) == 3, 3 / 12, 1 / 12) * 3000
    assert np.abs(counts - expected).max() < 5 * np.sqrt(3000 * 0.25 * 0.75)


def test_training_sees_every_image_an_epoch_and_evaluation_each_in_order(shapes):
    module = fit(data_of(shapes), epochs=2)
    for epoch in range(2):
        seen = [number for batch in module.trained[3 * epoch :][:3] for number in batch["image_ids"].tolist()]
        assert sorted(seen) == [5, 15, 25, 35, 45, 55]
    assert [batch["image_ids"].tolist() for batch in module.validated] == [[5, 15], [25]] * 2


def test_evaluation_resizes_the_shorter_side_and_keeps_boxes_on_their_objects(shapes):
    data = data_of(shapes, short_side=48, batch_size=1)
    module = Watcher()
    trainer().validate(module, data, verbose=False)
    mean, std = (torch.tensor(data.hparams[name])[:, None, None] for name in ("mean", "std"))
    for number, batch in enumerate(module.validated):
        height, width = [(48, 72), (72, 48), (48, 53)][number]
        assert batch["image_sizes"].tolist() == [list([(64, 96), (96, 64), (72, 80)][number])]
        padded = torch.ones(batch["image"].shape[2:], dtype=torch.bool)
        padded[:height, :width] = False
        assert torch.equal(batch["padding_mask"][0], padded)
        picture = (batch["image"][0] * std + mean)[:, :height, :width]
        (target,) = batch["targets"]
        assert target["labels"].tolist() == [1, 0]
        corners = (cxcywh_to_xyxy(target["boxes"]) * torch.tensor([width, height, width, height])).round().long()
        for left, top, right, bottom in corners.tolist():
            assert picture[:, (top + bottom) // 2, (left + right) // 2].max() > 0.7
            picture[:, max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = 0  # antialiased edges
        assert picture.max() < 0.7, "an object lies outside of its box"


def test_a_mirrored_image_has_mirrored_boxes(shapes):
    plain, mirrored = (fit(data_of(shapes, flip=flip, short_sides=(64,))) for flip in (0.0, 1.0))
    for first, second in zip(plain.trained, mirrored.trained, strict=True):
        assert first["image_ids"].tolist() == second["image_ids"].tolist()
        for mine, other in zip(first["targets"], second["targets"], strict=True):
            expected = mine["boxes"] * torch.tensor([-1, 1, 1, 1]) + torch.tensor([1, 0, 0, 0])
            torch.testing.assert_close(other["boxes"], expected, atol=1e-5, rtol=0)
            assert torch.equal(mine["labels"], other["labels"])


def test_images_are_normalised_by_the_options_and_padding_is_masked(shapes):
    options = {"flip": 0.0, "short_sides": (64,), "batch_size": 6}
    (plain,) = fit(data_of(shapes, **options)).trained
    (other,) = fit(data_of(shapes, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.4), **options)).trained
    sides = [torch.tensor(values)[None, :, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    pixels = plain["image"] * sides[1] + sides[0]
    mean, std = torch.tensor([0.5, 0.4, 0.3])[None, :, None, None], torch.tensor([0.1, 0.2, 0.4])[None, :, None, None]
    inside = ~plain["padding_mask"][:, None].expand_as(pixels)
    torch.testing.assert_close(other["image"][inside], ((pixels - mean) / std)[inside], atol=1e-4, rtol=0)
    assert not inside.all()


def test_grouped_batches_hold_images_of_one_shape(tmp_path):
    root = write_shapes(tmp_path / "shapes", train=12, val=1)  # four of each shape
    data = data_of(root, group_shapes=True, short_sides=(64,))
    ratios = {(64, 96): "wide", (96, 64): "tall", (72, 80): "other"}
    seen = []
    for batch in fit(data, epochs=4).trained:
        kinds = {ratios[tuple(size)] for size in batch["image_sizes"].tolist()}
        assert len(kinds) == 1
        seen += kinds
    assert len(seen) == 24
    assert len({tuple(seen[start : start + 6]) for start in range(0, 24, 6)}) > 1, "each epoch has its own order"
    mixed = [len(set(map(tuple, batch["image_sizes"].tolist()))) for batch in fit(data_of(root), epochs=4).trained]
    assert max(mixed) > 1


@pytest.mark.parametrize("group_shapes", [False, True])
@pytest.mark.parametrize(("batch_size", "lengths"), [(4, [4]), (6, [6]), (8, [6])])
def test_a_smaller_last_batch_is_left_out_where_there_are_others(shapes, group_shapes, batch_size, lengths):
    module = fit(data_of(shapes, group_shapes=group_shapes, batch_size=batch_size))
    assert [len(batch["image"]) for batch in module.trained] == lengths


def test_a_pipeline_of_ones_own_replaces_flip_crop_and_resizing(shapes):
    pipeline = [A.VerticalFlip(p=1), A.HorizontalFlip(p=0), ResizeShortSide((48,), 96)]
    options = {"flip": 0.0, "short_sides": (48,), "longest": 96, "short_side": 64}
    turned = fit(data_of(shapes, train_transforms=pipeline, **(options | {"flip": 1.0, "crop": 1.0})))
    for first, second in zip(fit(data_of(shapes, **options)).trained, turned.trained, strict=True):
        for number, (mine, other) in enumerate(zip(first["targets"], second["targets"], strict=True)):
            expected = mine["boxes"] * torch.tensor([1, -1, 1, 1]) + torch.tensor([0, 1, 0, 0])
            torch.testing.assert_close(other["boxes"], expected, atol=1e-5, rtol=0)
            height, width = first["image_sizes"][number].tolist()
            size = (48, 48 * width // height) if height < width else (48 * height // width, 48)
            mine, other = (batch["image"][number, :, : size[0], : size[1]] for batch in (first, second))
            torch.testing.assert_close(mine.flip(1), other, atol=0.1, rtol=0)


def test_a_training_image_that_cannot_be_read_is_replaced_and_told_once(shapes, tmp_path, caplog):
    root = shutil.copytree(shapes, tmp_path / "mine")
    bad = root / "images" / "train_1.png"
    bad.write_bytes(bad.read_bytes()[:900])
    data = data_of(root, batch_size=6)
    module = fit(data, epochs=2)
    told = [record.getMessage() for record in caplog.records if str(bad) in record.getMessage()]
    assert len(told) == len(data.skipped) == 1
    for batch in module.trained:
        assert sorted(batch["image_ids"].tolist()) == [5, 25, 25, 35, 45, 55]
        assert "failures" not in batch


# Which data


def test_class_names_are_those_of_the_training_file_unless_set(shapes):
    data = data_of(shapes)
    assert data.class_names == ["bar", "disc"]
    data = data_of(shapes)
    data.class_names = ["disc", "bar"]
    data.setup("validate")
    assert data.val_set[0]["target"]["labels"].tolist() == [0, 1]
    data.class_names = ["disc", "ball"]
    with pytest.raises(InputError, match=r"instances_val\.json.*the file has 'bar', .*'disc', 'ball'"):
        data.setup("validate")


def test_cocos_own_layout_is_read(shapes, tmp_path):
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        shutil.copy(
            shapes / "annotations" / f"instances_{split}.json", tmp_path / "annotations" / f"instances_{split}2017.json"
        )
        (tmp_path / f"{split}2017").mkdir()
        for path in (shapes / "images").glob(f"{split}_*"):
            shutil.copy(path, tmp_path / f"{split}2017")
    data = data_of(tmp_path)
    data.setup("fit")
    assert (len(data.train_set), len(data.val_set)) == (6, 3)
    data.setup("test")
    assert data.test_split == "val"


def test_single_paths_go_before_the_folder(shapes, tmp_path):
    shutil.copytree(shapes / "images", tmp_path / "pictures")
    data = data_of(
        shapes,
        annotations={"val": str(shapes / "annotations" / "instances_test.json")},
        images={"train": str(tmp_path / "pictures")},
    )
    data.setup("fit")
    assert len(data.val_set) == 2
    assert data.train_source.name(0).startswith(str(tmp_path / "pictures"))
    assert data.val_set.source.name(0).startswith(str(shapes / "images"))


def test_paths_alone_are_enough(shapes):
    annotations = {split: str(shapes / "annotations" / f"instances_{split}.json") for split in ("train", "val")}
    data = data_of(None, annotations=annotations, images=dict.fromkeys(annotations, str(shapes / "images")))
    data.setup("fit")
    assert (len(data.train_set), len(data.val_set), data.dataset_name) == (6, 3, "instances_train")
    assert not data._has_test()
    with pytest.raises(InputError, match=r"--data\.images\.train"):
        data_of(None, annotations=annotations).setup("fit")


def test_a_test_file_by_option_that_is_not_there_is_an_error_and_not_another_split(shapes, tmp_path):
    data = data_of(shapes, annotations={"test": str(tmp_path / "nowhere.json")})
    data.class_names = ["bar", "disc"]
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        data.setup("test")


def test_the_split_to_score_is_the_one_asked_for(shapes):
    for stage, split, count in (
        ("validate", None, 3),
        ("validate", "train", 6),
        ("validate", "test", 2),
        ("test", None, 2),
        ("test", "val", 3),
    ):
        data = data_of(shapes, split=split)
        data.setup(stage)
        assert len(data.test_set if stage == "test" else data.val_set) == count


def test_the_scenes_have_no_test_split(tmp_path):
    data = DetectionData("scenes", split="test")
    with pytest.raises(InputError, match="no 'test' split"):
        data.setup("test")
    data = DetectionData("scenes")
    data.setup("test")
    assert (data.test_split, data.dataset_name, len(data.test_set)) == ("val", "scenes", 400)
    assert data.test_set[0]["image"].shape == (3, 128, 128)


def test_what_a_checkpoint_keeps_builds_the_same_evaluation(shapes, monkeypatch, tmp_path):
    monkeypatch.chdir(shapes.parent)
    pipeline = [ResizeShortSide((48,))]
    for options in ({}, {"train_transforms": pipeline, "short_sides": (999,)}, {"std": (0.2, 0.3, 0.4)}):
        kept = dict(data_of(shapes.name, **options).hparams)
        monkeypatch.chdir(tmp_path)  # a relative root still leads there
        data = DetectionData(**kept)
        data.setup("validate")
        assert data.val_set[0]["image"].shape == (3, 64, 96)
        assert data.hparams["std"] == list(options.get("std", (0.229, 0.224, 0.225)))
        monkeypatch.chdir(shapes.parent)
    for kept in (dict(DetectionData("scenes", longest=256).hparams), {"dataset": "scenes", "longest": 256}):
        assert DetectionData(**kept).hparams.short_side == 128


# Bad options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"std": (0.1, 0.0, 0.1)}, "std"),
        ({"short_sides": ()}, "short_sides"),
        ({"short_sides": (64, 31)}, "short_sides is .64, 31."),
        ({"short_side": 31}, "short_side 31"),
        ({"longest": 79}, "longest is 79"),
        ({"flip": -0.1}, "flip is -0.1"),
        ({"crop": 1.1}, "crop is 1.1"),
        ({"repeat_threshold": 1.5}, "repeat_threshold is 1.5"),
        ({"annotations": {"testing": "x"}}, "testing"),
        ({"images": {"vla": "x"}}, "vla"),
    ],
)
def test_options_out_of_range_are_named(options, message, shapes):
    with pytest.raises(InputError, match=message):
        data_of(shapes, **options)


def test_a_folder_has_to_be_given(shapes):
    with pytest.raises(InputError, match=r"--data\.root DIR"):
        DetectionData("coco")
    with pytest.raises(InputError, match=r"--data\.split is test"):
        data_of(shapes, split="test").setup("fit")


def test_the_sheet_of_augmented_images_tells_a_wrong_size(shapes, tmp_path):
    import cv2

    root = shutil.copytree(shapes, tmp_path / "mine")
    data = data_of(root)
    data.setup("fit")
    data.draw_augmented(tmp_path / "sheet.png")
    assert cv2.imread(str(tmp_path / "sheet.png")).std() > 5
    cv2.imwrite(str(root / "images" / "train_0.png"), np.zeros((50, 40, 3), np.uint8))
    with pytest.raises(InputError, match=r"train_0\.png is 40x50 pixels"):
        data.draw_augmented(tmp_path / "sheet.png")
