"""Model folders and the Hugging Face Hub, which a local folder replaces."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

import mobile_former
from mobile_former import InputError, MobileFormer, Usage
from mobile_former.ablation import ablate
from mobile_former.weights import hub
from tests.conftest import ROOT

USAGE = Usage(class_names=("cat", "dog", "cow: brown"), image_size=64, crop_fraction=0.9, mean=(0.5, 0.4, 0.3))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return mobile_former.mobile_former_26m(num_classes=3, spatial_dynamic_relu=True).eval()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "animals"
    model.save_pretrained(folder, USAGE)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the folder, for tests that damage it."""
    return shutil.copytree(saved, tmp_path / "animals")


@pytest.fixture
def the_hub(monkeypatch, tmp_path):
    """A folder instead of the Hub, with one folder ``owner/name`` per repository, and the list of requests."""
    requests = []
    root = tmp_path / "hub"
    monkeypatch.setattr(hub, "cost", lambda model, image_size: mobile_former.Cost(1, 1))  # takes a second

    def create_repo(api, repo_id, *, private=None, exist_ok=False):
        requests.append(("create", repo_id, private, api.token))
        (root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(api, *, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)

    def snapshot_download(repo_id, *, revision=None, token=None, cache_dir=None, allow_patterns=None):
        requests.append(("fetch", repo_id, revision, token, tuple(allow_patterns)))
        return str(root / repo_id)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub.HfApi, "file_exists", lambda api, repo, name: (root / repo / name).exists())
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return root, requests


def test_a_saved_model_is_loaded_exactly(model, folder):
    found = MobileFormer.from_pretrained(folder)
    images = torch.randn(2, 3, 40, 32)
    assert all(map(torch.equal, found.state_dict().values(), model.state_dict().values()))
    torch.testing.assert_close(found(images), model(images))
    assert not found.training
    assert found.usage == USAGE
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_a_loaded_model_is_saved_with_the_same_config(folder, tmp_path):
    MobileFormer.from_pretrained(str(folder)).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_another_number_of_classes_creates_a_new_head_without_names(folder):
    found = MobileFormer.from_pretrained(folder, num_classes=5, dropout=0.2)
    assert found.classifier.logits.out_features == 5
    assert found.classifier.dropout.p == 0.2
    assert found.usage.class_names is None
    assert found.usage.image_size == 64


def test_a_pushed_model_comes_back_from_the_hub(model, the_hub):
    root, requests = the_hub
    address = model.push_to_hub("me/animals", USAGE, private=True, token="hf_abc")
    assert address == "https://huggingface.co/me/animals"
    found = MobileFormer.from_pretrained("me/animals", revision="v1", token="hf_abc")
    assert all(map(torch.equal, found.state_dict().values(), model.state_dict().values()))
    assert found.usage.class_names == USAGE.class_names
    files = ("config.json", "model.safetensors")
    assert requests == [("create", "me/animals", True, "hf_abc"), ("fetch", "me/animals", "v1", "hf_abc", files)]
    assert 'from_pretrained("me/animals")' in (root / "me/animals/README.md").read_text()


def test_an_existing_card_is_not_overwritten(model, folder, the_hub):
    root, _ = the_hub
    for place in (folder, root / "me/animals"):
        place.mkdir(parents=True, exist_ok=True)
        (place / "README.md").write_text("mine")
    model.save_pretrained(folder)
    model.push_to_hub("me/animals")
    assert (folder / "README.md").read_text() == (root / "me/animals/README.md").read_text() == "mine"


def test_the_card_has_valid_metadata_and_true_figures(model, folder):
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "mobile-former"
    assert card.data.pipeline_tag == "image-classification"
    assert "mobile-former" in card.data.tags
    cost = mobile_former.cost(model, (64, 64))
    assert f"| {cost.params:,} | {cost.madds / 1e6:.2f} M |".replace(",", " ") in card.text
    assert "3 classes: cat, dog, cow: brown" in card.text


def test_the_card_s_example_runs(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((50, 70, 3), np.uint8)).save("photo.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert re.match(r"(cat|dog|cow: brown) 0\.\d+", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("usage", "message"),
    [
        ({"class_names": ("a", "b")}, "2 class names for 3 logits: give one for each"),
        ({"mean": (0.5,), "std": (0.5,)}, "mean and std have 1 channels, images 3"),
    ],
)
def test_a_usage_that_does_not_fit_the_model_is_not_written(model, tmp_path, usage, message):
    with pytest.raises(InputError, match=re.escape(message)):
        model.save_pretrained(tmp_path / "animals", Usage(**usage))
    assert not (tmp_path / "animals").exists()


@pytest.mark.parametrize("ablation", ["relu", "tokens=2"])
def test_a_model_that_from_pretrained_could_not_build_is_not_written(ablation, tmp_path):
    model = mobile_former.mobile_former_26m(num_classes=3)
    ablate(model, ablation)
    with pytest.raises(InputError, match=r"not mobile_former_26m as published \(.* differs; an ablation\?\)"):
        model.save_pretrained(tmp_path / "ablated")
    assert not (tmp_path / "ablated").exists()


def test_a_folder_without_a_model_is_an_error(model, folder, tmp_path):
    with pytest.raises(InputError, match=r"no folder .*nowhere, and repositories on the Hub .* like owner/name"):
        MobileFormer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no config\.json: give a folder that save_pretrained wrote"):
        MobileFormer.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="license is 'my own': give a name"):
        model.save_pretrained(tmp_path / "own", license="my own")
    (folder / "model.safetensors").rename(folder / "elsewhere")
    with pytest.raises(InputError, match=r"config\.json, but no model\.safetensors: fetch or save it again"):
        MobileFormer.from_pretrained(folder)


def test_a_damaged_config_is_an_input_error_that_names_it(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    wrong = {
        "num_classes": "3",
        "architecture": "mobile_former_27m",
        "class_names": [1],
        "mean": None,
        "std": ["a"] * 3,
    }
    contents = ["{", "[]", '{"model_type": "bert"}', *(json.dumps(config | {key: wrong[key]}) for key in wrong)]
    for content in contents:
        path.write_text(content)
        with pytest.raises(InputError, match=re.escape(str(path))):
            MobileFormer.from_pretrained(folder)


def test_without_network_both_directions_name_the_remedy(tmp_path):
    """With the real library, and a port without a server."""
    code = """
        import mobile_former
        model = mobile_former.mobile_former_26m(num_classes=3)
        for attempt in (mobile_former.MobileFormer.from_pretrained, model.push_to_hub):
            try:
                attempt("me/animals")
            except mobile_former.InputError as error:
                print(error)
    """
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    fetched, pushed = result.stdout.splitlines()
    assert re.match(r"there is no folder me/animals, and it cannot be fetched.*check the name and the network", fetched)
    assert re.match(r"cannot push to me/animals .*log in by `hf auth login`", pushed)


def test_without_huggingface_hub_only_folders_work_and_the_error_names_the_package(model, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert MobileFormer.from_pretrained(folder).usage == USAGE
    for attempt in (MobileFormer.from_pretrained, model.push_to_hub):
        with pytest.raises(InputError, match=r"me/animals.*huggingface_hub is missing.*pip install .*\[hub\]"):
            attempt("me/animals")
