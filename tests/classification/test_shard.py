"""Writing an image folder as shards."""

import hashlib
import io
import json
import os
import shutil
import sys
import tarfile

import pytest
import webdataset

from classification.data.image_folder import ImageFolder
from classification.data.shards import ShardIndex
from classification.shard import main
from mobile_former.errors import InputError
from tests.classification.conftest import COUNT, NAMES, all_names
from tests.conftest import run_module


@pytest.fixture
def shard(tmp_path):
    """Write shards with the command, in a process of its own; return its status, stdout and stderr.

    The command forks its writing processes. Forks of a test process, which has threads, can hang.
    """

    def call(*arguments):
        result = run_module("classification.shard", *map(str, arguments), cwd=tmp_path)
        assert "Traceback" not in result.stderr
        return result.returncode, result.stdout, result.stderr

    return call


def test_shards_contain_the_bytes_and_labels_of_the_images_in_random_order(images, written):
    found = {}
    for split in ("train", "val"):
        folder = ImageFolder(images, split, NAMES)
        expected = sorted((path.read_bytes(), label) for path, label in zip(folder.paths, folder.labels, strict=True))
        tars = sorted(map(str, (written / split).glob("*.tar")))
        samples = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))
        assert sorted((sample["jpg"], int(sample["cls"])) for sample in samples) == expected
        found[split] = [int(sample["cls"]) for sample in samples]
    assert len({*found["train"][:5]}) > 1
    assert found["train"] != sorted(found["train"])


def test_the_index_matches_the_shards(written):
    index = json.loads((written / "shards.json").read_text())
    assert index["class_names"] == NAMES
    assert [entry["samples"] for entry in index["splits"]["train"]] == [5] * 6 + [3]
    for entry in index["splits"]["train"] + index["splits"]["val"]:
        content = (written / entry["file"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"])
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            assert len(tar.getnames()) == 2 * entry["samples"]


def test_shards_are_limited_by_size_if_no_number_of_samples_is_given(images, shard, tmp_path):
    status, _, errors = shard(images, "out", "--shard_megabytes", 0.02, "--workers", 1)
    assert (status, errors) == (0, "")
    train = ShardIndex.read(str(tmp_path / "out")).splits["train"]
    assert len(train) > 2
    assert sum(entry.samples for entry in train) == COUNT
    assert all(entry.bytes <= 20_000 + 10_240 for entry in train)  # the last block of a tar file


def test_a_stopped_run_continues_and_keeps_complete_shards(images, shards, shard):
    before = {path: path.stat().st_mtime_ns for path in shards.rglob("*.tar")}
    damaged, missing, short = (shards / "train" / f"00000{number}.tar" for number in range(3))
    damaged.write_bytes(damaged.read_bytes().replace(b"\xff\xd8", b"\xff\xd9", 1))
    missing.unlink()
    os.truncate(short, 2000)
    index = (shards / "shards.json").read_text()
    (shards / "shards.json").unlink()
    status, output, errors = shard(images, shards, "--shard_samples", 5, "--workers", 2)
    assert status == 0, errors
    after = {path: path.stat().st_mtime_ns for path in shards.rglob("*.tar")}
    assert {path for path in after if after[path] != before[path]} == {damaged, missing, short}
    assert "6 shards already existed" in output
    assert (shards / "shards.json").read_text() == index
    assert not list(shards.rglob("*.part"))


def test_shards_of_an_earlier_run_are_reported_and_not_read(images, shards, shard):
    status, _, errors = shard(images, shards, "--shard_samples", 30, "--workers", 1)
    assert status == 0, errors
    assert errors.count("from an earlier run") == 6
    assert len(all_names(shards)) == COUNT


def test_unreadable_images_are_all_named_in_an_error_or_left_out(images, shard, tmp_path):
    folder = shutil.copytree(images, tmp_path / "images")
    bad = [folder / "train" / "red" / "3.jpg", folder / "val" / "blue" / "0.jpg"]
    for path in bad:
        path.write_bytes(path.read_bytes()[:300])
    bad.append(folder / "train" / "green" / "broken.jpg")
    bad[-1].symlink_to("nowhere")
    arguments = (folder, "out", "--shard_samples", 5, "--workers", 1)
    status, _, errors = shard(*arguments)
    assert status == 1
    assert all(str(path) in errors for path in bad)
    assert "3 of 43 images" in errors
    assert "--skip_unreadable" in errors
    assert not (tmp_path / "out" / "shards.json").exists()
    for written in ("", "shards already existed"):
        status, output, errors = shard(*arguments, "--skip_unreadable", "true")
        assert status == 0, errors
        assert "3 of 43 images could not be read" in output
        assert written in output
        assert (len(all_names(tmp_path / "out")), len(all_names(tmp_path / "out", "val"))) == (32, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "out"), "nowhere does not exist"),
        (("images", "images/shards"), "is inside images"),
        (("images", "images"), "is inside images"),
        (("images", "out", "--shard_samples", "0"), "--shard_samples is 0"),
        (("images", "out", "--shard_megabytes", "0"), "--shard_megabytes is 0"),
        (("images", "out", "--workers", "0"), "--workers is 0"),
    ],
)
def test_unusable_arguments_are_named(images, tmp_path, monkeypatch, arguments, message):
    (tmp_path / "images").symlink_to(images)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["shard", *arguments])
    with pytest.raises((InputError, FileNotFoundError), match=message):
        main()
    assert not (tmp_path / "out").exists()
