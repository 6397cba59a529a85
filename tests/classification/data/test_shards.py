import functools
import hashlib
import http.server
import io
import itertools
import json
import os
import runpy
import shutil
import sys
import tarfile
import threading

import cv2
import pytest
import torch
import webdataset

from classification.data import shards as shards_module
from classification.data.dataset import make_sample
from classification.data.image_folder import ImageFolder
from classification.data.module import ClassificationData
from classification.data.shards import (
    BatchDraw,
    ShardBatches,
    ShardIndex,
    ShardSampler,
    ShardSource,
    collate_shards,
    locate,
)
from classification.data.transforms import eval_transform, train_transform
from classification.shard import main
from mobile_former.errors import InputError
from mobile_former.training.data.dataset import EvaluationImages, TrainingImages, indices_to_look_at
from mobile_former.training.data.images import find_images
from mobile_former.training.data.sampler import Draw
from tests.classification.data.test_module import fit, trainer
from tests.conftest import ROOT, run_module, write_image_folder

CLASSES = ["blue", "green", "red"]
COUNT = 33  # training images
SIGNS = ROOT.parent / "shared" / "data" / "sign_digits"


def shard(*arguments, cwd):
    return run_module("classification.shard", *map(str, arguments), cwd=cwd)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An image folder: 33 training and 9 validation images."""
    return write_image_folder(tmp_path_factory.mktemp("images") / "colours", tuple(CLASSES), train=11, val=3, side=40)


@pytest.fixture(scope="module")
def written(images, tmp_path_factory):
    """Its shards, of five images each."""
    root = tmp_path_factory.mktemp("shards") / "colours"
    result = shard(images, root, "--shard_samples", 5, "--workers", 2, cwd=root.parent)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return root


@pytest.fixture
def shards(written, tmp_path):
    """Shards of one's own, to damage."""
    return shutil.copytree(written, tmp_path / "colours")


@pytest.fixture
def server(written):
    """The address at which the shards are served, and the paths asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(written.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}/colours", asked
        serving.shutdown()
        thread.join()


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run a command in this process: its exit status and output."""

    def run(module, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_module(module, run_name="__main__")
        return end.value.code, capsys.readouterr()

    return run


def reindex(root, **changes):
    """Let the index say other things of the first training shard."""
    path = root / "shards.json"
    content = json.loads(path.read_text())
    content["splits"]["train"][0] |= changes
    path.write_text(json.dumps(content))


def name_sample(source, index, image, transforms):
    """In place of pixels the name, so that a test sees which image it got."""
    return {"image": torch.zeros(3, 1, 1, dtype=torch.uint8), "label": source.labels[index], "name": source.name(index)}


def batches_of(root, *, split="train", size=4, lanes=1, rank=0, world=1, skip=False, make=name_sample):
    source = ShardSource(ShardIndex.read(str(root)), split, CLASSES, skip_damaged=skip)
    if split == "train":
        dataset = TrainingImages(source, train_transform(32), make, seed=0)
    else:
        dataset = EvaluationImages(source, eval_transform(32, 0.875), make)
    return ShardBatches(dataset, batch_size=size, lanes=lanes, rank=rank, world_size=world)


def load(batches, workers, epochs=(0,), first=BatchDraw(0, 0)):  # noqa: B008
    """What a DataLoader with workers that persist gives in each epoch: lists of batches of names."""
    sampler = ShardSampler(len(batches), first)
    loader = torch.utils.data.DataLoader(
        batches, batch_size=None, sampler=sampler, num_workers=workers, persistent_workers=workers > 0, collate_fn=list
    )
    seen = []
    for epoch in epochs:
        loader.sampler.set_epoch(epoch)
        assert len(loader) == len(batches)
        seen.append([[sample["name"] for sample in batch] for batch in loader])
    return seen


def all_names(root, split="train"):
    source = ShardSource(ShardIndex.read(str(root)), split, CLASSES)
    return sorted(source.name(index) for index in range(len(source)))


def data_of(root, **options):
    options = {"image_size": 32, "batch_size": 4, "num_workers": 0} | options
    return ClassificationData("shards", str(root), **options)


# Writing


def test_shards_hold_the_images_own_bytes_and_labels_in_random_order(images, written):
    found = {}
    for split in ("train", "val"):
        folder = ImageFolder(images, split, CLASSES)
        expected = sorted((path.read_bytes(), label) for path, label in zip(folder.paths, folder.labels, strict=True))
        tars = sorted(map(str, (written / split).glob("*.tar")))
        samples = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))
        assert sorted((sample["jpg"], int(sample["cls"])) for sample in samples) == expected
        found[split] = [int(sample["cls"]) for sample in samples]
    assert len({*found["train"][:5]}) > 1
    assert found["train"] != sorted(found["train"])


def test_the_index_counts_what_the_shards_hold(written):
    index = json.loads((written / "shards.json").read_text())
    assert index["class_names"] == CLASSES
    assert [entry["samples"] for entry in index["splits"]["train"]] == [5] * 6 + [3]
    for entry in index["splits"]["train"] + index["splits"]["val"]:
        content = (written / entry["file"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"])
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            assert len(tar.getnames()) == 2 * entry["samples"]


def test_shards_are_cut_by_size_where_no_number_is_given(images, tmp_path):
    result = shard(images, "out", "--shard_megabytes", 0.02, "--workers", 1, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    train = ShardIndex.read(str(tmp_path / "out")).splits["train"]
    assert len(train) > 2
    assert sum(entry.samples for entry in train) == COUNT
    assert all(entry.bytes <= 20_000 + 10_240 for entry in train)  # tar's last block


def test_a_stopped_run_goes_on_and_whole_shards_stay(images, shards):
    before = {path: path.stat().st_mtime_ns for path in shards.rglob("*.tar")}
    damaged, missing, short = (shards / "train" / f"00000{number}.tar" for number in range(3))
    damaged.write_bytes(damaged.read_bytes().replace(b"\xff\xd8", b"\xff\xd9", 1))
    missing.unlink()
    os.truncate(short, 2000)
    index = (shards / "shards.json").read_text()
    (shards / "shards.json").unlink()
    result = shard(images, shards, "--shard_samples", 5, "--workers", 2, cwd=shards)
    assert result.returncode == 0, result.stderr
    after = {path: path.stat().st_mtime_ns for path in shards.rglob("*.tar")}
    assert {path for path in after if after[path] != before[path]} == {damaged, missing, short}
    assert "6 shards were there already" in result.stdout
    assert (shards / "shards.json").read_text() == index
    assert not list(shards.rglob("*.part"))


def test_shards_of_an_earlier_run_are_told_and_not_read(images, shards):
    result = shard(images, shards, "--shard_samples", 30, "--workers", 1, cwd=shards)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("of an earlier run") == 6
    assert len(all_names(shards)) == COUNT


def test_unreadable_images_are_an_error_that_names_them_all_or_are_left_out(images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "images")
    bad = [folder / "train" / "red" / "3.jpg", folder / "val" / "blue" / "0.jpg"]
    for path in bad:
        path.write_bytes(path.read_bytes()[:300])
    bad.append(folder / "train" / "green" / "broken.jpg")
    bad[-1].symlink_to("nowhere")
    arguments = (folder, "out", "--shard_samples", 5, "--workers", 1)
    result = shard(*arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert all(str(path) in result.stderr for path in bad)
    assert "3 of 43 images" in result.stderr
    assert "--skip_unreadable" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out" / "shards.json").exists()
    for written in ("", "shards were there already"):
        result = shard(*arguments, "--skip_unreadable", "true", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "3 of 43 images could not be read" in result.stdout
        assert written in result.stdout
        assert (len(all_names(tmp_path / "out")), len(all_names(tmp_path / "out", "val"))) == (32, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "out"), "no folder nowhere"),
        (("images", "images/shards"), "lies in images itself"),
        (("images", "images"), "lies in images itself"),
        (("images", "out", "--shard_samples", "0"), "--shard_samples is 0"),
        (("images", "out", "--shard_megabytes", "0"), "--shard_megabytes is 0"),
        (("images", "out", "--workers", "0"), "--workers is 0"),
    ],
)
def test_what_cannot_be_sharded_is_told(images, tmp_path, monkeypatch, arguments, message):
    (tmp_path / "images").symlink_to(images)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["shard", *arguments])
    with pytest.raises((InputError, FileNotFoundError), match=message):
        main()
    assert not (tmp_path / "out").exists()


# An epoch


@pytest.mark.parametrize("workers", range(5))
def test_an_epoch_shows_every_sample_once_and_all_processes_make_as_many_batches(written, workers):
    for world, size in ((1, 4), (2, 4), (3, 4), (2, 5), (3, 100), (1, 1), (3, 1)):
        lanes = max(1, workers)
        seen = [
            load(batches_of(written, size=size, lanes=lanes, rank=rank, world=world), workers)[0]
            for rank in range(world)
        ]
        assert {len(batches) for batches in seen} == {-(-COUNT // (world * size))}
        assert sorted(name for batches in seen for batch in batches for name in batch) == all_names(written)
        for batches in seen:
            assert max(map(len, batches)) - min(map(len, batches)) <= 1
            assert max(map(len, batches)) <= size


@pytest.mark.parametrize("workers", range(5))
def test_an_evaluation_shows_every_sample_once_without_repeats(written, workers):
    for world, size in ((1, 4), (2, 4), (3, 2), (2, 1)):
        lanes = max(1, workers)
        seen = [
            load(batches_of(written, split="val", size=size, lanes=lanes, rank=rank, world=world), workers)[0]
            for rank in range(world)
        ]
        assert sorted(name for batches in seen for batch in batches for name in batch) == all_names(written, "val")


def test_no_process_gets_an_empty_batch_where_processes_do_not_divide_the_samples(written):
    for world, size in ((2, 1), (4, 1), (40, 4)):
        seen = [load(batches_of(written, size=size, rank=rank, world=world), 0)[0] for rank in range(world)]
        (count,) = {len(batches) for batches in seen}
        assert count == -(-COUNT // (world * size))
        assert all(batches and all(batches) for batches in seen)
        assert {name for batches in seen for batch in batches for name in batch} == {*all_names(written)}


def test_the_order_follows_from_seed_and_epoch_and_not_from_who_loads(written):
    first = load(batches_of(written, lanes=3), 0, epochs=(0, 1, 2))
    assert first[0] != first[1] != first[2]
    for workers in (1, 2, 3, 4):
        assert load(batches_of(written, lanes=3), workers, epochs=(0, 1, 2)) == first
    assert load(batches_of(written, lanes=3), 3, epochs=(2, 0)) == [first[2], first[0]]


def test_samples_are_shuffled_within_and_over_shards(written):
    (batches,) = load(batches_of(written, size=33), 0)
    numbers = [name.split("/")[-1].split(".")[0] for name in batches[0]]  # of shards
    assert sum(a == b for a, b in itertools.pairwise(numbers)) < 15  # 26 where shards stay together


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_going_on_within_an_epoch_gives_exactly_the_batches_that_are_left(written, workers):
    whole = load(batches_of(written, lanes=2), 0, epochs=(1, 2))
    for batch in range(1, 9):
        rest = load(batches_of(written, lanes=2), workers, epochs=(1, 2), first=BatchDraw(batch, 1))
        assert rest == [whole[0][batch:], whole[1]]


def test_going_on_reads_neither_images_nor_shards_of_what_was_trained(written, monkeypatch):
    read, decoded = [], []
    batches = batches_of(written, size=1)
    source = batches.images.source
    shard_load, shard_read = source._load, source.read
    monkeypatch.setattr(source, "_load", lambda shard: read.append(shard.file) or shard_load(shard))
    monkeypatch.setattr(source, "read", lambda index: decoded.append(index) or shard_read(index))
    load(batches, 0, first=BatchDraw(31, 0))
    assert len(decoded) == 2
    assert len(read) <= 2


def test_a_lane_reads_its_own_shards_once(written, monkeypatch):
    read = []
    for lane in range(3):
        batches = batches_of(written, lanes=3)
        shard_load = batches.images.source._load
        monkeypatch.setattr(
            batches.images.source, "_load", lambda shard, load=shard_load: read.append(shard.file) or load(shard)
        )
        for batch in range(lane, len(batches), 3):
            batches[BatchDraw(batch, 0)]
        assert not batches.images.source.held
    assert len({*read}) == 7
    assert len(read) <= 7 + 2  # a shard on each border


def test_pixels_and_labels_are_those_that_the_folder_gives(images, written):
    folder = ImageFolder(images, "train", CLASSES)
    batches = batches_of(written, make=make_sample)
    batches.images.transforms = train_transform(32, crop_scale=(1.0, 1.0), flip=0.0)
    found = [sample for number in range(len(batches)) for sample in batches[BatchDraw(number, 0)]]
    expected = TrainingImages(folder, batches.images.transforms, make_sample, seed=0)
    pictures = {(expected[Draw(i, 0)]["image"].numpy().tobytes(), folder.labels[i]) for i in range(COUNT)}
    assert len(pictures) == COUNT
    assert {(sample["image"].numpy().tobytes(), sample["label"]) for sample in found} == pictures


def test_augmentation_follows_from_seed_epoch_and_sample_alone(written):
    seen = {}
    for lanes, size in ((1, 4), (3, 2)):
        batches = batches_of(written, lanes=lanes, size=size, make=make_sample)
        for epoch in (0, 1):
            drawn = (sample for number in range(len(batches)) for sample in batches[BatchDraw(number, epoch)])
            seen[lanes, epoch] = {sample["image"].numpy().tobytes() for sample in drawn}
    assert seen[1, 0] == seen[3, 0]
    assert seen[1, 1] == seen[3, 1]
    assert not seen[1, 0] & seen[1, 1]


# Damage


def cut(root):
    path = root / "train" / "000000.tar"
    path.write_bytes(path.read_bytes()[:-3000])
    return "000000.tar: cut short"


def flip(root):
    path = root / "train" / "000000.tar"
    content = bytearray(path.read_bytes())
    content[1500] ^= 1
    path.write_bytes(content)
    return "000000.tar: damaged.*checksum"


def remove(root):
    (root / "train" / "000000.tar").unlink()
    return "000000.tar: missing|000000.tar: cannot be read"


def miscount(root):
    reindex(root, samples=6)
    return "000000.tar: holds 5 samples where the index says 6"


def swap(root):
    content = b"no tar" * 100
    (root / "train" / "000000.tar").write_bytes(content)
    reindex(root, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    return "000000.tar: no shard of images"


def mislabel(root):
    content = json.loads((root / "shards.json").read_text())
    content["class_names"] = CLASSES[:1]
    (root / "shards.json").write_text(json.dumps(content))
    return r"label [12], and the index has 1 classes"


DAMAGES = [cut, flip, remove, miscount, swap]


@pytest.mark.parametrize("damage", [*DAMAGES, mislabel])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_stops_the_run_with_its_name(shards, damage, workers):
    message = damage(shards)
    data = data_of(shards, num_workers=workers)
    data.class_names = CLASSES
    with pytest.raises(InputError, match=message) as error:
        fit(data)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("world", [1, 3])
def test_others_stand_in_for_a_damaged_shard_and_processes_agree_on_the_number_of_batches(shards, damage, world):
    whole = {*all_names(shards)}
    damage(shards)
    lost = {name for name in whole if "train/000000.tar" in name}
    count = COUNT + (damage is miscount)
    for workers in (0, 2):
        seen = [
            load(batches_of(shards, lanes=max(1, workers), rank=rank, world=world, skip=True), workers)[0]
            for rank in range(world)
        ]
        assert {len(batches) for batches in seen} == {-(-count // (world * 4))}
        names = [name for batches in seen for batch in batches for name in batch]
        assert {*names} == whole - lost
        assert len(names) == count
        assert max(map(names.count, names)) <= 3  # spread over another shard, not one sample many times


@pytest.mark.parametrize("workers", [0, 2])
def test_a_skipped_shard_is_told_once_and_counted(shards, workers, caplog):
    flip(shards)
    data = data_of(shards, num_workers=workers, skip_damaged_shards=True)
    module = fit(data, epochs=2)
    told = [record.getMessage() for record in caplog.records if "training goes on" in record.getMessage()]
    assert len(told) == 1
    assert "train/000000.tar" in told[0]
    assert data.skipped_counts() == {"skipped_images": 0, "skipped_shards": 1}
    assert sum(len(batch["label"]) for batch in module.trained) == 2 * COUNT
    data.draw_augmented(shards / "augmented.png")  # of the first shard, which is the damaged one


@pytest.mark.parametrize(
    ("most", "indices"), [(1, [0]), (4, [0, 1, 3, 4]), (5, [0, 1, 2, 3, 4]), (6, [0, 2, 4, 5, 7, 9])]
)
def test_a_few_images_are_taken_from_as_few_shards_as_hold_them(written, most, indices):
    index = ShardIndex.read(str(written))
    assert [shard.samples for shard in index.splits["train"]] == [5, 5, 5, 5, 5, 5, 3]
    source = ShardSource(index, "train", index.class_names)
    assert indices_to_look_at(source, most) == indices
    assert indices_to_look_at(source, 100) == list(range(33))


def test_shards_none_of_which_can_be_read_are_an_error(shards):
    for path in (shards / "train").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"none of the 7 shards in .* can be read; the first: .*00000\d\.tar"):
        fit(data_of(shards, skip_damaged_shards=True))


@pytest.mark.parametrize("skip", [False, True])
def test_a_damaged_validation_shard_stops_an_evaluation(shards, skip):
    path = shards / "val" / "000001.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"val/000001\.tar: damaged"):
        fit(data_of(shards, skip_damaged_shards=skip))


def spoil_image(root, split):
    """An image in a shard that cannot be decoded, under a right checksum."""
    index = json.loads((root / "shards.json").read_text())
    entry = index["splits"][split][0]
    path = root / entry["file"]
    content = path.read_bytes().replace(b"\xff\xd8", b"\0\0", 1)
    path.write_bytes(content)
    entry["sha256"] = hashlib.sha256(content).hexdigest()
    (root / "shards.json").write_text(json.dumps(index))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_training_image_is_replaced_and_told_once(shards, workers, caplog):
    spoil_image(shards, "train")
    data = data_of(shards, num_workers=workers)
    module = fit(data, epochs=2)
    told = [record.getMessage() for record in caplog.records if "training goes on" in record.getMessage()]
    assert len(told) == 1
    assert "train/000000.tar: " in told[0]
    assert data.skipped_counts()["skipped_images"] == 1
    assert sum(len(batch["label"]) for batch in module.trained) == 2 * COUNT


def test_an_unreadable_validation_image_stops_an_evaluation(shards):
    spoil_image(shards, "val")
    with pytest.raises(InputError, match=r"val/000000\.tar: .*change the score"):
        trainer().validate(fit(data_of(shards)), data_of(shards), verbose=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"class_names": ["a"]}', "KeyError: 'splits'"),
        ('{"class_names": ["a"], "splits": {"train": []}}', "train has no shards"),
        ('{"class_names": ["a"], "splits": {"train": [{"file": "train/0.tar"}]}}', "missing 3"),
        (
            '{"class_names": ["a"], "splits": {"train": [{"file": "x;touch y", "samples": 1, "bytes": 1, '
            '"sha256": ""}]}}',
            "called 'x;touch y'",
        ),
        (
            '{"class_names": ["a"], "splits": {"train": [{"file": "../0.tar", "samples": 1, "bytes": 1, '
            '"sha256": ""}]}}',
            "called",
        ),
        (
            '{"class_names": ["a"], "splits": {"train": [{"file": "train/0.tar", "samples": 0, "bytes": 1, '
            '"sha256": ""}]}}',
            "0 samples",
        ),
    ],
)
def test_an_index_that_is_none_is_refused_with_its_name(tmp_path, content, message):
    (tmp_path / "shards.json").write_text(content)
    with pytest.raises(InputError, match=rf"shards\.json: no index of shards \(.*{message}"):
        ShardIndex.read(str(tmp_path))


def test_options_that_do_not_go_together_are_refused(images, written):
    for options, message in (
        ({"root": None}, "no shards: give --data.root"),
        ({"dataset": "folder", "root": str(written)}, "--data.dataset shards"),
        ({"dataset": "folder", "root": str(images), "skip_damaged_shards": True}, "goes with"),
    ):
        with pytest.raises(InputError, match=message):
            ClassificationData(**({"dataset": "shards"} | options))
    with pytest.raises(InputError, match=r"no index of shards.*shards\.json: cannot be read"):
        data_of(images).setup("fit")


def test_labels_follow_the_class_names_of_a_model(written):
    index = ShardIndex.read(str(written))
    plain = ShardSource(index, "val", CLASSES)
    turned = ShardSource(index, "val", ["red", "purple", "blue", "green"])
    for number in range(len(plain)):
        plain.read(number), turned.read(number)
    assert [turned.labels[number] for number in range(9)] == [[2, 3, 0][plain.labels[number]] for number in range(9)]
    with pytest.raises(InputError, match="have the class 'red', which the model has not"):
        ShardSource(index, "val", ["blue", "green"])
    with pytest.raises(InputError, match=r"no shards of the split 'test' \(it has train, val\)"):
        ShardSource(index, "test", CLASSES)


# From elsewhere


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_are_read_over_http_as_from_a_folder(written, server, workers):
    url, asked = server
    local = fit(data_of(written, num_workers=workers), epochs=2)
    data = data_of(url, num_workers=workers)
    remote = fit(data, epochs=2)
    assert data.dataset_name == "colours"
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(local.trained, remote.trained, strict=True))
    assert all(torch.equal(a["label"], b["label"]) for a, b in zip(local.validated, remote.validated, strict=True))
    assert asked.count("/colours/shards.json") == 1


def test_a_transfer_that_is_cut_off_is_tried_again(written, server, monkeypatch):
    whole, cut_off = shards_module.fetch, []

    def fetch(place):
        content = whole(place)
        if place.endswith("train/000002.tar") and len(cut_off) < 2:
            cut_off.append(place)
            return content[:1000]
        return content

    monkeypatch.setattr(shards_module, "fetch", fetch)
    module = fit(data_of(server[0]))
    assert len(cut_off) == 2
    assert sum(len(batch["label"]) for batch in module.trained) == COUNT


def test_a_shard_missing_from_a_server_is_named(server, tmp_path):
    with pytest.raises(InputError, match=r"http://.*/nowhere/shards\.json: cannot be read"):
        data_of(server[0].replace("colours", "nowhere")).setup("fit")


def test_a_pipe_gives_what_its_command_prints(written):
    for root in (f"pipe:cat {written}", f"pipe:cat {written}/{{}} | cat"):
        data = data_of(root)
        assert data.dataset_name == "colours"
        assert len(fit(data).trained) == 9
    with pytest.raises(InputError, match=r"pipe:false/shards\.json: cannot be read"):
        data_of("pipe:false").setup("fit")


@pytest.mark.parametrize("root", ["PIPE:touch ran; cat http://", " pipe:touch ran; cat ", "x://pipe:touch ran"])
def test_what_only_looks_like_a_command_is_a_folder(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no index of shards"):
        data_of(root).setup("fit")
    assert not list(tmp_path.iterdir())


def test_a_file_takes_its_place_in_a_url():
    assert locate("http://h/a/", "train/0.tar") == "http://h/a/train/0.tar"
    assert locate("pipe:aws s3 cp s3://b/{} -", "train/0.tar") == "pipe:aws s3 cp s3://b/train/0.tar -"


# Runs


def test_an_evaluation_needs_no_lightning_warning_and_sees_all(written, recwarn):
    module = fit(data_of(written, num_workers=2))
    assert sum(len(batch["label"]) for batch in module.validated) == 9
    assert not [warning for warning in recwarn if "Iterable" in str(warning.message)]


def test_a_resumed_run_goes_on_at_its_batch_in_the_order_of_before(written):
    torch.manual_seed(0)
    data = data_of(written, num_workers=2)
    data.trainer = trainer()
    state = data.state_dict()
    data.setup("fit")
    data.first_epoch = 1
    batches = [batch["image"] for batch in data.train_dataloader()]
    for workers in (0, 3):
        torch.manual_seed(0)
        again = data_of(written, num_workers=workers)
        again.load_state_dict(state)
        again.setup("fit")
        again.first_epoch, again.first_batch = 1, 5
        loader = again.train_dataloader()
        assert len(loader) == len(batches) == 9
        left = [batch["image"] for batch in loader]
        assert len(left) == 4
        assert all(torch.equal(a, b) for a, b in zip(left, batches[5:], strict=True))


def test_collated_batches_tell_of_damage_once():
    sample = {"image": torch.zeros(3, 1, 1), "label": 0, "failures": []}
    batch = collate_shards([sample | {"damage": "x"}, sample | {"damage": "x"}, sample | {"damage": None}])
    assert batch["damages"] == ["x"]
    assert collate_shards([{"failures": [], "error": "e"}])["errors"] == ["e"]


def test_commands_train_go_on_score_and_predict_from_shards(images, shards, tmp_path, call):
    flip(shards)
    common = (
        "--config", "finetune.yaml", "--data.dataset", "shards", "--data.root", str(shards), "--data.image_size", "32",
        "--model.name", "mobile_former_26m", "--data.batch_size", "8", "--data.num_workers", "2",
        "--data.skip_damaged_shards", "true", "--name", "x",
    )  # fmt: skip
    result = run_module("classification.fit", *common, "--trainer.max_epochs", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (line,) = result.stderr.splitlines()
    assert "train/000000.tar" in line
    assert "colours: 33 training and 9 validation images of 3 classes" in result.stdout
    run = tmp_path / "runs" / "classification" / "x"
    assert json.loads((run / "metrics.json").read_text())["skipped_shards"] == 1
    for picture in ("augmented.png", "predictions.png", "confusion_matrix.png"):
        assert cv2.imread(str(run / picture)).std() > 5
    result = run_module("classification.fit", *common, "--trainer.max_epochs", "2", "--ckpt_path", "last", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "epoch 2/2" in result.stdout
    assert "epoch 1/2" not in result.stdout
    checkpoint = run / "checkpoints" / "best.ckpt"
    top1 = f"{json.loads((run / 'metrics.json').read_text())['val/top1']:.4f}"
    for root in ((), ("--data.root", images), ("--data.root", shards)):
        status, output = call("classification.validate", "--ckpt_path", checkpoint, *root)
        assert (status, top1 in output.out) == (0, True), output.err
    status, output = call("classification.test", "--ckpt_path", checkpoint)
    assert status == 0, output.err
    assert "on val of colours: 9 images" in output.out
    status, output = call("classification.predict", images / "val", "--ckpt_path", checkpoint)
    assert status == 0, output.err

    # A command in a checkpoint is not run.
    content = torch.load(checkpoint, weights_only=True)
    content["datamodule_hyper_parameters"]["root"] = f"pipe:touch {tmp_path}/ran; cat {shards}/{{}}"
    torch.save(content, tmp_path / "evil.ckpt")
    status, output = call("classification.validate", "--ckpt_path", tmp_path / "evil.ckpt")
    assert status == 1
    assert "give it by --data.root" in output.err
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not SIGNS.is_dir(), reason="the photographs of signed digits are not here")
def test_two_thousand_photographs_come_once_over_any_processes_and_workers(tmp_path):
    result = shard(SIGNS, tmp_path / "signs", "--shard_megabytes", 1, "--workers", 2, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    names = [str(number) for number in range(10)]
    index = ShardIndex.read(str(tmp_path / "signs"))
    for split in ("train", "val"):
        total = len(find_images(SIGNS / split))
        for world in (1, 2, 3):
            for workers in range(5):
                seen, counts = [], set()
                for rank in range(world):
                    source = ShardSource(index, split, names)
                    images = (
                        TrainingImages(source, train_transform(32), name_sample, 0)
                        if split == "train"
                        else EvaluationImages(source, eval_transform(32, 0.875), name_sample)
                    )
                    batches = ShardBatches(images, batch_size=64, lanes=max(1, workers), rank=rank, world_size=world)
                    (epoch,) = load(batches, workers)
                    counts.add(len(epoch))
                    seen += [name for batch in epoch for name in batch]
                assert len(seen) == len({*seen}) == total
                assert len(counts) == 1 or split == "val"
