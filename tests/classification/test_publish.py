"""Publishing a checkpoint as a model for the Hugging Face Hub."""

import sys

import pytest
import torch

import classification.publish
from classification.module import ClassificationModule
from mobile_former import InputError, MobileFormer
from mobile_former.training.run.checkpoint import load_checkpoint
from tests.classification.conftest import NAMES, save_checkpoint


@pytest.fixture
def publish(monkeypatch, tmp_path):
    def call(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["publish", *map(str, arguments)])
        classification.publish.main()

    return call


def test_the_written_model_has_its_classes_and_preprocessing(checkpoint, publish, tmp_path, capsys):
    publish("--ckpt_path", checkpoint, "--folder", "colours", "--license", "mit")
    assert capsys.readouterr().out == "written: colours/: config.json, model.safetensors, README.md\n"
    model = MobileFormer.from_pretrained(tmp_path / "colours")
    assert model.usage.class_names == tuple(NAMES)
    assert (model.usage.image_size, model.usage.crop_fraction) == (64, 0.875)
    module, _ = load_checkpoint(checkpoint, ClassificationModule, "classification")
    assert all(map(torch.equal, model.state_dict().values(), module.model.state_dict().values()))
    assert "license: mit\n" in (tmp_path / "colours" / "README.md").read_text()


def test_a_checkpoint_is_pushed_with_the_given_options(checkpoint, publish, monkeypatch, capsys):
    pushed = []

    def push(model, repository, usage, **options):
        pushed.append((repository, usage.image_size, options))
        return "https://huggingface.co/me/colours"

    monkeypatch.setattr(MobileFormer, "push_to_hub", push)
    publish("--ckpt_path", checkpoint, "--repository", "me/colours", "--private", "true")
    assert capsys.readouterr().out == "pushed: https://huggingface.co/me/colours\n"
    assert pushed == [("me/colours", 64, {"license": "apache-2.0", "private": True})]


def test_folder_and_repository_exclude_each_other(checkpoint, publish):
    for where in ((), ("--folder", "colours", "--repository", "me/colours")):
        with pytest.raises(InputError, match="give either --folder"):
            publish("--ckpt_path", checkpoint, *where)


def test_a_model_of_another_library_is_refused(image_folder, publish, tmp_path):
    pytest.importorskip("transformers")
    other = save_checkpoint(tmp_path / "other.ckpt", image_folder, name="transformers/mobilenet_v2_0.35")
    with pytest.raises(InputError, match="publish it with the library of that model"):
        publish("--ckpt_path", other, "--folder", "other")
