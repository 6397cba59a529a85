import functools
import hashlib
import http.server
import itertools
import json
import threading

import cv2
import pytest
import torch

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
from mobile_former.errors import InputError
from mobile_former.training.data.dataset import EvaluationImages, TrainingImages, indices_to_look_at
from mobile_former.training.data.images import find_images
from mobile_former.training.data.sampler import Draw
from tests.classification.conftest import COUNT, NAMES, all_names
from tests.classification.data.conftest import data_of, fit
from tests.conftest import ROOT, run_module, trainer_with

SIGNS = ROOT.parent / "shared" / "data" / "sign_digits"

data_of = functools.partial(data_of, dataset="shards")


@pytest.fixture
def server(written):
    """Serve the shards over HTTP; return the URL and the list of requested paths."""
    requested = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            requested.append(self.path)

    handler = functools.partial(Handler, directory=str(written.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}/colours", requested
        serving.shutdown()
        thread.join()


def reindex(root, **changes):
    """Change the entry of the index about the first training shard."""
    path = root / "shards.json"
    content = json.loads(path.read_text())
    content["splits"]["train"][0] |= changes
    path.write_text(json.dumps(content))


def name_sample(source, index, image, transforms):
    """Make a sample with the name of the image instead of its pixels."""
    return {"image": torch.zeros(3, 1, 1, dtype=torch.uint8), "label": source.labels[index], "name": source.name(index)}


def batches_of(root, *, split="train", size=4, lanes=1, rank=0, world=1, skip=False, make=name_sample):
    source = ShardSource(ShardIndex.read(str(root)), split, NAMES, skip_damaged=skip)
    if split == "train":
        dataset = TrainingImages(source, train_transform(32), make, seed=0)
    else:
        dataset = EvaluationImages(source, eval_transform(32, 0.875), make)
    return ShardBatches(dataset, batch_size=size, lanes=lanes, rank=rank, world_size=world)


def load(batches, workers, epochs=(0,), first=BatchDraw(0, 0)):  # noqa: B008
    """Return the batches of names that a DataLoader with persistent workers yields in each epoch."""
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


# Writing


# An epoch


@pytest.mark.parametrize("workers", range(5))
def test_an_epoch_has_every_sample_once_and_equally_many_batches_in_all_processes(written, workers):
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
def test_an_evaluation_has_every_sample_exactly_once(written, workers):
    for world, size in ((1, 4), (2, 4), (3, 2), (2, 1)):
        lanes = max(1, workers)
        seen = [
            load(batches_of(written, split="val", size=size, lanes=lanes, rank=rank, world=world), workers)[0]
            for rank in range(world)
        ]
        assert sorted(name for batches in seen for batch in batches for name in batch) == all_names(written, "val")


def test_no_process_gets_an_empty_batch_if_the_samples_cannot_be_divided_evenly(written):
    for world, size in ((2, 1), (4, 1), (40, 4)):
        seen = [load(batches_of(written, size=size, rank=rank, world=world), 0)[0] for rank in range(world)]
        (count,) = {len(batches) for batches in seen}
        assert count == -(-COUNT // (world * size))
        assert all(batches and all(batches) for batches in seen)
        assert {name for batches in seen for batch in batches for name in batch} == {*all_names(written)}


def test_the_order_depends_on_seed_and_epoch_and_not_on_the_workers(written):
    first = load(batches_of(written, lanes=3), 0, epochs=(0, 1, 2))
    assert first[0] != first[1] != first[2]
    for workers in (1, 2, 3, 4):
        assert load(batches_of(written, lanes=3), workers, epochs=(0, 1, 2)) == first
    assert load(batches_of(written, lanes=3), 3, epochs=(2, 0)) == [first[2], first[0]]


def test_samples_are_shuffled_within_and_across_shards(written):
    (batches,) = load(batches_of(written, size=33), 0)
    shards = [name.split("/")[-1].split(".")[0] for name in batches[0]]
    assert sum(a == b for a, b in itertools.pairwise(shards)) < 15  # 26 without shuffling across shards


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_resuming_within_an_epoch_yields_exactly_the_remaining_batches(written, workers):
    whole = load(batches_of(written, lanes=2), 0, epochs=(1, 2))
    for batch in range(1, 9):
        rest = load(batches_of(written, lanes=2), workers, epochs=(1, 2), first=BatchDraw(batch, 1))
        assert rest == [whole[0][batch:], whole[1]]


def test_resuming_reads_no_image_or_shard_of_earlier_batches(written, monkeypatch):
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
    assert len(read) <= 7 + 2  # one shard crosses each border


def test_pixels_and_labels_are_those_of_the_image_folder(images, written):
    folder = ImageFolder(images, "train", NAMES)
    batches = batches_of(written, make=make_sample)
    batches.images.transforms = train_transform(32, crop_scale=(1.0, 1.0), flip=0.0)
    found = [sample for number in range(len(batches)) for sample in batches[BatchDraw(number, 0)]]
    expected = TrainingImages(folder, batches.images.transforms, make_sample, seed=0)
    pictures = {(expected[Draw(i, 0)]["image"].numpy().tobytes(), folder.labels[i]) for i in range(COUNT)}
    assert len(pictures) == COUNT
    assert {(sample["image"].numpy().tobytes(), sample["label"]) for sample in found} == pictures


def test_the_augmentation_depends_only_on_seed_epoch_and_sample(written):
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
    return "000000.tar: contains 5 samples, but the index says 6"


def swap(root):
    content = b"no tar" * 100
    (root / "train" / "000000.tar").write_bytes(content)
    reindex(root, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    return "000000.tar: not a shard of images"


def mislabel(root):
    content = json.loads((root / "shards.json").read_text())
    content["class_names"] = NAMES[:1]
    (root / "shards.json").write_text(json.dumps(content))
    return r"label [12], but the index has 1 classes"


DAMAGES = [cut, flip, remove, miscount, swap]


@pytest.mark.parametrize("damage", [*DAMAGES, mislabel])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_stops_the_run_with_its_name(shards, damage, workers):
    message = damage(shards)
    data = data_of(shards, num_workers=workers)
    data.class_names = NAMES
    with pytest.raises(InputError, match=message) as error:
        fit(data)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("world", [1, 3])
def test_other_samples_replace_a_damaged_shard_and_processes_agree_on_the_number_of_batches(shards, damage, world):
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
        assert max(map(names.count, names)) <= 3  # the samples of another shard, not one sample many times


@pytest.mark.parametrize("workers", [0, 2])
def test_a_skipped_shard_is_reported_once_and_counted(shards, workers, caplog):
    flip(shards)
    data = data_of(shards, num_workers=workers, skip_damaged_shards=True)
    module = fit(data, epochs=2)
    messages = [text for record in caplog.records if "; training " in (text := record.getMessage())]
    assert len(messages) == 1
    assert "train/000000.tar" in messages[0]
    assert data.skipped_counts() == {"skipped_images": 0, "skipped_shards": 1}
    assert sum(len(batch["label"]) for batch in module.trained) == 2 * COUNT
    data.draw_augmented(shards / "augmented.png")  # reads the first shard, which is damaged


@pytest.mark.parametrize(
    ("most", "indices"), [(1, [0]), (4, [0, 1, 3, 4]), (5, [0, 1, 2, 3, 4]), (6, [0, 2, 4, 5, 7, 9])]
)
def test_a_few_images_are_taken_from_as_few_shards_as_possible(written, most, indices):
    index = ShardIndex.read(str(written))
    assert [shard.samples for shard in index.splits["train"]] == [5, 5, 5, 5, 5, 5, 3]
    source = ShardSource(index, "train", index.class_names)
    assert indices_to_look_at(source, most) == indices
    assert indices_to_look_at(source, 100) == list(range(33))


def test_it_is_an_error_if_no_shard_can_be_read(shards):
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
    """Make an image of a shard undecodable, and correct the checksum."""
    index = json.loads((root / "shards.json").read_text())
    entry = index["splits"][split][0]
    path = root / entry["file"]
    content = path.read_bytes().replace(b"\xff\xd8", b"\0\0", 1)
    path.write_bytes(content)
    entry["sha256"] = hashlib.sha256(content).hexdigest()
    (root / "shards.json").write_text(json.dumps(index))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_training_image_is_replaced_and_reported_once(shards, workers, caplog):
    spoil_image(shards, "train")
    data = data_of(shards, num_workers=workers)
    module = fit(data, epochs=2)
    messages = [text for record in caplog.records if "; training " in (text := record.getMessage())]
    assert len(messages) == 1
    assert "train/000000.tar: " in messages[0]
    assert data.skipped_counts()["skipped_images"] == 1
    assert sum(len(batch["label"]) for batch in module.trained) == 2 * COUNT


def test_an_unreadable_validation_image_stops_an_evaluation(shards):
    spoil_image(shards, "val")
    with pytest.raises(InputError, match=r"val/000000\.tar: .*change the score"):
        trainer_with().validate(fit(data_of(shards)), data_of(shards), verbose=False)


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
            "named 'x;touch y'",
        ),
        (
            '{"class_names": ["a"], "splits": {"train": [{"file": "../0.tar", "samples": 1, "bytes": 1, '
            '"sha256": ""}]}}',
            "named",
        ),
        (
            '{"class_names": ["a"], "splits": {"train": [{"file": "train/0.tar", "samples": 0, "bytes": 1, '
            '"sha256": ""}]}}',
            "0 samples",
        ),
    ],
)
def test_an_invalid_index_is_refused_with_its_name(tmp_path, content, message):
    (tmp_path / "shards.json").write_text(content)
    with pytest.raises(InputError, match=rf"shards\.json: no index of shards \(.*{message}"):
        ShardIndex.read(str(tmp_path))


def test_options_that_do_not_fit_together_are_refused(images, written):
    for options, message in (
        ({"root": None}, "no shards: give --data.root"),
        ({"dataset": "folder", "root": str(written)}, "--data.dataset shards"),
        ({"dataset": "folder", "root": str(images), "skip_damaged_shards": True}, "skip_damaged_shards needs"),
    ):
        with pytest.raises(InputError, match=message):
            ClassificationData(**({"dataset": "shards"} | options))
    with pytest.raises(InputError, match=r"no index of shards.*shards\.json: cannot be read"):
        data_of(images).setup("fit")


def test_labels_follow_the_class_names_of_a_model(written):
    index = ShardIndex.read(str(written))
    plain = ShardSource(index, "val", NAMES)
    turned = ShardSource(index, "val", ["red", "purple", "blue", "green"])
    for number in range(len(plain)):
        plain.read(number), turned.read(number)
    assert [turned.labels[number] for number in range(9)] == [[2, 3, 0][plain.labels[number]] for number in range(9)]
    with pytest.raises(InputError, match="have the class 'red', which the model does not have"):
        ShardSource(index, "val", ["blue", "green"])
    with pytest.raises(InputError, match=r"no shards of the split 'test' \(it has train, val\)"):
        ShardSource(index, "test", NAMES)


# URLs and commands


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_over_http_give_the_same_batches_as_a_folder(written, server, workers):
    url, requested = server
    local = fit(data_of(written, num_workers=workers), epochs=2)
    data = data_of(url, num_workers=workers)
    remote = fit(data, epochs=2)
    assert data.dataset_name == "colours"
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(local.trained, remote.trained, strict=True))
    assert all(torch.equal(a["label"], b["label"]) for a, b in zip(local.validated, remote.validated, strict=True))
    assert requested.count("/colours/shards.json") == 1


def test_an_interrupted_transfer_is_repeated(written, server, monkeypatch):
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


def test_a_pipe_reads_the_output_of_its_command(written):
    for root in (f"pipe:cat {written}", f"pipe:cat {written}/{{}} | cat"):
        data = data_of(root)
        assert data.dataset_name == "colours"
        assert len(fit(data).trained) == 9
    with pytest.raises(InputError, match=r"pipe:false/shards\.json: cannot be read"):
        data_of("pipe:false").setup("fit")


@pytest.mark.parametrize("root", ["PIPE:touch ran; cat http://", " pipe:touch ran; cat ", "x://pipe:touch ran"])
def test_a_root_that_only_resembles_a_command_is_a_folder(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no index of shards"):
        data_of(root).setup("fit")
    assert not list(tmp_path.iterdir())


def test_the_name_of_a_file_is_inserted_into_a_url():
    assert locate("http://h/a/", "train/0.tar") == "http://h/a/train/0.tar"
    assert locate("pipe:aws s3 cp s3://b/{} -", "train/0.tar") == "pipe:aws s3 cp s3://b/train/0.tar -"


# Runs


def test_an_evaluation_causes_no_warning_of_lightning_and_sees_all_images(written, recwarn):
    module = fit(data_of(written, num_workers=2))
    assert sum(len(batch["label"]) for batch in module.validated) == 9
    assert not [warning for warning in recwarn if "Iterable" in str(warning.message)]


def test_a_resumed_run_continues_at_its_batch_in_the_same_order(written):
    torch.manual_seed(0)
    data = data_of(written, num_workers=2)
    data.trainer = trainer_with()
    data.setup("fit")
    state = data.state_dict()
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
        remaining = [batch["image"] for batch in loader]
        assert len(remaining) == 4
        assert all(torch.equal(a, b) for a, b in zip(remaining, batches[5:], strict=True))


def test_collated_batches_report_damage_once():
    sample = {"image": torch.zeros(3, 1, 1), "label": 0, "name": "a", "failures": []}
    batch = collate_shards([sample | {"damage": "x"}, sample | {"damage": "x"}, sample | {"damage": None}])
    assert batch["damages"] == ["x"]
    assert collate_shards([{"failures": [], "error": "e"}])["errors"] == ["e"]


def test_the_commands_train_resume_score_and_predict_from_shards(images, shards, tmp_path, command):
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
        status, output, errors = command("classification.validate", "--ckpt_path", checkpoint, *root)
        assert (status, top1 in output) == (0, True), errors
    status, output, errors = command("classification.test", "--ckpt_path", checkpoint)
    assert status == 0, errors
    assert "on val of colours: 9 images" in output
    status, _, errors = command("classification.predict", images / "val", "--ckpt_path", checkpoint)
    assert status == 0, errors

    # A command in a checkpoint is not run.
    content = torch.load(checkpoint, weights_only=True)
    content["datamodule_hyper_parameters"]["root"] = f"pipe:touch {tmp_path}/ran; cat {shards}/{{}}"
    torch.save(content, tmp_path / "evil.ckpt")
    status, _, errors = command("classification.validate", "--ckpt_path", tmp_path / "evil.ckpt")
    assert status == 1
    assert "give it as --data.root" in errors
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not SIGNS.is_dir(), reason="needs the photographs of signed digits")
def test_two_thousand_photographs_occur_once_for_any_number_of_processes_and_workers(tmp_path):
    arguments = (str(SIGNS), "signs", "--shard_megabytes", "1", "--workers", "2")
    result = run_module("classification.shard", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    names = [str(number) for number in range(10)]
    index = ShardIndex.read(str(tmp_path / "signs"))
    for split in ("train", "val"):
        total = len(find_images(SIGNS / split).images)
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
