"""Checkpoints, shards and commands shared by the tests of classification."""

import runpy
import shutil
import sys

import pytest
import torch

from classification.data.module import ClassificationData
from classification.data.shards import ShardIndex, ShardSource
from classification.module import ClassificationModule
from tests.conftest import run_module, write_image_folder

NAMES = ["blue", "green", "red"]
COUNT = 33  # training images in the shards


def save_checkpoint(path, root, name="mobile_former_26m"):
    """Save a checkpoint as fit does. Its random weights give different images different probabilities."""
    torch.manual_seed(0)
    module = ClassificationModule(NAMES, name)
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "datamodule_hyper_parameters": dict(ClassificationData(root=str(root), image_size=64).hparams),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(image_folder, tmp_path_factory):
    """A checkpoint in the folder of a run."""
    return save_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints" / "best.ckpt", image_folder)


def all_names(root, split="train"):
    source = ShardSource(ShardIndex.read(str(root)), split, NAMES)
    return sorted(source.name(index) for index in range(len(source)))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An image folder: 33 training and 9 validation images."""
    return write_image_folder(tmp_path_factory.mktemp("images") / "colours", tuple(NAMES), train=11, val=3, side=40)


@pytest.fixture(scope="module")
def written(images, tmp_path_factory):
    """Shards of five images each."""
    root = tmp_path_factory.mktemp("shards") / "colours"
    result = run_module("classification.shard", str(images), str(root), "--shard_samples", "5", cwd=root.parent)
    assert result.returncode == 0, result.stderr
    return root


@pytest.fixture
def shards(written, tmp_path):
    """Shards that a test may damage."""
    return shutil.copytree(written, tmp_path / "colours")


@pytest.fixture
def command(monkeypatch, capfd, tmp_path):
    """Run a command in this process, in ``tmp_path``; return its status, stdout and stderr."""

    def call(module, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_module(module, run_name="__main__", alter_sys=False)
        output = capfd.readouterr()
        assert "Traceback" not in output.err
        return end.value.code, output.out, output.err

    return call


@pytest.fixture
def failing(command):
    """Run a command that must end with ``status``; return its error message."""

    def call(module, *arguments, status=1):
        code, _, message = command(module, *arguments)
        assert code == status
        return message

    return call
