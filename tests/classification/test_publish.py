"""A trained checkpoint becomes a model that others load."""

import sys

import pytest
import torch

import classification.publish
from classification.module import ClassificationModule
from mobile_former import InputError, MobileFormer
from mobile_former.training.run.checkpoint import load_checkpoint
from tests.classification.test_export import NAMES, save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(image_folder, tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints" / "best.ckpt", image_folder)


@pytest.fixture
def publish(monkeypatch, tmp_path):
    def call(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["publish", *map(str, arguments)])
        classification.publish.main()

    return call


def test_a_checkpoint_is_written_as_a_model_that_knows_its_classes_and_images(checkpoint, publish, tmp_path, capsys):
    publish("--ckpt_path", checkpoint, "--folder", "colours", "--license", "mit")
    assert capsys.readouterr().out == "written: colours/: config.json, model.safetensors, README.md\n"
    model = MobileFormer.from_pretrained(tmp_path / "colours")
    assert model.usage.class_names == tuple(NAMES)
    assert (model.usage.image_size, model.usage.crop_fraction) == (64, 0.875)
    module, _ = load_checkpoint(checkpoint, ClassificationModule, "classification")
    assert all(map(torch.equal, model.state_dict().values(), module.model.state_dict().values()))
    assert "license: mit\n" in (tmp_path / "colours" / "README.md").read_text()


def test_a_checkpoint_is_pushed_with_the_options_given(checkpoint, publish, monkeypatch, capsys):
    pushed = []

    def push(model, repository, usage, **options):
        pushed.append((repository, usage.image_size, options))
        return "https://huggingface.co/me/colours"

    monkeypatch.setattr(MobileFormer, "push_to_hub", push)
    publish("--ckpt_path", checkpoint, "--repository", "me/colours", "--private", "true")
    assert capsys.readouterr().out == "pushed: https://huggingface.co/me/colours\n"
    assert pushed == [("me/colours", 64, {"license": "apache-2.0", "private": True})]


def test_where_to_publish_is_said_once(checkpoint, publish):
    for where in ((), ("--folder", "colours", "--repository", "me/colours")):
        with pytest.raises(InputError, match="give either --folder"):
            publish("--ckpt_path", checkpoint, *where)


def test_another_library_s_model_is_not_published_here(image_folder, publish, tmp_path):
    pytest.importorskip("transformers")
    other = save_checkpoint(tmp_path / "other.ckpt", image_folder, name="transformers/mobilenet_v2_0.35")
    with pytest.raises(InputError, match="publish another library's model by that library"):
        publish("--ckpt_path", other, "--folder", "other")
