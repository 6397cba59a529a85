"""Weights from URLs and from the Hugging Face Hub, which a local server and a local folder replace."""

import hashlib
import re

import huggingface_hub
import pytest
import torch

import mobile_former
from mobile_former import InputError
from mobile_former.weights.sources import local_file
from tests.conftest import run_module

SIZE = 4  # classes


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return mobile_former.mobile_former_26m(num_classes=SIZE)


@pytest.fixture(scope="module")
def data(model, tmp_path_factory):
    """The bytes of a weights file."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    mobile_former.save_weights(model, path)
    return path.read_bytes()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of torch.hub's downloads, in a folder of the test."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def assert_same_weights(found, expected):
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_a_file_is_downloaded_once_and_checked_by_its_sum(server, data, model, cache):
    address, answers = server
    digest = hashlib.sha256(data).hexdigest()
    answers["/model.safetensors"] = (200, {"Content-Length": str(len(data))}, data)
    answers["/moved"] = (302, {"Location": "/model.safetensors"}, b"")
    url = f"{address}/model.safetensors"
    loaded = mobile_former.create_model("mobile_former_26m", num_classes=SIZE, pretrained=url, sha256=digest)
    assert_same_weights(loaded, model)
    assert [path.name for path in cache.iterdir()] == [f"model-{digest[:8]}.safetensors"]
    answers.clear()  # from here on, the cached file is taken
    loaded = mobile_former.mobile_former_26m(num_classes=SIZE, pretrained=f"{url}#sha256={digest.upper()}")
    assert_same_weights(loaded, model)
    (cached,) = cache.iterdir()
    cached.write_bytes(data[:-1])  # damaged: downloaded again
    answers["/model.safetensors"] = (200, {}, data)
    assert local_file(url, digest).read_bytes() == data
    answers["/moved"] = (302, {"Location": "/model.safetensors"}, b"")
    assert local_file(f"{address}/moved", digest).read_bytes() == data


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/other", r"the file has SHA-256 [0-9a-f]{64}, not [0-9a-f]{64}: it was changed or damaged"),
        ("/cut", r"the download broke off after 50 of \d+ bytes: try again"),
        ("/page", "the server sends a web page, not a file"),
        ("/redirect", "the server sends a web page, not a file"),
        ("/missing", "HTTPError: HTTP Error 404"),
    ],
)
def test_another_file_a_cut_one_and_a_web_page_are_errors_and_leave_nothing(path, message, server, data, cache):
    address, answers = server
    answers["/other"] = (200, {}, data + b" ")
    answers["/cut"] = (200, {"Content-Length": str(len(data))}, data[:50])
    answers["/page"] = (200, {"Content-Type": "text/html; charset=utf-8"}, b"<!DOCTYPE html>")
    answers["/redirect"] = (302, {"Location": "/page"}, b"")
    answers["/missing"] = (404, {}, b"")
    with pytest.raises(InputError, match=message) as error:
        mobile_former.load_weights(
            mobile_former.mobile_former_26m(), f"{address}{path}#sha256={hashlib.sha256(data).hexdigest()}"
        )
    assert str(error.value).startswith(f"{address}{path}: ")
    assert "\n" not in str(error.value)
    assert not list(cache.iterdir())


@pytest.mark.parametrize("digest", [None, "abc", "z" * 64])
def test_a_url_needs_a_sum(digest, cache):
    reason = "missing" if digest is None else "not 64 hexadecimal digits"
    with pytest.raises(InputError, match=rf"SHA-256 of the file is {reason}.*#sha256="):
        mobile_former.create_model("mobile_former_26m", pretrained="https://example.org/a.pth", sha256=digest)
    with pytest.raises(InputError, match="is a file: leave it out"):
        local_file("a.pth", "0" * 64)


def test_a_repository_of_the_hub_is_named_by_hf(model, data, tmp_path, monkeypatch):
    requests = []

    def snapshot_download(repository, *, revision=None, **_):
        requests.append((repository, revision))
        if repository == "no/weights":
            return str(tmp_path / "empty")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    (tmp_path / "model.safetensors").write_bytes(data)
    for name in ("hf://me/animals", "hf://me/animals@v1"):
        assert_same_weights(mobile_former.mobile_former_26m(num_classes=SIZE, pretrained=name), model)
    assert requests == [("me/animals", None), ("me/animals", "v1")]
    with pytest.raises(InputError, match=r"hf://no/weights has no model\.safetensors"):
        local_file("hf://no/weights")
    with pytest.raises(InputError, match="owner/name"):
        local_file("hf://nothing")


def test_training_starts_from_a_url(server, data, cache, tmp_path):
    address, answers = server
    answers["/model.safetensors"] = (200, {}, data)
    arguments = (
        "classification.fit", "--model.name", "mobile_former_26m", "--trainer.fast_dev_run", "1",
        "--data.batch_size", "2", "--data.image_size", "32", "--model.pretrained",
    )  # fmt: skip
    url = f"{address}/model.safetensors"
    result = run_module(*arguments, f"{url}#sha256={hashlib.sha256(data).hexdigest()}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"loaded the weights in \S+model-[0-9a-f]{8}\.safetensors", result.stderr)
